//! What happened to a file, as the places of `vfs` tell it (`include/linux/fsnotify.h`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{marks, mask};
use crate::platform::generation;
use crate::vfs::{AttributeChange, Dentry, FileKind, Inode, RenameMode};

static COOKIE: AtomicU32 = AtomicU32::new(1);

fn folder_bit(inode: &Arc<dyn Inode>) -> u32 {
    if inode.kind() == FileKind::Folder { mask::ISDIR } else { 0 }
}

/// Nobody is told of a change as long as what a stub keeps says otherwise.
fn raise(what: u32) {
    if what & (mask::MODIFY | mask::ATTRIB) != 0 {
        generation::changed();
    }
}

/// Something happened to a file: told to who watches its folder, then to who watches itself.
pub fn changed(dentry: &Arc<Dentry>, what: u32) {
    raise(what);
    if !marks::any() {
        return;
    }
    let what = what | folder_bit(dentry.inode());
    if let Some(parent) = dentry.parent() {
        marks::tell(parent.inode(), what, 0, &dentry.name(), dentry.unlinked());
    }
    marks::tell(dentry.inode(), what, 0, b"", dentry.unlinked());
}

/// Something happened to a file of which no name is known.
pub fn only_changed(inode: &Arc<dyn Inode>, what: u32) {
    raise(what);
    if marks::any() {
        marks::tell(inode, what | folder_bit(inode), 0, b"", false);
    }
}

/// What a change of attributes is (`fsnotify_change`).
#[must_use]
pub fn attributes_changed(change: &AttributeChange) -> u32 {
    let mut what = 0;
    if change.mode.is_some() || change.uid.is_some() || change.gid.is_some() {
        what |= mask::ATTRIB;
    }
    if change.size.is_some() {
        what |= mask::MODIFY;
    }
    what | match (change.accessed.is_some(), change.modified.is_some()) {
        (true, true) => mask::ATTRIB,
        (true, false) => mask::ACCESS,
        (false, true) => mask::MODIFY,
        (false, false) => 0,
    }
}

/// A file was made.
pub fn created(folder: &Arc<Dentry>, name: &[u8], inode: &Arc<dyn Inode>) {
    generation::changed();
    if marks::any() {
        marks::tell(folder.inode(), mask::CREATE | folder_bit(inode), 0, name, false);
    }
}

/// A file got a further name.
pub fn linked(folder: &Arc<Dentry>, name: &[u8], target: &Arc<dyn Inode>) {
    generation::changed();
    if marks::any() {
        marks::tell(target, mask::ATTRIB, 0, b"", false);
        marks::tell(folder.inode(), mask::CREATE, 0, name, false);
    }
}

/// A name that is about to go: looked at before, told after.
pub(in crate::vfs) struct Removal {
    watched: bool,
    last: bool,
}

impl Removal {
    pub(in crate::vfs) fn of(victim: &Arc<Dentry>) -> Self {
        let watched = marks::any();
        let links = || victim.inode().attributes().map_or(1, |attributes| attributes.links);
        let last = watched && (victim.is_folder() || links() <= 1);
        Self { watched, last }
    }

    /// The name of `victim` is gone.
    pub(in crate::vfs) fn done(&self, victim: &Arc<Dentry>) {
        generation::changed();
        if !self.watched {
            return;
        }
        if !victim.is_folder() {
            marks::tell(victim.inode(), mask::ATTRIB, 0, b"", false);
        }
        if self.last {
            victim.gone.store(true, Ordering::Release);
            if victim.opens.load(Ordering::Acquire) == 0 {
                marks::gone(victim.inode());
            }
        }
    }
}

/// A name was taken out of a folder.
pub fn deleted(folder: &Arc<Dentry>, name: &[u8], victim: &Arc<dyn Inode>) {
    generation::changed();
    if marks::any() {
        marks::tell(folder.inode(), mask::DELETE | folder_bit(victim), 0, name, false);
    }
}

/// An open description of a file goes; with the last one, what has no name any more goes itself.
pub(in crate::vfs) fn closed(dentry: &Arc<Dentry>, last: bool, writable: bool) {
    if !marks::any() {
        return;
    }
    changed(dentry, if writable { mask::CLOSE_WRITE } else { mask::CLOSE_NOWRITE });
    if last && dentry.gone.load(Ordering::Acquire) {
        marks::gone(dentry.inode());
    }
}

/// One name of a rename: folder and name before, folder and name after.
type Move<'a> = ((&'a Arc<Dentry>, &'a [u8]), (&'a Arc<Dentry>, &'a [u8]));

fn told(moved: &Arc<dyn Inode>, (from, to): Move<'_>) {
    let (cookie, bit) = (COOKIE.fetch_add(1, Ordering::Relaxed), folder_bit(moved));
    marks::tell(from.0.inode(), mask::MOVED_FROM | bit, cookie, from.1, false);
    marks::tell(to.0.inode(), mask::MOVED_TO | bit, cookie, to.1, false);
    if Arc::ptr_eq(from.0.inode(), to.0.inode()) {
        marks::tell(from.0.inode(), mask::RENAME, 0, from.1, false);
    }
}

/// A file was renamed, perhaps in place of another or with it (`fsnotify_move`).
pub fn moved(moved: &Arc<Dentry>, target: Option<&Arc<Dentry>>, (from, to): Move<'_>, mode: RenameMode) {
    generation::changed();
    if !marks::any() {
        return;
    }
    told(moved.inode(), (from, to));
    if let (Some(target), RenameMode::Exchange) = (target, mode) {
        marks::tell(moved.inode(), mask::MOVE_SELF | folder_bit(moved.inode()), 0, b"", false);
        told(target.inode(), (to, from));
        marks::tell(target.inode(), mask::MOVE_SELF, 0, b"", false);
        return;
    }
    marks::tell(moved.inode(), mask::MOVE_SELF, 0, b"", false);
}
