//! Who watches which inode.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, RwLock};

use super::{Core, Event, WeakCore, folders, mask};
use crate::vfs::sync::{read, write};
use crate::vfs::{Dentry, Inode};

/// A watch of one instance on one inode.
pub(super) struct Mark {
    core: WeakCore,
    watch: i32,
    mask: AtomicU32,
    dentry: Arc<Dentry>,
}

/// Marks by the address of their inode, which each of them keeps where it is.
static MARKS: LazyLock<RwLock<HashMap<usize, Vec<Arc<Mark>>>>> = LazyLock::new(RwLock::default);
/// How many there are, with those of [`folders`]: with none, nobody has to look.
static COUNT: AtomicUsize = AtomicUsize::new(0);

pub(super) fn key(inode: &Arc<dyn Inode>) -> usize {
    Arc::as_ptr(inode).cast::<()>() as usize
}

impl Mark {
    pub(super) fn new(core: WeakCore, watch: i32, mask: u32, dentry: &Arc<Dentry>) -> Arc<Self> {
        Arc::new(Self { core, watch, mask: AtomicU32::new(mask), dentry: Arc::clone(dentry) })
    }

    pub(super) fn watch(&self) -> i32 {
        self.watch
    }

    pub(super) fn change(&self, mask: u32, add: bool) {
        if add {
            self.mask.fetch_or(mask, Ordering::AcqRel);
        } else {
            self.mask.store(mask, Ordering::Release);
        }
    }

    fn tell(&self, mask: u32, cookie: u32, name: &[u8], unlinked: bool) {
        let wanted = self.mask.load(Ordering::Acquire);
        let Some(core) = self.core.upgrade() else { return };
        if wanted & mask & mask::EVENTS == 0 || unlinked && wanted & mask::EXCL_UNLINK != 0 {
            return;
        }
        // An event of the watched file itself never says that it is a folder where it moves or goes.
        let of_self = mask & (mask::DELETE_SELF | mask::MOVE_SELF) != 0;
        let mask = if of_self { mask & !mask::ISDIR } else { mask };
        core.push(Event { watch: self.watch, mask, cookie, name: name.to_vec() });
        if wanted & mask::ONESHOT != 0 {
            core.forget(self.watch);
        }
    }
}

/// One more watch of [`folders`].
pub(super) fn one_more() {
    COUNT.fetch_add(1, Ordering::AcqRel);
}

/// Fewer of them.
pub(super) fn fewer(gone: usize) {
    COUNT.fetch_sub(gone, Ordering::AcqRel);
}

/// Whether anybody watches anything.
pub(super) fn any() -> bool {
    COUNT.load(Ordering::Acquire) > 0
}

pub(super) fn find(core: &Arc<Core>, inode: &Arc<dyn Inode>) -> Option<Arc<Mark>> {
    let marks = read(&MARKS);
    let own = |mark: &&Arc<Mark>| std::ptr::eq(mark.core.as_ptr(), Arc::as_ptr(core));
    marks.get(&key(inode))?.iter().find(own).cloned()
}

pub(super) fn insert(mark: &Arc<Mark>) {
    write(&MARKS).entry(key(mark.dentry.inode())).or_default().push(Arc::clone(mark));
    COUNT.fetch_add(1, Ordering::AcqRel);
}

pub(super) fn remove(mark: &Arc<Mark>) {
    let key = key(mark.dentry.inode());
    let mut marks = write(&MARKS);
    let Some(of_inode) = marks.get_mut(&key) else { return };
    let before = of_inode.len();
    of_inode.retain(|other| !Arc::ptr_eq(other, mark));
    let gone = before.saturating_sub(of_inode.len());
    if of_inode.is_empty() {
        marks.remove(&key);
    }
    COUNT.fetch_sub(gone, Ordering::AcqRel);
}

fn of(inode: &Arc<dyn Inode>) -> Vec<Arc<Mark>> {
    read(&MARKS).get(&key(inode)).cloned().unwrap_or_default()
}

/// Tells who watches `inode`: of itself, or of `name` in it.
pub(super) fn tell(inode: &Arc<dyn Inode>, mask: u32, cookie: u32, name: &[u8], unlinked: bool) {
    folders::tell(inode, mask, !name.is_empty());
    for mark in of(inode) {
        mark.tell(mask, cookie, name, unlinked);
    }
}

/// The inode is gone: so are its watches.
pub(super) fn gone(inode: &Arc<dyn Inode>) {
    for mark in of(inode) {
        mark.tell(mask::DELETE_SELF, 0, b"", false);
        if let Some(core) = mark.core.upgrade() {
            core.forget(mark.watch);
        }
    }
}
