//! What a guest sees of the host's files, and what it does not.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::gofer;
use crate::vfs::model::{Host, Sentry, op};
use crate::vfs::open::open;
use crate::vfs::{Caller, Content, Flags, Mount, Place, RenameMode, Resolve, Walk, names};

fn mounted(folder: &Path, writable: bool, sharing: Sharing) -> Place {
    let root = OwnedFd::from(fs::File::open(folder).unwrap());
    let client = Client::connect(gofer::within(root, writable).unwrap()).unwrap();
    Mount::namespace(HostFs::tree(client, 0, writable, sharing).unwrap()).root_place()
}

/// A mount and who uses it.
struct Mounted {
    root: Place,
    caller: Caller,
}

impl Mounted {
    fn new(folder: &Path, writable: bool, sharing: Sharing) -> Self {
        Self { root: mounted(folder, writable, sharing), caller: Caller::root() }
    }

    fn walk(&self, path: &str) -> Result<Walk<'_>, Errno> {
        Walk::new(&self.caller, &self.root, &self.root, path.as_bytes(), Resolve::empty())
    }

    fn open(&self, path: &str, flags: i32) -> Result<std::sync::Arc<crate::vfs::OpenFile>, Errno> {
        open(&self.caller, &mut self.walk(path)?, Flags(flags.cast_unsigned()), 0o644)
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; 64];
        let count = self.open(path, libc::O_RDONLY)?.read(&mut bytes)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    fn size(&self, path: &str) -> Result<u64, Errno> {
        Ok(self.walk(path)?.finish(false)?.dentry.inode().attributes()?.size)
    }

    fn names(&self, path: &str) -> Vec<String> {
        let place = self.walk(path).unwrap().finish(true).unwrap();
        let entries = place.dentry.inode().list().unwrap();
        let mut names: Vec<_> =
            entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect();
        names.sort();
        names
    }
}

fn later() {
    std::thread::sleep(FRESH * 3);
}

#[test]
fn a_link_of_the_host_leads_nowhere_on_the_host() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"secret").unwrap();
    let inside = tempfile::tempdir().unwrap();
    fs::create_dir(inside.path().join("folder")).unwrap();
    fs::write(inside.path().join("folder/file"), b"contents").unwrap();
    symlink(outside.path(), inside.path().join("out")).unwrap();
    symlink("/folder/file", inside.path().join("in")).unwrap();
    for (writable, sharing) in
        [(false, Sharing::Exclusive), (true, Sharing::Shared), (true, Sharing::Exclusive)]
    {
        let mounted = Mounted::new(inside.path(), writable, sharing);
        assert_eq!(mounted.read("/in").unwrap(), b"contents");
        assert!(mounted.open("/in", libc::O_RDONLY).unwrap().file().host_file().is_ok());
        assert_eq!(mounted.read("out/secret").err(), Some(Errno::ENOENT));
        assert_eq!(mounted.read("../../../../etc/passwd").err(), Some(Errno::ENOENT));
        assert_eq!(mounted.names("/"), ["folder", "in", "out"]);
    }
}

/// A folder on the way turns into a link to outside and back, as fast as another process can do it.
#[test]
fn no_race_leads_out() {
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("b")).unwrap();
    fs::write(outside.path().join("b/file"), b"secret").unwrap();
    let inside = tempfile::tempdir().unwrap();
    let at = |name: &str| inside.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/b/file"), b"inside").unwrap();
    symlink(outside.path(), at("link")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                let cwd = nix::fcntl::AT_FDCWD;
                nix::fcntl::renameat2(cwd, &at("a"), cwd, &at("link"), flags).unwrap();
            }
        });
        let shared = Mounted::new(inside.path(), true, Sharing::Shared);
        let mut seen = 0;
        for _ in 0..1000 {
            // A new one each time, which has to ask for every name.
            let fresh = Mounted { root: shared.root.clone(), caller: Caller::root() };
            fresh.root.dentry.tree().forget();
            match fresh.read("a/b/file") {
                Ok(bytes) => {
                    assert_eq!(bytes, b"inside");
                    seen += 1;
                }
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE | Errno::ELOOP | Errno::EXDEV) => {}
                Err(errno) => panic!("{errno}"),
            }
            let made =
                names::create(&fresh.caller, &mut fresh.walk("a/b/new").unwrap(), Content::Regular, 0o644);
            if made.is_ok() {
                let _ = names::unlink(&fresh.caller, &mut fresh.walk("a/b/new").unwrap());
            }
            assert!(!outside.path().join("b/new").exists());
        }
        stop.store(true, Ordering::Relaxed);
        assert!(seen > 0);
    });
}

#[test]
fn what_is_exported_to_be_read_cannot_be_changed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), b"contents").unwrap();
    let root = OwnedFd::from(fs::File::open(folder.path()).unwrap());
    let client = Client::connect(gofer::within(root, false).unwrap()).unwrap();
    // The sentry's own checks first, then those of the gofer for one that has none.
    for writable in [false, true] {
        let tree = HostFs::tree(Arc::clone(&client), 0, writable, Sharing::Shared).unwrap();
        let mounted = Mounted { root: Mount::namespace(tree).root_place(), caller: Caller::root() };
        let inode = |path: &str| Arc::clone(mounted.walk(path).unwrap().finish(true).unwrap().dentry.inode());
        let (file, top) = (inode("file"), inode("/"));
        let refused = Err(Errno::EROFS);
        let change = crate::vfs::AttributeChange { mode: Some(0), ..Default::default() };
        assert_eq!(mounted.open("file", libc::O_RDWR).map(drop), refused);
        assert_eq!(mounted.open("new", libc::O_RDWR | libc::O_CREAT).map(drop), refused);
        assert_eq!(file.change(&change), refused);
        assert_eq!(top.unlink(b"file"), refused);
        assert_eq!(top.rename(b"file", &top, b"other", RenameMode::Replace), refused);
        assert_eq!(top.link(b"other", &file), refused);
        assert_eq!(file.set_xattr(b"user.a", b"b", crate::vfs::XattrMode::Any), refused);
        assert_eq!(file.remove_xattr(b"user.a"), refused);
        let new = |content| crate::vfs::NewNode { content, mode: 0o755, uid: 0, gid: 0 };
        assert_eq!(top.create(b"new", &new(Content::Folder)).map(drop), refused);
        assert_eq!(top.temporary(&new(Content::Regular)).map(drop), refused);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_exclusive_tree_is_what_it_was_and_a_shared_one_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), b"old").unwrap();
    let exclusive = Mounted::new(folder.path(), false, Sharing::Exclusive);
    let shared = Mounted::new(folder.path(), true, Sharing::Shared);
    for one in [&exclusive, &shared] {
        assert_eq!(one.size("file"), Ok(3));
        assert_eq!(one.size("new"), Err(Errno::ENOENT));
    }
    fs::write(at("file"), b"longer").unwrap();
    fs::write(at("new"), b"new").unwrap();
    later();
    assert_eq!((exclusive.size("file"), exclusive.size("new")), (Ok(3), Err(Errno::ENOENT)));
    assert_eq!((shared.size("file"), shared.size("new")), (Ok(6), Ok(3)));
    fs::rename(at("new"), at("file")).unwrap();
    later();
    assert_eq!(shared.read("file").unwrap(), b"new");
    assert_eq!(shared.size("new"), Err(Errno::ENOENT));
    // What is open stays what it was.
    let open = shared.open("file", libc::O_RDONLY).unwrap();
    fs::remove_file(at("file")).unwrap();
    later();
    assert_eq!(open.inode().attributes().unwrap().links, 0);
    assert_eq!(shared.open("file", libc::O_RDONLY).err(), Some(Errno::ENOENT));
}

#[test]
fn writes_go_through() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for sharing in [Sharing::Exclusive, Sharing::Shared] {
        let mounted = Mounted::new(folder.path(), true, sharing);
        let file = mounted.open("file", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).unwrap();
        assert_eq!(file.write(&mounted.caller, b"hello"), Ok(5));
        assert_eq!(fs::read(at("file")).unwrap(), b"hello");
        assert_eq!(mounted.size("file"), Ok(5));
        fs::write(at("file"), b"hello, you").unwrap();
        assert_eq!(mounted.size("file"), Ok(10), "an open file is as the host has it");
        let inode = Arc::clone(file.inode());
        drop(file);
        inode.set_xattr(b"user.a", b"value", crate::vfs::XattrMode::Create).unwrap();
        assert_eq!(inode.xattr(b"user.a").unwrap(), b"value");
        assert_eq!(inode.xattrs().unwrap(), [b"user.a"]);
        assert_eq!(inode.xattr(b"security.selinux"), Err(Errno::ENODATA));
        inode.remove_xattr(b"user.a").unwrap();
        assert_eq!(inode.xattr(b"user.a"), Err(Errno::ENODATA));
        let stamp = crate::vfs::Timestamp { seconds: 1_000_000, nanoseconds: 5 };
        let change = crate::vfs::AttributeChange {
            mode: Some(0o600),
            size: Some(3),
            modified: Some(stamp),
            ..Default::default()
        };
        inode.change(&change).unwrap();
        let host = fs::metadata(at("file")).unwrap();
        assert_eq!(
            (host.len(), host.mode() & 0o7777, host.mtime(), host.mtime_nsec()),
            (3, 0o600, 1_000_000, 5)
        );
        assert_eq!(inode.attributes().unwrap().modified, stamp);
        // A file without a name, which gets one.
        let nameless = mounted.open("/", libc::O_TMPFILE | libc::O_RDWR).unwrap();
        nameless.write(&mounted.caller, b"later").unwrap();
        let top = Arc::clone(mounted.root.dentry.inode());
        top.link(b"linked", nameless.inode()).unwrap();
        assert_eq!(fs::read(at("linked")).unwrap(), b"later");
        top.sync().unwrap();
        names::unlink(&mounted.caller, &mut mounted.walk("linked").unwrap()).unwrap();
        names::unlink(&mounted.caller, &mut mounted.walk("file").unwrap()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_folder_that_gets_another_name_is_the_same_one() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("one")).unwrap();
    let mounted = Mounted::new(folder.path(), true, Sharing::Shared);
    let place = mounted.walk("one").unwrap().finish(true).unwrap();
    let mode = RenameMode::Replace;
    names::rename(
        &mounted.caller,
        &mut mounted.walk("one").unwrap(),
        &mut mounted.walk("two").unwrap(),
        mode,
    )
    .unwrap();
    later();
    let again = mounted.walk("two").unwrap().finish(true).unwrap();
    assert!(Arc::ptr_eq(&place.dentry, &again.dentry) && !place.dentry.unlinked());
}

/// Trees that are deeper than one request, or one path of the host's, is long.
#[test]
fn deep_trees_are_reached() {
    let folder = tempfile::tempdir().unwrap();
    let name = "n".repeat(200);
    let mut at = OwnedFd::from(fs::File::open(folder.path()).unwrap());
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o755);
    for _ in 0..60 {
        nix::sys::stat::mkdirat(&at, name.as_str(), mode).unwrap();
        at = nix::fcntl::openat(&at, name.as_str(), nix::fcntl::OFlag::O_DIRECTORY, mode).unwrap();
    }
    for (writable, sharing) in [(false, Sharing::Exclusive), (true, Sharing::Shared)] {
        let mounted = Mounted::new(folder.path(), writable, sharing);
        let mut place = mounted.root.clone();
        for _ in 0..60 {
            place = place.with(place.dentry.lookup(name.as_bytes()).unwrap());
        }
        assert!(place.dentry.inode().list().unwrap().is_empty());
        assert_eq!(place.dentry.lookup(b"no").err(), Some(Errno::ENOENT));
    }
}

/// Many names are learnt at once; they and what is not there are as the host has them.
#[test]
fn what_a_folder_remembers_is_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..300 {
        fs::write(folder.path().join(format!("file{number}")), "x".repeat(number)).unwrap();
    }
    symlink("file7", folder.path().join("link")).unwrap();
    fs::set_permissions(folder.path().join("file9"), fs::Permissions::from_mode(0o640)).unwrap();
    let mounted = Mounted::new(folder.path(), false, Sharing::Exclusive);
    for _ in 0..2 {
        for number in 0..310 {
            let expected = if number < 300 { Ok(number) } else { Err(Errno::ENOENT) };
            assert_eq!(mounted.size(&format!("file{number}")), expected);
        }
        mounted.root.dentry.tree().forget();
    }
    assert_eq!(mounted.read("link").unwrap(), b"xxxxxxx");
    let nine = mounted.walk("file9").unwrap().finish(true).unwrap().dentry.inode().attributes().unwrap();
    assert_eq!(nine.mode, 0o640);
    assert_eq!(mounted.names("/").len(), 301);
}

fn tree_of(host: &Host, sharing: Sharing) -> Sentry {
    let root = OwnedFd::from(fs::File::open(host.root()).unwrap());
    let client = Client::connect(gofer::within(root, true).unwrap()).unwrap();
    Sentry::new(HostFs::tree(client, 0, true, sharing).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn does_what_the_host_does(ops in prop::collection::vec(op(), 1..50), shared in any::<bool>()) {
        let (below, host) = (Host::new(), Host::new());
        let sentry = tree_of(&below, if shared { Sharing::Shared } else { Sharing::Exclusive });
        for op in &ops {
            prop_assert_eq!(sentry.apply(op), host.apply(op), "{:?}", op);
        }
        // Of another name of a file it may have been known before.
        std::thread::sleep(if shared { super::FRESH * 2 } else { std::time::Duration::ZERO });
        prop_assert_eq!(sentry.tree(), host.tree());
        prop_assert_eq!(below.tree(), host.tree());
    }
}
