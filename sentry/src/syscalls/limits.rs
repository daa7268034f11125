//! Limits and what was used.

use std::sync::Arc;

use super::Entry;
use super::processes::{int, usage_bytes};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::signal::SignalInfo;
use crate::task::watch_cpu_limit;
use crate::task::{Credentials, Limit, Resource, ThreadGroup, capability};

pub(super) const CALLS: &[Entry] = &[
    Entry::full(libc::SYS_getrlimit, "getrlimit", sys_getrlimit),
    Entry::full(libc::SYS_setrlimit, "setrlimit", sys_setrlimit),
    Entry::full(libc::SYS_prlimit64, "prlimit64", sys_prlimit64),
    Entry::partial(libc::SYS_getrusage, "getrusage", sys_getrusage, "all but the times is 0"),
    Entry::full(libc::SYS_times, "times", sys_times),
];

/// `RLIMIT_CPU`.
const CPU: u64 = 0;
/// `RLIMIT_NOFILE`, and the highest that `fs.nr_open` lets it be.
const OPEN_FILES: u64 = 7;
const MOST_OPEN_FILES: u64 = 1 << 20;

fn to_bytes(limit: Limit) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&limit.soft.to_le_bytes());
    bytes[8..].copy_from_slice(&limit.hard.to_le_bytes());
    bytes
}

fn read_limit(call: &Call<'_>, address: u64) -> Result<Limit, Errno> {
    let bytes: [u8; 16] = call.read_array(address)?;
    let value = u128::from_le_bytes(bytes);
    #[allow(clippy::cast_possible_truncation, reason = "the lower half")]
    let soft = value as u64;
    #[allow(clippy::cast_possible_truncation, reason = "64 bits are left")]
    let hard = (value >> 64) as u64;
    Ok(Limit { soft, hard })
}

/// Reads one limit of a process and sets it (`do_prlimit` in `kernel/sys.c`). What it was before.
fn change(
    call: &Call<'_>,
    group: &Arc<ThreadGroup>,
    resource: u64,
    new: Option<Limit>,
) -> Result<Limit, Errno> {
    let may_raise = call.task.credentials().capable(capability::SYS_RESOURCE);
    let old = group.change_limits(|limits| {
        let old = limits.by_number(resource).ok_or(Errno::EINVAL)?;
        if let Some(new) = new {
            if new.soft > new.hard {
                return Err(Errno::EINVAL);
            }
            if resource == OPEN_FILES && new.hard > MOST_OPEN_FILES || new.hard > old.hard && !may_raise {
                return Err(Errno::EPERM);
            }
            limits.set_by_number(resource, new);
        }
        Ok(old)
    })?;
    if let (CPU, Some(_)) = (resource, new) {
        watch_cpu_limit(call.kernel, group);
    }
    if let (OPEN_FILES, Some(new)) = (resource, new) {
        // The table of descriptors keeps its own bound. Threads that have one of their own besides the leader's are rare.
        if let Some(leader) = call.task.tasks().find(group.pid()) {
            leader.files().set_limit(u32::try_from(new.soft).unwrap_or(u32::MAX));
        }
    }
    Ok(old)
}

/// How much of `length` bytes a file may take from where they begin, by `RLIMIT_FSIZE`; asked for where there is such a limit only.
///
/// # Errors
/// EFBIG, with a SIGXFSZ, where it may take none.
pub(super) fn within_file_size(
    call: &Call<'_>,
    length: u64,
    start: impl FnOnce() -> Result<u64, Errno>,
) -> Result<u64, Errno> {
    let limit = call.task.group().limits().of(Resource::FileSize).soft;
    if limit == u64::MAX {
        return Ok(length);
    }
    let room = limit.saturating_sub(start()?);
    if room == 0 && length > 0 {
        // A thread that is about to end needs no signal.
        let info = SignalInfo::user(libc::SIGXFSZ, call.task.group().pid(), call.task.credentials().uid);
        let _ = call.task.send_signal(info);
        return Err(Errno::EFBIG);
    }
    Ok(length.min(room))
}

/// Whether a file may become so large (`inode_newsize_ok`).
///
/// # Errors
/// EFBIG, with a SIGXFSZ.
pub(super) fn may_have_size(call: &Call<'_>, size: u64) -> Result<(), Errno> {
    match size.checked_sub(1) {
        Some(last) => within_file_size(call, 1, || Ok(last)).map(|_| ()),
        None => Ok(()),
    }
}

fn sys_getrlimit(call: &mut Call<'_>, [resource, limit, ..]: [u64; 6]) -> SysResult {
    let old = change(call, call.task.group(), int(resource).cast_unsigned().into(), None)?;
    call.write(limit, &to_bytes(old))?;
    Ok(0)
}

fn sys_setrlimit(call: &mut Call<'_>, [resource, limit, ..]: [u64; 6]) -> SysResult {
    let new = read_limit(call, limit)?;
    change(call, call.task.group(), int(resource).cast_unsigned().into(), Some(new))?;
    Ok(0)
}

/// Whether one may look at another's limits (`check_prlimit_permission`).
fn may_look(who: &Credentials, other: &Credentials) -> bool {
    let users = [other.euid, other.suid, other.uid].iter().all(|uid| *uid == who.uid);
    let groups = [other.egid, other.sgid, other.gid].iter().all(|gid| *gid == who.gid);
    users && groups || who.capable_in(&other.user_ns, capability::SYS_RESOURCE)
}

fn sys_prlimit64(call: &mut Call<'_>, [pid, resource, new, old, ..]: [u64; 6]) -> SysResult {
    let pid = int(pid);
    let group = if pid == 0 {
        std::sync::Arc::clone(call.task.group())
    } else {
        let other = call.task.find(pid).ok_or(Errno::ESRCH)?;
        let same = other.group().pid() == call.task.group().pid();
        if !same && !may_look(&call.task.credentials(), &other.credentials()) {
            return Err(Errno::EPERM.into());
        }
        std::sync::Arc::clone(other.group())
    };
    let new = if new == 0 { None } else { Some(read_limit(call, new)?) };
    let before = change(call, &group, int(resource).cast_unsigned().into(), new)?;
    if old != 0 {
        call.write(old, &to_bytes(before))?;
    }
    Ok(0)
}

fn sys_getrusage(call: &mut Call<'_>, [who, usage, ..]: [u64; 6]) -> SysResult {
    let times = match int(who) {
        libc::RUSAGE_SELF => call.task.group().cpu_times(),
        libc::RUSAGE_CHILDREN => call.task.group().children_cpu_times(),
        libc::RUSAGE_THREAD => call.task.cpu_times(),
        _ => return Err(Errno::EINVAL.into()),
    };
    call.write(usage, &usage_bytes(&times))?;
    Ok(0)
}

/// In ticks of 10 ms (`CLOCKS_PER_SEC` of the kernel's face: 100 a second).
fn ticks(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis() / 10).unwrap_or(u64::MAX)
}

fn sys_times(call: &mut Call<'_>, [buffer, ..]: [u64; 6]) -> SysResult {
    if buffer != 0 {
        let (own, children) = (call.task.group().cpu_times(), call.task.group().children_cpu_times());
        let values = [own.user, own.system, children.user, children.system];
        let bytes = values.into_iter().flat_map(|time| ticks(time).to_le_bytes()).collect::<Vec<_>>();
        call.write(buffer, &bytes)?;
    }
    Ok(ticks(call.kernel.clocks.monotonic()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::task::Task;
    use crate::testing::{BASE, FlatThread};

    #[test]
    fn a_limit_is_lowered_by_all_and_raised_by_the_privileged() {
        let kernel = Kernel::for_test();
        let task = Task::for_test(&kernel);
        let mut thread = FlatThread::new(4096);
        let mut call = Call { kernel: &kernel, task: &task, thread: &mut thread };
        task.set_credentials(Credentials::root().with_users(1, 1, 1));
        let set = |call: &mut Call<'_>, soft, hard| {
            call.write(BASE, &to_bytes(Limit { soft, hard })).unwrap();
            sys_prlimit64(call, [0, OPEN_FILES, BASE, BASE + 16, 0, 0])
        };
        assert_eq!(set(&mut call, 100, 200), Ok(0));
        assert_eq!(call.read_u64(BASE + 16), Ok(1024));
        assert_eq!(set(&mut call, 100, 201), Err(Errno::EPERM.into()));
        assert_eq!(set(&mut call, 201, 200), Err(Errno::EINVAL.into()));
        task.set_credentials(Credentials::root());
        assert_eq!(set(&mut call, 100, MOST_OPEN_FILES + 1), Err(Errno::EPERM.into()));
        assert_eq!(set(&mut call, 300, 300), Ok(0));
        assert_eq!(sys_getrlimit(&mut call, [16, BASE, 0, 0, 0, 0]), Err(Errno::EINVAL.into()));
    }
}
