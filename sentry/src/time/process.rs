//! Timers of a process: `setitimer` and `timer_create`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Weak};

use super::{Clock, Clocks, Cpu, GuestTimer, Setting, Timers};
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::task::signal::SignalInfo;
use crate::task::{Task, ThreadGroup};

/// Timers of `timer_create` that a process can have; Linux counts them as queued signals.
const TIMERS: usize = 4096;

/// Which of `setitimer`'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// `ITIMER_REAL`: SIGALRM.
    Real,
    /// `ITIMER_VIRTUAL`: SIGVTALRM by user time.
    Virtual,
    /// `ITIMER_PROF`: SIGPROF by user and system time.
    Profile,
}

impl Which {
    /// By its number.
    ///
    /// # Errors
    /// EINVAL.
    pub fn of(number: u64) -> Result<Self, Errno> {
        match number {
            0 => Ok(Self::Real),
            1 => Ok(Self::Virtual),
            2 => Ok(Self::Profile),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// Timers of a process.
#[derive(Default)]
pub struct ProcessTimers {
    intervals: BTreeMap<Which, Arc<GuestTimer>>,
    posix: BTreeMap<i32, PosixTimer>,
    last: i32,
    /// Of `RLIMIT_CPU`.
    cpu_limit: Option<Arc<GuestTimer>>,
}

/// A timer of `timer_create`.
#[derive(Clone)]
pub struct PosixTimer {
    /// What is set and what is left of it.
    pub timer: Arc<GuestTimer>,
    overrun: Arc<AtomicI32>,
}

impl PosixTimer {
    /// Expirations that the last signal stood for besides the first.
    #[must_use]
    pub fn overrun(&self) -> i32 {
        self.overrun.load(Ordering::Relaxed)
    }
}

impl ProcessTimers {
    /// `setitimer`'s timer, made when it is asked for first.
    pub fn interval(&mut self, kernel: &Kernel, group: &Arc<ThreadGroup>, which: Which) -> Arc<GuestTimer> {
        let make = || {
            let (clock, signal) = match which {
                Which::Real => (Clock::Monotonic, libc::SIGALRM),
                Which::Virtual => (Clock::Process(Arc::clone(group), Cpu::User), libc::SIGVTALRM),
                Which::Profile => (Clock::Process(Arc::clone(group), Cpu::Both), libc::SIGPROF),
            };
            let group = Arc::downgrade(group);
            let send = Box::new(move |_count| {
                if let Some(group) = group.upgrade() {
                    // A process that is gone needs no signal.
                    let _ = group.send_signal(SignalInfo::kernel(signal));
                }
            });
            GuestTimer::new(&kernel.timers, kernel.clocks.clone(), &clock, send)
        };
        Arc::clone(self.intervals.entry(which).or_insert_with(make))
    }

    /// The timer of `RLIMIT_CPU`, made when there is such a limit first.
    pub(crate) fn cpu_limit(
        &mut self,
        (timers, clocks): (&Timers, Clocks),
        group: &Arc<ThreadGroup>,
        on_second: impl Fn(&ThreadGroup) + Send + Sync + 'static,
    ) -> Arc<GuestTimer> {
        let make = || {
            let held = Arc::downgrade(group);
            let expired = Box::new(move |_count| {
                if let Some(group) = held.upgrade() {
                    on_second(&group);
                }
            });
            GuestTimer::new(timers, clocks, &Clock::Process(Arc::clone(group), Cpu::Both), expired)
        };
        Arc::clone(self.cpu_limit.get_or_insert_with(make))
    }

    /// Whether there are any of `timer_create`.
    pub(crate) fn has_posix(&self) -> bool {
        !self.posix.is_empty()
    }

    /// `setitimer`'s timer if it was ever set: what `getitimer` asks.
    #[must_use]
    pub fn interval_setting(&self, which: Which) -> Setting {
        self.intervals.get(&which).map(|timer| timer.get()).unwrap_or_default()
    }

    /// `timer_create`: `signal` is made for each timer's number; `thread` is whom it is for, the process if `None`.
    ///
    /// # Errors
    /// EAGAIN when there are too many.
    pub fn create(
        &mut self,
        (timers, clocks): (&Timers, Clocks),
        clock: &Clock,
        signal: impl FnOnce(i32) -> Option<SignalInfo>,
        to: Receiver,
    ) -> Result<i32, Errno> {
        if self.posix.len() >= TIMERS {
            return Err(Errno::EAGAIN);
        }
        let id = self.last;
        self.last = self.last.checked_add(1).ok_or(Errno::EAGAIN)?;
        let overrun = Arc::new(AtomicI32::new(0));
        let noted = Arc::clone(&overrun);
        let info = signal(id);
        let on_expire = Box::new(move |count| {
            if let Some(info) = &info {
                noted.store(to.send(info, count), Ordering::Relaxed);
            }
        });
        let timer = GuestTimer::new(timers, clocks, clock, on_expire);
        self.posix.insert(id, PosixTimer { timer, overrun });
        Ok(id)
    }

    /// The timer of this number.
    ///
    /// # Errors
    /// EINVAL for none.
    pub fn posix(&self, id: i32) -> Result<PosixTimer, Errno> {
        self.posix.get(&id).cloned().ok_or(Errno::EINVAL)
    }

    /// `timer_delete`.
    ///
    /// # Errors
    /// EINVAL for none.
    pub fn delete(&mut self, id: i32) -> Result<PosixTimer, Errno> {
        self.posix.remove(&id).ok_or(Errno::EINVAL)
    }

    /// Takes those of `timer_create` out: `execve` deletes them.
    #[must_use]
    pub fn take_posix(&mut self) -> Vec<PosixTimer> {
        std::mem::take(&mut self.posix).into_values().collect()
    }
}

/// Whom a timer's signal is for.
pub enum Receiver {
    /// Any thread of a process.
    Process(Weak<ThreadGroup>),
    /// This thread.
    Thread(Weak<Task>),
}

impl Receiver {
    /// Sends the signal of a timer, or counts on one that is there already. The overrun that it tells.
    fn send(&self, info: &SignalInfo, count: u64) -> i32 {
        match self {
            Self::Process(group) => {
                group.upgrade().map_or(0, |group| group.tasks().send_timer(Err(group.pid()), info, count))
            }
            Self::Thread(task) => {
                task.upgrade().map_or(0, |task| task.tasks().send_timer(Ok(task.pid()), info, count))
            }
        }
    }
}
