//! Names of a file system. A dentry holds its parent; a folder knows its children only as long as somebody else holds them, among
//! others the tree, which holds the last that were looked up.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use super::sync::{lock, read, write};
use super::{FileKind, FileSystem, Inode, NewNode};
use crate::error::Errno;

/// Names that a tree holds although nobody uses them.
const CACHED: usize = 4096;

/// A file system with its names.
pub struct Tree {
    /// The file system.
    pub fs: Box<dyn FileSystem>,
    /// One rename at a time.
    pub(super) renames: Mutex<()>,
    recent: Mutex<VecDeque<Arc<Dentry>>>,
    /// Whether its names change by calls of the sandbox's programs alone ([`Inode::steady`]).
    pub(super) steady: bool,
}

impl Tree {
    /// Names of a file system, of which its root is known.
    #[must_use]
    pub fn of(fs: Box<dyn FileSystem>) -> Arc<Dentry> {
        let inode = fs.root();
        let tree = Arc::new(Self {
            fs,
            renames: Mutex::default(),
            recent: Mutex::default(),
            steady: inode.steady(),
        });
        Dentry::new(&tree, inode, None, Vec::new())
    }

    /// Holds a name a while. What falls out is dropped without a lock held.
    fn remember(&self, dentry: &Arc<Dentry>) {
        let fallen = {
            let mut recent = lock(&self.recent);
            recent.push_back(Arc::clone(dentry));
            if recent.len() > CACHED { recent.pop_front() } else { None }
        };
        drop(fallen);
    }

    /// Holds none any more: for an unmount, after which nothing is to keep the tree alive.
    pub fn forget(&self) {
        let fallen = std::mem::take(&mut *lock(&self.recent));
        drop(fallen);
    }
}

/// A name of a file system and the inode it stands for.
pub struct Dentry {
    tree: Arc<Tree>,
    inode: Arc<dyn Inode>,
    at: Mutex<(Option<Arc<Dentry>>, Vec<u8>)>,
    children: RwLock<HashMap<Vec<u8>, Weak<Dentry>>>,
    unlinked: AtomicBool,
    /// Mounts on it: where this is 0, nobody has to look for them.
    pub(super) mounts: AtomicU32,
    /// Open descriptions of it, and whether the file went with this name: for who watches it.
    pub(super) opens: AtomicU32,
    pub(super) gone: AtomicBool,
    /// Never gets a name (`O_TMPFILE` with `O_EXCL`).
    unlinkable: AtomicBool,
}

impl Dentry {
    fn new(tree: &Arc<Tree>, inode: Arc<dyn Inode>, parent: Option<Arc<Self>>, name: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            tree: Arc::clone(tree),
            inode,
            at: Mutex::new((parent, name)),
            children: RwLock::default(),
            unlinked: AtomicBool::new(false),
            mounts: AtomicU32::new(0),
            opens: AtomicU32::new(0),
            gone: AtomicBool::new(false),
            unlinkable: AtomicBool::new(false),
        })
    }

    /// A file without a name in this folder's file system (`O_TMPFILE`, `memfd_create`).
    #[must_use]
    pub fn nameless(self: &Arc<Self>, inode: Arc<dyn Inode>, name: Vec<u8>) -> Arc<Self> {
        let dentry = Self::new(&self.tree, inode, Some(Arc::clone(self)), name);
        dentry.unlinked.store(true, Ordering::Release);
        dentry
    }

    /// Whether the file without a name never gets one.
    #[must_use]
    pub fn unlinkable(&self) -> bool {
        self.unlinkable.load(Ordering::Acquire)
    }

    /// Lets it never have a name.
    pub(super) fn forbid_links(&self) {
        self.unlinkable.store(true, Ordering::Release);
    }

    /// The file.
    #[must_use]
    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }

    /// Its file system.
    #[must_use]
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Whether it is a folder.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        self.inode.kind() == FileKind::Folder
    }

    /// The folder it is in; `None` for the root of its file system.
    #[must_use]
    pub fn parent(&self) -> Option<Arc<Self>> {
        lock(&self.at).0.clone()
    }

    /// Its name there; empty for the root.
    #[must_use]
    pub fn name(&self) -> Vec<u8> {
        lock(&self.at).1.clone()
    }

    /// Whether the name is gone.
    #[must_use]
    pub fn unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Acquire)
    }

    /// Whether `self` is `other` or above it.
    #[must_use]
    pub fn contains(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        let mut at = Some(Arc::clone(other));
        while let Some(dentry) = at {
            if Arc::ptr_eq(self, &dentry) {
                return true;
            }
            at = dentry.parent();
        }
        false
    }

    /// The child of that name.
    ///
    /// # Errors
    /// ENAMETOOLONG, ENOENT, ENOTDIR, and what the file system says.
    pub fn lookup(self: &Arc<Self>, name: &[u8]) -> Result<Arc<Self>, Errno> {
        if name.len() > super::NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let known = read(&self.children).get(name).and_then(Weak::upgrade);
        if let Some(child) = known.filter(|child| child.inode.valid()) {
            return Ok(child);
        }
        let (child, stale) = {
            let mut children = write(&self.children);
            let known = children.get(name).and_then(Weak::upgrade);
            if let Some(child) = known.as_ref().filter(|child| child.inode.valid()) {
                return Ok(Arc::clone(child));
            }
            if let Some(stale) = &known {
                stale.unlinked.store(true, Ordering::Release);
                children.remove(name);
            }
            let inode = self.inode.lookup(name)?;
            (self.adopt(&mut children, name, inode), known)
        };
        drop(stale);
        self.tree.remember(&child);
        Ok(child)
    }

    fn adopt(
        self: &Arc<Self>,
        children: &mut HashMap<Vec<u8>, Weak<Self>>,
        name: &[u8],
        inode: Arc<dyn Inode>,
    ) -> Arc<Self> {
        if children.len() >= 64 && children.len().is_power_of_two() {
            children.retain(|_, child| child.strong_count() > 0);
        }
        let child = Self::new(&self.tree, inode, Some(Arc::clone(self)), name.to_vec());
        children.insert(name.to_vec(), Arc::downgrade(&child));
        child
    }

    /// Makes a file.
    ///
    /// # Errors
    /// EEXIST, and what the file system says.
    pub fn create(self: &Arc<Self>, name: &[u8], new: &NewNode<'_>) -> Result<Arc<Self>, Errno> {
        let child = {
            let mut children = write(&self.children);
            if children.get(name).is_some_and(|child| child.strong_count() > 0) {
                return Err(Errno::EEXIST);
            }
            let inode = self.inode.create(name, new)?;
            self.adopt(&mut children, name, inode)
        };
        self.tree.remember(&child);
        Ok(child)
    }

    /// Gives a file of this file system a further name.
    ///
    /// # Errors
    /// EEXIST, and what the file system says.
    pub fn link(self: &Arc<Self>, name: &[u8], target: &Arc<Self>) -> Result<(), Errno> {
        let children = write(&self.children);
        let result = self.inode.link(name, &target.inode);
        drop(children);
        result
    }

    /// Takes `child`, which has been found in this folder, away.
    ///
    /// # Errors
    /// ENOENT where it has gone meanwhile; EBUSY where something is mounted on it; what the file system says.
    pub fn remove(self: &Arc<Self>, name: &[u8], child: &Arc<Self>) -> Result<(), Errno> {
        let mut children = write(&self.children);
        if !children.get(name).and_then(Weak::upgrade).is_some_and(|now| Arc::ptr_eq(&now, child)) {
            return Err(Errno::ENOENT);
        }
        if child.mounts.load(Ordering::Acquire) != 0 {
            return Err(Errno::EBUSY);
        }
        if child.is_folder() {
            self.inode.rmdir(name)?
        } else {
            self.inode.unlink(name)?
        }
        children.remove(name);
        child.unlinked.store(true, Ordering::Release);
        Ok(())
    }

    /// Renames: what has been found as `from` in this folder to `to_name` in `to`, where `target` has been found. The
    /// caller holds [`Tree::renames`].
    ///
    /// # Errors
    /// ENOENT or EEXIST where either has changed meanwhile; EBUSY; what the file system says.
    pub(super) fn rename(
        self: &Arc<Self>,
        from: &Arc<Self>,
        to: &Arc<Self>,
        to_name: &[u8],
        target: Option<&Arc<Self>>,
        mode: super::RenameMode,
    ) -> Result<(), Errno> {
        let name = from.name();
        if [Some(from), target].into_iter().flatten().any(|file| file.mounts.load(Ordering::Acquire) != 0) {
            return Err(Errno::EBUSY);
        }
        let same = Arc::ptr_eq(self, to);
        let first_is_self = Arc::as_ptr(self) < Arc::as_ptr(to);
        let mut first = write(if first_is_self { &self.children } else { &to.children });
        let mut second =
            if same { None } else { Some(write(if first_is_self { &to.children } else { &self.children })) };
        if from.unlinked() || target.is_some_and(|target| target.unlinked()) {
            return Err(Errno::ENOENT);
        }
        self.inode.rename(&name, &to.inode, to_name, mode)?;
        let (ours, theirs) = match (&mut second, first_is_self) {
            (None, _) => (&mut *first, None),
            (Some(second), true) => (&mut *first, Some(&mut **second)),
            (Some(second), false) => (&mut **second, Some(&mut *first)),
        };
        ours.remove(&name);
        theirs.unwrap_or(&mut *ours).insert(to_name.to_vec(), Arc::downgrade(from));
        *lock(&from.at) = (Some(Arc::clone(to)), to_name.to_vec());
        match (target, mode) {
            (Some(target), super::RenameMode::Exchange) => {
                ours.insert(name.clone(), Arc::downgrade(target));
                *lock(&target.at) = (Some(Arc::clone(self)), name);
            }
            (Some(target), _) => target.unlinked.store(true, Ordering::Release),
            (None, _) => {}
        }
        Ok(())
    }
}

impl Drop for Dentry {
    /// A chain of folders that nobody else holds goes one by one: a guest decides how deep it is, our stack does not.
    fn drop(&mut self) {
        let take = |at: &mut Mutex<(Option<Arc<Self>>, Vec<u8>)>| {
            at.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).0.take()
        };
        let mut next = take(&mut self.at);
        while let Some(mut parent) = next.take().and_then(Arc::into_inner) {
            next = take(&mut parent.at);
        }
    }
}
