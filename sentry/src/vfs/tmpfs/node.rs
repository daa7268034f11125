//! Files of a file system in memory.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::contents::Contents;
use super::{SEAL_SEAL, Shared};
use crate::error::Errno;
use crate::platform::generation;
use crate::vfs::inode::downcast;
use crate::vfs::locks::FileLocks;
use crate::vfs::pipe::Pipe;
use crate::vfs::sync::lock;
use crate::vfs::{
    AttributeChange, Attributes, Caller, Content, DirEntry, File, FileKind, Flags, Inode, NewNode,
    RenameMode, Timestamp, XattrMode,
};

/// What Linux counts for an entry of a folder (`BOGO_DIRENT_SIZE`).
const ENTRY_SIZE: u64 = 20;
/// Names that a file can have.
const LINKS_MAX: u32 = 1 << 20;
/// Bytes that the names of a file's extended attributes take at most (`XATTR_LIST_MAX`).
const XATTRS_MAX: usize = 65_536;

/// A file.
pub struct Node {
    shared: Arc<Shared>,
    number: u64,
    kind: FileKind,
    rdev: u64,
    body: Body,
    meta: Mutex<Meta>,
    xattrs: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    locks: FileLocks,
}

enum Body {
    Regular(Mutex<Contents>),
    Folder(Mutex<Folder>),
    Symlink(Vec<u8>),
    Fifo(Arc<Pipe>),
    Special,
}

#[derive(Default)]
struct Folder {
    entries: BTreeMap<Vec<u8>, Arc<Node>>,
    /// Removed: nothing can be made in it any more.
    dead: bool,
}

struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    /// Without a name, but may get one (`O_TMPFILE`).
    nameless: bool,
    accessed: Timestamp,
    modified: Timestamp,
    changed: Timestamp,
    created: Timestamp,
}

impl Node {
    /// The root of a file system.
    pub(super) fn first(shared: &Arc<Shared>, new: &NewNode<'_>) -> Arc<Self> {
        let number = shared.node().unwrap_or(1);
        Arc::new(Self::build(shared, number, new, SEAL_SEAL))
    }

    fn new(shared: &Arc<Shared>, new: &NewNode<'_>) -> Result<Arc<Self>, Errno> {
        let number = shared.node()?;
        Ok(Arc::new(Self::build(shared, number, new, SEAL_SEAL)))
    }

    /// A regular file without a name.
    pub(super) fn nameless(shared: &Arc<Shared>, new: &NewNode<'_>, seals: u32) -> Result<Arc<Self>, Errno> {
        let number = shared.node()?;
        let node = Self::build(shared, number, new, seals);
        {
            let mut meta = lock(&node.meta);
            meta.links = 0;
            meta.nameless = true;
        }
        Ok(Arc::new(node))
    }

    fn build(shared: &Arc<Shared>, number: u64, new: &NewNode<'_>, seals: u32) -> Self {
        let now = Timestamp::now();
        let kind = new.content.kind();
        let (body, rdev) = match new.content {
            Content::Regular => (Body::Regular(Mutex::new(Contents::new(shared, seals))), 0),
            Content::Folder => (Body::Folder(Mutex::default()), 0),
            Content::Symlink(target) => (Body::Symlink(target.to_vec()), 0),
            Content::Fifo => (Body::Fifo(Pipe::new()), 0),
            Content::Socket => (Body::Special, 0),
            Content::CharDevice(rdev) | Content::BlockDevice(rdev) => (Body::Special, rdev),
        };
        let meta = Meta {
            mode: new.mode & 0o7777,
            uid: new.uid,
            gid: new.gid,
            links: if kind == FileKind::Folder { 2 } else { 1 },
            nameless: false,
            accessed: now,
            modified: now,
            changed: now,
            created: now,
        };
        Self {
            shared: Arc::clone(shared),
            number,
            kind,
            rdev,
            body,
            meta: Mutex::new(meta),
            xattrs: Mutex::default(),
            locks: FileLocks::default(),
        }
    }

    fn folder(&self) -> Result<&Mutex<Folder>, Errno> {
        match &self.body {
            Body::Folder(folder) => Ok(folder),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn contents(&self) -> Result<&Mutex<Contents>, Errno> {
        match &self.body {
            Body::Regular(contents) => Ok(contents),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Stamps a change of contents.
    fn modified(&self) {
        let now = Timestamp::now();
        let mut meta = lock(&self.meta);
        meta.modified = now;
        meta.changed = now;
    }

    fn changed(&self) {
        lock(&self.meta).changed = Timestamp::now();
    }

    /// A name of this file is gone.
    fn unlinked(&self) {
        let mut meta = lock(&self.meta);
        meta.links = if self.kind == FileKind::Folder { 0 } else { meta.links.saturating_sub(1) };
        meta.changed = Timestamp::now();
    }

    /// A folder in this one came or went.
    fn count_folder(&self, more: bool) {
        let mut meta = lock(&self.meta);
        meta.links = if more { meta.links.saturating_add(1) } else { meta.links.saturating_sub(1) };
    }

    fn insert(&self, name: &[u8], node: &Arc<Self>) -> Result<(), Errno> {
        let mut folder = lock(self.folder()?);
        if folder.dead {
            return Err(Errno::ENOENT);
        }
        if folder.entries.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        folder.entries.insert(name.to_vec(), Arc::clone(node));
        drop(folder);
        if node.kind == FileKind::Folder {
            self.count_folder(true);
        }
        self.modified();
        Ok(())
    }

    /// Marks a folder as removed, if it is empty.
    fn kill(&self) -> Result<(), Errno> {
        let mut folder = lock(self.folder()?);
        if !folder.entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        folder.dead = true;
        Ok(())
    }

    /// A rename within this folder or to another, both being locked.
    fn rename_locked(
        &self,
        from: &mut Folder,
        (other, to): (&Self, Option<&mut Folder>),
        (name, to_name): (&[u8], &[u8]),
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let moved = from.entries.get(name).cloned().ok_or(Errno::ENOENT)?;
        let across = to.is_some();
        let there = to.unwrap_or(&mut *from);
        if there.dead {
            return Err(Errno::ENOENT);
        }
        let target = there.entries.get(to_name).cloned();
        match (&target, mode) {
            (Some(_), RenameMode::Keep) => return Err(Errno::EEXIST),
            (None, RenameMode::Exchange) => return Err(Errno::ENOENT),
            (Some(target), RenameMode::Replace) => {
                if target.kind == FileKind::Folder {
                    target.kill()?;
                }
                target.unlinked();
            }
            _ => {}
        }
        there.entries.insert(to_name.to_vec(), Arc::clone(&moved));
        let back = target.clone().filter(|_| mode == RenameMode::Exchange);
        match &back {
            Some(back) => from.entries.insert(name.to_vec(), Arc::clone(back)),
            None => from.entries.remove(name),
        };
        let folder = |node: &Option<Arc<Self>>| node.as_ref().is_some_and(|n| n.kind == FileKind::Folder);
        let replaced = target.filter(|_| mode == RenameMode::Replace);
        if folder(&replaced) {
            other.count_folder(false);
        }
        if across {
            if moved.kind == FileKind::Folder {
                self.count_folder(false);
                other.count_folder(true);
            }
            if folder(&back) {
                other.count_folder(false);
                self.count_folder(true);
            }
        }
        [Some(moved), back].iter().flatten().for_each(|node| node.changed());
        Ok(())
    }
}

impl Inode for Node {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        let (size, used) = match &self.body {
            Body::Regular(contents) => {
                let contents = lock(contents);
                (contents.size, contents.used())
            }
            Body::Folder(folder) => ((lock(folder).entries.len() as u64).saturating_mul(ENTRY_SIZE), 0),
            Body::Symlink(target) => (target.len() as u64, 0),
            _ => (0, 0),
        };
        let meta = lock(&self.meta);
        Ok(Attributes {
            device: self.shared.device,
            inode: self.number,
            kind: self.kind,
            mode: meta.mode,
            links: meta.links,
            uid: meta.uid,
            gid: meta.gid,
            rdev: self.rdev,
            size,
            blocks: used.div_ceil(512),
            block_size: 4096,
            accessed: meta.accessed,
            modified: meta.modified,
            changed: meta.changed,
            created: Some(meta.created),
        })
    }

    fn steady(&self) -> bool {
        true
    }

    fn change(&self, change: &AttributeChange) -> Result<(), Errno> {
        if let Some(size) = change.size {
            lock(self.contents()?).resize(size)?;
            self.modified();
        }
        if let (Some(mode), Ok(contents)) = (change.mode, self.contents()) {
            let sealed = lock(contents).seals & super::SEAL_EXEC != 0;
            if sealed && (mode ^ lock(&self.meta).mode) & 0o111 != 0 {
                return Err(Errno::EPERM);
            }
        }
        let mut meta = lock(&self.meta);
        meta.mode = change.mode.map_or(meta.mode, |mode| mode & 0o7777);
        meta.uid = change.uid.unwrap_or(meta.uid);
        meta.gid = change.gid.unwrap_or(meta.gid);
        meta.accessed = change.accessed.unwrap_or(meta.accessed);
        meta.modified = change.modified.unwrap_or(meta.modified);
        meta.changed = Timestamp::now();
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        let node = lock(self.folder()?).entries.get(name).cloned();
        node.map(|node| node as Arc<dyn Inode>).ok_or(Errno::ENOENT)
    }

    fn create(&self, name: &[u8], new: &NewNode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        let node = Self::new(&self.shared, new)?;
        self.insert(name, &node)?;
        Ok(node)
    }

    fn temporary(&self, new: &NewNode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        Ok(Self::nameless(&self.shared, new, SEAL_SEAL)?)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<(), Errno> {
        let node = downcast::<Self>(target).filter(|node| Arc::ptr_eq(&node.shared, &self.shared));
        let node = node.ok_or(Errno::EXDEV)?;
        {
            let mut meta = lock(&node.meta);
            match meta.links {
                0 if !meta.nameless => return Err(Errno::ENOENT),
                LINKS_MAX.. => return Err(Errno::EMLINK),
                _ => {}
            }
            meta.links = meta.links.saturating_add(1);
            meta.changed = Timestamp::now();
        }
        let result = self.insert(name, &node);
        if result.is_err() {
            node.unlinked();
        } else {
            lock(&node.meta).nameless = false;
        }
        result
    }

    fn unlink(&self, name: &[u8]) -> Result<(), Errno> {
        let node = {
            let mut folder = lock(self.folder()?);
            if folder.entries.get(name).ok_or(Errno::ENOENT)?.kind == FileKind::Folder {
                return Err(Errno::EISDIR);
            }
            folder.entries.remove(name).ok_or(Errno::ENOENT)?
        };
        node.unlinked();
        self.modified();
        Ok(())
    }

    fn rmdir(&self, name: &[u8]) -> Result<(), Errno> {
        let node = {
            let mut folder = lock(self.folder()?);
            folder.entries.get(name).ok_or(Errno::ENOENT)?.kill()?;
            folder.entries.remove(name).ok_or(Errno::ENOENT)?
        };
        node.unlinked();
        self.count_folder(false);
        self.modified();
        Ok(())
    }

    fn rename(
        &self,
        name: &[u8],
        to: &Arc<dyn Inode>,
        to_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let to = downcast::<Self>(to).filter(|node| Arc::ptr_eq(&node.shared, &self.shared));
        let to = to.ok_or(Errno::EXDEV)?;
        let names = (name, to_name);
        if self.number == to.number {
            self.rename_locked(&mut lock(self.folder()?), (self, None), names, mode)?;
        } else if self.number < to.number {
            let mut from = lock(self.folder()?);
            let mut there = lock(to.folder()?);
            self.rename_locked(&mut from, (&to, Some(&mut there)), names, mode)?;
        } else {
            let mut there = lock(to.folder()?);
            let mut from = lock(self.folder()?);
            self.rename_locked(&mut from, (&to, Some(&mut there)), names, mode)?;
        }
        self.modified();
        to.modified();
        Ok(())
    }

    fn list(&self) -> Result<Vec<DirEntry>, Errno> {
        let folder = lock(self.folder()?);
        let entry = |(name, node): (&Vec<u8>, &Arc<Self>)| DirEntry {
            name: name.clone(),
            inode: node.number,
            kind: node.kind,
        };
        Ok(folder.entries.iter().map(entry).collect())
    }

    fn readlink(&self, _caller: &Caller) -> Result<Vec<u8>, Errno> {
        match &self.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn open(self: Arc<Self>, flags: Flags, _caller: &Caller) -> Result<Box<dyn File>, Errno> {
        if self.kind != FileKind::Regular {
            return Err(Errno::ENXIO);
        }
        Ok(Box::new(Opened::new(&self, !flags.has(libc::O_NOATIME))))
    }

    fn fifo(&self) -> Option<Arc<Pipe>> {
        match &self.body {
            Body::Fifo(pipe) => Some(Arc::clone(pipe)),
            _ => None,
        }
    }

    fn has_set_id(&self) -> bool {
        lock(&self.meta).mode & 0o6000 != 0
    }

    fn locks(&self) -> Option<&FileLocks> {
        Some(&self.locks)
    }

    fn xattr(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        lock(&self.xattrs).get(name).cloned().ok_or(Errno::ENODATA)
    }

    fn xattrs(&self) -> Result<Vec<Vec<u8>>, Errno> {
        Ok(lock(&self.xattrs).keys().cloned().collect())
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<(), Errno> {
        let mut xattrs = lock(&self.xattrs);
        let before = xattrs.get(name).map(|before| before.len() as u64);
        match mode {
            XattrMode::Create if before.is_some() => return Err(Errno::EEXIST),
            XattrMode::Replace if before.is_none() => return Err(Errno::ENODATA),
            _ => {}
        }
        let names: usize = xattrs.keys().map(|name| name.len() + 1).sum();
        if before.is_none() && names + name.len() >= XATTRS_MAX {
            return Err(Errno::ENOSPC);
        }
        self.shared.charge(value.len() as u64)?;
        xattrs.insert(name.to_vec(), value.to_vec());
        drop(xattrs);
        self.shared.uncharge(before.unwrap_or(0));
        self.changed();
        Ok(())
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<(), Errno> {
        let value = lock(&self.xattrs).remove(name).ok_or(Errno::ENODATA)?;
        self.shared.uncharge(value.len() as u64);
        self.changed();
        Ok(())
    }
}

impl Drop for Node {
    /// A tree of folders goes one by one, not by recursion: a guest decides how deep it is.
    fn drop(&mut self) {
        let values: usize = {
            let xattrs = self.xattrs.get_mut().unwrap_or_else(PoisonError::into_inner);
            xattrs.values().map(Vec::len).sum()
        };
        self.shared.uncharge(values as u64);
        self.shared.nodes.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
        let take = |body: &mut Body| match body {
            Body::Folder(folder) => {
                std::mem::take(&mut folder.get_mut().unwrap_or_else(PoisonError::into_inner).entries)
            }
            _ => BTreeMap::new(),
        };
        let mut left: Vec<Arc<Self>> = take(&mut self.body).into_values().collect();
        while let Some(node) = left.pop() {
            if let Some(mut node) = Arc::into_inner(node) {
                left.extend(take(&mut node.body).into_values());
            }
        }
    }
}

/// An open regular file.
pub(super) struct Opened {
    node: Arc<Node>,
    stamps: bool,
}

impl Opened {
    pub(super) fn new(node: &Arc<Node>, stamps: bool) -> Self {
        Self { node: Arc::clone(node), stamps }
    }
}

impl Node {
    /// A read: noted only where it is the first since a change, or since a day (`relatime`, which Linux does unless asked otherwise).
    fn stamp_read(&self) {
        const DAY: i64 = 24 * 60 * 60;
        let now = Timestamp::now();
        let mut meta = lock(&self.meta);
        let since_change = meta.accessed <= meta.modified || meta.accessed <= meta.changed;
        if since_change && meta.accessed != now || now.seconds.saturating_sub(meta.accessed.seconds) >= DAY {
            meta.accessed = now;
            generation::changed();
        }
    }
}

impl File for Opened {
    fn read(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let count = lock(self.node.contents()?).read(to, offset)?;
        if self.stamps {
            self.node.stamp_read();
        }
        Ok(count)
    }

    fn write(&self, from: &[u8], offset: u64) -> Result<usize, Errno> {
        let count = lock(self.node.contents()?).write(from, offset)?;
        self.node.modified();
        Ok(count)
    }

    fn append(&self, from: &[u8]) -> Result<(usize, u64), Errno> {
        let result = {
            let mut contents = lock(self.node.contents()?);
            let end = contents.size;
            let count = contents.write(from, end)?;
            (count, contents.size)
        };
        self.node.modified();
        Ok(result)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek_data(&self, offset: u64, hole: bool, _size: u64) -> Result<u64, Errno> {
        lock(self.node.contents()?).seek(offset, hole)
    }

    fn host_file(&self) -> Result<(Arc<OwnedFd>, u64), Errno> {
        Ok((lock(self.node.contents()?).become_host()?, 0))
    }

    fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<(), Errno> {
        lock(self.node.contents()?).allocate(mode, offset, length)?;
        self.node.modified();
        Ok(())
    }

    fn sync(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn seals(&self) -> Result<u32, Errno> {
        Ok(lock(self.node.contents()?).seals)
    }

    fn add_seals(&self, seals: u32) -> Result<(), Errno> {
        lock(self.node.contents()?).add_seals(seals)
    }
}
