//! Segments of shared memory (`man 2 shmget`; `ipc/shm.c`): each is a memfd of the host.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Object, Permissions, now};
use crate::error::Errno;
use crate::mm::{FileIdentity, MappedFile};
use crate::task::{Pid, lock};

/// `SHM_DEST`: gone with the last mapping.
const DEST: u32 = 0o1000;
/// Largest segment.
const SIZE_MAX: u64 = 1 << 46;

/// A segment.
pub struct Segment {
    size: u64,
    file: Arc<OwnedFd>,
    state: Mutex<State>,
}

struct State {
    permissions: Permissions,
    attachments: Vec<Weak<Attachment>>,
    attached: i64,
    detached: i64,
    changed: i64,
    creator: Pid,
    last: Pid,
}

/// A segment as one `shmat` mapped it.
pub struct Attachment {
    file: Arc<OwnedFd>,
    key: i32,
    writable: bool,
}

impl MappedFile for Attachment {
    fn host_file(&self) -> Result<(Arc<OwnedFd>, u64), Errno> {
        Ok((Arc::clone(&self.file), 0))
    }

    fn name(&self) -> Vec<u8> {
        format!("/SYSV{:08x}", self.key).into_bytes()
    }

    fn identity(&self) -> FileIdentity {
        FileIdentity { major: 0, minor: 1, inode: 0 }
    }

    fn readable(&self) -> bool {
        true
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn executable(&self) -> bool {
        true
    }
}

impl Object for Segment {
    fn permissions(&self) -> Permissions {
        lock(&self.state).permissions
    }
}

impl Segment {
    /// Of so many bytes, all 0.
    ///
    /// # Errors
    /// EINVAL for none or too many; of the host.
    pub fn new(permissions: Permissions, size: u64, creator: Pid) -> Result<Self, Errno> {
        if size == 0 || size > SIZE_MAX {
            return Err(Errno::EINVAL);
        }
        let file = memfd_create(c"sentry-shm", MFdFlags::MFD_CLOEXEC)?;
        let pages = size.checked_next_multiple_of(4096).ok_or(Errno::EINVAL)?;
        nix::unistd::ftruncate(&file, i64::try_from(pages).map_err(|_| Errno::EINVAL)?)?;
        let state = State {
            permissions,
            attachments: Vec::new(),
            attached: 0,
            detached: 0,
            changed: now(),
            creator,
            last: 0,
        };
        Ok(Self { size, file: Arc::new(file), state: Mutex::new(state) })
    }

    /// Its bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What a further `shmat` maps.
    #[must_use]
    pub fn attach(&self, process: Pid, writable: bool) -> Arc<Attachment> {
        let mut state = lock(&self.state);
        let key = state.permissions.key;
        let attachment = Arc::new(Attachment { file: Arc::clone(&self.file), key, writable });
        state.attachments.retain(|attachment| attachment.strong_count() > 0);
        state.attachments.push(Arc::downgrade(&attachment));
        (state.attached, state.last) = (now(), process);
        attachment
    }

    /// Whether a mapping is one of this segment.
    #[must_use]
    pub fn has(&self, file: &Arc<dyn MappedFile>) -> bool {
        let file = Arc::as_ptr(file).cast::<()>();
        lock(&self.state).attachments.iter().any(|attachment| attachment.as_ptr().cast::<()>() == file)
    }

    /// A mapping of it went.
    pub fn detached(&self, process: Pid) {
        let mut state = lock(&self.state);
        (state.detached, state.last) = (now(), process);
    }

    /// Says that it goes with its last mapping.
    pub fn condemn(&self) {
        let mut state = lock(&self.state);
        state.permissions.mode |= DEST;
        state.permissions.key = 0;
    }

    /// Whether it is to go, and nobody maps it.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let state = lock(&self.state);
        state.permissions.mode & DEST != 0 && state.mapped() == 0
    }

    /// Changes owner and mode.
    ///
    /// # Errors
    /// What `change` says.
    pub fn change(&self, change: impl FnOnce(&mut Permissions) -> Result<(), Errno>) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        change(&mut state.permissions)?;
        state.changed = now();
        Ok(())
    }

    /// As `struct shmid64_ds`.
    #[must_use]
    pub fn to_bytes(&self, id: i32) -> [u8; 112] {
        let state = lock(&self.state);
        let mut bytes = [0; 112];
        bytes[..48].copy_from_slice(&state.permissions.to_bytes(id));
        let times = [state.attached, state.detached, state.changed].map(i64::cast_unsigned);
        let words = std::iter::once(self.size).chain(times).flat_map(u64::to_le_bytes);
        let pids = [state.creator, state.last].map(super::shown).into_iter().flat_map(i32::to_le_bytes);
        let rest = words.chain(pids).chain(state.mapped().to_le_bytes());
        for (place, byte) in bytes.iter_mut().skip(48).zip(rest) {
            *place = byte;
        }
        bytes
    }
}

impl State {
    /// Areas that map it: each holds its attachment once.
    fn mapped(&self) -> u64 {
        self.attachments.iter().fold(0, |sum, attachment| sum + attachment.strong_count() as u64)
    }
}
