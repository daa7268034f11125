//! Signals of a task, for what is outside this room.

use std::sync::Arc;

use super::super::tree::ThreadState;
use super::super::{Task, Tree, lock};
use super::{AltStack, SigAction, SignalInfo, SignalSet, Target};
use crate::error::{Errno, SysError};

impl Tree {
    /// Sets whether a thread has to look up, by what is pending for it.
    pub(crate) fn settle(&self, task: &Task) {
        let attention = self.has_work(task);
        task.attention.store(attention, std::sync::atomic::Ordering::SeqCst);
    }

    fn has_work(&self, task: &Task) -> bool {
        let (Some(thread), Some(group)) =
            (self.threads.get(&task.pid()), self.groups.get(&task.group().pid()))
        else {
            return true;
        };
        let pending = thread.pending.set().union(group.pending.set());
        !pending.without(thread.mask).is_empty()
            || group.exiting.is_some()
            || thread.trace.as_ref().map_or(group.stop.is_some(), |trace| trace.trap)
            || group.execs.is_some_and(|by| by != task.pid())
    }

    fn change_mask(&mut self, task: &Task, mask: SignalSet) {
        let Some(thread) = self.threads.get_mut(&task.pid()) else { return };
        let newly_blocked = mask.without(thread.mask);
        thread.mask = mask.without(SignalSet::UNBLOCKABLE);
        if !newly_blocked.is_empty() {
            self.retarget(task.group().pid(), newly_blocked);
        }
        self.settle(task);
    }
}

impl Task {
    /// Sends a signal to this thread. No permission is asked for.
    ///
    /// # Errors
    /// ESRCH when it is gone; EAGAIN when too many are queued (`RLIMIT_SIGPENDING`).
    pub fn send_signal(&self, info: SignalInfo) -> Result<(), Errno> {
        self.tasks.tree().send(Target::Thread(self.pid()), info, false)
    }

    /// SIGPIPE, for a write that nobody reads.
    pub fn send_sigpipe(&self) {
        // It is this task itself, so it is there; and a standard signal is always kept.
        let _ = self.send_signal(SignalInfo::user(libc::SIGPIPE, self.group.pid(), self.credentials().uid));
    }

    fn with_state<T: Default>(&self, look: impl FnOnce(&mut ThreadState) -> T) -> T {
        self.tasks.tree().threads.get_mut(&self.pid()).map(look).unwrap_or_default()
    }

    /// Signals that it blocks.
    #[must_use]
    pub fn signal_mask(&self) -> SignalSet {
        self.with_state(|thread| thread.mask)
    }

    /// Blocks these signals and no others. Only the task itself does so.
    pub fn set_signal_mask(&self, mask: SignalSet) {
        self.tasks.tree().change_mask(self, mask);
    }

    /// Signals that are pending for it or its process (`/proc/…/status`: `SigPnd`, `ShdPnd`).
    #[must_use]
    pub fn pending_signals(&self) -> (SignalSet, SignalSet) {
        let tree = self.tasks.tree();
        let own = tree.threads.get(&self.pid()).map(|thread| thread.pending.set());
        let shared = tree.groups.get(&self.group.pid()).map(|group| group.pending.set());
        (own.unwrap_or_default(), shared.unwrap_or_default())
    }

    /// Takes one of these signals, its own before those of the process (`signalfd`, `sigtimedwait`).
    #[must_use]
    pub fn take_signal(&self, wanted: SignalSet) -> Option<SignalInfo> {
        let wanted = wanted.without(SignalSet::UNBLOCKABLE);
        let mut tree = self.tasks.tree();
        let own = tree.threads.get_mut(&self.pid()).and_then(|thread| thread.pending.take(wanted));
        let taken = own
            .or_else(|| tree.groups.get_mut(&self.group.pid()).and_then(|group| group.pending.take(wanted)));
        tree.settle(self);
        taken
    }

    /// Whether [`take_signal`](Self::take_signal) would give something.
    #[must_use]
    pub fn has_signal(&self, wanted: SignalSet) -> bool {
        let (own, shared) = self.pending_signals();
        !own.union(shared).intersection(wanted.without(SignalSet::UNBLOCKABLE)).is_empty()
    }

    /// While `wait` runs, these signals wake it although they are blocked (`sigtimedwait`).
    pub fn awaiting<T>(&self, signals: SignalSet, wait: impl FnOnce() -> T) -> T {
        self.with_state(|thread| thread.awaited = signals);
        let result = wait();
        self.with_state(|thread| thread.awaited = SignalSet::EMPTY);
        result
    }

    /// Does something with another mask of signals (`ppoll`, `pselect`, `epoll_pwait`, `sigsuspend`). If a signal ends it, the mask
    /// stays until that signal was delivered: the handler's frame has the old one.
    ///
    /// # Errors
    /// What `wait` says.
    pub fn with_temporary_mask<T>(
        &self,
        mask: SignalSet,
        wait: impl FnOnce() -> Result<T, SysError>,
    ) -> Result<T, SysError> {
        let old = self.signal_mask();
        self.set_signal_mask(mask);
        let result = wait();
        if matches!(result, Err(SysError::Interrupted(_) | SysError::Errno(Errno::EINTR))) {
            let tree = &mut *self.tasks.tree();
            if let Some(thread) = tree.threads.get_mut(&self.pid()) {
                thread.saved_mask = Some(old);
            }
            // It looks up even if the signal is gone by then: the mask is to be put back.
            self.attention.store(true, std::sync::atomic::Ordering::SeqCst);
        } else {
            self.set_signal_mask(old);
        }
        result
    }

    /// Puts the mask back that [`with_temporary_mask`](Self::with_temporary_mask) left, where no handler's frame took it.
    pub(crate) fn restore_saved_mask(&self) {
        let mut tree = self.tasks.tree();
        let saved = tree.threads.get_mut(&self.pid()).and_then(|thread| thread.saved_mask.take());
        if let Some(saved) = saved {
            tree.change_mask(self, saved);
        }
    }

    /// What its process does about a signal.
    #[must_use]
    pub fn action(&self, signal: i32) -> SigAction {
        let tree = self.tasks.tree();
        let group = tree.groups.get(&self.group.pid());
        group.map(|group| lock(&group.actions).of(signal)).unwrap_or_default()
    }

    /// Sets what its process does about a signal; what is then ignored is forgotten. What it was before.
    ///
    /// # Errors
    /// EINVAL for no signal, and for SIGKILL and SIGSTOP.
    pub fn set_action(&self, signal: i32, action: SigAction) -> Result<SigAction, Errno> {
        let mut tree = self.tasks.tree();
        let state = tree.groups.get(&self.group.pid()).ok_or(Errno::ESRCH)?;
        let actions = Arc::clone(&state.actions);
        let mut actions = lock(&actions);
        let old = actions.of(signal);
        actions.set(signal, action)?;
        if actions.ignores(signal) {
            let set = SignalSet::of(&[signal]);
            let threads = state.threads.clone();
            if let Some(state) = tree.groups.get_mut(&self.group.pid()) {
                state.pending.discard(set);
            }
            for pid in threads {
                if let Some(thread) = tree.threads.get_mut(&pid) {
                    thread.pending.discard(set);
                }
            }
        }
        Ok(old)
    }

    /// Its other stack for handlers.
    #[must_use]
    pub fn signal_stack(&self) -> AltStack {
        self.with_state(|thread| thread.stack)
    }

    /// Sets it. Only the task itself does so.
    pub fn set_signal_stack(&self, stack: AltStack) {
        self.with_state(|thread| thread.stack = stack);
    }

    /// Which signal it gets when its parent ends; 0 for none.
    #[must_use]
    pub fn parent_death_signal(&self) -> i32 {
        self.with_state(|thread| thread.parent_death)
    }

    /// Sets it.
    pub fn set_parent_death_signal(&self, signal: i32) {
        self.with_state(|thread| thread.parent_death = signal);
    }

    /// Notes the exception and error code of a fault, and the address where a page was missing, which signal frames tell from then on.
    pub(crate) fn set_fault(&self, (exception, error): (u64, u64), address: u64) {
        const PAGE_FAULT: u64 = 14;
        self.with_state(|thread| {
            let address = if exception == PAGE_FAULT { address } else { thread.fault.2 };
            thread.fault = (exception, error, address);
        });
    }

    pub(crate) fn fault(&self) -> (u64, u64, u64) {
        self.with_state(|thread| thread.fault)
    }
}
