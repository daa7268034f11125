//! What `proc` and `sysfs` have in common: files whose text is made when it is read, and folders that never change.
//!
//! A text is made when an open file is read at its beginning and kept until the next time that happens: what is read in parts
//! fits together (as `fs/seq_file.c` has it for short files).

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};

use super::sync::lock;
use super::{
    AttributeChange, Attributes, Caller, Content, DirEntry, File, FileKind, Flags, Inode, NewNode, Timestamp,
};
use crate::error::Errno;

/// Most bytes of one write that count.
const WRITE_MAX: usize = 4096;

/// Makes the text of a file, and takes what is written to it.
pub(super) trait Source: Send + Sync + 'static {
    /// The text.
    fn read(&self) -> Result<Vec<u8>, Errno>;

    /// Takes what is written; EIO where nothing can be (`proc_reg_write`).
    fn write(&self, from: &[u8]) -> Result<(), Errno> {
        let _ = from;
        Err(Errno::EIO)
    }
}

impl<F: Fn() -> Result<Vec<u8>, Errno> + Send + Sync + 'static> Source for F {
    fn read(&self) -> Result<Vec<u8>, Errno> {
        self()
    }
}

/// An open file with a text.
pub(super) struct Text<S> {
    source: S,
    seen: Mutex<Option<Arc<Vec<u8>>>>,
}

impl<S: Source> Text<S> {
    pub(super) fn boxed(source: S) -> Box<dyn File> {
        Box::new(Self { source, seen: Mutex::default() })
    }

    fn text(&self, offset: u64) -> Result<Arc<Vec<u8>>, Errno> {
        let known = lock(&self.seen).clone().filter(|_| offset != 0);
        if let Some(text) = known {
            return Ok(text);
        }
        // Made without the lock: it is free to ask whatever it likes.
        let text = Arc::new(self.source.read()?);
        let before = lock(&self.seen).replace(Arc::clone(&text));
        drop(before);
        Ok(text)
    }
}

impl<S: Source> File for Text<S> {
    fn read(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        if to.is_empty() {
            return Ok(0);
        }
        let text = self.text(offset)?;
        let rest = usize::try_from(offset).ok().and_then(|offset| text.get(offset..)).unwrap_or_default();
        let count = rest.len().min(to.len());
        to[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write(&self, from: &[u8], _offset: u64) -> Result<usize, Errno> {
        self.source.write(from.get(..WRITE_MAX).unwrap_or(from))?;
        Ok(from.len())
    }

    fn append(&self, from: &[u8]) -> Result<(usize, u64), Errno> {
        self.write(from, 0).map(|count| (count, count as u64))
    }

    fn seekable(&self) -> bool {
        true
    }
}

/// What all files of one file system share.
pub(super) struct Shared {
    device: u64,
    made: Timestamp,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self { device: super::tmpfs::next_device(), made: Timestamp::now() }
    }

    /// What `stat` tells of a file: its number comes from its path.
    pub(super) fn attributes(&self, path: &[u8], kind: FileKind, mode: u32) -> Attributes {
        Attributes {
            device: self.device,
            inode: number(path),
            kind,
            mode,
            links: if kind == FileKind::Folder { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            block_size: 1024,
            accessed: self.made,
            modified: self.made,
            changed: self.made,
            created: None,
        }
    }
}

/// Number of a file by its path: FNV-1a, without the highest bits, which some programs take for a sign.
pub(super) fn number(path: &[u8]) -> u64 {
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    path.iter().fold(0xcbf2_9ce4_8422_2325, hash) >> 16
}

/// EPERM or EACCES for whoever wants to make a file where nobody can (`lookup_open` and `vfs_mkdir` in `fs/namei.c`).
pub(super) fn cannot_create(new: &NewNode<'_>) -> Errno {
    if matches!(new.content, Content::Regular) { Errno::EACCES } else { Errno::EPERM }
}

/// A change that files of such a file system take: an `O_TRUNC` means nothing, stamps are not kept.
pub(super) fn change(change: &AttributeChange) -> Result<(), Errno> {
    let refused = change.mode.is_some() || change.uid.is_some() || change.gid.is_some();
    if refused { Err(Errno::EPERM) } else { Ok(()) }
}

/// Opens a file.
pub(super) type Opener = Box<dyn Fn(&Caller, Flags) -> Result<Box<dyn File>, Errno> + Send + Sync>;

/// Something in a tree that never changes.
pub(super) enum Branch {
    /// A folder.
    Folder(BTreeMap<Vec<u8>, Arc<Branch>>),
    /// A file of this mode.
    File(u32, Opener),
    /// A symbolic link.
    Link(Vec<u8>),
}

impl Branch {
    /// An empty folder.
    pub(super) fn folder() -> Self {
        Self::Folder(BTreeMap::new())
    }

    /// A file whose text anybody can read.
    pub(super) fn text(read: impl Fn() -> Result<Vec<u8>, Errno> + Clone + Send + Sync + 'static) -> Self {
        Self::File(0o444, Box::new(move |_, _| Ok(Text::boxed(read.clone()))))
    }

    /// A file whose text is always the same.
    pub(super) fn fixed(text: impl Into<Vec<u8>>) -> Self {
        let text: Arc<[u8]> = text.into().into();
        Self::text(move || Ok(text.to_vec()))
    }

    /// Puts something at a path, with the folders that lead to it. Only while the tree is built.
    pub(super) fn put(&mut self, path: &str, branch: Self) {
        let Self::Folder(children) = self else { return };
        match path.split_once('/') {
            None => {
                children.insert(path.as_bytes().to_vec(), Arc::new(branch));
            }
            Some((first, rest)) => {
                let child = children.entry(first.as_bytes().to_vec());
                let child = child.or_insert_with(|| Arc::new(Self::folder()));
                if let Some(child) = Arc::get_mut(child) {
                    child.put(rest, branch);
                }
            }
        }
    }

    /// Puts an empty folder at a path.
    pub(super) fn put_folder(&mut self, path: &str) {
        self.put(path, Self::folder());
    }

    pub(super) fn kind(&self) -> FileKind {
        match self {
            Self::Folder(_) => FileKind::Folder,
            Self::File(..) => FileKind::Regular,
            Self::Link(_) => FileKind::Symlink,
        }
    }

    /// What is in a folder; nothing in anything else.
    pub(super) fn child(&self, name: &[u8]) -> Option<&Arc<Self>> {
        match self {
            Self::Folder(children) => children.get(name),
            _ => None,
        }
    }

    /// Entries of a folder at this path.
    pub(super) fn list(&self, path: &[u8]) -> Vec<DirEntry> {
        let Self::Folder(children) = self else { return Vec::new() };
        let entry = |(name, child): (&Vec<u8>, &Arc<Self>)| DirEntry {
            name: name.clone(),
            inode: number(&join(path, name)),
            kind: child.kind(),
        };
        children.iter().map(entry).collect()
    }
}

/// A path one name longer.
pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    [path, b"/", name].concat()
}

/// A file of a tree that never changes.
pub(super) struct Node {
    pub(super) shared: Arc<Shared>,
    pub(super) path: Vec<u8>,
    pub(super) branch: Arc<Branch>,
}

impl Inode for Node {
    fn kind(&self) -> FileKind {
        self.branch.kind()
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        let mode = match &*self.branch {
            Branch::Folder(_) => 0o555,
            Branch::File(mode, _) => *mode,
            Branch::Link(_) => 0o777,
        };
        Ok(self.shared.attributes(&self.path, self.kind(), mode))
    }

    fn change(&self, wanted: &AttributeChange) -> Result<(), Errno> {
        change(wanted)
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        let branch = Arc::clone(self.branch.child(name).ok_or(Errno::ENOENT)?);
        Ok(Arc::new(Self { shared: Arc::clone(&self.shared), path: join(&self.path, name), branch }))
    }

    fn create(&self, _name: &[u8], new: &NewNode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        Err(cannot_create(new))
    }

    fn unlink(&self, _name: &[u8]) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    fn rmdir(&self, _name: &[u8]) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    fn list(&self) -> Result<Vec<DirEntry>, Errno> {
        match &*self.branch {
            Branch::Folder(_) => Ok(self.branch.list(&self.path)),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn readlink(&self, _caller: &Caller) -> Result<Vec<u8>, Errno> {
        match &*self.branch {
            Branch::Link(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn open(self: Arc<Self>, flags: Flags, caller: &Caller) -> Result<Box<dyn File>, Errno> {
        match &*self.branch {
            Branch::File(_, open) => open(caller, flags),
            _ => Err(Errno::ENXIO),
        }
    }
}

/// Numbers of the CPUs that the sandbox may use, as the host has them.
pub(super) fn cpus() -> &'static [usize] {
    static CPUS: LazyLock<Vec<usize>> = LazyLock::new(|| {
        let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap_or_default();
        let cpus: Vec<_> =
            (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect();
        if cpus.is_empty() { vec![0] } else { cpus }
    });
    &CPUS
}

/// Numbers as ranges: `0-3,8` (`%*pbl` of `lib/vsprintf.c`). They ascend.
pub(super) fn ranges(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => parts.push((*number, *number)),
        }
    }
    let part = |(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

/// Numbers as a mask in groups of 32 bits: `1,00000003` (`%*pb`), as wide as the highest number asks for.
pub(super) fn mask(numbers: &[usize]) -> String {
    let mut words = vec![0_u32; numbers.iter().max().map_or(0, |most| most / 32) + 1];
    for number in numbers {
        if let Some(word) = words.get_mut(number / 32) {
            *word |= 1 << (number % 32);
        }
    }
    let mut words = words.iter().rev();
    let first = words.next().map(|word| format!("{word:x}"));
    first.into_iter().chain(words.map(|word| format!("{word:08x}"))).collect::<Vec<_>>().join(",")
}
