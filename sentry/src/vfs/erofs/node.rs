//! Files of an image.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::uio::pwrite;
use nix::unistd::ftruncate;

use super::Shared;
use super::layout::{self, Run};
use crate::error::Errno;
use crate::vfs::access::{CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH};
use crate::vfs::locks::FileLocks;
use crate::vfs::pipe::Pipe;
use crate::vfs::sync::lock;
use crate::vfs::{Attributes, Caller, DirEntry, File, FileKind, Flags, Inode};

/// Bytes copied at a time.
const CHUNK: usize = 256 << 10;
const PAGE: u64 = 4096;
/// Largest file of which there is a copy in memory.
const COPY_MAX: u64 = 1 << 30;
/// Runs of a file that are looked at for the next hole: an image can claim more than anybody waits for.
const RUNS_MAX: u32 = 1 << 20;

/// A file.
pub(super) struct Node {
    shared: Arc<Shared>,
    number: u64,
    inode: layout::Inode,
    copy: Mutex<Weak<OwnedFd>>,
    fifo: OnceLock<Arc<Pipe>>,
    locks: FileLocks,
}

impl Node {
    /// The file of this number, always by the same node.
    pub(super) fn of(shared: &Arc<Shared>, number: u64) -> Result<Arc<Self>, Errno> {
        let known = lock(&shared.nodes).get(&number).and_then(Weak::upgrade);
        if let Some(node) = known {
            return Ok(node);
        }
        let inode = shared.image.inode(number)?;
        let mut nodes = lock(&shared.nodes);
        // Somebody may have been quicker.
        if let Some(node) = nodes.get(&number).and_then(Weak::upgrade) {
            return Ok(node);
        }
        let node = Arc::new(Self {
            shared: Arc::clone(shared),
            number,
            inode,
            copy: Mutex::default(),
            fifo: OnceLock::new(),
            locks: FileLocks::default(),
        });
        nodes.insert(number, Arc::downgrade(&node));
        Ok(node)
    }

    /// Where in the image all its bytes lie, if they lie one after the other in pages of their own.
    fn in_pages(&self) -> Result<Option<u64>, Errno> {
        if self.inode.size == 0 {
            return Ok(None);
        }
        match self.shared.image.run(&self.inode, 0)? {
            Run::At(at, length) if length == self.inode.size && at.is_multiple_of(PAGE) => {
                // The last page is its own only where blocks are pages.
                Ok((self.shared.image.superblock.block_size() == PAGE).then_some(at))
            }
            _ => Ok(None),
        }
    }

    /// Its bytes as a file in memory that nobody can change.
    fn copied(&self) -> Result<Arc<OwnedFd>, Errno> {
        let mut copy = lock(&self.copy);
        if let Some(file) = copy.upgrade() {
            return Ok(file);
        }
        if self.inode.size > COPY_MAX {
            return Err(Errno::ENOMEM);
        }
        let file = memfd_create(c"erofs-file", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let signed = |offset: u64| i64::try_from(offset).map_err(|_| Errno::EFBIG);
        ftruncate(&file, signed(self.inode.size)?)?;
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        while at < self.inode.size {
            if let Run::Hole(length) = self.shared.image.run(&self.inode, at)? {
                at = at.saturating_add(length);
                continue;
            }
            let count = self.shared.image.read(&self.inode, &mut chunk, at)?;
            let mut left = chunk.get(..count).unwrap_or_default();
            while !left.is_empty() {
                let done = pwrite(&file, left, signed(at)?)?;
                left = left.get(done..).unwrap_or_default();
                at = at.saturating_add(done as u64);
            }
        }
        let seals = nix::fcntl::SealFlag::F_SEAL_WRITE
            | nix::fcntl::SealFlag::F_SEAL_GROW
            | nix::fcntl::SealFlag::F_SEAL_SHRINK;
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_ADD_SEALS(seals))?;
        let file = Arc::new(file);
        *copy = Arc::downgrade(&file);
        Ok(file)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut nodes = lock(&self.shared.nodes);
        if nodes.get(&self.number).is_some_and(|node| node.strong_count() == 0) {
            nodes.remove(&self.number);
        }
    }
}

impl Inode for Node {
    fn kind(&self) -> FileKind {
        self.inode.kind
    }

    fn steady(&self) -> bool {
        true
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        let inode = &self.inode;
        Ok(Attributes {
            device: self.shared.device,
            inode: self.number,
            kind: inode.kind,
            mode: inode.mode,
            links: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            size: inode.size,
            blocks: inode.size.div_ceil(512),
            block_size: 4096,
            accessed: inode.modified,
            modified: inode.modified,
            changed: inode.modified,
            created: None,
        })
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        Ok(Self::of(&self.shared, self.shared.image.lookup(&self.inode, name)?)?)
    }

    fn list(&self) -> Result<Vec<DirEntry>, Errno> {
        self.shared.image.list(&self.inode)
    }

    fn readlink(&self, _caller: &Caller) -> Result<Vec<u8>, Errno> {
        self.shared.image.target(&self.inode)
    }

    fn open(self: Arc<Self>, flags: Flags, caller: &Caller) -> Result<Box<dyn File>, Errno> {
        if self.inode.kind != FileKind::Regular {
            return Err(Errno::ENXIO);
        }
        if flags.writable() {
            return Err(Errno::EROFS);
        }
        if self.inode.layout == layout::Layout::Compressed {
            tracing::warn!(inode = self.number, "a file of an EROFS image is compressed: it cannot be read");
            return Err(Errno::EOPNOTSUPP);
        }
        let who = &caller.credentials;
        let reads_all = who.capable(CAP_DAC_READ_SEARCH) || who.capable(CAP_DAC_OVERRIDE);
        Ok(Box::new(Opened { node: self, reads_all, copy: OnceLock::new() }))
    }

    fn fifo(&self) -> Option<Arc<Pipe>> {
        (self.inode.kind == FileKind::Fifo).then(|| Arc::clone(self.fifo.get_or_init(Pipe::new)))
    }

    fn has_set_id(&self) -> bool {
        self.inode.mode & 0o6000 != 0
    }

    fn locks(&self) -> Option<&FileLocks> {
        Some(&self.locks)
    }

    fn xattr(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let all = self.shared.image.xattrs(&self.inode)?;
        all.into_iter().find(|(other, _)| other == name).map(|(_, value)| value).ok_or(Errno::ENODATA)
    }

    fn xattrs(&self) -> Result<Vec<Vec<u8>>, Errno> {
        Ok(self.shared.image.xattrs(&self.inode)?.into_iter().map(|(name, _)| name).collect())
    }
}

/// An open regular file.
struct Opened {
    node: Arc<Node>,
    /// Whether who opened it may read all that is in the image.
    reads_all: bool,
    copy: OnceLock<Arc<OwnedFd>>,
}

impl File for Opened {
    fn read(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        self.node.shared.image.read(&self.node.inode, to, offset)
    }

    fn write(&self, _from: &[u8], _offset: u64) -> Result<usize, Errno> {
        Err(Errno::EROFS)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek_data(&self, offset: u64, hole: bool, size: u64) -> Result<u64, Errno> {
        let mut at = offset;
        for _ in 0..RUNS_MAX {
            if at >= size {
                break;
            }
            let (is_hole, length) = match self.node.shared.image.run(&self.node.inode, at)? {
                Run::Hole(length) => (true, length),
                Run::At(_, length) | Run::Entry { length, .. } => (false, length),
            };
            if is_hole == hole {
                return Ok(at);
            }
            at = at.saturating_add(length);
        }
        match (hole, at < size) {
            (true, _) => Ok(size),
            // The rest may be anything: that it is data is never wrong.
            (false, true) => Ok(at),
            (false, false) => Err(Errno::ENXIO),
        }
    }

    fn host_file(&self) -> Result<(Arc<OwnedFd>, u64), Errno> {
        if self.reads_all
            && let Some(at) = self.node.in_pages()?
        {
            return Ok((Arc::clone(&self.node.shared.image.fd), at));
        }
        if let Some(copy) = self.copy.get() {
            return Ok((Arc::clone(copy), 0));
        }
        let copy = self.node.copied()?;
        Ok((Arc::clone(self.copy.get_or_init(|| copy)), 0))
    }

    fn sync(&self) -> Result<(), Errno> {
        Ok(())
    }
}
