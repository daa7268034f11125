//! A guest thread: a thread of a stub that the sentry's thread which serves it traces.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::ptrace::getsiginfo;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::code::Code;
use super::stub::Stub;
use super::tracee::{Stop, Tracee};
use super::vector;
use crate::error::Errno;
use crate::platform::systrap::filter::{FORK_FLAGS, SPAWN_FLAGS};
use crate::platform::systrap::layout::{CODE, CONTEXTS, FLAGS, INTERRUPT};
use crate::platform::systrap::remote::{Process, StubMemory};
use crate::platform::systrap::{memory_call, result, sockets};
use crate::platform::{Interrupt, Memory, MemoryCall, Regs, RemoteMemory, Thread, Trap};

/// Where a stub has room for the message by which it gets a file.
const WINDOW: u64 = CONTEXTS;
/// In it: the message's `struct iovec`, its one byte, its control data, and in that the descriptor, behind `struct cmsghdr`.
const IOVEC: u64 = WINDOW + 64;
const BYTE: u64 = WINDOW + 96;
const CONTROL: u64 = WINDOW + 128;
const CONTROL_SIZE: u64 = 24;
const DESCRIPTOR: u64 = CONTROL + 16;

/// A guest thread. What traces it is the thread of the sentry that first uses it, until [`Thread::release`].
pub(super) struct Traced {
    code: Arc<Code>,
    stub: Arc<Stub>,
    tracee: Tracee,
    regs: Regs,
    fs_base: u64,
    /// Its number of the socket by which files come.
    socket: u64,
    /// A descriptor that it has from the process of which it is a copy, and does not need.
    surplus: Option<u64>,
    interrupt: Arc<TracedInterrupt>,
    memory: Arc<StubMemory<Stub>>,
}

/// Interrupts a stub's thread.
struct TracedInterrupt {
    stub: Arc<Stub>,
    thread: Pid,
    requested: AtomicBool,
    in_guest: AtomicBool,
}

impl Interrupt for TracedInterrupt {
    fn interrupt(&self) {
        self.requested.store(true, Ordering::SeqCst);
        if self.in_guest.load(Ordering::SeqCst) && !self.stub.is_dead() {
            crate::platform::systrap::signal_thread(self.stub.pid(), self.thread);
        }
    }
}

impl Traced {
    /// A thread of a stub that parks, or is about to; `socket` is its descriptor of the socket by which it gets files.
    pub(super) fn new(code: &Arc<Code>, stub: Arc<Stub>, thread: Pid, socket: u64) -> Self {
        let interrupt = TracedInterrupt {
            stub: Arc::clone(&stub),
            thread,
            requested: AtomicBool::new(false),
            in_guest: AtomicBool::new(false),
        };
        Self {
            code: Arc::clone(code),
            memory: Arc::new(StubMemory(Arc::clone(&stub))),
            stub,
            tracee: Tracee::parked(thread),
            regs: Regs::default(),
            fs_base: 0,
            socket,
            surplus: None,
            interrupt: Arc::new(interrupt),
        }
    }

    /// Its process.
    #[cfg(test)]
    pub(super) fn stub(&self) -> &Stub {
        &self.stub
    }

    /// Sees whether the host lets it be traced, and its calls be stopped; nobody traces it then.
    pub(super) fn try_out(&mut self) -> Result<(), Errno> {
        self.hold()?;
        let here = Regs { rip: CODE + self.code.call, ..Regs::default() };
        self.tracee.set(&here, 0)?;
        let stop = self.tracee.run();
        self.release();
        if stop == Stop::Syscall { Ok(()) } else { Err(Errno::EPERM) }
    }

    fn hold(&mut self) -> Result<(), Errno> {
        if self.stub.is_dead() {
            return Err(Errno::EFAULT);
        }
        self.tracee.hold(&self.code)?;
        if let Some(number) = self.surplus.take() {
            let _ = self.inject(self.code.call, libc::SYS_close, [number, 0, 0, 0, 0, 0]);
        }
        Ok(())
    }

    /// Has the stub make a system call of the host, at one of the places of its code.
    fn inject(&mut self, place: u64, number: i64, arguments: [u64; 6]) -> Result<u64, Errno> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let regs = Regs { rax: number.unsigned_abs(), rdi, rsi, rdx, r10, r8, r9, ..Regs::default() };
        let (after, interrupted) = self.tracee.inject(place, &regs)?;
        if interrupted {
            self.interrupt.requested.store(true, Ordering::SeqCst);
        }
        Ok(after.rax)
    }

    fn call(&mut self, number: i64, arguments: [u64; 6]) -> Result<u64, Errno> {
        self.hold()?;
        result(self.inject(self.code.call, number, arguments)?)
    }

    /// Gives the stub a file, and lets `with` use the number that it has there. Other threads of the guest may spoil the message: they then
    /// have another file of their own, or none.
    fn give<T>(
        &mut self,
        file: BorrowedFd<'_>,
        with: impl FnOnce(&mut Self, u64) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let stub = Arc::clone(&self.stub);
        let lock = stub.send_file(file)?;
        let header = [0, 0, IOVEC, 1, CONTROL, CONTROL_SIZE, 0, 0, BYTE, 1];
        let bytes: Vec<u8> = header.iter().flat_map(|word: &u64| word.to_ne_bytes()).collect();
        if self.memory.write_own(WINDOW, &bytes) != bytes.len() {
            return Err(Errno::EFAULT);
        }
        let flags = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64;
        self.call(libc::SYS_recvmsg, [self.socket, WINDOW, flags, 0, 0, 0])?;
        let mut number = [0; 4];
        if self.memory.read_own(DESCRIPTOR, &mut number) != number.len() {
            return Err(Errno::EFAULT);
        }
        let given = with(self, u64::from(u32::from_ne_bytes(number)));
        drop(lock);
        given
    }

    /// What a fault looks like to the guest's kernel. The exception's number and error code are not told to a tracer.
    fn fault(&mut self, signal: Signal) -> Trap {
        let Ok(info) = getsiginfo(self.tracee.thread()) else { return Trap::Gone };
        // SAFETY: of these signals, the kernel fills in an address; whatever it is, it is a number.
        let address = unsafe { info.si_addr() }.addr() as u64;
        Trap::Fault { signal: signal as i32, code: info.si_code, address, exception: (0, 0) }
    }

    fn run(&mut self, step: bool) -> Trap {
        let eflags = (self.regs.eflags & FLAGS) | 0x202;
        let regs = Regs { eflags, ..self.regs };
        match self.tracee.set(&regs, self.fs_base) {
            Ok(()) => {}
            // The kernel takes no such address for `fs`; `rip` it takes whatever it is.
            Err(Errno::EIO) => return general_protection(),
            Err(_) => return Trap::Gone,
        }
        loop {
            let stop = if step { self.tracee.step() } else { self.tracee.run() };
            if stop == Stop::Gone {
                return Trap::Gone;
            }
            if stop == Stop::Event {
                continue;
            }
            let Ok((regs, fs_base, number)) = self.tracee.get() else { return Trap::Gone };
            (self.regs, self.fs_base) = (regs, fs_base);
            match stop {
                Stop::Syscall => {
                    // `rax` is -ENOSYS at such a stop.
                    self.regs.rax = number;
                    return Trap::Syscall { number };
                }
                Stop::Signal(signal) if signal as i32 == INTERRUPT => return Trap::Interrupted,
                Stop::Signal(
                    signal @ (Signal::SIGSEGV
                    | Signal::SIGBUS
                    | Signal::SIGFPE
                    | Signal::SIGTRAP
                    | Signal::SIGILL),
                ) => return self.fault(signal),
                // A signal of the host's: nobody has any business to send one.
                Stop::Signal(_) | Stop::Event | Stop::Gone => {}
            }
        }
    }

    fn copy(&mut self, stub: Arc<Stub>, thread: Pid, socket: u64) -> Self {
        let mut child = Self::new(&self.code, stub, thread, socket);
        (child.regs, child.fs_base) = (self.regs, self.fs_base);
        child
    }

    /// A copy of the stub with this thread alone.
    pub(super) fn fork_stub(&mut self) -> Result<Self, Errno> {
        let (ours, its) = sockets()?;
        self.hold()?;
        let own = self.socket;
        self.give(its.as_fd(), |this, socket| {
            let pid = this.inject(this.code.clone, libc::SYS_clone, [FORK_FLAGS, 0, 0, 0, 0, 0]);
            let _ = this.call(libc::SYS_close, [socket, 0, 0, 0, 0, 0]);
            let pid = i32::try_from(result(pid?)?).map_err(|_| Errno::EFAULT)?;
            let pid = Pid::from_raw(pid);
            let mut child = this.copy(Arc::new(Stub::new(pid, ours)), pid, socket);
            child.surplus = Some(own);
            Ok(child)
        })
    }
}

/// What an address that no program can have does.
fn general_protection() -> Trap {
    Trap::Fault { signal: libc::SIGSEGV, code: libc::SI_KERNEL, address: 0, exception: (13, 0) }
}

impl Memory for Traced {
    fn read(&self, address: u64, to: &mut [u8]) -> usize {
        self.memory.read(address, to)
    }

    fn write(&self, address: u64, from: &[u8]) -> usize {
        self.memory.write(address, from)
    }
}

impl Traced {
    fn let_run(&mut self, step: bool) -> Trap {
        if self.hold().is_err() {
            return Trap::Gone;
        }
        let interrupt = Arc::clone(&self.interrupt);
        interrupt.in_guest.store(true, Ordering::SeqCst);
        let trap = if interrupt.requested.swap(false, Ordering::SeqCst) {
            Trap::Interrupted
        } else {
            self.run(step)
        };
        interrupt.in_guest.store(false, Ordering::SeqCst);
        if trap == Trap::Gone {
            self.stub.died();
        }
        trap
    }
}

impl Thread for Traced {
    fn resume(&mut self) -> Trap {
        self.let_run(false)
    }

    fn step(&mut self) -> Trap {
        self.let_run(true)
    }

    fn regs(&mut self) -> &mut Regs {
        &mut self.regs
    }

    fn fs_base(&mut self) -> &mut u64 {
        &mut self.fs_base
    }

    fn vector_state(&mut self) -> Result<Vec<u8>, Errno> {
        self.hold()?;
        vector::get(self.tracee.thread())
    }

    fn set_vector_state(&mut self, state: &[u8]) -> Result<(), Errno> {
        /// Bytes of what FXSAVE saves, of these and XSAVE's header, and where the header begins.
        const LEGACY: usize = 512;
        const WITH_HEADER: usize = 576;
        let mut whole = self.vector_state()?;
        if state.len() < LEGACY || state.len() > whole.len() {
            return Err(Errno::EINVAL);
        }
        whole.fill(0);
        // Bytes 464 to 511 are software's. Without a header only what FXSAVE has is loaded.
        whole[..464].copy_from_slice(&state[..464]);
        if state.len() < WITH_HEADER {
            whole[LEGACY] = 3;
        } else {
            whole[LEGACY..state.len()].copy_from_slice(&state[LEGACY..]);
        }
        vector::set(self.tracee.thread(), &mut whole).map_err(|_| Errno::EINVAL)
    }

    fn change_memory(&mut self, call: &MemoryCall<'_>) -> Result<u64, Errno> {
        if let MemoryCall::Map { address, length, protection, flags, file: Some((file, offset)) } = *call {
            let protection = u64::from(protection.cast_unsigned());
            let flags = u64::from((flags | libc::MAP_FIXED).cast_unsigned());
            return self.give(file, |this, number| {
                let mapped = this.call(libc::SYS_mmap, [address, length, protection, flags, number, offset]);
                let _ = this.call(libc::SYS_close, [number, 0, 0, 0, 0, 0]);
                mapped
            });
        }
        let (number, arguments) = memory_call(call);
        self.call(number, arguments)
    }

    fn compare_exchange(&mut self, address: u64, expected: u32, new: u32) -> Result<u32, Errno> {
        if !address.is_multiple_of(4) || address > CODE - 4 {
            return Err(Errno::EFAULT);
        }
        self.hold()?;
        let regs = Regs { rdi: address, rax: u64::from(expected), rsi: u64::from(new), ..Regs::default() };
        let (after, interrupted) = self.tracee.inject(self.code.swap, &regs)?;
        if interrupted {
            self.interrupt.requested.store(true, Ordering::SeqCst);
        }
        u32::try_from(after.rax & 0xffff_ffff).map_err(|_| Errno::EFAULT)
    }

    fn fork(&mut self) -> Result<Box<dyn Thread>, Errno> {
        Ok(Box::new(self.fork_stub()?))
    }

    fn spawn(&mut self) -> Result<Box<dyn Thread>, Errno> {
        self.hold()?;
        let thread = result(self.inject(self.code.clone, libc::SYS_clone, [SPAWN_FLAGS, 0, 0, 0, 0, 0])?)?;
        let thread = Pid::from_raw(i32::try_from(thread).map_err(|_| Errno::EFAULT)?);
        self.stub.enter();
        Ok(Box::new(self.copy(Arc::clone(&self.stub), thread, self.socket)))
    }

    fn release(&mut self) {
        self.tracee.release(&self.code);
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.interrupt) as Arc<dyn Interrupt>
    }

    fn remote(&self) -> Arc<dyn RemoteMemory> {
        Arc::clone(&self.memory) as Arc<dyn RemoteMemory>
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if self.stub.leave() {
            // The last of its process ends with it, in `Stub`.
            self.stub.died();
            let _ = nix::sys::signal::kill(self.stub.pid(), Signal::SIGKILL);
            if self.tracee.thread() != self.stub.pid() {
                // The host tells of the end of a process only when its tracers know of that of all its threads.
                self.tracee.see_end();
            }
        } else if self.tracee.thread() == self.stub.pid() {
            // The host forgets the memory of a process whose first thread has ended, and the process may well go on: that thread parks.
            self.release();
        } else if self.hold().is_ok() {
            let exit = Regs { rax: libc::SYS_exit.unsigned_abs(), ..Regs::default() };
            self.tracee.end(self.code.call, &exit);
        }
    }
}
