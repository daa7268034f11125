//! Files in memory: those of a `tmpfs`, and what an overlay in memory has changed.
//!
//! They are put back by name into file systems that the bundle has made anew, so numbers of inodes are other ones.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::CheckpointError;
use super::files::read_file;
use super::image::{Reader, Source, Writer};
use super::state::{Extent, SavedBody, SavedNode, SavedTree};
use crate::error::Errno;
use crate::vfs::dev::is_whiteout;
use crate::vfs::overlay::{self, Overlay};
use crate::vfs::tmpfs::Tmpfs;
use crate::vfs::{
    AttributeChange, Attributes, Caller, Content, Dentry, File, FileKind, Flags, Inode, Mount, NewNode,
    Timestamp, XattrMode,
};

/// Most folders in each other.
const DEPTH_MAX: usize = 1024;

fn fail(path: &[u8]) -> impl FnOnce(Errno) -> CheckpointError {
    let what = format!("the file {} in memory", String::from_utf8_lossy(path));
    move |errno| CheckpointError::Host { what, errno }
}

/// The top of a mount's file system.
pub(super) fn top(mount: &Mount) -> Arc<Dentry> {
    let mut at = Arc::clone(mount.root());
    while let Some(parent) = at.parent() {
        at = parent;
    }
    at
}

/// The layer in memory of a file system; `None` where there is none.
fn layer(dentry: &Arc<Dentry>) -> Option<(Arc<dyn Inode>, bool)> {
    let fs = &*dentry.tree().fs;
    match (fs as &dyn Any).downcast_ref::<Overlay>() {
        Some(overlay) => overlay.upper().map(|upper| (upper, false)),
        None => (fs.name() == "tmpfs" && !is_shared(dentry)).then(|| (Arc::clone(dentry.inode()), true)),
    }
}

/// Whether it is in memory that other containers have, too: that is neither kept nor put back.
pub(super) fn is_shared(dentry: &Dentry) -> bool {
    let fs = &*dentry.tree().fs;
    (fs as &dyn Any).downcast_ref::<Tmpfs>().is_some_and(Tmpfs::is_of_many)
}

/// Saves what is in memory of a file system.
pub(super) fn save(out: &mut Writer, top: &Arc<Dentry>) -> Result<Option<SavedTree>, CheckpointError> {
    let Some((inode, whole)) = layer(top) else { return Ok(None) };
    let mut saving = Saving { out, nodes: Vec::new(), links: BTreeMap::new(), whole };
    saving.node(&inode, Vec::new(), 0)?;
    Ok(Some(SavedTree { nodes: saving.nodes }))
}

struct Saving<'a> {
    out: &'a mut Writer,
    nodes: Vec<SavedNode>,
    links: BTreeMap<u64, Vec<u8>>,
    /// Whether there is no layer below.
    whole: bool,
}

impl Saving<'_> {
    fn node(&mut self, inode: &Arc<dyn Inode>, path: Vec<u8>, depth: usize) -> Result<(), CheckpointError> {
        let attributes = inode.attributes().map_err(fail(&path))?;
        if depth > DEPTH_MAX {
            return Err(fail(&path)(Errno::ELOOP));
        }
        let body = self.body(inode, &attributes, &path)?;
        let mut xattrs = Vec::new();
        for name in inode.xattrs().map_err(fail(&path))? {
            if !name.starts_with(overlay::PRIVATE) {
                let value = inode.xattr(&name).map_err(fail(&path))?;
                xattrs.push((name, value));
            }
        }
        let Attributes { mode, uid, gid, .. } = attributes;
        let time = |time: Timestamp| (time.seconds, time.nanoseconds);
        let (accessed, modified) = (time(attributes.accessed), time(attributes.modified));
        self.nodes.push(SavedNode { path: path.clone(), mode, uid, gid, accessed, modified, xattrs, body });
        if attributes.kind != FileKind::Folder {
            return Ok(());
        }
        for entry in inode.list().map_err(fail(&path))? {
            let mut below = path.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(&entry.name);
            let child = inode.lookup(&entry.name).map_err(fail(&below))?;
            self.node(&child, below, depth + 1)?;
        }
        Ok(())
    }

    fn body(
        &mut self,
        inode: &Arc<dyn Inode>,
        attributes: &Attributes,
        path: &[u8],
    ) -> Result<SavedBody, CheckpointError> {
        if !self.whole && is_whiteout(inode) {
            return Ok(SavedBody::Gone);
        }
        if attributes.kind != FileKind::Folder && attributes.links > 1 {
            if let Some(first) = self.links.get(&attributes.inode) {
                return Ok(SavedBody::Link(first.clone()));
            }
            self.links.insert(attributes.inode, path.to_vec());
        }
        Ok(match attributes.kind {
            FileKind::Folder => SavedBody::Folder { whole: self.whole || overlay::is_opaque(inode) },
            FileKind::Regular => {
                let flags = Flags(libc::O_NOATIME.cast_unsigned());
                let file = Arc::clone(inode).open(flags, &Caller::root()).map_err(fail(path))?;
                let extents = contents(self.out, &*file, attributes.size)?;
                SavedBody::Regular { size: attributes.size, extents }
            }
            FileKind::Symlink => SavedBody::Symlink(inode.readlink(&Caller::root()).map_err(fail(path))?),
            FileKind::Fifo => SavedBody::Fifo,
            FileKind::Socket => SavedBody::Socket,
            FileKind::CharDevice | FileKind::BlockDevice => SavedBody::Device(attributes.rdev),
        })
    }
}

/// What a file holds.
pub(super) fn contents(out: &mut Writer, file: &dyn File, size: u64) -> Result<Vec<Extent>, CheckpointError> {
    let mut extents = Vec::new();
    read_file(out, file, size, &mut extents)?;
    Ok(extents)
}

/// Gives a file what it held.
pub(super) fn put_contents<S: Source>(
    image: &Reader<S>,
    file: &dyn File,
    inode: &Arc<dyn Inode>,
    (size, extents): (u64, &[Extent]),
) -> Result<(), CheckpointError> {
    let fail = |errno| CheckpointError::Host { what: "the contents of a file in memory".to_owned(), errno };
    for size in [0, size] {
        inode.change(&AttributeChange { size: Some(size), ..Default::default() }).map_err(fail)?;
    }
    for extent in extents.iter().filter(|extent| extent.from.is_some()) {
        image.each(extent, |at, bytes| {
            let mut done = 0usize;
            while let Some(left) = bytes.get(done..).filter(|left| !left.is_empty()) {
                done = done.saturating_add(file.write(left, at.saturating_add(done as u64)).map_err(fail)?);
            }
            Ok::<(), CheckpointError>(())
        })?;
    }
    Ok(())
}

/// Puts back what was in memory.
pub(super) fn restore<S: Source>(
    image: &Reader<S>,
    top: &Arc<Dentry>,
    saved: &SavedTree,
) -> Result<(), CheckpointError> {
    if layer(top).is_none() {
        return Err(CheckpointError::State("a mount that has nothing in memory"));
    }
    let mut names: BTreeMap<&[u8], BTreeSet<&[u8]>> = BTreeMap::new();
    for node in &saved.nodes {
        let (folder, name) = split(&node.path);
        names.entry(folder).or_default().insert(name);
    }
    for node in &saved.nodes {
        put(image, top, node).map_err(|error| error.about(&node.path))?;
        if let SavedBody::Folder { whole: true } = node.body {
            let known = names.get(node.path.as_slice());
            clear(&find(top, &node.path)?, &|name| known.is_some_and(|known| known.contains(name)), 0)?;
        }
    }
    // Folders change their times with what is put into them.
    for node in saved.nodes.iter().rev().filter(|node| node.body != SavedBody::Gone) {
        let time = |(seconds, nanoseconds): (i64, u32)| Some(Timestamp { seconds, nanoseconds });
        let change = AttributeChange {
            mode: Some(node.mode & 0o7777),
            uid: Some(node.uid),
            gid: Some(node.gid),
            accessed: time(node.accessed),
            modified: time(node.modified),
            ..AttributeChange::default()
        };
        find(top, &node.path)?.inode().change(&change).map_err(fail(&node.path))?;
    }
    Ok(())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&[], path),
    }
}

/// A file by its path from the top: names alone, and no link is followed.
fn find(top: &Arc<Dentry>, path: &[u8]) -> Result<Arc<Dentry>, CheckpointError> {
    let mut at = Arc::clone(top);
    for name in path.split(|byte| *byte == b'/').filter(|_| !path.is_empty()) {
        if name.is_empty() || name == b"." || name == b".." || name.contains(&0) {
            return Err(CheckpointError::State("the name of a file"));
        }
        at = at.lookup(name).map_err(fail(path))?;
    }
    Ok(at)
}

fn put<S: Source>(image: &Reader<S>, top: &Arc<Dentry>, node: &SavedNode) -> Result<(), CheckpointError> {
    if node.path.is_empty() {
        return attributes(top, node);
    }
    let (folder, name) = split(&node.path);
    let folder = find(top, folder)?;
    let there = match folder.lookup(name) {
        Ok(there) => Some(there),
        Err(Errno::ENOENT) => None,
        Err(errno) => return Err(fail(&node.path)(errno)),
    };
    let content = match &node.body {
        SavedBody::Folder { .. } => Content::Folder,
        SavedBody::Regular { .. } => Content::Regular,
        SavedBody::Symlink(target) => Content::Symlink(target),
        SavedBody::Fifo => Content::Fifo,
        SavedBody::Socket => Content::Socket,
        SavedBody::Device(rdev) => Content::CharDevice(*rdev),
        SavedBody::Link(path) => {
            let target = find(top, path)?;
            if let Some(there) = there {
                remove(&folder, name, &there, 0)?;
            }
            return folder.link(name, &target).map_err(fail(&node.path));
        }
        SavedBody::Gone => return there.map_or(Ok(()), |there| remove(&folder, name, &there, 0)),
    };
    let kept = there.filter(|there| stays(there, &node.body));
    let file = match kept {
        Some(there) => there,
        None => {
            if let Ok(there) = folder.lookup(name) {
                remove(&folder, name, &there, 0)?;
            }
            let new = NewNode { content, mode: node.mode & 0o7777, uid: node.uid, gid: node.gid };
            folder.create(name, &new).map_err(fail(&node.path))?
        }
    };
    if let SavedBody::Regular { size, extents } = &node.body {
        let flags = Flags(libc::O_WRONLY.cast_unsigned());
        let open = Arc::clone(file.inode()).open(flags, &Caller::root()).map_err(fail(&node.path))?;
        put_contents(image, &*open, file.inode(), (*size, extents))?;
    }
    attributes(&file, node)
}

/// Whether what is there may stay, and is changed at most.
fn stays(there: &Arc<Dentry>, body: &SavedBody) -> bool {
    let Ok(attributes) = there.inode().attributes() else { return false };
    match body {
        SavedBody::Folder { .. } => attributes.kind == FileKind::Folder,
        SavedBody::Regular { .. } => attributes.kind == FileKind::Regular && attributes.links == 1,
        SavedBody::Device(rdev) => attributes.kind == FileKind::CharDevice && attributes.rdev == *rdev,
        SavedBody::Symlink(target) => {
            there.inode().readlink(&Caller::root()).is_ok_and(|there| there == *target)
        }
        _ => false,
    }
}

fn attributes(file: &Arc<Dentry>, node: &SavedNode) -> Result<(), CheckpointError> {
    let inode = file.inode();
    for name in inode.xattrs().map_err(fail(&node.path))? {
        if !node.xattrs.iter().any(|(kept, _)| *kept == name) {
            inode.remove_xattr(&name).map_err(fail(&node.path))?;
        }
    }
    for (name, value) in &node.xattrs {
        inode.set_xattr(name, value, XattrMode::Any).map_err(fail(&node.path))?;
    }
    Ok(())
}

/// Removes a file, and all that is in a folder. What something is mounted on stays.
fn remove(
    folder: &Arc<Dentry>,
    name: &[u8],
    file: &Arc<Dentry>,
    depth: usize,
) -> Result<(), CheckpointError> {
    if file.is_folder() {
        clear(file, &|_| false, depth + 1)?;
    }
    match folder.remove(name, file) {
        Ok(()) | Err(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(()),
        Err(errno) => Err(fail(name)(errno)),
    }
}

fn clear(folder: &Arc<Dentry>, keep: &dyn Fn(&[u8]) -> bool, depth: usize) -> Result<(), CheckpointError> {
    if depth > DEPTH_MAX {
        return Err(CheckpointError::State("folders in each other"));
    }
    for entry in folder.inode().list().map_err(fail(b"a folder"))? {
        if !keep(&entry.name) {
            let file = folder.lookup(&entry.name).map_err(fail(&entry.name))?;
            remove(folder, &entry.name, &file, depth)?;
        }
    }
    Ok(())
}
