//! How long the two sides of a turn look for it before they sleep.
//!
//! To look takes a processor. To sleep and be woken takes the host some 3 us where both share a processor, and five to ten times that where another
//! processor has to be told. So both look for that long, as long as there are two processors for each guest thread at work. Where there are not,
//! they look for a shorter time, and a side that had to wake the other sleeps at once: the other needs the processor. A pair that has two
//! processors keeps them until it waits for something else; then others have them. A thread of the sentry that is about to wait for
//! something else than its stub says so ([`rest`]), and its stub sleeps at once, too.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::ticks;

/// Looks at the state, some 25 ns each: as long as it takes to sleep and be woken...
const LONG: u32 = 1000;
/// ...where processors are few...
const SHORT: u32 = 200;
/// ...and where guest code lately ran for long between its calls.
const LEAST: u32 = 40;

/// A turn that came so soon, with the time that it takes to be woken, would have come while the sentry looked.
const SOON: Duration = Duration::from_micros(60);

/// Threads of the sentry that are at work: in a call, or waiting for a guest that runs.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);

/// Whether the calling thread of the sentry is one of them.
struct Own(Cell<bool>);

thread_local! {
    static OWN: Own = const { Own(Cell::new(false)) };
}

impl Own {
    fn work(&self) {
        if !self.0.replace(true) {
            AT_WORK.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn rest(&self) -> bool {
        let worked = self.0.replace(false);
        if worked {
            AT_WORK.fetch_sub(1, Ordering::Relaxed);
        }
        worked
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.rest();
    }
}

/// The calling thread of the sentry is about to wait for something else than a stub, or serves none any more. Whether that is news.
pub(crate) fn rest() -> bool {
    OWN.with(Own::rest)
}

/// Whether there are not two processors for each that is at work.
fn crowded() -> bool {
    AT_WORK.load(Ordering::Relaxed) * 2 > crate::outside::cpus()
}

/// What is known of the turns of one guest thread.
pub(super) struct Waiting {
    /// Whether there is more than one processor.
    pub(super) spins: bool,
    crowded: Cell<bool>,
    soon: Cell<bool>,
    /// Looks that the last turn took to come; `u32::MAX` where the sentry slept.
    pub(super) looks: Cell<u32>,
    /// What the stub was told last.
    told: Cell<(u32, u32)>,
}

impl Waiting {
    pub(super) fn new() -> Self {
        let spins = crate::outside::cpus() > 1;
        Self {
            spins,
            crowded: Cell::new(false),
            soon: Cell::new(true),
            looks: Cell::new(0),
            told: Cell::new(if spins { (LONG, LONG) } else { (0, 0) }),
        }
    }

    /// How often the stub looks before it sleeps: where the sentry was awake, and where the stub had to wake it.
    pub(super) fn told(&self) -> (u32, u32) {
        self.told.get()
    }

    /// The stub is about to get the turn: what it is to be told, where that is new.
    pub(super) fn begin(&self) -> Option<(u32, u32)> {
        if !self.spins {
            return None;
        }
        OWN.with(Own::work);
        self.crowded.set(crowded());
        let tell = if self.crowded.get() { (SHORT, 0) } else { (LONG, LONG) };
        (self.told.replace(tell) != tell).then_some(tell)
    }

    /// For the sentry, after it gave the turn to a stub that slept or did not.
    pub(super) fn looks_for(&self, stub_slept: bool) -> u32 {
        match (self.spins, self.crowded.get(), self.soon.get()) {
            (false, ..) => 0,
            (true, true, _) if stub_slept => 0,
            (true, true, true) => SHORT,
            (true, false, true) => LONG,
            (true, _, false) => LEAST,
        }
    }

    /// The turn came at this look.
    pub(super) fn came(&self, look: u32) {
        self.looks.set(look);
        self.soon.set(true);
    }

    /// The turn came after a sleep of so many ticks.
    pub(super) fn slept(&self, passed: u64) {
        self.looks.set(u32::MAX);
        self.soon.set(ticks::duration(passed) < SOON);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_had_to_wake_the_other_sleeps_where_processors_are_few() {
        let waiting = Waiting { spins: true, ..Waiting::new() };
        assert_eq!(waiting.looks_for(true), LONG);
        waiting.crowded.set(true);
        assert_eq!((waiting.looks_for(true), waiting.looks_for(false)), (0, SHORT));
        waiting.slept(u64::MAX / 1_000_000);
        assert_eq!(waiting.looks_for(false), LEAST);
        waiting.slept(0);
        assert_eq!(waiting.looks_for(false), SHORT);
        let alone = Waiting { spins: false, ..Waiting::new() };
        assert_eq!((alone.looks_for(false), alone.begin()), (0, None));
        assert!(waiting.begin().is_some() || waiting.told() == (LONG, LONG));
        assert!(rest() && !rest());
    }
}
