//! What a file system gives: files and what can be done to them. Checks that are the same everywhere (permissions, names, read-only
//! mounts, what may be renamed where) have been made above; an implementation is called with names of 1 to 255 bytes without `/`,
//! none of them `.` or `..`.

use std::any::Any;
use std::sync::Arc;

use super::locks::FileLocks;
use super::pipe::Pipe;
use super::{AttributeChange, Attributes, Caller, File, FileKind, Flags, Place};
use crate::error::Errno;

/// What a new file is to hold.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// Nothing yet.
    Regular,
    /// Nothing yet.
    Folder,
    /// This target.
    Symlink(&'a [u8]),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device of this number.
    CharDevice(u64),
    /// A block device of this number.
    BlockDevice(u64),
}

impl Content<'_> {
    /// What it makes.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        match self {
            Self::Regular => FileKind::Regular,
            Self::Folder => FileKind::Folder,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Fifo => FileKind::Fifo,
            Self::Socket => FileKind::Socket,
            Self::CharDevice(_) => FileKind::CharDevice,
            Self::BlockDevice(_) => FileKind::BlockDevice,
        }
    }
}

/// A file to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewNode<'a> {
    /// What it holds.
    pub content: Content<'a>,
    /// Its permissions, the umask already taken off.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// How a rename treats what has the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// It goes.
    Replace,
    /// Nothing may be there (`RENAME_NOREPLACE`).
    Keep,
    /// It gets the old name (`RENAME_EXCHANGE`).
    Exchange,
}

/// How an extended attribute is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Whether it is there or not.
    Any,
    /// EEXIST where it is (`XATTR_CREATE`).
    Create,
    /// ENODATA where it is not (`XATTR_REPLACE`).
    Replace,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// Number of its inode.
    pub inode: u64,
    /// What it is.
    pub kind: FileKind,
}

/// What `statfs` tells.
#[derive(Debug, Clone, Copy, Default)]
pub struct FsStatus {
    /// `f_type` (`include/uapi/linux/magic.h`).
    pub magic: u64,
    /// Bytes of a block.
    pub block_size: u64,
    /// Blocks.
    pub blocks: u64,
    /// Free of these.
    pub blocks_free: u64,
    /// Files that there can be.
    pub files: u64,
    /// Free of these.
    pub files_free: u64,
}

/// A file system.
pub trait FileSystem: Any + Send + Sync {
    /// Its type as `/proc/mounts` tells it.
    fn name(&self) -> &'static str;

    /// Its root.
    fn root(&self) -> Arc<dyn Inode>;

    /// How full it is.
    ///
    /// # Errors
    /// Of the host.
    fn status(&self) -> Result<FsStatus, Errno>;

    /// Whether nothing in it can ever change.
    fn read_only(&self) -> bool {
        false
    }
}

/// A file as its file system keeps it. What a kind of file cannot do has the errno of Linux as default.
#[allow(clippy::missing_errors_doc, reason = "errors are those of the system call of the same name")]
pub trait Inode: Any + Send + Sync {
    /// What it is. It never changes.
    fn kind(&self) -> FileKind;

    /// What is known about it.
    fn attributes(&self) -> Result<Attributes, Errno>;

    /// Whether those, and its names if it is a folder, change by calls of the sandbox's programs alone ([`crate::platform::generation`]). Of the root:
    /// whether names do in all of the file system.
    fn steady(&self) -> bool {
        false
    }

    /// Changes attributes.
    fn change(&self, change: &AttributeChange) -> Result<(), Errno> {
        let _ = change;
        Err(Errno::EROFS)
    }

    /// A file of this folder; ENOENT where there is none.
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        let _ = name;
        Err(Errno::ENOTDIR)
    }

    /// Makes a file in this folder; EEXIST where there is one.
    fn create(&self, name: &[u8], new: &NewNode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        let _ = (name, new);
        Err(Errno::EROFS)
    }

    /// Makes a regular file without a name (`O_TMPFILE`).
    fn temporary(&self, new: &NewNode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        let _ = new;
        Err(Errno::EOPNOTSUPP)
    }

    /// Gives a file of this file system a further name in this folder.
    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<(), Errno> {
        let _ = (name, target);
        Err(Errno::EROFS)
    }

    /// Takes a name of something else than a folder away.
    fn unlink(&self, name: &[u8]) -> Result<(), Errno> {
        let _ = name;
        Err(Errno::EROFS)
    }

    /// Takes an empty folder away.
    fn rmdir(&self, name: &[u8]) -> Result<(), Errno> {
        let _ = name;
        Err(Errno::EROFS)
    }

    /// Gives a file another name in `to`, a folder of the same file system.
    fn rename(
        &self,
        name: &[u8],
        to: &Arc<dyn Inode>,
        to_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let _ = (name, to, to_name, mode);
        Err(Errno::EROFS)
    }

    /// All that is in this folder, but `.` and `..`.
    fn list(&self) -> Result<Vec<DirEntry>, Errno> {
        Err(Errno::ENOTDIR)
    }

    /// Target of a symbolic link.
    fn readlink(&self, caller: &Caller) -> Result<Vec<u8>, Errno> {
        let _ = caller;
        Err(Errno::EINVAL)
    }

    /// Whether it is still what its name stands for. Where it is not, the name is looked up again (Linux' `d_revalidate`). It is asked
    /// with the folder locked, and must not ask for names.
    fn valid(&self) -> bool {
        true
    }

    /// Where a link leads that is no path (`/proc/self/fd/1`). Its [`readlink`](Self::readlink) tells what it shows.
    fn magic_link(&self, caller: &Caller) -> Option<Result<Place, Errno>> {
        let _ = caller;
        None
    }

    /// Opens a regular file, or whatever the file system makes itself. Folders, pipes and devices are opened above.
    fn open(self: Arc<Self>, flags: Flags, caller: &Caller) -> Result<Box<dyn File>, Errno> {
        let _ = (flags, caller);
        Err(Errno::ENXIO)
    }

    /// Whether it is the inode of an `eventfd`, `epoll` or the like: no regular file, although it has no other kind
    /// (`IS_ANON_FILE`, `fs/anon_inodes.c`).
    fn anonymous(&self) -> bool {
        false
    }

    /// The pipe behind a FIFO.
    fn fifo(&self) -> Option<Arc<Pipe>> {
        None
    }

    /// Whether a write by somebody without CAP_FSETID may have to take set-id bits away: a quick first look.
    fn has_set_id(&self) -> bool {
        false
    }

    /// Its record locks, where it can have any.
    fn locks(&self) -> Option<&FileLocks> {
        None
    }

    /// `fsync` of a folder.
    fn sync(&self) -> Result<(), Errno> {
        Ok(())
    }

    /// Value of an extended attribute; ENODATA where there is none.
    fn xattr(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let _ = name;
        Err(Errno::EOPNOTSUPP)
    }

    /// Names of extended attributes.
    fn xattrs(&self) -> Result<Vec<Vec<u8>>, Errno> {
        Ok(Vec::new())
    }

    /// Sets an extended attribute.
    fn set_xattr(&self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<(), Errno> {
        let _ = (name, value, mode);
        Err(Errno::EOPNOTSUPP)
    }

    /// Takes an extended attribute away; ENODATA where there is none.
    fn remove_xattr(&self, name: &[u8]) -> Result<(), Errno> {
        let _ = name;
        Err(Errno::EOPNOTSUPP)
    }
}

impl dyn Inode {
    /// As what it is in its own file system.
    #[must_use]
    pub fn downcast<T: Inode>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// As what it is in its own file system, shared.
pub(super) fn downcast<T: Inode>(inode: &Arc<dyn Inode>) -> Option<Arc<T>> {
    (Arc::clone(inode) as Arc<dyn Any + Send + Sync>).downcast().ok()
}
