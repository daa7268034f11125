//! The life of a task: the main function of the sentry's thread that serves a guest thread.

use std::sync::Arc;

use super::signal::{Flow, SignalInfo, deliver, force_fault, make_call_again};
use super::{ControlGroup, Pid, Resource, Serving, Task, exit, lock, ptrace};
use crate::call::Call;
use crate::error::{Errno, Restart, SysError, SysResult};
use crate::events;
use crate::kernel::Kernel;
use crate::mm;
use crate::platform::{Thread, Trap};
use crate::syscalls::steady;

/// A panic of the sentry is a bug in what keeps guests apart: the sandbox ends, rather than go on with something half done.
struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Serves a guest thread until it ended.
pub fn run(kernel: &Arc<Kernel>, task: &Arc<Task>, mut thread: Box<dyn Thread>) {
    serve_to_the_end(task, || {
        attach(task, thread.as_ref());
        set_answers(task, thread.as_mut());
        serve(kernel, task, thread, false)
    });
}

/// The same for one whose guest runs already ([`start`]).
pub(super) fn go_on(kernel: &Arc<Kernel>, task: &Arc<Task>, thread: Box<dyn Thread>) {
    serve_to_the_end(task, || {
        events::serves(Some(thread.interrupt()));
        serve(kernel, task, thread, true)
    });
}

/// A panic ends all; who hears of the thread's end does when it is over.
fn serve_to_the_end(task: &Arc<Task>, serve: impl FnOnce() -> (Box<dyn Thread>, i32)) {
    let guard = EndOnPanic;
    let serving = Serving::begin(task);
    task.usage.begin();
    let (mut thread, status) = serve();
    if task.is_traced() {
        ptrace::report_end(task, thread.as_mut(), status);
    }
    *lock(&task.interrupt) = None;
    events::wake_put_off();
    events::serves(None);
    exit::exit(task, thread, status);
    crate::platform::rest();
    drop(serving);
    drop(guard);
}

/// Lets the guest of a new thread run before anybody serves it, where nothing is to be done first. Whether it runs: then [`go_on`] is for it.
///
/// What comes for the task meanwhile interrupts the guest, as ever, and is seen by who serves it then.
pub(super) fn start(task: &Arc<Task>, thread: &mut dyn Thread) -> bool {
    *lock(&task.interrupt) = Some(thread.interrupt());
    if task.is_traced() || !task.lets_answer() {
        return false;
    }
    set_answers(task, thread);
    if task.signal_pending() || task.control_group().frozen() {
        return false;
    }
    let started = thread.start();
    if started {
        task.usage.enter();
    }
    started
}

/// Calls by which guests hand something to each other, and wait for it. Whom they wake is woken a little later ([`events::may_put_off`]).
const QUICK: [i64; 12] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_futex,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_rt_sigprocmask,
];

/// Calls after which others give another value.
const CHANGES_ANSWERS: [i64; 10] = [
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
];

/// Tells the platform what calls give that depend on the task alone.
fn tell_answers(task: &Task, thread: &mut dyn Thread) {
    let who = task.credentials();
    let value = |number: i64, value: u32| (number.unsigned_abs(), u64::from(value));
    thread.set_answers(&[
        value(libc::SYS_getpid, task.shown(task.group().pid()).cast_unsigned()),
        value(libc::SYS_gettid, task.own_number().cast_unsigned()),
        value(libc::SYS_getuid, who.user_ns.shown_uid(who.uid)),
        value(libc::SYS_geteuid, who.user_ns.shown_uid(who.euid)),
        value(libc::SYS_getgid, who.user_ns.shown_gid(who.gid)),
        value(libc::SYS_getegid, who.user_ns.shown_gid(who.egid)),
    ]);
    // Under the lock: whoever gives the process another parent then tells the threads that are here (`Tree::tell_new_parent`).
    let tree = task.tasks().tree();
    let parent = task.shown(tree.parent_of(task.group().pid()));
    thread.set_answers(&[value(libc::SYS_getppid, parent.cast_unsigned())]);
}

/// Tells the platform which calls it may answer: none of a task that may not make one of them, or that is traced.
fn set_answers(task: &Task, thread: &mut dyn Thread) {
    if task.is_traced() {
        ptrace::show_code(task, thread);
    }
    if task.lets_answer() && !task.is_traced() {
        tell_answers(task, thread);
        thread.let_by_itself(task.does_by_itself());
    } else if thread.stop_answering().is_err() {
        // Calls would pass by the filter.
        task.end_all_of_space();
    }
}

impl Task {
    /// Ends all processes that have its memory: their code may be broken.
    pub(super) fn end_all_of_space(&self) {
        let space = self.space().id();
        let tasks = self.tasks.select(|task, _| Some(Arc::clone(task)));
        for task in tasks.iter().filter(|task| task.space().id() == space) {
            // Who is gone is gone.
            let _ = task.group().send_from_outside(libc::SIGKILL);
        }
        self.exit_group(libc::SIGKILL);
    }
}

/// Whether a fault is that of an area which grows down, and now has grown.
fn grows(task: &Task, thread: &mut dyn Thread, address: u64) -> bool {
    let stack = task.group().limits().of(Resource::Stack).soft;
    task.space().grow(thread, address, &mm::Limits { stack, ..mm::Limits::default() })
}

/// Lets the platform change the place in the guest's code where the call came from, where that is code that nobody writes.
fn speed_up(task: &Task, thread: &mut dyn Thread) {
    let Some(place) = thread.replaceable() else { return };
    let space = task.space();
    let Some(area) = space.area_at(place) else { return };
    let code = area.is_private_code() && area.range().contains(&place.saturating_add(16));
    let replaced = if code { thread.replace(area.protection.bits().cast_signed()) } else { Ok(()) };
    match replaced {
        Ok(()) => {}
        // The stub is gone already: another thread ended the process.
        Err(Errno::EFAULT) => task.exit_group(libc::SIGKILL),
        Err(errno) => {
            tracing::warn!(%errno, "a page of a guest's code could not be given back its protection");
            task.end_all_of_space();
        }
    }
}

fn attach(task: &Task, thread: &dyn Thread) {
    events::serves(Some(thread.interrupt()));
    *lock(&task.interrupt) = Some(thread.interrupt());
}

/// Waits while its container is frozen. What there is to deliver is delivered before, and guest code runs after.
fn stand_still(task: &Arc<Task>, thread: &mut dyn Thread, group: &ControlGroup) -> Flow {
    loop {
        // What it was saved as stays true as long as it is saved: signals wait.
        let parked = group.saving() && task.is_parked();
        if !parked && task.signal_pending() && deliver(task, thread, None) == Flow::Exit {
            return Flow::Exit;
        }
        task.waiter().clear();
        if !group.frozen() {
            return Flow::GoOn;
        }
        if group.saving() {
            task.park(thread);
        }
        if !task.signal_pending() || group.saving() {
            task.waiter().wait(None);
        }
    }
}

/// What there is to do before guest code runs.
fn before_guest(task: &Arc<Task>, thread: &mut dyn Thread, group: &ControlGroup) -> Flow {
    if task.signal_pending() {
        thread.settle();
        if deliver(task, thread, None) == Flow::Exit {
            return Flow::Exit;
        }
        if task.take_stale_answers() {
            set_answers(task, thread);
        }
    }
    if !group.frozen() {
        return Flow::GoOn;
    }
    thread.settle();
    stand_still(task, thread, group)
}

/// Serves a guest thread, whose guest code may run already.
fn serve(
    kernel: &Arc<Kernel>,
    task: &Arc<Task>,
    mut thread: Box<dyn Thread>,
    mut runs: bool,
) -> (Box<dyn Thread>, i32) {
    let group = task.control_group();
    loop {
        let trap = if std::mem::take(&mut runs) {
            thread.resume()
        } else {
            if before_guest(task, thread.as_mut(), &group) == Flow::Exit {
                return (thread, 0);
            }
            task.usage.enter();
            if task.is_traced() { ptrace::run(task, thread.as_mut()) } else { thread.resume() }
        };
        task.usage.leave(thread.slept());
        thread.clear_slept();
        match trap {
            Trap::Syscall { number } => {
                if let Some(status) = serve_call(kernel, task, &mut thread, number) {
                    return (thread, status);
                }
            }
            Trap::Fault { signal: libc::SIGSEGV, address, .. } if grows(task, thread.as_mut(), address) => {}
            Trap::Fault { signal, code, address, exception } => {
                task.set_fault(exception, address);
                force_fault(task, SignalInfo::fault(signal, code, address));
            }
            Trap::Interrupted => {}
            Trap::Gone if task.exit_lost() => group.lost_one(),
            Trap::Gone => {}
        }
    }
}

/// Serves a call. The status, where the thread ends.
fn serve_call(
    kernel: &Arc<Kernel>,
    task: &Arc<Task>,
    thread: &mut Box<dyn Thread>,
    number: u64,
) -> Option<i32> {
    let traced = task.is_traced();
    let before = task.pid();
    let made = if traced { ptrace::enter_call(task, thread.as_mut(), number) } else { Some(number) };
    let result = match made {
        Some(number) => carry_out(kernel, task, thread.as_mut(), number),
        None => Err(SysError::RegistersSet),
    };
    let replaced = result == Err(SysError::RegistersSet);
    let next = replaced.then(|| task.take_next_thread()).flatten();
    let executed = next.is_some();
    if let Some(next) = next {
        attach(task, next.as_ref());
        *thread = next;
    } else {
        speed_up(task, thread.as_mut());
    }
    if executed || CHANGES_ANSWERS.contains(&number.cast_signed()) {
        set_answers(task, thread.as_mut());
    }
    if traced {
        return finish_traced_call(task, thread.as_mut(), result, executed.then_some(before));
    }
    finish_call(task, thread.as_mut(), number, result)
}

/// As [`finish_call`], of a task that is traced; `executed`: a new program begins, and this was the task's number.
fn finish_traced_call(
    task: &Arc<Task>,
    thread: &mut dyn Thread,
    result: SysResult,
    executed: Option<Pid>,
) -> Option<i32> {
    if let Some(before) = executed {
        ptrace::after_exec(task, thread, before);
    }
    let again = match ptrace::finish_call(task, thread, result) {
        Ok(again) => again?,
        Err(status) => return Some(status),
    };
    interrupted(task, thread, again.0, again.1)
}

/// Makes the call that the registers say.
pub(super) fn carry_out(
    kernel: &Arc<Kernel>,
    task: &Arc<Task>,
    thread: &mut dyn Thread,
    number: u64,
) -> SysResult {
    // Also of a call that is not made after all: what was put off before is not for longer.
    events::may_put_off(QUICK.contains(&number.cast_signed()) && thread.wakes_put_off());
    let result = admit_and_handle(kernel, task, thread, number);
    events::puts_off_no_more();
    result
}

fn admit_and_handle(
    kernel: &Arc<Kernel>,
    task: &Arc<Task>,
    thread: &mut dyn Thread,
    number: u64,
) -> SysResult {
    // Registers are fetched for those alone that their arguments decide.
    let number = if task.judges(number) { super::seccomp::admit(task, thread, number)? } else { number };
    let arguments = thread.arguments();
    let entry = usize::try_from(number).ok().and_then(|number| kernel.calls.get(number)).copied().flatten();
    match entry {
        Some(entry) => {
            let result = (entry.handler)(&mut Call { kernel, task, thread }, arguments);
            steady::made(number);
            result
        }
        None => {
            kernel.note_unknown_call(&task.comm(), number);
            Err(SysError::Errno(Errno::ENOSYS))
        }
    }
}

/// Puts what came of a call into the registers. The status, where the thread ends.
fn finish_call(task: &Arc<Task>, thread: &mut dyn Thread, number: u64, result: SysResult) -> Option<i32> {
    match result {
        Ok(value) => thread.set_result(value),
        Err(SysError::Errno(Errno::EINTR)) if task.only_saved() => {
            task.restore_saved_mask();
            make_call_again(thread, Restart::Always, number);
        }
        Err(SysError::Errno(errno)) => thread.set_result((-i64::from(errno as i32)).cast_unsigned()),
        Err(SysError::Interrupted(rule)) => return interrupted(task, thread, rule, number),
        Err(SysError::RegistersSet) => {}
        Err(SysError::Exit) => return Some(task.exit_status()),
    }
    None
}

fn interrupted(task: &Arc<Task>, thread: &mut dyn Thread, rule: Restart, number: u64) -> Option<i32> {
    match deliver(task, thread, Some((rule, number))) {
        Flow::Exit => Some(0),
        Flow::GoOn => None,
    }
}
