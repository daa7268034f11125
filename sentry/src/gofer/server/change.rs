//! Requests that change files. Each begins with whether the export allows it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, ftruncate, linkat, symlinkat, unlinkat};

use super::super::wire::{Found, Handle, Made};
use super::host::{open_below, status};
use super::{Answer, PLACE, Server};
use crate::error::Errno;
use crate::vfs::{AttributeChange, Attributes, FileKind, RenameMode, Timestamp, XattrMode};

fn text(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno::EINVAL)
}

/// Which file a name stood for: number of the file system and of the file. The sentry forgets what it knew of it.
fn identity(found: Option<&Attributes>) -> Answer {
    let (device, inode) = found.map_or((0, 0), |found| (found.device, found.inode));
    Answer::with(|to| to.u64(device).u64(inode))
}

impl Server {
    /// Makes a file. It is the gofer's own, and nobody else's to use, until it has its owner and mode.
    pub(super) fn create(&self, folder: Handle, name: &[u8], made: &Made) -> Result<Answer, Errno> {
        let folder = self.writable(folder)?;
        let (at, name) = (folder.fd.as_fd(), text(name)?);
        let mode = self.first_mode(made);
        let mut file = None;
        match made.kind {
            FileKind::Regular => {
                let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
                file = Some(create_below(&folder.fd, &name, flags, mode)?);
            }
            FileKind::Folder => mkdirat(at, &*name, mode)?,
            FileKind::Symlink => symlinkat(&*text(&made.target)?, at, &*name)?,
            FileKind::Fifo => mknodat(at, &*name, SFlag::S_IFIFO, mode, 0)?,
            FileKind::Socket => mknodat(at, &*name, SFlag::S_IFSOCK, mode, 0)?,
            // A device that somebody on the host could open.
            FileKind::CharDevice | FileKind::BlockDevice => return Err(Errno::EPERM),
        }
        let place = match &file {
            Some(file) => self.as_place(file),
            None => open_below(at, &name, PLACE),
        };
        let found = place.and_then(|fd| self.settle(fd, made));
        if found.is_err() {
            let flag = match made.kind {
                FileKind::Folder => UnlinkatFlags::RemoveDir,
                _ => UnlinkatFlags::NoRemoveDir,
            };
            let _ = unlinkat(at, &*name, flag);
        }
        let found = found?;
        Ok(Answer { file, ..Answer::with(|to| to.found(&found)) })
    }

    pub(super) fn temporary(&self, folder: Handle, made: &Made) -> Result<Answer, Errno> {
        if made.kind != FileKind::Regular {
            return Err(Errno::EINVAL);
        }
        let folder = self.writable(folder)?;
        let file = create_below(&folder.fd, c".", OFlag::O_RDWR | OFlag::O_TMPFILE, self.first_mode(made))?;
        let found = self.settle(self.as_place(&file)?, made)?;
        Ok(Answer { file: Some(file), ..Answer::with(|to| to.found(&found)) })
    }

    /// Permissions until the owner is right.
    fn first_mode(&self, made: &Made) -> Mode {
        let own = (made.uid, made.gid) == (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        Mode::from_bits_truncate(if own { made.mode } else { made.mode & 0o700 })
    }

    fn as_place(&self, file: &OwnedFd) -> Result<OwnedFd, Errno> {
        let (folder, name) = self.descriptors.name(file.as_fd());
        nix::fcntl::openat(folder, &*name, PLACE | OFlag::O_CLOEXEC, Mode::empty())
    }

    /// Gives what is new its owner and mode, and holds it.
    fn settle(&self, fd: OwnedFd, made: &Made) -> Result<Found, Errno> {
        let now = status(fd.as_fd(), c"")?;
        if now.kind != made.kind {
            return Err(Errno::ESTALE);
        }
        if (now.uid, now.gid) != (made.uid, made.gid) {
            self.set_owner(&fd, Some(made.uid), Some(made.gid))?;
        }
        if made.kind != FileKind::Symlink && status(fd.as_fd(), c"")?.mode != made.mode {
            self.set_mode(&fd, made.mode)?;
        }
        self.hold(fd, true)
    }

    fn set_owner(&self, fd: &OwnedFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        fchownat(fd, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::AT_EMPTY_PATH)
    }

    fn set_mode(&self, fd: &OwnedFd, mode: u32) -> Result<(), Errno> {
        let (folder, name) = self.descriptors.name(fd.as_fd());
        fchmodat(folder, &*name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
    }

    pub(super) fn link(&self, folder: Handle, name: &[u8], file: Handle) -> Result<Answer, Errno> {
        let (folder, file) = (self.writable(folder)?, self.writable(file)?);
        let (descriptors, number) = self.descriptors.name(file.fd.as_fd());
        linkat(descriptors, &*number, &folder.fd, &*text(name)?, AtFlags::AT_SYMLINK_FOLLOW)?;
        Ok(Answer::new())
    }

    pub(super) fn unlink(&self, folder: Handle, name: &[u8], as_folder: bool) -> Result<Answer, Errno> {
        let (folder, name) = (self.writable(folder)?, text(name)?);
        let victim = status(folder.fd.as_fd(), &name)?;
        let flag = if as_folder { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        unlinkat(&folder.fd, &*name, flag)?;
        Ok(identity(Some(&victim)))
    }

    pub(super) fn rename(
        &self,
        (folder, name): (Handle, &[u8]),
        (to, to_name): (Handle, &[u8]),
        mode: RenameMode,
    ) -> Result<Answer, Errno> {
        let (folder, to) = (self.writable(folder)?, self.writable(to)?);
        let (name, to_name) = (text(name)?, text(to_name)?);
        let victim = status(to.fd.as_fd(), &to_name).ok();
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::Keep => RenameFlags::RENAME_NOREPLACE,
            RenameMode::Exchange => RenameFlags::RENAME_EXCHANGE,
        };
        renameat2(&folder.fd, &*name, &to.fd, &*to_name, flags)?;
        Ok(identity(victim.as_ref()))
    }

    /// A new owner takes set-id bits away, so it comes before the mode.
    pub(super) fn change(&self, handle: Handle, change: &AttributeChange) -> Result<Answer, Errno> {
        let held = self.writable(handle)?;
        if let Some(size) = change.size {
            if held.kind != FileKind::Regular {
                return Err(Errno::EINVAL);
            }
            let file = self.descriptors.reopen(&held, OFlag::O_WRONLY | OFlag::O_NONBLOCK)?;
            ftruncate(&file, i64::try_from(size).map_err(|_| Errno::EFBIG)?)?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            self.set_owner(&held.fd, change.uid, change.gid)?;
        }
        if let Some(mode) = change.mode {
            self.set_mode(&held.fd, mode)?;
        }
        if change.accessed.is_some() || change.modified.is_some() {
            set_times(&held.fd, [change.accessed, change.modified])?;
        }
        let found = Found { handle: 0, attributes: status(held.fd.as_fd(), c"")?, target: Vec::new() };
        Ok(Answer::with(|to| to.found(&found)))
    }

    /// `fsync` of a folder.
    pub(super) fn sync(&self, handle: Handle) -> Result<Answer, Errno> {
        let held = self.handles.find(handle)?;
        let file = open_below(held.fd.as_fd(), c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        nix::unistd::fsync(&file)?;
        Ok(Answer::new())
    }

    pub(super) fn set_xattr(
        &self,
        at: Handle,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<Answer, Errno> {
        let held = self.writable(at)?;
        let (path, name) = (self.descriptors.path(held.fd.as_fd()), text(name)?);
        let flags = match mode {
            XattrMode::Any => 0,
            XattrMode::Create => libc::XATTR_CREATE,
            XattrMode::Replace => libc::XATTR_REPLACE,
        };
        let (path, name, bytes) = (path.as_ptr(), name.as_ptr(), value.as_ptr().cast());
        // SAFETY: texts and value live during the call.
        Errno::result(unsafe { libc::setxattr(path, name, bytes, value.len(), flags) })?;
        Ok(Answer::new())
    }

    pub(super) fn remove_xattr(&self, at: Handle, name: &[u8]) -> Result<Answer, Errno> {
        let held = self.writable(at)?;
        let (path, name) = (self.descriptors.path(held.fd.as_fd()), text(name)?);
        // SAFETY: texts live during the call.
        Errno::result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) })?;
        Ok(Answer::new())
    }
}

fn create_below(folder: &OwnedFd, name: &CStr, flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    openat2(folder, name, OpenHow::new().flags(flags).mode(mode).resolve(resolve))
}

fn set_times(fd: &OwnedFd, stamps: [Option<Timestamp>; 2]) -> Result<(), Errno> {
    let times = stamps.map(|stamp| match stamp {
        Some(stamp) => libc::timespec { tv_sec: stamp.seconds, tv_nsec: i64::from(stamp.nanoseconds) },
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
    });
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: name and times live during the call.
    let result = unsafe { libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), flags) };
    Errno::result(result).map(drop)
}
