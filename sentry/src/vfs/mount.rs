//! Mounts: which file system is seen where.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bitflags::bitflags;

use super::sync::lock;
use super::{Dentry, FileKind};
use crate::error::Errno;

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
        /// Stamps of the last read.
        const NO_ATIME = 1024;
    }
}

/// Mounts that a namespace has at most (`fs.mount-max` is larger; nothing real comes near).
const MOUNTS_MAX: u32 = 10_000;

/// What the mounts of one tree of mounts share.
#[derive(Default)]
pub struct Namespace {
    change: Mutex<()>,
    next: AtomicU64,
    count: AtomicU32,
}

/// A file system, or a part of it, at a place.
pub struct Mount {
    id: u64,
    namespace: Arc<Namespace>,
    root: Arc<Dentry>,
    flags: AtomicU32,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    at: Option<Place>,
    children: HashMap<usize, Arc<Mount>>,
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
            let child = lock(&self.mount.inner).children.get(&key(&self.dentry)).cloned();
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
            if !Arc::ptr_eq(&at.dentry, &at.mount.root) {
                return match at.dentry.parent() {
                    Some(parent) => at.with(parent).down(),
                    None => at,
                };
            }
            let above = lock(&at.mount.inner).at.clone();
            match above {
                Some(above) => at = above,
                None => return at,
            }
        }
    }

    /// Its path as seen from `root`; `None` when it is not below it.
    #[must_use]
    pub fn path(&self, root: &Self) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = self.clone();
        while !at.same(root) {
            if Arc::ptr_eq(&at.dentry, &at.mount.root) {
                let above = lock(&at.mount.inner).at.clone();
                at = above?;
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
        let mut top = Arc::clone(&self.mount);
        loop {
            let above = lock(&top.inner).at.as_ref().map(|at| Arc::clone(&at.mount));
            match above {
                Some(above) => top = above,
                None => break,
            }
        }
        self.path(&top.root_place()).unwrap_or_default()
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
    /// The first mount of a new namespace.
    #[must_use]
    pub fn namespace(root: Arc<Dentry>) -> Arc<Self> {
        Self::new(&Arc::default(), root, MountFlags::empty())
    }

    fn new(namespace: &Arc<Namespace>, root: Arc<Dentry>, flags: MountFlags) -> Arc<Self> {
        namespace.count.fetch_add(1, Ordering::AcqRel);
        Arc::new(Self {
            id: namespace.next.fetch_add(1, Ordering::Relaxed).saturating_add(1),
            namespace: Arc::clone(namespace),
            root,
            flags: AtomicU32::new(flags.bits()),
            inner: Mutex::default(),
        })
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

    /// Where it is mounted; `None` for the first one and for what has been taken away.
    #[must_use]
    pub fn at(&self) -> Option<Place> {
        lock(&self.inner).at.clone()
    }

    /// What is mounted in it.
    #[must_use]
    pub fn children(&self) -> Vec<Arc<Self>> {
        let mut children: Vec<_> = lock(&self.inner).children.values().cloned().collect();
        children.sort_by_key(|mount| mount.id);
        children
    }

    /// Itself and all mounts in it, those above first (`/proc/self/mounts`).
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

    /// Mounts what `root` is the top of at `place`, over what is there.
    ///
    /// # Errors
    /// ENOTDIR where one is a folder and the other is not; ENOENT where the place is gone; ENOSPC: too many mounts.
    pub fn add(place: &Place, root: Arc<Dentry>, flags: MountFlags) -> Result<Arc<Self>, Errno> {
        let namespace = Arc::clone(&place.mount.namespace);
        let _change = lock(&namespace.change);
        let place = place.clone().down();
        if (place.dentry.inode().kind() == FileKind::Folder) != (root.inode().kind() == FileKind::Folder) {
            return Err(Errno::ENOTDIR);
        }
        if place.dentry.unlinked() {
            return Err(Errno::ENOENT);
        }
        if namespace.count.load(Ordering::Acquire) >= MOUNTS_MAX {
            return Err(Errno::ENOSPC);
        }
        let mount = Self::new(&namespace, root, flags);
        Self::attach(&mount, place);
        Ok(mount)
    }

    /// Shows at `place` what `source` shows (`MS_BIND`), with `MS_REC` also what is mounted in it.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn bind(place: &Place, source: &Place, recursive: bool) -> Result<Arc<Self>, Errno> {
        let below: Vec<_> = if recursive { source.mount.children() } else { Vec::new() };
        let mount = Self::add(place, Arc::clone(&source.dentry), source.mount.flags())?;
        for child in below {
            let Some(at) = child.at().filter(|at| source.dentry.contains(&at.dentry)) else { continue };
            let at = Place { mount: Arc::clone(&mount), dentry: at.dentry };
            Self::bind(&at, &child.root_place(), true)?;
        }
        Ok(mount)
    }

    fn attach(mount: &Arc<Self>, place: Place) {
        place.dentry.mounts.fetch_add(1, Ordering::AcqRel);
        lock(&place.mount.inner).children.insert(key(&place.dentry), Arc::clone(mount));
        lock(&mount.inner).at = Some(place);
    }

    fn detach(mount: &Arc<Self>) -> Option<Place> {
        let place = lock(&mount.inner).at.take()?;
        lock(&place.mount.inner).children.remove(&key(&place.dentry));
        place.dentry.mounts.fetch_sub(1, Ordering::AcqRel);
        Some(place)
    }

    /// Takes a mount away. `lazy` (`MNT_DETACH`): with all that is mounted in it, and although it is in use.
    ///
    /// # Errors
    /// EINVAL for the first mount; EBUSY where it is in use.
    pub fn unmount(self: &Arc<Self>, lazy: bool) -> Result<(), Errno> {
        let _change = lock(&self.namespace.change);
        if lock(&self.inner).at.is_none() {
            return Err(Errno::EINVAL);
        }
        // Held by its parent and by whoever calls this.
        if !lazy && (!lock(&self.inner).children.is_empty() || Arc::strong_count(self) > 2) {
            return Err(Errno::EBUSY);
        }
        let mut left = vec![Arc::clone(self)];
        while let Some(mount) = left.pop() {
            left.extend(mount.children());
            Self::detach(&mount);
        }
        Ok(())
    }

    /// Makes `new_root`'s mount the top of the tree and moves the mount that was there to `put_old` (`man 2 pivot_root`).
    ///
    /// # Errors
    /// EINVAL and EBUSY as the manual page says.
    pub fn pivot(old_root: &Place, new_root: &Place, put_old: &Place) -> Result<(), Errno> {
        let _change = lock(&new_root.mount.namespace.change);
        if Arc::ptr_eq(&old_root.mount, &new_root.mount) || Arc::ptr_eq(&old_root.mount, &put_old.mount) {
            return Err(Errno::EBUSY);
        }
        if !Arc::ptr_eq(&new_root.mount.root, &new_root.dentry)
            || !Arc::ptr_eq(&old_root.mount.root, &old_root.dentry)
            || !Arc::ptr_eq(&put_old.mount, &new_root.mount)
        {
            return Err(Errno::EINVAL);
        }
        Self::detach(&new_root.mount).ok_or(Errno::EINVAL)?;
        if let Some(above) = Self::detach(&old_root.mount) {
            Self::attach(&new_root.mount, above);
        }
        Self::attach(&old_root.mount, put_old.clone());
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.namespace.count.fetch_sub(1, Ordering::AcqRel);
        // What the tree remembers would hold it for ever once its last mount is gone.
        if self.root.parent().is_none() {
            self.root.tree().forget();
        }
    }
}
