//! Signals.

use std::sync::Arc;
use std::time::Instant;

use super::Entry;
use super::clocks::read_timespec;
use super::processes::{int, sleep_until_signal};
use crate::call::{Call, Unready};
use crate::error::{Errno, Restart, SysError, SysResult};
use crate::task::Pid;
use crate::task::signal::{AltStack, SigAction, SignalInfo, SignalSet, is_signal, pop_frame};

pub(super) const CALLS: &[Entry] = &[
    Entry::full(libc::SYS_rt_sigaction, "rt_sigaction", sys_rt_sigaction),
    Entry::full(libc::SYS_rt_sigprocmask, "rt_sigprocmask", sys_rt_sigprocmask),
    Entry::full(libc::SYS_rt_sigpending, "rt_sigpending", sys_rt_sigpending),
    Entry::full(libc::SYS_rt_sigtimedwait, "rt_sigtimedwait", sys_rt_sigtimedwait),
    Entry::full(libc::SYS_rt_sigqueueinfo, "rt_sigqueueinfo", sys_rt_sigqueueinfo),
    Entry::full(libc::SYS_rt_tgsigqueueinfo, "rt_tgsigqueueinfo", sys_rt_tgsigqueueinfo),
    Entry::full(libc::SYS_rt_sigsuspend, "rt_sigsuspend", sys_rt_sigsuspend),
    Entry::full(libc::SYS_rt_sigreturn, "rt_sigreturn", sys_rt_sigreturn),
    Entry::full(libc::SYS_sigaltstack, "sigaltstack", sys_sigaltstack),
    Entry::full(libc::SYS_pause, "pause", sys_pause),
    Entry::full(libc::SYS_kill, "kill", sys_kill),
    Entry::full(libc::SYS_tkill, "tkill", sys_tkill),
    Entry::full(libc::SYS_tgkill, "tgkill", sys_tgkill),
    Entry::full(libc::SYS_restart_syscall, "restart_syscall", sys_restart_syscall),
];

/// Bytes of the kernel's `sigset_t`.
const SET: u64 = 8;

fn check_size(size: u64) -> Result<(), Errno> {
    if size == SET { Ok(()) } else { Err(Errno::EINVAL) }
}

fn sys_rt_sigaction(call: &mut Call<'_>, [signal, new, old, size, ..]: [u64; 6]) -> SysResult {
    check_size(size)?;
    let signal = int(signal);
    let before = if new == 0 {
        if !is_signal(signal) {
            return Err(Errno::EINVAL.into());
        }
        call.task.action(signal)
    } else {
        let action = SigAction::from_bytes(&call.read_array_early(new)?);
        call.task.set_action(signal, action)?
    };
    if old != 0 {
        call.write(old, &before.to_bytes())?;
    }
    Ok(0)
}

fn sys_rt_sigprocmask(call: &mut Call<'_>, [how, new, old, size, ..]: [u64; 6]) -> SysResult {
    check_size(size)?;
    let before = call.task.signal_mask();
    if new != 0 {
        let set = SignalSet(u64::from_le_bytes(call.read_array_early(new)?)).without(SignalSet::UNBLOCKABLE);
        let mask = match int(how) {
            libc::SIG_BLOCK => before.union(set),
            libc::SIG_UNBLOCK => before.without(set),
            libc::SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL.into()),
        };
        if mask != before {
            call.task.set_signal_mask(mask);
        }
    }
    if old != 0 {
        call.write_result(old, &before.0.to_le_bytes())?;
    }
    Ok(0)
}

fn sys_rt_sigpending(call: &mut Call<'_>, [set, size, ..]: [u64; 6]) -> SysResult {
    if size > SET {
        return Err(Errno::EINVAL.into());
    }
    let (own, shared) = call.task.pending_signals();
    let pending = own.union(shared).intersection(call.task.signal_mask());
    let bytes = pending.0.to_le_bytes();
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    call.write(set, &bytes[..size.min(bytes.len())])?;
    Ok(0)
}

fn sys_rt_sigtimedwait(call: &mut Call<'_>, [set, info, timeout, size, ..]: [u64; 6]) -> SysResult {
    check_size(size)?;
    let wanted = SignalSet(call.read_u64(set)?).without(SignalSet::UNBLOCKABLE);
    let deadline = match timeout {
        0 => None,
        address => {
            let timeout = read_timespec(call, address)?;
            Instant::now().checked_add(timeout)
        }
    };
    let task = Arc::clone(call.task);
    let taken = task.awaiting(wanted, || call.block(&[], deadline, |call| call.task.take_signal(wanted)));
    let taken = match taken {
        Ok(taken) => taken,
        // What is waited for may have come with what interrupted.
        Err(unready) => match (task.take_signal(wanted), unready) {
            (Some(taken), _) => taken,
            (None, Unready::TimedOut) => return Err(Errno::EAGAIN.into()),
            (None, Unready::Interrupted) => return Err(interrupted_wait()),
        },
    };
    if info != 0 {
        call.write(info, &taken.to_bytes())?;
    }
    Ok(u64::from(taken.signal.unsigned_abs()))
}

/// `sigtimedwait` is never made again: EINTR also where no handler ran (`man 7 signal`).
fn interrupted_wait() -> SysError {
    SysError::Errno(Errno::EINTR)
}

/// A program's `siginfo_t`.
fn read_info(call: &Call<'_>, signal: i32, address: u64) -> Result<SignalInfo, Errno> {
    SignalInfo::from_bytes(signal.max(1), &call.read_array(address)?).ok_or(Errno::EINVAL)
}

/// What a program sends may not pass for the kernel's or for `tgkill`'s unless it is for itself.
fn check_honest(call: &Call<'_>, info: &SignalInfo, to: Pid) -> Result<(), Errno> {
    let forged = info.code >= 0 || info.code == crate::task::signal::SI_TKILL;
    if forged && call.task.named(to) != Some(call.task.pid()) { Err(Errno::EPERM) } else { Ok(()) }
}

fn sys_rt_sigqueueinfo(call: &mut Call<'_>, [pid, signal, info, ..]: [u64; 6]) -> SysResult {
    let (pid, signal) = (int(pid), int(signal));
    let info = read_info(call, signal, info)?;
    check_honest(call, &info, pid)?;
    call.task.kill_process(pid, signal, &info)?;
    Ok(0)
}

fn sys_rt_tgsigqueueinfo(call: &mut Call<'_>, [group, pid, signal, info, ..]: [u64; 6]) -> SysResult {
    let (group, pid, signal) = (int(group), int(pid), int(signal));
    let info = read_info(call, signal, info)?;
    if group <= 0 || pid <= 0 {
        return Err(Errno::EINVAL.into());
    }
    check_honest(call, &info, pid)?;
    call.task.kill_thread(Some(group), pid, signal, &info)?;
    Ok(0)
}

fn sys_rt_sigsuspend(call: &mut Call<'_>, [set, size, ..]: [u64; 6]) -> SysResult {
    check_size(size)?;
    let mask = SignalSet(call.read_u64(set)?);
    let task = Arc::clone(call.task);
    task.with_temporary_mask(mask, || Err(sleep_until_signal(call, Restart::WithoutHandler)))
}

fn sys_pause(call: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    Err(sleep_until_signal(call, Restart::WithoutHandler))
}

fn sys_rt_sigreturn(call: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    match pop_frame(call.thread) {
        Ok((mask, stack)) => {
            call.task.set_signal_mask(mask);
            let rsp = call.thread.regs().rsp;
            // As Linux: a stack that cannot be set is left as it is.
            if let Ok(stack) = call.task.signal_stack().change(&stack, rsp) {
                call.task.set_signal_stack(stack);
            }
        }
        Err(_) => call.task.force_signal(SignalInfo::kernel(libc::SIGSEGV)),
    }
    Err(SysError::RegistersSet)
}

fn sys_sigaltstack(call: &mut Call<'_>, [new, old, ..]: [u64; 6]) -> SysResult {
    let rsp = call.thread.regs().rsp;
    let before = call.task.signal_stack();
    if new != 0 {
        let bytes: [u8; AltStack::SIZE] = call.read_array(new)?;
        call.task.set_signal_stack(before.change(&bytes, rsp)?);
    }
    if old != 0 {
        let disarm = before.flags & crate::task::signal::SS_AUTODISARM;
        call.write(old, &before.to_bytes(before.state(rsp) | disarm))?;
    }
    Ok(0)
}

fn sys_kill(call: &mut Call<'_>, [pid, signal, ..]: [u64; 6]) -> SysResult {
    let signal = int(signal);
    let info = SignalInfo::user(signal, call.task.group().pid(), call.task.credentials().uid);
    call.task.kill(int(pid), signal, &info)?;
    Ok(0)
}

fn tkill(call: &Call<'_>, group: Option<Pid>, pid: Pid, signal: i32) -> SysResult {
    if pid <= 0 || group.is_some_and(|group| group <= 0) {
        return Err(Errno::EINVAL.into());
    }
    let info = SignalInfo::thread(signal, call.task.group().pid(), call.task.credentials().uid);
    call.task.kill_thread(group, pid, signal, &info)?;
    Ok(0)
}

fn sys_tkill(call: &mut Call<'_>, [pid, signal, ..]: [u64; 6]) -> SysResult {
    tkill(call, None, int(pid), int(signal))
}

fn sys_tgkill(call: &mut Call<'_>, [group, pid, signal, ..]: [u64; 6]) -> SysResult {
    tkill(call, Some(int(group)), int(pid), int(signal))
}

fn sys_restart_syscall(call: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    match call.task.take_restart() {
        Some(restart) => super::clocks::sleep_again(call, restart),
        None => Err(Errno::EINTR.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::task::Task;
    use crate::task::signal::Payload;
    use crate::testing::{BASE, FlatThread};

    #[test]
    fn a_wait_for_signals_takes_them_and_times_out() {
        let kernel = Kernel::for_test();
        let task = Task::for_test(&kernel);
        let mut thread = FlatThread::new(4096);
        let mut call = Call { kernel: &kernel, task: &task, thread: &mut thread };
        task.set_signal_mask(SignalSet::of(&[libc::SIGUSR1]));
        call.write(BASE, &SignalSet::of(&[libc::SIGUSR1]).0.to_le_bytes()).unwrap();
        call.write(BASE + 8, &[0; 16]).unwrap();
        let arguments = [BASE, BASE + 64, BASE + 8, 8, 0, 0];
        assert_eq!(sys_rt_sigtimedwait(&mut call, arguments), Err(Errno::EAGAIN.into()));
        let payload = Payload::Queue { pid: 5, uid: 6, value: 7 };
        task.send_signal(SignalInfo { signal: libc::SIGUSR1, errno: 0, code: -1, payload }).unwrap();
        assert_eq!(sys_rt_sigtimedwait(&mut call, arguments), Ok(10));
        assert_eq!(call.read_u64(BASE + 64 + 24), Ok(7));
        assert!(!task.has_signal(SignalSet::ALL));
    }
}
