//! Processes: their beginning, their end, waiting for them, groups and sessions.

use super::Entry;
use crate::call::Call;
use crate::error::{Errno, Restart, SysError, SysResult};
use crate::events::Events;
use crate::task::{CloneArgs, CpuTimes, Pid, WaitOptions, WaitTarget, Waited, clone};

pub(super) const CALLS: &[Entry] = &[
    Entry::partial(libc::SYS_clone, "clone", sys_clone, "CLONE_NEWTIME"),
    Entry::partial(libc::SYS_clone3, "clone3", sys_clone3, "CLONE_NEWTIME, CLONE_INTO_CGROUP"),
    Entry::full(libc::SYS_fork, "fork", sys_fork),
    Entry::full(libc::SYS_vfork, "vfork", sys_vfork),
    Entry::full(libc::SYS_exit, "exit", sys_exit),
    Entry::full(libc::SYS_exit_group, "exit_group", sys_exit_group),
    Entry::full(libc::SYS_wait4, "wait4", sys_wait4),
    Entry::full(libc::SYS_waitid, "waitid", sys_waitid),
    Entry::full(libc::SYS_getpid, "getpid", sys_getpid),
    Entry::full(libc::SYS_gettid, "gettid", sys_gettid),
    Entry::full(libc::SYS_getppid, "getppid", sys_getppid),
    Entry::full(libc::SYS_getpgrp, "getpgrp", sys_getpgrp),
    Entry::full(libc::SYS_getpgid, "getpgid", sys_getpgid),
    Entry::full(libc::SYS_setpgid, "setpgid", sys_setpgid),
    Entry::full(libc::SYS_getsid, "getsid", sys_getsid),
    Entry::full(libc::SYS_setsid, "setsid", sys_setsid),
    Entry::full(libc::SYS_set_tid_address, "set_tid_address", sys_set_tid_address),
];

/// The low bits of `clone`'s flags are a signal.
const SIGNAL_BITS: u64 = 0xff;
const CLONE_VM: u64 = 0x100;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_DETACHED: u64 = 0x40_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;

/// A number of a task as a call gives it back.
fn number(pid: Pid) -> SysResult {
    Ok(u64::from(pid.unsigned_abs()))
}

/// The low half of a register, as an `int`.
#[allow(clippy::cast_possible_truncation, reason = "the upper half of an int's register has no meaning")]
pub(super) fn int(value: u64) -> i32 {
    (value as u32).cast_signed()
}

fn sys_clone(call: &mut Call<'_>, [flags, stack, parent_tid, child_tid, tls, _]: [u64; 6]) -> SysResult {
    let flags = flags & u64::from(u32::MAX);
    if flags & CLONE_PIDFD != 0 && flags & (CLONE_DETACHED | CLONE_PARENT_SETTID) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let exit_signal = int(flags & SIGNAL_BITS);
    let flags = flags & !SIGNAL_BITS;
    let args = CloneArgs {
        flags,
        exit_signal,
        stack,
        tls,
        parent_tid,
        pidfd: parent_tid,
        child_tid,
        ..CloneArgs::default()
    };
    clone(call, &args).and_then(number)
}

fn sys_clone3(call: &mut Call<'_>, [address, size, ..]: [u64; 6]) -> SysResult {
    /// `CLONE_ARGS_SIZE_VER0` and the size with everything that is known.
    const SIZES: std::ops::RangeInclusive<u64> = 64..=4096;
    const KNOWN: usize = 88;
    if size > *SIZES.end() {
        return Err(Errno::E2BIG.into());
    }
    if size < *SIZES.start() {
        return Err(Errno::EINVAL.into());
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| Errno::E2BIG)?.max(KNOWN)];
    let length = usize::try_from(size).map_err(|_| Errno::E2BIG)?;
    call.read_early(address, &mut bytes[..length])?;
    if bytes[KNOWN..].iter().any(|byte| *byte != 0) {
        return Err(Errno::E2BIG.into());
    }
    let field = |at: usize| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
        u64::from_le_bytes(eight)
    };
    let [flags, exit_signal, stack, stack_size, cgroup] = [0, 4, 5, 6, 10].map(field);
    let (numbers, numbered) = read_numbers(call, field(8), field(9))?;
    let invalid = flags & (CLONE_DETACHED | 0x7f) != 0
        || exit_signal > 64
        || flags & (CLONE_THREAD | CLONE_PARENT) != 0 && exit_signal != 0
        || (stack == 0) != (stack_size == 0)
        || cgroup != 0 && flags & 0x2_0000_0000 != 0;
    if invalid {
        return Err(Errno::EINVAL.into());
    }
    let args = CloneArgs {
        flags,
        exit_signal: int(exit_signal),
        stack: stack.checked_add(stack_size).ok_or(Errno::EINVAL)?,
        tls: field(7),
        parent_tid: field(3),
        pidfd: field(1),
        child_tid: field(2),
        numbers,
        numbered,
    };
    clone(call, &args).and_then(number)
}

/// The numbers that a new task is to have (`set_tid`, `set_tid_size`).
fn read_numbers(call: &Call<'_>, address: u64, count: u64) -> Result<([Pid; 33], usize), Errno> {
    /// `MAX_PID_NS_LEVEL`.
    const MOST: u64 = 32;
    if count > MOST || (address == 0) != (count == 0) {
        return Err(Errno::EINVAL);
    }
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    let mut bytes = [0; 4 * 33];
    call.read(address, bytes.get_mut(..count * 4).unwrap_or_default())?;
    let mut numbers = [0; 33];
    for (number, four) in numbers.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *number = Pid::from_le_bytes(*four);
    }
    Ok((numbers, count))
}

fn sys_fork(call: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    let args = CloneArgs { exit_signal: libc::SIGCHLD, ..CloneArgs::default() };
    clone(call, &args).and_then(number)
}

fn sys_vfork(call: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    let flags = CLONE_VM | CLONE_VFORK;
    let args = CloneArgs { flags, exit_signal: libc::SIGCHLD, ..CloneArgs::default() };
    clone(call, &args).and_then(number)
}

fn sys_exit(call: &mut Call<'_>, [code, ..]: [u64; 6]) -> SysResult {
    call.task.set_exit_status((int(code) & 0xff) << 8);
    Err(SysError::Exit)
}

fn sys_exit_group(call: &mut Call<'_>, [code, ..]: [u64; 6]) -> SysResult {
    let status = (int(code) & 0xff) << 8;
    call.task.set_exit_status(status);
    call.task.exit_group(status);
    Err(SysError::Exit)
}

/// Whom the caller means; nobody is called 0.
fn named(call: &Call<'_>, number: Pid) -> Pid {
    call.task.named(number).unwrap_or(0)
}

/// News of a child with the number that the caller has for its user.
fn as_seen(call: &Call<'_>, waited: &Waited) -> Waited {
    let uid = call.task.credentials().user_ns.shown_uid(waited.uid);
    Waited { uid, ..*waited }
}

/// Waits for news of a child; `None` where there is none and the options say not to wait.
fn wait(call: &mut Call<'_>, target: WaitTarget, options: WaitOptions) -> Result<Option<Waited>, SysError> {
    if options.contains(WaitOptions::NO_HANG) {
        return Ok(call.task.try_wait(target, options)?);
    }
    let task = std::sync::Arc::clone(call.task);
    let queues = [(task.child_events(), Events::CHANGED)];
    let found = call.block(&queues, None, |call| call.task.try_wait(target, options).transpose())?;
    Ok(Some(found?))
}

fn sys_wait4(call: &mut Call<'_>, [pid, status, options, usage, ..]: [u64; 6]) -> SysResult {
    const KNOWN: WaitOptions = WaitOptions::NO_HANG
        .union(WaitOptions::STOPPED)
        .union(WaitOptions::CONTINUED)
        .union(WaitOptions::NO_THREAD)
        .union(WaitOptions::CLONE)
        .union(WaitOptions::ALL);
    let options = WaitOptions::from_bits(int(options).cast_unsigned())
        .filter(|options| KNOWN.contains(*options))
        .ok_or(Errno::EINVAL)?;
    let target = match int(pid) {
        i32::MIN => return Err(Errno::ESRCH.into()),
        -1 => WaitTarget::Any,
        0 => WaitTarget::Group(call.task.process_group()),
        pid if pid < 0 => WaitTarget::Group(named(call, -pid)),
        pid => WaitTarget::Pid(named(call, pid)),
    };
    let Some(waited) = wait(call, target, options | WaitOptions::EXITED)? else { return Ok(0) };
    if status != 0 {
        call.write(status, &waited.status.to_le_bytes())?;
    }
    if usage != 0 {
        call.write(usage, &usage_bytes(&waited.times))?;
    }
    number(waited.pid)
}

fn sys_waitid(call: &mut Call<'_>, [kind, id, info, options, usage, _]: [u64; 6]) -> SysResult {
    let waited = wait_by_kind(call, kind, id, options);
    if let (Ok(Some(waited)), true) = (&waited, usage != 0) {
        call.write(usage, &usage_bytes(&waited.times))?;
    }
    if info != 0 {
        // Also where there was an error.
        let seen = waited.as_ref().ok().and_then(Option::as_ref).map(|waited| as_seen(call, waited));
        call.write(info, &wait_info(seen.as_ref()))?;
    }
    waited.map(|_| 0)
}

/// `waitid` without what it tells (`kernel_waitid`).
fn wait_by_kind(call: &mut Call<'_>, kind: u64, id: u64, options: u64) -> Result<Option<Waited>, SysError> {
    let mut options = WaitOptions::from_bits(int(options).cast_unsigned()).ok_or(Errno::EINVAL)?;
    if !options.intersects(WaitOptions::EXITED | WaitOptions::STOPPED | WaitOptions::CONTINUED) {
        return Err(Errno::EINVAL.into());
    }
    let id = int(id);
    // A pidfd with PIDFD_NONBLOCK: EAGAIN instead of waiting.
    let mut without_waiting = false;
    let target = match int(kind) {
        0 => WaitTarget::Any,
        1 if id > 0 => WaitTarget::Pid(named(call, id)),
        2 if id == 0 => WaitTarget::Group(call.task.process_group()),
        2 if id > 0 => WaitTarget::Group(named(call, id)),
        3 if id < 0 => return Err(Errno::EINVAL.into()),
        3 => {
            let (pid, nonblocking) = super::special_files::pidfd_target(call, id)?;
            without_waiting = nonblocking && !options.contains(WaitOptions::NO_HANG);
            options.set(WaitOptions::NO_HANG, nonblocking || options.contains(WaitOptions::NO_HANG));
            WaitTarget::Pid(pid)
        }
        _ => return Err(Errno::EINVAL.into()),
    };
    let waited = wait(call, target, options)?;
    if waited.is_none() && without_waiting {
        return Err(Errno::EAGAIN.into());
    }
    Ok(waited)
}

/// What `waitid` writes of `siginfo_t`.
fn wait_info(waited: Option<&Waited>) -> [u8; 28] {
    let mut bytes = [0; 28];
    if let Some(waited) = waited {
        let uid = waited.uid.cast_signed();
        let fields = [libc::SIGCHLD, 0, waited.code, 0, waited.pid, uid, waited.number];
        for (place, value) in bytes.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

/// `struct rusage`, of which the times are known.
pub(super) fn usage_bytes(times: &CpuTimes) -> [u8; 144] {
    let mut bytes = [0; 144];
    for (at, time) in [times.user, times.system].into_iter().enumerate() {
        bytes[at * 16..at * 16 + 8].copy_from_slice(&time.as_secs().to_le_bytes());
        bytes[at * 16 + 8..at * 16 + 16].copy_from_slice(&u64::from(time.subsec_micros()).to_le_bytes());
    }
    bytes
}

fn sys_getpid(call: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    number(call.task.shown(call.task.group().pid()))
}

fn sys_gettid(call: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    number(call.task.own_number())
}

fn sys_getppid(call: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    number(call.task.shown(call.task.parent()))
}

fn sys_getpgrp(call: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    number(call.task.shown(call.task.process_group()))
}

fn sys_getpgid(call: &mut Call<'_>, [pid, ..]: [u64; 6]) -> SysResult {
    number(call.task.shown(call.task.group_and_session(int(pid))?.0))
}

fn sys_setpgid(call: &mut Call<'_>, [pid, pgid, ..]: [u64; 6]) -> SysResult {
    call.task.set_process_group(int(pid), int(pgid))?;
    Ok(0)
}

fn sys_getsid(call: &mut Call<'_>, [pid, ..]: [u64; 6]) -> SysResult {
    number(call.task.shown(call.task.group_and_session(int(pid))?.1))
}

fn sys_setsid(call: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    number(call.task.shown(call.task.set_session()?))
}

fn sys_set_tid_address(call: &mut Call<'_>, [address, ..]: [u64; 6]) -> SysResult {
    call.task.set_clear_child_tid(address);
    number(call.task.own_number())
}

/// A wait that only a signal ends.
pub(super) fn sleep_until_signal(call: &mut Call<'_>, rule: Restart) -> SysError {
    match call.block::<()>(&[], None, |_| None) {
        Ok(()) | Err(_) => SysError::Interrupted(rule),
    }
}
