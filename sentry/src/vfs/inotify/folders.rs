//! `F_NOTIFY`: news of a folder by signals (`fs/notify/dnotify`, `man 2 fcntl`), of old before `inotify`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Weak};

use super::{marks, mask};
use crate::task::Tasks;
use crate::vfs::locks::Owner;
use crate::vfs::sync::lock;
use crate::vfs::{Inode, IoSignal, OpenFile};

/// Goes on after the first news (`DN_MULTISHOT`).
const MULTISHOT: u32 = 0x8000_0000;

/// What bits of `DN_*` are as events (`convert_arg`).
const KINDS: [(u32, u32); 6] = [
    (0x1, mask::ACCESS),
    (0x2, mask::MODIFY),
    (0x4, mask::CREATE | mask::MOVED_TO),
    (0x8, mask::DELETE | mask::MOVED_FROM),
    (0x10, mask::RENAME),
    (0x20, mask::ATTRIB),
];

/// That somebody wants news of a folder: all that have one table of open files, by one description.
struct Watch {
    owner: Owner,
    description: u64,
    fd: i32,
    events: u32,
    goes_on: bool,
    signal: Arc<Mutex<IoSignal>>,
    tasks: Weak<Tasks>,
}

/// By the address of their inode, which its description keeps where it is as long as the watch is here.
static WATCHES: LazyLock<Mutex<HashMap<usize, Vec<Watch>>>> = LazyLock::new(Mutex::default);

/// How many there are: with none, nobody has to look.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Takes watches out that are not to be `kept`.
fn retain(inode: &Arc<dyn Inode>, kept: impl FnMut(&mut Watch) -> bool) {
    if COUNT.load(Ordering::Acquire) == 0 {
        return;
    }
    let mut watches = lock(&WATCHES);
    let Some(of_inode) = watches.get_mut(&marks::key(inode)) else { return };
    let before = of_inode.len();
    of_inode.retain_mut(kept);
    let gone = before.saturating_sub(of_inode.len());
    if of_inode.is_empty() {
        watches.remove(&marks::key(inode));
    }
    COUNT.fetch_sub(gone, Ordering::AcqRel);
    marks::fewer(gone);
}

/// Asks for news of what `wanted` (`DN_*`) says, besides what was asked for before.
pub fn watch_folder(open: &OpenFile, (owner, fd): (Owner, i32), wanted: u32, tasks: &Arc<Tasks>) {
    let kinds = KINDS.iter().filter(|(bit, _)| wanted & bit != 0);
    let (events, goes_on) = (kinds.fold(0, |events, (_, kind)| events | kind), wanted & MULTISHOT != 0);
    let mut watches = lock(&WATCHES);
    let of_inode = watches.entry(marks::key(open.inode())).or_default();
    let own = |watch: &&mut Watch| watch.owner == owner && watch.description == open.id();
    if let Some(watch) = of_inode.iter_mut().find(own) {
        watch.fd = fd;
        watch.events |= events;
        watch.goes_on |= goes_on;
        return;
    }
    let (signal, tasks) = (Arc::clone(open.io_signal()), Arc::downgrade(tasks));
    of_inode.push(Watch { owner, description: open.id(), fd, events, goes_on, signal, tasks });
    COUNT.fetch_add(1, Ordering::AcqRel);
    marks::one_more();
}

/// Whether anybody has news of a folder by this description.
#[must_use]
pub fn watches_folder(open: &OpenFile) -> bool {
    let watches = lock(&WATCHES);
    let of_inode = watches.get(&marks::key(open.inode()));
    of_inode.is_some_and(|watches| watches.iter().any(|watch| watch.description == open.id()))
}

/// Somebody wants no more news by this description, or has closed a descriptor of it.
pub fn unwatch_folder(open: &OpenFile, owner: Owner) {
    if marks::any() {
        retain(open.inode(), |watch| watch.owner != owner || watch.description != open.id());
    }
}

/// A description is gone.
pub(in crate::vfs) fn description_gone(inode: &Arc<dyn Inode>, description: u64) {
    if marks::any() {
        retain(inode, |watch| watch.description != description);
    }
}

/// Tells who watches a folder: of something in it, or of itself.
pub(super) fn tell(inode: &Arc<dyn Inode>, event: u32, inside: bool) {
    if !inside && event & mask::ISDIR == 0 {
        return;
    }
    let mut told = Vec::new();
    retain(inode, |watch| {
        if watch.events & event & (mask::EVENTS | mask::RENAME) == 0 {
            return true;
        }
        told.push((Weak::clone(&watch.tasks), *lock(&watch.signal), watch.fd));
        watch.goes_on
    });
    for (tasks, signal, fd) in told {
        if let Some(tasks) = tasks.upgrade() {
            tasks.tell_owner(&signal, fd);
        }
    }
}
