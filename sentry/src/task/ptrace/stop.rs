//! The tracee's side of a stop (`ptrace_stop` in `kernel/signal.c`).

use std::sync::mpsc::{Sender, TryRecvError};
use std::sync::{Arc, Mutex};

use super::super::signal::{Payload, SignalInfo, Target};
use super::super::{Pid, Task, Tree, current, lock};
use super::{Stop, Trace};
use crate::error::Errno;
use crate::events::{Events, Waiter};
use crate::platform::{Regs, Thread};

/// Something that the thread of the sentry which serves a tracee does for its tracer.
pub(super) type Job = Box<dyn FnOnce(&mut dyn Thread) + Send>;

/// What a tracee shows while it stands still.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown {
    /// Its registers.
    pub regs: Regs,
    /// Base of `fs`.
    pub fs_base: u64,
    /// Number of its call; -1 for none.
    pub called: i64,
}

/// What tracer and tracee share besides the tree.
#[derive(Default)]
pub(in super::super) struct Shared {
    /// While it stands still.
    open: Mutex<Option<(Shown, Vec<Job>)>>,
    /// The signal with which it was let go on, and what is known of the one that it stopped for.
    after: Mutex<(i32, Option<SignalInfo>)>,
}

impl Shared {
    /// Looks at what the tracee shows, and may change it.
    ///
    /// # Errors
    /// ESRCH: it does not stand still.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Shown) -> T) -> Result<T, Errno> {
        lock(&self.open).as_mut().map(|(shown, _)| look(shown)).ok_or(Errno::ESRCH)
    }

    /// Says with what it goes on.
    pub(super) fn let_go(&self, signal: i32, stop: Stop) {
        *lock(&self.after) = (signal, stop.info);
    }
}

impl Task {
    /// Has the thread that serves this one do something, as long as it stands still for its tracer, and waits for what comes of it, unless
    /// who waits is ended.
    ///
    /// # Errors
    /// ESRCH: it does not stand still, or does no more. EINTR: nobody waits any more.
    pub fn ask_tracee<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn Thread) -> T + Send + 'static,
    ) -> Result<T, Errno> {
        let asker = current();
        let waiter = asker.as_ref().map_or_else(Waiter::new, |asker| Arc::clone(asker.waiter()));
        let (sender, receiver) = std::sync::mpsc::channel();
        let asked = Asked { answer: Some(sender), waiter: Arc::clone(&waiter) };
        {
            let mut open = lock(&self.shared.open);
            let (_, jobs) = open.as_mut().ok_or(Errno::ESRCH)?;
            jobs.push(Box::new(move |thread| asked.answer(job(thread))));
        }
        self.waiter.set();
        loop {
            waiter.clear();
            match receiver.try_recv() {
                Ok(answer) => return Ok(answer),
                Err(TryRecvError::Disconnected) => return Err(Errno::ESRCH),
                Err(TryRecvError::Empty) if asker.as_ref().is_some_and(|asker| asker.is_ending()) => {
                    return Err(Errno::EINTR);
                }
                Err(TryRecvError::Empty) => {}
            }
            waiter.wait(None);
        }
    }
}

/// Who asked, and is woken whether or not there is an answer.
struct Asked<T> {
    answer: Option<Sender<T>>,
    waiter: Arc<Waiter>,
}

impl<T> Asked<T> {
    fn answer(mut self, answer: T) {
        if let Some(sender) = self.answer.take() {
            // Who asked may have been ended.
            let _ = sender.send(answer);
        }
    }
}

impl<T> Drop for Asked<T> {
    fn drop(&mut self) {
        // Without a sender there is no answer any more: before who asked looks.
        self.answer = None;
        self.waiter.set();
    }
}

/// Why a tracee stops.
pub(super) struct Reason {
    /// The code that `wait` tells.
    pub(super) code: i32,
    pub(super) info: Option<SignalInfo>,
    /// PTRACE_GETEVENTMSG; `None` to leave it.
    pub(super) message: Option<u64>,
    /// CLD_TRAPPED or CLD_STOPPED.
    pub(super) why: i32,
    pub(super) ending: bool,
}

impl Reason {
    /// For what the tracee itself does (`ptrace_do_notify`).
    pub(super) fn event(task: &Task, code: i32, message: Option<u64>) -> Self {
        let payload = Payload::Kill { pid: task.own_number(), uid: task.credentials().uid };
        let info = SignalInfo { signal: libc::SIGTRAP, errno: 0, code, payload };
        Self { code, info: Some(info), message, why: libc::CLD_TRAPPED, ending: false }
    }
}

/// Stands still until the tracer lets it go on. The signal that it is to get, 0 for none, and what is known of the one that it stopped
/// for; `None` where nobody traces it, or it ends.
pub(super) fn stand(
    task: &Arc<Task>,
    thread: &mut dyn Thread,
    reason: Reason,
) -> Option<(i32, Option<SignalInfo>)> {
    thread.settle();
    thread.forget_early();
    let shown = Shown { regs: *thread.regs(), fs_base: *thread.fs_base(), called: task.called() };
    *lock(&task.shared.open) = Some((shown, Vec::new()));
    *lock(&task.shared.after) = (0, None);
    let begun = task.tasks().tree().begin_trace_stop(task, reason);
    if begun {
        wait_for_tracer(task, thread);
    }
    // Jobs that nobody does any more are dropped: who asked hears of it.
    let (shown, jobs) = lock(&task.shared.open).take().unwrap_or((shown, Vec::new()));
    drop(jobs);
    *thread.regs() = shown.regs;
    *thread.fs_base() = shown.fs_base;
    task.set_called(shown.called);
    task.tasks().tree().end_trace_stop(task);
    let after = std::mem::take(&mut *lock(&task.shared.after));
    begun.then_some(after)
}

fn wait_for_tracer(task: &Task, thread: &mut dyn Thread) {
    loop {
        task.waiter().clear();
        serve(task, thread);
        if !task.tasks().tree().is_trace_stopped(task) {
            return;
        }
        task.waiter().wait(None);
    }
}

fn serve(task: &Task, thread: &mut dyn Thread) {
    loop {
        let jobs = match lock(&task.shared.open).as_mut() {
            Some((_, jobs)) if !jobs.is_empty() => std::mem::take(jobs),
            _ => return,
        };
        for job in jobs {
            job(thread);
        }
    }
}

impl Tree {
    /// Whether nothing takes a thread out of a stop but its tracer.
    fn may_stand(&self, task: &Task, ending: bool) -> bool {
        let (pid, group) = (task.pid(), task.group().pid());
        self.groups.get(&group).is_some_and(|state| {
            !state.killed && (ending || state.exiting.is_none() && state.execs.is_none_or(|by| by == pid))
        })
    }

    fn begin_trace_stop(&mut self, task: &Task, reason: Reason) -> bool {
        let allowed = self.may_stand(task, reason.ending);
        let Some(trace) = self.trace_mut(task.pid()).filter(|_| allowed) else { return false };
        trace.stop =
            Some(Stop { code: reason.code, info: reason.info, listening: false, ending: reason.ending });
        trace.code = reason.code;
        if let Some(message) = reason.message {
            trace.message = message;
        }
        let tracer = trace.tracer;
        self.tell_tracer(task, tracer, reason.why, reason.code & 0x7f);
        true
    }

    fn is_trace_stopped(&mut self, task: &Task) -> bool {
        let ending = self.trace(task.pid()).and_then(|trace| trace.stop.as_ref()).is_some_and(|s| s.ending);
        let stands = self.may_stand(task, ending);
        let Some(Trace { stop: Some(stop), trap, .. }) = self.trace_mut(task.pid()) else { return false };
        stands && !(stop.listening && *trap)
    }

    /// Forgets the stop, where it was not its tracer who ended it.
    fn end_trace_stop(&mut self, task: &Task) {
        if let Some(trace) = self.trace_mut(task.pid())
            && trace.stop.take().is_some()
        {
            trace.code = 0;
        }
        self.settle(task);
    }

    /// SIGCHLD for the tracer, unless it does not want it, and news for who waits (`do_notify_parent_cldstop`).
    pub(super) fn tell_tracer(&mut self, task: &Task, tracer: Pid, code: i32, status: i32) {
        let Some(group) = self.threads.get(&tracer).map(|thread| thread.group) else { return };
        let Some(state) = self.groups.get(&group) else { return };
        let action = lock(&state.actions).of(libc::SIGCHLD);
        let handle = Arc::clone(&state.group);
        if action.handler != 1 && action.flags & 1 == 0 {
            let uid = task.credentials().uid;
            let payload = Payload::Child { pid: task.pid(), uid, status, user: 0, system: 0 };
            let info = SignalInfo { signal: libc::SIGCHLD, errno: 0, code, payload };
            let _ = self.send(Target::Group(group), info, false);
        }
        handle.child_events.notify(Events::CHANGED);
    }
}
