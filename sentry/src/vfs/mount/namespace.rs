//! A tree of mounts that tasks are in (`man 7 mount_namespaces`; `copy_mnt_ns` in `fs/namespace.c`).

use std::sync::{Arc, Mutex};

use super::super::sync::lock;
use super::super::tmpfs::Tmpfs;
use super::super::{Dentry, FsContext};
use super::change::{self, Copied, Copying};
use super::{Mount, Place, peers};
use crate::error::Errno;
use crate::task::UserNamespace;
use crate::task::namespaces::{Charge, Kind, Meta};

/// Mounts of one namespace (`fs.mount-max`).
pub(super) const EACH_MAX: usize = 10_000;

/// A tree of mounts that tasks are in. Its mounts are taken apart with it.
pub struct MountNamespace {
    meta: Meta,
    owner: Arc<UserNamespace>,
    root: Mutex<Arc<Mount>>,
    _charge: Option<Charge>,
}

impl MountNamespace {
    /// One with this file system alone.
    #[must_use]
    pub fn new(root: Arc<Dentry>) -> Arc<Self> {
        Self::of(&Mount::namespace(root).root_place())
    }

    /// One with an empty folder: the one that a kernel begins with.
    #[must_use]
    pub fn empty() -> Arc<Self> {
        Self::with(Mount::namespace(Tmpfs::tree(None)), Meta::first(Kind::Mount), UserNamespace::root(), None)
    }

    /// The namespace that a place is in; one is made of its tree of mounts where there is none.
    #[must_use]
    pub fn of(place: &Place) -> Arc<Self> {
        let top = place.mount.top();
        if let Some(known) = top.in_namespace() {
            return known;
        }
        Self::with(top, Meta::new(Kind::Mount), UserNamespace::root(), None)
    }

    fn with(root: Arc<Mount>, meta: Meta, owner: &Arc<UserNamespace>, charge: Option<Charge>) -> Arc<Self> {
        let all = root.all();
        let owner = Arc::clone(owner);
        let namespace = Arc::new(Self { meta, owner, root: Mutex::new(root), _charge: charge });
        for mount in all {
            lock(&mount.inner).namespace = Arc::downgrade(&namespace);
        }
        namespace
    }

    /// Its number and kind.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Whose capabilities count in it.
    #[must_use]
    pub fn owner(&self) -> &Arc<UserNamespace> {
        &self.owner
    }

    /// The mount that all others are in.
    #[must_use]
    pub fn root(&self) -> Arc<Mount> {
        Arc::clone(&lock(&self.root))
    }

    /// Its top.
    #[must_use]
    pub fn root_place(&self) -> Place {
        self.root().root_place()
    }

    pub(super) fn set_root(&self, root: Arc<Mount>) {
        let before = std::mem::replace(&mut *lock(&self.root), root);
        drop(before);
    }

    /// All mounts, in the order of their making.
    #[must_use]
    pub fn mounts(&self) -> Vec<Arc<Mount>> {
        let mut all = self.root().all();
        all.sort_by_key(|mount| mount.id());
        all
    }

    /// Whether a mount is in it.
    #[must_use]
    pub fn has(&self, mount: &Mount) -> bool {
        std::ptr::eq(lock(&mount.inner).namespace.as_ptr(), self)
    }

    /// Whether so many more mounts have room.
    pub(super) fn has_room(&self, more: usize) -> Result<(), Errno> {
        if self.root().all().len().saturating_add(more) > EACH_MAX { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// A copy, for tasks of another namespace of users where `owner` is another. Who stands somewhere in this tree by `fs`, which nobody
    /// else uses, then stands at the same place of the copy.
    ///
    /// # Errors
    /// ENOSPC: too many.
    pub fn copy(&self, owner: &Arc<UserNamespace>, fs: &FsContext) -> Result<Arc<Self>, Errno> {
        let charge = Charge::take(Kind::Mount)?;
        let how = Copying { all: true, to_less_privileged: *owner != self.owner };
        let mut copied = Copied::default();
        let root = {
            let mut groups = peers::change();
            let root = self.root();
            change::copy_tree(&mut groups, &root, root.root(), how, &mut copied)?
        };
        let namespace = Self::with(root, Meta::new(Kind::Mount), owner, Some(charge));
        let moved = |place: Place| copied.of(&place.mount).map(|mount| Place { mount, dentry: place.dentry });
        if let Some(root) = moved(fs.root()) {
            fs.set_root(root);
        }
        if let Some(cwd) = moved(fs.cwd()) {
            fs.set_cwd(cwd);
        }
        Ok(namespace)
    }
}

impl Drop for MountNamespace {
    fn drop(&mut self) {
        let root = self.root();
        let mut groups = peers::change();
        let gone = change::take_apart(&mut groups, &root);
        drop(groups);
        // With no lock: one of them may be the last to hold another namespace.
        drop((gone, root));
    }
}
