//! What a tracee stops for: its calls, signals, and events of its life.

use std::sync::Arc;

use super::super::signal::{SI_USER, SignalInfo, SignalSet, is_signal};
use super::super::{CloneArgs, Pid, Task, Tree};
use super::attach::clone_event;
use super::stop::{Reason, stand};
use super::{Options, Resume, event, event_code};
use crate::error::{Errno, Restart, SysError, SysResult};
use crate::platform::Thread;

/// PTRACE_EVENTMSG_SYSCALL_ENTRY and PTRACE_EVENTMSG_SYSCALL_EXIT.
const ENTRY: u64 = 1;
const EXIT: u64 = 2;
/// What `rax` holds until a call has a result.
const ENOSYS: u64 = (-(libc::ENOSYS as i64)).cast_unsigned();
/// `TRAP_BRKPT`: behind a call that was stepped over.
const TRAP_BRKPT: i32 = 1;

/// A call's errors that only the kernel and tracers see (`include/linux/errno.h`).
fn restart_value(rule: Restart) -> u64 {
    let errno: i64 = match rule {
        Restart::IfAsked => 512,
        Restart::Always => 513,
        Restart::WithoutHandler => 514,
        Restart::Block => 516,
    };
    (-errno).cast_unsigned()
}

fn options(task: &Task) -> Option<(Options, Resume)> {
    task.tasks().tree().trace(task.pid()).map(|trace| (trace.options, trace.resume))
}

/// A stop before or after a call. `false` where the task ends.
fn call_stop(task: &Arc<Task>, thread: &mut dyn Thread, options: Options, message: u64) -> bool {
    let good = if options.contains(Options::SYSGOOD) { 0x80 } else { 0 };
    let reason = Reason::event(task, libc::SIGTRAP | good, Some(message));
    let Some((signal, _)) = stand(task, thread, reason) else { return !task.is_ending() };
    send_from_tracer(task, signal);
    !task.is_ending()
}

/// A signal that a tracer gave where none was to be delivered.
fn send_from_tracer(task: &Task, signal: i32) {
    if is_signal(signal) {
        let _ = task.send_signal(SignalInfo::kernel(signal));
    }
}

/// Before a call of a traced task: the number of the call that is to be made; `None` for none.
pub(in super::super) fn enter_call(task: &Arc<Task>, thread: &mut dyn Thread, number: u64) -> Option<u64> {
    task.set_called(i64::from((number & 0xffff_ffff) as u32 as i32));
    let (options, resume) = options(task)?;
    let emulates = matches!(resume, Resume::Emulate | Resume::EmulateStep);
    if resume != Resume::Call && !emulates {
        return Some(number);
    }
    thread.regs().rax = ENOSYS;
    if !call_stop(task, thread, options, ENTRY) || emulates {
        return None;
    }
    // Less than 0 is no call, and what is in `rax` comes of it.
    u64::try_from(task.called()).ok()
}

/// After a call of a traced task: puts what came of it into the registers. A status where it ends.
pub(in super::super) fn finish_call(
    task: &Arc<Task>,
    thread: &mut dyn Thread,
    result: SysResult,
) -> Result<Option<(Restart, u64)>, i32> {
    let mut again = None;
    match result {
        Ok(value) => thread.set_result(value),
        Err(SysError::Errno(errno)) => thread.set_result((-i64::from(errno as i32)).cast_unsigned()),
        Err(SysError::Interrupted(rule)) => {
            thread.set_result(restart_value(rule));
            again = Some((rule, u64::try_from(task.called()).unwrap_or(0)));
        }
        Err(SysError::RegistersSet) if task.called() == libc::SYS_rt_sigreturn => task.set_called(-1),
        Err(SysError::RegistersSet) => {}
        Err(SysError::Exit) => return Err(task.exit_status()),
    }
    match options(task) {
        Some((options, Resume::Call)) => {
            call_stop(task, thread, options, EXIT);
            recheck(task, thread, &mut again);
        }
        Some((_, Resume::Step)) => {
            let rip = thread.regs().rip;
            task.force_signal(SignalInfo::fault(libc::SIGTRAP, TRAP_BRKPT, rip));
        }
        _ => {}
    }
    Ok(again)
}

/// A call that a signal interrupted, as a tracer sees it.
pub(in super::super) fn show_interrupted(task: &Task, thread: &mut dyn Thread, rule: Restart, number: u64) {
    thread.regs().rax = restart_value(rule);
    task.set_called(number.cast_signed());
}

/// Whether the call that was interrupted is still the one that the registers tell of, after a tracer had them.
pub(in super::super) fn recheck(
    task: &Task,
    thread: &mut dyn Thread,
    interrupted: &mut Option<(Restart, u64)>,
) {
    if let Some((rule, number)) = interrupted {
        match u64::try_from(task.called()) {
            Ok(called) if thread.regs().rax == restart_value(*rule) => *number = called,
            _ => *interrupted = None,
        }
    }
}

/// A signal that is about to be delivered: what is delivered instead (`ptrace_signal`).
pub(in super::super) fn signal_stop(
    task: &Arc<Task>,
    thread: &mut dyn Thread,
    info: SignalInfo,
) -> Option<SignalInfo> {
    let before = info.signal;
    let code = before;
    let reason =
        Reason { code, info: Some(info.clone()), message: None, why: libc::CLD_TRAPPED, ending: false };
    let Some((signal, changed)) = stand(task, thread, reason) else {
        // Nobody traces it any more, or it ends, which is seen next.
        return Some(info);
    };
    if !is_signal(signal) {
        return None;
    }
    let info = match changed {
        Some(info) if signal == before => SignalInfo { signal, ..info },
        _ => {
            let tracer = task.tracer().map_or(0, |(tracer, _)| task.shown(tracer));
            SignalInfo { code: SI_USER, ..SignalInfo::user(signal, tracer, 0) }
        }
    };
    if task.signal_mask().has(signal) && !SignalSet::UNBLOCKABLE.has(signal) {
        let _ = task.send_signal(info);
        return None;
    }
    Some(info)
}

/// A stop of the process, or one that was asked for (`do_jobctl_trap`).
pub(in super::super) fn trap_stop(task: &Arc<Task>, thread: &mut dyn Thread) {
    let found = task.tasks().tree().begin_trap(task);
    let Some((seized, stop)) = found else { return };
    let signal = stop.unwrap_or(libc::SIGTRAP);
    let reason = if seized {
        let code = event_code(signal, event::STOP);
        Reason { why: libc::CLD_STOPPED, ..Reason::event(task, code, Some(0)) }
    } else if stop.is_some() {
        Reason { code: signal, info: None, message: None, why: libc::CLD_STOPPED, ending: false }
    } else {
        return;
    };
    let _ = stand(task, thread, reason);
}

/// A handler was entered: a stop, where the tracer steps.
pub(in super::super) fn step_into_handler(task: &Arc<Task>, thread: &mut dyn Thread) {
    if let Some((_, Resume::Step | Resume::EmulateStep)) = options(task) {
        let reason = Reason::event(task, libc::SIGTRAP, None);
        if let Some((signal, _)) = stand(task, thread, reason) {
            send_from_tracer(task, signal);
        }
    }
}

/// A stop for an event, where the tracer wants it. Whether it did.
fn event_stop(
    task: &Arc<Task>,
    thread: &mut dyn Thread,
    wanted: (Options, u32),
    message: u64,
    ending: bool,
) -> bool {
    let (option, event) = wanted;
    if !options(task).is_some_and(|(options, _)| options.contains(option)) {
        return false;
    }
    let reason = Reason::event(task, event_code(libc::SIGTRAP, event), Some(message));
    let _ = stand(task, thread, Reason { ending, ..reason });
    true
}

/// A task that this one sees by its own number, as its tracer sees it.
fn for_tracer(task: &Task, pid: Pid) -> u64 {
    let tree = task.tasks().tree();
    let tracer = tree.trace(task.pid()).and_then(|trace| tree.threads.get(&trace.tracer));
    tracer.map_or(0, |tracer| u64::from(tracer.task.shown(pid).cast_unsigned()))
}

impl Task {
    /// Tells the tracer that this task made another one.
    pub(in super::super) fn report_clone(
        self: &Arc<Self>,
        thread: &mut dyn Thread,
        args: &CloneArgs,
        child: Pid,
    ) {
        if self.is_traced() {
            let message = for_tracer(self, child);
            let event = clone_event(args);
            event_stop(self, thread, (Options::from_bits_truncate(1 << event), event), message, false);
        }
    }

    /// Tells the tracer that this task waits no more for the child of its `vfork`.
    pub(in super::super) fn report_vfork_done(self: &Arc<Self>, thread: &mut dyn Thread, child: Pid) {
        if self.is_traced() {
            let message = for_tracer(self, child);
            event_stop(self, thread, (Options::VFORK_DONE, event::VFORK_DONE), message, false);
        }
    }
}

/// A new program begins; `before` is the number that the task had.
pub(in super::super) fn after_exec(task: &Arc<Task>, thread: &mut dyn Thread, before: Pid) {
    task.set_called(libc::SYS_execve);
    thread.regs().rax = 0;
    let message = for_tracer(task, before);
    if !event_stop(task, thread, (Options::EXEC, event::EXEC), message, false) {
        let seized = task.tasks().tree().trace(task.pid()).is_none_or(|trace| trace.seized);
        if !seized {
            let number = task.own_number();
            let _ = task.send_signal(SignalInfo::user(libc::SIGTRAP, number, task.credentials().uid));
        }
    }
}

/// The task is about to end.
pub(in super::super) fn report_end(task: &Arc<Task>, thread: &mut dyn Thread, status: i32) {
    let whole = task.tasks().tree().groups.get(&task.group().pid()).and_then(|state| state.exiting);
    let status = whole.unwrap_or(status);
    let message = u64::from(status.cast_unsigned());
    event_stop(task, thread, (Options::EXIT, event::EXIT), message, true);
}

/// A filter says that the tracer decides: the number of the call that is to be made, or what comes of it.
pub(in super::super) fn report_seccomp(
    task: &Arc<Task>,
    thread: &mut dyn Thread,
    told: u16,
) -> Result<u64, SysError> {
    let before = thread.regs().rax;
    thread.regs().rax = ENOSYS;
    if !event_stop(task, thread, (Options::SECCOMP, event::SECCOMP), told.into(), false) {
        thread.regs().rax = before;
        return Err(Errno::ENOSYS.into());
    }
    match u64::try_from(task.called()) {
        Ok(number) if !task.is_ending() => Ok(number),
        _ => Err(SysError::RegistersSet),
    }
}

impl Tree {
    /// Begins a stop of the process as this thread takes part in it, or one that was asked for: whether it was seized, and the signal by which
    /// its process stops.
    fn begin_trap(&mut self, task: &Task) -> Option<(bool, Option<i32>)> {
        let (pid, group) = (task.pid(), task.group().pid());
        let stop = self.groups.get(&group)?.stop;
        let thread = self.threads.get_mut(&pid)?;
        let trace = thread.trace.as_mut()?;
        trace.trap = false;
        let seized = trace.seized;
        if stop.is_some() {
            thread.stopped = true;
            self.finish_stop(group);
        }
        Some((seized, stop))
    }

    /// All traced threads of a process are to stop with it.
    pub(in super::super) fn trap_all(&mut self, group: Pid, seized_alone: bool) {
        let pids = self.groups.get(&group).map(|state| state.threads.clone()).unwrap_or_default();
        for pid in pids {
            let Some(thread) = self.threads.get_mut(&pid) else { continue };
            if let Some(trace) = thread.trace.as_mut() {
                trace.trap = trace.seized || !seized_alone;
                if seized_alone {
                    thread.stopped = false;
                }
                thread.task.poke();
            }
        }
    }
}
