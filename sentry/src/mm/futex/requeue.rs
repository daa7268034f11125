//! Moving who waits from one word to another (`kernel/futex/requeue.c`).

use super::key::Key;
use super::priority::{Owner, try_own};
use super::{Kind, Outcome, Table, word};
use crate::error::Errno;
use crate::platform::Thread;
use crate::task::Pid;

/// What the first word must hold: its address and value.
pub type Compare = Option<(u64, u32)>;

fn check(thread: &dyn Thread, compare: Compare) -> Result<(), Errno> {
    match compare {
        Some((address, value)) if word(thread, address)? != value => Err(Errno::EAGAIN),
        _ => Ok(()),
    }
}

impl Table {
    /// `FUTEX_REQUEUE` and `FUTEX_CMP_REQUEUE`: wakes `wake` of those who wait at `from`, and moves `count` of the others to `to`. How many
    /// of both.
    ///
    /// # Errors
    /// EAGAIN (another value), EFAULT, EINVAL (somebody waits for a lock there).
    pub fn requeue(
        &self,
        thread: &dyn Thread,
        (from, to): (Key, Key),
        (wake, count): (usize, usize),
        compare: Compare,
    ) -> Result<(usize, usize), Errno> {
        let mut pair = self.two(from, to);
        check(thread, compare)?;
        if pair
            .first()
            .iter()
            .map(|entry| *entry.state())
            .any(|state| state.key == from && state.kind != Kind::Plain)
        {
            return Err(Errno::EINVAL);
        }
        let (mut woken, mut moved) = (0, Vec::new());
        pair.first().retain(|entry| {
            if entry.state().key != from || (woken == wake && moved.len() == count) {
                return true;
            }
            if woken < wake {
                entry.end(Outcome::Woken);
                woken += 1;
                return false;
            }
            moved.push(std::sync::Arc::clone(entry));
            false
        });
        let count = moved.len();
        for entry in &moved {
            entry.state().key = to;
        }
        pair.second().append(&mut moved);
        Ok((woken, count))
    }

    /// `FUTEX_CMP_REQUEUE_PI`: the first who waits at `from` gets the lock `to` if that is free; `count` more wait for it from now on.
    /// How many of both.
    ///
    /// # Errors
    /// EAGAIN (another value), EFAULT, EINVAL (they wait for something else), EDEADLK, ESRCH.
    pub fn requeue_to_lock(
        &self,
        thread: &mut dyn Thread,
        (from, to): (Key, Key),
        lock_address: u64,
        count: usize,
        compare: (u64, u32),
        alive: &dyn Fn(Pid) -> bool,
    ) -> Result<usize, Errno> {
        if from == to {
            return Err(Errno::EINVAL);
        }
        let mut pair = self.two(from, to);
        check(thread, Some(compare))?;
        let at_from = |entry: &std::sync::Arc<super::Entry>| entry.state().key == from;
        let Some(first) = pair.first().iter().find(|entry| at_from(entry)).cloned() else { return Ok(0) };
        let wrong = |kind| kind != Kind::BeforeLock { lock: to };
        if pair.first().iter().any(|entry| at_from(entry) && wrong(entry.state().kind)) {
            return Err(Errno::EINVAL);
        }
        let owner = try_own(thread, lock_address, first.task, true, alive)?;
        let mut done = 0;
        if owner == Owner::Got {
            pair.first().retain(|entry| !std::sync::Arc::ptr_eq(entry, &first));
            first.end(Outcome::Woken);
            done = 1;
        }
        let holder = match owner {
            Owner::Got => first.task,
            Owner::Other(owner) => owner,
        };
        // The one to be woken counts on its own, also where it has to wait for the lock.
        let limit = count.saturating_add(1);
        let mut moved = Vec::new();
        pair.first().retain(|entry| {
            if !at_from(entry) || done == limit {
                return true;
            }
            moved.push(std::sync::Arc::clone(entry));
            done += 1;
            false
        });
        for entry in &moved {
            let mut state = entry.state();
            state.key = to;
            state.kind = Kind::Lock { owner: holder, space: first.space };
        }
        self.add_lock_waiters(moved.len());
        pair.second().append(&mut moved);
        Ok(done)
    }
}
