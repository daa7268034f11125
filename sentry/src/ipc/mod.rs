//! System V IPC (`man 7 sysvipc`; `ipc/util.c`): semaphores, messages, shared memory; and POSIX message queues.
//!
//! **Locks**: the table of a kind, then an object's state; both are leaves towards all other rooms.

mod messages;
mod posix;
mod semaphores;
mod shared_memory;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

pub use messages::{MESSAGE_MAX, Queue, Select};
pub use posix::{MessageFile, MessageQueue, Names, PRIORITY_MAX, Size};
pub use semaphores::{Operation, Outcome, SemaphoreSet, apply};
pub use shared_memory::Segment;

use crate::error::Errno;
use crate::task::namespaces::INVALID;
use crate::task::{Credentials, Pid, current, lock};

/// Most objects of each kind (`SEMMNI`, `MSGMNI`; `SHMMNI` is 4096).
pub const OBJECTS_MAX: usize = 4096;
/// An object's number is its index and, times this, how often numbers were given out (`IPCMNI`).
const INDEXES: i32 = 32_768;
/// `CAP_IPC_OWNER`.
const CAP_IPC_OWNER: u32 = 15;

/// Whether a capability is in force in the namespace of whoever asks.
fn capable(who: &Credentials, capability: u32) -> bool {
    match current() {
        Some(task) => who.capable_in(task.namespaces().ipc.owner(), capability),
        None => who.capable(capability),
    }
}

/// A process as whoever asks sees it.
fn shown(process: Pid) -> Pid {
    current().map_or(process, |task| if process == 0 { 0 } else { task.shown(process) })
}

/// Who may do what with an object (`struct ipc_perm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    /// What it is found by; 0 for none.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Who made it.
    pub creator_uid: u32,
    /// Its group.
    pub creator_gid: u32,
    /// Permissions, and above them what is true of a segment.
    pub mode: u32,
}

impl Permissions {
    /// Of a new object.
    #[must_use]
    pub fn new(key: i32, who: &Credentials, flags: i32) -> Self {
        let mode = flags.cast_unsigned() & 0o777;
        Self { key, uid: who.euid, gid: who.egid, creator_uid: who.euid, creator_gid: who.egid, mode }
    }

    /// Whether `who` may do this, bits as those of a mode (`ipcperms`).
    ///
    /// # Errors
    /// EACCES.
    pub fn check(&self, who: &Credentials, wanted: u32) -> Result<(), Errno> {
        let wanted = (wanted >> 6 | wanted >> 3 | wanted) & 7;
        let in_group = |gid: u32| who.egid == gid || who.groups.contains(&gid);
        let granted = if who.euid == self.uid || who.euid == self.creator_uid {
            self.mode >> 6
        } else if in_group(self.gid) || in_group(self.creator_gid) {
            self.mode >> 3
        } else {
            self.mode
        };
        if wanted & !granted & 7 == 0 || capable(who, CAP_IPC_OWNER) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Whether `who` may change or remove it.
    ///
    /// # Errors
    /// EPERM.
    pub fn check_owner(&self, who: &Credentials) -> Result<(), Errno> {
        let owner = who.euid == self.uid || who.euid == self.creator_uid;
        let privileged = capable(who, crate::task::capability::SYS_ADMIN);
        if owner || privileged { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// As `struct ipc64_perm`.
    #[must_use]
    pub fn to_bytes(&self, id: i32) -> [u8; 48] {
        let mut bytes = [0; 48];
        let users = current().map(|task| Arc::clone(&task.credentials().user_ns));
        let uid = |uid: u32| users.as_ref().map_or(uid, |users| users.shown_uid(uid));
        let gid = |gid: u32| users.as_ref().map_or(gid, |users| users.shown_gid(gid));
        let fields = [
            self.key.cast_unsigned(),
            uid(self.uid),
            gid(self.gid),
            uid(self.creator_uid),
            gid(self.creator_gid),
            self.mode,
            (id / INDEXES).cast_unsigned() & 0xffff,
        ];
        for (place, field) in bytes.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// Takes owner, group and mode out of `struct ipc64_perm` (`IPC_SET`).
    ///
    /// # Errors
    /// EINVAL for users and groups that whoever asks has no numbers for.
    pub fn set(&mut self, bytes: &[u8; 48]) -> Result<(), Errno> {
        let word = |at: usize| {
            let mut four = [0; 4];
            four.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(four)
        };
        let users = current().map(|task| Arc::clone(&task.credentials().user_ns));
        let (uid, gid) = match users {
            Some(users) => (users.uid(word(4)), users.gid(word(8))),
            None => (word(4), word(8)),
        };
        if uid == INVALID || gid == INVALID {
            return Err(Errno::EINVAL);
        }
        (self.uid, self.gid) = (uid, gid);
        self.mode = self.mode & !0o777 | word(20) & 0o777;
        Ok(())
    }
}

/// What is found by a key or a number.
pub trait Object {
    /// Who may do what with it.
    fn permissions(&self) -> Permissions;
}

/// Objects of one kind.
pub struct Table<T> {
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    objects: BTreeMap<i32, Arc<T>>,
    sequence: i32,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { inner: Mutex::new(Inner { objects: BTreeMap::new(), sequence: 0 }) }
    }
}

/// Of which kind nothing is said: only `key` counts.
const PRIVATE: i32 = 0;

impl<T: Object> Table<T> {
    /// Finds by key or makes (`ipcget`); the number.
    ///
    /// # Errors
    /// ENOENT, EEXIST, EACCES, ENOSPC; what `fits` says of one that is there, and `make` of a new one.
    pub fn get(
        &self,
        (key, flags): (i32, i32),
        who: &Credentials,
        fits: impl Fn(&T) -> Result<(), Errno>,
        make: impl FnOnce(Permissions) -> Result<T, Errno>,
    ) -> Result<i32, Errno> {
        let mut inner = lock(&self.inner);
        if key != PRIVATE {
            let found = inner.objects.iter().find(|(_, object)| object.permissions().key == key);
            if let Some((id, object)) = found {
                if flags & libc::IPC_CREAT != 0 && flags & libc::IPC_EXCL != 0 {
                    return Err(Errno::EEXIST);
                }
                fits(object)?;
                object.permissions().check(who, flags.cast_unsigned() & 0o777)?;
                return Ok(*id);
            }
            if flags & libc::IPC_CREAT == 0 {
                return Err(Errno::ENOENT);
            }
        }
        if inner.objects.len() >= OBJECTS_MAX {
            return Err(Errno::ENOSPC);
        }
        let object = make(Permissions::new(key, who, flags))?;
        let taken = |index: i32| inner.objects.keys().any(|id| id % INDEXES == index);
        let index = (0..INDEXES).find(|index| !taken(*index)).ok_or(Errno::ENOSPC)?;
        let id = inner.sequence.saturating_mul(INDEXES).saturating_add(index);
        inner.sequence = (inner.sequence + 1) % (i32::MAX / INDEXES);
        inner.objects.insert(id, Arc::new(object));
        Ok(id)
    }

    /// The object of a number.
    ///
    /// # Errors
    /// EINVAL.
    pub fn find(&self, id: i32) -> Result<Arc<T>, Errno> {
        lock(&self.inner).objects.get(&id).cloned().ok_or(Errno::EINVAL)
    }

    /// The object of an index, with its number (`SEM_STAT` and the like).
    ///
    /// # Errors
    /// EINVAL.
    pub fn at(&self, index: i32) -> Result<(i32, Arc<T>), Errno> {
        let inner = lock(&self.inner);
        let found = inner.objects.iter().find(|(id, _)| **id % INDEXES == index);
        found.map(|(id, object)| (*id, Arc::clone(object))).ok_or(Errno::EINVAL)
    }

    /// Takes one away.
    ///
    /// # Errors
    /// EINVAL.
    pub fn remove(&self, id: i32) -> Result<Arc<T>, Errno> {
        lock(&self.inner).objects.remove(&id).ok_or(Errno::EINVAL)
    }

    /// Takes all away that `gone` says.
    pub fn purge(&self, gone: impl Fn(&T) -> bool) {
        let mut inner = lock(&self.inner);
        let ids: Vec<i32> =
            inner.objects.iter().filter(|(_, object)| gone(object)).map(|(id, _)| *id).collect();
        let taken: Vec<_> = ids.iter().filter_map(|id| inner.objects.remove(id)).collect();
        drop(inner);
        drop(taken);
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<T>> {
        lock(&self.inner).objects.values().cloned().collect()
    }

    /// The highest index in use (what `IPC_INFO` gives), 0 also for none.
    #[must_use]
    pub fn highest(&self) -> u64 {
        let highest = lock(&self.inner).objects.keys().map(|id| id % INDEXES).max();
        u64::from(highest.unwrap_or(0).unsigned_abs())
    }
}

/// Everything of a sandbox.
#[derive(Default)]
pub struct Ipc {
    /// Sets of semaphores.
    pub semaphores: Table<SemaphoreSet>,
    /// Queues of messages.
    pub messages: Table<Queue>,
    /// Segments of memory.
    pub memory: Table<Segment>,
    /// POSIX message queues.
    pub names: Names,
}

impl Ipc {
    /// Whether there is any object.
    pub(crate) fn any(&self) -> bool {
        !self.semaphores.all().is_empty()
            || !self.messages.all().is_empty()
            || !self.memory.all().is_empty()
            || self.names.any()
    }

    /// A process ended: what it did with `SEM_UNDO` is undone.
    pub fn process_ended(&self, process: Pid) {
        for set in self.semaphores.all() {
            set.undo(process);
        }
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
