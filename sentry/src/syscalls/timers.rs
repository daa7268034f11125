//! Timers that send signals.

use std::sync::Arc;
use std::time::Duration;

use super::Entry;
use super::clocks::{may_wake, read_timespec, read_timeval, timespec, timeval};
use super::processes::int;
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::signal::{Payload, SI_TIMER, SignalInfo, is_signal};
use crate::time::{Clock, Receiver, Setting, Which};

pub(super) const CALLS: &[Entry] = &[
    Entry::full(libc::SYS_alarm, "alarm", sys_alarm),
    Entry::full(libc::SYS_getitimer, "getitimer", sys_getitimer),
    Entry::full(libc::SYS_setitimer, "setitimer", sys_setitimer),
    Entry::full(libc::SYS_timer_create, "timer_create", sys_timer_create),
    Entry::full(libc::SYS_timer_settime, "timer_settime", sys_timer_settime),
    Entry::full(libc::SYS_timer_gettime, "timer_gettime", sys_timer_gettime),
    Entry::full(libc::SYS_timer_getoverrun, "timer_getoverrun", sys_timer_getoverrun),
    Entry::full(libc::SYS_timer_delete, "timer_delete", sys_timer_delete),
];

const TIMER_ABSTIME: i32 = 1;

/// A setting as `struct itimerval`. What is set is never told as 0.
fn itimerval(setting: Setting) -> Vec<u8> {
    let least = if setting.value.is_zero() { Duration::ZERO } else { Duration::from_micros(1) };
    [timeval(setting.interval), timeval(setting.value.max(least))].concat()
}

fn sys_alarm(call: &mut Call<'_>, [seconds, ..]: [u64; 6]) -> SysResult {
    let group = call.task.group();
    let timer = group.timers().interval(call.kernel, group, Which::Real);
    let value = Duration::from_secs(int(seconds).cast_unsigned().into());
    let old = timer.set(Setting { value, interval: Duration::ZERO }, false).value;
    // Rounded, but what is set is never 0.
    let rounded = old.as_secs() + u64::from(old.subsec_millis() >= 500);
    Ok(if old.is_zero() { 0 } else { rounded.max(1) })
}

fn sys_getitimer(call: &mut Call<'_>, [which, address, ..]: [u64; 6]) -> SysResult {
    let which = Which::of(int(which).cast_unsigned().into())?;
    let setting = call.task.group().timers().interval_setting(which);
    call.write(address, &itimerval(setting))?;
    Ok(0)
}

fn sys_setitimer(call: &mut Call<'_>, [which, new, old, ..]: [u64; 6]) -> SysResult {
    let setting = if new == 0 {
        Setting::default()
    } else {
        let interval = read_timeval(call, new)?;
        let value = read_timeval(call, new.checked_add(16).ok_or(Errno::EFAULT)?)?;
        Setting { value, interval }
    };
    let which = Which::of(int(which).cast_unsigned().into())?;
    let group = call.task.group();
    let timer = group.timers().interval(call.kernel, group, which);
    let before = timer.set(setting, false);
    if old != 0 {
        call.write(old, &itimerval(before))?;
    }
    Ok(0)
}

/// What `struct sigevent` says: the signal, and the value it carries; `None` for no signal.
struct Event {
    signal: Option<(i32, Option<u64>)>,
    thread: Option<i32>,
}

fn read_event(call: &Call<'_>, address: u64) -> Result<Event, Errno> {
    const SIGEV_SIGNAL: i32 = 0;
    const SIGEV_NONE: i32 = 1;
    const SIGEV_THREAD: i32 = 2;
    const SIGEV_THREAD_ID: i32 = 4;
    if address == 0 {
        return Ok(Event { signal: Some((libc::SIGALRM, None)), thread: None });
    }
    let bytes: [u8; 64] = call.read_array(address)?;
    let number = |at: usize| i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (signal, how, thread) = (number(8), number(12), number(16));
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[..8]);
    let value = Some(u64::from_le_bytes(value));
    match how {
        SIGEV_NONE => Ok(Event { signal: None, thread: None }),
        SIGEV_SIGNAL | SIGEV_THREAD if is_signal(signal) => {
            Ok(Event { signal: Some((signal, value)), thread: None })
        }
        SIGEV_THREAD_ID if is_signal(signal) => {
            Ok(Event { signal: Some((signal, value)), thread: Some(thread) })
        }
        _ => Err(Errno::EINVAL),
    }
}

fn sys_timer_create(call: &mut Call<'_>, [clock, event, id, ..]: [u64; 6]) -> SysResult {
    let number = int(clock);
    if number < 0 {
        // A number is told before it is looked whose clock of CPU time that is.
        call.write(id, &[0; 4])?;
    }
    let clock = Clock::of(call.task, number)?;
    match number {
        libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_MONOTONIC_COARSE => {
            return Err(Errno::EOPNOTSUPP.into());
        }
        _ => may_wake(call, number)?,
    }
    let event = read_event(call, event)?;
    let to = match event.thread {
        None => Receiver::Process(Arc::downgrade(call.task.group())),
        Some(pid) => {
            let thread = call.task.find(pid).ok_or(Errno::EINVAL)?;
            if thread.group().pid() != call.task.group().pid() {
                return Err(Errno::EINVAL.into());
            }
            Receiver::Thread(Arc::downgrade(&thread))
        }
    };
    let signal = |timer: i32| {
        let (signal, value) = event.signal?;
        let value = value.unwrap_or(u64::from(timer.unsigned_abs()));
        let payload = Payload::Timer { id: timer, overrun: 0, value };
        Some(SignalInfo { signal, errno: 0, code: SI_TIMER, payload })
    };
    let with = (&call.kernel.timers, call.kernel.clocks.clone());
    let timer = call.task.group().timers().create(with, &clock, signal, to)?;
    if let Err(errno) = call.write(id, &timer.to_le_bytes()) {
        // Nobody knows its number.
        let unknown = call.task.group().timers().delete(timer);
        drop(unknown);
        return Err(errno.into());
    }
    Ok(0)
}

fn sys_timer_settime(call: &mut Call<'_>, [id, flags, new, old, ..]: [u64; 6]) -> SysResult {
    if new == 0 {
        return Err(Errno::EINVAL.into());
    }
    let interval = read_timespec(call, new)?;
    let value = read_timespec(call, new.checked_add(16).ok_or(Errno::EFAULT)?)?;
    let timer = call.task.group().timers().posix(int(id))?;
    let before = timer.timer.set(Setting { value, interval }, int(flags) & TIMER_ABSTIME != 0);
    if old != 0 {
        call.write(old, &[timespec(before.interval), timespec(before.value)].concat())?;
    }
    Ok(0)
}

fn sys_timer_gettime(call: &mut Call<'_>, [id, address, ..]: [u64; 6]) -> SysResult {
    let setting = call.task.group().timers().posix(int(id))?.timer.get();
    call.write(address, &[timespec(setting.interval), timespec(setting.value)].concat())?;
    Ok(0)
}

fn sys_timer_getoverrun(call: &mut Call<'_>, [id, ..]: [u64; 6]) -> SysResult {
    let timer = call.task.group().timers().posix(int(id))?;
    Ok(u64::from(timer.overrun().unsigned_abs()))
}

fn sys_timer_delete(call: &mut Call<'_>, [id, ..]: [u64; 6]) -> SysResult {
    let timer = call.task.group().timers().delete(int(id))?;
    drop(timer);
    Ok(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::task::Task;
    use crate::task::signal::SignalSet;
    use crate::testing::{BASE, FlatThread};

    #[test]
    fn a_timer_sends_its_signal_once_and_counts_the_rest() {
        let kernel = Kernel::for_test();
        let task = Task::for_test(&kernel);
        let mut thread = FlatThread::new(4096);
        let mut call = Call { kernel: &kernel, task: &task, thread: &mut thread };
        let usr1 = SignalSet::of(&[libc::SIGUSR1]);
        task.set_signal_mask(usr1);
        let mut event = [0; 64];
        event[..8].copy_from_slice(&77_u64.to_le_bytes());
        event[8..12].copy_from_slice(&libc::SIGUSR1.to_le_bytes());
        call.write(BASE, &event).unwrap();
        assert_eq!(sys_timer_create(&mut call, [1, BASE, BASE + 64, 0, 0, 0]), Ok(0));
        let id = u64::from(call.read_u32(BASE + 64).unwrap());
        let ms = Duration::from_millis(5);
        call.write(BASE, &[timespec(ms), timespec(ms)].concat()).unwrap();
        assert_eq!(sys_timer_settime(&mut call, [id, 0, BASE, 0, 0, 0]), Ok(0));
        std::thread::sleep(Duration::from_millis(30));
        let info = task.take_signal(usr1).unwrap();
        let Payload::Timer { overrun, value, .. } = info.payload else { panic!("{info:?}") };
        assert!(overrun >= 2 && value == 77 && info.code == SI_TIMER, "{info:?}");
        assert_eq!(sys_timer_delete(&mut call, [id, 0, 0, 0, 0, 0]), Ok(0));
        assert_eq!(sys_timer_delete(&mut call, [id, 0, 0, 0, 0, 0]), Err(Errno::EINVAL.into()));
    }

    #[test]
    fn an_alarm_is_told_in_whole_seconds() {
        let kernel = Kernel::for_test();
        let task = Task::for_test(&kernel);
        let mut thread = FlatThread::new(4096);
        let mut call = Call { kernel: &kernel, task: &task, thread: &mut thread };
        assert_eq!(sys_alarm(&mut call, [100, 0, 0, 0, 0, 0]), Ok(0));
        assert_eq!(sys_alarm(&mut call, [0; 6]), Ok(100));
        assert_eq!(sys_alarm(&mut call, [0; 6]), Ok(0));
    }
}
