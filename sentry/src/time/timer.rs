//! A timer as programs know it: a clock, a next expiration, an interval.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::{Alarm, Clock, Clocks, Expire, Timers};
use crate::task::lock;

/// How often CPU time is looked at, while a timer of CPU time is set: as precise as Linux with 250 ticks a second.
const TICK: Duration = Duration::from_millis(4);

/// The least between two expirations that are acted upon: those in between are counted. Who asks for a nanosecond keeps no CPU busy.
const LEAST: Duration = Duration::from_micros(250);

/// What `getitimer` and the like tell: time left and interval, both 0 where it is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Setting {
    /// Until it expires.
    pub value: Duration,
    /// From then on.
    pub interval: Duration,
}

type OnExpire = Box<dyn Fn(u64) + Send + Sync>;

/// A timer.
pub struct GuestTimer {
    clock: WeakClock,
    clocks: Clocks,
    state: Mutex<State>,
    this: Weak<Self>,
    on_expire: OnExpire,
}

struct State {
    /// On the timer's own clock; for real time on the monotonic one.
    next: Option<Duration>,
    interval: Duration,
    alarm: Alarm,
}

/// A clock that keeps nothing alive.
enum WeakClock {
    Wall { real: bool },
    Process(Weak<crate::task::ThreadGroup>, super::Cpu),
    Thread(Weak<crate::task::Task>, super::Cpu),
}

impl WeakClock {
    fn cpu(&self) -> Option<Clock> {
        match self {
            Self::Wall { .. } => None,
            Self::Process(group, cpu) => group.upgrade().map(|group| Clock::Process(group, *cpu)),
            Self::Thread(task, cpu) => task.upgrade().map(|task| Clock::Thread(task, *cpu)),
        }
    }
}

impl GuestTimer {
    /// A timer that is not set. `on_expire` is called with the number of expirations since it was last, on the timers' thread.
    #[must_use]
    pub fn new(timers: &Timers, clocks: Clocks, clock: &Clock, on_expire: OnExpire) -> Arc<Self> {
        let clock = match clock {
            Clock::Realtime => WeakClock::Wall { real: true },
            Clock::Monotonic => WeakClock::Wall { real: false },
            Clock::Process(group, cpu) => WeakClock::Process(Arc::downgrade(group), *cpu),
            Clock::Thread(task, cpu) => WeakClock::Thread(Arc::downgrade(task), *cpu),
        };
        let state = State { next: None, interval: Duration::ZERO, alarm: timers.alarm() };
        let state = Mutex::new(state);
        Arc::new_cyclic(|this| Self { clock, clocks, state, this: Weak::clone(this), on_expire })
    }

    fn now(&self) -> Duration {
        match &self.clock {
            WeakClock::Wall { .. } => self.clocks.monotonic(),
            cpu => cpu.cpu().map_or(Duration::MAX, |clock| clock.now(&self.clocks)),
        }
    }

    /// Sets the alarm for the next expiration, but not before `least` on a clock of the wall.
    fn arm(&self, state: &mut State, now: Duration, least: Duration) {
        let deadline = state.next.map(|next| match self.clock {
            WeakClock::Wall { .. } => self.clocks.instant(next.max(least)),
            _ => {
                let now_here = Instant::now();
                let left = next.saturating_sub(now).max(TICK).min(Duration::from_secs(1 << 30));
                // Threads of a process use time side by side.
                now_here.checked_add(left.min(TICK.max(left / 8))).unwrap_or(now_here)
            }
        });
        let this: Weak<dyn Expire> = self.this.clone();
        state.alarm.set(deadline, &this);
    }

    /// Sets it: `value` from now on, or at this time of its clock. 0 calls it off. What was set before.
    pub fn set(&self, setting: Setting, absolute: bool) -> Setting {
        let now = self.now();
        let next = match (absolute, &self.clock) {
            _ if setting.value.is_zero() => None,
            (false, _) => Some(now.saturating_add(setting.value)),
            (true, WeakClock::Wall { real: true }) => {
                Some(now.saturating_add(setting.value.saturating_sub(self.clocks.realtime())))
            }
            (true, _) => Some(setting.value),
        };
        let mut state = lock(&self.state);
        let old = left(&state, now);
        (state.next, state.interval) = (next, setting.interval);
        self.arm(&mut state, now, now);
        old
    }

    /// What is set.
    #[must_use]
    pub fn get(&self) -> Setting {
        let now = self.now();
        left(&lock(&self.state), now)
    }

    /// Whether its clock is the monotonic one.
    pub(crate) fn is_monotonic(&self) -> bool {
        matches!(self.clock, WeakClock::Wall { real: false })
    }

    /// Whether it is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        lock(&self.state).next.is_some()
    }
}

fn left(state: &State, now: Duration) -> Setting {
    let Some(next) = state.next else { return Setting { value: Duration::ZERO, interval: state.interval } };
    // Due, but not yet seen: the least that is not 0, as Linux has it.
    let value = next.saturating_sub(now).max(Duration::from_nanos(1));
    Setting { value, interval: state.interval }
}

/// How often a timer expired until `now`, and when it does next.
fn advance(next: Duration, interval: Duration, now: Duration) -> (u64, Option<Duration>) {
    if now < next {
        return (0, Some(next));
    }
    if interval.is_zero() {
        return (1, None);
    }
    let more = (now - next).as_nanos() / interval.as_nanos();
    let count = u64::try_from(more).unwrap_or(u64::MAX).saturating_add(1);
    let rest = (now - next).as_nanos() % interval.as_nanos();
    let rest = Duration::from_nanos(u64::try_from(rest).unwrap_or(0));
    (count, Some(now.saturating_add(interval.saturating_sub(rest))))
}

impl Expire for GuestTimer {
    fn expire(&self) {
        let now = self.now();
        let count = {
            let mut state = lock(&self.state);
            let Some(next) = state.next else { return };
            let (count, next) = advance(next, state.interval, now);
            state.next = next;
            self.arm(&mut state, now, now.saturating_add(LEAST));
            count
        };
        if count > 0 {
            (self.on_expire)(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expirations_are_counted() {
        let ms = Duration::from_millis;
        assert_eq!(advance(ms(10), ms(0), ms(9)), (0, Some(ms(10))));
        assert_eq!(advance(ms(10), ms(0), ms(10)), (1, None));
        assert_eq!(advance(ms(10), ms(5), ms(10)), (1, Some(ms(15))));
        assert_eq!(advance(ms(10), ms(5), ms(24)), (3, Some(ms(25))));
        assert_eq!(advance(ms(10), Duration::from_nanos(1), Duration::MAX).0, u64::MAX);
    }
}
