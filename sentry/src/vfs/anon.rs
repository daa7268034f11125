//! Inodes of what has no name: `eventfd`, `epoll`, pipes, descriptors of the host.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use super::locks::FileLocks;
use super::pipe::Pipe;
use super::sync::lock;
use super::tmpfs::Tmpfs;
use super::{AttributeChange, Attributes, Caller, File, FileKind, Flags, Inode, Mount, Place, Timestamp};
use crate::error::Errno;

/// Number of the file system that they seem to be in.
const DEVICE: u64 = 15;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Opens the same thing once more.
pub(super) type Reopen = Box<dyn Fn(Flags) -> Result<Box<dyn File>, Errno> + Send + Sync>;

/// An inode that shows nothing but that it is there.
pub struct AnonInode {
    label: &'static str,
    number: u64,
    kind: FileKind,
    /// Mode, owner, group.
    meta: Mutex<(u32, u32, u32)>,
    made: Timestamp,
    pipe: Option<Arc<Pipe>>,
    reopen: Option<Reopen>,
    locks: FileLocks,
}

impl AnonInode {
    fn new(label: &'static str, kind: FileKind) -> Self {
        Self {
            label,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            kind,
            meta: Mutex::new((0o600, 0, 0)),
            made: Timestamp::now(),
            pipe: None,
            reopen: None,
            locks: FileLocks::default(),
        }
    }

    /// What a link in `/proc/self/fd` shows: `anon_inode:[eventfd]`, `pipe:[17]`.
    #[must_use]
    pub fn label(&self) -> String {
        if self.kind == FileKind::Regular {
            self.label.to_owned()
        } else {
            format!("{}:[{}]", self.label, self.number)
        }
    }
}

/// A new one. `label` is what a link in `/proc/self/fd` shows.
#[must_use]
pub fn inode(label: &'static str) -> Arc<dyn Inode> {
    of_kind(label, FileKind::Regular)
}

/// A new one of some kind: `FileKind::Socket` for a socket.
#[must_use]
pub fn of_kind(label: &'static str, kind: FileKind) -> Arc<dyn Inode> {
    Arc::new(AnonInode::new(label, kind))
}

/// That of a pipe, which can be opened again by way of `/proc/self/fd`.
pub(super) fn of_pipe(pipe: &Arc<Pipe>) -> Arc<dyn Inode> {
    Arc::new(AnonInode { pipe: Some(Arc::clone(pipe)), ..AnonInode::new("pipe", FileKind::Fifo) })
}

/// That of a descriptor of the host. Whoever runs in the container may open it again.
pub(super) fn of_host(kind: FileKind, reopen: Reopen) -> Arc<dyn Inode> {
    let label = match kind {
        FileKind::Fifo => "pipe",
        FileKind::Socket => "socket",
        _ => "host",
    };
    let meta = Mutex::new((0o666, 0, 0));
    Arc::new(AnonInode { reopen: Some(reopen), meta, ..AnonInode::new(label, kind) })
}

/// A place for an inode that has no name, from which it can be opened.
pub(super) fn place(inode: &Arc<dyn Inode>) -> Place {
    static NOWHERE: LazyLock<Place> = LazyLock::new(|| Mount::namespace(Tmpfs::tree(None)).root_place());
    NOWHERE.with(NOWHERE.dentry.nameless(Arc::clone(inode), b"anonymous".to_vec()))
}

impl Inode for AnonInode {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        let (mode, uid, gid) = *lock(&self.meta);
        Ok(Attributes {
            device: DEVICE,
            inode: self.number,
            kind: self.kind,
            mode,
            links: 1,
            uid,
            gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            block_size: 4096,
            accessed: self.made,
            modified: self.made,
            changed: self.made,
            created: None,
        })
    }

    fn change(&self, change: &AttributeChange) -> Result<(), Errno> {
        if self.anonymous() {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut meta = lock(&self.meta);
        meta.0 = change.mode.unwrap_or(meta.0);
        meta.1 = change.uid.unwrap_or(meta.1);
        meta.2 = change.gid.unwrap_or(meta.2);
        Ok(())
    }

    fn anonymous(&self) -> bool {
        self.kind == FileKind::Regular && self.reopen.is_none()
    }

    fn locks(&self) -> Option<&FileLocks> {
        Some(&self.locks)
    }

    fn open(self: Arc<Self>, flags: Flags, _caller: &Caller) -> Result<Box<dyn File>, Errno> {
        if let Some(pipe) = &self.pipe {
            return Ok(Box::new(pipe.reopen(flags)));
        }
        self.reopen.as_ref().map_or(Err(Errno::ENXIO), |reopen| reopen(flags))
    }
}
