//! Locks of files: `flock`, POSIX record locks and those of open file descriptions (`fs/locks.c` of Linux, `man 2 fcntl`).

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{LazyLock, Mutex, OnceLock};

use super::leases::Leases;
use super::sync::lock;
use super::write_access::Writers;
use crate::error::Errno;
use crate::events::{Events, WaitQueue};
use crate::task::Pid;

/// Records that a file has at most: no program comes near, and each change looks at all.
const RECORDS_MAX: usize = 65_536;

/// Who has a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// All that share a table of open files.
    Process(u64),
    /// An open file description.
    Description(u64),
}

/// A locked range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Who has it.
    pub owner: Owner,
    /// Of which process; -1 for an open file description.
    pub process: Pid,
    /// Whether nobody else may have a lock there.
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; `u64::MAX` for all there may be.
    pub last: u64,
}

impl Record {
    fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.last && other.start <= self.last
    }

    fn conflicts(&self, other: &Self) -> bool {
        self.owner != other.owner && self.overlaps(other) && (self.exclusive || other.exclusive)
    }
}

/// A lock of a whole file (`flock`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    /// Who has it.
    pub owner: Owner,
    /// Which process took it.
    pub process: Pid,
    /// Whether nobody else may have one.
    pub exclusive: bool,
}

/// Locks of one file.
#[derive(Default)]
pub struct FileLocks {
    state: Mutex<State>,
    pub(super) queue: WaitQueue,
    /// Those who are asked before others open it; there since the first of them.
    pub(super) leases: OnceLock<Box<Leases>>,
    /// Whether `/proc/locks` looks here.
    pub(super) listed: AtomicBool,
    /// Who writes or runs it, which keeps each other out as locks do.
    pub(super) writers: Writers,
}

#[derive(Default)]
struct State {
    records: Vec<Record>,
    whole: Vec<Whole>,
}

/// Who waits for whom: for EDEADLK.
static WAITING: LazyLock<Mutex<HashMap<Owner, Owner>>> = LazyLock::new(Mutex::default);

impl FileLocks {
    /// Whether anybody holds a lock or a lease.
    pub(crate) fn any(&self) -> bool {
        let state = lock(&self.state);
        !state.records.is_empty() || !state.whole.is_empty() || self.leased()
    }

    /// All that are held.
    pub(super) fn all(&self) -> (Vec<Record>, Vec<Whole>) {
        let state = lock(&self.state);
        (state.records.clone(), state.whole.clone())
    }

    /// Told when a lock goes.
    #[must_use]
    pub fn queue(&self) -> &WaitQueue {
        &self.queue
    }

    /// The first record that `wanted` would have to wait for (`F_GETLK`).
    #[must_use]
    pub fn conflict(&self, wanted: &Record) -> Option<Record> {
        lock(&self.state).records.iter().find(|record| record.conflicts(wanted)).copied()
    }

    /// Locks a range; what the owner has there already is replaced.
    ///
    /// # Errors
    /// EAGAIN where another has it; ENOLCK where there are too many.
    pub fn lock(&self, wanted: Record) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        if state.records.iter().any(|record| record.conflicts(&wanted)) {
            return Err(Errno::EAGAIN);
        }
        if state.records.len() >= RECORDS_MAX {
            return Err(Errno::ENOLCK);
        }
        let weaker = !wanted.exclusive;
        cut(&mut state.records, wanted.owner, wanted.start, wanted.last);
        insert(&mut state.records, wanted);
        drop(state);
        if weaker {
            self.queue.notify(Events::CHANGED);
        }
        Ok(())
    }

    /// Unlocks a range.
    ///
    /// # Errors
    /// ENOLCK where it would have to be cut in too many parts.
    pub fn unlock(&self, owner: Owner, start: u64, last: u64) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        if state.records.len() >= RECORDS_MAX {
            return Err(Errno::ENOLCK);
        }
        cut(&mut state.records, owner, start, last);
        drop(state);
        self.queue.notify(Events::CHANGED);
        Ok(())
    }

    /// Notes that the owner of `wanted` is going to wait, until [`waited`](Self::waited).
    ///
    /// # Errors
    /// EDEADLK where the one who has it waits, by however many others, for the owner.
    pub fn waiting(&self, wanted: &Record) -> Result<(), Errno> {
        let Some(holder) = self.conflict(wanted) else { return Ok(()) };
        if !matches!((wanted.owner, holder.owner), (Owner::Process(_), Owner::Process(_))) {
            return Ok(());
        }
        let mut waiting = lock(&WAITING);
        let mut at = holder.owner;
        for _ in 0..=waiting.len() {
            if at == wanted.owner {
                return Err(Errno::EDEADLK);
            }
            match waiting.get(&at) {
                Some(next) => at = *next,
                None => break,
            }
        }
        waiting.insert(wanted.owner, holder.owner);
        Ok(())
    }

    /// The wait is over.
    pub fn waited(owner: Owner) {
        lock(&WAITING).remove(&owner);
    }

    /// `flock`: the whole file for a description.
    ///
    /// # Errors
    /// EAGAIN where another has it. What the owner had is gone then, too.
    pub fn lock_whole(&self, wanted: Whole) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        let own = |lock: &Whole| lock.owner == wanted.owner;
        if state.whole.iter().any(|lock| own(lock) && lock.exclusive == wanted.exclusive) {
            return Ok(());
        }
        let before = state.whole.len();
        state.whole.retain(|lock| !own(lock));
        let converted = state.whole.len() != before;
        let taken = state.whole.iter().any(|other| wanted.exclusive || other.exclusive);
        if !taken {
            state.whole.push(wanted);
        }
        drop(state);
        if converted {
            self.queue.notify(Events::CHANGED);
        }
        if taken { Err(Errno::EAGAIN) } else { Ok(()) }
    }

    /// `flock(LOCK_UN)`.
    pub fn unlock_whole(&self, owner: Owner) {
        lock(&self.state).whole.retain(|lock| lock.owner != owner);
        self.queue.notify(Events::CHANGED);
    }

    /// All locks of an owner go.
    pub fn release(&self, owner: Owner) {
        let mut state = lock(&self.state);
        let before = state.records.len() + state.whole.len();
        state.records.retain(|record| record.owner != owner);
        state.whole.retain(|lock| lock.owner != owner);
        let gone = state.records.len() + state.whole.len() != before;
        drop(state);
        if gone {
            self.queue.notify(Events::CHANGED);
        }
    }
}

/// Takes a range out of an owner's records.
fn cut(records: &mut Vec<Record>, owner: Owner, start: u64, last: u64) {
    let mut right = Vec::new();
    records.retain_mut(|record| {
        if record.owner != owner || record.start > last || record.last < start {
            return true;
        }
        if record.last > last {
            right.push(Record { start: last.saturating_add(1), ..*record });
        }
        if record.start < start {
            record.last = start - 1;
            return true;
        }
        false
    });
    records.append(&mut right);
}

/// Puts a record in, joined with neighbours of the same kind.
fn insert(records: &mut Vec<Record>, mut new: Record) {
    records.retain(|record| {
        let alike = record.owner == new.owner && record.exclusive == new.exclusive;
        let touches =
            record.last.saturating_add(1) >= new.start && record.start <= new.last.saturating_add(1);
        if alike && touches {
            new.start = new.start.min(record.start);
            new.last = new.last.max(record.last);
        }
        !(alike && touches)
    });
    records.push(new);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(owner: u64, exclusive: bool, start: u64, last: u64) -> Record {
        Record { owner: Owner::Process(owner), process: 1, exclusive, start, last }
    }

    #[test]
    fn ranges_are_cut_and_joined() {
        let locks = FileLocks::default();
        assert_eq!(locks.lock(record(1, true, 0, 99)), Ok(()));
        assert_eq!(locks.lock(record(2, false, 50, 50)), Err(Errno::EAGAIN));
        assert_eq!(locks.unlock(Owner::Process(1), 40, 59), Ok(()));
        assert_eq!(locks.lock(record(2, false, 50, 50)), Ok(()));
        assert_eq!(locks.lock(record(3, false, 45, 55)), Ok(()));
        assert_eq!(locks.conflict(&record(4, false, 60, 60)), Some(record(1, true, 60, 99)));
        assert_eq!(locks.lock(record(1, true, 100, u64::MAX)), Ok(()));
        assert_eq!(locks.conflict(&record(4, false, 70, 70)), Some(record(1, true, 60, u64::MAX)));
        locks.release(Owner::Process(1));
        assert_eq!(locks.lock(record(4, true, 60, 99)), Ok(()));
    }

    #[test]
    fn two_that_wait_for_each_other_are_told() {
        let (one, two) = (FileLocks::default(), FileLocks::default());
        assert_eq!(one.lock(record(901, true, 0, 9)), Ok(()));
        assert_eq!(two.lock(record(902, true, 0, 9)), Ok(()));
        assert_eq!(two.waiting(&record(901, true, 0, 9)), Ok(()));
        assert_eq!(one.waiting(&record(902, true, 0, 9)), Err(Errno::EDEADLK));
        FileLocks::waited(Owner::Process(901));
        assert_eq!(one.waiting(&record(902, true, 0, 9)), Ok(()));
        FileLocks::waited(Owner::Process(902));
    }

    #[test]
    fn whole_files() {
        let locks = FileLocks::default();
        let (one, two) = (Owner::Description(1), Owner::Description(2));
        let lock = |owner, exclusive| locks.lock_whole(Whole { owner, process: 1, exclusive });
        assert_eq!(lock(one, false), Ok(()));
        assert_eq!(lock(two, false), Ok(()));
        assert_eq!(lock(two, true), Err(Errno::EAGAIN));
        assert_eq!(lock(one, true), Ok(()));
        locks.unlock_whole(one);
        assert_eq!(lock(two, true), Ok(()));
    }
}
