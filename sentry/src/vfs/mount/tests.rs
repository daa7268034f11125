//! Trees of mounts: what is seen where.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::super::tmpfs::Tmpfs;
use super::super::{Caller, Content, FsContext, Resolve, Walk, names};
use super::*;
use crate::task::{Credentials, UserNamespace};

/// A namespace with folders `a`, `b` and `c`.
struct World {
    namespace: Arc<MountNamespace>,
}

impl World {
    fn new() -> Self {
        let world = Self { namespace: MountNamespace::new(Tmpfs::tree(None)) };
        for path in ["/a", "/b", "/c"] {
            world.folder(path);
        }
        world
    }

    fn of(namespace: Arc<MountNamespace>) -> Self {
        Self { namespace }
    }

    fn folder(&self, path: &str) -> Place {
        let (caller, root) = (Caller::root(), self.namespace.root_place().down());
        let mut walk = Walk::new(&caller, &root, &root, path.as_bytes(), Resolve::default()).unwrap();
        names::create(&caller, &mut walk, Content::Folder, 0o755).unwrap()
    }

    fn at(&self, path: &str) -> Place {
        self.find(path).unwrap()
    }

    fn find(&self, path: &str) -> Result<Place, Errno> {
        let (caller, root) = (Caller::root(), self.namespace.root_place().down());
        Walk::new(&caller, &root, &root, path.as_bytes(), Resolve::default())?.finish(true)
    }

    fn mount(&self, path: &str) -> Arc<Mount> {
        Mount::add(&self.at(path), Tmpfs::tree(None), MountFlags::empty()).unwrap()
    }

    fn share(&self, path: &str, sharing: Sharing) {
        Mount::share(&self.at(path).mount, sharing, false);
    }

    fn count(&self) -> usize {
        self.namespace.mounts().len()
    }

    fn unmount(&self, path: &str, lazy: bool) -> Result<(), Errno> {
        let mount = self.at(path).mount;
        mount.unmount(Unmount { lazy, ..Unmount::default() })
    }

    fn copy(&self, owner: &Arc<UserNamespace>) -> Self {
        let fs = FsContext::new(self.namespace.root_place());
        Self::of(self.namespace.copy(owner, &fs).unwrap())
    }
}

fn less() -> Arc<UserNamespace> {
    UserNamespace::new(&Credentials::root()).unwrap()
}

#[test]
fn what_is_mounted_in_a_shared_mount_is_seen_by_its_peers() {
    let world = World::new();
    world.mount("/a");
    world.share("/a", Sharing::Shared);
    world.folder("/a/x");
    Mount::bind(&world.at("/b"), &world.at("/a"), false).unwrap();
    let (one, other) = (world.at("/a").mount, world.at("/b").mount);
    assert!(one.propagation().shared.is_some());
    assert_eq!(one.propagation(), other.propagation());
    world.mount("/a/x");
    world.folder("/a/x/y");
    assert!(world.find("/b/x/y").is_ok());
    assert_eq!(world.count(), 5);
    world.unmount("/b/x", false).unwrap();
    assert_eq!(world.count(), 3);
    assert!(world.find("/a/x/y").is_err());
}

#[test]
fn a_slave_hears_and_is_not_heard() {
    let world = World::new();
    world.mount("/a");
    world.share("/a", Sharing::Shared);
    world.folder("/a/x");
    world.folder("/a/z");
    Mount::bind(&world.at("/b"), &world.at("/a"), false).unwrap();
    world.share("/b", Sharing::Slave);
    assert_eq!(world.at("/b").mount.propagation().master, world.at("/a").mount.propagation().shared);
    world.mount("/a/x");
    world.folder("/a/x/y");
    assert!(world.find("/b/x/y").is_ok());
    world.mount("/b/z");
    world.folder("/b/z/own");
    assert!(world.find("/a/z/own").is_err());
    // The last that was heard of goes private: nobody is heard of any more.
    world.share("/a", Sharing::Private);
    assert_eq!(world.at("/b").mount.propagation(), Propagation::default());
}

#[test]
fn a_slave_that_is_shared_hands_on_to_its_peers() {
    let world = World::new();
    world.mount("/a");
    world.share("/a", Sharing::Shared);
    world.folder("/a/x");
    Mount::bind(&world.at("/b"), &world.at("/a"), false).unwrap();
    world.share("/b", Sharing::Slave);
    world.share("/b", Sharing::Shared);
    Mount::bind(&world.at("/c"), &world.at("/b"), false).unwrap();
    world.mount("/a/x");
    let [a, b, c] = ["/a/x", "/b/x", "/c/x"].map(|path| world.at(path).mount.propagation());
    assert_eq!(b, c);
    assert_eq!(b.master, a.shared);
    assert!(b.shared.is_some() && b.shared != a.shared);
}

#[test]
fn what_is_unbindable_is_not_bound() {
    let world = World::new();
    world.mount("/a");
    world.share("/a", Sharing::Unbindable);
    assert_eq!(Mount::bind(&world.at("/b"), &world.at("/a"), false).err(), Some(Errno::EINVAL));
    let root = world.namespace.root_place();
    Mount::bind(&world.at("/b"), &root, true).unwrap();
    assert_eq!(world.count(), 3, "the one that cannot be bound is left out");
    assert_eq!(world.copy(UserNamespace::root()).count(), 3, "but another namespace has it");
}

#[test]
fn a_mount_moves_with_all_in_it() {
    let world = World::new();
    let mount = world.mount("/a");
    world.folder("/a/x");
    world.mount("/a/x");
    world.folder("/a/x/y");
    Mount::move_to(&mount, &world.at("/b")).unwrap();
    assert!(world.find("/b/x/y").is_ok() && world.find("/a/x").is_err());
    assert_eq!(Mount::move_to(&mount, &world.at("/b/x")), Err(Errno::ELOOP));
    let root = world.namespace.root();
    assert_eq!(Mount::move_to(&root, &world.at("/b")), Err(Errno::EINVAL));
    Mount::share(&root, Sharing::Shared, false);
    assert_eq!(Mount::move_to(&mount, &world.at("/c")), Err(Errno::EINVAL), "it lies in a shared one");
}

#[test]
fn a_copy_is_its_own_and_peers_stay_peers() {
    let world = World::new();
    Mount::share(&world.namespace.root(), Sharing::Shared, true);
    let fs = FsContext::new(world.namespace.root_place());
    fs.set_cwd(world.at("/a"));
    let other = World::of(world.namespace.copy(UserNamespace::root(), &fs).unwrap());
    assert!(other.namespace.has(&fs.cwd().mount) && other.namespace.has(&fs.root().mount));
    world.mount("/b");
    world.folder("/b/x");
    assert!(other.find("/b/x").is_ok());
    Mount::share(&other.namespace.root(), Sharing::Private, true);
    world.mount("/c");
    world.folder("/c/x");
    assert!(other.find("/c/x").is_err());
    drop(fs);
    let kept = other.at("/b").mount;
    drop(other);
    assert!(kept.at().is_none() && kept.in_namespace().is_none(), "mounts go with their namespace");
    assert!(world.find("/b/x").is_ok());
}

#[test]
fn less_privileged_users_uncover_nothing() {
    let world = World::new();
    world.mount("/a").set_flags(MountFlags::READ_ONLY);
    let mut other = world.copy(&less());
    let mount = other.at("/a").mount;
    assert_eq!(other.unmount("/a", true), Err(Errno::EINVAL));
    assert_eq!(Mount::move_to(&mount, &other.at("/b")), Err(Errno::EINVAL));
    assert_eq!(mount.change_flags(MountFlags::empty()), Err(Errno::EPERM));
    assert_eq!(mount.change_flags(MountFlags::READ_ONLY | MountFlags::NO_EXEC), Ok(()));
    let root = other.namespace.root_place();
    assert_eq!(Mount::bind(&other.at("/b"), &root, false).err(), Some(Errno::EINVAL));
    assert!(Mount::bind(&other.at("/b"), &root, true).is_ok());
    other.mount("/c");
    assert_eq!(other.unmount("/c", false), Ok(()), "its own is its own");
    // It hears of what happens outside, and is not heard.
    Mount::share(&world.namespace.root(), Sharing::Shared, true);
    other = world.copy(&less());
    other.mount("/c");
    world.mount("/b");
    assert_eq!((world.count(), other.count()), (3, 4));
}

#[test]
fn the_root_changes_places() {
    let world = World::new();
    let pivot = |new: &str, old: &str| {
        let root = world.namespace.root_place();
        Mount::pivot(&world.namespace, &root, &world.at(new), &world.at(old))
    };
    assert_eq!(pivot("/a", "/a"), Err(Errno::EBUSY), "no mount");
    world.mount("/a");
    world.folder("/a/old");
    assert_eq!(pivot("/a", "/b"), Err(Errno::EBUSY));
    Mount::share(&world.namespace.root(), Sharing::Shared, false);
    assert_eq!(pivot("/a", "/a/old"), Err(Errno::EINVAL), "in a shared mount");
    Mount::share(&world.namespace.root(), Sharing::Private, false);
    assert_eq!(pivot("/a", "/a/old"), Ok(()));
    assert!(world.find("/old/b").is_ok() && world.find("/b").is_err());
    assert_eq!(world.unmount("/old", false), Ok(()));
    assert_eq!(world.count(), 1);
}

#[test]
fn mounts_that_are_in_use_stay_unless_nobody_cares() {
    let world = World::new();
    let mount = world.mount("/a");
    assert_eq!(mount.unmount(Unmount::default()), Ok(()));
    let mount = world.mount("/a");
    let used = world.at("/a");
    assert_eq!(mount.unmount(Unmount::default()), Err(Errno::EBUSY));
    assert_eq!(mount.unmount(Unmount { expire: true, ..Unmount::default() }), Err(Errno::EBUSY));
    drop(used);
    assert_eq!(mount.unmount(Unmount { expire: true, ..Unmount::default() }), Err(Errno::EAGAIN));
    assert_eq!(mount.unmount(Unmount { expire: true, ..Unmount::default() }), Ok(()));
    let root = world.namespace.root();
    assert_eq!(root.unmount(Unmount { lazy: true, ..Unmount::default() }), Err(Errno::EINVAL));
}

#[test]
fn a_tree_that_is_nowhere_is_put_somewhere_once() {
    let world = World::new();
    world.mount("/a");
    world.folder("/a/x");
    let copy = Mount::copy_of(&world.at("/a"), true).unwrap();
    assert!(copy.in_namespace().is_none());
    Mount::place(&copy, &world.at("/b")).unwrap();
    assert!(world.find("/b/x").is_ok());
    Mount::dissolve(&copy);
    assert!(world.find("/b/x").is_ok(), "it has a place");
    assert_eq!(world.count(), 3);
}
