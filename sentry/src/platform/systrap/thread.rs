//! A guest thread: a thread of a stub process, and the turn that passes between it and the sentry's thread.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::context::{Context, futex_wait, futex_wake};
use super::filter::{FORK_FLAGS, SPAWN_FLAGS};
use super::layout::{CODE, FLAGS, INTERRUPT, at, context_address, kind, op, state};
use super::remote::{Process, StubMemory};
use super::stub::{Parts, Processes, Stub};
use crate::error::Errno;
use crate::platform::{ANSWERS, Interrupt, MemoryCall, Regs, RemoteMemory, Thread, Trap};

/// Longest and shortest time to spin for the other side.
const SPIN: std::ops::Range<Duration> = Duration::from_micros(1)..Duration::from_micros(20);
/// The same for the stub, in looks at the state; one takes some 20 ns.
const STUB_SPIN: std::ops::Range<u64> = 30..1000;

/// A guest thread. It owns the turn whenever one of its methods is called.
pub(super) struct StubThread {
    processes: Arc<Processes>,
    pub(super) stub: Arc<Stub>,
    pub(super) slot: usize,
    pub(super) context: Arc<Context>,
    pub(super) regs: Regs,
    fs_base: u64,
    /// Its descriptor of the socket by which files come.
    socket: u64,
    interrupt: Arc<StubInterrupt>,
    pub(super) memory: Arc<StubMemory<Stub>>,
    /// Numbers of the calls that the context has answers for.
    pub(super) answers: Vec<u64>,
    spin: std::cell::Cell<Duration>,
    pub(super) spins: bool,
    /// Copies that the stub is not asked for, since it was slow.
    pub(super) slow_copies: std::cell::Cell<u32>,
}

/// Interrupts a stub's thread.
struct StubInterrupt {
    stub: Arc<Stub>,
    thread: Pid,
    requested: AtomicBool,
    in_guest: AtomicBool,
}

impl Interrupt for StubInterrupt {
    fn interrupt(&self) {
        self.requested.store(true, Ordering::SeqCst);
        if self.in_guest.load(Ordering::SeqCst) && !self.stub.is_dead() {
            signal_thread(self.stub.pid(), self.thread);
        }
    }
}

/// Sends [`INTERRUPT`] to a thread of a stub.
pub(in crate::platform) fn signal_thread(process: Pid, thread: Pid) {
    // SAFETY: sends a signal to a thread of our own; what does not exist any more is an error that nobody needs.
    unsafe { libc::syscall(libc::SYS_tgkill, process.as_raw(), thread.as_raw(), INTERRUPT) };
}

/// Where a thread's turn lies, before it is known who it is.
pub(super) struct Place {
    pub(super) stub: Arc<Stub>,
    pub(super) slot: usize,
    pub(super) context: Arc<Context>,
}

/// Prepares a context for a thread that will run in it.
pub(super) fn prepare(context: &Context, slot: usize, secret: u64) {
    context.store(at::SECRET, secret);
    context.store(at::FRAME, 0);
    context.store(at::NO_SIGNALS, 0);
    context.store(at::STACK_T, context_address(slot) + at::SIGNAL_STACK as u64);
    context.store(at::STACK_T + 8, 0);
    context.store(at::STACK_T + 16, at::SIGNAL_STACK_SIZE as u64);
    context.u32_at(at::INTERRUPTED).store(0, Ordering::Relaxed);
    context.u32_at(at::STUB_SLEEPS).store(0, Ordering::Relaxed);
    context.u32_at(at::SENTRY_SLEEPS).store(0, Ordering::Relaxed);
    context.u32_at(at::STATE).store(state::STUB, Ordering::SeqCst);
}

impl StubThread {
    /// The thread that runs, or begins to, in a prepared context. Waits until it has given its first turn away.
    pub(super) fn begin(
        processes: &Arc<Processes>,
        place: Place,
        thread: Pid,
        socket: u64,
    ) -> Result<Self, Errno> {
        let Place { stub, slot, context } = place;
        let spins = crate::outside::cpus() > 1;
        let interrupt = StubInterrupt {
            stub: Arc::clone(&stub),
            thread,
            requested: AtomicBool::new(false),
            in_guest: AtomicBool::new(false),
        };
        let memory = Arc::new(StubMemory(Arc::clone(&stub)));
        let thread = Self {
            processes: Arc::clone(processes),
            stub,
            slot,
            context,
            regs: Regs::default(),
            fs_base: 0,
            socket,
            interrupt: Arc::new(interrupt),
            memory,
            answers: Vec::new(),
            spin: std::cell::Cell::new(SPIN.end),
            spins,
            slow_copies: std::cell::Cell::new(0),
        };
        thread.context.store(at::SPIN, if spins { STUB_SPIN.end } else { 0 });
        if thread.wait() { Ok(thread) } else { Err(Errno::EAGAIN) }
    }

    /// Gives the turn to the stub.
    fn post(&self) {
        let word = self.context.u32_at(at::STATE);
        word.store(state::STUB, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let slept = self.context.u32_at(at::STUB_SLEEPS).load(Ordering::SeqCst) != 0;
        if slept {
            futex_wake(word);
        }
        if self.spins {
            // A stub that slept spun in vain: it spins shorter, and longer again when it did not.
            let now = self.context.load(at::SPIN);
            let next = if slept { now / 2 } else { now.saturating_add(now / 8 + 1) };
            self.context.store(at::SPIN, next.clamp(STUB_SPIN.start, STUB_SPIN.end));
        }
    }

    /// Waits for the turn. `false` when the stub is gone.
    fn wait(&self) -> bool {
        let word = self.context.u32_at(at::STATE);
        if self.spins {
            let begin = Instant::now();
            loop {
                for _ in 0..64 {
                    if word.load(Ordering::Acquire) != state::STUB {
                        self.spin.set((self.spin.get() * 2).min(SPIN.end));
                        return self.has_turn();
                    }
                    std::hint::spin_loop();
                }
                if begin.elapsed() > self.spin.get() {
                    self.spin.set((self.spin.get() / 2).max(SPIN.start));
                    break;
                }
            }
        }
        let sleeps = self.context.u32_at(at::SENTRY_SLEEPS);
        sleeps.store(1, Ordering::SeqCst);
        while word.load(Ordering::SeqCst) == state::STUB && !self.stub.is_dead() {
            futex_wait(word, state::STUB);
        }
        sleeps.store(0, Ordering::SeqCst);
        self.has_turn()
    }

    fn has_turn(&self) -> bool {
        self.context.u32_at(at::STATE).load(Ordering::Acquire) == state::SENTRY && !self.stub.is_dead()
    }

    /// Asks the stub for something other than to run the guest. What it says is whatever the guest wants it to be.
    pub(super) fn ask(&self, what: u64, arguments: &[u64]) -> Result<u64, Errno> {
        if !self.has_turn() {
            return Err(Errno::EFAULT);
        }
        for (n, argument) in arguments.iter().enumerate() {
            self.context.store(at::ARGUMENTS + 8 * n, *argument);
        }
        self.context.store(at::OP, what);
        self.post();
        if self.wait() && self.context.load(at::KIND) == kind::DONE {
            Ok(self.context.load(at::RESULT))
        } else {
            Err(Errno::EFAULT)
        }
    }

    /// Has the stub make a system call of the host.
    fn call(&self, number: i64, arguments: [u64; 6]) -> Result<u64, Errno> {
        let [a, b, c, d, e, f] = arguments;
        result(self.ask(op::CALL, &[number.unsigned_abs(), a, b, c, d, e, f])?)
    }

    /// Sends files to the stub and hands the arguments for receiving them to `receive`.
    fn give<T>(
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
    fn give_files<const N: usize>(&self, files: [BorrowedFd<'_>; N]) -> Result<[u64; N], Errno> {
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
        let place = [address, length, u64::from(protection.cast_unsigned())];
        let flags = u64::from((flags | libc::MAP_FIXED).cast_unsigned());
        let [a, b, c] = place;
        match file {
            None => {
                let flags = flags | u64::from(libc::MAP_ANONYMOUS.cast_unsigned());
                self.call(libc::SYS_mmap, [a, b, c, flags, u64::MAX, 0])
            }
            Some((file, offset)) => self.give(&[file], |receive| {
                for (n, argument) in [a, b, c, flags, offset].iter().enumerate() {
                    self.context.store(at::MAP_ARGUMENTS + 8 * n, *argument);
                }
                result(self.ask(op::MAP_FILE, &receive)?)
            }),
        }
    }

    /// `mprotect`.
    pub(super) fn protect(&self, address: u64, length: u64, protection: i32) -> Result<u64, Errno> {
        self.call(libc::SYS_mprotect, [address, length, u64::from(protection.cast_unsigned()), 0, 0, 0])
    }

    /// Compares and swaps a word of the guest's; what was there.
    pub(super) fn swap(&self, address: u64, expected: u32, new: u32) -> Result<u32, Errno> {
        let seen = self.ask(op::COMPARE_EXCHANGE, &[address, u64::from(expected), u64::from(new)])?;
        u32::try_from(seen).map_err(|_| Errno::EFAULT)
    }

    /// Copies what a new thread does not have from its clone: registers, and vector state where the guest's lay in a signal frame.
    fn pass_state_to(&mut self, child: &mut Self) -> Result<(), Errno> {
        child.regs = self.regs;
        child.fs_base = self.fs_base;
        // The same numbers at the same places: replaced call sites read them there. The values are the caller's until others are set.
        let value = |n: usize| self.context.load(at::ANSWERS + 8 * n);
        let answers: Vec<_> =
            self.answers.iter().enumerate().map(|(n, number)| (*number, value(n))).collect();
        child.set_answers(&answers);
        if self.context.load(at::FRAME) != 0 {
            let state = self.vector_state()?;
            child.set_vector_state(&state)?;
        }
        Ok(())
    }

    /// A copy of the stub with this thread alone.
    pub(super) fn fork_stub(&mut self) -> Result<Self, Errno> {
        let parts = Parts::new()?;
        let [contexts, socket] = self.give_files([parts.contexts.as_fd(), parts.its_socket.as_fd()])?;
        // The child runs in the context with the same number and address, of another file.
        let secret = crate::random::number()?;
        prepare(&Context::map(parts.contexts.as_fd(), self.slot)?, self.slot, secret);
        let child = result(self.ask(op::FORK, &[FORK_FLAGS, contexts, self.socket])?);
        for number in [contexts, socket] {
            self.call(libc::SYS_close, [number, 0, 0, 0, 0, 0])?;
        }
        let patches = self.stub.patches().clone();
        let pid = Pid::from_raw(i32::try_from(child?).map_err(|_| Errno::EFAULT)?);
        let (stub, context) = self.processes.adopt(pid, parts, self.slot, patches)?;
        let place = Place { stub, slot: self.slot, context };
        let mut child = Self::begin(&self.processes, place, pid, socket)?;
        // It is a child of the sentry's and nobody else's stub. That it is the one whose contexts these are, it shows by what is in them: else
        // it is another guest's that was just made, or none.
        let known = super::remote::word(pid, context_address(self.slot) + at::SECRET as u64);
        if known != Some(secret) {
            self.processes.disown(&child.stub);
            return Err(Errno::EFAULT);
        }
        self.pass_state_to(&mut child)?;
        Ok(child)
    }

    /// Where in the context the vector state of a signal frame lies, and its length.
    fn framed_vector_state(&self) -> Result<(usize, usize), Errno> {
        let here = context_address(self.slot);
        let inside = |address: u64| address.checked_sub(here).and_then(|offset| usize::try_from(offset).ok());
        let frame = inside(self.context.load(at::FRAME)).ok_or(Errno::EFAULT)?;
        if frame.checked_add(232).is_none_or(|end| end > at::WINDOW) || !frame.is_multiple_of(8) {
            return Err(Errno::EFAULT);
        }
        let state = inside(self.context.load(frame + 224)).ok_or(Errno::EFAULT)?;
        if state.checked_add(512).is_none_or(|end| end > at::WINDOW) || !state.is_multiple_of(8) {
            return Err(Errno::EFAULT);
        }
        // struct _fpx_sw_bytes at 464: magic1, extended_size, xfeatures, xstate_size.
        let size = (self.context.load(state + 480) & 0xffff_ffff) as usize;
        let size = if size < 576 { 512 } else { size };
        if state.checked_add(size).is_none_or(|end| end > at::WINDOW) {
            return Err(Errno::EFAULT);
        }
        Ok((state, size))
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
        if !self.has_turn() {
            return Trap::Gone;
        }
        let interrupt = Arc::clone(&self.interrupt);
        self.context.u32_at(at::INTERRUPTED).store(0, Ordering::SeqCst);
        interrupt.in_guest.store(true, Ordering::SeqCst);
        if interrupt.requested.swap(false, Ordering::SeqCst) {
            interrupt.in_guest.store(false, Ordering::SeqCst);
            return Trap::Interrupted;
        }
        // The stub's own code would run under any other flag, too.
        let eflags = (self.regs.eflags & FLAGS) | 0x202;
        self.context.set_regs(&Regs { eflags, ..self.regs });
        self.context.store(at::FS_BASE, self.fs_base);
        self.context.store(at::OP, op::RESUME);
        self.post();
        let alive = self.wait();
        interrupt.in_guest.store(false, Ordering::SeqCst);
        if !alive {
            return Trap::Gone;
        }
        self.regs = self.context.regs();
        self.fs_base = self.context.load(at::FS_BASE);
        self.trap()
    }

    fn regs(&mut self) -> &mut Regs {
        &mut self.regs
    }

    fn fs_base(&mut self) -> &mut u64 {
        &mut self.fs_base
    }

    fn vector_state(&mut self) -> Result<Vec<u8>, Errno> {
        if self.context.load(at::FRAME) != 0 {
            let (offset, size) = self.framed_vector_state()?;
            let mut state = vec![0; size];
            self.context.read(offset, &mut state);
            return Ok(state);
        }
        self.ask(op::SAVE_VECTOR, &[])?;
        let mut state = vec![0; vector_size()];
        self.context.read(at::VECTOR, &mut state);
        Ok(state)
    }

    fn set_vector_state(&mut self, state: &[u8]) -> Result<(), Errno> {
        if state.len() < 512 || state.len() > at::VECTOR_SIZE {
            return Err(Errno::EINVAL);
        }
        let mut whole = state.to_vec();
        // Bytes 464 to 511 are software's; 512 to 575 the header: without one, only what FXSAVE has is loaded.
        if whole.len() < 576 {
            whole.resize(576, 0);
            whole[512] = 3;
        }
        if self.context.load(at::FRAME) != 0 {
            let (offset, size) = self.framed_vector_state()?;
            let keep = size.min(whole.len());
            // The frame's own description of itself stays.
            self.context.write(offset, &whole[..464]);
            self.context.write(offset + 512, &whole[512..keep.max(512)]);
            return Ok(());
        }
        self.context.write(at::VECTOR, &whole);
        match self.ask(op::LOAD_VECTOR, &[])? {
            0 => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn set_answers(&mut self, answers: &[(u64, u64)]) {
        for (number, value) in answers {
            let known = self.answers.iter().position(|answered| answered == number);
            let place = known.unwrap_or_else(|| {
                self.answers.push(*number);
                self.answers.len() - 1
            });
            if place < ANSWERS {
                self.context.store(at::ANSWERS + 8 * place, *value);
            }
        }
        self.answers.truncate(ANSWERS);
    }

    fn change_memory(&mut self, call: &MemoryCall<'_>) -> Result<u64, Errno> {
        if let MemoryCall::Map { address, length, protection, flags, file: file @ Some(_) } = *call {
            return self.map(address, length, protection, flags, file);
        }
        let (number, arguments) = memory_call(call);
        self.call(number, arguments)
    }

    fn compare_exchange(&mut self, address: u64, expected: u32, new: u32) -> Result<u32, Errno> {
        if !address.is_multiple_of(4) || address > CODE - 4 {
            return Err(Errno::EFAULT);
        }
        self.swap(address, expected, new)
    }

    fn fork(&mut self) -> Result<Box<dyn Thread>, Errno> {
        Ok(Box::new(self.fork_stub()?))
    }

    fn spawn(&mut self) -> Result<Box<dyn Thread>, Errno> {
        let (slot, context) = self.stub.take_slot()?;
        prepare(&context, slot, 0);
        let address = context_address(slot);
        let thread =
            result(self.ask(op::SPAWN, &[SPAWN_FLAGS, 0, 0, address + at::STATE as u64, 0, address])?)
                .and_then(|thread| i32::try_from(thread).map_err(|_| Errno::EFAULT));
        let thread = match thread {
            Ok(thread) => Pid::from_raw(thread),
            Err(error) => {
                self.stub.leave();
                self.stub.free_slot(slot);
                return Err(error);
            }
        };
        let place = Place { stub: Arc::clone(&self.stub), slot, context };
        let mut child = Self::begin(&self.processes, place, thread, self.socket)?;
        self.pass_state_to(&mut child)?;
        Ok(Box::new(child))
    }

    fn replaceable(&mut self) -> Option<u64> {
        self.replaceable_site()
    }

    fn replace(&mut self, protection: i32) -> Result<(), Errno> {
        self.replace_site(protection)
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.interrupt) as Arc<dyn Interrupt>
    }

    fn remote(&self) -> Arc<dyn RemoteMemory> {
        Arc::clone(&self.memory) as Arc<dyn RemoteMemory>
    }
}

impl StubThread {
    /// Its process.
    #[cfg(test)]
    pub(super) fn stub(&self) -> &Stub {
        &self.stub
    }

    /// What the context says of why the guest stopped.
    fn trap(&mut self) -> Trap {
        let context = Arc::clone(&self.context);
        match context.load(at::KIND) {
            kind::INTERRUPTED => Trap::Interrupted,
            kind::SIGNAL => match i32::try_from(context.load(at::SIGNAL)) {
                Ok(INTERRUPT) => Trap::Interrupted,
                Ok(libc::SIGSYS) => Trap::Syscall { number: self.regs.rax },
                Ok(libc::SIGILL) if self.stub.patches().entered_inside(self.regs.rip) => {
                    self.regs.rip += 2;
                    Trap::Syscall { number: self.regs.rax }
                }
                Ok(signal @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGTRAP | libc::SIGILL)) => {
                    Trap::Fault {
                        signal,
                        code: context.load(at::CODE) as u32 as i32,
                        address: context.load(at::ADDRESS),
                        exception: (context.load(at::EXCEPTION), context.load(at::ERROR)),
                    }
                }
                _ => Trap::Gone,
            },
            _ => Trap::Gone,
        }
    }
}

impl Drop for StubThread {
    fn drop(&mut self) {
        if self.stub.leave() {
            self.stub.kill();
        } else if self.interrupt.thread == self.stub.pid() && !self.stub.is_dead() {
            // The host forgets the memory of a process whose first thread has ended (`mm_access`), and the process may well go on: that
            // thread waits for a turn, in its context, until the last one ends all.
            return;
        } else if self.has_turn() {
            let exit = [libc::SYS_exit.unsigned_abs(), 0];
            // No answer: the thread ends, and the host's kernel clears its state. Only then another may have its context.
            let _ = self.ask(op::CALL, &exit);
        }
        self.stub.free_slot(self.slot);
    }
}

/// Bytes of this processor's vector state (CPUID 0xd, `ebx` of leaf 0: what the features in force take).
fn vector_size() -> usize {
    let size = core::arch::x86_64::__cpuid_count(0xd, 0).ebx as usize;
    size.clamp(576, at::VECTOR_SIZE)
}
