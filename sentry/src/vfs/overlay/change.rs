//! Changes of what is in an overlay's folders.

use std::sync::Arc;

use super::OPAQUE;
use super::node::Node;
use crate::error::Errno;
use crate::vfs::dev::is_whiteout;
use crate::vfs::sync::lock;
use crate::vfs::{Content, FileKind, Inode, NewNode, RenameMode, XattrMode};

const WHITEOUT: NewNode<'static> = NewNode { content: Content::CharDevice(0), mode: 0, uid: 0, gid: 0 };

fn make_opaque(folder: &Arc<dyn Inode>) -> Result<(), Errno> {
    folder.set_xattr(OPAQUE, b"y", XattrMode::Any)
}

/// Takes whiteouts out of an upper folder that shows nothing.
fn clear(folder: &Arc<dyn Inode>) -> Result<(), Errno> {
    for entry in folder.list()? {
        folder.unlink(&entry.name)?;
    }
    Ok(())
}

impl Node {
    /// EEXIST where something of that name shows; whether a whiteout is there.
    fn free(&self, name: &[u8]) -> Result<bool, Errno> {
        match self.upper_of(name)? {
            Some(upper) if is_whiteout(&upper) => Ok(true),
            Some(_) => Err(Errno::EEXIST),
            None if self.lower_has(name)? => Err(Errno::EEXIST),
            None => Ok(false),
        }
    }

    pub(super) fn make(self: &Arc<Self>, name: &[u8], new: &NewNode<'_>) -> Result<Arc<Self>, Errno> {
        let mut changes = lock(&self.shared.change);
        let whiteout = self.free(name)?;
        let folder = self.copied_up_locked(&mut changes)?;
        if !whiteout {
            let made = folder.create(name, new)?;
            return self.of_upper(name, made, Vec::new());
        }
        let kind = new.content.kind();
        let (work_name, made) = self.shared.in_work(&mut changes, new)?;
        let opaque = if kind == FileKind::Folder { make_opaque(&made) } else { Ok(()) };
        let placed =
            opaque.and_then(|()| self.shared.work.rename(&work_name, &folder, name, RenameMode::Replace));
        if let Err(errno) = placed {
            self.shared.discard(&work_name, kind);
            return Err(errno);
        }
        self.of_upper(name, made, Vec::new())
    }

    pub(super) fn add_link(&self, name: &[u8], target: &Self) -> Result<(), Errno> {
        let mut changes = lock(&self.shared.change);
        let whiteout = self.free(name)?;
        let file = target.copied_up_locked(&mut changes)?;
        let folder = self.copied_up_locked(&mut changes)?;
        if !whiteout {
            return folder.link(name, &file);
        }
        *changes = changes.wrapping_add(1);
        let work_name = format!("#{:x}", *changes).into_bytes();
        self.shared.work.link(&work_name, &file)?;
        let placed = self.shared.work.rename(&work_name, &folder, name, RenameMode::Replace);
        if placed.is_err() {
            self.shared.discard(&work_name, FileKind::Regular);
        }
        placed
    }

    pub(super) fn take_away(self: &Arc<Self>, name: &[u8], as_folder: bool) -> Result<(), Errno> {
        let mut changes = lock(&self.shared.change);
        let victim = self.find(name)?;
        match (as_folder, victim.kind == FileKind::Folder) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            _ => {}
        }
        if as_folder && !victim.list_merged()?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        let folder = self.copied_up_locked(&mut changes)?;
        let upper = folder.lookup(name).ok();
        if let Some(upper) = upper.as_ref().filter(|_| as_folder) {
            clear(upper)?;
        }
        if self.lower_has(name)? {
            let (work_name, _) = self.shared.in_work(&mut changes, &WHITEOUT)?;
            // A whiteout takes the place of what is there, a folder included, at one stroke.
            if let Err(errno) = self.shared.work.rename(&work_name, &folder, name, RenameMode::Replace) {
                self.shared.discard(&work_name, FileKind::CharDevice);
                return Err(errno);
            }
        } else if as_folder {
            folder.rmdir(name)?;
        } else {
            folder.unlink(name)?;
        }
        if victim.real()?.attributes()?.links <= 1 || victim.upper().is_none() || as_folder {
            *lock(&victim.at) = None;
        }
        Ok(())
    }

    pub(super) fn move_to(
        self: &Arc<Self>,
        name: &[u8],
        to: &Arc<Self>,
        to_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let mut changes = lock(&self.shared.change);
        let moved = self.find(name)?;
        let target = match to.find(to_name) {
            Ok(_) if mode == RenameMode::Keep => return Err(Errno::EEXIST),
            Ok(target) => Some(target),
            Err(Errno::ENOENT) if mode != RenameMode::Exchange => None,
            Err(errno) => return Err(errno),
        };
        let exchanged = target.as_ref().filter(|_| mode == RenameMode::Exchange);
        let merges = |node: &Arc<Self>| node.kind == FileKind::Folder && !node.lower.is_empty();
        if merges(&moved) || exchanged.is_some_and(merges) {
            return Err(Errno::EXDEV);
        }
        if let Some(target) = target.as_ref().filter(|_| mode == RenameMode::Replace)
            && target.kind == FileKind::Folder
        {
            if !target.list_merged()?.is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
            target.upper().as_ref().map_or(Ok(()), clear)?;
        }
        let (from_folder, to_folder) =
            (self.copied_up_locked(&mut changes)?, to.copied_up_locked(&mut changes)?);
        for node in std::iter::once(&moved).chain(exchanged) {
            let upper = node.copied_up_locked(&mut changes)?;
            if node.kind == FileKind::Folder {
                make_opaque(&upper)?;
            }
        }
        if exchanged.is_some() {
            from_folder.rename(name, &to_folder, to_name, RenameMode::Exchange)?;
        } else {
            self.replace(&mut changes, (&from_folder, name), (&to_folder, to_name))?;
        }
        *lock(&moved.at) = Some((Arc::clone(to), to_name.to_vec()));
        match (target, mode) {
            (Some(target), RenameMode::Exchange) => {
                *lock(&target.at) = Some((Arc::clone(self), name.to_vec()));
            }
            (Some(target), _) => *lock(&target.at) = None,
            (None, _) => {}
        }
        Ok(())
    }

    /// Renames in the upper layer, leaving a whiteout where a lower layer would show through.
    fn replace(
        &self,
        changes: &mut u64,
        (from_folder, name): (&Arc<dyn Inode>, &[u8]),
        (to_folder, to_name): (&Arc<dyn Inode>, &[u8]),
    ) -> Result<(), Errno> {
        if !self.lower_has(name)? {
            return from_folder.rename(name, to_folder, to_name, RenameMode::Replace);
        }
        let (whiteout, _) = self.shared.in_work(changes, &WHITEOUT)?;
        let moved = from_folder
            .rename(name, to_folder, to_name, RenameMode::Replace)
            .and_then(|()| self.shared.work.rename(&whiteout, from_folder, name, RenameMode::Replace));
        if moved.is_err() {
            self.shared.discard(&whiteout, FileKind::CharDevice);
        }
        moved
    }
}
