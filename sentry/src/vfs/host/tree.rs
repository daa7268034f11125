//! What touches the host: a tree of its files, reached by descriptors and single names, never by paths, never along a symbolic link.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::fstat;

use crate::error::Errno;

/// A tree of files of the host. Another process may stand behind it.
pub trait HostTree: Send + Sync {
    /// The top, opened with `O_PATH`.
    ///
    /// # Errors
    /// Of the host.
    fn root(&self) -> Result<OwnedFd, Errno>;

    /// A file of a folder, opened with `O_PATH`; a symbolic link itself where it is one.
    ///
    /// # Errors
    /// Of the host.
    fn walk(&self, folder: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno>;

    /// Opens for reading the regular file `file`, which is `name` of `folder`.
    ///
    /// # Errors
    /// ESTALE where the name has become another file's; of the host.
    fn open(&self, folder: BorrowedFd<'_>, name: &CStr, file: BorrowedFd<'_>) -> Result<OwnedFd, Errno>;

    /// Opens a folder for reading what is in it.
    ///
    /// # Errors
    /// Of the host.
    fn open_folder(&self, folder: BorrowedFd<'_>) -> Result<OwnedFd, Errno>;
}

/// A tree that this process reaches itself.
pub struct LocalTree(OwnedFd);

impl LocalTree {
    /// Below this folder.
    #[must_use]
    pub fn new(root: OwnedFd) -> Self {
        Self(root)
    }
}

fn open_below(folder: BorrowedFd<'_>, name: &CStr, flags: OFlag) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).resolve(resolve);
    openat2(folder, name, how)
}

impl HostTree for LocalTree {
    fn root(&self) -> Result<OwnedFd, Errno> {
        open_below(self.0.as_fd(), c".", OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    fn walk(&self, folder: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
        open_below(folder, name, OFlag::O_PATH)
    }

    fn open(&self, folder: BorrowedFd<'_>, name: &CStr, file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let opened = open_below(folder, name, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
        let (now, before) = (fstat(&opened)?, fstat(file)?);
        let same = (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino);
        if same { Ok(opened) } else { Err(Errno::ESTALE) }
    }

    fn open_folder(&self, folder: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        open_below(folder, c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }
}
