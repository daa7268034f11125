//! A guest thread: a thread of a stub process, and the turn that passes between it and the sentry's thread.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::unistd::Pid;

use super::context::Context;
use super::filter::{FORK_FLAGS, SPAWN_FLAGS};
use super::interrupt::{BY_ITSELF, StubInterrupt, answer_of};
use super::layout::{CODE, at, context_address, kind, op, state};
use super::put_off::{Mapping, PutOff};
use super::remember::{self, Noted};
use super::remote::{Process, StubMemory};
use super::resting::Rest;
use super::sleepers;
use super::stub::{Parts, Processes, Stub};
use super::turn::{Late, ends_before_stub};
use super::waiting::{self, Waiting};
use crate::error::Errno;
use crate::platform::generation::{self, Mark};
use crate::platform::{
    ANSWERED, ByItself, Interrupt, Memory, MemoryCall, Regs, RemoteMemory, Thread, Trap, taken_back,
};

/// A guest thread. It owns the turn whenever one of its methods is called.
pub(in crate::platform) struct StubThread {
    pub(super) processes: Arc<Processes>,
    pub(in crate::platform) stub: Arc<Stub>,
    pub(in crate::platform) slot: usize,
    pub(in crate::platform) context: Arc<Context>,
    /// What the guest's call says of itself, and the rest where `all` says so: else that lies in the context, as it was at the call.
    pub(super) regs: Regs,
    pub(super) fs_base: u64,
    pub(super) all: bool,
    /// The guest runs since [`Thread::start`].
    pub(super) started: bool,
    /// The guest is to run for one instruction.
    pub(super) stepping: bool,
    /// What came with the guest's call: flags of [`super::layout::kind`].
    pub(super) came_with: u32,
    /// Number of that call.
    pub(super) called: u64,
    /// Its descriptor of the socket by which files come.
    pub(super) socket: u64,
    pub(in crate::platform) interrupt: Arc<StubInterrupt>,
    pub(in crate::platform) memory: Arc<StubMemory<Stub>>,
    /// Which of [`ANSWERED`] the context has answers for.
    pub(super) answered: u64,
    /// Arguments by which the host's kernel forgets the guest's restartable sequences.
    pub(super) restartable: Option<[u64; 4]>,
    pub(super) waiting: Waiting,
    /// Copies that the stub is not asked for, since it was slow.
    pub(super) slow_copies: Cell<u32>,
    pub(super) late: Late,
    pub(super) put_off: PutOff,
    pub(super) noted: Noted,
    pub(super) rest: Rest,
}

/// Where a thread's turn lies, before it is known who it is.
pub(super) struct Place {
    pub(super) stub: Arc<Stub>,
    pub(super) slot: usize,
    pub(super) context: Arc<Context>,
}

/// Prepares a context for a thread that will run in it. It begins with the turn in this state ([`super::layout::state`]).
pub(super) fn prepare(context: &Context, slot: usize, secret: u64, turn: u32) {
    prepare_again(context, slot, secret);
    context.u32_at(at::STUB_SLEEPS).store(0, Ordering::Relaxed);
    context.store(at::WAKES, 0);
    context.u32_at(at::STATE).store(turn, Ordering::SeqCst);
}

/// Prepares one for another guest in the same thread, which sleeps.
pub(super) fn prepare_again(context: &Context, slot: usize, secret: u64) {
    context.store(at::SECRET, secret);
    context.store(at::FRAME, 0);
    context.store(at::NO_SIGNALS, 0);
    context.store(at::ANSWERED, 0);
    context.store(at::USER, remember::next_user());
    context.store(at::WAITS_SINCE, 0);
    context.store(at::WAITED, 0);
    context.store(at::STACK_T, context_address(slot) + at::SIGNAL_STACK as u64);
    context.store(at::STACK_T + 8, 0);
    context.store(at::STACK_T + 16, at::SIGNAL_STACK_SIZE as u64);
    context.u32_at(at::INTERRUPTED).store(0, Ordering::Relaxed);
    context.u32_at(at::SENTRY_SLEEPS).store(0, Ordering::Relaxed);
}

impl StubThread {
    /// The thread that runs, or begins to, in a prepared context.
    pub(super) fn begin(processes: &Arc<Processes>, place: Place, thread: Pid, socket: u64) -> Self {
        let Place { stub, slot, context } = place;
        let interrupt = StubInterrupt::new(&stub, (slot, &context), thread);
        let memory = Arc::new(StubMemory(Arc::clone(&stub)));
        let thread = Self {
            processes: Arc::clone(processes),
            stub,
            slot,
            context,
            regs: Regs::default(),
            fs_base: 0,
            all: true,
            started: false,
            stepping: false,
            came_with: 0,
            called: 0,
            socket,
            interrupt: Arc::new(interrupt),
            memory,
            answered: 0,
            restartable: None,
            waiting: Waiting::new(),
            slow_copies: Cell::new(0),
            late: Late::default(),
            put_off: PutOff::default(),
            noted: Noted::default(),
            rest: Rest::default(),
        };
        let (awake, woken) = thread.waiting.told();
        thread.context.u32_at(at::SPIN).store(awake, Ordering::Relaxed);
        thread.context.u32_at(at::SPIN_WOKEN).store(woken, Ordering::Relaxed);
        thread
    }

    /// Has the stub make a system call of the host.
    pub(in crate::platform) fn call(&self, number: i64, arguments: [u64; 6]) -> Result<u64, Errno> {
        let [a, b, c, d, e, f] = arguments;
        result(self.ask(op::CALL, &[number.unsigned_abs(), a, b, c, d, e, f])?)
    }

    /// Sends files to the stub and hands the arguments for receiving them to `receive`.
    pub(super) fn give<T>(
        &self,
        files: &[BorrowedFd<'_>],
        receive: impl FnOnce([u64; 3]) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        // struct msghdr, one struct iovec, a byte, control data: all in the window, at the addresses that they have in the stub.
        const IOVEC: usize = 64;
        const BYTE: usize = 96;
        let here = context_address(self.slot) + at::WINDOW as u64;
        let control = at::DESCRIPTORS - at::CONTROL + 4 * files.len().next_multiple_of(2);
        let header = [0, 0, here + IOVEC as u64, 1, here + at::CONTROL as u64, control as u64, 0];
        let iovec = [here + BYTE as u64, 1];
        let lock = self.stub.send_files(files)?;
        for (n, word) in header.iter().enumerate() {
            self.context.store(at::WINDOW + 8 * n, *word);
        }
        for (n, word) in iovec.iter().enumerate() {
            self.context.store(at::WINDOW + IOVEC + 8 * n, *word);
        }
        let flags = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64;
        let received = receive([self.socket, here, flags]);
        drop(lock);
        received
    }

    /// Gives files to the stub; the numbers that they have there.
    pub(in crate::platform) fn give_files<const N: usize>(
        &self,
        files: [BorrowedFd<'_>; N],
    ) -> Result<[u64; N], Errno> {
        self.give(&files, |[socket, header, flags]| {
            self.call(libc::SYS_recvmsg, [socket, header, flags, 0, 0, 0])?;
            let mut numbers = [0; N];
            for (n, number) in numbers.iter_mut().enumerate() {
                let mut bytes = [0; 4];
                self.context.read(at::WINDOW + at::DESCRIPTORS + 4 * n, &mut bytes);
                *number = u64::from(u32::from_le_bytes(bytes));
            }
            Ok(numbers)
        })
    }

    /// `mmap` at an address.
    pub(super) fn map(
        &self,
        address: u64,
        length: u64,
        protection: i32,
        flags: i32,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<u64, Errno> {
        let place = (address, length);
        let Some((file, offset)) = file else {
            return self.map_all(&[Mapping::new(place, protection, flags, None)], &[]);
        };
        self.map_all(&[Mapping::new(place, protection, flags, Some((0, offset)))], &[file])
    }

    /// `mprotect`.
    pub(super) fn protect(&self, address: u64, length: u64, protection: i32) -> Result<u64, Errno> {
        self.call(libc::SYS_mprotect, [address, length, u64::from(protection.cast_unsigned()), 0, 0, 0])
    }

    /// Compares and swaps a word of the guest's; what was there.
    pub(in crate::platform) fn swap(&self, address: u64, expected: u32, new: u32) -> Result<u32, Errno> {
        let seen = self.ask(op::COMPARE_EXCHANGE, &[address, u64::from(expected), u64::from(new)])?;
        u32::try_from(seen).map_err(|_| Errno::EFAULT)
    }

    /// Copies what a new thread does not have from its clone: registers, and vector state where the guest's lay in a signal frame.
    pub(super) fn pass_state_to(&mut self, child: &mut Self) -> Result<(), Errno> {
        (child.regs, child.fs_base) = self.peek_registers();
        // Replaced call sites read them there. The values are the caller's until others are set.
        for place in 0..ANSWERED.len() {
            child.context.store(at::ANSWERS + 8 * place, self.context.load(at::ANSWERS + 8 * place));
        }
        child.answered = self.answered;
        child.context.store(at::ANSWERED, child.answered);
        if self.context.load(at::FRAME) != 0 {
            let state = self.vector_state()?;
            child.set_vector_state(&state)?;
        }
        Ok(())
    }

    /// A copy of the stub with this thread alone.
    pub(in crate::platform) fn fork_stub(&mut self) -> Result<Self, Errno> {
        let parts = Parts::new()?;
        let [contexts, socket] = self.give_files([parts.contexts.as_fd(), parts.its_socket.as_fd()])?;
        // The child runs in the context with the same number and address, of another file.
        let secret = crate::random::number()?;
        prepare(&Context::map(parts.contexts.as_fd(), self.slot)?, self.slot, secret, state::SENTRY);
        let child = result(self.ask(op::FORK, &[FORK_FLAGS, contexts, self.socket, socket])?);
        let patches = self.stub.patches().clone();
        let pid = Pid::from_raw(i32::try_from(child?).map_err(|_| Errno::EFAULT)?);
        let (stub, context) = self.processes.adopt(pid, parts, (self.slot, secret), patches)?;
        let place = Place { stub, slot: self.slot, context };
        let mut child = Self::begin(&self.processes, place, pid, socket);
        child.restartable = self.restartable;
        self.pass_state_to(&mut child)?;
        Ok(child)
    }

    /// A further thread of the stub.
    pub(in crate::platform) fn spawn_thread(&mut self) -> Result<Self, Errno> {
        let (slot, context) = self.stub.take_slot()?;
        prepare(&context, slot, 0, state::SENTRY);
        let address = context_address(slot);
        let thread =
            result(self.ask(op::SPAWN, &[SPAWN_FLAGS, 0, 0, address + at::STATE as u64, 0, address])?)
                .and_then(|thread| i32::try_from(thread).map_err(|_| Errno::EFAULT));
        let thread = match thread {
            Ok(thread) => Pid::from_raw(thread),
            Err(error) => {
                self.stub.leave();
                context.u32_at(at::STATE).store(state::DEAD, Ordering::SeqCst);
                self.stub.free_slot(slot);
                return Err(error);
            }
        };
        let place = Place { stub: Arc::clone(&self.stub), slot, context };
        let mut child = Self::begin(&self.processes, place, thread, self.socket);
        self.pass_state_to(&mut child)?;
        Ok(child)
    }
}

/// What a system call of the host gave.
pub(in crate::platform) fn result(value: u64) -> Result<u64, Errno> {
    match value.cast_signed() {
        error @ -4095..=-1 => Err(Errno::from_raw(i32::try_from(-error).unwrap_or(libc::EIO))),
        _ => Ok(value),
    }
}

/// The host's call, and its arguments, for a change of memory; of a file's mapping, those of memory of its own at that place.
pub(in crate::platform) fn memory_call(call: &MemoryCall<'_>) -> (i64, [u64; 6]) {
    match *call {
        MemoryCall::Map { address, length, protection, flags, .. } => {
            let flags = flags | libc::MAP_FIXED | libc::MAP_ANONYMOUS;
            let (protection, flags) =
                (u64::from(protection.cast_unsigned()), u64::from(flags.cast_unsigned()));
            (libc::SYS_mmap, [address, length, protection, flags, u64::MAX, 0])
        }
        MemoryCall::Unmap { address, length } => (libc::SYS_munmap, [address, length, 0, 0, 0, 0]),
        MemoryCall::Protect { address, length, protection } => {
            (libc::SYS_mprotect, [address, length, u64::from(protection.cast_unsigned()), 0, 0, 0])
        }
        MemoryCall::Move { address, length, new_address, new_length, keep } => {
            let flags = if address == new_address && !keep {
                0
            } else {
                let keep = if keep { libc::MREMAP_DONTUNMAP } else { 0 };
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | keep
            };
            let flags = u64::from(flags.cast_unsigned());
            (libc::SYS_mremap, [address, length, new_length, flags, new_address, 0])
        }
        MemoryCall::Advise { address, length, advice } => {
            let advice = u64::from(advice.cast_unsigned());
            (libc::SYS_madvise, [address, length, advice, 0, 0, 0])
        }
    }
}

impl Thread for StubThread {
    fn resume(&mut self) -> Trap {
        self.run_guest()
    }

    fn start(&mut self) -> bool {
        self.start_guest()
    }

    fn step(&mut self) -> Trap {
        self.step_guest()
    }

    fn show_code(&mut self, protection: &dyn Fn(u64) -> Option<i32>) -> Result<(), Errno> {
        self.answered = 0;
        self.context.store(at::ANSWERED, 0);
        self.restore_sites(protection)
    }

    fn forget_early(&mut self) {
        self.take_registers();
        self.came_with = 0;
    }

    fn regs(&mut self) -> &mut Regs {
        self.take_registers();
        &mut self.regs
    }

    fn arguments(&mut self) -> [u64; 6] {
        self.regs.arguments()
    }

    fn called_from(&mut self) -> u64 {
        // Not all of them are taken for it, since all would have to be given back.
        match (self.all, self.came_with & kind::TRAPPED != 0) {
            (true, _) => self.regs.rip,
            (false, true) => self.context.load(at::REGS + 8 * 16),
            (false, false) => 0,
        }
    }

    fn set_result(&mut self, value: u64) {
        self.regs.rax = value;
    }

    fn read_early(&self, address: u64, to: &mut [u8]) -> usize {
        if self.staged(address, to) { to.len() } else { self.read(address, to) }
    }

    fn read_text(&self, address: u64, to: &mut [u8]) -> usize {
        self.staged_text(address, to).unwrap_or_else(|| self.read_early(address, to))
    }

    fn write_late(&self, address: u64, from: &[u8]) -> bool {
        self.put_late(address, from)
    }

    fn write_aside(&self, address: u64, from: &[u8]) {
        self.put_aside(address, from);
    }

    fn says_writable(&self, address: u64, length: usize) -> bool {
        self.is_writable(address, length)
    }

    fn fs_base(&mut self) -> &mut u64 {
        self.take_registers();
        &mut self.fs_base
    }

    fn vector_state(&mut self) -> Result<Vec<u8>, Errno> {
        self.save_vector()
    }

    fn pushed_state(&self) -> Option<usize> {
        self.pushed_vector()
    }

    fn push_frame(&mut self, vector: u64, place: u64, frame: &[u8]) -> Result<(), Errno> {
        self.push_vector_and_frame(vector, place, frame)
    }

    fn loaded_state(&self) -> Option<usize> {
        self.loaded_vector()
    }

    fn load_state(&mut self, from: u64) -> Result<(), Errno> {
        self.load_vector_from(from)
    }

    fn set_vector_state(&mut self, state: &[u8]) -> Result<(), Errno> {
        self.load_vector(state)
    }

    fn stop_answering(&mut self) -> Result<(), Errno> {
        // Of numbers in registers; sites of one number answer by themselves.
        self.answered = 0;
        self.context.store(at::ANSWERED, 0);
        self.silence()
    }

    fn set_answers(&mut self, answers: &[(u64, u64)]) {
        for (number, value) in answers {
            if let Some(place) = answer_of(*number) {
                self.context.store(at::ANSWERS + 8 * place, *value);
                self.answered |= 1 << place;
            }
        }
        self.context.store(at::ANSWERED, self.answered);
    }

    fn let_by_itself(&mut self, what: ByItself) {
        let remembers = what.remembers && generation::page().is_some();
        self.answered &= !BY_ITSELF;
        self.answered |= if remembers { remember::KEEPS } else { 0 };
        self.answered |= if what.waits { sleepers::WAITS } else { 0 };
        self.context.store(at::ANSWERED, self.answered);
    }

    fn count_sleepers(&mut self, address: u64, more: i32) {
        self.count_here(address, more);
    }

    fn wake_sleepers(&mut self, address: u64, count: usize, bitset: u32) -> usize {
        self.wake_here(address, count, bitset)
    }

    fn move_sleepers(&mut self, words: (u64, u64), counts: (usize, usize), value: Option<u32>) -> usize {
        self.move_here(words, counts, value)
    }

    fn slept(&mut self) -> u64 {
        sleepers::slept(&self.context).0
    }

    fn clear_slept(&mut self) {
        sleepers::clear_slept(&self.context);
    }

    fn remember(&mut self, mark: Mark, result: i64, bytes: &[u8]) {
        self.keep_answer(mark, result, bytes);
    }

    fn change_memory(&mut self, call: &MemoryCall<'_>) -> Result<u64, Errno> {
        if let MemoryCall::Map { address, length, protection, flags, file: file @ Some(_) } = *call {
            return self.map(address, length, protection, flags, file);
        }
        let (number, arguments) = memory_call(call);
        self.call(number, arguments)
    }

    fn gather(&mut self, gather: bool) -> Result<(), Errno> {
        self.gather_mappings(gather)
    }

    fn map_kept(&mut self, call: &MemoryCall<'_>, file: Option<&Arc<OwnedFd>>) -> Result<u64, Errno> {
        match self.put_off_mapping(call, file)? {
            Some(address) => Ok(address),
            None => self.change_memory(call),
        }
    }

    fn read_file(
        &mut self,
        address: u64,
        length: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<usize, Errno> {
        if !ends_before_stub(address, length) {
            return Err(Errno::EFAULT);
        }
        let ask = |[socket, header, flags]: [u64; 3]| {
            self.waiting.expect_copy(length);
            result(self.ask(op::READ_FILE, &[socket, header, flags, address, length as u64, offset])?)
        };
        let count = self.give(&[file], ask)?;
        usize::try_from(count).ok().filter(|count| *count <= length).ok_or(Errno::EFAULT)
    }

    fn restartable(&mut self, arguments: [u64; 4]) -> Result<(), Errno> {
        let [address, length, flags, signature] = arguments;
        self.call(libc::SYS_rseq, [address, length, flags, signature, 0, 0])?;
        self.restartable = taken_back(arguments);
        Ok(())
    }

    fn registered(&self) -> Option<[u64; 4]> {
        self.restartable.map(|[address, length, _, signature]| [address, length, 0, signature])
    }

    fn compare_exchange(&mut self, address: u64, expected: u32, new: u32) -> Result<u32, Errno> {
        if !address.is_multiple_of(4) || address > CODE - 4 {
            return Err(Errno::EFAULT);
        }
        self.swap(address, expected, new)
    }

    fn wakes_put_off(&self) -> bool {
        true
    }

    fn retire(&mut self) {
        if !self.stub.is_single() {
            self.take_back_restartable();
            self.is_about_to_rest();
        }
    }

    fn fork(&mut self) -> Result<Box<dyn Thread>, Errno> {
        Ok(Box::new(self.fork_stub()?))
    }

    fn spawn(&mut self) -> Result<Box<dyn Thread>, Errno> {
        let mut child = match self.spawn_resting()? {
            Some(child) => child,
            None => self.spawn_thread()?,
        };
        child.rest.rests = true;
        self.has_made(&child);
        Ok(Box::new(child))
    }

    fn replaceable(&mut self) -> Option<u64> {
        self.replaceable_site()
    }

    fn replace(&mut self, protection: i32) -> Result<(), Errno> {
        self.replace_site(protection)
    }

    fn set_kept(&mut self, kept: &[u8]) -> Result<(), Errno> {
        self.take_over(kept)
    }

    fn settle(&mut self) {
        self.let_begin();
    }

    fn release(&mut self) {
        self.load_now();
        // Who serves it from now on works; whoever prepared it may never do again.
        waiting::rest();
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.interrupt) as Arc<dyn Interrupt>
    }

    fn remote(&self) -> Arc<dyn RemoteMemory> {
        Arc::clone(&self.memory) as Arc<dyn RemoteMemory>
    }
}

impl StubThread {
    /// The stub, which waits for the turn, shall sleep: it will be long.
    pub(super) fn let_sleep(&self) {
        self.interrupt.let_sleep();
    }

    /// Its process.
    #[cfg(test)]
    pub(super) fn stub(&self) -> &Stub {
        &self.stub
    }

    /// Other threads of the guest may take away the memory in which the host's kernel would still write, and it ends the process for what it cannot.
    fn take_back_restartable(&mut self) {
        if let Some(arguments) = self.restartable.filter(|_| self.has_turn()) {
            let _ = self.restartable(arguments);
        }
    }
}

impl Drop for StubThread {
    fn drop(&mut self) {
        self.let_begin();
        let last = self.stub.leave();
        if self.let_rest(!last) {
            return;
        }
        if last {
            self.stub.kill();
        } else if self.interrupt.thread == self.stub.pid() && !self.stub.is_dead() {
            self.take_back_restartable();
            // The host forgets the memory of a process whose first thread has ended (`mm_access`), and the process may well go on: that
            // thread waits for a turn, in its context, until the last one ends all.
            return;
        } else if self.has_turn() {
            // No answer: the thread ends, and the host's kernel clears its state. Only then another has its context.
            self.context.store(at::ARGUMENTS, libc::SYS_exit.unsigned_abs());
            self.context.store(at::ARGUMENTS + 8, 0);
            self.give_turn(op::CALL);
        }
        self.stub.free_slot(self.slot);
    }
}
