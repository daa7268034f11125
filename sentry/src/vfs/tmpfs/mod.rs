//! A file system in memory (`mm/shmem.c` of Linux, `man 5 tmpfs`), and files in memory without a name (`memfd_create`).
//!
//! A file's contents are pages of the sentry's own memory until the file is mapped; from then on they are a memfd of the host, so
//! that what guests see through their mappings and what `read` and `write` do is the same.

mod contents;
mod node;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

pub use node::Node;

use nix::unistd::{SysconfVar, sysconf};

use super::{Content, Dentry, FileSystem, Flags, FsStatus, Inode, NewNode, OpenFile, Tree};
use crate::error::Errno;

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;
/// Files that a file system without a limit can have.
const NODES_MAX: u64 = 1 << 22;

static NEXT_DEVICE: AtomicU64 = AtomicU64::new(32);

/// A device number for a file system that has no device.
pub(super) fn next_device() -> u64 {
    NEXT_DEVICE.fetch_add(1, Ordering::Relaxed)
}

/// What all files of one file system share.
pub(super) struct Shared {
    device: u64,
    limit: u64,
    used: AtomicU64,
    nodes: AtomicU64,
    next: AtomicU64,
}

impl Shared {
    /// `None`: half of the machine's memory, as Linux has it.
    fn new(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            device: next_device(),
            limit: limit.unwrap_or(*HALF_OF_MEMORY),
            used: AtomicU64::new(0),
            nodes: AtomicU64::new(0),
            next: AtomicU64::new(1),
        })
    }

    /// Takes bytes of what there is.
    fn charge(&self, bytes: u64) -> Result<(), Errno> {
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        match self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(()),
            Err(_) => Err(Errno::ENOSPC),
        }
    }

    fn uncharge(&self, bytes: u64) {
        let _ = self
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| Some(used.saturating_sub(bytes)));
    }

    fn most_nodes(&self) -> u64 {
        (self.limit / PAGE).clamp(16, NODES_MAX)
    }

    /// A number for a further file.
    fn node(&self) -> Result<u64, Errno> {
        let more = |nodes: u64| (nodes < self.most_nodes()).then_some(nodes.saturating_add(1));
        match self.nodes.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(self.next.fetch_add(1, Ordering::Relaxed)),
            Err(_) => Err(Errno::ENOSPC),
        }
    }
}

/// A file system in memory.
pub struct Tmpfs {
    shared: Arc<Shared>,
    root: Arc<Node>,
    of_many: AtomicBool,
}

impl Tmpfs {
    /// An empty one, of at most `limit` bytes (half of the machine's memory without one), whose root everybody can use as `/tmp`.
    #[must_use]
    pub fn new(limit: Option<u64>) -> Self {
        Self::with_root(limit, 0o1777, 0, 0)
    }

    /// An empty one whose root has this mode and owner.
    #[must_use]
    pub fn with_root(limit: Option<u64>, mode: u32, uid: u32, gid: u32) -> Self {
        let shared = Shared::new(limit);
        let new = NewNode { content: Content::Folder, mode, uid, gid };
        let root = Node::first(&shared, &new);
        Self { shared, root, of_many: AtomicBool::new(false) }
    }

    /// From now on containers have it in common: what is in it is none's own.
    pub fn become_of_many(&self) {
        self.of_many.store(true, Ordering::Release);
    }

    /// Whether containers have, or had, it in common.
    #[must_use]
    pub fn is_of_many(&self) -> bool {
        self.of_many.load(Ordering::Acquire)
    }

    /// An empty one, ready to be mounted.
    #[must_use]
    pub fn tree(limit: Option<u64>) -> Arc<Dentry> {
        Tree::of(Box::new(Self::new(limit)))
    }
}

impl FileSystem for Tmpfs {
    fn name(&self) -> &'static str {
        "tmpfs"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::clone(&self.root) as Arc<dyn Inode>
    }

    fn status(&self) -> Result<FsStatus, Errno> {
        let blocks = self.shared.limit / PAGE;
        let used = self.shared.used.load(Ordering::Acquire).div_ceil(PAGE);
        let files = self.shared.most_nodes();
        Ok(FsStatus {
            magic: 0x0102_1994,
            block_size: PAGE,
            blocks,
            blocks_free: blocks.saturating_sub(used),
            files,
            files_free: files.saturating_sub(self.shared.nodes.load(Ordering::Acquire)),
        })
    }
}

/// Half of the machine's memory. It is asked for when the first file system is made: later the sentry may not ask any more.
static HALF_OF_MEMORY: LazyLock<u64> = LazyLock::new(|| {
    let pages = sysconf(SysconfVar::_PHYS_PAGES).ok().flatten().and_then(|pages| u64::try_from(pages).ok());
    pages.map_or(1 << 30, |pages| pages.saturating_mul(PAGE) / 2)
});

/// What files of `memfd_create` share.
static MEMFDS: LazyLock<Arc<Shared>> = LazyLock::new(|| Shared::new(None));

/// `F_SEAL_SEAL`: no further seals.
pub const SEAL_SEAL: u32 = 1;
/// `F_SEAL_EXEC`: the mode's execute bits stay.
pub const SEAL_EXEC: u32 = 0x20;

/// A file in memory without a name (`memfd_create`) of this mode, with these seals.
///
/// # Errors
/// ENOSPC.
pub fn memfd(mode: u32, uid: u32, gid: u32, seals: u32) -> Result<Arc<OpenFile>, Errno> {
    let new = NewNode { content: Content::Regular, mode, uid, gid };
    let node = Node::nameless(&MEMFDS, &new, seals)?;
    // O_LARGEFILE, which the C library says is 0.
    let flags = Flags(libc::O_RDWR.cast_unsigned() | 0o100_000);
    let file = Box::new(node::Opened::new(&node, true));
    Ok(OpenFile::nameless(node, file, flags))
}
