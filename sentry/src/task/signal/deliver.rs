//! From a queue to the guest (`get_signal` in `kernel/signal.c`, `handle_signal` in `arch/x86/kernel/signal.c`).

use std::sync::Arc;

use super::super::{Pid, Resource, Task, Tree, lock, ptrace};
use super::action::{SA_NODEFER, SA_RESETHAND, SA_RESTART, SIG_DFL, SIG_IGN};
use super::frame::{Frame, push_frame};
use super::{Default, SigAction, SignalInfo, SignalSet, default_action};
use crate::error::{Errno, Restart};
use crate::platform::Thread;

/// Bytes of the `syscall` instruction: an interrupted call is made again by going back over it.
const SYSCALL_LENGTH: u64 = 2;
/// Number of `restart_syscall`.
const RESTART_SYSCALL: u64 = libc::SYS_restart_syscall.unsigned_abs();

/// What a task does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Guest code goes on.
    GoOn,
    /// It ends. The status is what its process has if this is its last thread and the process does not end as a whole.
    Exit,
}

/// What is next for a thread.
enum Step {
    Exit,
    Stop,
    /// A traced thread takes part in a stop, or was asked to stop.
    Trap,
    /// Its tracer hears of a signal first.
    Report(SignalInfo),
    Handle(SignalInfo, SigAction),
    Nothing,
}

/// Delivers what is there. `interrupted`: the task's call ended by a signal; the rule of it, and the number of the call.
pub(crate) fn deliver(
    task: &Arc<Task>,
    thread: &mut dyn Thread,
    mut interrupted: Option<(Restart, u64)>,
) -> Flow {
    if let Some((rule, number)) = interrupted
        && task.is_traced()
    {
        ptrace::show_interrupted(task, thread, rule, number);
    }
    loop {
        let mut step = task.tasks().tree().next_step(task);
        if let Step::Report(info) = step {
            let info = ptrace::signal_stop(task, thread, info);
            ptrace::recheck(task, thread, &mut interrupted);
            let Some(info) = info else { continue };
            let Some(next) = task.tasks().tree().act_on(task, info) else { continue };
            step = next;
        }
        match step {
            Step::Exit => return Flow::Exit,
            Step::Stop => stand_still(task),
            Step::Trap => {
                ptrace::trap_stop(task, thread);
                ptrace::recheck(task, thread, &mut interrupted);
            }
            Step::Handle(info, action) => {
                if let Some(interrupted) = interrupted.take() {
                    settle_call_before_handler(thread, interrupted, action);
                }
                run_handler(task, thread, &info, action);
                if task.is_traced() {
                    ptrace::step_into_handler(task, thread);
                }
            }
            Step::Report(_) | Step::Nothing => break,
        }
    }
    if let Some((rule, number)) = interrupted {
        make_call_again(thread, rule, number);
    }
    task.restore_saved_mask();
    Flow::GoOn
}

pub(crate) fn make_call_again(thread: &mut dyn Thread, rule: Restart, number: u64) {
    let regs = thread.regs();
    regs.rip = regs.rip.wrapping_sub(SYSCALL_LENGTH);
    regs.rax = if rule == Restart::Block { RESTART_SYSCALL } else { number };
}

/// A handler's frame has the registers of a call that failed, or of one that is about to be made.
fn settle_call_before_handler(thread: &mut dyn Thread, (rule, number): (Restart, u64), action: SigAction) {
    let again = match rule {
        Restart::Always => true,
        Restart::IfAsked => action.flags & SA_RESTART != 0,
        Restart::WithoutHandler | Restart::Block => false,
    };
    if again {
        make_call_again(thread, rule, number);
    } else {
        thread.regs().rax = (-i64::from(Errno::EINTR as i32)).cast_unsigned();
    }
}

fn run_handler(task: &Arc<Task>, thread: &mut dyn Thread, info: &SignalInfo, action: SigAction) {
    let (mask, saved, stack) = {
        let mut tree = task.tasks().tree();
        match tree.threads.get_mut(&task.pid()) {
            Some(state) => (state.mask, state.saved_mask.take(), state.stack),
            None => return,
        }
    };
    let frame = Frame { info, action, mask: saved.unwrap_or(mask), stack, fault: task.fault() };
    match push_frame(thread, &frame) {
        Ok(stack) => {
            let mut blocked = mask.union(action.mask);
            if action.flags & SA_NODEFER == 0 {
                blocked.insert(info.signal);
            }
            task.set_signal_stack(stack);
            task.set_signal_mask(blocked);
        }
        Err(_) => force_segv(task, info.signal),
    }
}

impl Task {
    /// Ends the process by a signal that nothing can be done about, with an image of itself where there is a limit for it.
    pub(crate) fn end_by(&self, signal: i32) {
        let mut tree = self.tasks().tree();
        let status = tree.status_of_core(self.group().pid(), signal);
        tree.begin_group_exit(self.group().pid(), status);
    }
}

/// No frame could be made, or none be read: SIGSEGV, and the end if that was the very signal (`force_sigsegv`).
fn force_segv(task: &Task, signal: i32) {
    if signal == libc::SIGSEGV {
        task.end_by(libc::SIGSEGV);
    } else {
        force_fault(task, SignalInfo::kernel(libc::SIGSEGV));
    }
}

/// A signal that cannot be put off: if it is blocked or ignored, its process loses its say (`force_sig_info`).
pub(crate) fn force_fault(task: &Task, info: SignalInfo) {
    let mut tree = task.tasks().tree();
    let signal = info.signal;
    let Some(thread) = tree.threads.get_mut(&task.pid()) else { return };
    let blocked = thread.mask.has(signal);
    thread.mask.remove(signal);
    thread.pending.push(info, None);
    if let Some(group) = tree.groups.get_mut(&task.group().pid()) {
        let mut actions = lock(&group.actions);
        if blocked || actions.of(signal).handler == SIG_IGN {
            actions.reset(signal);
        }
        if actions.of(signal).handler == SIG_DFL {
            group.unkillable = false;
        }
    }
    tree.settle(task);
}

/// Waits until the process goes on or ends.
fn stand_still(task: &Arc<Task>) {
    loop {
        task.waiter().clear();
        {
            let mut tree = task.tasks().tree();
            if !tree.stands_still(task.pid(), task.group().pid()) {
                return;
            }
        }
        task.waiter().wait(None);
    }
}

impl Tree {
    fn next_step(&mut self, task: &Task) -> Step {
        let (pid, group) = (task.pid(), task.group().pid());
        loop {
            let (Some(thread), Some(state)) = (self.threads.get_mut(&pid), self.groups.get_mut(&group))
            else {
                return Step::Exit;
            };
            if state.exiting.is_some() || state.execs.is_some_and(|by| by != pid) {
                return Step::Exit;
            }
            match thread.trace.as_ref() {
                Some(trace) if trace.trap => return Step::Trap,
                None if state.stop.is_some() => return Step::Stop,
                _ => {}
            }
            let wanted = SignalSet::ALL.without(thread.mask);
            let taken = thread.pending.take(wanted).or_else(|| state.pending.take(wanted));
            let Some(info) = taken else {
                self.settle(task);
                return Step::Nothing;
            };
            if thread.trace.is_some() && info.signal != libc::SIGKILL {
                return Step::Report(info);
            }
            if let Some(step) = self.act_on(task, info) {
                return step;
            }
        }
    }

    /// What a signal does to a thread; `None` for nothing.
    fn act_on(&mut self, task: &Task, info: SignalInfo) -> Option<Step> {
        let group = task.group().pid();
        let state = self.groups.get_mut(&group)?;
        let action = {
            let mut actions = lock(&state.actions);
            let action = actions.of(info.signal);
            if action.handler > SIG_IGN && action.flags & SA_RESETHAND != 0 {
                actions.reset(info.signal);
            }
            action
        };
        match action.handler {
            SIG_IGN => None,
            SIG_DFL => match self.take_default(group, info.signal) {
                // It takes part in the stop as all traced threads do.
                Some(Step::Stop) if self.trace(task.pid()).is_some() => None,
                step => step,
            },
            _ => Some(Step::Handle(info, action)),
        }
    }

    fn take_default(&mut self, group: Pid, signal: i32) -> Option<Step> {
        let unkillable = self.groups.get(&group).is_some_and(|state| state.unkillable);
        if unkillable && !SignalSet::UNBLOCKABLE.has(signal) {
            return None;
        }
        match default_action(signal) {
            Default::Ignore => None,
            Default::Stop if self.stop_is_void(group, signal) => None,
            Default::Stop => {
                self.begin_stop(group, signal);
                Some(Step::Stop)
            }
            Default::Terminate => {
                self.begin_group_exit(group, signal);
                Some(Step::Exit)
            }
            Default::Core => {
                let status = self.status_of_core(group, signal);
                self.begin_group_exit(group, status);
                Some(Step::Exit)
            }
        }
    }

    /// The status of a process that leaves an image of itself: with the flag for it unless the limit forbids images.
    fn status_of_core(&self, group: Pid, signal: i32) -> i32 {
        let limit = self.groups.get(&group).map_or(0, |state| state.group.limits().of(Resource::Core).soft);
        if limit == 0 { signal } else { signal | 0x80 }
    }

    fn begin_stop(&mut self, group: Pid, signal: i32) {
        if let Some(state) = self.groups.get_mut(&group) {
            state.stop = Some(signal);
        }
        self.trap_all(group, false);
        self.poke_all(group);
    }

    /// Whether the thread still has to stand still. The last one to do so tells the parent.
    fn stands_still(&mut self, pid: Pid, group: Pid) -> bool {
        let traced = self.trace(pid).is_some();
        let Some(state) = self.groups.get_mut(&group) else { return false };
        match (state.stop, state.exiting) {
            _ if traced => return false,
            (Some(_), None) if state.execs.is_none_or(|by| by == pid) => {}
            _ => {
                if let Some(thread) = self.threads.get_mut(&pid) {
                    thread.stopped = false;
                }
                return false;
            }
        }
        if let Some(thread) = self.threads.get_mut(&pid) {
            thread.stopped = true;
        }
        self.finish_stop(group);
        true
    }
}
