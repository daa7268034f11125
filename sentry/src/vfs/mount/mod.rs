//! Mounts: which file system is seen where.
//!
//! | file | what is in it |
//! |---|---|
//! | `namespace` | a tree of mounts that tasks are in, and copies of it |
//! | `change` | mounting, binding, moving, taking away, `pivot_root` |
//! | `peers` | shared, private, slave and unbindable mounts: what happens to one happens to others |
//!
//! All changes are made under one lock, [`peers::change`], as `namespace_sem` of Linux; walks take none but that of the mount they
//! stand in, and that only where something is mounted.

mod change;
mod namespace;
mod peers;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bitflags::bitflags;

use super::Dentry;
use super::sync::lock;
use crate::error::Errno;

pub use change::{Copying, Unmount};
pub use namespace::MountNamespace;
pub use peers::{Propagation, Sharing};

bitflags! {
    /// What a mount forbids, with the numbers of `mount` (`include/uapi/linux/mount.h`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct MountFlags: u32 {
        /// Changes.
        const READ_ONLY = 1;
        /// That set-id bits have an effect.
        const NO_SUID = 2;
        /// That devices are opened.
        const NO_DEV = 4;
        /// That programs are started.
        const NO_EXEC = 8;
        /// That symbolic links are followed.
        const NO_SYMFOLLOW = 256;
        /// Stamps of the last read.
        const NO_ATIME = 1024;
        /// Those of folders.
        const NO_DIR_ATIME = 2048;
        /// Nothing: stamps of the last read are always made.
        const STRICT_ATIME = 1 << 24;
    }
}

/// Mounts that there are at most, in all namespaces.
const MOUNTS_MAX: usize = 100_000;
static COUNT: AtomicUsize = AtomicUsize::new(0);
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A file system, or a part of it, at a place.
pub struct Mount {
    id: u64,
    root: Arc<Dentry>,
    flags: AtomicU32,
    /// What it is called where devices are named.
    source: Vec<u8>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    at: Option<Place>,
    children: HashMap<usize, Arc<Mount>>,
    namespace: Weak<MountNamespace>,
    peers: peers::Membership,
    /// It came from a namespace of more privileged users: it stays where it is (`MNT_LOCKED`).
    locked: bool,
    /// What of its flags such users set (`MNT_LOCK_*`).
    locked_flags: MountFlags,
    /// `MNT_EXPIRE` was asked for once.
    expires: bool,
}

/// A name seen through a mount.
#[derive(Clone)]
pub struct Place {
    /// The mount.
    pub mount: Arc<Mount>,
    /// The name.
    pub dentry: Arc<Dentry>,
}

fn key(dentry: &Arc<Dentry>) -> usize {
    Arc::as_ptr(dentry).addr()
}

impl Place {
    /// Whether both are the same.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.mount, &other.mount) && Arc::ptr_eq(&self.dentry, &other.dentry)
    }

    /// Another name through the same mount.
    #[must_use]
    pub fn with(&self, dentry: Arc<Dentry>) -> Self {
        Self { mount: Arc::clone(&self.mount), dentry }
    }

    /// What is to be seen here: the root of what is mounted on it, as often as there is such a thing.
    #[must_use]
    pub fn down(mut self) -> Self {
        while self.dentry.mounts.load(Ordering::Acquire) != 0 {
            let child = self.mount.child_at(&self.dentry);
            match child {
                Some(child) => self = child.root_place(),
                None => break,
            }
        }
        self
    }

    /// The folder above, `root` being the top.
    #[must_use]
    pub fn up(&self, root: &Self) -> Self {
        let mut at = self.clone();
        loop {
            if at.same(root) {
                return at;
            }
            if !at.is_root_of_mount() {
                return match at.dentry.parent() {
                    Some(parent) => at.with(parent).down(),
                    None => at,
                };
            }
            let above = at.mount.at();
            match above {
                Some(above) => at = above,
                // At the top of all: what is mounted on it is what is seen.
                None => return at.down(),
            }
        }
    }

    /// Whether it is the top of what its mount shows.
    #[must_use]
    pub fn is_root_of_mount(&self) -> bool {
        Arc::ptr_eq(&self.dentry, &self.mount.root)
    }

    /// Its path as seen from `root`; `None` when it is not below it.
    #[must_use]
    pub fn path(&self, root: &Self) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = self.clone();
        while !at.same(root) {
            if at.is_root_of_mount() {
                at = at.mount.at()?;
            } else {
                names.push(at.dentry.name());
                let parent = at.dentry.parent()?;
                at = at.with(parent);
            }
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        Some(path)
    }

    /// Its path as seen from the top of the tree of mounts.
    #[must_use]
    pub fn absolute(&self) -> Vec<u8> {
        self.path(&self.mount.top().root_place()).unwrap_or_default()
    }

    /// EROFS where nothing may be changed through this mount.
    ///
    /// # Errors
    /// EROFS.
    pub fn writable(&self) -> Result<(), Errno> {
        let read_only =
            self.mount.flags().contains(MountFlags::READ_ONLY) || self.dentry.tree().fs.read_only();
        if read_only { Err(Errno::EROFS) } else { Ok(()) }
    }
}

impl Mount {
    /// The first mount of a tree that is in no namespace until [`MountNamespace::of`] makes one of it.
    #[must_use]
    pub fn namespace(root: Arc<Dentry>) -> Arc<Self> {
        let source = root.tree().fs.name().as_bytes().to_vec();
        Self::make(root, MountFlags::empty(), source)
    }

    /// One that is nowhere.
    ///
    /// # Errors
    /// ENOSPC: too many.
    pub fn detached(root: Arc<Dentry>, flags: MountFlags, source: Vec<u8>) -> Result<Arc<Self>, Errno> {
        if COUNT.load(Ordering::Relaxed) >= MOUNTS_MAX {
            return Err(Errno::ENOSPC);
        }
        Ok(Self::make(root, flags, source))
    }

    fn make(root: Arc<Dentry>, flags: MountFlags, source: Vec<u8>) -> Arc<Self> {
        COUNT.fetch_add(1, Ordering::Relaxed);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { id, root, flags: AtomicU32::new(flags.bits()), source, inner: Mutex::default() })
    }

    /// Its number (`mountinfo`, `statx`).
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it shows at the top.
    #[must_use]
    pub fn root(&self) -> &Arc<Dentry> {
        &self.root
    }

    /// Its root, seen through itself.
    #[must_use]
    pub fn root_place(self: &Arc<Self>) -> Place {
        Place { mount: Arc::clone(self), dentry: Arc::clone(&self.root) }
    }

    /// What it forbids.
    #[must_use]
    pub fn flags(&self) -> MountFlags {
        MountFlags::from_bits_truncate(self.flags.load(Ordering::Relaxed))
    }

    /// Changes what it forbids (`MS_REMOUNT`).
    pub fn set_flags(&self, flags: MountFlags) {
        self.flags.store(flags.bits(), Ordering::Relaxed);
    }

    /// What of its flags may not be taken back.
    #[must_use]
    pub fn locked_flags(&self) -> MountFlags {
        lock(&self.inner).locked_flags
    }

    /// What it is called where devices are named.
    #[must_use]
    pub fn source(&self) -> &[u8] {
        &self.source
    }

    /// Where it is mounted; `None` for the first one and for what has been taken away.
    #[must_use]
    pub fn at(&self) -> Option<Place> {
        lock(&self.inner).at.clone()
    }

    /// What is mounted at a name in it.
    fn child_at(&self, dentry: &Arc<Dentry>) -> Option<Arc<Self>> {
        lock(&self.inner).children.get(&key(dentry)).cloned()
    }

    /// What is mounted in it.
    #[must_use]
    pub fn children(&self) -> Vec<Arc<Self>> {
        let mut children: Vec<_> = lock(&self.inner).children.values().cloned().collect();
        children.sort_by_key(|mount| mount.id);
        children
    }

    /// Itself and all mounts in it, those above first.
    #[must_use]
    pub fn all(self: &Arc<Self>) -> Vec<Arc<Self>> {
        let mut all = vec![Arc::clone(self)];
        let mut next = 0;
        while let Some(mount) = all.get(next).cloned() {
            all.extend(mount.children());
            next += 1;
        }
        all
    }

    /// The mount that this one, through others, is in.
    #[must_use]
    pub fn top(self: &Arc<Self>) -> Arc<Self> {
        let mut top = Arc::clone(self);
        while let Some(above) = top.at() {
            top = above.mount;
        }
        top
    }

    /// The namespace that it is in.
    #[must_use]
    pub fn in_namespace(&self) -> Option<Arc<MountNamespace>> {
        lock(&self.inner).namespace.upgrade()
    }

    /// How it shares what happens to it.
    #[must_use]
    pub fn propagation(&self) -> Propagation {
        lock(&self.inner).peers.seen()
    }

    /// Whether it may not be taken away, as it came from more privileged users.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        lock(&self.inner).locked
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
        // What the tree remembers would hold it for ever once its last mount is gone.
        if self.root.parent().is_none() {
            self.root.tree().forget();
        }
    }
}
