//! Futexes and robust lists (`kernel/futex/syscalls.c`).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Entry;
use crate::call::{Call, Unready};
use crate::error::{Errno, Restart, SysError, SysResult};
use crate::mm::AddressSpace;
use crate::mm::futex::{ANY, Ended, HEAD_BYTES, Key, Operation, Sleeper};
use crate::task::Pid;

/// `FUTEX_PRIVATE_FLAG`.
const PRIVATE: i32 = 128;
/// `FUTEX_CLOCK_REALTIME`.
const REALTIME: i32 = 256;
/// `FUTEX_LOCK_PI2`, which `libc` does not name.
const LOCK_PI2: i32 = 13;
/// Words of one `futex_waitv` (`FUTEX_WAITV_MAX`).
const MAX_WORDS: u64 = 128;
/// `FUTEX2_SIZE_U32`.
const SIZE_U32: u32 = 2;
/// `FUTEX2_PRIVATE`.
const PRIVATE2: u32 = 128;
/// `CAP_SYS_PTRACE`.
const CAP_SYS_PTRACE: u32 = 19;

/// `futex_wake` and `futex_wait` of Linux 6.7.
const SYS_FUTEX_WAKE: i64 = 454;
const SYS_FUTEX_WAIT: i64 = 455;

pub(super) const CALLS: &[Entry] = &[
    Entry::partial(
        libc::SYS_futex,
        "futex",
        futex,
        "priorities; after a stop a relative time-out begins anew",
    ),
    Entry::full(libc::SYS_futex_waitv, "futex_waitv", futex_waitv),
    Entry::full(SYS_FUTEX_WAKE, "futex_wake", futex_wake),
    Entry::full(SYS_FUTEX_WAIT, "futex_wait", futex_wait),
    Entry::full(libc::SYS_set_robust_list, "set_robust_list", set_robust_list),
    Entry::full(libc::SYS_get_robust_list, "get_robust_list", get_robust_list),
];

/// Which clock a time-out is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clock {
    Relative,
    Monotonic,
    Real,
}

/// When a time-out at `address` comes: `None` where there is none, or where it is too far to be told.
fn deadline(call: &Call<'_>, address: u64, clock: Clock) -> Result<Option<Instant>, Errno> {
    if address == 0 {
        return Ok(None);
    }
    let seconds = call.read_u64(address)?.cast_signed();
    let nanoseconds = call.read_u64(address.checked_add(8).ok_or(Errno::EFAULT)?)?;
    let seconds = u64::try_from(seconds).map_err(|_| Errno::EINVAL)?;
    let nanoseconds = u32::try_from(nanoseconds).ok().filter(|nanoseconds| *nanoseconds < 1_000_000_000);
    let until = Duration::new(seconds, nanoseconds.ok_or(Errno::EINVAL)?);
    let left = match clock {
        Clock::Relative => until,
        Clock::Monotonic => until.saturating_sub(call.kernel.clocks.monotonic()),
        Clock::Real => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            until.saturating_sub(now)
        }
    };
    Ok(Instant::now().checked_add(left))
}

/// What the guest gets when a wait ends so. `again` is how an interrupted call goes on.
fn ended(ended: Ended, again: Restart) -> SysError {
    match ended {
        Ended::Errno(errno) => SysError::Errno(errno),
        Ended::Unready(Unready::TimedOut) => SysError::Errno(Errno::ETIMEDOUT),
        Ended::Unready(Unready::Interrupted) => SysError::Interrupted(again),
    }
}

/// Without a time-out a wait is made again as the handler asks; with one, only where no handler ran (ERESTART_RESTARTBLOCK).
fn wait_again(deadline: Option<Instant>) -> Restart {
    if deadline.is_none() { Restart::IfAsked } else { Restart::WithoutHandler }
}

/// Runs `body` with how the caller sleeps.
fn sleeping<T>(
    call: &mut Call<'_>,
    deadline: Option<Instant>,
    body: impl FnOnce(&mut Call<'_>, &Sleeper<'_>) -> T,
) -> T {
    let task = Arc::clone(call.task);
    let interrupted = || task.signal_pending();
    let sleeper = Sleeper {
        task: task.own_number(),
        space: task.pid_namespace().meta().number(),
        waiter: task.waiter(),
        interrupted: &interrupted,
        deadline,
    };
    body(call, &sleeper)
}

/// Where a word lies that is of one address space, as its callers say: then some of them may wait for it without the sentry.
fn private(key: Key) -> Option<u64> {
    if let Key::Private { shared: false, address, .. } = key { Some(address) } else { None }
}

/// Tells the platform how many more wait for these words.
fn count(call: &mut Call<'_>, keys: &[Key], more: i32) {
    for address in keys.iter().copied().filter_map(private) {
        call.thread.count_sleepers(address, more);
    }
}

/// Runs `body`, a wait for words of these keys, with the platform told of it. Others may move who waits to other keys: `body` then says so.
fn counted<T>(call: &mut Call<'_>, keys: &mut [Key], body: impl FnOnce(&mut Call<'_>, &mut [Key]) -> T) -> T {
    count(call, keys, 1);
    let result = body(call, keys);
    count(call, keys, -1);
    result
}

/// More than ever wait for one word.
const MANY: i32 = 1 << 24;

/// Wakes so many at a word of whom the sentry does not know.
fn wake_others(call: &mut Call<'_>, key: Key, count: usize, bitset: u32) -> usize {
    private(key).map_or(0, |address| call.thread.wake_sleepers(address, count, bitset))
}

fn wait(
    call: &mut Call<'_>,
    (key, address): (Key, u64),
    value: u32,
    bitset: u32,
    deadline: Option<Instant>,
) -> SysResult {
    let result = counted(call, &mut [key], |call, keys| {
        sleeping(call, deadline, |call, sleeper| {
            let space = call.task.space();
            space.futexes().wait(call.thread, sleeper, (&mut keys[0], address), value, bitset)
        })
    });
    result.map(|()| 0).map_err(|end| ended(end, wait_again(deadline)))
}

/// Linux wakes one where none or less is asked for.
fn at_least_one(count: u32) -> usize {
    usize::try_from(count.cast_signed()).unwrap_or(1).max(1)
}

/// Numbers of a requeue: negative ones are refused.
fn counts(wake: u32, move_on: u32) -> Result<(usize, usize), Errno> {
    let count = |number: u32| usize::try_from(number.cast_signed()).map_err(|_| Errno::EINVAL);
    Ok((count(wake)?, count(move_on)?))
}

fn alive<'a>(call: &Call<'a>) -> impl Fn(Pid) -> bool + use<'a> {
    let task: &'a Arc<_> = call.task;
    move |pid| task.find(pid).is_some()
}

/// Arguments of `futex`, most of which mean something else with each command.
struct Arguments {
    command: i32,
    private: bool,
    /// The clock of a time-out that is no length of time.
    absolute: Clock,
    address: u64,
    value: u32,
    /// Address of a time-out, or a number.
    timeout: u64,
    second: u64,
    third: u32,
}

impl Arguments {
    fn decode([address, operation, value, timeout, second, third]: [u64; 6]) -> Result<Self, Errno> {
        let operation = (operation as u32).cast_signed();
        let command = operation & !(PRIVATE | REALTIME);
        let realtime = operation & REALTIME != 0;
        let takes_clock = matches!(command, libc::FUTEX_WAIT_BITSET | libc::FUTEX_WAIT_REQUEUE_PI | LOCK_PI2);
        if realtime && !takes_clock {
            return Err(Errno::ENOSYS);
        }
        let absolute = if realtime { Clock::Real } else { Clock::Monotonic };
        let private = operation & PRIVATE != 0;
        let (value, third) = (value as u32, third as u32);
        Ok(Self { command, private, absolute, address, value, timeout, second, third })
    }

    fn first(&self, space: &AddressSpace) -> Result<(Key, u64), Errno> {
        Ok((Key::of(space, self.address, self.private)?, self.address))
    }

    fn second(&self, space: &AddressSpace) -> Result<(Key, u64), Errno> {
        Ok((Key::of(space, self.second, self.private)?, self.second))
    }
}

fn futex(call: &mut Call<'_>, arguments: [u64; 6]) -> SysResult {
    let arguments = Arguments::decode(arguments)?;
    match arguments.command {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => wait_command(call, &arguments),
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET | libc::FUTEX_WAKE_OP => wake_command(call, &arguments),
        libc::FUTEX_REQUEUE | libc::FUTEX_CMP_REQUEUE | libc::FUTEX_CMP_REQUEUE_PI => {
            requeue_command(call, &arguments)
        }
        libc::FUTEX_LOCK_PI
        | libc::FUTEX_TRYLOCK_PI
        | LOCK_PI2
        | libc::FUTEX_UNLOCK_PI
        | libc::FUTEX_WAIT_REQUEUE_PI => lock_command(call, &arguments),
        _ => Err(Errno::ENOSYS.into()),
    }
}

fn wait_command(call: &mut Call<'_>, arguments: &Arguments) -> SysResult {
    let bits = arguments.command == libc::FUTEX_WAIT_BITSET;
    let (clock, bitset) = if bits { (arguments.absolute, arguments.third) } else { (Clock::Relative, ANY) };
    let deadline = deadline(call, arguments.timeout, clock)?;
    let place = arguments.first(&call.task.space())?;
    wait(call, place, arguments.value, bitset, deadline)
}

fn wake_command(call: &mut Call<'_>, arguments: &Arguments) -> SysResult {
    let space = call.task.space();
    let count = at_least_one(arguments.value);
    let (key, _) = arguments.first(&space)?;
    if arguments.command == libc::FUTEX_WAKE_OP {
        let operation = Operation::decode(arguments.third)?;
        let more = at_least_one(arguments.timeout as u32);
        let second = arguments.second(&space)?;
        let (woken, at_second) =
            space.futexes().wake_op(call.thread, key, second, (count, more), operation)?;
        let woken = woken + wake_others(call, key, count - woken, ANY);
        let Some(also) = at_second else { return Ok(woken as u64) };
        return Ok((woken + also + wake_others(call, second.0, more - also, ANY)) as u64);
    }
    let bitset = if arguments.command == libc::FUTEX_WAKE_BITSET { arguments.third } else { ANY };
    let woken = space.futexes().wake(key, count, bitset)?;
    Ok((woken + wake_others(call, key, count - woken, bitset)) as u64)
}

fn requeue_command(call: &mut Call<'_>, arguments: &Arguments) -> SysResult {
    let counts = counts(arguments.value, arguments.timeout as u32)?;
    let (wake, move_on) = counts;
    let space = call.task.space();
    let (from, to) = (arguments.first(&space)?, arguments.second(&space)?);
    let (keys, compare) = ((from.0, to.0), (from.1, arguments.third));
    let done = match arguments.command {
        libc::FUTEX_CMP_REQUEUE_PI => {
            if wake != 1 {
                return Err(Errno::EINVAL.into());
            }
            let alive = alive(call);
            space.futexes().requeue_to_lock(call.thread, keys, to.1, move_on, compare, &alive)?
        }
        command => {
            let compare = (command == libc::FUTEX_CMP_REQUEUE).then_some(compare);
            // Whoever is moved is counted where they come before anybody can look for them there.
            count(call, &[to.0], MANY);
            let done = space.futexes().requeue(call.thread, keys, counts, compare);
            let moved = done.map_or(0, |(_, moved)| moved as i32);
            count(call, &[from.0], -moved);
            count(call, &[to.0], moved - MANY);
            let (woken, moved) = done?;
            let left = (wake - woken, move_on - moved);
            let value = compare.map(|(_, value)| value);
            let others = if private(from.0).is_some() {
                call.thread.move_sleepers((from.1, to.1), left, value)
            } else {
                0
            };
            woken + moved + others
        }
    };
    Ok(done as u64)
}

fn lock_command(call: &mut Call<'_>, arguments: &Arguments) -> SysResult {
    let space = call.task.space();
    let place = arguments.first(&space)?;
    match arguments.command {
        libc::FUTEX_UNLOCK_PI => {
            let task = call.task.own_number();
            space.futexes().unlock(call.thread, task, place)?;
            Ok(0)
        }
        libc::FUTEX_WAIT_REQUEUE_PI => {
            let deadline = deadline(call, arguments.timeout, arguments.absolute)?;
            let (to, what) = (arguments.second(&space)?, (arguments.value, arguments.third));
            let result = sleeping(call, deadline, |call, sleeper| {
                space.futexes().wait_for_lock(call.thread, sleeper, place, what, to)
            });
            result.map(|()| 0).map_err(|end| ended(end, Restart::Always))
        }
        libc::FUTEX_TRYLOCK_PI => lock(call, place, true, None),
        command => {
            // Only the newer call can name its clock.
            let clock = if command == LOCK_PI2 { arguments.absolute } else { Clock::Real };
            let deadline = deadline(call, arguments.timeout, clock)?;
            lock(call, place, false, deadline)
        }
    }
}

fn lock(call: &mut Call<'_>, place: (Key, u64), only_try: bool, deadline: Option<Instant>) -> SysResult {
    let alive = alive(call);
    let result = sleeping(call, deadline, |call, sleeper| {
        let space = call.task.space();
        space.futexes().lock(call.thread, sleeper, place, only_try, &alive)
    });
    result.map(|()| 0).map_err(|end| ended(end, Restart::Always))
}

/// Flags of the calls of `futex2`: words of 32 bits, private or not.
fn is_private(flags: u64) -> Result<bool, Errno> {
    let flags = u32::try_from(flags).map_err(|_| Errno::EINVAL)?;
    if flags & !PRIVATE2 == SIZE_U32 { Ok(flags & PRIVATE2 != 0) } else { Err(Errno::EINVAL) }
}

fn clock(number: u64) -> Result<Clock, Errno> {
    match (number as u32).cast_signed() {
        libc::CLOCK_MONOTONIC => Ok(Clock::Monotonic),
        libc::CLOCK_REALTIME => Ok(Clock::Real),
        _ => Err(Errno::EINVAL),
    }
}

fn futex_waitv(call: &mut Call<'_>, [waiters, count, flags, timeout, clock_id, _]: [u64; 6]) -> SysResult {
    if flags as u32 != 0 || count as u32 == 0 || u64::from(count as u32) > MAX_WORDS || waiters == 0 {
        return Err(Errno::EINVAL.into());
    }
    let deadline = if timeout == 0 { None } else { deadline(call, timeout, clock(clock_id)?)? };
    let mut bytes = vec![0; count as u32 as usize * 24];
    call.read(waiters, &mut bytes)?;
    let space = call.task.space();
    let (mut keys, mut words) = (Vec::new(), Vec::new());
    for waiter in bytes.chunks_exact(24) {
        let number = |at: usize| waiter[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let (value, address, last) = (number(0), number(8), number(16));
        // The last four bytes are reserved.
        let private = is_private(last)?;
        let key = Key::of(&space, address, private)?;
        keys.push(key);
        words.push((address, value as u32));
    }
    let result = counted(call, &mut keys, |call, keys| {
        sleeping(call, deadline, |call, sleeper| {
            let space = call.task.space();
            space.futexes().wait_any(call.thread, sleeper, keys, &words)
        })
    });
    result.map(|index| index as u64).map_err(|end| ended(end, wait_again(deadline)))
}

fn futex_wake(call: &mut Call<'_>, [address, mask, count, flags, ..]: [u64; 6]) -> SysResult {
    let space = call.task.space();
    let key = Key::of(&space, address, is_private(flags & 0xffff_ffff)?)?;
    let mask = u32::try_from(mask).map_err(|_| Errno::EINVAL)?;
    // Unlike the old call, none is none.
    let count = if count as u32 == 0 { 0 } else { at_least_one(count as u32) };
    let woken = space.futexes().wake(key, count, mask)?;
    Ok((woken + wake_others(call, key, count - woken, mask)) as u64)
}

fn futex_wait(call: &mut Call<'_>, [address, value, mask, flags, timeout, clock_id]: [u64; 6]) -> SysResult {
    let private = is_private(flags & 0xffff_ffff)?;
    let number = |register| u32::try_from(register).map_err(|_| Errno::EINVAL);
    let (value, mask) = (number(value)?, number(mask)?);
    let deadline = if timeout == 0 { None } else { deadline(call, timeout, clock(clock_id)?)? };
    let key = Key::of(&call.task.space(), address, private)?;
    wait(call, (key, address), value, mask, deadline)
}

fn set_robust_list(call: &mut Call<'_>, [head, length, ..]: [u64; 6]) -> SysResult {
    if length != HEAD_BYTES {
        return Err(Errno::EINVAL.into());
    }
    call.task.space().set_robust_list(call.task.pid(), head);
    Ok(0)
}

fn get_robust_list(call: &mut Call<'_>, [pid, head, length, ..]: [u64; 6]) -> SysResult {
    let pid = (pid as u32).cast_signed();
    let found = if pid == 0 || pid == call.task.own_number() {
        call.task.space().robust_list(call.task.pid())
    } else {
        let other = call.task.find(pid).ok_or(Errno::ESRCH)?;
        let (mine, theirs) = (call.task.credentials(), other.credentials());
        if mine.uid != theirs.uid && !mine.capable(CAP_SYS_PTRACE) {
            return Err(Errno::EPERM.into());
        }
        other.space().robust_list(pid)
    };
    call.write(length, &HEAD_BYTES.to_le_bytes())?;
    call.write(head, &found.to_le_bytes())?;
    Ok(0)
}
