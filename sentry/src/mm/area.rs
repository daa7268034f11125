//! One area of an address space, and what is behind it.

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bitflags::bitflags;

use crate::error::Errno;

bitflags! {
    /// `PROT_*` of `mmap` and `mprotect`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Protection: u32 {
        /// Can be read.
        const READ = 1;
        /// Can be written.
        const WRITE = 2;
        /// Can be run.
        const EXEC = 4;
    }

    /// What else is true of an area (`VM_*` in `include/linux/mm.h`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct AreaFlags: u32 {
        /// Writes are seen by all who map it.
        const SHARED = 1;
        /// Grows towards lower addresses when it is touched below.
        const GROWS_DOWN = 1 << 1;
        /// `mlock`.
        const LOCKED = 1 << 2;
        /// `MADV_DONTFORK`: a child does not have it.
        const DONT_FORK = 1 << 3;
        /// `MADV_WIPEONFORK`: a child finds zeros.
        const WIPE_ON_FORK = 1 << 4;
        /// `MAP_NORESERVE`.
        const NO_RESERVE = 1 << 5;
        /// `MADV_DONTDUMP`.
        const DONT_DUMP = 1 << 6;
        /// `mprotect` must not make it readable: what it maps was not opened for that.
        const NEVER_READ = 1 << 7;
        /// `mprotect` must not make it writable.
        const NEVER_WRITE = 1 << 8;
        /// `mprotect` must not make it executable (`MS_NOEXEC`).
        const NEVER_EXEC = 1 << 9;
        /// The stack of the first thread: mapped whole at its limit, so it is not populated.
        const MAIN_STACK = 1 << 10;
    }
}

/// Which file a mapping shows, as `/proc/PID/maps` tells it and as futexes find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileIdentity {
    /// Major number of its device.
    pub major: u32,
    /// Minor number of its device.
    pub minor: u32,
    /// Its inode.
    pub inode: u64,
}

/// An open file that can be mapped; the file room implements it for its descriptions.
pub trait MappedFile: Send + Sync {
    /// The host file that holds its bytes, and where in it they begin. The host file's own rights are the upper bound of what a guest
    /// can do with the mapping.
    ///
    /// # Errors
    /// ENODEV for what cannot be mapped.
    fn host_file(&self) -> Result<(Arc<OwnedFd>, u64), Errno>;

    /// Its path as seen from the root, for `/proc/PID/maps`.
    fn name(&self) -> Vec<u8>;

    /// Its name, where it has one (`/proc/PID/exe`).
    fn place(&self) -> Option<crate::vfs::Place> {
        None
    }

    /// The open file behind it, where it is one.
    fn open_file(&self) -> Option<Arc<crate::vfs::OpenFile>> {
        None
    }

    /// Which file it is.
    fn identity(&self) -> FileIdentity;

    /// Whether it was opened for reading.
    fn readable(&self) -> bool;

    /// Whether it was opened for writing and may be mapped so (seals, append-only files).
    fn writable(&self) -> bool;

    /// Whether its mount lets programs run (`MS_NOEXEC`).
    fn executable(&self) -> bool;

    /// Which part of the vDSO it is, where it is one: no file that a program could open.
    fn vdso_part(&self) -> Option<VdsoPart> {
        None
    }
}

/// A part of the vDSO ([`crate::loader::vdso`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum VdsoPart {
    /// `[vvar]`.
    Data,
    /// `[vdso]`.
    Image,
}

/// Where the bytes of an area come from.
#[derive(Clone)]
pub enum Backing {
    /// Memory of its own.
    Anonymous,
    /// Memory that was shared when it was made, with all that `fork` made since.
    SharedAnonymous {
        /// Which.
        id: u64,
        /// Where in it the area begins.
        offset: u64,
    },
    /// A file.
    File {
        /// Which.
        file: Arc<dyn MappedFile>,
        /// Where in it the area begins.
        offset: u64,
    },
    /// Something of the kernel's, by its name in `/proc/PID/maps`.
    Special(&'static str),
}

impl Backing {
    /// What is behind the byte that lies `distance` further.
    #[must_use]
    pub fn advanced(&self, distance: u64) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::SharedAnonymous { id, offset } => {
                Self::SharedAnonymous { id: *id, offset: offset.saturating_add(distance) }
            }
            Self::File { file, offset } => {
                Self::File { file: Arc::clone(file), offset: offset.saturating_add(distance) }
            }
            Self::Special(name) => Self::Special(name),
        }
    }

    /// Whether `next` goes on where `length` bytes of this end.
    #[must_use]
    pub fn continues(&self, length: u64, next: &Self) -> bool {
        match (self, next) {
            (Self::Anonymous, Self::Anonymous) => true,
            (Self::SharedAnonymous { id, offset }, Self::SharedAnonymous { id: other, offset: follows }) => {
                id == other && offset.checked_add(length) == Some(*follows)
            }
            (Self::File { file, offset }, Self::File { file: other, offset: follows }) => {
                Arc::ptr_eq(file, other) && offset.checked_add(length) == Some(*follows)
            }
            _ => false,
        }
    }

    /// Where in its file it begins; 0 for what has none.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match self {
            Self::SharedAnonymous { offset, .. } | Self::File { offset, .. } => *offset,
            Self::Anonymous | Self::Special(_) => 0,
        }
    }
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::SharedAnonymous { id, offset } => write!(f, "shared {id}+{offset:#x}"),
            Self::File { file, offset } => {
                write!(f, "{}+{offset:#x}", String::from_utf8_lossy(&file.name()))
            }
            Self::Special(name) => f.write_str(name),
        }
    }
}

/// A range of pages that are alike.
#[derive(Debug, Clone)]
pub struct Area {
    /// First byte.
    pub start: u64,
    /// First byte behind.
    pub end: u64,
    /// What guest code can do there.
    pub protection: Protection,
    /// What else is true of it.
    pub flags: AreaFlags,
    /// Where its bytes come from.
    pub backing: Backing,
}

impl Area {
    /// How many bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.end - self.start
    }

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Whether it is code that nobody writes: not shared, and not writable.
    #[must_use]
    pub fn is_private_code(&self) -> bool {
        self.protection.contains(Protection::EXEC)
            && !self.protection.contains(Protection::WRITE)
            && !self.flags.contains(AreaFlags::SHARED)
    }

    /// Whether `next` lies right behind and is alike.
    #[must_use]
    pub fn merges_with(&self, next: &Self) -> bool {
        self.end == next.start
            && self.protection == next.protection
            && self.flags == next.flags
            && self.backing.continues(self.length(), &next.backing)
    }

    /// The part within `range`, which must touch it.
    #[must_use]
    pub fn part(&self, range: &Range<u64>) -> Self {
        let start = self.start.max(range.start);
        let end = self.end.min(range.end);
        Self { start, end, backing: self.backing.advanced(start - self.start), ..self.clone() }
    }

    /// Whether it counts as data for `RLIMIT_DATA` (`is_data_mapping` in `mm/internal.h`).
    #[must_use]
    pub fn is_data(&self) -> bool {
        self.protection.contains(Protection::WRITE)
            && !self.flags.intersects(AreaFlags::SHARED | AreaFlags::GROWS_DOWN | AreaFlags::MAIN_STACK)
    }

    /// Whether `protection` is more than what it maps was opened for.
    #[must_use]
    pub fn forbids(&self, protection: Protection) -> bool {
        (protection.contains(Protection::READ) && self.flags.contains(AreaFlags::NEVER_READ))
            || (protection.contains(Protection::WRITE) && self.flags.contains(AreaFlags::NEVER_WRITE))
            || (protection.contains(Protection::EXEC) && self.flags.contains(AreaFlags::NEVER_EXEC))
    }
}
