//! Futexes: who waits for a word of the guest's memory (`kernel/futex/`, `man 2 futex`).
//!
//! A [`Table`] has buckets, found by a hash of the [`Key`] with a seed that guests do not know. Whoever waits looks at the word with its
//! bucket locked and puts itself in before that lock goes; whoever wakes changed the word before it takes the lock: no wake-up is lost.
//! Guest words are read by [`Memory::read`](crate::platform::Memory::read) of four aligned bytes and written by
//! [`Thread::compare_exchange`] alone.
//!
//! **Locks.** Two buckets are taken in the order of their numbers; the state of an entry is locked under its bucket. Under a bucket's
//! lock guest memory is read, nothing is waited for, and loops are bounded, as guests can change a word for ever.
//!
//! There are no priorities to inherit: of the calls with `PI` the protocol is kept (owner in the word, handing over in order of arrival,
//! what happens when an owner dies).

mod key;
mod operation;
mod priority;
mod requeue;
mod robust;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher as _, RandomState};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub use key::Key;
pub use operation::Operation;
pub use requeue::Compare;
pub use robust::{HEAD_BYTES, exit_robust_list};

use super::AddressSpace;
use crate::call::Unready;
use crate::error::Errno;
use crate::events::{Held, Waiter, hold_back};
use crate::platform::Thread;
use crate::task::Pid;

/// Bits of a lock's word that hold its owner (`FUTEX_TID_MASK`).
pub const TID_MASK: u32 = 0x3fff_ffff;
/// `FUTEX_WAITERS`: the kernel is to be asked when the lock is given back.
pub const WAITERS: u32 = 0x8000_0000;
/// `FUTEX_OWNER_DIED`.
pub const OWNER_DIED: u32 = 0x4000_0000;
/// Any bit (`FUTEX_BITSET_MATCH_ANY`).
pub const ANY: u32 = u32::MAX;

/// Buckets of a table.
const BUCKETS: usize = 256;
/// How often an exchange is tried again while guest code changes the word.
const TRIES: usize = 1000;

/// How the caller sleeps.
pub struct Sleeper<'a> {
    /// Its task, as words of memory name it.
    pub task: Pid,
    /// Whose name that is: number of a namespace of processes.
    pub space: u64,
    /// What wakes it.
    pub waiter: &'a Arc<Waiter>,
    /// Whether a signal is to be delivered.
    pub interrupted: &'a dyn Fn() -> bool,
    /// When it gives up.
    pub deadline: Option<Instant>,
}

/// Why a wait ended without a wake-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The call cannot be carried out.
    Errno(Errno),
    /// A signal or the deadline.
    Unready(Unready),
}

impl From<Errno> for Ended {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// To be woken.
    Plain,
    /// A lock, which this task has, as this namespace names it.
    Lock { owner: Pid, space: u64 },
    /// To be moved to the lock of this key (`FUTEX_WAIT_REQUEUE_PI`).
    BeforeLock { lock: Key },
}

/// What has become of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Waiting,
    /// Woken; of a lock: it is the waiter's, and its word says so.
    Woken,
    /// The lock is the waiter's as its owner died; the word is still to be written.
    OwnerDied,
}

#[derive(Debug, Clone, Copy)]
struct State {
    key: Key,
    kind: Kind,
    outcome: Outcome,
}

/// One who waits.
struct Entry {
    task: Pid,
    space: u64,
    waiter: Arc<Waiter>,
    bitset: u32,
    state: Mutex<State>,
}

impl Entry {
    fn new(sleeper: &Sleeper<'_>, key: Key, kind: Kind, bitset: u32) -> Arc<Self> {
        let state = Mutex::new(State { key, kind, outcome: Outcome::Waiting });
        let (task, space) = (sleeper.task, sleeper.space);
        Arc::new(Self { task, space, waiter: Arc::clone(sleeper.waiter), bitset, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the wait. Whoever calls it takes the entry out of its bucket.
    fn end(&self, outcome: Outcome) {
        self.state().outcome = outcome;
        self.waiter.set();
    }
}

type Bucket = Vec<Arc<Entry>>;

/// Wakes `count` who wait at an address of this address space (`CLONE_CHILD_CLEARTID`).
pub fn wake_at(space: &AddressSpace, address: u64, count: usize) {
    // As Linux does it: whoever waits with the private flag does not hear it.
    if let Ok(key) = Key::of(space, address, false) {
        let _ = space.futexes().wake(key, count, ANY);
    }
}

/// All futexes of a sandbox.
pub struct Table {
    buckets: Vec<Mutex<Bucket>>,
    seed: RandomState,
    /// How many wait for locks: where nobody does, nobody has to look when a task ends.
    lock_waiters: AtomicUsize,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            buckets: std::iter::repeat_with(Mutex::default).take(BUCKETS).collect(),
            seed: RandomState::new(),
            lock_waiters: AtomicUsize::new(0),
        }
    }
}

/// The word at `address`. The host's kernel reads it: a bucket is locked, and the guest's own thread may have to wait for a processor.
fn word(thread: &dyn Thread, address: u64) -> Result<u32, Errno> {
    let mut bytes = [0; 4];
    if thread.remote().read(address, &mut bytes) == bytes.len() {
        Ok(u32::from_le_bytes(bytes))
    } else {
        Err(Errno::EFAULT)
    }
}

/// Writes what `change` makes of the word at `address`; what was there. `change` may refuse.
fn exchange(
    thread: &mut dyn Thread,
    address: u64,
    mut change: impl FnMut(u32) -> Result<u32, Errno>,
) -> Result<u32, Errno> {
    let mut seen = word(thread, address)?;
    for _ in 0..TRIES {
        let new = change(seen)?;
        let found = thread.compare_exchange(address, seen, new)?;
        if found == seen {
            return Ok(seen);
        }
        seen = found;
    }
    Err(Errno::EAGAIN)
}

impl Table {
    /// `FUTEX_WAIT_BITSET`: sleeps while the word holds `value` and until a wake-up whose bits touch `bitset`. The key becomes the one that it waited
    /// for at last ([`requeue`](Self::requeue)).
    ///
    /// # Errors
    /// EAGAIN (another value), EFAULT, EINVAL (no bits); a signal, the deadline.
    pub fn wait(
        &self,
        thread: &dyn Thread,
        sleeper: &Sleeper<'_>,
        (key, address): (&mut Key, u64),
        value: u32,
        bitset: u32,
    ) -> Result<(), Ended> {
        if bitset == 0 {
            return Err(Errno::EINVAL.into());
        }
        let entry = self.queue_if(thread, sleeper, (*key, address), value, (Kind::Plain, bitset))?;
        let slept = self.sleep(std::slice::from_ref(&entry), sleeper);
        *key = entry.state().key;
        slept.map(|_| ()).map_err(Ended::Unready)
    }

    /// `futex_waitv`: sleeps on several words; which was woken. Each has a key, an address and the value that it is to hold. Keys
    /// become those that it waited for at last.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_any(
        &self,
        thread: &dyn Thread,
        sleeper: &Sleeper<'_>,
        keys: &mut [Key],
        words: &[(u64, u32)],
    ) -> Result<usize, Ended> {
        let mut entries = Vec::with_capacity(words.len());
        let mut refused = None;
        for (key, (address, value)) in keys.iter().zip(words) {
            match self.queue_if(thread, sleeper, (*key, *address), *value, (Kind::Plain, ANY)) {
                Ok(entry) => entries.push(entry),
                Err(errno) => {
                    refused = Some(errno);
                    break;
                }
            }
        }
        let result = match refused {
            // One that is there already may have been woken: that wake-up counts.
            Some(errno) => self.leave(&entries).ok_or(Ended::Errno(errno)),
            None => self.sleep(&entries, sleeper).map_err(Ended::Unready),
        };
        keys.iter_mut().zip(&entries).for_each(|(key, entry)| *key = entry.state().key);
        result
    }

    /// `FUTEX_WAKE_BITSET`: wakes at most `count` whose bits touch `bitset`. How many.
    ///
    /// # Errors
    /// EINVAL: no bits, or somebody waits for a lock there.
    pub fn wake(&self, key: Key, count: usize, bitset: u32) -> Result<usize, Errno> {
        if bitset == 0 {
            return Err(Errno::EINVAL);
        }
        wake_in(&mut self.bucket(key), key, count, bitset)
    }

    /// `FUTEX_WAKE_OP`: changes the word of `second` as `operation` says; wakes `count` at `first`, and `more` at `second` where the old
    /// value passes the operation's comparison. How many at both, `None` where it does not pass.
    ///
    /// # Errors
    /// EFAULT, EINVAL; EAGAIN where guest code changes the word all the time.
    pub fn wake_op(
        &self,
        thread: &mut dyn Thread,
        first: Key,
        (second, address): (Key, u64),
        (count, more): (usize, usize),
        operation: Operation,
    ) -> Result<(usize, Option<usize>), Errno> {
        let mut pair = self.two(first, second);
        let old = exchange(thread, address, |old| Ok(operation.apply(old)))?;
        let woken = wake_in(pair.first(), first, count, ANY)?;
        let passes = operation.compare(old);
        let also = passes.then(|| wake_in(pair.second(), second, more, ANY)).transpose()?;
        Ok((woken, also))
    }

    /// Puts an entry in where the word holds `value`.
    fn queue_if(
        &self,
        thread: &dyn Thread,
        sleeper: &Sleeper<'_>,
        (key, address): (Key, u64),
        value: u32,
        (kind, bitset): (Kind, u32),
    ) -> Result<Arc<Entry>, Errno> {
        let mut bucket = self.bucket(key);
        if word(thread, address)? != value {
            return Err(Errno::EAGAIN);
        }
        let entry = Entry::new(sleeper, key, kind, bitset);
        bucket.push(Arc::clone(&entry));
        Ok(entry)
    }

    /// Sleeps until one of `entries` is woken: which. None of them is in a bucket afterwards.
    fn sleep(&self, entries: &[Arc<Entry>], sleeper: &Sleeper<'_>) -> Result<usize, Unready> {
        let woken = || entries.iter().any(|entry| entry.state().outcome != Outcome::Waiting);
        let unready = loop {
            sleeper.waiter.clear();
            if woken() || (sleeper.interrupted)() {
                break Unready::Interrupted;
            }
            if !sleeper.waiter.wait(sleeper.deadline) {
                break Unready::TimedOut;
            }
        };
        // A wake-up that came with the signal or the deadline is not given away.
        self.leave(entries).ok_or(unready)
    }

    /// Takes entries out of their buckets; the first that had been woken.
    fn leave(&self, entries: &[Arc<Entry>]) -> Option<usize> {
        let mut woken = None;
        for (index, entry) in entries.iter().enumerate() {
            if !self.take_out(entry) && woken.is_none() {
                woken = Some(index);
            }
        }
        woken
    }

    /// Takes an entry out of its bucket, wherever it was moved to; `false` where it was woken before.
    fn take_out(&self, entry: &Arc<Entry>) -> bool {
        loop {
            let key = entry.state().key;
            let mut bucket = self.bucket(key);
            let state = *entry.state();
            if state.outcome != Outcome::Waiting {
                return false;
            }
            if state.key == key {
                bucket.retain(|other| !Arc::ptr_eq(other, entry));
                return true;
            }
        }
    }

    fn index(&self, key: Key) -> usize {
        (self.seed.hash_one(key) % BUCKETS as u64) as usize
    }

    fn bucket(&self, key: Key) -> Locked<'_> {
        self.lock_index(self.index(key))
    }

    fn lock_index(&self, index: usize) -> Locked<'_> {
        let later = hold_back();
        let bucket = self.buckets[index].lock().unwrap_or_else(PoisonError::into_inner);
        Locked { bucket, _later: later }
    }

    /// The buckets of two keys, which may be one.
    fn two(&self, first: Key, second: Key) -> Pair<'_> {
        let (first, second) = (self.index(first), self.index(second));
        let later = hold_back();
        let low = self.lock_index(first.min(second));
        let high = (first != second).then(|| self.lock_index(first.max(second)));
        Pair { low, high, first_is_low: first <= second, _later: later }
    }

    /// How many wait now; for tests and for whoever wants to know.
    #[must_use]
    pub fn waiting(&self) -> usize {
        (0..BUCKETS).map(|index| self.lock_index(index).len()).sum()
    }

    fn add_lock_waiters(&self, count: usize) {
        self.lock_waiters.fetch_add(count, Ordering::SeqCst);
    }

    fn remove_lock_waiter(&self) {
        self.lock_waiters.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A bucket that is locked. Who is woken meanwhile, is when it no more is.
struct Locked<'a> {
    bucket: MutexGuard<'a, Bucket>,
    _later: Held,
}

impl Deref for Locked<'_> {
    type Target = Bucket;

    fn deref(&self) -> &Bucket {
        &self.bucket
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Bucket {
        &mut self.bucket
    }
}

/// Two buckets that are locked.
struct Pair<'a> {
    low: Locked<'a>,
    high: Option<Locked<'a>>,
    first_is_low: bool,
    _later: Held,
}

impl Pair<'_> {
    fn first(&mut self) -> &mut Bucket {
        match &mut self.high {
            Some(high) if !self.first_is_low => high,
            _ => &mut self.low,
        }
    }

    fn second(&mut self) -> &mut Bucket {
        match &mut self.high {
            Some(high) if self.first_is_low => high,
            _ => &mut self.low,
        }
    }
}

/// Wakes within one bucket.
fn wake_in(bucket: &mut Bucket, key: Key, count: usize, bitset: u32) -> Result<usize, Errno> {
    let mut woken = 0;
    let mut wrong = false;
    bucket.retain(|entry| {
        let state = *entry.state();
        if wrong || woken == count || state.key != key {
            return true;
        }
        if state.kind != Kind::Plain {
            wrong = true;
            return true;
        }
        if entry.bitset & bitset == 0 {
            return true;
        }
        entry.end(Outcome::Woken);
        woken += 1;
        false
    });
    if wrong { Err(Errno::EINVAL) } else { Ok(woken) }
}
