//! `inotify` (`man 7 inotify`; `fs/notify/inotify`, `include/linux/fsnotify.h`).
//!
//! | file | what is in it |
//! |---|---|
//! | `mod` | an instance: its queue of events, its watches |
//! | `marks` | who watches which inode; whoever changes a file asks here |
//! | `hooks` | what happened to a file, as the places of `vfs` tell it |
//! | `folders` | who is told of a folder by signals instead (`F_NOTIFY`) |
//!
//! Where nobody watches anything, a change costs a look at one counter. A watch holds the dentry that it was set by: so the inode stays
//! the one that others find by that name.
//!
//! **Locks**: the table of marks, then an instance's state, then its wait queue; under none of them anything else is called.
//! A signal is sent without any of them: whoever tells of a change may hold a position of an open file, never what is locked for tasks.

mod folders;
mod hooks;
mod marks;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};

pub(super) use folders::description_gone;
pub use folders::{unwatch_folder, watch_folder, watches_folder};
pub(super) use hooks::{Removal, closed};
pub use hooks::{attributes_changed, changed, created, deleted, linked, moved, only_changed};
use marks::Mark;

use super::sync::lock;
use super::{Dentry, File, Flags, OpenFile};
use crate::error::Errno;
use crate::events::{Events, WaitQueue};

/// Numbers of `include/uapi/linux/inotify.h`.
#[allow(missing_docs, reason = "names as the manual has them")]
pub mod mask {
    pub const ACCESS: u32 = 0x1;
    pub const MODIFY: u32 = 0x2;
    pub const ATTRIB: u32 = 0x4;
    pub const CLOSE_WRITE: u32 = 0x8;
    pub const CLOSE_NOWRITE: u32 = 0x10;
    pub const OPEN: u32 = 0x20;
    pub const MOVED_FROM: u32 = 0x40;
    pub const MOVED_TO: u32 = 0x80;
    pub const CREATE: u32 = 0x100;
    pub const DELETE: u32 = 0x200;
    pub const DELETE_SELF: u32 = 0x400;
    pub const MOVE_SELF: u32 = 0x800;
    /// All of the above.
    pub const EVENTS: u32 = 0xfff;
    /// A file got another name in its folder: for `F_NOTIFY` alone (`FS_RENAME`).
    pub const RENAME: u32 = 0x1000_0000;
    pub const UNMOUNT: u32 = 0x2000;
    pub const Q_OVERFLOW: u32 = 0x4000;
    pub const IGNORED: u32 = 0x8000;
    pub const ONLYDIR: u32 = 0x0100_0000;
    pub const DONT_FOLLOW: u32 = 0x0200_0000;
    pub const EXCL_UNLINK: u32 = 0x0400_0000;
    pub const MASK_CREATE: u32 = 0x1000_0000;
    pub const MASK_ADD: u32 = 0x2000_0000;
    pub const ISDIR: u32 = 0x4000_0000;
    pub const ONESHOT: u32 = 0x8000_0000;
}

/// Events that an instance keeps (`fs.inotify.max_queued_events`).
const QUEUED_MAX: usize = 16_384;
/// Instances of a user (`fs.inotify.max_user_instances`).
const INSTANCES_MAX: usize = 128;
/// Watches of an instance (`fs.inotify.max_user_watches`).
const WATCHES_MAX: usize = 65_536;
/// Bytes of `struct inotify_event` without a name.
const HEADER: usize = 16;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    watch: i32,
    mask: u32,
    cookie: u32,
    name: Vec<u8>,
}

impl Event {
    fn size(&self) -> usize {
        if self.name.is_empty() {
            return HEADER;
        }
        HEADER.saturating_add(self.name.len().saturating_add(1).next_multiple_of(HEADER))
    }

    fn write(&self, to: &mut [u8]) {
        let length = u32::try_from(self.size().saturating_sub(HEADER)).unwrap_or(0);
        let fields = [self.watch.cast_unsigned(), self.mask, self.cookie, length];
        to.fill(0);
        let bytes = fields.into_iter().flat_map(u32::to_ne_bytes).chain(self.name.iter().copied());
        for (place, byte) in to.iter_mut().zip(bytes) {
            *place = byte;
        }
    }

    /// Whether telling `self` after `other` says nothing new (`event_compare`).
    fn repeats(&self, other: &Self) -> bool {
        self.mask & mask::IGNORED == 0
            && (self.watch, self.mask, &self.name) == (other.watch, other.mask, &other.name)
    }
}

/// What an instance and its marks share.
struct Core {
    uid: u32,
    state: Mutex<State>,
    queue: WaitQueue,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    watches: BTreeMap<i32, Arc<Mark>>,
    last: i32,
}

impl Core {
    fn push(&self, event: Event) {
        {
            let mut state = lock(&self.state);
            if state.events.back().is_some_and(|last| event.repeats(last)) {
                return;
            }
            let event = match state.events.len() {
                0..QUEUED_MAX => event,
                QUEUED_MAX => Event { watch: -1, mask: mask::Q_OVERFLOW, cookie: 0, name: Vec::new() },
                _ => return,
            };
            state.events.push_back(event);
        }
        self.queue.notify(Events::IN | Events::RDNORM);
    }

    /// Forgets a watch and says so. `false` where it was not there.
    fn forget(&self, watch: i32) -> bool {
        let mark = lock(&self.state).watches.remove(&watch);
        let Some(mark) = mark else { return false };
        marks::remove(&mark);
        self.push(Event { watch, mask: mask::IGNORED, cookie: 0, name: Vec::new() });
        true
    }
}

static INSTANCES: Mutex<BTreeMap<u32, usize>> = Mutex::new(BTreeMap::new());

/// An instance.
pub struct Inotify {
    core: Arc<Core>,
}

impl Inotify {
    /// Watching nothing.
    ///
    /// # Errors
    /// EMFILE where the user has too many.
    pub fn open(uid: u32, nonblocking: bool) -> Result<Arc<OpenFile>, Errno> {
        {
            let mut instances = lock(&INSTANCES);
            let count = instances.entry(uid).or_default();
            if *count >= INSTANCES_MAX {
                return Err(Errno::EMFILE);
            }
            *count = count.saturating_add(1);
        }
        let core = Arc::new(Core { uid, state: Mutex::default(), queue: WaitQueue::new() });
        let wait = if nonblocking { libc::O_NONBLOCK } else { 0 };
        let flags = Flags((libc::O_RDONLY | wait).cast_unsigned());
        Ok(OpenFile::anonymous(Box::new(Self { core }), flags, "anon_inode:inotify"))
    }

    /// Watches a file, or changes how it is watched; the number of the watch (`inotify_add_watch`).
    ///
    /// # Errors
    /// EEXIST with `IN_MASK_CREATE`; ENOSPC where there are too many.
    pub fn watch(&self, dentry: &Arc<Dentry>, wanted: u32) -> Result<i32, Errno> {
        let kept = wanted & (mask::EVENTS | mask::ONESHOT | mask::EXCL_UNLINK);
        if let Some(mark) = marks::find(&self.core, dentry.inode()) {
            if wanted & mask::MASK_CREATE != 0 {
                return Err(Errno::EEXIST);
            }
            mark.change(kept, wanted & mask::MASK_ADD != 0);
            return Ok(mark.watch());
        }
        let mut state = lock(&self.core.state);
        if state.watches.len() >= WATCHES_MAX {
            return Err(Errno::ENOSPC);
        }
        let mut watch = state.last;
        loop {
            watch = watch.checked_add(1).unwrap_or(1);
            if !state.watches.contains_key(&watch) {
                break;
            }
        }
        state.last = watch;
        let mark = Mark::new(Arc::downgrade(&self.core), watch, kept, dentry);
        state.watches.insert(watch, Arc::clone(&mark));
        drop(state);
        marks::insert(&mark);
        Ok(watch)
    }

    /// `inotify_rm_watch`.
    ///
    /// # Errors
    /// EINVAL where there is none of this number.
    pub fn unwatch(&self, watch: i32) -> Result<(), Errno> {
        if self.core.forget(watch) { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

impl File for Inotify {
    fn ignores_seek(&self) -> bool {
        true
    }

    fn read(&self, to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        let mut state = lock(&self.core.state);
        let mut done = 0usize;
        while let Some(event) = state.events.front() {
            let end = done.saturating_add(event.size());
            let Some(place) = to.get_mut(done..end) else {
                return if done == 0 { Err(Errno::EINVAL) } else { Ok(done) };
            };
            event.write(place);
            done = end;
            state.events.pop_front();
        }
        if done == 0 { Err(Errno::EAGAIN) } else { Ok(done) }
    }

    fn ready(&self) -> Events {
        let empty = lock(&self.core.state).events.is_empty();
        if empty { Events::empty() } else { Events::IN | Events::RDNORM }
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.core.queue)
    }

    fn available(&self) -> Result<u64, Errno> {
        let state = lock(&self.core.state);
        Ok(state.events.iter().fold(0u64, |sum, event| sum.saturating_add(event.size() as u64)))
    }
}

impl Drop for Inotify {
    fn drop(&mut self) {
        let watches = std::mem::take(&mut lock(&self.core.state).watches);
        watches.values().for_each(marks::remove);
        let mut instances = lock(&INSTANCES);
        if let Some(count) = instances.get_mut(&self.core.uid) {
            *count = count.saturating_sub(1);
        }
        instances.retain(|_, count| *count > 0);
    }
}

type WeakCore = Weak<Core>;

#[cfg(test)]
mod tests;
