//! The end of threads and processes (`man 2 exit`; `kernel/exit.c`).

use std::sync::Arc;

use super::signal::{SignalInfo, SignalSet, Target, is_signal};
use super::tree::{GroupState, Report, ThreadState};
use super::{Pid, Task, Tree, hooks, lock};
use crate::events::Events;
use crate::platform::Thread;

/// What ended and is to be dropped once the tree is let go of.
#[derive(Default)]
pub(super) struct Remains {
    threads: Vec<ThreadState>,
    groups: Vec<GroupState>,
}

/// Ends a thread, and with the last one its process. `status` counts where the process does not end as a whole.
pub(super) fn exit(task: &Arc<Task>, mut thread: Box<dyn Thread>, status: i32) {
    hooks::release_robust_futexes(task, thread.as_mut());
    let address = task.clear_child_tid();
    if address != 0 {
        // A bad address is the program's own affair.
        let _ = thread.write(address, &0_u32.to_le_bytes());
        hooks::wake_futex(&task.space(), address);
    }
    drop(thread);
    task.finish_vfork();
    // Files are closed before anybody hears of the end: a parent may count on it.
    drop(task.set_files(hooks::no_files()));
    // And its memory goes: segments that it mapped are counted.
    drop(task.set_space(hooks::no_space()));
    task.usage.end();
    let session = task.session();
    if task.pid() == task.group().pid() {
        task.group().set_last_comm(task.comm());
    }
    if task.tasks().tree().is_last(task) {
        // Undone before anybody hears of the end, too.
        task.tasks().ipc().process_ended(task.group().pid());
    }
    let remains = task.tasks().tree().remove_thread(task, status);
    if task.group().exit_status().is_some() {
        let timers = std::mem::take(&mut *task.group().timers());
        drop(timers);
        task.tasks().ipc().process_ended(task.group().pid());
        if session == task.group().pid() {
            hooks::session_ended(task.tasks(), session);
        }
    }
    drop(remains);
}

impl Task {
    /// Ends its whole process (`exit_group`), with a status as `wait` tells it.
    pub fn exit_group(&self, status: i32) {
        self.tasks.tree().begin_group_exit(self.group.pid(), status);
    }
}

impl Tree {
    /// Whether no other thread of its process is left.
    fn is_last(&self, task: &Task) -> bool {
        self.groups.get(&task.group().pid()).is_none_or(|state| state.threads.len() <= 1)
    }

    fn remove_thread(&mut self, task: &Task, status: i32) -> Remains {
        let mut remains = Remains::default();
        let (pid, group) = (task.pid(), task.group().pid());
        remains.threads.extend(self.threads.remove(&pid));
        let Some(state) = self.groups.get_mut(&group) else { return remains };
        state.threads.retain(|thread| *thread != pid);
        let last = state.threads.is_empty();
        if last {
            // The process ends as its last thread does (`synchronize_group_exit`).
            state.leader_status = status;
        }
        if pid == group {
            state.credentials = task.credentials();
        }
        {
            let mut ended = lock(&task.group().ended_threads);
            *ended = ended.plus(&task.cpu_times());
        }
        let execs = state.execs;
        if let Some(by) = execs.and_then(|by| self.threads.get(&by)) {
            by.task.waiter().set();
        }
        self.orphan_thread_children(pid, group, last);
        if last {
            self.end_process(group, &mut remains);
        } else {
            self.finish_stop(group);
            self.retarget(group, SignalSet::ALL);
        }
        remains
    }

    /// A thread that ends may have been the last that did not stand still.
    fn finish_stop(&mut self, group: Pid) {
        let Some(state) = self.groups.get_mut(&group) else { return };
        let all = state.threads.iter().all(|pid| self.threads.get(pid).is_none_or(|thread| thread.stopped));
        if let Some(signal) = state.stop
            && all
            && !state.stopped
        {
            state.stopped = true;
            state.report = Some(Report::Stopped(signal));
            self.tell_parent_of_stop(group, libc::CLD_STOPPED, signal);
        }
    }

    /// Children of a thread that ends: another thread of the process has them from now on, and who wants to hear of it does.
    fn orphan_thread_children(&mut self, pid: Pid, group: Pid, last: bool) {
        let Some(state) = self.groups.get(&group) else { return };
        let heir = state.threads.first().copied();
        let children = state.children.clone();
        for child in children {
            let Some(state) = self.groups.get_mut(&child) else { continue };
            if state.parent_thread != pid {
                continue;
            }
            if let (false, Some(heir)) = (last, heir) {
                state.parent_thread = heir;
            }
            for thread in state.threads.clone() {
                let signal = self.threads.get(&thread).map_or(0, |thread| thread.parent_death);
                if is_signal(signal) {
                    let info = SignalInfo::user(signal, group, 0);
                    let _ = self.send(Target::Group(child), info, false);
                }
            }
        }
    }

    fn end_process(&mut self, group: Pid, remains: &mut Remains) {
        let Some(state) = self.groups.get_mut(&group) else { return };
        let status = state.exiting.unwrap_or(state.leader_status);
        state.zombie = Some(status);
        state.stop = None;
        state.stopped = false;
        state.report = None;
        state.pending.discard(SignalSet::ALL);
        let (handle, first) = (Arc::clone(&state.group), state.unkillable || group == 1);
        if first {
            self.end_all_others(group);
        }
        self.give_children_away(group, remains);
        let own = self.groups.get(&group).map(|state| (state.pgid, state.parent));
        if let Some((pgid, _)) = own {
            self.settle_orphans(pgid, group);
        }
        if self.tell_parent_of_end(group, status) {
            self.reap(group, remains);
        }
        handle.set_exited(status);
    }

    /// The sandbox ends with its first process.
    fn end_all_others(&mut self, first: Pid) {
        let others = self.groups.keys().copied().filter(|pid| *pid != first).collect::<Vec<_>>();
        for pid in others {
            self.begin_group_exit(pid, libc::SIGKILL);
        }
    }

    /// The nearest living ancestor that takes orphans, else the first process; 0 when there is none.
    fn heir(&self, group: Pid) -> Pid {
        let mut at = self.groups.get(&group).map_or(0, |state| state.parent);
        while let Some(state) = self.groups.get(&at) {
            if state.zombie.is_none() && state.group.is_subreaper() {
                return at;
            }
            at = state.parent;
        }
        let living = |pid: &Pid| *pid != group && self.groups.get(pid).is_some_and(|s| s.zombie.is_none());
        Some(1).filter(living).unwrap_or(0)
    }

    fn give_children_away(&mut self, group: Pid, remains: &mut Remains) {
        let heir = self.heir(group);
        let heir_thread = self.groups.get(&heir).and_then(|state| state.threads.first().copied());
        let Some(state) = self.groups.get_mut(&group) else { return };
        for child in std::mem::take(&mut state.children) {
            let Some(state) = self.groups.get_mut(&child) else { continue };
            state.parent = heir;
            state.parent_thread = heir_thread.unwrap_or(0);
            state.exit_signal = libc::SIGCHLD;
            let (zombie, pgid) = (state.zombie, state.pgid);
            self.tell_new_parent(child, heir);
            if let Some(heir) = self.groups.get_mut(&heir) {
                heir.children.insert(child);
            }
            match zombie {
                Some(status) if self.tell_parent_of_end(child, status) => self.reap(child, remains),
                Some(_) => {}
                None => self.settle_orphans(pgid, group),
            }
        }
    }

    /// What `getppid` gives from now on, wherever it is answered without us.
    fn tell_new_parent(&self, child: Pid, parent: Pid) {
        let threads = self.groups.get(&child).map(|state| state.threads.as_slice()).unwrap_or_default();
        for thread in threads.iter().filter_map(|thread| self.threads.get(thread)) {
            if let Some(handle) = lock(&thread.task.interrupt).as_ref() {
                handle.set_answer(libc::SYS_getppid.unsigned_abs(), u64::from(parent.cast_unsigned()));
            }
        }
    }

    /// A group that nobody would let go on any more, and in which somebody is stopped, is told (`kill_orphaned_pgrp`).
    fn settle_orphans(&mut self, pgid: Pid, without: Pid) {
        if self.is_orphaned(pgid, without) && self.has_stopped(pgid) {
            for pid in self.members(pgid) {
                for signal in [libc::SIGHUP, libc::SIGCONT] {
                    let _ = self.send(Target::Group(pid), SignalInfo::kernel(signal), false);
                }
            }
        }
    }

    /// Tells the parent (`do_notify_parent`). Whether nobody will wait for the child.
    fn tell_parent_of_end(&mut self, child: Pid, status: i32) -> bool {
        let Some(state) = self.groups.get(&child) else { return false };
        let (code, number) = reason(status);
        let mut info = self.child_info(state, code, number);
        info.signal = state.exit_signal;
        let Some(parent) = self.groups.get(&state.parent) else { return true };
        let action = lock(&parent.actions).of(libc::SIGCHLD);
        let (ignored, no_wait) = (action.handler == 1, action.flags & 2 != 0);
        let by_chld = info.signal == libc::SIGCHLD;
        let nobody_waits = by_chld && (ignored || no_wait);
        let parent_group = Arc::clone(&parent.group);
        if is_signal(info.signal) && !(by_chld && ignored) {
            let _ = self.send(Target::Group(parent_group.pid()), info, false);
        }
        parent_group.child_events.notify(Events::CHANGED);
        nobody_waits
    }

    /// A child that ended is gone for good; its time is its parent's from now on, where the parent waited for it.
    pub(super) fn reap(&mut self, child: Pid, remains: &mut Remains) {
        let Some(state) = self.groups.remove(&child) else { return };
        if let Some(parent) = self.groups.get_mut(&state.parent) {
            parent.children.remove(&child);
        }
        remains.groups.push(state);
    }
}

/// `si_code` and `si_status` of a status as `wait` tells it.
pub(super) fn reason(status: i32) -> (i32, i32) {
    match status & 0x7f {
        0 => (libc::CLD_EXITED, status >> 8 & 0xff),
        signal if status & 0x80 != 0 => (libc::CLD_DUMPED, signal),
        signal => (libc::CLD_KILLED, signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_a_reason() {
        assert_eq!(reason(3 << 8), (libc::CLD_EXITED, 3));
        assert_eq!(reason(9), (libc::CLD_KILLED, 9));
        assert_eq!(reason(11 | 0x80), (libc::CLD_DUMPED, 11));
    }
}
