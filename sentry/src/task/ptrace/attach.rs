//! How tracing begins and ends (`ptrace_attach`, `ptrace_traceme`, `ptrace_init_task`, `exit_ptrace`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::exit::Remains;
use super::super::signal::{SignalInfo, Target};
use super::super::{CloneArgs, Pid, Task, Tree};
use super::{Options, Resume, Trace, event};
use crate::error::Errno;

/// `CLONE_PTRACE` and `CLONE_UNTRACED`.
const CLONE_PTRACE: u64 = 0x2000;
const CLONE_UNTRACED: u64 = 0x80_0000;
const CLONE_VFORK: u64 = 0x4000;

/// What a `clone` is to a tracer.
pub(super) fn clone_event(args: &CloneArgs) -> u32 {
    if args.flags & CLONE_VFORK != 0 {
        event::VFORK
    } else if args.exit_signal == libc::SIGCHLD {
        event::FORK
    } else {
        event::CLONE
    }
}

impl Task {
    /// PTRACE_TRACEME: its parent traces it from now on.
    ///
    /// # Errors
    /// EPERM where somebody does already, or it has no parent that may.
    pub fn trace_me(&self) -> Result<(), Errno> {
        let mut tree = self.tasks.tree();
        let parent = tree.groups.get(&self.group.pid()).map_or(0, |state| state.parent_thread);
        let parent = tree.threads.get(&parent).map(|thread| Arc::clone(&thread.task)).ok_or(Errno::EPERM)?;
        if tree.trace(self.pid()).is_some() || !parent.credentials().may_access(&self.credentials()) {
            return Err(Errno::EPERM);
        }
        tree.link(self.pid(), parent.pid(), false, Options::default());
        self.stale_answers.store(true, Ordering::SeqCst);
        self.attention.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// PTRACE_ATTACH, or PTRACE_SEIZE with options.
    ///
    /// # Errors
    /// EPERM where this task may not, or somebody traces the other one already.
    pub fn attach(&self, other: &Arc<Self>, seize: Option<Options>) -> Result<(), Errno> {
        if Arc::ptr_eq(self.group(), other.group()) {
            return Err(Errno::EPERM);
        }
        let mut tree = self.tasks.tree();
        // Under the lock, under which it becomes somebody else.
        if !self.may_access(other) {
            return Err(Errno::EPERM);
        }
        let state = tree.groups.get(&other.group.pid()).ok_or(Errno::ESRCH)?;
        let (ending, stops) = (state.zombie.is_some(), state.stop.is_some());
        if state.execs.is_some() {
            // What it may do is about to change, and has been asked for already (`cred_guard_mutex`).
            return Err(Errno::EAGAIN);
        }
        if ending || tree.trace(other.pid()).is_some() || !tree.threads.contains_key(&other.pid()) {
            return Err(Errno::EPERM);
        }
        tree.link(other.pid(), self.pid(), seize.is_some(), seize.unwrap_or_default());
        if stops && let Some(trace) = tree.trace_mut(other.pid()) {
            trace.trap = true;
        }
        if seize.is_none() {
            let _ = tree.send(Target::Thread(other.pid()), SignalInfo::kernel(libc::SIGSTOP), false);
        }
        // Its code is to be seen as it is, and its calls are to be heard of; a call that waits goes on waiting.
        other.stale_answers.store(true, Ordering::SeqCst);
        other.attention.store(true, Ordering::SeqCst);
        if stops {
            other.poke();
        } else {
            other.interrupt();
        }
        Ok(())
    }
}

impl Tree {
    fn link(&mut self, pid: Pid, tracer: Pid, seized: bool, options: Options) {
        let Some(thread) = self.threads.get_mut(&pid) else { return };
        thread.trace = Some(Trace {
            tracer,
            seized,
            options,
            message: 0,
            resume: Resume::default(),
            stop: None,
            trap: false,
            code: 0,
        });
        thread.task.traced.store(true, Ordering::SeqCst);
        self.tracees.entry(tracer).or_default().insert(pid);
    }

    /// A tracee has this number of a tracer no more.
    pub(in super::super) fn forget_tracee(&mut self, tracer: Pid, pid: Pid) {
        if let Some(tracees) = self.tracees.get_mut(&tracer) {
            tracees.remove(&pid);
            if tracees.is_empty() {
                self.tracees.remove(&tracer);
            }
        }
    }

    /// Whoever a traced task makes is traced, too, where its tracer wants it.
    pub(in super::super) fn trace_child(&mut self, caller: Pid, args: &CloneArgs, child: Pid) {
        let Some(trace) = self.trace(caller) else { return };
        let wanted = trace.options.bits() & (1 << clone_event(args)) != 0 && args.flags & CLONE_UNTRACED == 0;
        if !wanted && args.flags & CLONE_PTRACE == 0 {
            return;
        }
        let (tracer, seized, options) = (trace.tracer, trace.seized, trace.options);
        self.link(child, tracer, seized, options);
        let Some(thread) = self.threads.get_mut(&child) else { return };
        if seized {
            if let Some(trace) = thread.trace.as_mut() {
                trace.trap = true;
            }
        } else {
            thread.pending.push(SignalInfo::kernel(libc::SIGSTOP), None);
        }
        thread.task.stale_answers.store(true, Ordering::SeqCst);
    }

    /// Nobody traces the thread any more. It goes on, unless its process stands still.
    pub(in super::super) fn unlink(&mut self, pid: Pid, signal: i32) {
        let Some(thread) = self.threads.get_mut(&pid) else { return };
        let Some(mut trace) = thread.trace.take() else { return };
        let task = Arc::clone(&thread.task);
        thread.stopped = false;
        if let Some(stop) = trace.stop.take() {
            task.shared.let_go(signal, stop);
        }
        let group = thread.group;
        task.traced.store(false, Ordering::SeqCst);
        task.stale_answers.store(true, Ordering::SeqCst);
        self.forget_tracee(trace.tracer, pid);
        if let Some(state) = self.groups.get_mut(&group)
            && state.stop.is_some()
        {
            // Its parent hears of the stop when it takes part in it.
            state.stopped = false;
        }
        task.poke();
    }

    /// A thread takes over the number of its process: whom it traces, and who traces it, know it by that.
    pub(in super::super) fn take_over_traces(&mut self, old: Pid, group: Pid) {
        if let Some(tracer) = self.groups.get(&group).and_then(|state| state.traced_end) {
            self.forget_tracee(tracer, group);
        }
        if let Some(tracer) = self.trace(old).map(|trace| trace.tracer) {
            self.forget_tracee(tracer, old);
            self.tracees.entry(tracer).or_default().insert(group);
        }
        if let Some(tracees) = self.tracees.remove(&old) {
            for pid in &tracees {
                if let Some(trace) = self.trace_mut(*pid) {
                    trace.tracer = group;
                } else if let Some(ended) = self.ended_tracees.get_mut(pid) {
                    ended.tracer = group;
                } else if let Some(state) = self.groups.get_mut(pid) {
                    state.traced_end = Some(group);
                }
            }
            self.tracees.entry(group).or_default().extend(tracees);
        }
    }

    /// Lets go of all that a thread traces, which ends.
    pub(in super::super) fn tracer_ended(&mut self, tracer: Pid, remains: &mut Remains) {
        for pid in self.tracees.remove(&tracer).unwrap_or_default() {
            if let Some(trace) = self.trace(pid) {
                if trace.options.contains(Options::EXIT_KILL) {
                    let group = self.threads.get(&pid).map_or(0, |thread| thread.group);
                    let _ = self.send(Target::Group(group), SignalInfo::kernel(libc::SIGKILL), true);
                }
                self.unlink(pid, 0);
            } else if self.ended_tracees.remove(&pid).is_none() {
                self.end_without_tracer(pid, remains);
            }
        }
    }

    /// A process that ended has no tracer to be told any more: its parent is.
    pub(in super::super) fn end_without_tracer(&mut self, group: Pid, remains: &mut Remains) {
        let Some(state) = self.groups.get_mut(&group) else { return };
        state.traced_end = None;
        if let Some(status) = state.zombie
            && self.tell_parent_of_end(group, status)
        {
            self.reap(group, remains);
        }
    }
}
