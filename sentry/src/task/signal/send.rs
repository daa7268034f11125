//! From a sender into a queue, and who is woken (`__send_signal_locked`, `prepare_signal`, `complete_signal` in `kernel/signal.c`).

use std::sync::Arc;

use super::super::tree::{GroupState, Report};
use super::super::{
    Credentials, Pid, PidNamespace, Resource, Tasks, ThreadGroup, Tree, UserNamespace, capability, lock,
};
use super::info::{SI_KERNEL, SI_USER};
use super::{Charge, Default, FIRST_REALTIME, Payload, SignalInfo, SignalSet, default_action};
use crate::error::Errno;
use crate::events::Events;

/// Who a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// This thread.
    Thread(Pid),
    /// Any thread of this process.
    Group(Pid),
}

impl Tasks {
    /// Sends a timer's signal to a thread or else to a process, or adds to the one that is queued already. The overrun that it tells.
    pub(crate) fn send_timer(&self, to: Result<Pid, Pid>, info: &SignalInfo, count: u64) -> i32 {
        let mut tree = self.tree();
        let (target, pending) = match to {
            Ok(pid) => (Target::Thread(pid), tree.threads.get_mut(&pid).map(|thread| &mut thread.pending)),
            Err(pid) => (Target::Group(pid), tree.groups.get_mut(&pid).map(|group| &mut group.pending)),
        };
        let mut info = info.clone();
        let Payload::Timer { id, overrun, .. } = &mut info.payload else { return 0 };
        if let Some(overrun) = pending.and_then(|pending| pending.add_overrun(*id, count)) {
            return overrun;
        }
        *overrun = i32::try_from(count.saturating_sub(1)).unwrap_or(i32::MAX);
        let told = *overrun;
        // Who is gone needs none; one too many is lost, as the overrun of the next tells.
        let _ = tree.send(target, info, false);
        told
    }
}

/// Numbers of the sender as who gets the signal sees them.
fn as_seen(mut info: SignalInfo, pids: &PidNamespace, users: &UserNamespace) -> SignalInfo {
    match &mut info.payload {
        Payload::Kill { pid, uid } | Payload::Queue { pid, uid, .. } | Payload::Child { pid, uid, .. } => {
            *pid = if *pid == 0 { 0 } else { pids.shown(*pid) };
            *uid = users.shown_uid(*uid);
        }
        _ => {}
    }
    info
}

impl Tree {
    /// Sends a signal, without asking for permission. `forced`: from outside the sandbox.
    ///
    /// # Errors
    /// ESRCH when the target is gone; EAGAIN for a realtime signal that is one too many.
    pub(crate) fn send(&mut self, target: Target, info: SignalInfo, forced: bool) -> Result<(), Errno> {
        let signal = info.signal;
        let group = match target {
            Target::Thread(pid) => self.threads.get(&pid).ok_or(Errno::ESRCH)?.group,
            Target::Group(pid) => pid,
        };
        let state = self.groups.get(&group).ok_or(Errno::ESRCH)?;
        if state.zombie.is_some() {
            return Ok(());
        }
        self.prepare(group, signal);
        if self.is_ignored(target, group, signal, forced) {
            return Ok(());
        }
        if signal == libc::SIGKILL {
            self.begin_group_exit(group, libc::SIGKILL);
            return Ok(());
        }
        self.enqueue(target, group, info)?;
        self.tell(target, group, signal);
        Ok(())
    }

    /// A stop forgets that it should go on; going on forgets all stops, and happens here and now.
    fn prepare(&mut self, group: Pid, signal: i32) {
        let stops = SignalSet::STOPPING.has(signal);
        if !stops && signal != libc::SIGCONT {
            return;
        }
        let forget = if stops { SignalSet::of(&[libc::SIGCONT]) } else { SignalSet::STOPPING };
        if let Some(state) = self.groups.get_mut(&group) {
            state.pending.discard(forget);
            for pid in &state.threads {
                if let Some(thread) = self.threads.get_mut(pid) {
                    thread.pending.discard(forget);
                }
            }
        }
        if !stops {
            self.go_on(group);
        }
    }

    /// Lets a stopped process go on.
    fn go_on(&mut self, group: Pid) {
        let Some(state) = self.groups.get_mut(&group) else { return };
        if state.stop.take().is_none() {
            return;
        }
        self.trap_all(group, true);
        let Some(state) = self.groups.get_mut(&group) else { return };
        let was_stopped = std::mem::take(&mut state.stopped);
        if was_stopped {
            state.report = Some(Report::Continued);
        }
        self.poke_all(group);
        if was_stopped {
            self.tell_parent_of_stop(group, libc::CLD_CONTINUED, libc::SIGCONT);
        }
    }

    /// `sig_ignored`: what nothing would come of is not even queued, unless it is blocked: the action may change before it is not.
    fn is_ignored(&self, target: Target, group: Pid, signal: i32, forced: bool) -> bool {
        let Some(state) = self.groups.get(&group) else { return true };
        let pid = match target {
            Target::Thread(pid) => Some(pid),
            Target::Group(_) => state.threads.first().copied(),
        };
        if let Some(thread) = pid.and_then(|pid| self.threads.get(&pid))
            && (thread.mask.union(thread.awaited).has(signal) || self.is_heard(thread.task.pid(), signal))
        {
            return false;
        }
        let actions = lock(&state.actions);
        if state.unkillable && actions.is_default(signal) {
            let by_force = forced && SignalSet::UNBLOCKABLE.has(signal);
            return !by_force;
        }
        actions.ignores(signal)
    }

    fn enqueue(&mut self, target: Target, group: Pid, info: SignalInfo) -> Result<(), Errno> {
        let Some(state) = self.groups.get(&group) else { return Err(Errno::ESRCH) };
        let uid = state.credentials.uid;
        let (group_space, user_space) =
            (Arc::clone(state.group.pid_namespace()), Arc::clone(&state.credentials.user_ns));
        let limit = state.group.limits().of(Resource::PendingSignals).soft;
        let account = self.account(uid);
        let Some(state) = self.groups.get_mut(&group) else { return Err(Errno::ESRCH) };
        let pending = match target {
            Target::Thread(pid) => &mut self.threads.get_mut(&pid).ok_or(Errno::ESRCH)?.pending,
            Target::Group(_) => &mut state.pending,
        };
        if pending.has_already(info.signal) {
            return Ok(());
        }
        let info = as_seen(info, &group_space, &user_space);
        // Standard signals of the kernel and of `kill` are always kept: there can be one of each only.
        let kept_anyway = info.signal < FIRST_REALTIME && (info.code >= 0 || info.code == SI_KERNEL);
        match Charge::take(&account, if kept_anyway { u64::MAX } else { limit }) {
            Some(charge) => pending.push(info, Some(charge)),
            None if info.signal >= FIRST_REALTIME && info.code != SI_USER => return Err(Errno::EAGAIN),
            None => pending.push_bit(info.signal),
        }
        Ok(())
    }

    /// Wakes a thread that wants the signal, and who waits for news of signals.
    fn tell(&self, target: Target, group: Pid, signal: i32) {
        let Some(state) = self.groups.get(&group) else { return };
        match target {
            Target::Thread(pid) => self.poke_if_wanted(pid, signal),
            Target::Group(_) => {
                let wanting = state.threads.iter().copied().filter(|pid| self.wants(*pid, signal));
                // One that is not busy with another signal, if there is such a one; the first thread before others.
                let mut wanting = wanting.peekable();
                let first = wanting.peek().copied();
                let idle = wanting
                    .find(|pid| self.threads.get(pid).is_some_and(|thread| !thread.task.signal_pending()));
                if let Some(pid) = idle.or(first) {
                    self.poke_if_wanted(pid, signal);
                }
            }
        }
        state.group.signal_events.notify(Events::IN | Events::RDNORM);
    }

    fn wants(&self, pid: Pid, signal: i32) -> bool {
        self.threads.get(&pid).is_some_and(|thread| !thread.mask.has(signal) || thread.awaited.has(signal))
    }

    fn poke_if_wanted(&self, pid: Pid, signal: i32) {
        let Some(thread) = self.threads.get(&pid) else { return };
        if !thread.mask.has(signal) {
            thread.task.poke();
        } else if thread.awaited.has(signal) {
            thread.task.waiter().set();
        }
    }

    /// Signals of the process that a thread will not take: some other thread shall (`retarget_shared_pending`).
    pub(crate) fn retarget(&self, group: Pid, signals: SignalSet) {
        let Some(state) = self.groups.get(&group) else { return };
        let mut left = state.pending.set().intersection(signals);
        while let Some(signal) = left.lowest() {
            left.remove(signal);
            if let Some(pid) = state.threads.iter().find(|pid| self.wants(**pid, signal)) {
                self.poke_if_wanted(*pid, signal);
            }
        }
    }

    /// The process ends with this status, all its threads with it.
    pub(crate) fn begin_group_exit(&mut self, group: Pid, status: i32) {
        let Some(state) = self.groups.get_mut(&group) else { return };
        if state.exiting.is_none() {
            state.exiting = Some(status);
            state.stop = None;
            state.stopped = false;
        }
        state.killed |= status == libc::SIGKILL;
        self.poke_all(group);
        for task in self.tasks_of(group) {
            task.told_to_end();
        }
    }

    /// SIGCHLD for a stop or for going on, unless the parent does not want it, and news for who waits.
    pub(crate) fn tell_parent_of_stop(&mut self, child: Pid, code: i32, status: i32) {
        let Some(state) = self.groups.get(&child) else { return };
        let info = self.child_info(state, code, status);
        let Some(parent) = self.groups.get(&state.parent) else { return };
        let action = lock(&parent.actions).of(libc::SIGCHLD);
        let parent_group = Arc::clone(&parent.group);
        if action.handler != super::action::SIG_IGN && action.flags & super::action::SA_NOCLDSTOP == 0 {
            // The parent is there; SIGCHLD is a standard signal.
            let _ = self.send(Target::Group(parent_group.pid()), info, false);
        }
        parent_group.child_events.notify(Events::CHANGED);
    }

    /// What SIGCHLD tells of a child.
    pub(crate) fn child_info(&self, child: &GroupState, code: i32, status: i32) -> SignalInfo {
        let living = child.threads.iter().filter_map(|pid| self.threads.get(pid));
        let times = living
            .map(|thread| thread.task.cpu_times())
            .fold(*lock(&child.group.ended_threads), |sum, times| sum.plus(&times));
        let ticks = |time: std::time::Duration| i64::try_from(time.as_millis() / 10).unwrap_or(i64::MAX);
        let payload = Payload::Child {
            pid: child.group.pid(),
            uid: child.credentials.uid,
            status,
            user: ticks(times.user),
            system: ticks(times.system),
        };
        SignalInfo { signal: libc::SIGCHLD, errno: 0, code, payload }
    }

    /// Whether `sender` may send `signal` to a process (`check_kill_permission`).
    pub(crate) fn may_signal(&self, sender: Pid, by: &Credentials, group: &ThreadGroup, signal: i32) -> bool {
        let Some(state) = self.groups.get(&group.pid()) else { return false };
        let target = &state.credentials;
        if sender == group.pid() || by.capable_in(&target.user_ns, capability::KILL) {
            return true;
        }
        if [by.euid, by.uid].iter().any(|uid| *uid == target.suid || *uid == target.uid) {
            return true;
        }
        signal == libc::SIGCONT && self.groups.get(&sender).is_some_and(|own| own.sid == state.sid)
    }

    /// Whether the default of `signal` is to stop a process that nobody would let go on.
    pub(crate) fn stop_is_void(&self, group: Pid, signal: i32) -> bool {
        debug_assert_eq!(default_action(signal), Default::Stop);
        let Some(state) = self.groups.get(&group) else { return true };
        signal != libc::SIGSTOP && self.is_orphaned(state.pgid, 0)
    }
}
