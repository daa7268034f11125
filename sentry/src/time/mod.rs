//! Clocks and timers.
//!
//! All timers of a sandbox are served by one host thread, which exists once the first is set and sleeps while none is due.

mod alarm;
mod clocks;
mod process;
mod timer;
mod timerfd;

use std::sync::Arc;
use std::time::Duration;

pub use alarm::{Alarm, Expire, Timers};
pub use clocks::Clocks;
pub(crate) use clocks::Reading;
pub use process::{PosixTimer, ProcessTimers, Receiver, Which};
pub use timer::{GuestTimer, Setting};
pub use timerfd::TimerFd;

use crate::error::Errno;
use crate::task::{Pid, Task, ThreadGroup};

/// What CPU time counts: the low two bits of such a clock's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cpu {
    /// User and system time.
    Both,
    /// User time.
    User,
}

/// A clock that a program can name.
#[derive(Clone)]
pub enum Clock {
    /// Since 1970. `CLOCK_REALTIME` and what is like it.
    Realtime,
    /// Since the sandbox began. `CLOCK_MONOTONIC`, `CLOCK_BOOTTIME` and what is like them.
    Monotonic,
    /// CPU time of a process.
    Process(Arc<ThreadGroup>, Cpu),
    /// CPU time of a thread.
    Thread(Arc<Task>, Cpu),
}

impl Clock {
    /// The clock of this number (`include/uapi/linux/time.h`; negative ones as in `include/linux/posix-timers.h`).
    ///
    /// # Errors
    /// EINVAL for none.
    pub fn of(task: &Arc<Task>, number: i32) -> Result<Self, Errno> {
        match number {
            libc::CLOCK_REALTIME
            | libc::CLOCK_REALTIME_COARSE
            | libc::CLOCK_REALTIME_ALARM
            | libc::CLOCK_TAI => Ok(Self::Realtime),
            libc::CLOCK_MONOTONIC
            | libc::CLOCK_MONOTONIC_RAW
            | libc::CLOCK_MONOTONIC_COARSE
            | libc::CLOCK_BOOTTIME
            | libc::CLOCK_BOOTTIME_ALARM => Ok(Self::Monotonic),
            libc::CLOCK_PROCESS_CPUTIME_ID => Ok(Self::Process(Arc::clone(task.group()), Cpu::Both)),
            libc::CLOCK_THREAD_CPUTIME_ID => Ok(Self::Thread(Arc::clone(task), Cpu::Both)),
            number if number < 0 => Self::of_cpu(task, number),
            _ => Err(Errno::EINVAL),
        }
    }

    fn of_cpu(task: &Arc<Task>, number: i32) -> Result<Self, Errno> {
        let pid: Pid = !(number >> 3);
        let cpu = match number & 3 {
            0 | 2 => Cpu::Both,
            1 => Cpu::User,
            _ => return Err(Errno::EINVAL),
        };
        if number & 4 != 0 {
            let other = if pid == 0 { Some(Arc::clone(task)) } else { task.find(pid) };
            let same = other.filter(|other| other.group().pid() == task.group().pid());
            return same.map(|other| Self::Thread(other, cpu)).ok_or(Errno::EINVAL);
        }
        let group = if pid == 0 { Some(Arc::clone(task.group())) } else { task.find_group(pid) };
        group.map(|group| Self::Process(group, cpu)).ok_or(Errno::EINVAL)
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self, clocks: &Clocks) -> Duration {
        let of = |times: crate::task::CpuTimes, cpu: Cpu| match cpu {
            Cpu::Both => times.total(),
            Cpu::User => times.user,
        };
        match self {
            Self::Realtime => clocks.realtime(),
            Self::Monotonic => clocks.monotonic(),
            Self::Process(group, cpu) => of(group.cpu_times(), *cpu),
            Self::Thread(task, cpu) => of(task.cpu_times(), *cpu),
        }
    }
}
