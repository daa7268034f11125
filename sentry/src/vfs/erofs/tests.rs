//! Images of our own writer (`tests/data/sealed.erofs`, made by `kata-cc-erofs`), of mkfs.erofs where that is there, and broken ones.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::vfs::open::open;
use crate::vfs::{Caller, File, Flags, Mount, OpenFile, Place, Resolve, Tree, Walk};

fn sealed() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sealed.erofs")).unwrap()
}

fn file_of(bytes: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.into()
}

fn mounted(image: OwnedFd) -> Place {
    Mount::namespace(Tree::of(Box::new(Erofs::new(image).unwrap()))).root_place()
}

fn place(root: &Place, path: &str) -> Result<Place, Errno> {
    Walk::new(&Caller::root(), root, root, path.as_bytes(), Resolve::empty())?.finish(false)
}

fn opened(root: &Place, path: &str) -> Result<Arc<OpenFile>, Errno> {
    let caller = Caller::root();
    open(&caller, &mut Walk::new(&caller, root, root, path.as_bytes(), Resolve::empty())?, Flags::READ, 0)
}

fn contents(root: &Place, path: &str) -> Result<Vec<u8>, Errno> {
    let file = opened(root, path)?;
    let size = file.inode().attributes()?.size;
    let mut bytes = vec![0; size as usize + 10];
    let count = file.read(&mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
}

fn pattern(size: usize, modulus: usize) -> Vec<u8> {
    (0..size).map(|n| (n % modulus) as u8 + 1).collect()
}

#[test]
fn an_image_of_our_own_writer_is_read() {
    let root = mounted(file_of(&sealed()));
    assert_eq!(contents(&root, "empty").unwrap(), b"");
    assert_eq!(contents(&root, "short").unwrap(), b"short contents\n");
    assert_eq!(contents(&root, "pages").unwrap(), pattern(8192, 251));
    assert_eq!(contents(&root, "tail").unwrap(), pattern(4196, 241));
    assert_eq!(contents(&root, "link").unwrap(), pattern(4196, 241));
    assert_eq!(contents(&root, "long-tail").unwrap(), pattern(7096, 239));
    let of = |path: &str| place(&root, path).unwrap().dentry.inode().attributes().unwrap();
    let short = of("short");
    assert_eq!((short.mode, short.uid, short.gid, short.links), (0o4755, 1000, 1001, 1));
    assert_eq!((short.modified.seconds, short.modified.nanoseconds), (1_700_000_000, 123));
    assert_eq!((of("pages").uid, of("many").mode, of("tail").links), (70_000, 0o1777, 2));
    assert_eq!(of("tail").inode, of("many/!hard").inode);
    let special = |path: &str| (of(path).kind, crate::vfs::device_parts(of(path).rdev));
    assert_eq!(special("char"), (FileKind::CharDevice, (1, 3)));
    assert_eq!(special("block"), (FileKind::BlockDevice, (300, 70_000)));
    assert_eq!(of("fifo").kind, FileKind::Fifo);
    let pages = place(&root, "pages").unwrap();
    assert_eq!(pages.dentry.inode().xattr(b"user.colour").unwrap(), b"blue");
    assert_eq!(pages.dentry.inode().xattrs().unwrap(), [&b"security.capability"[..], b"user.colour"]);
    assert_eq!(pages.dentry.inode().xattr(b"user.none"), Err(Errno::ENODATA));
    assert_eq!(place(&root, "tail").unwrap().dentry.inode().xattr(b"user.long").unwrap(), vec![b'x'; 1500]);
    let caller = Caller::root();
    assert_eq!(
        place(&root, "long-link").unwrap().dentry.inode().readlink(&caller).unwrap(),
        vec![b'l'; 3000]
    );
    let many = place(&root, "many").unwrap();
    let names = many.dentry.inode().list().unwrap();
    assert_eq!(names.len(), 401);
    for entry in names {
        let found = many.dentry.lookup(&entry.name).unwrap().inode().attributes().unwrap();
        assert_eq!((found.inode, found.kind), (entry.inode, entry.kind));
    }
    for missing in ["many/!", "many/name-000", "many/zzz", "many/name-399-zz", "none"] {
        assert_eq!(place(&root, missing).err(), Some(Errno::ENOENT), "{missing}");
    }
    let write = open(
        &caller,
        &mut Walk::new(&caller, &root, &root, b"short", Resolve::empty()).unwrap(),
        Flags::READ_WRITE,
        0,
    );
    assert_eq!(write.err(), Some(Errno::EROFS));
}

/// Whole pages come from the image, for those who may read all of it; what does not is a copy that cannot be changed.
#[test]
fn files_are_mapped_from_the_image_or_from_a_copy() {
    let root = mounted(file_of(&sealed()));
    let bytes_at = |file: &OpenFile, size: usize| {
        let (fd, offset) = file.file().host_file().unwrap();
        let mut bytes = vec![0; size];
        let count = nix::sys::uio::pread(&fd, &mut bytes, offset as i64).unwrap();
        bytes.truncate(count);
        (bytes, offset)
    };
    let (bytes, offset) = bytes_at(&opened(&root, "pages").unwrap(), 8192);
    assert_eq!(bytes, pattern(8192, 251));
    assert!(offset >= 4096 && offset.is_multiple_of(4096), "{offset}");
    let tail = opened(&root, "tail").unwrap();
    assert_eq!(bytes_at(&tail, 9000), (pattern(4196, 241), 0));
    let (copy, _) = tail.file().host_file().unwrap();
    assert_eq!(nix::sys::uio::pwrite(&copy, b"x", 0), Err(Errno::EPERM));
    assert!(Arc::ptr_eq(&copy, &opened(&root, "tail").unwrap().file().host_file().unwrap().0));
    // Somebody who may not read all files has nothing but the one.
    let node = Arc::clone(place(&root, "pages").unwrap().dentry.inode());
    let mut who = (*Caller::root().credentials).clone();
    who.effective = crate::task::Capabilities::default();
    let caller = Caller { credentials: Arc::new(who), process: 1, umask: 0 };
    let file: Box<dyn File> = node.open(Flags::READ, &caller).unwrap();
    let (fd, offset) = file.host_file().unwrap();
    assert_eq!((offset, nix::sys::stat::fstat(&fd).unwrap().st_size), (0, 8192));
}

/// Looks at all that can be looked at.
fn look_at_all(image: OwnedFd) {
    let Ok(fs) = Erofs::new(image) else { return };
    let _ = fs.status();
    super::look_at_all(&fs);
}

#[test]
fn what_is_no_image_is_named() {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sealed();
        change(&mut bytes);
        Erofs::new(file_of(&bytes)).err().unwrap().to_string()
    };
    assert!(with(&|bytes| bytes[1024] = 0).contains("no EROFS image"));
    assert!(with(&|bytes| bytes[1024 + 12] = 13).contains("blocks of 2^13"));
    assert!(with(&|bytes| bytes[1024 + 80] = 0x48).contains("several devices, long prefixes"));
    assert!(with(&|bytes| bytes[1024 + 83] = 0x80).contains("feature 0x80000000"));
    assert!(with(&|bytes| bytes.truncate(8192)).contains("should have"));
    assert!(with(&|bytes| bytes.truncate(1000)).contains("cannot be read"));
    assert!(with(&|bytes| bytes[1024 + 14] = 0xff).contains("cannot be read"));
}

/// A file whose inode says that it is compressed.
#[test]
fn compressed_files_are_refused() {
    let mut bytes = sealed();
    let number =
        place(&mounted(file_of(&bytes)), "pages").unwrap().dentry.inode().attributes().unwrap().inode;
    let fs = Erofs::new(file_of(&bytes)).unwrap();
    let at = fs.shared.image.superblock.inode_at(number).unwrap() as usize;
    bytes[at] = 1 | 3 << 1;
    let root = mounted(file_of(&bytes));
    assert_eq!(opened(&root, "pages").err(), Some(Errno::EOPNOTSUPP));
    assert!(contents(&root, "short").is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Broken images give errors; what can be read still is.
    #[test]
    fn broken_images_neither_panic_nor_hang(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        near_metadata in any::<bool>(),
        length in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = sealed();
        let metadata = u32::from_le_bytes(bytes[1024 + 40..][..4].try_into().unwrap()) as usize * 4096;
        let from = if near_metadata { metadata } else { 0 };
        for (index, value) in changes {
            let at = from + index.index(bytes.len() - from);
            bytes[at] = value;
        }
        if let Some(length) = length {
            bytes.truncate(length.index(bytes.len()));
        }
        look_at_all(file_of(&bytes));
    }
}

fn mkfs(folder: &Path, options: &[&str]) -> Option<(tempfile::TempDir, PathBuf)> {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let output = Command::new("mkfs.erofs").args(options).arg(&image).arg(folder).output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            Some((dir, image))
        }
        Err(_) => {
            eprintln!("there is no mkfs.erofs");
            None
        }
    }
}

/// Images of the usual tool: compact inodes, chunks with holes, shared attributes.
#[test]
fn images_of_mkfs_erofs_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("many")).unwrap();
    for number in 0..600 {
        fs::write(at(&format!("many/file{number}")), format!("contents {number}").repeat(number % 50))
            .unwrap();
        let path = std::ffi::CString::new(at(&format!("many/file{number}")).to_str().unwrap()).unwrap();
        let (name, value) = (c"user.shared".as_ptr(), [b'v'; 100]);
        // SAFETY: texts and value live during the call.
        unsafe { libc::setxattr(path.as_ptr(), name, value.as_ptr().cast(), value.len(), 0) };
    }
    symlink("many/file7", at("link")).unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(b"middle", 500_000).unwrap();
    for options in [
        &["-T1000"][..],
        &["--chunksize=4096", "-T1000"],
        &["--chunksize=65536", "-T1000", "-Eforce-inode-extended"],
        &["-Eforce-inode-compact"],
        &["-Enoinline_data"],
    ] {
        let Some((_dir, image)) = mkfs(folder.path(), options) else { return };
        let root = mounted(fs::File::open(&image).unwrap().into());
        for number in 0..600 {
            let expected = format!("contents {number}").repeat(number % 50);
            assert_eq!(
                contents(&root, &format!("many/file{number}")).unwrap(),
                expected.as_bytes(),
                "{options:?}"
            );
        }
        assert_eq!(place(&root, "many").unwrap().dentry.inode().list().unwrap().len(), 600);
        assert_eq!(contents(&root, "sparse").unwrap(), fs::read(at("sparse")).unwrap(), "{options:?}");
        assert_eq!(contents(&root, "link").unwrap(), b"contents 7".repeat(7));
        let value = place(&root, "many/file1").unwrap().dentry.inode().xattr(b"user.shared");
        if value != Err(Errno::ENODATA) {
            assert_eq!(value.unwrap(), vec![b'v'; 100], "{options:?}");
        }
        if options[0] == "--chunksize=4096" {
            let bytes = fs::read(&image).unwrap();
            holes(&bytes, place(&root, "sparse").unwrap().dentry.inode().attributes().unwrap().inode);
        }
    }
}

/// Entries of a table of chunks that name no block are zeros.
fn holes(image: &[u8], number: u64) {
    let fs = Erofs::new(file_of(image)).unwrap();
    let mut bytes = image.to_vec();
    let inode = fs.shared.image.inode(number).unwrap();
    for chunk in (0..256).filter(|chunk| *chunk != 122) {
        let layout::Run::Entry { at, .. } = inode.run(chunk * 4096, &fs.shared.image.superblock).unwrap()
        else {
            panic!("no table");
        };
        let end = at as usize + inode.entry_size();
        bytes[end - 4..end].fill(0xff);
    }
    let root = mounted(file_of(&bytes));
    let mut expected = vec![0; 1 << 20];
    expected[500_000..500_006].copy_from_slice(b"middle");
    assert_eq!(contents(&root, "sparse").unwrap(), expected);
    let file = opened(&root, "sparse").unwrap();
    assert_eq!(file.file().seek_data(0, false, 1 << 20), Ok(499_712));
    assert_eq!(file.file().seek_data(0, true, 1 << 20), Ok(0));
    assert_eq!(file.file().seek_data(499_712, true, 1 << 20), Ok(503_808));
    assert_eq!(file.file().seek_data(503_808, false, 1 << 20), Err(Errno::ENXIO));
    let (copy, offset) = file.file().host_file().unwrap();
    let mut copied = vec![0; 1 << 20];
    assert_eq!((nix::sys::uio::pread(&copy, &mut copied, 0), offset), (Ok(1 << 20), 0));
    assert_eq!(copied, expected);
}
