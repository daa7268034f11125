//! Inodes of what has no name: `eventfd`, `epoll`, pipes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Attributes, FileKind, Inode, Timestamp};
use crate::error::Errno;

/// Number of the file system that they seem to be in.
const DEVICE: u64 = 15;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// An inode that shows nothing but that it is there.
pub struct AnonInode {
    label: &'static str,
    number: u64,
    kind: FileKind,
    made: Timestamp,
}

/// A new one. `label` is what a link in `/proc/self/fd` shows.
#[must_use]
pub fn inode(label: &'static str) -> Arc<dyn Inode> {
    let kind = if label == "pipe" { FileKind::Fifo } else { FileKind::Regular };
    of_kind(label, kind)
}

/// A new one of some kind: `FileKind::Socket` for a socket.
#[must_use]
pub fn of_kind(label: &'static str, kind: FileKind) -> Arc<dyn Inode> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Arc::new(AnonInode { label, number, kind, made: Timestamp::now() })
}

impl AnonInode {
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

impl Inode for AnonInode {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        Ok(Attributes {
            device: DEVICE,
            inode: self.number,
            kind: self.kind,
            mode: 0o600,
            links: 1,
            uid: 0,
            gid: 0,
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
}
