//! The gofer's calls to the host. Each names a file by a descriptor and single names below it, or by a descriptor alone: no link is ever
//! followed but those of `/proc/self/fd`, whose names are numbers that the gofer makes itself.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

use super::handles::Held;
use crate::error::Errno;
use crate::vfs::{Attributes, FileKind, Timestamp, device};

/// Where descriptors of this process have names.
pub(super) struct Descriptors {
    folder: OwnedFd,
    /// What their paths begin with, for calls that take paths only: nothing where the folder is the working folder.
    prefix: &'static str,
}

impl Descriptors {
    /// `folder` is `/proc/self/fd` and the working folder.
    pub(super) fn here(folder: OwnedFd) -> Self {
        Self { folder, prefix: "" }
    }

    /// For a process that has its root still.
    pub(super) fn of_proc() -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = nix::fcntl::open(c"/proc/self/fd", flags, Mode::empty())?;
        Ok(Self { folder, prefix: "/proc/self/fd/" })
    }

    /// The folder, and the name in it.
    pub(super) fn name(&self, of: BorrowedFd<'_>) -> (BorrowedFd<'_>, CString) {
        (self.folder.as_fd(), text(of.as_raw_fd().to_string()))
    }

    /// A path.
    pub(super) fn path(&self, of: BorrowedFd<'_>) -> CString {
        text(format!("{}{}", self.prefix, of.as_raw_fd()))
    }

    /// Opens again what is held as a place only. Pipes, sockets and devices are not opened.
    pub(super) fn reopen(&self, held: &Held, flags: OFlag) -> Result<OwnedFd, Errno> {
        if !matches!(held.kind, FileKind::Regular | FileKind::Folder) {
            return Err(Errno::ENXIO);
        }
        let (folder, name) = self.name(held.fd.as_fd());
        nix::fcntl::openat(folder, &*name, flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())
    }
}

/// Digits have no 0 byte.
fn text(digits: String) -> CString {
    CString::new(digits).unwrap_or_default()
}

/// Opens what lies along these names, none of which is a link. The folder itself where there are none.
pub(super) fn open_below(folder: BorrowedFd<'_>, path: &CStr, flags: OFlag) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    // Another process renamed something just now (`man 2 openat2`): the kernel is asked again, not for ever.
    for _ in 0..64 {
        match openat2(folder, path, OpenHow::new().flags(flags).resolve(resolve)) {
            Err(Errno::EAGAIN) => {}
            opened => return opened,
        }
    }
    Err(Errno::EAGAIN)
}

/// Flags by which a file is opened for the sentry: no open waits, and no terminal becomes anybody's.
pub(super) fn open_flags(write: bool) -> OFlag {
    let access = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    access | OFlag::O_NONBLOCK | OFlag::O_NOCTTY
}

fn stamp(of: libc::statx_timestamp) -> Timestamp {
    Timestamp { seconds: of.tv_sec, nanoseconds: of.tv_nsec.min(999_999_999) }
}

/// What a file is like: `name` of a folder, the link itself where it is one; the descriptor's own with an empty name.
pub(super) fn status(of: BorrowedFd<'_>, name: &CStr) -> Result<Attributes, Errno> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the name lives during the call, and the structure is as large as the kernel takes it to be.
    let result = unsafe { libc::statx(of.as_raw_fd(), name.as_ptr(), flags, mask, status.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: all bits are a value of each of its fields, and it was zeroed before.
    let status = unsafe { status.assume_init() };
    let mode = u32::from(status.stx_mode);
    Ok(Attributes {
        device: device(status.stx_dev_major, status.stx_dev_minor),
        inode: status.stx_ino,
        kind: FileKind::from_mode(mode).ok_or(Errno::EIO)?,
        mode: mode & 0o7777,
        links: status.stx_nlink,
        uid: status.stx_uid,
        gid: status.stx_gid,
        rdev: device(status.stx_rdev_major, status.stx_rdev_minor),
        size: status.stx_size,
        blocks: status.stx_blocks,
        block_size: 4096,
        accessed: stamp(status.stx_atime),
        modified: stamp(status.stx_mtime),
        changed: stamp(status.stx_ctime),
        created: (status.stx_mask & libc::STATX_BTIME != 0).then(|| stamp(status.stx_btime)),
    })
}

/// A call that gives a descriptor.
pub(super) fn descriptor(result: libc::c_int) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    // SAFETY: the kernel has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
