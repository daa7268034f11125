//! One thread of a stub as its tracer sees it (`man 2 ptrace`): who traces it, its stops, and what it is made to do.
//!
//! A thread of the host is traced by one other thread, and no other may ask anything of it. So a thread that is to be served by another
//! of the sentry's threads is let go of first ([`Tracee::release`]): it parks in the stub's own code, untraced, until somebody needs it.

use std::thread::ThreadId;

use libc::user_regs_struct;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::code::Code;
use crate::error::Errno;
use crate::platform::Regs;
use crate::platform::systrap::layout::{CODE, INTERRUPT};

/// Why a traced thread stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// At the entry of a system call, which is not made.
    Syscall,
    /// Because of a signal, which it does not get.
    Signal(Signal),
    /// For no reason of its own (`PTRACE_EVENT_STOP`).
    Event,
    /// It is not there any more.
    Gone,
}

/// A thread of a stub.
pub(super) struct Tracee {
    thread: Pid,
    tracer: Option<ThreadId>,
    /// Registers that nobody but the kernel has an opinion of (segments), from its first stop.
    rest: Option<user_regs_struct>,
    gone: bool,
}

/// Rounds in which a new thread may not have parked yet.
const PARKING: u32 = 100_000;

impl Tracee {
    /// A thread that parks, or is about to.
    pub(super) fn parked(thread: Pid) -> Self {
        Self { thread, tracer: None, rest: None, gone: false }
    }

    /// The host's number of it.
    pub(super) fn thread(&self) -> Pid {
        self.thread
    }

    /// Makes the calling thread its tracer, and stops it.
    ///
    /// # Errors
    /// EFAULT when it is gone, or another thread traces it.
    pub(super) fn hold(&mut self, code: &Code) -> Result<(), Errno> {
        let me = std::thread::current().id();
        match self.tracer {
            _ if self.gone => return Err(Errno::EFAULT),
            Some(tracer) if tracer == me => return Ok(()),
            Some(_) => return Err(Errno::EFAULT),
            None => {}
        }
        let options = Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACESYSGOOD;
        ptrace::seize(self.thread, options).map_err(|_| self.is_gone())?;
        self.tracer = Some(me);
        let park = CODE + code.park.start..CODE + code.park.end;
        for _ in 0..PARKING {
            ptrace::interrupt(self.thread).map_err(|_| self.is_gone())?;
            if self.wait() == Stop::Gone {
                return Err(Errno::EFAULT);
            }
            let regs = ptrace::getregs(self.thread).map_err(|_| self.is_gone())?;
            if park.contains(&regs.rip) {
                self.rest = Some(regs);
                return Ok(());
            }
            ptrace::cont(self.thread, None).map_err(|_| self.is_gone())?;
            std::thread::yield_now();
        }
        Err(Errno::EFAULT)
    }

    /// Lets it park, for another thread to trace it. Nothing when the caller is not its tracer.
    pub(super) fn release(&mut self, code: &Code) {
        if self.gone || self.tracer != Some(std::thread::current().id()) {
            return;
        }
        if self.set(&Regs { rip: CODE + code.park.start, ..Regs::default() }, 0).is_ok() {
            let _ = ptrace::detach(self.thread, None);
        }
        self.tracer = None;
    }

    fn is_gone(&mut self) -> Errno {
        self.gone = true;
        Errno::EFAULT
    }

    /// Registers, the base of `fs`, and the number of the call at whose entry it stopped, if it did.
    pub(super) fn get(&mut self) -> Result<(Regs, u64, u64), Errno> {
        let all = ptrace::getregs(self.thread).map_err(|_| self.is_gone())?;
        Ok((from_user(&all), all.fs_base, all.orig_rax))
    }

    /// Sets them. What is no address of a program is refused by the kernel: EIO.
    pub(super) fn set(&mut self, regs: &Regs, fs_base: u64) -> Result<(), Errno> {
        let rest = self.rest.ok_or(Errno::EFAULT)?;
        match ptrace::setregs(self.thread, to_user(regs, fs_base, rest)) {
            Err(Errno::ESRCH) => Err(self.is_gone()),
            other => other,
        }
    }

    /// Lets guest code run until it stops: its system calls are not made.
    pub(super) fn run(&mut self) -> Stop {
        self.begin(ptrace::sysemu(self.thread, None))
    }

    /// As [`run`](Self::run), for one instruction.
    pub(super) fn step(&mut self) -> Stop {
        self.begin(ptrace::sysemu_step(self.thread, None))
    }

    fn begin(&mut self, begun: Result<(), Errno>) -> Stop {
        match begun {
            Ok(()) => self.wait(),
            Err(_) => {
                self.gone = true;
                Stop::Gone
            }
        }
    }

    /// Has it run the stub's code from `place` on to its end; its registers then. `true` beside them when an interrupt came meanwhile.
    ///
    /// # Errors
    /// EFAULT when the code faults, or the thread is gone.
    pub(super) fn inject(&mut self, place: u64, regs: &Regs) -> Result<(Regs, bool), Errno> {
        self.set(&Regs { rip: CODE + place, eflags: 0x202, ..*regs }, 0)?;
        let mut interrupted = false;
        loop {
            ptrace::cont(self.thread, None).map_err(|_| self.is_gone())?;
            match self.wait() {
                Stop::Signal(Signal::SIGTRAP) => return Ok((self.get()?.0, interrupted)),
                Stop::Signal(signal) if signal as i32 == INTERRUPT => interrupted = true,
                Stop::Signal(Signal::SIGSEGV | Signal::SIGBUS) | Stop::Gone => return Err(Errno::EFAULT),
                Stop::Signal(_) | Stop::Event | Stop::Syscall => {}
            }
        }
    }

    /// As [`inject`](Self::inject), for a call that it does not come back from: `exit`.
    pub(super) fn end(&mut self, place: u64, regs: &Regs) {
        if self.set(&Regs { rip: CODE + place, ..*regs }, 0).is_ok() {
            while ptrace::cont(self.thread, None).is_ok() && self.wait() != Stop::Gone {}
        }
        self.gone = true;
    }

    /// Waits for its end, which is under way. Nothing where nobody traces it.
    pub(super) fn see_end(&mut self) {
        while self.tracer.is_some() && self.wait() != Stop::Gone {}
        self.gone = true;
    }

    fn wait(&mut self) -> Stop {
        loop {
            return match waitpid(self.thread, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::PtraceSyscall(_)) => Stop::Syscall,
                Ok(WaitStatus::Stopped(_, signal)) => Stop::Signal(signal),
                Ok(WaitStatus::PtraceEvent(..)) => Stop::Event,
                Ok(WaitStatus::Continued(_) | WaitStatus::StillAlive) | Err(Errno::EINTR) => continue,
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => {
                    self.gone = true;
                    Stop::Gone
                }
            };
        }
    }
}

fn from_user(all: &user_regs_struct) -> Regs {
    Regs {
        r8: all.r8,
        r9: all.r9,
        r10: all.r10,
        r11: all.r11,
        r12: all.r12,
        r13: all.r13,
        r14: all.r14,
        r15: all.r15,
        rdi: all.rdi,
        rsi: all.rsi,
        rbp: all.rbp,
        rbx: all.rbx,
        rdx: all.rdx,
        rax: all.rax,
        rcx: all.rcx,
        rsp: all.rsp,
        rip: all.rip,
        eflags: all.eflags,
    }
}

/// No system call is begun again by the host's kernel: `orig_rax` says that there was none.
fn to_user(regs: &Regs, fs_base: u64, rest: user_regs_struct) -> user_regs_struct {
    user_regs_struct {
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        rdi: regs.rdi,
        rsi: regs.rsi,
        rbp: regs.rbp,
        rbx: regs.rbx,
        rdx: regs.rdx,
        rax: regs.rax,
        rcx: regs.rcx,
        rsp: regs.rsp,
        rip: regs.rip,
        eflags: regs.eflags,
        orig_rax: u64::MAX,
        fs_base,
        gs_base: 0,
        ..rest
    }
}
