//! Requests that change nothing.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::dir::{Dir, Type};
use nix::fcntl::{OFlag, readlinkat};

use super::super::channel::Channel;
use super::super::wire::{
    Access, At, Found, Handle, Listed, MESSAGE_MAX, TARGET_MAX, Want, Writer, XATTR_MAX,
};
use super::handles::Held;
use super::host::{open_below, open_flags, status};
use super::{Answer, End, PLACE, Server};
use crate::error::Errno;
use crate::vfs::{DirEntry, FileKind, NAME_MAX};

/// What one entry of a list takes at most: a name, a target, and numbers.
const ENTRY_MAX: usize = NAME_MAX + TARGET_MAX + 256;

/// Why a list ended early.
pub(super) enum ListError {
    /// Nothing was sent yet.
    Host(Errno),
    /// The connection is of no more use.
    Channel(End),
}

impl From<Errno> for ListError {
    fn from(errno: Errno) -> Self {
        Self::Host(errno)
    }
}

/// Names as one path.
pub(super) fn joined(names: &[Vec<u8>]) -> Result<CString, Errno> {
    CString::new(names.join(&b'/')).map_err(|_| Errno::EINVAL)
}

fn target(of: &OwnedFd, name: &CStr) -> Result<Vec<u8>, Errno> {
    use std::os::unix::ffi::OsStringExt;
    let target = readlinkat(of.as_fd(), name)?.into_vec();
    if target.is_empty() || target.len() > TARGET_MAX { Err(Errno::ENAMETOOLONG) } else { Ok(target) }
}

fn kind_of(entry: Option<Type>) -> Option<FileKind> {
    Some(match entry? {
        Type::Directory => FileKind::Folder,
        Type::Symlink => FileKind::Symlink,
        Type::Fifo => FileKind::Fifo,
        Type::CharacterDevice => FileKind::CharDevice,
        Type::BlockDevice => FileKind::BlockDevice,
        Type::Socket => FileKind::Socket,
        Type::File => FileKind::Regular,
    })
}

/// A name of a folder: what it is like, and where it leads.
fn look_at(folder: &OwnedFd, name: &CStr) -> Result<Found, Errno> {
    let attributes = status(folder.as_fd(), name)?;
    let target = if attributes.kind == FileKind::Symlink { target(folder, name)? } else { Vec::new() };
    Ok(Found { handle: 0, attributes, target })
}

impl Server {
    /// Keeps a descriptor for the sentry.
    pub(super) fn hold(&self, fd: OwnedFd, writable: bool) -> Result<Found, Errno> {
        let mut found = look_at(&fd, c"")?;
        found.handle = self.handles.add(Held { fd, kind: found.attributes.kind, writable })?;
        Ok(found)
    }

    /// Opens what lies along these names as a place; the file itself where there are none.
    fn place(&self, at: &At) -> Result<(Arc<Held>, Option<Held>), Errno> {
        let held = self.handles.find(at.handle)?;
        if at.names.is_empty() {
            return Ok((held, None));
        }
        let fd = open_below(held.fd.as_fd(), &joined(&at.names)?, PLACE)?;
        let kind = status(fd.as_fd(), c"")?.kind;
        let writable = held.writable;
        Ok((held, Some(Held { fd, kind, writable })))
    }

    pub(super) fn walk(&self, at: &At, want: Want) -> Result<Answer, Errno> {
        let held = self.handles.find(at.handle)?;
        let path = joined(&at.names)?;
        let found = match want {
            Want::Nothing if at.names.is_empty() => look_at(&held.fd, c"")?,
            // One name below a folder needs no descriptor, and `name` cannot lead away.
            Want::Nothing if at.names.len() == 1 => look_at(&held.fd, &path)?,
            Want::Nothing => look_at(&open_below(held.fd.as_fd(), &path, PLACE)?, c"")?,
            Want::Handle if at.names.is_empty() => return Err(Errno::EINVAL),
            Want::Handle => self.hold(open_below(held.fd.as_fd(), &path, PLACE)?, held.writable)?,
            Want::Open(access) => return self.open(&held, &path, access),
            Want::Peek => return self.peek(&held, at, &path),
        };
        Ok(Answer::with(|to| to.found(&found)))
    }

    fn open(&self, held: &Held, path: &CStr, access: Access) -> Result<Answer, Errno> {
        let write = access == Access::Write;
        if write && !held.writable {
            return Err(Errno::EROFS);
        }
        let flags = open_flags(write);
        let file = if path.is_empty() {
            self.descriptors.reopen(held, flags)?
        } else {
            open_below(held.fd.as_fd(), path, flags)?
        };
        let attributes = status(file.as_fd(), c"")?;
        // No open folder is given away: by it one could go up.
        if attributes.kind != FileKind::Regular {
            return Err(Errno::ENXIO);
        }
        let found = Found { handle: 0, attributes, target: Vec::new() };
        Ok(Answer { file: Some(file), ..Answer::with(|to| to.found(&found)) })
    }

    /// Opens it, too, if it is a regular file: nothing else is opened, which could do something.
    fn peek(&self, held: &Held, at: &At, path: &CStr) -> Result<Answer, Errno> {
        if at.names.is_empty() {
            return Err(Errno::EINVAL);
        }
        let fd = open_below(held.fd.as_fd(), path, PLACE)?;
        let found = look_at(&fd, c"")?;
        let place = Held { fd, kind: found.attributes.kind, writable: false };
        let file = match found.attributes.kind {
            // That it cannot be opened is said when somebody wants to.
            FileKind::Regular => self.descriptors.reopen(&place, open_flags(false)).ok(),
            _ => None,
        };
        Ok(Answer { file, ..Answer::with(|to| to.found(&found)) })
    }

    /// Sends a folder's names in as many messages as they take. Each begins with whether another follows.
    pub(super) fn list(&self, channel: &Channel, at: &At, attributes: u32) -> Result<(), ListError> {
        let held = self.handles.find(at.handle)?;
        let path = if at.names.is_empty() { c".".to_owned() } else { joined(&at.names)? };
        let folder = open_below(held.fd.as_fd(), &path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let place = folder.try_clone().map_err(|_| Errno::EMFILE)?;
        let mut left = attributes;
        let mut message = Writer(Vec::with_capacity(4096));
        message.u8(0).u8(0);
        let mut entries = Dir::from_fd(folder)?.into_iter();
        let mut first = true;
        loop {
            let next = match entries.next() {
                None => break,
                Some(Err(errno)) if first => return Err(errno.into()),
                // Part of it was sent: the sentry sees that the connection ends.
                Some(Err(errno)) => return Err(ListError::Channel(End::Failed(errno))),
                Some(Ok(entry)) => entry,
            };
            let name = next.file_name();
            let bytes = name.to_bytes();
            if bytes == b"." || bytes == b".." {
                continue;
            }
            let found = if left > 0 { look_at(&place, name).ok() } else { None };
            left = left.saturating_sub(1);
            let kind = kind_of(next.file_type()).or_else(|| status(place.as_fd(), name).ok().map(|a| a.kind));
            // What has gone meanwhile, or is of no kind, is not told.
            let Some(kind) = kind else { continue };
            let entry = DirEntry { name: bytes.to_vec(), inode: next.ino(), kind };
            message.listed(&Listed { entry, found });
            if message.0.len() + ENTRY_MAX > MESSAGE_MAX {
                first = false;
                send_part(channel, &mut message, true)?;
            }
        }
        send_part(channel, &mut message, false)
    }

    pub(super) fn status(&self, handle: Handle) -> Result<Answer, Errno> {
        let status = nix::sys::statfs::fstatfs(&self.handles.find(handle)?.fd)?;
        let size = u64::try_from(status.block_size()).unwrap_or(4096);
        Ok(Answer::with(|to| {
            to.u64(size).u64(status.blocks()).u64(status.blocks_available());
            to.u64(status.files()).u64(status.files_free())
        }))
    }

    pub(super) fn xattr(&self, at: &At, name: &[u8]) -> Result<Answer, Errno> {
        let (held, below) = self.place(at)?;
        let path = self.descriptors.path(below.as_ref().unwrap_or(&held).fd.as_fd());
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        let value = filled(|room| {
            // SAFETY: both texts live during the call, and the room is as large as is said.
            unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), room.as_mut_ptr().cast(), room.len()) }
        })?;
        Ok(Answer::with(|to| to.bytes(&value)))
    }

    pub(super) fn xattrs(&self, at: &At) -> Result<Answer, Errno> {
        let (held, below) = self.place(at)?;
        let path = self.descriptors.path(below.as_ref().unwrap_or(&held).fd.as_fd());
        let names = filled(|room| {
            // SAFETY: the text lives during the call, and the room is as large as is said.
            unsafe { libc::listxattr(path.as_ptr(), room.as_mut_ptr().cast(), room.len()) }
        })?;
        Ok(Answer::with(|to| to.bytes(&names)))
    }
}

/// What a call puts into a room that is as large as an answer can be.
fn filled(call: impl FnOnce(&mut [u8]) -> libc::ssize_t) -> Result<Vec<u8>, Errno> {
    let mut room = vec![0; XATTR_MAX];
    let count = Errno::result(call(&mut room))?;
    room.truncate(usize::try_from(count).unwrap_or(0));
    Ok(room)
}

fn send_part(channel: &Channel, message: &mut Writer, more: bool) -> Result<(), ListError> {
    if let Some(flag) = message.0.get_mut(1) {
        *flag = u8::from(more);
    }
    channel.send(&message.0, None).map_err(|errno| ListError::Channel(End::Failed(errno)))?;
    message.0.clear();
    message.u8(0).u8(0);
    Ok(())
}
