//! What `wait` tells a tracer (`wait_consider_task`, `wait_task_stopped` in `kernel/exit.c`).

use std::sync::Arc;

use super::super::exit::{Remains, reason};
use super::super::signal::{Payload, SignalInfo, Target};
use super::super::{CpuTimes, Pid, Task, Tree, WaitOptions, WaitTarget, Waited, lock};
use super::Ended;
use crate::events::Events;

impl Tree {
    /// News of what threads of the caller's process trace. Whether there is anything to wait for, and what there is to tell.
    pub(in super::super) fn wait_for_tracees(
        &mut self,
        task: &Task,
        target: WaitTarget,
        options: WaitOptions,
        remains: &mut Remains,
    ) -> (bool, Option<Waited>) {
        if self.tracees.is_empty() {
            return (false, None);
        }
        let own = self.groups.get(&task.group().pid()).map(|state| state.threads.clone()).unwrap_or_default();
        let mut any = false;
        for tracer in own {
            if options.contains(WaitOptions::NO_THREAD) && tracer != task.pid() {
                continue;
            }
            let tracees: Vec<Pid> = self.tracees.get(&tracer).into_iter().flatten().copied().collect();
            for pid in tracees {
                if !self.is_meant_tracee(pid, target) {
                    continue;
                }
                let (there, news) = self.news_of_tracee(pid, options, remains);
                any |= there;
                if let Some(mut news) = news {
                    news.pid = task.shown(news.pid);
                    return (true, Some(news));
                }
            }
        }
        (any, None)
    }

    fn is_meant_tracee(&self, pid: Pid, target: WaitTarget) -> bool {
        match target {
            WaitTarget::Any => true,
            WaitTarget::Pid(wanted) => wanted == pid,
            WaitTarget::Group(pgid) => {
                let thread = self.threads.get(&pid).map(|thread| thread.group);
                let group = thread.or_else(|| self.ended_tracees.get(&pid).map(|ended| ended.group));
                self.groups.get(&group.unwrap_or(pid)).is_some_and(|state| state.pgid == pgid)
            }
        }
    }

    fn news_of_tracee(
        &mut self,
        pid: Pid,
        options: WaitOptions,
        remains: &mut Remains,
    ) -> (bool, Option<Waited>) {
        let exits = options.contains(WaitOptions::EXITED);
        let keep = options.contains(WaitOptions::NO_WAIT);
        let living = self.threads.get(&pid).map(|thread| &thread.task);
        if let Some((uid, times)) = living.map(|task| (task.credentials().uid, task.cpu_times())) {
            let Some(trace) = self.trace_mut(pid) else { return (false, None) };
            let code = trace.code;
            if !keep {
                trace.code = 0;
            }
            let told =
                Waited { pid, uid, status: code << 8 | 0x7f, code: libc::CLD_TRAPPED, number: code, times };
            return (true, (code != 0).then_some(told));
        }
        if let Some(ended) = self.ended_tracees.get(&pid) {
            let (code, number) = reason(ended.status);
            let times = CpuTimes::default();
            let told = Waited { pid, uid: ended.uid, status: ended.status, code, number, times };
            if exits && !keep {
                let (tracer, ended) = (ended.tracer, self.ended_tracees.remove(&pid));
                self.forget_tracee(tracer, pid);
                drop(ended);
            }
            return (exits, exits.then_some(told));
        }
        self.news_of_process(pid, exits, keep, remains)
    }

    /// A traced process that ended is told to its tracer first, and then to its parent.
    fn news_of_process(
        &mut self,
        pid: Pid,
        exits: bool,
        keep: bool,
        remains: &mut Remains,
    ) -> (bool, Option<Waited>) {
        let Some(state) = self.groups.get(&pid) else { return (false, None) };
        let Some(tracer) = state.traced_end else { return (false, None) };
        // Other threads of it may still live.
        let Some(status) = state.zombie.filter(|_| exits) else { return (state.zombie.is_none(), None) };
        let (code, number) = reason(status);
        let times = lock(&state.group.ended_threads).plus(&state.group.children_cpu_times());
        let told = Waited { pid, uid: state.credentials.uid, status, code, number, times };
        let parent = state.parent;
        if !keep {
            self.forget_tracee(tracer, pid);
            let by_parent = self.threads.get(&tracer).is_some_and(|thread| thread.group == parent);
            if by_parent {
                self.reap(pid, remains);
            } else {
                self.end_without_tracer(pid, remains);
            }
        }
        (true, Some(told))
    }

    /// A traced thread ended, which is not the first of its process: its tracer will be told.
    pub(in super::super) fn keep_ended(&mut self, pid: Pid, ended: Ended) {
        let (tracer, status) = (ended.tracer, ended.status);
        let uid = ended.uid;
        self.ended_tracees.insert(pid, ended);
        self.tell_tracer_of_end(tracer, (pid, uid), status);
    }

    /// SIGCHLD for the tracer of what ended.
    pub(in super::super) fn tell_tracer_of_end(&mut self, tracer: Pid, (pid, uid): (Pid, u32), status: i32) {
        let Some(group) = self.threads.get(&tracer).map(|thread| thread.group) else { return };
        let Some(handle) = self.groups.get(&group).map(|state| Arc::clone(&state.group)) else { return };
        let (code, status) = reason(status);
        let payload = Payload::Child { pid, uid, status, user: 0, system: 0 };
        let info = SignalInfo { signal: libc::SIGCHLD, errno: 0, code, payload };
        let _ = self.send(Target::Group(group), info, false);
        handle.child_events.notify(Events::CHANGED);
    }
}
