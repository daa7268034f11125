//! How long the two sides of a turn look for it before they sleep.
//!
//! To look takes a processor. To sleep and be woken takes the host some 3 us where both share a processor, and five to ten times that where another
//! processor has to be told. So both look for that long, as long as there are two processors for each guest thread at work. Where there are not,
//! as many pairs as there are two processors for look on, until they sleep or wait for something else; then others take their places. These look for
//! a shorter time, and a side that had to wake the other sleeps at once: the other needs the processor. If all did so, those that once sleep would
//! never find back, and all of them would be slow (nginx and its client on two processors: 15,000 requests a second instead of 60,000). A thread of the
//! sentry that is about to wait for something else than its stub says so ([`rest`]), and its stub sleeps at once, too.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::ticks;

/// Looks at the state, some 25 ns each: as long as it takes to sleep and be woken...
const LONG: u32 = 1000;
/// ...as long as a gofer takes to answer, which is as long as another processor takes to wake: who then sleeps does so when the answer is there...
pub(super) const ASKS: u32 = 2000;
/// ...as long as it takes another processor to wake...
const MIDDLE: u32 = 600;
/// ...where processors are few...
const SHORT: u32 = 200;
/// ...and where guest code lately ran for long between its calls.
const LEAST: u32 = 40;

/// Bytes that the host's kernel copies from a file to a process while a side looks once, by a slow guess.
const COPIED_A_LOOK: usize = 100;

/// Most looks for that: whoever copies for longer than some 100 us may as well be slept for.
const COPY_MOST: usize = 4000;

/// A turn that came so soon, with the time that it takes to be woken, would have come while the sentry looked.
const SOON: Duration = Duration::from_micros(60);

/// Threads of the sentry that are at work: in a call, or waiting for a guest that runs.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);

/// Of these, pairs that may look for long: one for each two processors.
static LOOKING: AtomicUsize = AtomicUsize::new(0);

/// What the calling thread of the sentry does.
struct Own {
    /// It is in a call, or waits for a guest that runs.
    works: Cell<bool>,
    /// It is of a pair that looks for long.
    looks: Cell<bool>,
}

thread_local! {
    static OWN: Own = const { Own { works: Cell::new(false), looks: Cell::new(false) } };
}

impl Own {
    fn work(&self) {
        if !self.works.replace(true) {
            AT_WORK.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether its pair may look for long, from now until it waits for something.
    fn may_look(&self) -> bool {
        if !self.looks.get() {
            let most = (crate::outside::cpus() / 2).max(1);
            let more = |looking: usize| (looking < most).then(|| looking + 1);
            let took = LOOKING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
            self.looks.set(took.is_ok());
        }
        self.looks.get()
    }

    fn look_no_more(&self) {
        if self.looks.replace(false) {
            LOOKING.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn rest(&self) -> bool {
        self.look_no_more();
        let worked = self.works.replace(false);
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

/// Whether there are fewer than two processors for each pair at work.
pub(super) fn is_crowded() -> bool {
    // The caller is at work, also where that is not counted: before its stub first gets the turn, or with one processor.
    AT_WORK.load(Ordering::Relaxed).max(1) * 2 > crate::outside::cpus()
}

/// Whether one pair more at work would be one too many for the processors.
pub(crate) fn would_crowd() -> bool {
    (AT_WORK.load(Ordering::Relaxed) + 1) * 2 > crate::outside::cpus()
}

/// How many want processors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Crowd {
    /// There are two for each that is at work.
    None,
    /// There are not, and this pair is of those that have them.
    First,
    /// It is of the others.
    Other,
}

impl Crowd {
    fn now() -> Self {
        match (OWN.with(Own::may_look), is_crowded()) {
            (true, false) => Self::None,
            (true, true) => Self::First,
            (false, _) => Self::Other,
        }
    }

    /// How often a side looks: where the other was awake, and where it had to wake it.
    fn looks(self) -> (u32, u32) {
        match self {
            Self::None => (LONG, LONG),
            Self::First => (SHORT, MIDDLE),
            Self::Other => (SHORT, 0),
        }
    }
}

/// What is known of the turns of one guest thread.
pub(super) struct Waiting {
    /// Whether there is more than one processor.
    pub(super) spins: bool,
    crowd: Cell<Crowd>,
    soon: Cell<bool>,
    /// Looks that the last turn took to come; `u32::MAX` where the sentry slept.
    pub(super) looks: Cell<u32>,
    /// Looks that the next turn will take because of what is asked.
    expected: Cell<u32>,
    /// What the stub was told last.
    told: Cell<(u32, u32)>,
    /// The stub, which got the turn, is woken by another one.
    pub(super) comes: Cell<bool>,
}

impl Waiting {
    pub(super) fn new() -> Self {
        let spins = crate::outside::cpus() > 1;
        Self {
            spins,
            crowd: Cell::new(Crowd::None),
            soon: Cell::new(true),
            looks: Cell::new(0),
            expected: Cell::new(0),
            told: Cell::new(if spins { (LONG, LONG) } else { (0, 0) }),
            comes: Cell::new(false),
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
        self.crowd.set(Crowd::now());
        let tell = self.crowd.get().looks();
        (self.told.replace(tell) != tell).then_some(tell)
    }

    /// For the sentry, after it gave the turn to a stub that slept or did not.
    pub(super) fn looks_for(&self, stub_slept: bool) -> u32 {
        if !self.spins {
            return 0;
        }
        let (awake, woken) = self.crowd.get().looks();
        let most = if stub_slept { woken } else { awake };
        let most = if self.soon.get() { most } else { most.min(LEAST) };
        let expected = self.expected.take();
        if self.crowd.get() == Crowd::Other { most } else { most.saturating_add(expected) }
    }

    /// The stub will be asked to copy so many bytes: the next turn takes that much longer.
    pub(super) fn expect_copy(&self, bytes: usize) {
        let looks = (bytes / COPIED_A_LOOK).min(COPY_MOST);
        self.expected.set(u32::try_from(looks).unwrap_or(0));
    }

    /// The turn came at this look.
    pub(super) fn came(&self, look: u32) {
        self.looks.set(look);
        self.soon.set(true);
    }

    /// Whether there are two processors for each pair that is at work.
    pub(super) fn is_alone(&self) -> bool {
        self.spins && self.crowd.get() == Crowd::None
    }

    /// The sentry sleeps until the turn comes.
    pub(super) fn sleeps() {
        OWN.with(Own::look_no_more);
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
        waiting.crowd.set(Crowd::Other);
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

    /// Of two at work on two processors the first looks for as long as a wake-up takes, and the other when the first sleeps.
    #[test]
    fn a_pair_that_sleeps_leaves_its_place_to_another() {
        let most = (crate::outside::cpus() / 2).max(1);
        let owns: Vec<Own> =
            (0..=most).map(|_| Own { works: Cell::new(false), looks: Cell::new(false) }).collect();
        let (last, first) = owns.split_last().unwrap();
        for own in first {
            while !own.may_look() {
                // tests beside this one have places too, for moments
                std::thread::yield_now();
            }
        }
        assert!(!last.may_look());
        assert!(first.iter().all(Own::may_look));
        first[0].look_no_more();
        while !last.may_look() {
            std::thread::yield_now();
        }
        assert_eq!(Crowd::First.looks(), (SHORT, MIDDLE));
    }
}
