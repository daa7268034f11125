//! One regular file of the host by itself, which can only be read: what a file is mounted as.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::stat::fstat;

use super::{Opened, attributes};
use crate::error::Errno;
use crate::vfs::locks::FileLocks;
use crate::vfs::{
    Attributes, Caller, Dentry, File, FileKind, FileSystem, Flags, FsStatus, Inode, Tree, tmpfs,
};

/// A file system with one file.
pub struct SingleFile {
    node: Arc<Node>,
}

struct Node {
    device: u64,
    file: Arc<OwnedFd>,
    locks: FileLocks,
}

impl SingleFile {
    /// Of a regular file that is open for reading, ready to be mounted.
    ///
    /// # Errors
    /// EINVAL where it is no regular file; of the host.
    pub fn tree(file: OwnedFd) -> Result<Arc<Dentry>, Errno> {
        let device = tmpfs::next_device();
        if attributes(device, &fstat(&file)?)?.kind != FileKind::Regular {
            return Err(Errno::EINVAL);
        }
        let node = Arc::new(Node { device, file: Arc::new(file), locks: FileLocks::default() });
        Ok(Tree::of(Box::new(Self { node })))
    }
}

impl FileSystem for SingleFile {
    fn name(&self) -> &'static str {
        "9p"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::clone(&self.node) as Arc<dyn Inode>
    }

    fn status(&self) -> Result<FsStatus, Errno> {
        Ok(FsStatus { magic: 0x0102_1997, block_size: 4096, files: 1, ..FsStatus::default() })
    }

    fn read_only(&self) -> bool {
        true
    }
}

impl Inode for Node {
    fn kind(&self) -> FileKind {
        FileKind::Regular
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        attributes(self.device, &fstat(&self.file)?)
    }

    fn open(self: Arc<Self>, flags: Flags, _caller: &Caller) -> Result<Box<dyn File>, Errno> {
        if flags.writable() {
            return Err(Errno::EROFS);
        }
        Ok(Box::new(Opened(Arc::clone(&self.file))))
    }

    fn locks(&self) -> Option<&FileLocks> {
        Some(&self.locks)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"old").unwrap();
        let tree = SingleFile::tree(std::fs::File::open(&path).unwrap().into()).unwrap();
        let open = |flags| Arc::clone(tree.inode()).open(flags, &Caller::root());
        assert_eq!(open(Flags::READ_WRITE).err(), Some(Errno::EROFS));
        // What the host changes is seen.
        std::fs::write(&path, b"new contents").unwrap();
        let mut bytes = [0; 32];
        assert_eq!(open(Flags::READ).unwrap().read(&mut bytes, 4), Ok(8));
        assert_eq!(tree.inode().attributes().unwrap().size, 12);
        let none = SingleFile::tree(std::fs::File::open(folder.path()).unwrap().into());
        assert_eq!(none.err(), Some(Errno::EINVAL));
    }
}
