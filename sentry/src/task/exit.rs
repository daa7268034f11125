//! The end of threads and processes (`man 2 exit`; `kernel/exit.c`).

use std::sync::Arc;

use super::ptrace::Ended;
use super::signal::{SignalInfo, SignalSet, Target, is_signal};
use super::tree::{GroupState, Report, ThreadState};
use super::{Pid, PidNamespace, Task, Tree, hooks, lock};
use crate::events::{self, Events};
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
    thread.retire();
    let address = task.clear_child_tid();
    // Who serves whom this end wakes is woken after that one's stub was, which is where this one's still runs.
    let held = events::hold_back();
    if address != 0 {
        // A bad address is the program's own affair.
        let _ = thread.write(address, &0_u32.to_le_bytes());
        // Before anybody is woken: who waited for this end may have the place of this thread and its stub at the processors.
        crate::platform::rest();
        hooks::wake_futex(&task.space(), address);
        held.wake_guests();
    }
    drop(thread);
    drop(held);
    crate::platform::rest();
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
    let namespaces = task.namespaces();
    if task.tasks().tree().is_last(task) {
        // Undone before anybody hears of the end, too.
        namespaces.ipc.ipc().process_ended(task.group().pid());
        task.end_namespace();
    }
    let remains = task.tasks().tree().remove_thread(task, status);
    if task.group().exit_status().is_some() {
        let timers = std::mem::take(&mut *task.group().timers());
        drop(timers);
        namespaces.ipc.ipc().process_ended(task.group().pid());
        if session == task.group().pid() {
            hooks::session_ended(task.tasks(), session);
        }
    }
    drop(remains);
    drop((task.set_namespaces(Arc::clone(task.tasks().first_namespaces())), namespaces));
}

impl Task {
    /// The last thread of a namespace's first process ends: all others of the namespace end before it (`zap_pid_ns_processes`). The root
    /// namespace's first process does not wait for them: the sandbox is over.
    fn end_namespace(&self) {
        let (space, own) = (self.pid_namespace(), self.group.pid());
        if space.init() != own || space.level() == 0 {
            return;
        }
        space.close();
        self.tasks.tree().end_all_others(own, space);
        let mut remains = Remains::default();
        loop {
            self.waiter().clear();
            let left = self.tasks.tree().reap_rest(own, space, &mut remains);
            drop(std::mem::take(&mut remains));
            if !left {
                return;
            }
            self.waiter().wait(None);
        }
    }

    /// Ends its whole process (`exit_group`), with a status as `wait` tells it.
    pub fn exit_group(&self, status: i32) {
        self.tasks.tree().begin_group_exit(self.group.pid(), status);
    }

    /// Ends its process, which has lost what it runs in. Whether that was alive until then: who was killed here has lost it by that.
    pub(super) fn exit_lost(&self) -> bool {
        let mut tree = self.tasks.tree();
        let alive = tree.groups.get(&self.group.pid()).is_some_and(|state| state.exiting.is_none());
        tree.begin_group_exit(self.group.pid(), libc::SIGKILL);
        alive
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
        let thread = self.threads.remove(&pid);
        self.tracer_ended(pid, &mut remains);
        let Some(state) = self.groups.get_mut(&group) else { return remains };
        state.threads.retain(|thread| *thread != pid);
        let last = state.threads.is_empty();
        if last {
            // The process ends as its last thread does (`synchronize_group_exit`).
            state.leader_status = status;
        }
        if let Some(trace) = thread.as_ref().and_then(|thread| thread.trace.as_ref()) {
            let tracer = trace.tracer;
            if pid == group {
                state.traced_end = Some(tracer);
            } else {
                let status = state.exiting.unwrap_or(status);
                let (uid, numbers) =
                    (task.credentials().uid, thread.as_ref().and_then(|t| t.numbers.clone()));
                self.keep_ended(pid, Ended { tracer, group, status, uid, _numbers: numbers });
            }
        }
        remains.threads.extend(thread);
        let Some(state) = self.groups.get_mut(&group) else { return remains };
        if pid == group {
            state.credentials = task.credentials();
        }
        {
            let mut ended = lock(&task.group().ended_threads);
            *ended = ended.plus(&task.cpu_times());
        }
        task.control_group().count_ended(&task.cpu_times());
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

    /// Tells the parent that a process stopped, once all its threads stand still: not where it traces the process anyhow.
    pub(super) fn finish_stop(&mut self, group: Pid) {
        let Some(state) = self.groups.get_mut(&group) else { return };
        let all = state.threads.iter().all(|pid| self.threads.get(pid).is_none_or(|thread| thread.stopped));
        if let Some(signal) = state.stop
            && all
            && !state.stopped
        {
            state.stopped = true;
            state.report = Some(Report::Stopped(signal));
            let parent = state.parent;
            if !self.is_traced_by(group, parent) {
                self.tell_parent_of_stop(group, libc::CLD_STOPPED, signal);
            }
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
        let handle = Arc::clone(&state.group);
        let space = Arc::clone(handle.pid_namespace());
        if space.init() == group {
            space.close();
            self.end_all_others(group, &space);
        }
        self.give_children_away(group, remains);
        let own = self.groups.get(&group).map(|state| (state.pgid, state.parent));
        if let Some((pgid, _)) = own {
            self.settle_orphans(pgid, group);
        }
        if self.tell_of_end(group, status) {
            self.reap(group, remains);
        }
        handle.set_exited(status);
        self.tell_ending_namespaces(&space);
    }

    /// A namespace, or the sandbox, ends with its first process.
    fn end_all_others(&mut self, first: Pid, space: &PidNamespace) {
        let within = self.groups.iter().filter(|(_, state)| state.group.pid_namespace().is_within(space));
        let others = within.map(|(pid, _)| *pid).filter(|pid| *pid != first).collect::<Vec<_>>();
        for pid in others {
            self.begin_group_exit(pid, libc::SIGKILL);
        }
    }

    /// Takes away what children of a namespace's first process left. Whether somebody else still lives in the namespace.
    fn reap_rest(&mut self, first: Pid, space: &PidNamespace, remains: &mut Remains) -> bool {
        let children = self.groups.get(&first).map(|state| state.children.clone()).unwrap_or_default();
        for child in children {
            if self.groups.get(&child).is_some_and(|state| state.zombie.is_some()) {
                self.reap(child, remains);
            }
        }
        let mut others = self.groups.iter().filter(|(pid, state)| **pid != first && state.zombie.is_none());
        others.any(|(_, state)| state.group.pid_namespace().is_within(space))
    }

    /// First processes that wait until their namespace is empty look again.
    fn tell_ending_namespaces(&self, space: &Arc<PidNamespace>) {
        let mut at = Some(space);
        while let Some(namespace) = at {
            if namespace.level() > 0 && namespace.is_closed() {
                for task in self.tasks_of(namespace.init()) {
                    task.waiter().set();
                }
            }
            at = namespace.parent();
        }
    }

    /// The nearest living ancestor in the same namespace that takes orphans, else the first process of the namespace; 0 when there is none
    /// (`find_new_reaper`).
    fn heir(&self, group: Pid) -> Pid {
        let Some(own) = self.groups.get(&group) else { return 0 };
        let space = own.group.pid_namespace();
        let mut at = own.parent;
        while let Some(state) = self.groups.get(&at) {
            if !Arc::ptr_eq(state.group.pid_namespace(), space) {
                break;
            }
            if state.zombie.is_none() && state.group.is_subreaper() {
                return at;
            }
            at = state.parent;
        }
        let living = |pid: &Pid| *pid != group && self.groups.get(pid).is_some_and(|s| s.zombie.is_none());
        let above = space.parent().map_or(0, |parent| parent.init());
        [space.init(), above].into_iter().find(living).unwrap_or(0)
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
                Some(status) if self.tell_of_end(child, status) => self.reap(child, remains),
                Some(_) => {}
                None => self.settle_orphans(pgid, group),
            }
        }
    }

    /// What `getppid` gives from now on, wherever it is answered without us.
    fn tell_new_parent(&self, child: Pid, parent: Pid) {
        let threads = self.groups.get(&child).map(|state| state.threads.as_slice()).unwrap_or_default();
        for thread in threads.iter().filter_map(|thread| self.threads.get(thread)) {
            let parent = thread.task.shown(parent).cast_unsigned();
            if let Some(handle) = lock(&thread.task.interrupt).as_ref() {
                handle.set_answer(libc::SYS_getppid.unsigned_abs(), u64::from(parent));
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

    /// Tells the tracer, else the parent. Whether nobody will wait for the child.
    fn tell_of_end(&mut self, child: Pid, status: i32) -> bool {
        let Some(state) = self.groups.get(&child) else { return false };
        let Some(tracer) = state.traced_end else { return self.tell_parent_of_end(child, status) };
        let (parent, uid) = (state.parent, state.credentials.uid);
        if self.threads.get(&tracer).is_some_and(|thread| thread.group == parent) {
            self.tell_parent_of_end(child, status);
        } else {
            self.tell_tracer_of_end(tracer, (child, uid), status);
        }
        false
    }

    /// Tells the parent (`do_notify_parent`). Whether nobody will wait for the child.
    pub(super) fn tell_parent_of_end(&mut self, child: Pid, status: i32) -> bool {
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
        if let Some(tracer) = state.traced_end {
            self.forget_tracee(tracer, child);
        }
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
