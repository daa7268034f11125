//! What is behind a timerfd (`man 2 timerfd_create`): the file itself is `vfs`'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Clock, Clocks, GuestTimer, Setting, Timers};
use crate::events::{Events, WaitQueue};

/// A timer that is read.
pub struct TimerFd {
    timer: Arc<GuestTimer>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    expirations: AtomicU64,
    events: WaitQueue,
}

impl TimerFd {
    /// One that is not set.
    #[must_use]
    pub fn new(timers: &Timers, clocks: Clocks, clock: &Clock) -> Self {
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        let on_expire = Box::new(move |count| {
            let more = |seen: u64| Some(seen.saturating_add(count));
            // It always gives a number.
            let _ = told.expirations.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
            told.events.notify(Events::IN | Events::RDNORM);
        });
        Self { timer: GuestTimer::new(timers, clocks, clock, on_expire), shared }
    }

    /// Sets it; expirations so far are forgotten. What was set before.
    pub fn set(&self, setting: Setting, absolute: bool) -> Setting {
        let old = self.timer.set(setting, absolute);
        self.shared.expirations.store(0, Ordering::SeqCst);
        old
    }

    /// What is set.
    #[must_use]
    pub fn get(&self) -> Setting {
        self.timer.get()
    }

    /// Expirations since they were last taken; `None` for none: a read waits.
    #[must_use]
    pub fn take(&self) -> Option<u64> {
        Some(self.shared.expirations.swap(0, Ordering::SeqCst)).filter(|count| *count > 0)
    }

    /// Whether it can be read.
    #[must_use]
    pub fn ready(&self) -> Events {
        if self.shared.expirations.load(Ordering::SeqCst) > 0 {
            Events::IN | Events::RDNORM
        } else {
            Events::empty()
        }
    }

    /// Whether it goes by the monotonic clock, what is left, and how often it has expired since it was read.
    pub(crate) fn saved(&self) -> (bool, Setting, u64) {
        (self.timer.is_monotonic(), self.timer.get(), self.shared.expirations.load(Ordering::SeqCst))
    }

    /// The same again: it goes on with what was left.
    pub(crate) fn restore(&self, setting: Setting, expirations: u64) {
        self.timer.set(setting, false);
        self.shared.expirations.store(expirations, Ordering::SeqCst);
    }

    /// Told when it can be read.
    #[must_use]
    pub fn events(&self) -> &WaitQueue {
        &self.shared.events
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::events::{Waiter, Wake};

    #[test]
    fn it_becomes_readable_and_counts() {
        let timer = TimerFd::new(&Timers::default(), Clocks::new(), &Clock::Monotonic);
        assert_eq!((timer.take(), timer.get()), (None, Setting::default()));
        let waiter = Waiter::new();
        let wake: Arc<dyn Wake> = waiter.clone();
        timer.events().add(Events::IN, &wake);
        let ms = Duration::from_millis;
        timer.set(Setting { value: ms(5), interval: ms(5) }, false);
        let left = timer.get();
        assert!(left.value <= ms(5) && left.interval == ms(5), "{left:?}");
        waiter.wait(None);
        std::thread::sleep(ms(20));
        assert!(timer.take().unwrap() >= 3);
        timer.set(Setting::default(), false);
        assert_eq!(timer.ready(), Events::empty());
    }
}
