//! Scheduling: what a program asks for is kept and told again; the host schedules.

use std::sync::Arc;

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu};

use super::Entry;
use super::processes::int;
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::{Credentials, Task, capability};

pub(super) const CALLS: &[Entry] = &[
    Entry::full(libc::SYS_sched_yield, "sched_yield", sys_sched_yield),
    Entry::full(libc::SYS_rseq, "rseq", sys_rseq),
    Entry::partial(libc::SYS_sched_getaffinity, "sched_getaffinity", sys_sched_getaffinity, KEPT),
    Entry::partial(libc::SYS_sched_setaffinity, "sched_setaffinity", sys_sched_setaffinity, KEPT),
    Entry::partial(libc::SYS_sched_getscheduler, "sched_getscheduler", sys_sched_getscheduler, KEPT),
    Entry::partial(libc::SYS_sched_setscheduler, "sched_setscheduler", sys_sched_setscheduler, KEPT),
    Entry::partial(libc::SYS_sched_getparam, "sched_getparam", sys_sched_getparam, KEPT),
    Entry::partial(libc::SYS_sched_setparam, "sched_setparam", sys_sched_setparam, KEPT),
    Entry::partial(
        libc::SYS_sched_setattr,
        "sched_setattr",
        sys_sched_setattr,
        "it is kept and has no effect; SCHED_DEADLINE",
    ),
    Entry::partial(libc::SYS_sched_getattr, "sched_getattr", sys_sched_getattr, KEPT),
    Entry::full(libc::SYS_sched_get_priority_max, "sched_get_priority_max", sys_priority_max),
    Entry::full(libc::SYS_sched_get_priority_min, "sched_get_priority_min", sys_priority_min),
    Entry::full(libc::SYS_sched_rr_get_interval, "sched_rr_get_interval", sys_rr_interval),
    Entry::partial(libc::SYS_getpriority, "getpriority", sys_getpriority, KEPT),
    Entry::partial(libc::SYS_setpriority, "setpriority", sys_setpriority, KEPT),
    Entry::partial(
        libc::SYS_ioprio_get,
        "ioprio_get",
        sys_ioprio_get,
        "of one task; it is kept and has no effect",
    ),
    Entry::partial(
        libc::SYS_ioprio_set,
        "ioprio_set",
        sys_ioprio_set,
        "of one task; it is kept and has no effect",
    ),
    Entry::full(libc::SYS_getcpu, "getcpu", sys_getcpu),
];

const KEPT: &str = "it is kept and has no effect";
/// `SCHED_DEADLINE` and `SCHED_EXT`, which nobody gets here, have a range of priorities, too: 0 alone.
const WITHOUT_PRIORITY: [i32; 2] = [libc::SCHED_DEADLINE, 7];
/// `SCHED_RESET_ON_FORK`.
const RESET_ON_FORK: i32 = 0x4000_0000;

fn find(call: &Call<'_>, pid: i32) -> Result<Arc<Task>, Errno> {
    match pid {
        pid if pid < 0 => Err(Errno::EINVAL),
        0 => Ok(Arc::clone(call.task)),
        pid => call.task.find(pid).ok_or(Errno::ESRCH),
    }
}

/// Whether one may change how another is scheduled.
fn may_change(who: &Credentials, other: &Credentials) -> bool {
    who.euid == other.euid || who.euid == other.uid || who.capable_in(&other.user_ns, capability::SYS_NICE)
}

/// Restartable sequences (`kernel/rseq.c`): the host's kernel does for the thread of the stub what Linux does for the guest's.
fn sys_rseq(call: &mut Call<'_>, [address, length, flags, signature, ..]: [u64; 6]) -> SysResult {
    call.thread.restartable([address, length, flags, signature])?;
    Ok(0)
}

fn sys_sched_yield(_: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    std::thread::yield_now();
    Ok(0)
}

/// CPUs that the sentry may run on, as a mask of whole 64-bit words up to the highest CPU.
fn host_cpus() -> Vec<u8> {
    let mut mask = vec![0_u8; CpuSet::count().div_ceil(8)];
    if let Ok(set) = sched_getaffinity(nix::unistd::Pid::from_raw(0)) {
        for (at, byte) in mask.iter_mut().enumerate() {
            for bit in 0..8 {
                *byte |= u8::from(set.is_set(at * 8 + bit).unwrap_or(false)) << bit;
            }
        }
    }
    let used = mask.iter().rposition(|byte| *byte != 0).map_or(8, |last| (last + 1).next_multiple_of(8));
    mask.truncate(used);
    mask
}

fn sys_sched_getaffinity(call: &mut Call<'_>, [pid, size, address, ..]: [u64; 6]) -> SysResult {
    let task =
        find(call, int(pid)).map_err(|errno| if errno == Errno::EINVAL { Errno::ESRCH } else { errno })?;
    let mask = task.affinity().unwrap_or_else(host_cpus);
    let size = usize::try_from(size & u64::from(u32::MAX)).map_err(|_| Errno::EINVAL)?;
    if size < mask.len() || size % 8 != 0 {
        return Err(Errno::EINVAL.into());
    }
    call.write(address, &mask)?;
    Ok(mask.len() as u64)
}

fn sys_sched_setaffinity(call: &mut Call<'_>, [pid, size, address, ..]: [u64; 6]) -> SysResult {
    let mut mask = host_cpus();
    let size = usize::try_from(size & u64::from(u32::MAX)).map_err(|_| Errno::EINVAL)?;
    let mut wanted = vec![0; size.min(mask.len())];
    call.read(address, &mut wanted)?;
    let task =
        find(call, int(pid)).map_err(|errno| if errno == Errno::EINVAL { Errno::ESRCH } else { errno })?;
    if !may_change(&call.task.credentials(), &task.credentials()) {
        return Err(Errno::EPERM.into());
    }
    for (at, byte) in mask.iter_mut().enumerate() {
        *byte &= wanted.get(at).copied().unwrap_or(0);
    }
    if mask.iter().all(|byte| *byte == 0) {
        return Err(Errno::EINVAL.into());
    }
    task.set_affinity(mask);
    Ok(0)
}

/// Lowest and highest priority of a policy.
fn priorities(policy: i32) -> Result<std::ops::RangeInclusive<i32>, Errno> {
    match policy {
        libc::SCHED_FIFO | libc::SCHED_RR => Ok(1..=99),
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE => Ok(0..=0),
        _ => Err(Errno::EINVAL),
    }
}

fn sys_priority_max(_: &mut Call<'_>, [policy, ..]: [u64; 6]) -> SysResult {
    let most = if WITHOUT_PRIORITY.contains(&int(policy)) { 0 } else { *priorities(int(policy))?.end() };
    Ok(u64::from(most.unsigned_abs()))
}

fn sys_priority_min(_: &mut Call<'_>, [policy, ..]: [u64; 6]) -> SysResult {
    let least = if WITHOUT_PRIORITY.contains(&int(policy)) { 0 } else { *priorities(int(policy))?.start() };
    Ok(u64::from(least.unsigned_abs()))
}

fn sys_rr_interval(call: &mut Call<'_>, [pid, address, ..]: [u64; 6]) -> SysResult {
    let task = find(call, int(pid))?;
    let nanoseconds: u64 = match task.scheduling().0 {
        libc::SCHED_RR => 100_000_000,
        libc::SCHED_FIFO => 0,
        _ => 4_000_000,
    };
    call.write(address, &[0_u64.to_le_bytes(), nanoseconds.to_le_bytes()].concat())?;
    Ok(0)
}

fn set_policy(call: &Call<'_>, pid: i32, policy: Option<i32>, address: u64) -> SysResult {
    if address == 0 {
        return Err(Errno::EINVAL.into());
    }
    let priority = if pid < 0 { 0 } else { int(call.read_u32(address)?.into()) };
    let task = find(call, pid)?;
    schedule(call, &task, policy.unwrap_or_else(|| task.scheduling().0), priority)
}

fn schedule(call: &Call<'_>, task: &Task, policy: i32, priority: i32) -> SysResult {
    if !priorities(policy & !RESET_ON_FORK)?.contains(&priority) {
        return Err(Errno::EINVAL.into());
    }
    let who = call.task.credentials();
    let limit = task.group().limits().of(crate::task::Resource::RealtimePriority).soft;
    let beyond_limit = u64::from(priority.unsigned_abs()) > limit && !who.capable(capability::SYS_NICE);
    if beyond_limit || !may_change(&who, &task.credentials()) {
        return Err(Errno::EPERM.into());
    }
    task.set_scheduling(policy, priority);
    Ok(0)
}

/// Bytes of `struct sched_attr` in its first version.
const ATTRIBUTES: usize = 48;

fn sys_sched_setattr(call: &mut Call<'_>, [pid, address, flags, ..]: [u64; 6]) -> SysResult {
    const RESET: u64 = 1;
    let size = call.read_u32(address)?;
    if flags != 0 || int(pid) < 0 || size != 0 && usize::try_from(size).is_ok_and(|size| size < ATTRIBUTES) {
        return Err(Errno::EINVAL.into());
    }
    let bytes: [u8; ATTRIBUTES] = call.read_array(address)?;
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let task = find(call, int(pid))?;
    let (policy, nice, priority) = (word(4), word(16).cast_signed(), word(20));
    let reset = if u64::from(word(8)) & RESET == 0 { 0 } else { RESET_ON_FORK };
    schedule(call, &task, int(policy.into()) | reset, int(priority.into()))?;
    if policy == libc::SCHED_OTHER.unsigned_abs() && nice >= task.nice() {
        task.set_nice(nice);
    }
    Ok(0)
}

fn sys_sched_getattr(call: &mut Call<'_>, [pid, address, size, flags, ..]: [u64; 6]) -> SysResult {
    let size = usize::try_from(size & u64::from(u32::MAX)).map_err(|_| Errno::EINVAL)?;
    if flags != 0 || !(ATTRIBUTES..=4096).contains(&size) {
        return Err(Errno::EINVAL.into());
    }
    let task = find(call, int(pid))?;
    let (policy, priority) = task.scheduling();
    let mut bytes = [0; ATTRIBUTES];
    bytes[..4].copy_from_slice(&(ATTRIBUTES as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&(policy & !RESET_ON_FORK).to_le_bytes());
    bytes[8] = u8::from(policy & RESET_ON_FORK != 0);
    bytes[16..20].copy_from_slice(&task.nice().to_le_bytes());
    bytes[20..24].copy_from_slice(&priority.to_le_bytes());
    call.write(address, &bytes)?;
    Ok(0)
}

fn sys_sched_setscheduler(call: &mut Call<'_>, [pid, policy, address, ..]: [u64; 6]) -> SysResult {
    let policy = int(policy);
    if policy < 0 {
        return Err(Errno::EINVAL.into());
    }
    set_policy(call, int(pid), Some(policy), address)
}

fn sys_sched_setparam(call: &mut Call<'_>, [pid, address, ..]: [u64; 6]) -> SysResult {
    set_policy(call, int(pid), None, address)
}

fn sys_sched_getscheduler(call: &mut Call<'_>, [pid, ..]: [u64; 6]) -> SysResult {
    let (policy, _) = find(call, int(pid))?.scheduling();
    Ok(u64::from(policy.cast_unsigned()))
}

fn sys_sched_getparam(call: &mut Call<'_>, [pid, address, ..]: [u64; 6]) -> SysResult {
    if address == 0 {
        return Err(Errno::EINVAL.into());
    }
    let (_, priority) = find(call, int(pid))?.scheduling();
    call.write(address, &priority.to_le_bytes())?;
    Ok(0)
}

/// The tasks that `getpriority` and `ioprio_get` mean: 0 one process or thread, 1 a group, 2 a user.
fn meant(call: &Call<'_>, which: i32, id: i32) -> Result<Vec<Arc<Task>>, Errno> {
    let found = match which {
        0 if id == 0 => vec![Arc::clone(call.task)],
        0 => call.task.find(id).into_iter().collect(),
        1 => {
            let own = call.task.process_group();
            let pgid = if id == 0 { own } else { call.task.named(id).ok_or(Errno::ESRCH)? };
            call.task.tasks().select(|task, group| (group == pgid).then(|| Arc::clone(task)))
        }
        2 => {
            let uid = if id == 0 {
                call.task.credentials().uid
            } else {
                call.task.credentials().user_ns.uid(id.cast_unsigned())
            };
            call.task.tasks().select(|task, _| (task.credentials().uid == uid).then(|| Arc::clone(task)))
        }
        _ => return Err(Errno::EINVAL),
    };
    if found.is_empty() { Err(Errno::ESRCH) } else { Ok(found) }
}

fn sys_getpriority(call: &mut Call<'_>, [which, id, ..]: [u64; 6]) -> SysResult {
    let lowest = meant(call, int(which), int(id))?.iter().map(|task| task.nice()).min().unwrap_or(0);
    // The kernel's face of it: 40 to 1, so that it is no error.
    Ok(u64::from((20 - lowest).unsigned_abs()))
}

fn sys_setpriority(call: &mut Call<'_>, [which, id, nice, ..]: [u64; 6]) -> SysResult {
    let nice = int(nice).clamp(-20, 19);
    let who = call.task.credentials();
    for task in meant(call, int(which), int(id))? {
        if !may_change(&who, &task.credentials()) {
            return Err(Errno::EPERM.into());
        }
        let limit = task.group().limits().of(crate::task::Resource::Nice).soft;
        let within_limit = u64::from((20 - nice).unsigned_abs()) <= limit;
        if nice < task.nice() && !within_limit && !who.capable(capability::SYS_NICE) {
            return Err(Errno::EACCES.into());
        }
        task.set_nice(nice);
    }
    Ok(0)
}

fn sys_ioprio_get(call: &mut Call<'_>, [which, id, ..]: [u64; 6]) -> SysResult {
    let which = int(which).checked_sub(1).ok_or(Errno::EINVAL)?;
    let tasks = meant(call, which, int(id))?;
    Ok(tasks.first().map_or(0, |task| task.io_priority()).into())
}

fn sys_ioprio_set(call: &mut Call<'_>, [which, id, priority, ..]: [u64; 6]) -> SysResult {
    let which = int(which).checked_sub(1).ok_or(Errno::EINVAL)?;
    let priority = int(priority).cast_unsigned();
    let (class, level) = (priority >> 13, priority & 0x1fff);
    match class {
        // None: without a level.
        0 if level != 0 => return Err(Errno::EINVAL.into()),
        1 if !call.task.credentials().capable(capability::SYS_ADMIN) => return Err(Errno::EPERM.into()),
        0..=3 => {}
        _ => return Err(Errno::EINVAL.into()),
    }
    for task in meant(call, which, int(id))? {
        task.set_io_priority(priority);
    }
    Ok(0)
}

fn sys_getcpu(call: &mut Call<'_>, [cpu, node, ..]: [u64; 6]) -> SysResult {
    let current = u32::try_from(sched_getcpu().unwrap_or(0)).unwrap_or(0);
    if cpu != 0 {
        call.write(cpu, &current.to_le_bytes())?;
    }
    if node != 0 {
        call.write(node, &0_u32.to_le_bytes())?;
    }
    Ok(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::testing::{BASE, FlatThread};

    #[test]
    fn what_is_asked_for_is_told_again() {
        let kernel = Kernel::for_test();
        let task = Task::for_test(&kernel);
        let mut thread = FlatThread::new(8192);
        let mut call = Call { kernel: &kernel, task: &task, thread: &mut thread };
        let mask = sys_sched_getaffinity(&mut call, [0, 128, BASE, 0, 0, 0]).unwrap();
        assert!(mask >= 8 && mask.is_multiple_of(8));
        let first = call.read_u64(BASE).unwrap();
        let lowest = first & first.wrapping_neg();
        call.write(BASE, &lowest.to_le_bytes()).unwrap();
        assert_eq!(sys_sched_setaffinity(&mut call, [0, 8, BASE, 0, 0, 0]), Ok(0));
        call.write(BASE, &[0xff; 8]).unwrap();
        assert_eq!(sys_sched_getaffinity(&mut call, [1, 128, BASE, 0, 0, 0]), Ok(mask));
        assert_eq!(call.read_u64(BASE), Ok(lowest));
        call.write(BASE, &5_u32.to_le_bytes()).unwrap();
        let rr = u64::from(libc::SCHED_RR.unsigned_abs());
        assert_eq!(sys_sched_setscheduler(&mut call, [0, rr, BASE, 0, 0, 0]), Ok(0));
        assert_eq!(sys_sched_getattr(&mut call, [0, BASE, 48, 0, 0, 0]), Ok(0));
        assert_eq!((call.read_u32(BASE + 4), call.read_u32(BASE + 20)), (Ok(2), Ok(5)));
        let minus_5 = (-5_i64).cast_unsigned();
        assert_eq!(sys_setpriority(&mut call, [0, 0, minus_5, 0, 0, 0]), Ok(0));
        assert_eq!(sys_getpriority(&mut call, [0, 0, 0, 0, 0, 0]), Ok(25));
        task.set_credentials(Credentials::root().with_users(1, 1, 1));
        assert_eq!(
            sys_setpriority(&mut call, [0, 0, (-6_i64).cast_unsigned(), 0, 0, 0]),
            Err(Errno::EACCES.into())
        );
        call.write(BASE, &5_u32.to_le_bytes()).unwrap();
        assert_eq!(sys_sched_setscheduler(&mut call, [0, rr, BASE, 0, 0, 0]), Err(Errno::EPERM.into()));
    }
}
