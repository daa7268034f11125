//! Copying what a lower layer has to the upper one.

use std::sync::Arc;

use super::node::Node;
use super::{PRIVATE, Shared};
use crate::error::Errno;
use crate::vfs::sync::{lock, write};
use crate::vfs::{
    AttributeChange, Attributes, Content, FileKind, Flags, Inode, NewNode, RenameMode, XattrMode,
};

/// Bytes copied at a time.
const CHUNK: usize = 128 * 1024;

impl Node {
    /// What it is in the upper layer, where it is put if it is not there yet.
    pub(super) fn copied_up(&self) -> Result<Arc<dyn Inode>, Errno> {
        if let Some(upper) = self.upper() {
            return Ok(upper);
        }
        let mut changes = lock(&self.shared.change);
        self.copied_up_locked(&mut changes)
    }

    /// The same for who holds the lock of changes.
    pub(super) fn copied_up_locked(&self, changes: &mut u64) -> Result<Arc<dyn Inode>, Errno> {
        // From the folder that is up already down to this one: all above must be there first.
        let mut missing = vec![self.me()?];
        while let Some(node) = missing.last() {
            let above = lock(&node.at).as_ref().map(|(parent, _)| Arc::clone(parent));
            match above.filter(|above| above.upper().is_none()) {
                Some(above) => missing.push(above),
                None => break,
            }
        }
        for node in missing.iter().rev() {
            if node.upper().is_none() {
                node.copy_up(changes)?;
            }
        }
        self.upper().ok_or(Errno::EIO)
    }

    fn copy_up(self: &Arc<Self>, changes: &mut u64) -> Result<(), Errno> {
        let lower = self.lower.first().ok_or(Errno::EIO)?;
        let attributes = lower.attributes()?;
        let at = lock(&self.at).clone();
        let upper = match at {
            None => {
                let made = self.shared.work.temporary(&new_like(&attributes, Content::Regular))?;
                self.shared.fill(lower, &attributes, &made)?;
                made
            }
            Some((parent, name)) => {
                let target = match self.kind {
                    FileKind::Symlink => lower.readlink(&self.shared.caller)?,
                    _ => Vec::new(),
                };
                let content = content_of(&attributes, &target);
                let (work_name, made) = self.shared.in_work(changes, &new_like(&attributes, content))?;
                let folder = parent.upper().ok_or(Errno::EIO)?;
                let before = folder.attributes()?;
                let placed = self
                    .shared
                    .fill(lower, &attributes, &made)
                    .and_then(|()| self.shared.work.rename(&work_name, &folder, &name, RenameMode::Keep));
                if let Err(errno) = placed {
                    self.shared.discard(&work_name, self.kind);
                    return Err(errno);
                }
                folder.change(&stamps(&before))?;
                made
            }
        };
        let number = upper.attributes()?.inode;
        lock(&self.shared.origins).insert(number, attributes.inode);
        *write(&self.upper) = Some(upper);
        lock(&self.shared.known).insert(number, Arc::downgrade(self));
        Ok(())
    }
}

fn new_like<'a>(attributes: &Attributes, content: Content<'a>) -> NewNode<'a> {
    NewNode { content, mode: attributes.mode, uid: attributes.uid, gid: attributes.gid }
}

fn content_of<'a>(attributes: &Attributes, target: &'a [u8]) -> Content<'a> {
    match attributes.kind {
        FileKind::Regular => Content::Regular,
        FileKind::Folder => Content::Folder,
        FileKind::Symlink => Content::Symlink(target),
        FileKind::Fifo => Content::Fifo,
        FileKind::Socket => Content::Socket,
        FileKind::CharDevice => Content::CharDevice(attributes.rdev),
        FileKind::BlockDevice => Content::BlockDevice(attributes.rdev),
    }
}

fn stamps(of: &Attributes) -> AttributeChange {
    AttributeChange { accessed: Some(of.accessed), modified: Some(of.modified), ..AttributeChange::default() }
}

impl Shared {
    /// Makes a file in the folder that nobody sees.
    pub(super) fn in_work(
        &self,
        changes: &mut u64,
        new: &NewNode<'_>,
    ) -> Result<(Vec<u8>, Arc<dyn Inode>), Errno> {
        *changes = changes.wrapping_add(1);
        let name = format!("#{changes:x}").into_bytes();
        let made = self.work.create(&name, new)?;
        Ok((name, made))
    }

    /// Takes a file out of that folder, as well as can be.
    pub(super) fn discard(&self, name: &[u8], kind: FileKind) {
        let _ = if kind == FileKind::Folder { self.work.rmdir(name) } else { self.work.unlink(name) };
    }

    /// Gives a new file what the lower one has: bytes, extended attributes, stamps.
    fn fill(
        &self,
        lower: &Arc<dyn Inode>,
        attributes: &Attributes,
        made: &Arc<dyn Inode>,
    ) -> Result<(), Errno> {
        if attributes.kind == FileKind::Regular {
            self.copy_bytes(lower, attributes.size, made)?;
        }
        for name in lower.xattrs()?.iter().filter(|name| !name.starts_with(PRIVATE)) {
            made.set_xattr(name, &lower.xattr(name)?, XattrMode::Any)?;
        }
        made.change(&stamps(attributes))
    }

    fn copy_bytes(&self, lower: &Arc<dyn Inode>, size: u64, made: &Arc<dyn Inode>) -> Result<(), Errno> {
        let from = Arc::clone(lower).open(Flags::READ, &self.caller)?;
        let to = Arc::clone(made).open(Flags::READ_WRITE, &self.caller)?;
        let mut chunk = vec![0; CHUNK];
        let mut at = 0u64;
        while at < size {
            // What is a hole stays one.
            match from.seek_data(at, false, size) {
                Ok(data) => at = data,
                Err(Errno::ENXIO) => break,
                Err(errno) => return Err(errno),
            }
            let count = from.read(&mut chunk, at)?;
            let mut left = chunk.get(..count).filter(|left| !left.is_empty()).ok_or(Errno::EIO)?;
            while !left.is_empty() {
                let written = to.write(left, at)?;
                left = left.get(written..).unwrap_or_default();
                at = at.saturating_add(written as u64);
            }
        }
        made.change(&AttributeChange { size: Some(size), ..AttributeChange::default() })
    }
}
