//! A `tmpfs` is what a folder of the host is.

use proptest::prelude::*;

use super::*;
use crate::vfs::model::{Host, Sentry, op};
use crate::vfs::open::open;
use crate::vfs::{Caller, Mount, Resolve, SeekTo, Walk};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn does_what_the_host_does(ops in prop::collection::vec(op(), 1..60), mapped in prop::option::of(0usize..60)) {
        let (host, sentry) = (Host::new(), Sentry::new(Tmpfs::tree(None)));
        for (number, op) in ops.iter().enumerate() {
            if mapped == Some(number) {
                sentry.map_all();
            }
            prop_assert_eq!(sentry.apply(op), host.apply(op), "{:?}", op);
        }
        prop_assert_eq!(sentry.tree(), host.tree());
    }
}

fn file(limit: Option<u64>) -> (Arc<Dentry>, Arc<OpenFile>) {
    let tree = Tmpfs::tree(limit);
    let root = Mount::namespace(Arc::clone(&tree)).root_place();
    let caller = Caller::root();
    let mut walk = Walk::new(&caller, &root, &root, b"file", Resolve::empty()).unwrap();
    let flags = Flags((libc::O_RDWR | libc::O_CREAT).cast_unsigned());
    let file = open(&caller, &mut walk, flags, 0o600).unwrap();
    (tree, file)
}

#[test]
fn a_full_one_says_so_and_what_is_freed_can_be_used() {
    let (tree, file) = file(Some(64 * 1024));
    let root = Caller::root();
    assert_eq!(file.write(&root, &[1; 100_000]), Ok(65_536));
    assert_eq!(file.write(&root, &[1]), Err(Errno::ENOSPC));
    assert_eq!(tree.tree().fs.status().unwrap().blocks_free, 0);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(file.file().allocate(punch, 4096, 8192), Ok(()));
    assert_eq!(tree.tree().fs.status().unwrap().blocks_free, 2);
    assert_eq!(file.seek(SeekTo::Hole, 0), Ok(4096));
    assert_eq!(file.seek(SeekTo::Data, 4096), Ok(12_288));
    assert_eq!(file.write_at(&root, &[2; 8192], 1 << 40), Ok(8192));
    assert_eq!(tree.tree().fs.status().unwrap().blocks_free, 0);
    file.inode().change(&crate::vfs::AttributeChange { size: Some(0), ..Default::default() }).unwrap();
    assert_eq!(tree.tree().fs.status().unwrap().blocks_free, 16);
}

#[test]
fn what_is_mapped_is_what_is_read() {
    let (_tree, file) = file(None);
    let root = Caller::root();
    file.write(&root, b"before").unwrap();
    let (host, offset) = file.file().host_file().unwrap();
    assert_eq!(nix::sys::uio::pwrite(&host, b"BE", i64::try_from(offset).unwrap()), Ok(2));
    let mut bytes = [0; 16];
    assert_eq!(file.read_at(&mut bytes, 0), Ok(6));
    assert!(bytes.starts_with(b"BEfore"));
    file.write_at(&root, b"after", 10_000).unwrap();
    assert_eq!(nix::sys::uio::pread(&host, &mut bytes, 10_000), Ok(5));
    assert!(bytes.starts_with(b"after"));
}

#[test]
fn seals() {
    let file = memfd(0o600, 0, 0, 0).unwrap();
    let root = Caller::root();
    file.write(&root, b"sealed").unwrap();
    file.file().add_seals(2 | 4).unwrap();
    assert_eq!(file.write(&root, b"more"), Err(Errno::EPERM));
    assert_eq!(file.write_at(&root, b"S", 0), Ok(1));
    file.file().add_seals(8 | SEAL_SEAL).unwrap();
    assert_eq!(file.write_at(&root, b"s", 0), Err(Errno::EPERM));
    assert_eq!(file.file().add_seals(2), Err(Errno::EPERM));
    assert_eq!(file.file().seals(), Ok(15));
    assert!(file.file().host_file().is_ok());
}

#[test]
fn a_deep_tree_goes_without_recursion() {
    let tree = Tmpfs::tree(None);
    let new = NewNode { content: Content::Folder, mode: 0o755, uid: 0, gid: 0 };
    let mut at = Arc::clone(&tree);
    for _ in 0..200_000 {
        at = at.create(b"d", &new).unwrap();
    }
    drop(at);
    tree.tree().forget();
    drop(tree);
}
