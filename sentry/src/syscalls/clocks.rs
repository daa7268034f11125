//! Clocks and sleeping.

use std::time::Duration;

use super::Entry;
use super::processes::int;
use crate::call::{Call, Unready};
use crate::error::{Errno, Restart, SysError, SysResult};
use crate::task::{RestartBlock, capability};
use crate::time::Clock;

pub(super) const CALLS: &[Entry] = &[
    Entry::full(libc::SYS_clock_gettime, "clock_gettime", sys_clock_gettime),
    Entry::partial(
        libc::SYS_clock_settime,
        "clock_settime",
        sys_clock_settime,
        "the clock is the host's: EPERM",
    ),
    Entry::full(libc::SYS_clock_getres, "clock_getres", sys_clock_getres),
    Entry::full(libc::SYS_clock_nanosleep, "clock_nanosleep", sys_clock_nanosleep),
    Entry::full(libc::SYS_nanosleep, "nanosleep", sys_nanosleep),
    Entry::full(libc::SYS_gettimeofday, "gettimeofday", sys_gettimeofday),
    Entry::partial(
        libc::SYS_settimeofday,
        "settimeofday",
        sys_settimeofday,
        "the clock is the host's: EPERM",
    ),
    Entry::full(libc::SYS_time, "time", sys_time),
    Entry::partial(libc::SYS_adjtimex, "adjtimex", sys_adjtimex, READ_ONLY),
    Entry::partial(libc::SYS_clock_adjtime, "clock_adjtime", sys_clock_adjtime, READ_ONLY),
];

const READ_ONLY: &str =
    "the clock is the host's: it tells a clock that nobody keeps right, and changes are EPERM";
const TIMER_ABSTIME: u64 = 1;
/// How often CPU time is looked at by who sleeps by it.
const TICK: Duration = Duration::from_millis(4);

/// As `struct timespec`.
pub(super) fn timespec(time: Duration) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&time.as_secs().to_le_bytes());
    bytes[8..].copy_from_slice(&u64::from(time.subsec_nanos()).to_le_bytes());
    bytes
}

/// Out of seconds and a fraction of which `whole` make one.
fn duration(bytes: [u8; 16], whole: u32) -> Result<Duration, Errno> {
    let value = u128::from_le_bytes(bytes);
    let seconds = u64::try_from(value & u128::from(u64::MAX)).map_err(|_| Errno::EINVAL)?;
    let fraction = u64::try_from(value >> 64).map_err(|_| Errno::EINVAL)?;
    let fraction = u32::try_from(fraction).ok().filter(|fraction| *fraction < whole).ok_or(Errno::EINVAL)?;
    // Seconds are signed: those below 0 are not valid.
    if i64::try_from(seconds).is_err() {
        return Err(Errno::EINVAL);
    }
    let nanoseconds = fraction.checked_mul(1_000_000_000 / whole).ok_or(Errno::EINVAL)?;
    Ok(Duration::new(seconds, nanoseconds))
}

/// A `struct timespec` of a program.
///
/// # Errors
/// EFAULT; EINVAL for what is negative, and for nanoseconds that make a second.
pub(super) fn read_timespec(call: &Call<'_>, address: u64) -> Result<Duration, Errno> {
    duration(call.read_array_early(address)?, 1_000_000_000)
}

/// A `struct timeval` of a program.
///
/// # Errors
/// As [`read_timespec`].
pub(super) fn read_timeval(call: &Call<'_>, address: u64) -> Result<Duration, Errno> {
    duration(call.read_array(address)?, 1_000_000)
}

/// As `struct timeval`.
pub(super) fn timeval(time: Duration) -> [u8; 16] {
    let mut bytes = timespec(time);
    bytes[8..].copy_from_slice(&u64::from(time.subsec_micros()).to_le_bytes());
    bytes
}

fn sys_clock_gettime(call: &mut Call<'_>, [clock, address, ..]: [u64; 6]) -> SysResult {
    let (number, clocks) = (int(clock), &call.kernel.clocks);
    // By the host's vDSO, where it has no clock that it can read: our vDSO adds to it what has to be added.
    let host = call.kernel.platform.host_vdso();
    let hosts = host.is_some_and(|host| host.code().contains(&call.thread.called_from()));
    let now = match clocks.of_number(number, hosts) {
        Some(now) => now,
        None => Clock::of(call.task, number)?.now(clocks),
    };
    call.write(address, &timespec(now))?;
    Ok(0)
}

fn sys_clock_settime(call: &mut Call<'_>, [clock, address, ..]: [u64; 6]) -> SysResult {
    read_timespec(call, address)?;
    match int(clock) {
        libc::CLOCK_REALTIME => Err(Errno::EPERM.into()),
        _ => Err(Errno::EINVAL.into()),
    }
}

fn sys_settimeofday(call: &mut Call<'_>, [time, ..]: [u64; 6]) -> SysResult {
    if time != 0 {
        read_timeval(call, time)?;
    }
    Err(Errno::EPERM.into())
}

fn sys_clock_getres(call: &mut Call<'_>, [clock, address, ..]: [u64; 6]) -> SysResult {
    let clock = int(clock);
    Clock::of(call.task, clock)?;
    let coarse = matches!(clock, libc::CLOCK_REALTIME_COARSE | libc::CLOCK_MONOTONIC_COARSE);
    if address != 0 {
        let fine = Duration::from_nanos(1);
        call.write(address, &timespec(if coarse { call.kernel.clocks.coarse() } else { fine }))?;
    }
    Ok(0)
}

fn sys_gettimeofday(call: &mut Call<'_>, [time, zone, ..]: [u64; 6]) -> SysResult {
    if time != 0 {
        call.write(time, &timeval(call.kernel.clocks.realtime()))?;
    }
    if zone != 0 {
        call.write(zone, &[0; 8])?;
    }
    Ok(0)
}

/// Bytes of `struct timex`.
const TIMEX: usize = 208;

fn sys_adjtimex(call: &mut Call<'_>, [address, ..]: [u64; 6]) -> SysResult {
    /// What `adjtime` asks for, and what only looks (`include/uapi/linux/timex.h`).
    const ADJTIME: u32 = 0x8000;
    const SINGLE_SHOT: u32 = 1;
    const LOOKS: u32 = 0x2000;
    /// The clock is not known to be right; so is the result.
    const UNSYNCHRONISED: u32 = 0x40;
    const TIME_ERROR: u64 = 5;
    let given: [u8; TIMEX] = call.read_array(address)?;
    let modes = u32::from_le_bytes([given[0], given[1], given[2], given[3]]);
    let changes = match modes {
        modes if modes & ADJTIME != 0 && modes & SINGLE_SHOT == 0 => return Err(Errno::EINVAL.into()),
        modes if modes & ADJTIME != 0 => modes & LOOKS == 0,
        modes => modes != 0,
    };
    if changes {
        return Err(Errno::EPERM.into());
    }
    let mut bytes = [0; TIMEX];
    let mut put = |at: usize, value: &[u8]| {
        bytes.iter_mut().skip(at).zip(value).for_each(|(place, byte)| *place = *byte);
    };
    put(0, &modes.to_le_bytes());
    // Largest and estimated error, in microseconds: as large as they are told (NTP_PHASE_LIMIT).
    put(24, &16_000_000_u64.to_le_bytes());
    put(32, &16_000_000_u64.to_le_bytes());
    put(40, &UNSYNCHRONISED.to_le_bytes());
    // Time constant, precision, tolerance.
    put(48, &2_u64.to_le_bytes());
    put(56, &1_u64.to_le_bytes());
    put(64, &32_768_000_u64.to_le_bytes());
    put(72, &timeval(call.kernel.clocks.realtime()));
    // Microseconds of a tick.
    put(88, &10_000_u64.to_le_bytes());
    call.write(address, &bytes)?;
    Ok(TIME_ERROR)
}

fn sys_clock_adjtime(call: &mut Call<'_>, [clock, address, ..]: [u64; 6]) -> SysResult {
    let clock = int(clock);
    Clock::of(call.task, clock)?;
    if clock != libc::CLOCK_REALTIME {
        return Err(Errno::EOPNOTSUPP.into());
    }
    sys_adjtimex(call, [address, 0, 0, 0, 0, 0])
}

fn sys_time(call: &mut Call<'_>, [address, ..]: [u64; 6]) -> SysResult {
    let seconds = call.kernel.clocks.realtime().as_secs();
    if address != 0 {
        call.write(address, &seconds.to_le_bytes())?;
    }
    Ok(seconds)
}

/// Sleeps until the clock shows `until`.
fn sleep(call: &mut Call<'_>, clock: &Clock, until: Duration) -> Result<(), Unready> {
    let clocks = call.kernel.clocks.clone();
    loop {
        let deadline = match clock {
            Clock::Realtime => clocks.instant_of_realtime(until),
            Clock::Monotonic => clocks.instant(until),
            cpu => {
                let left = until.saturating_sub(cpu.now(&clocks));
                clocks.instant(clocks.monotonic().saturating_add(left.clamp(TICK, TICK * 8)))
            }
        };
        if clock.now(&clocks) >= until {
            return Ok(());
        }
        match call.block::<()>(&[], Some(deadline), |_| None) {
            Ok(()) | Err(Unready::TimedOut) => {}
            Err(Unready::Interrupted) => return Err(Unready::Interrupted),
        }
    }
}

/// Goes on with a sleep that was interrupted.
pub(super) fn sleep_again(call: &mut Call<'_>, restart: RestartBlock) -> SysResult {
    sleep_relative(call, restart.clock, restart.until, restart.left_to)
}

/// Sleeps for a time; what is left of it is told, and slept where no handler ran.
fn sleep_relative(call: &mut Call<'_>, clock: Clock, until: Duration, left_to: u64) -> SysResult {
    if sleep(call, &clock, until).is_ok() {
        return Ok(0);
    }
    let left = until.saturating_sub(clock.now(&call.kernel.clocks));
    if left.is_zero() {
        return Ok(0);
    }
    if left_to != 0 {
        call.write(left_to, &timespec(left))?;
    }
    call.task.set_restart(RestartBlock { clock, until, left_to });
    Err(SysError::Interrupted(Restart::Block))
}

fn sys_nanosleep(call: &mut Call<'_>, [time, left_to, ..]: [u64; 6]) -> SysResult {
    let time = read_timespec(call, time)?;
    let until = call.kernel.clocks.monotonic().saturating_add(time);
    sleep_relative(call, Clock::Monotonic, until, left_to)
}

fn sys_clock_nanosleep(call: &mut Call<'_>, [clock, flags, time, left_to, ..]: [u64; 6]) -> SysResult {
    let number = int(clock);
    if number < 0 {
        // Whose clock of CPU time it is is looked up after the time was read.
        read_timespec(call, time)?;
    }
    let clock = Clock::of(call.task, number)?;
    match number {
        libc::CLOCK_THREAD_CPUTIME_ID
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_REALTIME_COARSE
        | libc::CLOCK_MONOTONIC_COARSE => return Err(Errno::EOPNOTSUPP.into()),
        _ => {}
    }
    let time = read_timespec(call, time)?;
    if flags & TIMER_ABSTIME != 0 {
        let interrupted = SysError::Interrupted(Restart::WithoutHandler);
        return sleep(call, &clock, time).map(|()| 0).map_err(|_| interrupted);
    }
    // A time from now on does not change with the clock.
    let clock = if matches!(clock, Clock::Realtime) { Clock::Monotonic } else { clock };
    let until = clock.now(&call.kernel.clocks).saturating_add(time);
    sleep_relative(call, clock, until, left_to)
}

/// Whether alarms of the machine may be set (`CLOCK_BOOTTIME_ALARM`): there is no machine to wake.
pub(super) fn may_wake(call: &Call<'_>, clock: i32) -> Result<(), Errno> {
    let alarm = matches!(clock, libc::CLOCK_REALTIME_ALARM | libc::CLOCK_BOOTTIME_ALARM);
    // CAP_WAKE_ALARM is 35.
    if alarm && !call.task.credentials().capable(35) && !call.task.credentials().capable(capability::SYS_TIME)
    {
        return Err(Errno::EPERM);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::task::Task;
    use crate::task::signal::SignalInfo;
    use crate::testing::{BASE, FlatThread};

    #[test]
    fn times_of_programs_are_checked() {
        let of = |seconds: i64, fraction: i64| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&seconds.to_le_bytes());
            bytes[8..].copy_from_slice(&fraction.to_le_bytes());
            bytes
        };
        assert_eq!(duration(of(1, 2), 1_000_000_000), Ok(Duration::new(1, 2)));
        assert_eq!(duration(of(1, 2), 1_000_000), Ok(Duration::new(1, 2000)));
        for (seconds, fraction) in [(-1, 0), (0, -1), (0, 1_000_000), (i64::MIN, 0)] {
            assert_eq!(duration(of(seconds, fraction), 1_000_000), Err(Errno::EINVAL));
        }
    }

    /// A host whose clock cannot be read without a call: the vDSO of guests adds what is to be added.
    #[test]
    fn the_hosts_vdso_is_told_the_hosts_time() {
        const DATA: u64 = 0x50_0000;
        let kernel = Kernel::new(crate::platform::Kind::Systrap.start().unwrap());
        let task = Task::for_test(&kernel);
        let host = kernel.platform.host_vdso().unwrap();
        let syscall = host.bytes().windows(2).position(|two| two == [0x0f, 0x05]).unwrap() as u64;
        let mut thread = kernel.platform.new_address_space().unwrap();
        let map = crate::platform::MemoryCall::Map {
            address: DATA,
            length: 4096,
            protection: libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            flags: libc::MAP_PRIVATE,
            file: None,
        };
        thread.change_memory(&map).unwrap();
        assert_eq!(thread.write(DATA, &[0x0f, 0x05]), 2);
        for (place, hosts) in [(host.code().start + syscall, true), (DATA, false)] {
            (thread.regs().rip, thread.regs().rax) = (place, libc::SYS_clock_gettime.unsigned_abs());
            assert_eq!(thread.resume(), crate::platform::Trap::Syscall { number: 228 });
            let mut call = Call { kernel: &kernel, task: &task, thread: thread.as_mut() };
            for clock in [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_MONOTONIC_RAW] {
                let number = u64::from(clock.unsigned_abs());
                let before = kernel.clocks.of_number(clock, hosts).unwrap();
                assert_eq!(sys_clock_gettime(&mut call, [number, DATA + 64, 0, 0, 0, 0]), Ok(0));
                let shown = read_timespec(&call, DATA + 64).unwrap();
                let after = kernel.clocks.of_number(clock, hosts).unwrap();
                assert!(before <= shown && shown <= after, "{clock} {hosts}: {before:?} {shown:?} {after:?}");
            }
        }
    }

    #[test]
    fn a_sleep_that_a_signal_ends_tells_what_is_left() {
        let kernel = Kernel::for_test();
        let task = Task::for_test(&kernel);
        let mut thread = FlatThread::new(4096);
        let mut call = Call { kernel: &kernel, task: &task, thread: &mut thread };
        call.write(BASE, &timespec(Duration::from_millis(5))).unwrap();
        assert_eq!(sys_nanosleep(&mut call, [BASE, 0, 0, 0, 0, 0]), Ok(0));
        call.write(BASE, &timespec(Duration::from_secs(1000))).unwrap();
        let action = crate::task::signal::SigAction { handler: 0x1000, ..Default::default() };
        task.set_action(libc::SIGUSR1, action).unwrap();
        task.send_signal(SignalInfo::kernel(libc::SIGUSR1)).unwrap();
        let result = sys_nanosleep(&mut call, [BASE, BASE + 16, 0, 0, 0, 0]);
        assert_eq!(result, Err(SysError::Interrupted(Restart::Block)));
        let left = read_timespec(&call, BASE + 16).unwrap();
        assert!(left > Duration::from_secs(990) && left < Duration::from_secs(1000), "{left:?}");
        assert!(task.take_restart().is_some());
    }
}
