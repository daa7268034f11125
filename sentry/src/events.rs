//! Waiting: what a file or a child can become, who waits for it, and how a thread of the sentry sleeps.
//!
//! A [`WaitQueue`] belongs to whatever can become ready. Who waits puts a [`Wake`] in it, looks whether it is ready already, and sleeps. A
//! guest thread has one [`Waiter`] of its own for all it waits for, signals included.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bitflags::bitflags;

use crate::platform::Interrupt;
use crate::ticks;

bitflags! {
    /// Readiness of a file, with the numbers of `poll` and `epoll` (`include/uapi/asm-generic/poll.h`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Events: u32 {
        /// Something can be read.
        const IN = 0x001;
        /// Urgent data.
        const PRI = 0x002;
        /// Something can be written.
        const OUT = 0x004;
        /// An error is to be fetched.
        const ERR = 0x008;
        /// The other end is gone.
        const HUP = 0x010;
        /// Not an open file.
        const NVAL = 0x020;
        /// As `IN`.
        const RDNORM = 0x040;
        /// As `OUT`.
        const WRNORM = 0x100;
        /// As `OUT`, for data of priority: told by sockets of unix alone.
        const WRBAND = 0x200;
        /// The other end writes no more.
        const RDHUP = 0x2000;
        /// Of the kernel itself: something about a task changed (a child, a stop, a signal).
        const CHANGED = 1 << 20;
    }
}

/// Whoever is told that something may have become ready. It is called with the queue locked: it must not wait, nor change that queue. Threads
/// that it wakes are woken when the queue is free again ([`hold_back`]).
pub trait Wake: Send + Sync {
    /// Of these events something may have come.
    fn wake(&self, events: Events);
}

/// Those who wait for one thing. It holds them weakly: who is gone is forgotten at the next notification.
#[derive(Default)]
pub struct WaitQueue {
    entries: Mutex<Vec<(Events, Weak<dyn Wake>)>>,
}

impl WaitQueue {
    /// With nobody in it.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: Mutex::new(Vec::new()) }
    }

    /// Tells `who` of these events until it is dropped or [removed](Self::remove). ERR and HUP are always told.
    pub fn add(&self, events: Events, who: &Arc<dyn Wake>) {
        let events = events | Events::ERR | Events::HUP;
        self.lock().push((events, Arc::downgrade(who)));
    }

    /// Takes `who` out again.
    pub fn remove(&self, who: &Arc<dyn Wake>) {
        let who = Arc::as_ptr(who).cast::<()>();
        self.lock().retain(|(_, entry)| entry.as_ptr().cast::<()>() != who);
    }

    /// Tells all who wait for any of these events.
    pub fn notify(&self, events: Events) {
        let _until_it_is_free = hold_back();
        self.lock().retain(|(wanted, entry)| {
            let Some(entry) = entry.upgrade() else { return false };
            if wanted.intersects(events) {
                entry.wake(events);
            }
            true
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Events, Weak<dyn Wake>)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    /// The guest thread that this thread of the sentry serves.
    static SERVED: RefCell<Option<Arc<dyn Interrupt>>> = const { RefCell::new(None) };
}

/// Says which guest thread the calling thread of the sentry serves: its platform hears of waits that begin.
pub(crate) fn serves(thread: Option<Arc<dyn Interrupt>>) {
    let before = SERVED.replace(thread);
    drop(before);
}

/// Lets the guest thread that the calling thread serves sleep.
fn about_to_wait() {
    SERVED.with_borrow(|served| match served {
        Some(thread) => thread.rest(),
        None => {
            crate::platform::rest();
        }
    });
}

/// As long as there is one, the calling thread of the sentry waits for a gofer, which answers soon.
pub(crate) struct Asks(PhantomData<*const ()>);

impl Asks {
    /// It begins to.
    pub(crate) fn begin() -> Self {
        SERVED.with_borrow(|served| served.iter().for_each(|thread| thread.asks()));
        Self(PhantomData)
    }
}

impl Drop for Asks {
    fn drop(&mut self) {
        SERVED.with_borrow(|served| served.iter().for_each(|thread| thread.is_answered()));
    }
}

/// A thread of the sentry that sleeps, as far as it can be woken later than it could be.
pub(crate) trait Sleeper {
    /// Wakes the stub of the guest thread that it serves.
    fn wake_guest(&self) {}

    /// Wakes it.
    fn wake_up(&self);
}

/// Wake-ups that the calling thread has put off, and whether it may.
struct PutOff {
    may: Cell<bool>,
    since: Cell<u64>,
    sleepers: RefCell<Vec<Arc<dyn Sleeper>>>,
}

impl PutOff {
    fn is_old(&self, now: u64) -> bool {
        ticks::duration(now.saturating_sub(self.since.get())) > PUT_OFF_MOST
    }

    /// Puts one more off, where it may and processors are few, unless the first has been for too long.
    fn put_off(&self, sleeper: impl FnOnce() -> Option<Arc<dyn Sleeper>>) -> bool {
        if !self.may.get() || !crate::platform::would_crowd() {
            return false;
        }
        let now = ticks::now();
        if self.sleepers.borrow().is_empty() {
            self.since.set(now);
        } else if self.is_old(now) {
            wake_put_off();
            return false;
        }
        self.sleepers.borrow_mut().extend(sleeper());
        true
    }
}

thread_local! {
    static PUT_OFF: PutOff =
        const { PutOff { may: Cell::new(false), since: Cell::new(0), sleepers: RefCell::new(Vec::new()) } };
}

/// What was put off so long ago is done before anything else is put off.
const PUT_OFF_MOST: Duration = Duration::from_micros(20);

/// Whether the calling thread may put off waking others, as it serves a call that is quickly done: until its guest makes a call that waits, goes on
/// for a while ([`crate::platform::Thread::resume`] sees to that), or makes another call. Who hands something to another and then waits for the
/// answer so gives away its processors to that one, which else stands in line behind both of them, and is in their way.
pub(crate) fn may_put_off(may: bool) {
    PUT_OFF.with(|own| {
        own.may.set(may);
        if !own.sleepers.borrow().is_empty() && (!may || own.is_old(ticks::now())) {
            wake_put_off();
        }
    });
}

/// The call is done: what it has put off stays so.
pub(crate) fn puts_off_no_more() {
    PUT_OFF.with(|own| own.may.set(false));
}

/// Wakes `sleeper`, or puts that off if the calling thread may; the call that it serves is to be one of those that are quickly done.
pub(crate) fn wake_later(sleeper: &Arc<impl Sleeper + 'static>) {
    let later = || Some(Arc::clone(sleeper) as Arc<dyn Sleeper>);
    if !PUT_OFF.with(|own| own.put_off(later)) {
        sleeper.wake_up();
    }
}

/// Wakes whom the calling thread has put off.
pub(crate) fn wake_put_off() {
    PUT_OFF.with(|own| {
        if !own.sleepers.borrow().is_empty() {
            for sleeper in own.sleepers.take() {
                sleeper.wake_up();
            }
        }
    });
}

thread_local! {
    /// Who is to be woken when the last of the calling thread's [`Held`] is gone, and how many of these there are.
    static HELD_BACK: HeldBack = const { HeldBack { depth: Cell::new(0), waiters: RefCell::new(Vec::new()) } };
}

struct HeldBack {
    depth: Cell<usize>,
    waiters: RefCell<Vec<Arc<Waiter>>>,
}

/// As long as there is one, the calling thread wakes nobody ([`hold_back`]).
pub(crate) struct Held(PhantomData<*const ()>);

/// Holds back what the calling thread wakes until this is dropped. Taken before a lock that those who are woken take first of all, and
/// dropped after it: who is woken while it is held runs at once, where it can, and sleeps again at the lock.
pub(crate) fn hold_back() -> Held {
    HELD_BACK.with(|held| held.depth.set(held.depth.get() + 1));
    Held(PhantomData)
}

impl Held {
    /// Wakes the guest threads of those already who are to be woken, so that these are there when their turns come.
    pub(crate) fn wake_guests(&self) {
        let waiters = HELD_BACK.with(|held| held.waiters.borrow().clone());
        if !crate::platform::would_crowd() {
            waiters.iter().for_each(|waiter| waiter.wake_guest());
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let waiters = HELD_BACK.with(|held| {
            held.depth.set(held.depth.get() - 1);
            if held.depth.get() == 0 { held.waiters.take() } else { Vec::new() }
        });
        for waiter in waiters {
            waiter.set();
        }
    }
}

/// A thread's own event: set by whoever has news for it, cleared when it goes to look.
pub struct Waiter {
    me: Weak<Waiter>,
    news: Mutex<News>,
    sleeps: AtomicBool,
    changed: Condvar,
}

#[derive(Default)]
struct News {
    set: bool,
    /// The guest thread of who sleeps.
    guest: Option<Arc<dyn Interrupt>>,
}

impl Waiter {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            news: Mutex::default(),
            sleeps: AtomicBool::new(false),
            changed: Condvar::new(),
        })
    }

    /// Forgets what happened so far. Called before a condition is looked at: what happens after is then not missed.
    pub fn clear(&self) {
        self.lock().set = false;
    }

    /// Sleeps until something happens, or the deadline. `false` when it was the deadline.
    pub fn wait(&self, deadline: Option<Instant>) -> bool {
        self.sleeps.store(true, Ordering::Relaxed);
        let put_off = PUT_OFF.with(|own| own.sleepers.take());
        if put_off.is_empty() {
            self.rest();
        } else {
            self.give_way_to(&put_off);
        }
        let happened = self.sleep(deadline);
        self.sleeps.store(false, Ordering::Relaxed);
        happened
    }

    /// Rests, unless something has happened already.
    fn rest(&self) {
        let mut news = self.lock();
        if !news.set {
            about_to_wait();
            news.guest = SERVED.with_borrow(Clone::clone);
        }
    }

    /// Wakes those, and rests: each gets the processors as soon as it can. Who is woken may take this one at once, so all else is done before.
    fn give_way_to(&self, others: &[Arc<dyn Sleeper>]) {
        let served = SERVED.with_borrow(Clone::clone);
        self.lock().guest.clone_from(&served);
        let mut wake_guests = || others.iter().for_each(|other| other.wake_guest());
        match served {
            Some(thread) => thread.leave_to(&mut wake_guests),
            None => {
                wake_guests();
                about_to_wait();
            }
        }
        for other in others {
            other.wake_up();
        }
    }

    /// Whether somebody sleeps in [`wait`](Self::wait).
    #[must_use]
    pub fn sleeps(&self) -> bool {
        self.sleeps.load(Ordering::Relaxed)
    }

    fn sleep(&self, deadline: Option<Instant>) -> bool {
        let mut news = self.lock();
        while !news.set {
            match deadline {
                None => news = self.changed.wait(news).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        news.guest = None;
                        return false;
                    }
                    news = self.changed.wait_timeout(news, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        news.guest = None;
        true
    }

    /// Something happened.
    pub fn set(&self) {
        if !self.held_back() && !self.put_off() {
            self.wake_both();
        }
    }

    /// Whether it is woken later.
    fn held_back(&self) -> bool {
        HELD_BACK.with(|held| {
            let later = held.depth.get() > 0;
            if later {
                held.waiters.borrow_mut().extend(self.me.upgrade());
            }
            later
        })
    }

    /// Whether it is put off to wake it. Who does not sleep is told at once.
    fn put_off(&self) -> bool {
        let later = || self.me.upgrade().map(|me| me as Arc<dyn Sleeper>);
        self.sleeps() && PUT_OFF.with(|own| own.put_off(later))
    }

    /// Wakes it; and its guest thread, so that it is there when the turn comes: where there are processors for both.
    fn wake_both(&self) {
        if !crate::platform::would_crowd() {
            self.wake_guest();
        }
        self.wake_up();
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sleeper for Waiter {
    fn wake_guest(&self) {
        let guest = self.lock().guest.take();
        if let Some(guest) = guest {
            guest.goes_on_soon();
        }
    }

    fn wake_up(&self) {
        let mut news = self.lock();
        news.set = true;
        news.guest = None;
        drop(news);
        self.changed.notify_all();
    }
}

impl Wake for Waiter {
    fn wake(&self, _events: Events) {
        self.set();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_happens_before_the_wait_is_not_missed() {
        let queue = WaitQueue::new();
        let waiter = Waiter::new();
        let wake: Arc<dyn Wake> = waiter.clone();
        queue.add(Events::IN, &wake);
        waiter.clear();
        queue.notify(Events::IN);
        assert!(waiter.wait(Some(Instant::now())));
        waiter.clear();
        queue.notify(Events::OUT);
        assert!(!waiter.wait(Some(Instant::now() + Duration::from_millis(1))));
        queue.notify(Events::HUP);
        assert!(waiter.wait(None));
        queue.remove(&wake);
        waiter.clear();
        queue.notify(Events::IN);
        assert!(!waiter.wait(Some(Instant::now())));
    }

    #[test]
    fn who_is_woken_under_a_lock_is_woken_after_it() {
        let now = || Some(Instant::now());
        let (waiter, queue) = (Waiter::new(), WaitQueue::new());
        let wake: Arc<dyn Wake> = waiter.clone();
        queue.add(Events::IN, &wake);
        let outer = hold_back();
        {
            let _inner = hold_back();
            queue.notify(Events::IN);
        }
        assert!(!waiter.wait(now()));
        drop(outer);
        assert!(waiter.wait(now()));
        // What another thread holds back is its own.
        waiter.clear();
        let held = hold_back();
        std::thread::scope(|scope| scope.spawn(|| queue.notify(Events::IN)).join().unwrap());
        assert!(waiter.wait(now()));
        drop(held);
    }

    /// A thread that sleeps until `waiter` is set.
    fn sleeper(waiter: &Arc<Waiter>) -> std::thread::JoinHandle<bool> {
        let own = Arc::clone(waiter);
        let thread = std::thread::spawn(move || own.wait(Some(Instant::now() + Duration::from_secs(60))));
        while !waiter.sleeps() {
            std::thread::yield_now();
        }
        thread
    }

    #[test]
    fn who_is_woken_later_is_woken() {
        let may = |waiter: &Waiter| {
            may_put_off(true);
            waiter.set();
            puts_off_no_more();
        };
        let put_off = || PUT_OFF.with(|own| own.sleepers.borrow().len());
        let [first, second, third] = std::array::from_fn(|_| Waiter::new());
        // Not whom nobody waits in.
        may(&first);
        assert_eq!((put_off(), first.wait(Some(Instant::now()))), (0, true));
        first.clear();
        let threads = [&first, &second, &third].map(sleeper);
        may(&first);
        assert_eq!(put_off(), usize::from(crate::platform::would_crowd()));
        // By a call that puts nothing off, when the caller sleeps itself, and when it is asked for.
        may_put_off(false);
        assert_eq!(put_off(), 0);
        may(&second);
        assert!(!Waiter::new().wait(Some(Instant::now())));
        assert_eq!(put_off(), 0);
        may(&third);
        wake_put_off();
        for thread in threads {
            assert!(thread.join().unwrap());
        }
    }

    /// What a guest thread hears of the thread of the sentry that serves it.
    #[derive(Default)]
    struct Hears(Mutex<Vec<&'static str>>);

    impl Interrupt for Hears {
        fn interrupt(&self) {}

        fn rest(&self) {
            self.0.lock().unwrap().push("rests");
        }

        fn asks(&self) {
            self.0.lock().unwrap().push("asks");
        }

        fn is_answered(&self) {
            self.0.lock().unwrap().push("is answered");
        }
    }

    #[test]
    fn a_guest_thread_hears_of_waits() {
        let hears = Arc::new(Hears::default());
        serves(Some(Arc::clone(&hears) as Arc<dyn Interrupt>));
        drop(Asks::begin());
        let waiter = Waiter::new();
        assert!(!waiter.wait(Some(Instant::now())));
        // What has come already is no wait.
        waiter.set();
        assert!(waiter.wait(None));
        serves(None);
        drop(Asks::begin());
        assert_eq!(*hears.0.lock().unwrap(), ["asks", "is answered", "rests"]);
    }

    #[test]
    fn a_sleeping_thread_is_woken() {
        let queue = Arc::new(WaitQueue::new());
        let waiter = Waiter::new();
        let wake: Arc<dyn Wake> = waiter.clone();
        queue.add(Events::IN, &wake);
        let other = Arc::clone(&queue);
        let thread = std::thread::spawn(move || other.notify(Events::IN));
        assert!(waiter.wait(None));
        thread.join().unwrap();
    }
}
