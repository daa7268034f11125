//! A read-only view of a folder of the host: the container's root as its image has it.

mod tree;

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use nix::dir::Dir;
use nix::fcntl::readlinkat;
use nix::sys::stat::{FileStat, fstat};
use nix::sys::uio::pread;
use nix::unistd::{Whence, lseek};

pub use tree::{HostTree, LocalTree};

use super::kept::Kept;
use super::locks::FileLocks;
use super::pipe::Pipe;
use super::sync::lock;
use super::{
    Attributes, Caller, Dentry, DirEntry, File, FileKind, FileSystem, Flags, FsStatus, Inode, Timestamp, Tree,
};
use crate::error::Errno;

/// Entries of a folder that are listed at most.
const ENTRIES_MAX: usize = 1 << 20;

struct Shared {
    tree: Box<dyn HostTree>,
    device: u64,
    /// Nobody else changes the tree: what was seen once stays true.
    exclusive: bool,
    kept: Kept,
}

/// A read-only view of a folder of the host.
pub struct HostFs {
    shared: Arc<Shared>,
    root: Arc<Node>,
}

impl HostFs {
    /// Of this tree. `exclusive`: nobody changes it while it is in use, so attributes are asked for once.
    ///
    /// # Errors
    /// Of the host.
    pub fn new(tree: Box<dyn HostTree>, exclusive: bool) -> Result<Self, Errno> {
        let root = tree.root()?;
        let shared =
            Arc::new(Shared { tree, device: super::tmpfs::next_device(), exclusive, kept: Kept::default() });
        let root = Node::new(&shared, root, None)?;
        Ok(Self { shared, root })
    }

    /// Ready to be mounted.
    ///
    /// # Errors
    /// Of the host.
    pub fn tree(tree: Box<dyn HostTree>, exclusive: bool) -> Result<Arc<Dentry>, Errno> {
        Ok(Tree::of(Box::new(Self::new(tree, exclusive)?)))
    }
}

impl FileSystem for HostFs {
    fn name(&self) -> &'static str {
        "9p"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::clone(&self.root) as Arc<dyn Inode>
    }

    fn status(&self) -> Result<FsStatus, Errno> {
        let status = nix::sys::statfs::fstatfs(&self.shared.tree.open_folder(self.root.fd.as_fd())?)?;
        Ok(FsStatus {
            magic: 0x0102_1997,
            block_size: u64::try_from(status.block_size()).unwrap_or(4096),
            blocks: status.blocks(),
            blocks_free: 0,
            files: status.files(),
            files_free: 0,
        })
    }

    fn read_only(&self) -> bool {
        true
    }
}

/// A file of the host.
struct Node {
    shared: Arc<Shared>,
    fd: Arc<OwnedFd>,
    /// The folder it was found in and its name there; `None` for the root.
    found: Option<(Arc<OwnedFd>, CString)>,
    kind: FileKind,
    first: Attributes,
    contents: Mutex<Weak<OwnedFd>>,
    fifo: OnceLock<Arc<Pipe>>,
    locks: FileLocks,
}

fn attributes(shared: &Shared, status: &FileStat) -> Result<Attributes, Errno> {
    let stamp = |seconds: i64, nanoseconds: i64| Timestamp {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
    };
    Ok(Attributes {
        device: shared.device,
        inode: status.st_ino,
        kind: FileKind::from_mode(status.st_mode).ok_or(Errno::EIO)?,
        mode: status.st_mode & 0o7777,
        links: u32::try_from(status.st_nlink).unwrap_or(u32::MAX),
        uid: status.st_uid,
        gid: status.st_gid,
        rdev: status.st_rdev,
        size: u64::try_from(status.st_size).unwrap_or(0),
        blocks: u64::try_from(status.st_blocks).unwrap_or(0),
        block_size: 4096,
        accessed: stamp(status.st_atime, status.st_atime_nsec),
        modified: stamp(status.st_mtime, status.st_mtime_nsec),
        changed: stamp(status.st_ctime, status.st_ctime_nsec),
        created: None,
    })
}

impl Node {
    fn new(
        shared: &Arc<Shared>,
        fd: OwnedFd,
        found: Option<(Arc<OwnedFd>, CString)>,
    ) -> Result<Arc<Self>, Errno> {
        let first = attributes(shared, &fstat(&fd)?)?;
        Ok(Arc::new(Self {
            shared: Arc::clone(shared),
            fd: Arc::new(fd),
            found,
            kind: first.kind,
            first,
            contents: Mutex::default(),
            fifo: OnceLock::new(),
            locks: FileLocks::default(),
        }))
    }

    fn contents(&self) -> Result<Arc<OwnedFd>, Errno> {
        let mut contents = lock(&self.contents);
        if let Some(file) = contents.upgrade() {
            return Ok(file);
        }
        let (folder, name) = self.found.as_ref().ok_or(Errno::EISDIR)?;
        let file = Arc::new(self.shared.tree.open(folder.as_fd(), name, self.fd.as_fd())?);
        *contents = Arc::downgrade(&file);
        self.shared.kept.keep(&file);
        Ok(file)
    }
}

impl Inode for Node {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        if self.shared.exclusive { Ok(self.first) } else { attributes(&self.shared, &fstat(&self.fd)?) }
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        if self.kind != FileKind::Folder {
            return Err(Errno::ENOTDIR);
        }
        let name = CString::new(name).map_err(|_| Errno::ENOENT)?;
        let fd = self.shared.tree.walk(self.fd.as_fd(), &name)?;
        Ok(Self::new(&self.shared, fd, Some((Arc::clone(&self.fd), name)))?)
    }

    fn list(&self) -> Result<Vec<DirEntry>, Errno> {
        let mut folder = Dir::from_fd(self.shared.tree.open_folder(self.fd.as_fd())?)?;
        let mut entries = Vec::new();
        for entry in folder.iter().take(ENTRIES_MAX) {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let kind = match entry.file_type() {
                Some(nix::dir::Type::Directory) => FileKind::Folder,
                Some(nix::dir::Type::Symlink) => FileKind::Symlink,
                Some(nix::dir::Type::Fifo) => FileKind::Fifo,
                Some(nix::dir::Type::CharacterDevice) => FileKind::CharDevice,
                Some(nix::dir::Type::BlockDevice) => FileKind::BlockDevice,
                Some(nix::dir::Type::Socket) => FileKind::Socket,
                Some(nix::dir::Type::File) => FileKind::Regular,
                None => self.lookup(name)?.kind(),
            };
            entries.push(DirEntry { name: name.to_vec(), inode: entry.ino(), kind });
        }
        Ok(entries)
    }

    fn readlink(&self, _caller: &Caller) -> Result<Vec<u8>, Errno> {
        use std::os::unix::ffi::OsStringExt;
        if self.kind != FileKind::Symlink {
            return Err(Errno::EINVAL);
        }
        Ok(readlinkat(self.fd.as_fd(), c"")?.into_vec())
    }

    fn open(self: Arc<Self>, flags: Flags, _caller: &Caller) -> Result<Box<dyn File>, Errno> {
        if self.kind != FileKind::Regular {
            return Err(Errno::ENXIO);
        }
        if flags.writable() {
            return Err(Errno::EROFS);
        }
        Ok(Box::new(Opened(self.contents()?)))
    }

    fn fifo(&self) -> Option<Arc<Pipe>> {
        (self.kind == FileKind::Fifo).then(|| Arc::clone(self.fifo.get_or_init(Pipe::new)))
    }

    fn has_set_id(&self) -> bool {
        self.first.mode & 0o6000 != 0
    }

    fn locks(&self) -> Option<&FileLocks> {
        Some(&self.locks)
    }
}

/// An open regular file of the host.
struct Opened(Arc<OwnedFd>);

impl File for Opened {
    fn read(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        pread(&self.0, to, i64::try_from(offset).map_err(|_| Errno::EINVAL)?)
    }

    fn write(&self, _from: &[u8], _offset: u64) -> Result<usize, Errno> {
        Err(Errno::EROFS)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek_data(&self, offset: u64, hole: bool, _size: u64) -> Result<u64, Errno> {
        let whence = if hole { Whence::SeekHole } else { Whence::SeekData };
        let offset = i64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        u64::try_from(lseek(self.0.as_fd(), offset, whence)?).map_err(|_| Errno::EOVERFLOW)
    }

    fn host_file(&self) -> Result<(Arc<OwnedFd>, u64), Errno> {
        Ok((Arc::clone(&self.0), 0))
    }

    fn sync(&self) -> Result<(), Errno> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::vfs::Place;
    use crate::vfs::mount::Mount;
    use crate::vfs::open::open;
    use crate::vfs::walk::{Resolve, Walk};

    #[test]
    fn a_link_of_the_host_leads_nowhere_on_the_host() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), b"secret").unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::fs::create_dir(inside.path().join("folder")).unwrap();
        std::fs::write(inside.path().join("folder/file"), b"contents").unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("out")).unwrap();
        std::os::unix::fs::symlink("/folder/file", inside.path().join("in")).unwrap();
        let root = OwnedFd::from(std::fs::File::open(inside.path()).unwrap());
        let tree = HostFs::tree(Box::new(LocalTree::new(root)), true).unwrap();
        let root: Place = Mount::namespace(tree).root_place();
        let caller = Caller::root();
        let open = |path: &[u8], flags| {
            let mut walk = Walk::new(&caller, &root, &root, path, Resolve::empty())?;
            open(&caller, &mut walk, flags, 0)
        };
        let mut bytes = [0; 16];
        let file = open(b"/in", Flags::READ).unwrap();
        assert_eq!(file.read(&mut bytes), Ok(8));
        assert!(bytes.starts_with(b"contents"));
        assert!(file.file().host_file().is_ok());
        assert_eq!(open(b"out/secret", Flags::READ).err(), Some(Errno::ENOENT));
        assert_eq!(open(b"in", Flags::READ_WRITE).err(), Some(Errno::EROFS));
        let folder = open(b"/", Flags::READ).unwrap();
        let mut names = Vec::new();
        folder
            .entries(&mut |entry, _| {
                names.push(entry.name.clone());
                true
            })
            .unwrap();
        names.sort();
        assert_eq!(names, [&b"."[..], b"..", b"folder", b"in", b"out"]);
    }
}
