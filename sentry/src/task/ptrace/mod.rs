//! A task that looks at another one (`man 2 ptrace`; `kernel/ptrace.c`): tracers and tracees among guests.
//!
//! | file | what is in it |
//! |---|---|
//! | `access` | who may look into whom |
//! | `attach` | how tracing begins and ends |
//! | `stop` | the tracee's side of a stop: it stands still and does what it is asked |
//! | `report` | what a tracee stops for: calls, signals, events |
//! | `request` | the tracer's side: what it asks of one that stands still |
//! | `news` | what `wait` tells a tracer |
//! | `user` | registers as a tracer sees them (`struct user_regs_struct`, vector state) |
//!
//! Who traces whom is in the tree, under its lock. What a tracee shows while it stands still (registers) is under a lock of its own, and what
//! only the thread of the sentry that serves it can do (vector state, memory that the guest itself cannot write) is handed to that thread
//! as a *job*, for which the tracer waits.
//!
//! The code of a traced program is as its file has it, and no call of it is answered without the sentry: see
//! [`Thread::show_code`](crate::platform::Thread::show_code).

mod access;
mod attach;
mod news;
mod report;
mod request;
mod stop;
pub mod user;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bitflags::bitflags;

pub(super) use report::{after_exec, enter_call, finish_call, recheck, report_end, report_seccomp};
pub(super) use report::{show_interrupted, signal_stop, step_into_handler, trap_stop};
pub(super) use stop::Shared;
pub use stop::Shown;

use super::namespaces::Numbers;
use super::signal::SignalInfo;
use super::{Pid, Task, Tree};
use crate::mm::AreaFlags;
use crate::platform::{Thread, Trap};

bitflags! {
    /// `PTRACE_O_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Options: u32 {
        /// Stops for calls have bit 7 in their signal.
        const SYSGOOD = 1;
        /// Stops after `fork`.
        const FORK = 1 << event::FORK;
        /// After `vfork`.
        const VFORK = 1 << event::VFORK;
        /// After other `clone`s.
        const CLONE = 1 << event::CLONE;
        /// After `execve`.
        const EXEC = 1 << event::EXEC;
        /// When the child of a `vfork` is done.
        const VFORK_DONE = 1 << event::VFORK_DONE;
        /// Before the end.
        const EXIT = 1 << event::EXIT;
        /// When a filter says SECCOMP_RET_TRACE.
        const SECCOMP = 1 << event::SECCOMP;
        /// The tracee ends with its tracer.
        const EXIT_KILL = 1 << 20;
    }
}

/// `PTRACE_EVENT_*`.
pub mod event {
    #![allow(missing_docs, reason = "names as the header has them")]
    pub const FORK: u32 = 1;
    pub const VFORK: u32 = 2;
    pub const CLONE: u32 = 3;
    pub const EXEC: u32 = 4;
    pub const VFORK_DONE: u32 = 5;
    pub const EXIT: u32 = 6;
    pub const SECCOMP: u32 = 7;
    pub const STOP: u32 = 128;
}

/// The code of a stop for an event.
pub(super) const fn event_code(signal: i32, event: u32) -> i32 {
    signal | (event << 8).cast_signed()
}

/// How a tracee goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resume {
    /// Until something happens to it.
    #[default]
    Continue,
    /// It stops before and after its next call.
    Call,
    /// For one instruction.
    Step,
    /// It stops at its next call, which is not made.
    Emulate,
    /// Both of these.
    EmulateStep,
}

/// What a traced thread has, under the lock of the tree.
pub(super) struct Trace {
    /// The thread that traces it.
    pub(super) tracer: Pid,
    /// By PTRACE_SEIZE.
    pub(super) seized: bool,
    pub(super) options: Options,
    /// PTRACE_GETEVENTMSG.
    pub(super) message: u64,
    pub(super) resume: Resume,
    pub(super) stop: Option<Stop>,
    /// It is to stop: its process does, or it was asked to.
    pub(super) trap: bool,
    /// What `wait` has not told yet; 0 for nothing.
    pub(super) code: i32,
}

/// What a tracee stands still for.
pub(super) struct Stop {
    pub(super) code: i32,
    /// PTRACE_GETSIGINFO; `None` in a stop of the process.
    pub(super) info: Option<SignalInfo>,
    /// PTRACE_LISTEN.
    pub(super) listening: bool,
    /// On the way to its end: only SIGKILL takes it out.
    pub(super) ending: bool,
}

/// A thread that ended and whose tracer was not told yet.
pub(super) struct Ended {
    pub(super) tracer: Pid,
    pub(super) group: Pid,
    pub(super) status: i32,
    pub(super) uid: u32,
    /// Nobody else has them until then.
    pub(super) _numbers: Option<Arc<Numbers>>,
}

impl Task {
    /// Whether somebody traces it.
    #[must_use]
    pub fn is_traced(&self) -> bool {
        self.traced.load(Ordering::Relaxed)
    }

    /// Number of the call that it makes; -1 for none (`orig_rax`).
    pub(super) fn called(&self) -> i64 {
        self.called.load(Ordering::Relaxed)
    }

    pub(super) fn set_called(&self, number: i64) {
        self.called.store(number, Ordering::Relaxed);
    }

    /// The living threads of its process.
    #[must_use]
    pub fn threads(&self) -> Vec<Arc<Self>> {
        self.tasks.tree().tasks_of(self.group.pid())
    }

    /// The process whose thread traces it, as another task sees it, and whether it stands still for that one.
    #[must_use]
    pub fn tracer(&self) -> Option<(Pid, bool)> {
        let tree = self.tasks.tree();
        let trace = tree.trace(self.pid())?;
        let tracer = tree.threads.get(&trace.tracer)?;
        Some((tracer.group, trace.stop.is_some()))
    }
}

impl Tree {
    pub(super) fn trace(&self, pid: Pid) -> Option<&Trace> {
        self.threads.get(&pid)?.trace.as_ref()
    }

    pub(super) fn trace_mut(&mut self, pid: Pid) -> Option<&mut Trace> {
        self.threads.get_mut(&pid)?.trace.as_mut()
    }

    /// Whether a thread is traced by a process.
    pub(super) fn is_traced_by(&self, pid: Pid, process: Pid) -> bool {
        let tracer = self.trace(pid).and_then(|trace| self.threads.get(&trace.tracer));
        tracer.is_some_and(|tracer| tracer.group == process)
    }
}

/// Lets guest code run, as its tracer wants it.
pub(super) fn run(task: &Task, thread: &mut dyn Thread) -> Trap {
    let resume = task.tasks.tree().trace(task.pid()).map(|trace| trace.resume);
    let trap = match resume {
        Some(Resume::Step | Resume::EmulateStep) => thread.step(),
        _ => thread.resume(),
    };
    if !matches!(trap, Trap::Syscall { .. }) {
        task.set_called(-1);
    }
    trap
}

/// Has the code be as the program has it, from now on.
pub(super) fn show_code(task: &Task, thread: &mut dyn Thread) {
    let space = task.space();
    // What others have mapped, too, is not written to.
    let protection = |place: u64| {
        let area = space.area_at(place).filter(|area| !area.flags.contains(AreaFlags::SHARED))?;
        Some(area.protection.bits().cast_signed())
    };
    if thread.show_code(&protection).is_err() {
        task.end_all_of_space();
    }
}
