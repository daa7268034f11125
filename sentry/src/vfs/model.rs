//! The same operations on a file system of the sentry and on a folder of the host, for property tests: the same errno has to come out
//! each time, and the same tree in the end.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{AtFlags, FallocateFlags, OFlag, RenameFlags, openat, readlinkat, renameat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat, umask};
use nix::unistd::{UnlinkatFlags, linkat, mkfifo, symlinkat, truncate, unlinkat};
use proptest::prelude::*;

use super::open::open;
use super::{
    Caller, Content, Dentry, FileKind, Flags, Mount, Place, RenameMode, Resolve, Walk, access, names,
};
use crate::error::Errno;
use crate::task::{Capabilities, Credentials};

/// What is done.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Mkdir(String, u32),
    Write(String, i32, u64, usize),
    Read(String, i32),
    Symlink(String, String),
    Link(String, String),
    Fifo(String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, RenameMode),
    Truncate(String, u64),
    Chmod(String, u32),
    Readlink(String),
    Allocate(String, i32, u64, u64),
}

fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![8 => "[abc]", 1 => Just(".".to_owned()), 1 => Just("long".repeat(64))];
    let end = prop_oneof![6 => Just(""), 1 => Just("/"), 1 => Just("/.")];
    (prop::collection::vec(name, 1..4), end).prop_map(|(names, end)| names.join("/") + end)
}

/// One operation.
pub(super) fn op() -> impl Strategy<Value = Op> {
    let mode = prop_oneof![Just(0o755u32), Just(0o700), Just(0o2775), Just(0o1777)];
    let rename = prop_oneof![3 => Just(RenameMode::Replace), 1 => Just(RenameMode::Keep), 1 => Just(RenameMode::Exchange)];
    let flags = prop::sample::select(vec![
        libc::O_CREAT,
        libc::O_CREAT | libc::O_EXCL,
        libc::O_CREAT | libc::O_TRUNC,
        libc::O_APPEND,
        libc::O_NOFOLLOW,
        libc::O_DIRECTORY,
        libc::O_CREAT | libc::O_APPEND,
        0,
    ]);
    let allocation = prop::sample::select(vec![
        0,
        libc::FALLOC_FL_KEEP_SIZE,
        libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE,
    ]);
    let size = prop_oneof![0u64..20, 4090u64..4100, 0u64..20_000];
    prop_oneof![
        4 => (path(), mode.clone()).prop_map(|(path, mode)| Op::Mkdir(path, mode)),
        6 => (path(), flags.clone(), size.clone(), 0usize..9000)
            .prop_map(|(path, flags, at, length)| Op::Write(path, flags, at, length)),
        1 => (path(), flags).prop_map(|(path, flags)| Op::Read(path, flags)),
        2 => (path(), path()).prop_map(|(text, path)| Op::Symlink(text, path)),
        2 => (path(), path()).prop_map(|(old, new)| Op::Link(old, new)),
        1 => path().prop_map(Op::Fifo),
        2 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::Rmdir),
        6 => (path(), path(), rename).prop_map(|(old, new, mode)| Op::Rename(old, new, mode)),
        2 => (path(), size.clone()).prop_map(|(path, size)| Op::Truncate(path, size)),
        1 => (path(), mode).prop_map(|(path, mode)| Op::Chmod(path, mode)),
        1 => path().prop_map(Op::Readlink),
        2 => (path(), allocation, size, 1u64..9000)
            .prop_map(|(path, mode, at, length)| Op::Allocate(path, mode, at, length)),
    ]
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 + 1).collect()
}

/// What is found in the end: path, kind and mode, names, contents.
pub(super) type Tree = Vec<(String, u32, u32, Vec<u8>)>;

/// A folder of the host.
pub(super) struct Host {
    dir: tempfile::TempDir,
    fd: OwnedFd,
}

impl Host {
    pub(super) fn new() -> Self {
        umask(Mode::empty());
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap().into();
        Self { dir, fd }
    }

    pub(super) fn root(&self) -> &Path {
        self.dir.path()
    }

    fn whole(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(super) fn apply(&self, op: &Op) -> Result<Vec<u8>, Errno> {
        let bits = |mode: u32| Mode::from_bits_truncate(mode);
        let opened = |path: &str, flags: i32| {
            let flags = OFlag::from_bits_retain(flags | libc::O_NONBLOCK | libc::O_CLOEXEC);
            openat(&self.fd, path, flags, bits(0o644))
        };
        let none = |()| Vec::new();
        match op {
            Op::Mkdir(path, mode) => mkdirat(&self.fd, path.as_str(), bits(*mode)).map(none),
            Op::Write(path, flags, at, length) => {
                let file = opened(path, flags | libc::O_WRONLY)?;
                let done = nix::sys::uio::pwrite(&file, &pattern(*length), *at as i64)?;
                Ok(done.to_string().into_bytes())
            }
            Op::Read(path, flags) => opened(path, flags | libc::O_RDONLY).map(|_| Vec::new()),
            Op::Symlink(text, path) => symlinkat(text.as_str(), &self.fd, path.as_str()).map(none),
            Op::Link(old, new) => {
                linkat(&self.fd, old.as_str(), &self.fd, new.as_str(), AtFlags::empty()).map(none)
            }
            Op::Fifo(path) => mkfifo(&self.whole(path), bits(0o600)).map(none),
            Op::Unlink(path) => unlinkat(&self.fd, path.as_str(), UnlinkatFlags::NoRemoveDir).map(none),
            Op::Rmdir(path) => unlinkat(&self.fd, path.as_str(), UnlinkatFlags::RemoveDir).map(none),
            Op::Rename(old, new, mode) => {
                let flags = match mode {
                    RenameMode::Replace => RenameFlags::empty(),
                    RenameMode::Keep => RenameFlags::RENAME_NOREPLACE,
                    RenameMode::Exchange => RenameFlags::RENAME_EXCHANGE,
                };
                renameat2(&self.fd, old.as_str(), &self.fd, new.as_str(), flags).map(none)
            }
            Op::Truncate(path, size) => truncate(&self.whole(path), *size as i64).map(none),
            Op::Chmod(path, mode) => {
                fchmodat(&self.fd, path.as_str(), bits(*mode), FchmodatFlags::FollowSymlink).map(none)
            }
            Op::Readlink(path) => Ok(readlinkat(&self.fd, path.as_str())?.as_bytes().to_vec()),
            Op::Allocate(path, mode, at, length) => {
                let file = opened(path, libc::O_RDWR | libc::O_NOFOLLOW)?;
                let mode = FallocateFlags::from_bits_retain(*mode);
                nix::fcntl::fallocate(&file, mode, *at as i64, *length as i64).map(none)
            }
        }
    }

    pub(super) fn tree(&self) -> Tree {
        let mut tree = Vec::new();
        self.add(&mut tree, String::new());
        tree.sort();
        tree
    }

    fn add(&self, tree: &mut Tree, path: String) {
        use std::os::unix::fs::MetadataExt;
        for entry in std::fs::read_dir(self.whole(&path)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{path}{}", entry.file_name().to_str().unwrap());
            let status = std::fs::symlink_metadata(entry.path()).unwrap();
            let contents = if status.is_file() {
                std::fs::read(entry.path()).unwrap()
            } else if status.is_symlink() {
                std::fs::read_link(entry.path()).unwrap().as_os_str().as_bytes().to_vec()
            } else {
                Vec::new()
            };
            let links = if status.is_dir() { 0 } else { status.nlink() as u32 };
            tree.push((path.clone(), status.mode(), links, contents));
            if status.is_dir() {
                self.add(tree, path + "/");
            }
        }
    }
}

/// A file system of the sentry.
pub(super) struct Sentry {
    root: Place,
    caller: Caller,
}

impl Sentry {
    pub(super) fn new(tree: Arc<Dentry>) -> Self {
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let mut who = Credentials { fsuid: uid, fsgid: gid, ..Credentials::root() };
        if uid != 0 {
            who.effective = Capabilities::default();
        }
        let caller = Caller { credentials: Arc::new(who), process: 1, umask: 0 };
        Self { root: Mount::namespace(tree).root_place(), caller }
    }

    fn walk(&self, path: &str) -> Result<Walk<'_>, Errno> {
        Walk::new(&self.caller, &self.root, &self.root, path.as_bytes(), Resolve::empty())
    }

    fn place(&self, path: &str, follow: bool) -> Result<Place, Errno> {
        self.walk(path)?.finish(follow)
    }

    fn open(&self, path: &str, flags: i32) -> Result<Arc<super::OpenFile>, Errno> {
        let flags = Flags((flags | libc::O_NONBLOCK).cast_unsigned());
        open(&self.caller, &mut self.walk(path)?, flags, 0o644)
    }

    pub(super) fn apply(&self, op: &Op) -> Result<Vec<u8>, Errno> {
        let caller = &self.caller;
        let none = |()| Vec::new();
        match op {
            Op::Mkdir(path, mode) => {
                names::create(caller, &mut self.walk(path)?, Content::Folder, *mode).map(|_| Vec::new())
            }
            Op::Write(path, flags, at, length) => {
                let file = self.open(path, flags | libc::O_WRONLY)?;
                if !file.file().seekable() {
                    return Err(Errno::ESPIPE);
                }
                let bytes = pattern(*length);
                let done = if file.flags().has(libc::O_APPEND) {
                    file.append(caller, &bytes)?.0
                } else {
                    file.write_at(caller, &bytes, *at)?
                };
                Ok(done.to_string().into_bytes())
            }
            Op::Read(path, flags) => self.open(path, flags | libc::O_RDONLY).map(|_| Vec::new()),
            Op::Symlink(text, path) => {
                let content = Content::Symlink(text.as_bytes());
                names::create(caller, &mut self.walk(path)?, content, 0o777).map(|_| Vec::new())
            }
            Op::Link(old, new) => {
                let old = self.place(old, false)?;
                names::link(caller, &old, &mut self.walk(new)?).map(none)
            }
            Op::Fifo(path) => {
                names::create(caller, &mut self.walk(path)?, Content::Fifo, 0o600).map(|_| Vec::new())
            }
            Op::Unlink(path) => names::unlink(caller, &mut self.walk(path)?).map(none),
            Op::Rmdir(path) => names::rmdir(caller, &mut self.walk(path)?).map(none),
            Op::Rename(old, new, mode) => {
                names::rename(caller, &mut self.walk(old)?, &mut self.walk(new)?, *mode).map(none)
            }
            Op::Truncate(path, size) => {
                let place = self.place(path, true)?;
                match place.dentry.inode().kind() {
                    FileKind::Folder => Err(Errno::EISDIR),
                    FileKind::Regular => super::open::truncate(caller, &place, *size).map(none),
                    _ => Err(Errno::EINVAL),
                }
            }
            Op::Chmod(path, mode) => {
                let inode = Arc::clone(self.place(path, true)?.dentry.inode());
                let change = access::chmod(caller, &inode.attributes()?, *mode)?;
                inode.change(&change).map(none)
            }
            Op::Readlink(path) => self.place(path, false)?.dentry.inode().readlink(caller),
            Op::Allocate(path, mode, at, length) => {
                let file = self.open(path, libc::O_RDWR | libc::O_NOFOLLOW)?;
                if !file.file().seekable() {
                    return Err(Errno::ESPIPE);
                }
                file.file().allocate(*mode, *at, *length).map(none)
            }
        }
    }

    pub(super) fn tree(&self) -> Tree {
        let mut tree = Vec::new();
        self.add(&mut tree, &self.root, String::new());
        tree.sort();
        tree
    }

    fn add(&self, tree: &mut Tree, folder: &Place, path: String) {
        for entry in folder.dentry.inode().list().unwrap() {
            let path = format!("{path}{}", std::str::from_utf8(&entry.name).unwrap());
            let place = folder.with(folder.dentry.lookup(&entry.name).unwrap());
            let inode = place.dentry.inode();
            let status = inode.attributes().unwrap();
            assert_eq!((entry.inode, entry.kind), (status.inode, status.kind), "{path}");
            let contents = match status.kind {
                FileKind::Regular => self.contents(&place, status.size),
                FileKind::Symlink => inode.readlink(&self.caller).unwrap(),
                _ => Vec::new(),
            };
            let links = if status.kind == FileKind::Folder { 0 } else { status.links };
            tree.push((path.clone(), status.full_mode(), links, contents));
            if status.kind == FileKind::Folder {
                self.add(tree, &place, path + "/");
            }
        }
    }

    fn contents(&self, place: &Place, size: u64) -> Vec<u8> {
        let file = super::open::open_place(&self.caller, place.clone(), Flags::READ).unwrap();
        let mut bytes = vec![0xff; size as usize + 1];
        assert_eq!(file.read(&mut bytes), Ok(size as usize));
        bytes.truncate(size as usize);
        bytes
    }

    /// Makes every regular file's contents a host file's, as a mapping would.
    pub(super) fn map_all(&self) {
        for (path, mode, ..) in self.tree() {
            if FileKind::from_mode(mode) == Some(FileKind::Regular) {
                self.open(&path, libc::O_RDONLY).unwrap().file().host_file().unwrap();
            }
        }
    }
}
