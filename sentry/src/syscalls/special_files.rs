//! Timers, signals and processes as files: `timerfd`, `signalfd`, `pidfd`.

use std::sync::Arc;

use libc::{
    SYS_pidfd_getfd, SYS_pidfd_open, SYS_pidfd_send_signal, SYS_signalfd, SYS_signalfd4, SYS_timerfd_create,
    SYS_timerfd_gettime, SYS_timerfd_settime,
};

use super::Entry;
use super::clocks::{may_wake, read_timespec, timespec};
use super::file_args::{int, uint};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::signal::{SI_TKILL, SignalInfo, SignalSet};
use crate::task::{Pid, Task, ThreadGroup};
use crate::time::{Clock, Setting, TimerFd};
use crate::vfs::OpenFile;
use crate::vfs::pidfd::PidFd;
use crate::vfs::proc::process_of_folder;
use crate::vfs::signalfd::SignalFd;
use crate::vfs::timerfd::TimerFile;

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_timerfd_create, "timerfd_create", timerfd_create),
    Entry::partial(
        SYS_timerfd_settime,
        "timerfd_settime",
        timerfd_settime,
        "TFD_TIMER_CANCEL_ON_SET: the clock is never set",
    ),
    Entry::full(SYS_timerfd_gettime, "timerfd_gettime", timerfd_gettime),
    Entry::full(SYS_signalfd, "signalfd", signalfd),
    Entry::full(SYS_signalfd4, "signalfd4", signalfd4),
    Entry::partial(SYS_pidfd_open, "pidfd_open", pidfd_open, "PIDFD_THREAD"),
    Entry::partial(SYS_pidfd_send_signal, "pidfd_send_signal", pidfd_send_signal, "flags (6.9)"),
    Entry::full(SYS_pidfd_getfd, "pidfd_getfd", pidfd_getfd),
];

fn insert(call: &Call<'_>, file: Arc<OpenFile>, close_on_exec: bool) -> SysResult {
    let fd = call.task.files().insert(file, close_on_exec)?;
    Ok(u64::from(fd.cast_unsigned()))
}

fn timerfd_create(call: &mut Call<'_>, [clock, flags, ..]: [u64; 6]) -> SysResult {
    let (number, flags) = (int(clock), int(flags));
    if flags & !(libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) != 0 {
        return Err(Errno::EINVAL.into());
    }
    match number {
        libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME => {}
        libc::CLOCK_REALTIME_ALARM | libc::CLOCK_BOOTTIME_ALARM => may_wake(call, number)?,
        _ => return Err(Errno::EINVAL.into()),
    }
    let clock = Clock::of(call.task, number)?;
    let timer = TimerFd::new(&call.kernel.timers, call.kernel.clocks.clone(), &clock);
    insert(call, TimerFile::open(timer, flags & libc::TFD_NONBLOCK != 0), flags & libc::TFD_CLOEXEC != 0)
}

fn timer_file(call: &Call<'_>, fd: u64) -> Result<Arc<OpenFile>, Errno> {
    let file = call.task.files().get(int(fd))?;
    if file.downcast::<TimerFile>().is_some() { Ok(file) } else { Err(Errno::EINVAL) }
}

fn timerfd_settime(call: &mut Call<'_>, [fd, flags, new, old, ..]: [u64; 6]) -> SysResult {
    let flags = int(flags);
    let interval = read_timespec(call, new)?;
    let value = read_timespec(call, new.checked_add(16).ok_or(Errno::EFAULT)?)?;
    if flags & !(libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let file = timer_file(call, fd)?;
    let timer = file.downcast::<TimerFile>().ok_or(Errno::EINVAL)?.timer();
    let before = timer.set(Setting { value, interval }, flags & libc::TFD_TIMER_ABSTIME != 0);
    if old != 0 {
        call.write(old, &[timespec(before.interval), timespec(before.value)].concat())?;
    }
    Ok(0)
}

fn timerfd_gettime(call: &mut Call<'_>, [fd, address, ..]: [u64; 6]) -> SysResult {
    let file = timer_file(call, fd)?;
    let setting = file.downcast::<TimerFile>().ok_or(Errno::EINVAL)?.timer().get();
    call.write(address, &[timespec(setting.interval), timespec(setting.value)].concat())?;
    Ok(0)
}

fn signalfd4(call: &mut Call<'_>, [fd, mask, size, flags, ..]: [u64; 6]) -> SysResult {
    let flags = int(flags);
    if size != 8 || flags & !(libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let wanted = SignalSet(call.read_u64(mask)?);
    if int(fd) == -1 {
        let file = SignalFd::open(call.task, wanted, flags & libc::SFD_NONBLOCK != 0);
        return insert(call, file, flags & libc::SFD_CLOEXEC != 0);
    }
    let file = call.task.files().get(int(fd))?;
    file.downcast::<SignalFd>().ok_or(Errno::EINVAL)?.set(wanted);
    Ok(fd)
}

fn signalfd(call: &mut Call<'_>, [fd, mask, size, ..]: [u64; 6]) -> SysResult {
    signalfd4(call, [fd, mask, size, 0, 0, 0])
}

fn pidfd_open(call: &mut Call<'_>, [pid, flags, ..]: [u64; 6]) -> SysResult {
    let nonblock = libc::O_NONBLOCK.cast_unsigned();
    if uint(flags) & !nonblock != 0 || int(pid) <= 0 {
        return Err(Errno::EINVAL.into());
    }
    let task = call.task;
    let Some(group) = task.find_group(int(pid)) else {
        // A thread that is not the first of its process has a number, but is no process.
        return Err(if task.find(int(pid)).is_some() { Errno::EINVAL } else { Errno::ESRCH }.into());
    };
    insert(call, PidFd::open(&group, uint(flags) & nonblock != 0), true)
}

fn process(call: &Call<'_>, fd: i32) -> Result<(Arc<ThreadGroup>, bool), Errno> {
    let file = call.task.files().get(fd)?;
    Ok((process_of(&file)?, file.flags().nonblocking()))
}

/// The process of a descriptor.
///
/// # Errors
/// EBADF where it is of something else.
pub(super) fn process_of(file: &OpenFile) -> Result<Arc<ThreadGroup>, Errno> {
    Ok(Arc::clone(file.downcast::<PidFd>().ok_or(Errno::EBADF)?.group()))
}

/// The process that `waitid(P_PIDFD)` waits for, and whether it does not wait (`PIDFD_NONBLOCK`).
pub(super) fn pidfd_target(call: &Call<'_>, fd: i32) -> Result<(Pid, bool), Errno> {
    process(call, fd).map(|(group, nonblocking)| (group.pid(), nonblocking))
}

/// Whether the process is still known by its number: it was not waited for yet.
fn check_there(call: &Call<'_>, group: &Arc<ThreadGroup>) -> Result<(), Errno> {
    let there = call.task.tasks().find_group(group.pid());
    if there.is_some_and(|there| Arc::ptr_eq(&there, group)) { Ok(()) } else { Err(Errno::ESRCH) }
}

fn pidfd_send_signal(call: &mut Call<'_>, [fd, signal, info, flags, ..]: [u64; 6]) -> SysResult {
    // PIDFD_SIGNAL_THREAD, PIDFD_SIGNAL_THREAD_GROUP, PIDFD_SIGNAL_PROCESS_GROUP: one of them at most.
    if uint(flags) & !7 != 0 || uint(flags).count_ones() > 1 {
        return Err(Errno::EINVAL.into());
    }
    let file = call.task.files().get(int(fd))?;
    // A folder of procfs does as well, here alone: it is what programs had before there were descriptors of processes.
    let group = match process_of_folder(&**file.inode()) {
        Some(group) => group?,
        None => process_of(&file)?,
    };
    let signal = int(signal);
    let own = call.task.group().pid();
    let info = if info == 0 {
        SignalInfo::user(signal, own, call.task.credentials().uid)
    } else {
        let bytes: [u8; 128] = call.read_array(info)?;
        let named = bytes.first_chunk::<4>().map_or(0, |four| i32::from_le_bytes(*four));
        if named != signal {
            return Err(Errno::EINVAL.into());
        }
        let info = SignalInfo::from_bytes(signal.max(1), &bytes).ok_or(Errno::EINVAL)?;
        if group.pid() != own && (info.code >= 0 || info.code == SI_TKILL) {
            return Err(Errno::EPERM.into());
        }
        info
    };
    check_there(call, &group)?;
    // Only what is in the caller's namespace, or in one in it, can be reached (`access_pidfd_pidns`).
    if !group.pid_namespace().is_within(call.task.pid_namespace()) {
        return Err(Errno::EINVAL.into());
    }
    match uint(flags) {
        1 => call.task.kill_first_thread(&group, signal, &info)?,
        4 => call.task.kill_its_group(&group, signal, &info)?,
        _ => call.task.kill_group(&group, signal, &info)?,
    }
    Ok(0)
}

/// A living task of a process.
pub(super) fn some_task(call: &Call<'_>, group: &Arc<ThreadGroup>) -> Result<Arc<Task>, Errno> {
    let threads = call.task.tasks().process_info(group.pid()).map(|info| info.threads).unwrap_or_default();
    let mut tasks = threads.into_iter().filter_map(|pid| call.task.tasks().find(pid));
    tasks.find(|task| Arc::ptr_eq(task.group(), group)).ok_or(Errno::ESRCH)
}

fn pidfd_getfd(call: &mut Call<'_>, [fd, wanted, flags, ..]: [u64; 6]) -> SysResult {
    if uint(flags) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let (group, _) = process(call, int(fd))?;
    let other = some_task(call, &group)?;
    let own = Arc::ptr_eq(&group, call.task.group());
    if !own && !call.task.may_access(&other) {
        return Err(Errno::EPERM.into());
    }
    let file = other.files().find(int(wanted))?;
    insert(call, file, true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::SysError;
    use crate::events::Events;
    use crate::kernel::Kernel;
    use crate::testing::{BASE, FlatThread};
    use crate::vfs::eventfd::EventFd;

    fn no(errno: Errno) -> SysResult {
        Err(SysError::Errno(errno))
    }

    #[test]
    fn a_process_is_reached_by_its_descriptor() {
        let kernel = Kernel::for_test();
        let (task, other) = (Task::for_test(&kernel), Task::for_test(&kernel));
        let mut thread = FlatThread::new(4096);
        let mut call = Call { kernel: &kernel, task: &task, thread: &mut thread };
        let pid = u64::from(other.pid().cast_unsigned());
        assert_eq!(pidfd_open(&mut call, [pid, 1, 0, 0, 0, 0]), no(Errno::EINVAL));
        assert_eq!(pidfd_open(&mut call, [999, 0, 0, 0, 0, 0]), no(Errno::ESRCH));
        let fd = pidfd_open(&mut call, [pid, 0, 0, 0, 0, 0]).unwrap();
        let usr1 = SignalSet::of(&[libc::SIGUSR1]);
        other.set_signal_mask(usr1);
        assert_eq!(pidfd_send_signal(&mut call, [fd, 10, 0, 0, 0, 0]), Ok(0));
        assert!(other.has_signal(usr1));
        assert_eq!(pidfd_send_signal(&mut call, [fd, 65, 0, 0, 0, 0]), no(Errno::EINVAL));
        other.files().insert(EventFd::open(5, false, true), false).unwrap();
        let copy = pidfd_getfd(&mut call, [fd, 0, 0, 0, 0, 0]).unwrap();
        assert!(task.files().get(int(copy)).unwrap().file().ready().contains(Events::IN));
        assert_eq!(pidfd_getfd(&mut call, [fd, 7, 0, 0, 0, 0]), no(Errno::EBADF));
        assert_eq!(pidfd_getfd(&mut call, [copy, 0, 0, 0, 0, 0]), no(Errno::EBADF));
    }

    #[test]
    fn a_timer_is_set_and_told() {
        let kernel = Kernel::for_test();
        let task = Task::for_test(&kernel);
        let mut thread = FlatThread::new(4096);
        let mut call = Call { kernel: &kernel, task: &task, thread: &mut thread };
        assert_eq!(timerfd_create(&mut call, [2, 0, 0, 0, 0, 0]), no(Errno::EINVAL));
        let fd = timerfd_create(&mut call, [1, 0, 0, 0, 0, 0]).unwrap();
        let second = std::time::Duration::from_secs(100);
        call.write(BASE, &[timespec(second), timespec(second)].concat()).unwrap();
        assert_eq!(timerfd_settime(&mut call, [fd, 8, BASE, 0, 0, 0]), no(Errno::EINVAL));
        assert_eq!(timerfd_settime(&mut call, [fd, 0, BASE, BASE + 64, 0, 0]), Ok(0));
        assert_eq!(timerfd_gettime(&mut call, [fd, BASE + 64, 0, 0, 0, 0]), Ok(0));
        assert_eq!(call.read_u64(BASE + 64), Ok(100));
        assert_eq!(call.read_u64(BASE + 80), Ok(99));
    }
}
