//! Locks whose word names the owner: `FUTEX_LOCK_PI` and its kin (`kernel/futex/pi.c`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::key::Key;
use super::{
    ANY, Bucket, Ended, Entry, Kind, OWNER_DIED, Outcome, Sleeper, State, TID_MASK, Table, WAITERS, exchange,
    word,
};
use crate::call::Unready;
use crate::error::Errno;
use crate::platform::Thread;
use crate::task::Pid;

/// Whose a lock is after a try to get it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The one it was tried for.
    Got,
    /// This task's; the word says that somebody waits.
    Other(Pid),
}

/// A task's number as a word holds it.
pub(super) fn tid(task: Pid) -> u32 {
    task.unsigned_abs() & TID_MASK
}

/// Tries to write `task` into a lock's word (`futex_lock_pi_atomic`). The bucket is locked.
pub(super) fn try_own(
    thread: &mut dyn Thread,
    address: u64,
    task: Pid,
    others_wait: bool,
    alive: &dyn Fn(Pid) -> bool,
) -> Result<Owner, Errno> {
    let seen = exchange(thread, address, |seen| match seen & TID_MASK {
        0 => Ok(tid(task) | (seen & OWNER_DIED) | if others_wait { WAITERS } else { 0 }),
        owner if owner == tid(task) => Err(Errno::EDEADLK),
        owner if !alive(owner.cast_signed()) => Err(Errno::ESRCH),
        _ => Ok(seen | WAITERS),
    })?;
    Ok(match seen & TID_MASK {
        0 => Owner::Got,
        owner => Owner::Other(owner.cast_signed()),
    })
}

/// Writes the new owner into the word of a lock whose owner died (`fixup_pi_owner`).
fn take_over(thread: &mut dyn Thread, address: u64, task: Pid) -> Result<(), Errno> {
    exchange(thread, address, |_| Ok(tid(task) | OWNER_DIED | WAITERS)).map(|_| ())
}

/// Whether the entry waits for the lock of this key.
fn waits_for(state: &State, key: Key) -> bool {
    state.key == key && matches!(state.kind, Kind::Lock { .. })
}

/// Gives the lock of a key to the first who waits for it, the others being told of the new owner. The entry, which is out of the bucket.
fn hand_over(table: &Table, bucket: &mut Bucket, key: Key) -> Option<Arc<Entry>> {
    let first = bucket.iter().position(|entry| waits_for(&entry.state(), key))?;
    let next = bucket.remove(first);
    table.remove_lock_waiter();
    for entry in bucket.iter() {
        let mut state = entry.state();
        if waits_for(&state, key) {
            state.kind = Kind::Lock { owner: next.task, space: next.space };
        }
    }
    Some(next)
}

impl Table {
    /// `FUTEX_LOCK_PI`; with `only_try` `FUTEX_TRYLOCK_PI`. `alive` tells whether a task is there.
    ///
    /// # Errors
    /// EDEADLK, ESRCH (the owner does not exist), EAGAIN (`only_try`, or the word does not stand still), EFAULT; a signal, the deadline.
    pub fn lock(
        &self,
        thread: &mut dyn Thread,
        sleeper: &Sleeper<'_>,
        (key, address): (Key, u64),
        only_try: bool,
        alive: &dyn Fn(Pid) -> bool,
    ) -> Result<(), Ended> {
        let entry = {
            let mut bucket = self.bucket(key);
            let others = bucket.iter().any(|entry| waits_for(&entry.state(), key));
            match try_own(thread, address, sleeper.task, others, alive)? {
                Owner::Got => return Ok(()),
                Owner::Other(_) if only_try => return Err(Errno::EAGAIN.into()),
                Owner::Other(owner) => {
                    let entry = Entry::new(sleeper, key, Kind::Lock { owner, space: sleeper.space }, ANY);
                    bucket.push(Arc::clone(&entry));
                    self.add_lock_waiters(1);
                    entry
                }
            }
        };
        self.sleep_for_lock(thread, sleeper, &entry, address)
    }

    /// `FUTEX_UNLOCK_PI`: to the first who waits.
    ///
    /// # Errors
    /// EPERM (not the caller's), EFAULT, EAGAIN.
    pub fn unlock(
        &self,
        thread: &mut dyn Thread,
        task: Pid,
        (key, address): (Key, u64),
    ) -> Result<(), Errno> {
        if word(thread, address)? & TID_MASK != tid(task) {
            return Err(Errno::EPERM);
        }
        let mut bucket = self.bucket(key);
        let next = bucket.iter().find(|entry| waits_for(&entry.state(), key)).map(|entry| entry.task);
        exchange(thread, address, |seen| match next {
            _ if seen & TID_MASK != tid(task) => Err(Errno::EPERM),
            Some(next) => Ok(tid(next) | WAITERS),
            None => Ok(0),
        })?;
        if let Some(next) = hand_over(self, &mut bucket, key) {
            next.end(Outcome::Woken);
        }
        Ok(())
    }

    /// `FUTEX_WAIT_REQUEUE_PI`: sleeps at `from`, whose word holds `value`, until somebody moves the caller to the lock `to` and that is
    /// the caller's.
    ///
    /// # Errors
    /// As [`wait`](Self::wait) and [`lock`](Self::lock); EINVAL where both are the same. A signal after the move is EAGAIN.
    pub fn wait_for_lock(
        &self,
        thread: &mut dyn Thread,
        sleeper: &Sleeper<'_>,
        from: (Key, u64),
        (value, bitset): (u32, u32),
        (lock, lock_address): (Key, u64),
    ) -> Result<(), Ended> {
        if bitset == 0 || from.0 == lock {
            return Err(Errno::EINVAL.into());
        }
        let entry = self.queue_if(thread, sleeper, from, value, (Kind::BeforeLock { lock }, bitset))?;
        let ended = self.sleep_for_lock(thread, sleeper, &entry, lock_address);
        let moved = matches!(entry.state().kind, Kind::Lock { .. });
        match ended {
            Err(Ended::Unready(Unready::Interrupted)) if moved => Err(Errno::EAGAIN.into()),
            other => other,
        }
    }

    fn sleep_for_lock(
        &self,
        thread: &mut dyn Thread,
        sleeper: &Sleeper<'_>,
        entry: &Arc<Entry>,
        address: u64,
    ) -> Result<(), Ended> {
        let slept = self.sleep(std::slice::from_ref(entry), sleeper);
        let state = *entry.state();
        match slept {
            Ok(_) if state.outcome == Outcome::OwnerDied => {
                take_over(thread, address, entry.task).map_err(Ended::Errno)
            }
            Ok(_) => Ok(()),
            Err(unready) => {
                if matches!(state.kind, Kind::Lock { .. }) {
                    self.remove_lock_waiter();
                }
                Err(Ended::Unready(unready))
            }
        }
    }

    /// The locks of a task that ends go to those who wait for them (`exit_pi_state_list`). After
    /// [`exit_robust_list`](super::exit_robust_list).
    pub fn owner_died(&self, task: Pid, of: u64) {
        if self.lock_waiters.load(Ordering::SeqCst) == 0 {
            return;
        }
        for index in 0..self.buckets.len() {
            let mut bucket = self.lock_index(index);
            let held = |entry: &Arc<Entry>| match *entry.state() {
                State { key, kind: Kind::Lock { owner, space }, .. } if (owner, space) == (task, of) => {
                    Some(key)
                }
                _ => None,
            };
            while let Some(key) = bucket.iter().find_map(held) {
                let Some(next) = hand_over(self, &mut bucket, key) else { break };
                next.end(Outcome::OwnerDied);
                if (next.task, next.space) == (task, of) {
                    break;
                }
            }
        }
    }
}
