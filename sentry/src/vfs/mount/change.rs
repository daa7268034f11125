//! Mounting, binding, moving, taking away (`fs/namespace.c`; `man 2 mount`, `man 2 umount`, `man 2 pivot_root`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::sync::lock;
use super::super::{Dentry, FileKind};
use super::peers::{self, Groups, Membership, Sharing};
use super::{COUNT, MOUNTS_MAX, Mount, MountFlags, MountNamespace, Place, key};
use crate::error::Errno;

/// How a tree of mounts is copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct Copying {
    /// Also what cannot be bound elsewhere.
    pub all: bool,
    /// For users who may less: the copies only hear of the originals, and stay where they are, as they are.
    pub to_less_privileged: bool,
}

/// Which mount is a copy of which.
#[derive(Default)]
pub(super) struct Copied(HashMap<u64, Arc<Mount>>);

impl Copied {
    pub(super) fn of(&self, mount: &Mount) -> Option<Arc<Mount>> {
        self.0.get(&mount.id).cloned()
    }
}

/// How a mount is taken away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unmount {
    /// `MNT_DETACH`: with all that is mounted in it, and although it is in use.
    pub lazy: bool,
    /// `MNT_EXPIRE`: only if nobody used it since this was asked for last.
    pub expire: bool,
}

fn attach(mount: &Arc<Mount>, place: Place) {
    place.dentry.mounts.fetch_add(1, Ordering::AcqRel);
    let namespace = {
        let mut inner = lock(&place.mount.inner);
        inner.children.insert(key(&place.dentry), Arc::clone(mount));
        inner.namespace.clone()
    };
    lock(&mount.inner).at = Some(place);
    for below in mount.all() {
        lock(&below.inner).namespace.clone_from(&namespace);
    }
}

fn detach(mount: &Arc<Mount>) -> Option<Place> {
    let place = lock(&mount.inner).at.take()?;
    lock(&place.mount.inner).children.remove(&key(&place.dentry));
    place.dentry.mounts.fetch_sub(1, Ordering::AcqRel);
    Some(place)
}

/// Takes a mount and all in it apart: each is by itself afterwards. What has gone, to be dropped without the lock.
pub(super) fn take_apart(groups: &mut Groups, mount: &Arc<Mount>) -> Vec<(Arc<Mount>, Option<Place>)> {
    let mut gone = Vec::new();
    for one in mount.all() {
        groups.put(&one, Membership::default());
        let place = detach(&one);
        lock(&one.inner).namespace = std::sync::Weak::new();
        gone.push((one, place));
    }
    gone
}

/// One more mount of the same (`clone_mnt`): a peer where it is shared, a slave where it is one.
fn copy_one(
    groups: &mut Groups,
    mount: &Arc<Mount>,
    root: &Arc<Dentry>,
    how: Copying,
) -> Result<Arc<Mount>, Errno> {
    let copy = Mount::detached(Arc::clone(root), mount.flags(), mount.source.clone())?;
    let mut own = peers::of(mount);
    if how.to_less_privileged && own.group != 0 {
        own = Membership { master: own.group, group: 0, ..own };
    }
    groups.put(&copy, own);
    let (locked, locked_flags) = {
        let inner = lock(&mount.inner);
        (inner.locked, inner.locked_flags)
    };
    let mut inner = lock(&copy.inner);
    inner.locked = locked || how.to_less_privileged;
    inner.locked_flags =
        if how.to_less_privileged { locked_flags | mount.flags() & LOCKABLE } else { locked_flags };
    drop(inner);
    Ok(copy)
}

/// Flags that stay set for less privileged users.
const LOCKABLE: MountFlags = MountFlags::READ_ONLY
    .union(MountFlags::NO_SUID)
    .union(MountFlags::NO_DEV)
    .union(MountFlags::NO_EXEC)
    .union(MountFlags::NO_ATIME)
    .union(MountFlags::NO_DIR_ATIME);

/// A copy of a mount, from `root` on, with all that is mounted below (`copy_tree`). It is nowhere.
pub(super) fn copy_tree(
    groups: &mut Groups,
    mount: &Arc<Mount>,
    root: &Arc<Dentry>,
    how: Copying,
    copied: &mut Copied,
) -> Result<Arc<Mount>, Errno> {
    let top = copy_one(groups, mount, root, how)?;
    copied.0.insert(mount.id, Arc::clone(&top));
    let mut left = vec![(Arc::clone(mount), Arc::clone(&top))];
    while let Some((from, to)) = left.pop() {
        for child in from.children() {
            let Some(at) = child.at() else { continue };
            let hidden = Arc::ptr_eq(&from, mount) && !root.contains(&at.dentry);
            let kept_back = peers::of(&child).unbindable && !how.all;
            // A namespace's file would hold the copy in itself.
            let of_mounts = how.all && super::super::nsfs::is_of_mounts(&child.root);
            if hidden || kept_back || of_mounts {
                continue;
            }
            match copy_one(groups, &child, &child.root, how) {
                Ok(copy) => {
                    attach(&copy, Place { mount: Arc::clone(&to), dentry: at.dentry });
                    copied.0.insert(child.id, Arc::clone(&copy));
                    left.push((child, copy));
                }
                Err(errno) => {
                    drop(take_apart(groups, &top));
                    return Err(errno);
                }
            }
        }
    }
    if how.to_less_privileged {
        // The top is nobody's to uncover.
        lock(&top.inner).locked = false;
    }
    Ok(top)
}

/// Puts a tree of mounts at a place, and copies of it wherever that place is heard of (`attach_recursive_mnt`).
fn graft(groups: &mut Groups, tree: &Arc<Mount>, place: &Place) -> Result<(), Errno> {
    let dest = peers::of(&place.mount);
    if dest.group == 0 {
        attach(tree, place.clone());
        return Ok(());
    }
    for mount in tree.all() {
        groups.share(&mount);
    }
    let owner = |mount: &Arc<Mount>| mount.in_namespace().map(|space| Arc::clone(space.owner()));
    let from = owner(&place.mount);
    // For each group the tree that its members have a copy of.
    let mut sources = HashMap::from([(dest.group, Arc::clone(tree))]);
    let mut copies = Vec::new();
    for receiver in groups.receivers(&place.mount) {
        let to = peers::of(&receiver);
        let seen = receiver.root.contains(&place.dentry);
        let in_use = receiver.in_namespace().is_some();
        let (source, slave) = match (sources.get(&to.group), sources.get(&to.master)) {
            (Some(source), _) if to.group != 0 => (Arc::clone(source), false),
            (_, Some(source)) => (Arc::clone(source), true),
            _ => continue,
        };
        if !seen || !in_use {
            continue;
        }
        let copy = copy_tree(
            groups,
            &source,
            &source.root,
            Copying { all: true, ..Copying::default() },
            &mut Copied::default(),
        );
        let copy = match copy {
            Ok(copy) => copy,
            Err(errno) => {
                copies.iter().for_each(|(copy, _)| drop(take_apart(groups, copy)));
                return Err(errno);
            }
        };
        if slave {
            for mount in copy.all() {
                let own = peers::of(&mount);
                groups.put(&mount, Membership { master: own.group, group: 0, ..own });
                if to.group != 0 {
                    groups.share(&mount);
                }
            }
            if to.group != 0 {
                sources.insert(to.group, Arc::clone(&copy));
            }
        }
        if owner(&receiver) != from {
            for mount in copy.all().iter().skip(1) {
                lock(&mount.inner).locked = true;
            }
        }
        copies.push((copy, Place { mount: receiver, dentry: Arc::clone(&place.dentry) }));
    }
    attach(tree, place.clone());
    for (copy, at) in copies {
        // What somebody mounted there alone stays on top.
        let above = at.mount.child_at(&at.dentry);
        if let Some(above) = &above {
            detach(above);
        }
        attach(&copy, at);
        if let Some(above) = above {
            attach(&above, copy.root_place());
        }
    }
    Ok(())
}

fn is_folder(dentry: &Dentry) -> bool {
    dentry.inode().kind() == FileKind::Folder
}

/// Whether something with this top can be mounted at a place.
fn fits(place: &Place, root: &Dentry, count: usize) -> Result<(), Errno> {
    if is_folder(&place.dentry) != is_folder(root) {
        return Err(Errno::ENOTDIR);
    }
    if place.dentry.unlinked() {
        return Err(Errno::ENOENT);
    }
    if COUNT.load(Ordering::Relaxed).saturating_add(count) > MOUNTS_MAX {
        return Err(Errno::ENOSPC);
    }
    place.mount.in_namespace().map_or(Ok(()), |namespace| namespace.has_room(count))
}

impl Mount {
    /// Mounts what `root` is the top of at `place`, over what is there.
    ///
    /// # Errors
    /// ENOTDIR where one is a folder and the other is not; ENOENT where the place is gone; ENOSPC: too many mounts.
    pub fn add(place: &Place, root: Arc<Dentry>, flags: MountFlags) -> Result<Arc<Self>, Errno> {
        let source = root.tree().fs.name().as_bytes().to_vec();
        let mount = Self::detached(root, flags, source)?;
        Self::place(&mount, place)?;
        Ok(mount)
    }

    /// Puts a tree of mounts that is nowhere at a place, over what is there.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn place(tree: &Arc<Self>, place: &Place) -> Result<(), Errno> {
        let mut groups = peers::change();
        let place = place.clone().down();
        fits(&place, &tree.root, tree.all().len())?;
        graft(&mut groups, tree, &place)
    }

    /// Shows at `place` what `source` shows (`MS_BIND`), with `recursive` also what is mounted in it.
    ///
    /// # Errors
    /// As [`add`](Self::add); EINVAL for what cannot be bound.
    pub fn bind(place: &Place, source: &Place, recursive: bool) -> Result<Arc<Self>, Errno> {
        let copy = Self::copy_of(source, recursive)?;
        match Self::place(&copy, place) {
            Ok(()) => Ok(copy),
            Err(errno) => {
                Self::dissolve(&copy);
                Err(errno)
            }
        }
    }

    /// A copy of what `source` shows that is nowhere (`open_tree`).
    ///
    /// # Errors
    /// EINVAL for what cannot be bound, and where something that must stay covered would be uncovered; ENOSPC.
    pub fn copy_of(source: &Place, recursive: bool) -> Result<Arc<Self>, Errno> {
        let mut groups = peers::change();
        if peers::of(&source.mount).unbindable {
            return Err(Errno::EINVAL);
        }
        let copy = if recursive {
            copy_tree(&mut groups, &source.mount, &source.dentry, Copying::default(), &mut Copied::default())
        } else {
            let covers = |child: &Arc<Self>| child.at().is_some_and(|at| source.dentry.contains(&at.dentry));
            if source.mount.children().iter().any(|child| child.is_locked() && covers(child)) {
                return Err(Errno::EINVAL);
            }
            copy_one(&mut groups, &source.mount, &source.dentry, Copying::default())
        }?;
        lock(&copy.inner).locked = false;
        Ok(copy)
    }

    /// Takes a tree of mounts apart that is nowhere.
    pub fn dissolve(tree: &Arc<Self>) {
        let gone = {
            let mut groups = peers::change();
            if tree.in_namespace().is_some() { Vec::new() } else { take_apart(&mut groups, tree) }
        };
        drop(gone);
    }

    /// Moves a mount, with all in it, to another place (`MS_MOVE`).
    ///
    /// # Errors
    /// EINVAL for the first mount, what may not be moved, and what lies in a shared mount; ELOOP into itself.
    pub fn move_to(mount: &Arc<Self>, place: &Place) -> Result<(), Errno> {
        let mut groups = peers::change();
        let place = place.clone().down();
        let from = mount.at();
        if from.is_none() && mount.in_namespace().is_some() || mount.is_locked() {
            return Err(Errno::EINVAL);
        }
        if is_folder(&place.dentry) != is_folder(&mount.root) {
            return Err(Errno::EINVAL);
        }
        if from.as_ref().is_some_and(|from| peers::of(&from.mount).group != 0) {
            return Err(Errno::EINVAL);
        }
        let unbindable = || mount.all().iter().any(|one| peers::of(one).unbindable);
        if peers::of(&place.mount).group != 0 && unbindable() {
            return Err(Errno::EINVAL);
        }
        let mut above = Some(Arc::clone(&place.mount));
        while let Some(at) = above {
            if Arc::ptr_eq(&at, mount) {
                return Err(Errno::ELOOP);
            }
            above = at.at().map(|at| at.mount);
        }
        fits(&place, &mount.root, 0)?;
        detach(mount);
        if let Err(errno) = graft(&mut groups, mount, &place) {
            if let Some(from) = from {
                attach(mount, from);
            }
            return Err(errno);
        }
        drop(groups);
        drop(from);
        Ok(())
    }

    /// Makes a mount, with `recursive` all in it, shared, private, slave or unbindable.
    pub fn share(mount: &Arc<Self>, sharing: Sharing, recursive: bool) {
        let mut groups = peers::change();
        let all = if recursive { mount.all() } else { vec![Arc::clone(mount)] };
        for mount in all {
            groups.make(&mount, sharing);
        }
    }

    /// Takes a mount away, and what heard of its mounting with it.
    ///
    /// # Errors
    /// EINVAL for the first mount, and for what must stay; EBUSY where it is in use; EAGAIN for the first `expire`.
    pub fn unmount(self: &Arc<Self>, how: Unmount) -> Result<(), Errno> {
        let mut groups = peers::change();
        let Some(at) = self.at() else { return Err(Errno::EINVAL) };
        if self.is_locked() {
            return Err(Errno::EINVAL);
        }
        // Held by its parent and by whoever calls this.
        let in_use = !lock(&self.inner).children.is_empty() || Arc::strong_count(self) > 2;
        if in_use && !how.lazy {
            return Err(Errno::EBUSY);
        }
        if how.expire && !std::mem::replace(&mut lock(&self.inner).expires, true) {
            return Err(Errno::EAGAIN);
        }
        let mut gone = Vec::new();
        for receiver in groups.receivers(&at.mount) {
            let Some(child) = receiver.child_at(&at.dentry) else { continue };
            let stays = !how.lazy && !child.children().is_empty() || child.is_locked();
            if !stays {
                gone.extend(take_apart(&mut groups, &child));
            }
        }
        gone.extend(take_apart(&mut groups, self));
        drop(groups);
        drop((gone, at));
        Ok(())
    }

    /// Makes `new_root`'s mount the top of the tree and moves the mount that was there to `put_old` (`man 2 pivot_root`).
    ///
    /// # Errors
    /// EINVAL and EBUSY as the manual page says; ENOENT where the new root is gone.
    pub fn pivot(
        namespace: &MountNamespace,
        old_root: &Place,
        new_root: &Place,
        put_old: &Place,
    ) -> Result<(), Errno> {
        let groups = peers::change();
        let shared = |mount: &Arc<Self>| peers::of(mount).group != 0;
        let in_shared = |mount: &Arc<Self>| mount.at().is_some_and(|at| shared(&at.mount));
        if shared(&put_old.mount) || in_shared(&new_root.mount) || in_shared(&old_root.mount) {
            return Err(Errno::EINVAL);
        }
        let known = [old_root, new_root].iter().all(|place| namespace.has(&place.mount));
        if !known || new_root.mount.is_locked() {
            return Err(Errno::EINVAL);
        }
        if new_root.dentry.unlinked() {
            return Err(Errno::ENOENT);
        }
        if Arc::ptr_eq(&old_root.mount, &new_root.mount) || Arc::ptr_eq(&old_root.mount, &put_old.mount) {
            return Err(Errno::EBUSY);
        }
        let from_old = |place: &Place| place.path(old_root).is_some();
        if !new_root.is_root_of_mount()
            || !old_root.is_root_of_mount()
            || new_root.mount.at().is_none()
            || put_old.path(new_root).is_none()
            || !from_old(new_root)
        {
            return Err(Errno::EINVAL);
        }
        let was = detach(&new_root.mount);
        match detach(&old_root.mount) {
            Some(above) => attach(&new_root.mount, above),
            None => namespace.set_root(Arc::clone(&new_root.mount)),
        }
        attach(&old_root.mount, put_old.clone());
        if std::mem::take(&mut lock(&old_root.mount.inner).locked) {
            lock(&new_root.mount.inner).locked = true;
        }
        drop(groups);
        drop(was);
        Ok(())
    }

    /// Changes what a mount forbids (`MS_REMOUNT`, `mount_setattr`).
    ///
    /// # Errors
    /// EPERM for taking back what more privileged users set.
    pub fn change_flags(&self, flags: MountFlags) -> Result<(), Errno> {
        if !flags.contains(self.locked_flags()) {
            return Err(Errno::EPERM);
        }
        self.set_flags(flags);
        Ok(())
    }
}
