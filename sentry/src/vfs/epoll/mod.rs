//! `epoll` (`fs/eventpoll.c` of Linux, `man 7 epoll`).
//!
//! Each watched file has an item in its wait queue. A wake puts the item in the list of those that may be ready and wakes who
//! waits; a wait looks at each item of the list again and puts back those of level-triggered files that are.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bitflags::bitflags;

use super::sync::lock;
use super::{File, Flags, OpenFile};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::events::{Events, WaitQueue, Wake};

/// How deep an `epoll` may be in others (`EP_MAX_NESTS`).
const NESTING_MAX: u32 = 4;

/// What goes with `EPOLLEXCLUSIVE` (`EPOLLEXCLUSIVE_OK_BITS`): IN, OUT, ERR, HUP, and the modes but `EPOLLONESHOT`.
const EXCLUSIVE_OK: u32 = 0x1d | 1 << 28 | 1 << 29 | 1 << 31;

bitflags! {
    /// How a file is watched (`include/uapi/linux/eventpoll.h`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Mode: u32 {
        /// At least one of several waiters is woken: we wake all.
        const EXCLUSIVE = 1 << 28;
        /// Nothing here suspends.
        const WAKEUP = 1 << 29;
        /// Told once, until it is changed.
        const ONESHOT = 1 << 30;
        /// Told only when there is something new.
        const EDGE = 1 << 31;
    }
}

/// What can be done to the list of watched files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// `EPOLL_CTL_ADD`, with events and data.
    Add(u32, u64),
    /// `EPOLL_CTL_MOD`.
    Modify(u32, u64),
    /// `EPOLL_CTL_DEL`.
    Delete,
}

/// Adding an epoll to an epoll looks at others' lists: one at a time.
static NESTING: Mutex<()> = Mutex::new(());

#[derive(Default)]
struct Core {
    ready: Mutex<VecDeque<Arc<Item>>>,
    queue: WaitQueue,
}

/// A watched file.
struct Item {
    me: Weak<Item>,
    core: Weak<Core>,
    file: Weak<OpenFile>,
    watch: Mutex<Watch>,
    queued: AtomicBool,
}

#[derive(Clone, Copy)]
struct Watch {
    /// `None`: taken away, or told once.
    events: Option<Events>,
    mode: Mode,
    data: u64,
}

impl Item {
    fn put_in_line(&self) {
        let (Some(core), Some(me)) = (self.core.upgrade(), self.me.upgrade()) else { return };
        if !self.queued.swap(true, Ordering::AcqRel) {
            lock(&core.ready).push_back(me);
        }
        core.queue.notify(Events::IN | Events::RDNORM);
    }

    /// What of the wanted is there.
    fn now(&self) -> Option<(Events, Watch)> {
        let watch = *lock(&self.watch);
        let wanted = watch.events? | Events::ERR | Events::HUP;
        let now = self.file.upgrade()?.file().ready() & wanted;
        (!now.is_empty()).then_some((now, watch))
    }
}

impl Wake for Item {
    fn wake(&self, _events: Events) {
        self.put_in_line();
    }
}

/// An `epoll`.
pub struct Epoll {
    core: Arc<Core>,
    items: Mutex<BTreeMap<(i32, u64), Arc<Item>>>,
}

/// Descriptor, file, events (`None` once a one-shot went off), mode, data.
type Awaited = (i32, Arc<OpenFile>, Option<u32>, u32, u64);

impl Epoll {
    /// Watching nothing.
    #[must_use]
    pub fn open() -> Arc<OpenFile> {
        let epoll = Self { core: Arc::default(), items: Mutex::default() };
        let flags = Flags(libc::O_RDWR.cast_unsigned());
        OpenFile::anonymous(Box::new(epoll), flags, "anon_inode:[eventpoll]")
    }

    /// Changes how `file`, known to the caller as `fd`, is watched.
    ///
    /// # Errors
    /// EEXIST, ENOENT, EPERM, EINVAL, ELOOP, as the manual page says.
    pub fn change(&self, fd: i32, file: &Arc<OpenFile>, change: Change) -> Result<(), Errno> {
        if file.file().queue().is_none() {
            return Err(Errno::EPERM);
        }
        let key = (fd, file.id());
        let item = lock(&self.items).get(&key).cloned();
        match (change, item) {
            (Change::Add(..), Some(_)) => Err(Errno::EEXIST),
            (Change::Add(events, data), None) => self.add(key, file, events, data),
            (_, None) => Err(Errno::ENOENT),
            (Change::Modify(events, data), Some(item)) => {
                let watch = Self::watch(events, data);
                let exclusive = lock(&item.watch).mode.contains(Mode::EXCLUSIVE);
                if exclusive || watch.mode.contains(Mode::EXCLUSIVE) {
                    return Err(Errno::EINVAL);
                }
                Self::unlisten(&item, file);
                *lock(&item.watch) = watch;
                Self::listen(&item, file);
                Ok(())
            }
            (Change::Delete, Some(item)) => {
                Self::unlisten(&item, file);
                lock(&item.watch).events = None;
                lock(&self.items).remove(&key);
                Ok(())
            }
        }
    }

    /// What it waits for.
    pub(crate) fn saved(&self) -> Vec<Awaited> {
        let items = lock(&self.items);
        let saved = items.iter().filter_map(|((fd, _), item)| {
            let watch = *lock(&item.watch);
            let events = watch.events.map(|events| events.bits());
            Some((*fd, item.file.upgrade()?, events, watch.mode.bits(), watch.data))
        });
        saved.collect()
    }

    /// Waits for one of them again. An edge that was told is told once more.
    pub(crate) fn restore(
        &self,
        (fd, file): (i32, &Arc<OpenFile>),
        (events, mode, data): (Option<u32>, u32, u64),
    ) -> Result<(), Errno> {
        self.change(fd, file, Change::Add(events.unwrap_or(0) & 0xffff | mode, data))?;
        if events.is_none()
            && let Some(item) = lock(&self.items).get(&(fd, file.id()))
        {
            lock(&item.watch).events = None;
        }
        Ok(())
    }

    fn watch(events: u32, data: u64) -> Watch {
        let mode = Mode::from_bits_truncate(events);
        Watch { events: Some(Events::from_bits_truncate(events & 0xffff)), mode, data }
    }

    fn add(&self, key: (i32, u64), file: &Arc<OpenFile>, events: u32, data: u64) -> Result<(), Errno> {
        let watch = Self::watch(events, data);
        if watch.mode.contains(Mode::EXCLUSIVE) && events & !EXCLUSIVE_OK != 0 {
            return Err(Errno::EINVAL);
        }
        let nesting = file.downcast::<Self>().map(|other| (lock(&NESTING), other));
        if let Some((_, other)) = &nesting {
            if watch.mode.contains(Mode::EXCLUSIVE) || Arc::ptr_eq(&other.core, &self.core) {
                return Err(Errno::EINVAL);
            }
            if other.depth(&self.core, NESTING_MAX).is_none() {
                return Err(Errno::ELOOP);
            }
        }
        let item = Arc::new_cyclic(|me| Item {
            me: Weak::clone(me),
            core: Arc::downgrade(&self.core),
            file: Arc::downgrade(file),
            watch: Mutex::new(watch),
            queued: AtomicBool::new(false),
        });
        {
            let mut items = lock(&self.items);
            if items.contains_key(&key) {
                return Err(Errno::EEXIST);
            }
            if items.len() >= 64 && items.len().is_power_of_two() {
                items.retain(|_, item| item.file.strong_count() > 0);
            }
            items.insert(key, Arc::clone(&item));
        }
        Self::listen(&item, file);
        Ok(())
    }

    fn listen(item: &Arc<Item>, file: &Arc<OpenFile>) {
        let Some(events) = lock(&item.watch).events else { return };
        if let Some(queue) = file.file().queue() {
            let wake: Arc<dyn Wake> = Arc::clone(item) as Arc<dyn Wake>;
            queue.add(events, &wake);
        }
        if item.now().is_some() {
            item.put_in_line();
        }
    }

    fn unlisten(item: &Arc<Item>, file: &Arc<OpenFile>) {
        if let Some(queue) = file.file().queue() {
            let wake: Arc<dyn Wake> = Arc::clone(item) as Arc<dyn Wake>;
            queue.remove(&wake);
        }
    }

    /// How many epolls are below this one; `None` when `above` is among them or they are too many.
    fn depth(&self, above: &Arc<Core>, left: u32) -> Option<u32> {
        let left = left.checked_sub(1)?;
        if Arc::ptr_eq(&self.core, above) {
            return None;
        }
        let files: Vec<_> = lock(&self.items).values().filter_map(|item| item.file.upgrade()).collect();
        let mut deepest = 0u32;
        for file in files {
            if let Some(below) = file.downcast::<Self>() {
                deepest = deepest.max(below.depth(above, left)?.saturating_add(1));
            }
        }
        Some(deepest)
    }

    /// At most `most` files that are ready: events and data.
    #[must_use]
    pub fn collect(&self, most: usize) -> Vec<(Events, u64)> {
        let mut found = Vec::new();
        let mut again = Vec::new();
        let in_line = lock(&self.core.ready).len();
        for _ in 0..in_line {
            if found.len() >= most {
                break;
            }
            let Some(item) = lock(&self.core.ready).pop_front() else { break };
            item.queued.store(false, Ordering::Release);
            let Some((now, watch)) = item.now() else { continue };
            found.push((now, watch.data));
            if watch.mode.contains(Mode::ONESHOT) {
                lock(&item.watch).events = None;
            } else if !watch.mode.contains(Mode::EDGE) {
                again.push(item);
            }
        }
        let mut ready = lock(&self.core.ready);
        for item in again {
            if !item.queued.swap(true, Ordering::AcqRel) {
                ready.push_back(item);
            }
        }
        found
    }
}

impl File for Epoll {
    fn transfers(&self) -> (bool, bool) {
        (false, false)
    }

    fn ignores_seek(&self) -> bool {
        true
    }

    /// It has requests of its own, none of which is known: EINVAL, not ENOTTY (`ep_eventpoll_ioctl`).
    fn control(&self, _call: &mut Call<'_>, _request: u32, _argument: u64) -> SysResult {
        Err(Errno::EINVAL.into())
    }

    fn ready(&self) -> Events {
        let items: Vec<_> = lock(&self.core.ready).iter().cloned().collect();
        if items.iter().any(|item| item.now().is_some()) {
            Events::IN | Events::RDNORM
        } else {
            Events::empty()
        }
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.core.queue)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::vfs::Caller;
    use crate::vfs::eventfd::EventFd;

    const IN: u32 = 1;

    fn parts(file: &OpenFile) -> &Epoll {
        file.downcast().unwrap()
    }

    #[test]
    fn level_edge_and_once() {
        let (epoll, root) = (Epoll::open(), Caller::root());
        let one = || 1u64.to_ne_bytes();
        let (level, edge, once) =
            (EventFd::open(1, false, true), EventFd::open(1, false, true), EventFd::open(1, false, true));
        let list = parts(&epoll);
        list.change(3, &level, Change::Add(IN, 30)).unwrap();
        list.change(4, &edge, Change::Add(IN | Mode::EDGE.bits(), 40)).unwrap();
        list.change(5, &once, Change::Add(IN | Mode::ONESHOT.bits(), 50)).unwrap();
        assert_eq!(list.change(3, &level, Change::Add(IN, 30)), Err(Errno::EEXIST));
        let data = |list: &Epoll| list.collect(9).into_iter().map(|(_, data)| data).collect::<Vec<_>>();
        assert_eq!(data(list), [30, 40, 50]);
        assert_eq!(data(list), [30]);
        edge.write(&root, &one()).unwrap();
        once.write(&root, &one()).unwrap();
        assert_eq!(data(list), [30, 40]);
        list.change(5, &once, Change::Modify(IN, 51)).unwrap();
        level.read(&mut [0; 8]).unwrap();
        assert_eq!(data(list), [51]);
        list.change(5, &once, Change::Delete).unwrap();
        assert_eq!(list.change(5, &once, Change::Delete), Err(Errno::ENOENT));
        drop(level);
        assert!(data(list).is_empty());
    }

    #[test]
    fn nested_but_not_in_a_ring() {
        let (outer, inner) = (Epoll::open(), Epoll::open());
        parts(&outer).change(3, &inner, Change::Add(IN, 1)).unwrap();
        assert_eq!(parts(&inner).change(4, &outer, Change::Add(IN, 1)), Err(Errno::ELOOP));
        assert_eq!(parts(&inner).change(4, &inner, Change::Add(IN, 1)), Err(Errno::EINVAL));
        assert!(parts(&outer).collect(9).is_empty());
        let event = EventFd::open(1, false, true);
        parts(&inner).change(5, &event, Change::Add(IN, 2)).unwrap();
        assert_eq!(parts(&outer).collect(9).len(), 1);
    }
}
