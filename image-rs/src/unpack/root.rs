//! A folder that paths cannot leave.
//!
//! Source: `openat2(2)`. Parents are opened with `RESOLVE_IN_ROOT` (every symbolic link, absolute or climbing, is
//! resolved as if this folder were `/`) and `RESOLVE_NO_MAGICLINKS`; the last component is only ever used with calls that do
//! not follow links. Nobody else writes to the folder while a layer is applied.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::rc::Rc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{UnpackError, show};

/// Device and inode: what a file is, whatever its name.
pub(super) type FileId = (u64, u64);

pub(super) struct Root {
    fd: Rc<OwnedFd>,
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
    implied: Vec<Implied>,
}

/// A folder that was made because something stands in it.
pub(super) struct Implied {
    pub(super) path: Vec<u8>,
    pub(super) folder: Rc<OwnedFd>,
    /// Path of the folder it stands in, and what that was before.
    pub(super) above: (Vec<u8>, FileStat),
}

const FOLDER: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

pub(super) fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

pub(super) fn write_error(doing: &'static str, path: &[u8]) -> impl Fn(Errno) -> UnpackError + use<> {
    let path = show(path);
    move |errno| UnpackError::Write { doing, path: path.clone(), source: io::Error::from(errno) }
}

pub(super) fn id(stat: &FileStat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

pub(super) fn is_dir(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR
}

/// What `name` in `parent` is, links not followed.
pub(super) fn stat(parent: &OwnedFd, name: &OsStr) -> Result<Option<FileStat>, Errno> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self, UnpackError> {
        let fd = open(path, FOLDER, Mode::empty())
            .map_err(write_error("opening the root", path.as_os_str().as_bytes()))?;
        Ok(Self { fd: Rc::new(fd), last: None, implied: Vec::new() })
    }

    pub(super) fn fd(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.fd)
    }

    /// Forgets what was remembered of paths: something other than a plain file changed.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// The folders that were made because something stands in them, since this was last asked: the upper before the lower.
    pub(super) fn take_implied(&mut self) -> Vec<Implied> {
        std::mem::take(&mut self.implied)
    }

    fn resolve(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(FOLDER)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // EAGAIN: a rename elsewhere raced with the walk; the kernel asks to try again.
        for _ in 0..16 {
            match openat2(self.fd.as_fd(), name(path), how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                other => return other,
            }
        }
        Err(Errno::EAGAIN)
    }

    /// The folder `components`, made where it is missing when `create` says so.
    pub(super) fn folder(&mut self, components: &[&[u8]], create: bool) -> Result<Rc<OwnedFd>, UnpackError> {
        if components.is_empty() {
            return Ok(self.fd());
        }
        let path = components.join(&b'/');
        if let Some((known, fd)) = &self.last
            && *known == path
        {
            return Ok(Rc::clone(fd));
        }
        let found = match self.resolve(&path) {
            Ok(fd) => Rc::new(fd),
            Err(Errno::ENOENT) if create => self.create(components)?,
            Err(errno) => return Err(refuse(&path, errno)),
        };
        self.last = Some((path, Rc::clone(&found)));
        Ok(found)
    }

    fn create(&mut self, components: &[&[u8]]) -> Result<Rc<OwnedFd>, UnpackError> {
        let mut here = self.fd();
        for end in 1..=components.len() {
            let path = components[..end].join(&b'/');
            here = match self.resolve(&path) {
                Ok(next) => Rc::new(next),
                Err(Errno::ENOENT) => {
                    let before = fstat(&*here).map_err(|errno| refuse(&path, errno))?;
                    // A dangling link stands here when the name exists nevertheless.
                    mkdirat(&*here, name(components[end - 1]), Mode::from_bits_truncate(0o755))
                        .map_err(|errno| refuse(&path, errno))?;
                    let folder = Rc::new(self.resolve(&path).map_err(|errno| refuse(&path, errno))?);
                    let above = (components[..end - 1].join(&b'/'), before);
                    self.implied.push(Implied { path, folder: Rc::clone(&folder), above });
                    folder
                }
                Err(errno) => return Err(refuse(&path, errno)),
            };
        }
        Ok(here)
    }
}

fn refuse(path: &[u8], errno: Errno) -> UnpackError {
    let why = match errno {
        Errno::ENOTDIR => "a parent is not a folder",
        Errno::ELOOP => "its links go round in circles",
        Errno::EEXIST => "a parent is a link that leads nowhere",
        Errno::ENAMETOOLONG => "it is too long",
        _ => return write_error("opening", path)(errno),
    };
    UnpackError::Path { path: show(path), why }
}

/// Removes `name` in `parent` and all below, but keeps what is in `keep` (and the folders it stands in). Tells whether it is gone.
pub(super) fn remove(
    parent: &OwnedFd,
    entry: &OsStr,
    keep: &HashSet<FileId>,
    depth: usize,
) -> Result<bool, Errno> {
    let Some(stat) = stat(parent, entry)? else {
        return Ok(true);
    };
    if !is_dir(&stat) {
        if keep.contains(&id(&stat)) {
            return Ok(false);
        }
        unlinkat(parent, entry, UnlinkatFlags::NoRemoveDir)?;
        return Ok(true);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = openat(parent, entry, flags, Mode::empty())?;
    let empty = clear(&folder, keep, depth)?;
    if !empty || keep.contains(&id(&stat)) {
        return Ok(false);
    }
    unlinkat(parent, entry, UnlinkatFlags::RemoveDir)?;
    Ok(true)
}

/// Removes everything in `folder` but what is in `keep`. Tells whether nothing is left.
pub(super) fn clear(folder: &OwnedFd, keep: &HashSet<FileId>, depth: usize) -> Result<bool, Errno> {
    if depth == 0 {
        return Err(Errno::ELOOP);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut names = Vec::new();
    for entry in Dir::openat(folder, ".", flags, Mode::empty())?.iter() {
        let entry = entry?;
        let bytes = entry.file_name().to_bytes();
        if bytes != b"." && bytes != b".." {
            names.push(bytes.to_vec());
        }
    }
    let mut empty = true;
    for bytes in names {
        empty &= remove(folder, name(&bytes), keep, depth - 1)?;
    }
    Ok(empty)
}
