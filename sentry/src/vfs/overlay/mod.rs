//! A writable file system over read-only ones (`fs/overlayfs` of Linux, `Documentation/filesystems/overlayfs.rst`), without
//! `redirect_dir` and `index`.
//!
//! What a lower layer has is copied to the upper one before it is changed. What is taken away leaves a *whiteout* in the upper layer (a
//! character device of number 0), a folder made anew in its place is *opaque*. New files are put together in `work`, a folder of the
//! upper file system that nobody sees, and renamed into place.

mod change;
mod copy_up;
mod node;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use node::Node;

use super::{Caller, Dentry, FileSystem, FsStatus, Inode, Tree};
use crate::error::Errno;

/// Marks an opaque folder.
pub(super) const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Names of extended attributes that are the overlay's own.
pub(crate) const PRIVATE: &[u8] = b"trusted.overlay.";

/// What all files of one overlay share.
struct Shared {
    device: u64,
    upper_fs: Box<dyn FileSystem>,
    work: Arc<dyn Inode>,
    /// Changes, one at a time.
    change: Mutex<u64>,
    /// Files that are in the upper layer, by its number; and what number those had that were copied up.
    known: Mutex<HashMap<u64, Weak<Node>>>,
    /// Held from looking into `known` until a new node is in it.
    building: Mutex<()>,
    origins: Mutex<HashMap<u64, u64>>,
    caller: Caller,
    /// Whether all layers are ([`Inode::steady`]).
    steady: bool,
}

/// A writable file system over read-only ones.
pub struct Overlay {
    shared: Arc<Shared>,
    root: Arc<Node>,
}

impl Overlay {
    /// Over `lower`, whose first is uppermost. `upper` and `work` are two empty folders of `upper_fs`.
    ///
    /// # Errors
    /// What the file systems say.
    pub fn new(
        upper_fs: Box<dyn FileSystem>,
        upper: Arc<dyn Inode>,
        work: Arc<dyn Inode>,
        lower: Vec<Arc<dyn Inode>>,
    ) -> Result<Self, Errno> {
        let shared = Arc::new(Shared {
            device: super::tmpfs::next_device(),
            upper_fs,
            work,
            change: Mutex::default(),
            known: Mutex::default(),
            building: Mutex::default(),
            origins: Mutex::default(),
            caller: Caller::root(),
            steady: upper.steady() && lower.iter().all(|layer| layer.steady()),
        });
        let root = Node::root(&shared, upper, lower)?;
        Ok(Self { shared, root })
    }

    /// Over `lower`, with what changes in a `tmpfs` of at most `limit` bytes, ready to be mounted.
    ///
    /// # Errors
    /// What the file systems say.
    pub fn in_memory(lower: Vec<Arc<dyn Inode>>, limit: Option<u64>) -> Result<Arc<Dentry>, Errno> {
        use super::{Content, NewNode};
        let memory = super::tmpfs::Tmpfs::new(limit);
        let root = memory.root();
        let like = match lower.first() {
            Some(first) => first.attributes()?,
            None => root.attributes()?,
        };
        let new = NewNode { content: Content::Folder, mode: like.mode, uid: like.uid, gid: like.gid };
        let (upper, work) = (root.create(b"upper", &new)?, root.create(b"work", &new)?);
        Ok(Tree::of(Box::new(Self::new(Box::new(memory), upper, work, lower)?)))
    }
}

impl Overlay {
    /// The top of the upper layer: what was changed.
    pub(crate) fn upper(&self) -> Option<Arc<dyn Inode>> {
        self.root.upper()
    }
}

/// Whether a folder of the upper layer hides what lies below it.
pub(crate) fn is_opaque(folder: &Arc<dyn Inode>) -> bool {
    node::is_opaque(folder)
}

impl FileSystem for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::clone(&self.root) as Arc<dyn Inode>
    }

    fn status(&self) -> Result<FsStatus, Errno> {
        Ok(FsStatus { magic: 0x794c_7630, ..self.shared.upper_fs.status()? })
    }
}
