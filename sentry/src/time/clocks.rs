//! What time it is in a sandbox.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_getres, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::error::Errno;
use crate::loader::vdso::Differences;

/// What the clocks of a new sandbox show that count from its begin. Not 0, which programs take for "never".
const BEGIN: Duration = Duration::from_secs(1);

/// Where a restored container goes on: later than it was saved by more than a coarse clock may lag behind (a tick, at 100 of them a second).
const RESTORED: Duration = Duration::from_millis(10);

/// Latest time that a restored container goes on from.
const LATEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// The sandbox's clocks: the host's, but that those which count from a begin began with the sandbox, or with the one that a restored container was in
/// first. Programs read them without a call, by the vDSO ([`crate::loader::vdso`]), which has the same differences.
///
/// `CLOCK_BOOTTIME` is `CLOCK_MONOTONIC`: a sandbox does not sleep when the host does. `CLOCK_TAI` is `CLOCK_REALTIME`: it knows of no leap
/// seconds.
#[derive(Debug, Clone)]
pub struct Clocks {
    /// When the host's monotonic clock showed 0.
    zero: Instant,
    /// From one time that coarse clocks show to the next.
    coarse: Duration,
    more: Arc<More>,
}

/// What clocks show more than the host's, in nanoseconds.
#[derive(Debug, Default)]
struct More {
    monotonic: AtomicI64,
    raw: AtomicI64,
}

/// What the clocks showed that count from the sandbox's begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Reading {
    pub(crate) monotonic: Duration,
    pub(crate) raw: Duration,
}

fn host(clock: ClockId) -> Duration {
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// `time` by so many nanoseconds later.
fn later(time: Duration, nanoseconds: i64) -> Duration {
    let by = Duration::from_nanos(nanoseconds.unsigned_abs());
    if nanoseconds < 0 { time.saturating_sub(by) } else { time.saturating_add(by) }
}

/// How much later `to` is than `from`, both within some centuries.
fn difference(from: Duration, to: Duration) -> i64 {
    let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    nanoseconds(to).saturating_sub(nanoseconds(from))
}

impl Clocks {
    /// Of a sandbox that begins now.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "it asks the host")]
    pub fn new() -> Self {
        // In this order: what is due at a time is never taken to be due before.
        let shown = host(ClockId::CLOCK_MONOTONIC);
        let now = Instant::now();
        let coarse = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from);
        let clocks = Self {
            zero: now.checked_sub(shown).unwrap_or(now),
            coarse: coarse.unwrap_or(Duration::from_millis(4)),
            more: Arc::default(),
        };
        clocks.show(Reading { monotonic: BEGIN, raw: BEGIN });
        clocks
    }

    /// Has the clocks show this now.
    fn show(&self, reading: Reading) {
        let monotonic = difference(host(ClockId::CLOCK_MONOTONIC), reading.monotonic);
        let raw = difference(host(ClockId::CLOCK_MONOTONIC_RAW), reading.raw);
        self.more.monotonic.store(monotonic, Ordering::SeqCst);
        self.more.raw.store(raw, Ordering::SeqCst);
    }

    /// Lets a container go on in a sandbox in which nothing has run yet, with clocks that go on from what they showed when it was saved.
    ///
    /// # Errors
    /// EINVAL: no sandbox is so old.
    pub(crate) fn go_on_from(&self, saved: Reading) -> Result<(), Errno> {
        let Reading { monotonic, raw } = saved;
        if monotonic > LATEST || raw > LATEST {
            return Err(Errno::EINVAL);
        }
        self.show(Reading { monotonic: monotonic + RESTORED, raw: raw + RESTORED });
        Ok(())
    }

    /// What they show that count from the begin.
    pub(crate) fn reading(&self) -> Reading {
        let raw = later(host(ClockId::CLOCK_MONOTONIC_RAW), self.differences().raw);
        Reading { monotonic: self.monotonic(), raw }
    }

    /// What they show more than the host's.
    pub(crate) fn differences(&self) -> Differences {
        Differences {
            monotonic: self.more.monotonic.load(Ordering::SeqCst),
            raw: self.more.raw.load(Ordering::SeqCst),
        }
    }

    /// How often what coarse clocks show changes.
    #[must_use]
    pub fn coarse(&self) -> Duration {
        self.coarse
    }

    /// What the monotonic clock shows.
    #[must_use]
    pub fn monotonic(&self) -> Duration {
        later(host(ClockId::CLOCK_MONOTONIC), self.differences().monotonic)
    }

    /// Since 1970 began, by the host's clock.
    #[must_use]
    pub fn realtime(&self) -> Duration {
        host(ClockId::CLOCK_REALTIME)
    }

    /// What the clock of this number shows; `None` for clocks of CPU time, and for numbers that are none. `hosts`: where a clock of the sandbox
    /// is not the host's, that one.
    #[must_use]
    pub fn of_number(&self, number: i32, hosts: bool) -> Option<Duration> {
        let Differences { monotonic, raw } = if hosts { Differences::default() } else { self.differences() };
        Some(match number {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM | libc::CLOCK_TAI => self.realtime(),
            libc::CLOCK_REALTIME_COARSE => host(ClockId::CLOCK_REALTIME_COARSE),
            libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => {
                later(host(ClockId::CLOCK_MONOTONIC), monotonic)
            }
            libc::CLOCK_MONOTONIC_COARSE => later(host(ClockId::CLOCK_MONOTONIC_COARSE), monotonic),
            libc::CLOCK_MONOTONIC_RAW => later(host(ClockId::CLOCK_MONOTONIC_RAW), raw),
            _ => return None,
        })
    }

    /// When the monotonic clock shows `time`, on the host's; what is too far away for it is as far as a century.
    #[must_use]
    pub fn instant(&self, time: Duration) -> Instant {
        const CENTURY: Duration = Duration::from_secs(100 * 366 * 86_400);
        let far = || self.zero.checked_add(CENTURY).unwrap_or(self.zero);
        let more = self.differences().monotonic;
        // Before the host began is when it did.
        let on_host = later(time.min(CENTURY), more.saturating_neg());
        self.zero.checked_add(on_host.min(CENTURY)).unwrap_or_else(far)
    }

    /// When this clock of real time shows `time`, on the host's monotonic one; the past is now.
    #[must_use]
    pub fn instant_of_realtime(&self, time: Duration) -> Instant {
        self.instant(self.monotonic().saturating_add(time.saturating_sub(self.realtime())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_begins_at_a_second_and_its_clocks_go_on_together() {
        let clocks = Clocks::new();
        let before = clocks.monotonic();
        let raw = clocks.of_number(libc::CLOCK_MONOTONIC_RAW, false).unwrap();
        let boot = clocks.of_number(libc::CLOCK_BOOTTIME, false).unwrap();
        let after = clocks.of_number(libc::CLOCK_MONOTONIC, false).unwrap();
        assert!(
            before >= BEGIN && before <= boot && boot <= after && after < BEGIN * 30,
            "{before:?} {after:?}"
        );
        assert!(raw >= BEGIN && raw < after + Duration::from_millis(1), "{raw:?}");
        let coarse = clocks.of_number(libc::CLOCK_MONOTONIC_COARSE, false).unwrap();
        assert!(coarse <= clocks.monotonic() && coarse + clocks.coarse() * 3 > after, "{coarse:?}");
        // The host's own is another.
        let hosts = clocks.of_number(libc::CLOCK_MONOTONIC, true).unwrap();
        assert_eq!(later(hosts, clocks.differences().monotonic).as_secs(), clocks.monotonic().as_secs());
        assert_eq!(
            clocks.of_number(libc::CLOCK_REALTIME, true).unwrap().as_secs(),
            clocks.realtime().as_secs()
        );
        for number in [libc::CLOCK_PROCESS_CPUTIME_ID, libc::CLOCK_THREAD_CPUTIME_ID, 10, 12, -1] {
            assert_eq!(clocks.of_number(number, false), None, "{number}");
        }
    }

    #[test]
    fn a_time_is_never_due_before_it_is_shown() {
        let clocks = Clocks::new();
        for ahead in [0, 1, 1000, 1_000_000] {
            let time = clocks.monotonic() + Duration::from_nanos(ahead);
            let due = clocks.instant(time);
            while Instant::now() < due {}
            assert!(clocks.monotonic() >= time, "{ahead}");
        }
        // What is past, and what nobody lives to see.
        assert!(clocks.instant(Duration::ZERO) <= Instant::now());
        assert!(clocks.instant(Duration::MAX) > Instant::now() + Duration::from_secs(1 << 30));
    }

    #[test]
    fn who_is_restored_finds_the_time_go_on() {
        let clocks = Clocks::new();
        let before = clocks.clone();
        for seconds in [0, 5, 1 << 30] {
            let saved =
                Reading { monotonic: Duration::from_secs(seconds), raw: Duration::from_secs(seconds + 7) };
            clocks.go_on_from(saved).unwrap();
            let now = clocks.reading();
            assert!(
                now.monotonic >= saved.monotonic + RESTORED && now.raw >= saved.raw + RESTORED,
                "{now:?}"
            );
            assert!(now.monotonic < saved.monotonic + Duration::from_secs(30), "{now:?}");
            // Whoever knew the clocks knows them.
            assert_eq!(before.differences(), clocks.differences());
            let due = clocks.instant(now.monotonic + Duration::from_secs(60)) - Instant::now();
            assert!(due > Duration::from_secs(30) && due <= Duration::from_millis(60_001), "{due:?}");
        }
        let late = Reading { monotonic: Duration::MAX, raw: Duration::ZERO };
        assert_eq!(clocks.go_on_from(late), Err(Errno::EINVAL));
    }
}
