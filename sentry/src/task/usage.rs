//! CPU time of a task.
//!
//! User time is the time that guest code was let run. System time is what the host says of the sentry's thread that serves the task:
//! it is asked for only when somebody wants to know, so calls do not pay for it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::lock;
use crate::ticks;

/// User and system time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuTimes {
    /// In guest code.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
}

impl CpuTimes {
    /// Both.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.user.saturating_add(self.system)
    }

    /// With another's.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self { user: self.user.saturating_add(other.user), system: self.system.saturating_add(other.system) }
    }
}

/// In place of when guest code was entered, while what it used is added up. No clock shows it.
const CHANGING: u64 = 1;

/// What a task has used.
#[derive(Default)]
pub struct Usage {
    /// Ticks in guest code.
    user: AtomicU64,
    /// When it was entered; 0 while it does not run. Both are written by the thread that serves the task alone.
    entered: AtomicU64,
    host: Mutex<Host>,
}

#[derive(Default, Clone, Copy)]
enum Host {
    /// No thread serves it yet.
    #[default]
    None,
    /// The host's clock of the thread that does, and what it showed at the beginning.
    Running(ClockId, Duration),
    /// It ended.
    Ended(Duration),
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// The clock of CPU time of the calling host thread, as other threads can read it (`include/linux/posix-timers.h`: the complement of
/// the thread's number, then 4 for a thread and 2 for what the scheduler counts).
fn clock_of_this_thread() -> ClockId {
    ClockId::from_raw((!nix::unistd::gettid().as_raw() << 3) | 6)
}

impl Usage {
    /// The calling host thread serves the task from now on.
    pub(super) fn begin(&self) {
        ticks::begin();
        let clock = clock_of_this_thread();
        *lock(&self.host) = Host::Running(clock, read(clock));
    }

    /// It does so no longer.
    pub(super) fn end(&self) {
        let system = self.system();
        *lock(&self.host) = Host::Ended(system);
    }

    /// Guest code runs from now on.
    pub(super) fn enter(&self) {
        self.entered.store(ticks::now(), Ordering::Relaxed);
    }

    /// It does so no longer, and slept for so many ticks.
    pub(super) fn leave(&self, slept: u64) {
        let entered = self.entered.load(Ordering::Relaxed);
        if entered != 0 {
            let user = self.user.load(Ordering::Relaxed);
            let passed = ticks::now().saturating_sub(entered).saturating_sub(slept);
            self.entered.store(CHANGING, Ordering::Relaxed);
            self.user.store(user.wrapping_add(passed), Ordering::Release);
            self.entered.store(0, Ordering::Release);
        }
    }

    /// Whether guest code runs.
    pub(super) fn in_guest(&self) -> bool {
        self.entered.load(Ordering::Relaxed) != 0
    }

    fn system(&self) -> Duration {
        match *lock(&self.host) {
            Host::None => Duration::ZERO,
            Host::Running(clock, start) => read(clock).saturating_sub(start),
            Host::Ended(system) => system,
        }
    }

    /// Ticks so far, and since when guest code runs besides.
    fn seen(&self) -> (u64, u64) {
        loop {
            let entered = self.entered.load(Ordering::Acquire);
            let user = self.user.load(Ordering::Acquire);
            if entered != CHANGING && entered == self.entered.load(Ordering::Acquire) {
                return (user, entered);
            }
            std::hint::spin_loop();
        }
    }

    /// What was used so far, where guest code that runs slept for so many ticks since it does.
    #[must_use]
    pub fn times(&self, slept: u64) -> CpuTimes {
        let (user, entered) = self.seen();
        let running = match entered {
            0 => 0,
            entered => ticks::now().saturating_sub(entered).saturating_sub(slept),
        };
        let user = ticks::duration(user.saturating_add(running));
        CpuTimes { user, system: self.system() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn both_kinds_of_time_are_counted_and_stay_after_the_end() {
        let usage = Usage::default();
        assert_eq!(usage.times(0), CpuTimes::default());
        usage.begin();
        usage.enter();
        std::thread::sleep(Duration::from_millis(2));
        assert!(usage.times(0).user >= Duration::from_millis(2));
        usage.leave(0);
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        usage.end();
        let times = usage.times(0);
        assert!(times.system > Duration::ZERO && times.user < Duration::from_secs(1), "{times:?}");
        assert_eq!(usage.times(0), times);
    }
}
