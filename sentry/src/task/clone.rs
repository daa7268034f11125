//! New tasks (`man 2 clone`; `copy_process` in `kernel/fork.c`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::limits::INFINITY;
use super::namespaces::{Numbers, PID_MAX, for_clone};
use super::signal::{AltStack, SignalSet, is_signal};
use super::tree::{GroupState, ThreadState};
use super::{
    Credentials, Parts, Pid, PidNamespace, Resource, Task, ThreadGroup, Tree, capability, hooks, lock,
};
use crate::call::Call;
use crate::error::{Errno, Restart, SysError};
use crate::events::Waiter;
use crate::platform::Thread;

/// Flags of `clone`, as far as `libc` has them as signed numbers.
pub(crate) mod flag {
    macro_rules! flags {
        ($($name:ident = $value:expr;)*) => { $(pub(crate) const $name: u64 = $value;)* };
    }
    flags! {
        VM = 0x100; FS = 0x200; FILES = 0x400; SIGHAND = 0x800; PIDFD = 0x1000; VFORK = 0x4000;
        PARENT = 0x8000; THREAD = 0x1_0000; NEWNS = 0x2_0000; SETTLS = 0x8_0000;
        PARENT_SETTID = 0x10_0000; CHILD_CLEARTID = 0x20_0000; CHILD_SETTID = 0x100_0000;
        NEWCGROUP = 0x200_0000; NEWUTS = 0x400_0000; NEWIPC = 0x800_0000; NEWUSER = 0x1000_0000;
        NEWPID = 0x2000_0000; NEWNET = 0x4000_0000; CLEAR_SIGHAND = 0x1_0000_0000; NEWTIME = 0x80;
    }
    /// All that make a namespace (`NEWTIME` only in `clone3`, where it is no part of a signal).
    pub(crate) const NAMESPACES: u64 = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET;
    /// All that are known.
    pub(crate) const KNOWN: u64 = 0x1_ffff_ff00 | NEWTIME;
}

/// What is asked of `clone`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneArgs {
    /// `CLONE_*`, without a signal in the low bits.
    pub flags: u64,
    /// Sent to the parent at the end; 0 for none.
    pub exit_signal: i32,
    /// `rsp` of the new thread; 0 to keep it.
    pub stack: u64,
    /// Base of `fs`.
    pub tls: u64,
    /// Where the caller finds the number.
    pub parent_tid: u64,
    /// Where the caller finds a descriptor of the new process (`CLONE_PIDFD`).
    pub pidfd: u64,
    /// Where the new thread finds its number, and where it is cleared at its end.
    pub child_tid: u64,
    /// Numbers that the new task is to have, that of the innermost namespace first (`set_tid` of `clone3`).
    pub numbers: [Pid; 33],
    /// How many of these there are.
    pub numbered: usize,
}

impl Default for CloneArgs {
    fn default() -> Self {
        Self {
            flags: 0,
            exit_signal: 0,
            stack: 0,
            tls: 0,
            parent_tid: 0,
            pidfd: 0,
            child_tid: 0,
            numbers: [0; 33],
            numbered: 0,
        }
    }
}

/// A caller of `vfork` that waits.
pub(super) struct Vfork {
    done: AtomicBool,
    waiter: Arc<Waiter>,
}

impl CloneArgs {
    fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Which flag needs or forbids which.
    fn check(&self, task: &Task) -> Result<(), Errno> {
        let needs = |flag, needed| !self.has(flag) || self.has(needed);
        if !needs(flag::THREAD, flag::SIGHAND) || !needs(flag::SIGHAND, flag::VM) {
            return Err(Errno::EINVAL);
        }
        if self.has(flag::CLEAR_SIGHAND) && self.has(flag::SIGHAND)
            || self.has(flag::FS) && self.has(flag::NEWNS | flag::NEWUSER)
            || self.has(flag::THREAD) && self.has(flag::NEWUSER | flag::NEWPID)
            || self.flags & !flag::KNOWN != 0
        {
            return Err(Errno::EINVAL);
        }
        if self.has(flag::THREAD) && !Arc::ptr_eq(&task.namespaces().pids_for_children, task.pid_namespace())
        {
            return Err(Errno::EINVAL);
        }
        if self.has(flag::PIDFD) && self.has(flag::THREAD) {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }
}

/// Makes a task that goes on where the caller is, with 0 in `rax`. Its number.
///
/// # Errors
/// EINVAL for flags that do not go together, EPERM for namespaces, EAGAIN when there are too many tasks, what memory says (ENOMEM); or
/// the call is made again after a signal.
pub fn clone(call: &mut Call<'_>, args: &CloneArgs) -> Result<Pid, SysError> {
    args.check(call.task)?;
    // A signal to a whole group shall reach the new process as well, or not be there yet.
    if call.task.signal_pending() {
        return Err(SysError::Interrupted(Restart::Always));
    }
    check_process_limit(call.task)?;
    let (mut thread, parts, credentials) = copy_parts(call, args)?;
    thread.regs().rax = 0;
    if args.stack != 0 {
        thread.regs().rsp = args.stack;
    }
    if args.has(flag::SETTLS) {
        *thread.fs_base() = args.tls;
    }
    let started = call.kernel.clocks.monotonic();
    let task = call.task.tasks().tree().add(call.task, args, (parts, credentials), started)?;
    let pid = call.task.shown(task.pid());
    if !args.has(flag::THREAD)
        && task.group().limits().of(super::Resource::Cpu).soft != super::limits::INFINITY
    {
        super::watch_cpu_limit(call.kernel, task.group());
    }
    if args.has(flag::PIDFD)
        && let Err(errno) = give_pidfd(call, &task, args.pidfd)
    {
        let forgotten = call.task.tasks().tree().forget(&task);
        drop(forgotten);
        return Err(errno.into());
    }
    if args.has(flag::CHILD_SETTID) {
        let _ = thread.write(args.child_tid, &task.own_number().to_le_bytes());
    }
    if args.has(flag::CHILD_CLEARTID) {
        task.set_clear_child_tid(args.child_tid);
    }
    let vfork = args
        .has(flag::VFORK)
        .then(|| Arc::new(Vfork { done: AtomicBool::new(false), waiter: Arc::clone(call.task.waiter()) }));
    lock(&task.vfork).clone_from(&vfork);
    if let Err(errno) = serve_it(call, args, (&task, pid), thread) {
        let forgotten = call.task.tasks().tree().forget(&task);
        drop(forgotten);
        return Err(errno.into());
    }
    call.task.report_clone(call.thread, args, task.pid());
    if let Some(vfork) = vfork {
        wait_for_vfork(call.task, &vfork);
        call.task.report_vfork_done(call.thread, task.pid());
    }
    Ok(pid)
}

/// Has a thread of the sentry serve the new task.
fn serve_it(
    call: &Call<'_>,
    args: &CloneArgs,
    (task, shown): (&Arc<Task>, Pid),
    mut thread: Box<dyn Thread>,
) -> Result<(), Errno> {
    let (kernel, served) = (Arc::clone(call.kernel), Arc::clone(task));
    // The new one may look for its number there. As in Linux a bad address is the caller's own affair.
    let number = shown.to_le_bytes();
    let tells_parent = args.has(flag::PARENT_SETTID);
    // It begins when the caller goes on.
    let early = args.has(flag::THREAD) && !args.has(flag::VFORK);
    if let Some(worker) = early.then(|| call.kernel.workers.reserve()).flatten()
        && super::run::start(task, thread.as_mut())
    {
        if tells_parent {
            call.thread.write_aside(args.parent_tid, &number);
        }
        worker.run(Box::new(move || super::run::go_on(&kernel, &served, thread)));
        return Ok(());
    }
    if tells_parent {
        let _ = call.write(args.parent_tid, &number);
    }
    thread.release();
    call.kernel.workers.run(Box::new(move || super::run(&kernel, &served, thread)))
}

/// A descriptor of the new process, and its number where the caller wants it.
fn give_pidfd(call: &Call<'_>, task: &Task, address: u64) -> Result<(), Errno> {
    let files = call.task.files();
    let fd = hooks::insert_pidfd(&files, task.group())?;
    call.write(address, &fd.to_le_bytes()).inspect_err(|_| {
        // Nobody knows its number.
        let _ = files.close(fd);
    })
}

/// The guest thread of a new task, what it has, and who it is where that is not who its maker is.
type Copied = (Box<dyn Thread>, Parts, Option<Credentials>);

fn copy_parts(call: &mut Call<'_>, args: &CloneArgs) -> Result<Copied, Errno> {
    let fs = call.task.fs();
    let fs = if args.has(flag::FS) { fs } else { hooks::fork_fs(&fs) };
    let new = for_clone(call.task, args.flags, &fs)?;
    let (space, thread) = if args.has(flag::VM) {
        (call.task.space(), call.thread.spawn()?)
    } else {
        hooks::fork_space(&call.task.space(), call.thread)?
    };
    let files = call.task.files();
    let files = if args.has(flag::FILES) { files } else { hooks::fork_files(&files) };
    let namespaces = new.namespaces.unwrap_or_else(|| call.task.namespaces());
    Ok((thread, Parts { files, fs, space, namespaces }, new.credentials))
}

/// `RLIMIT_NPROC`, which counts tasks of the real user and does not hold root.
fn check_process_limit(task: &Task) -> Result<(), Errno> {
    if !task.control_group().may_grow(task.tasks()) {
        return Err(Errno::EAGAIN);
    }
    let limit = task.group().limits().of(Resource::Processes).soft;
    let credentials = task.credentials();
    if limit == INFINITY
        || credentials.uid == 0
        || credentials.capable(capability::SYS_RESOURCE)
        || credentials.capable(capability::SYS_ADMIN)
    {
        return Ok(());
    }
    let tree = task.tasks().tree();
    let same = tree.threads.values().filter(|thread| thread.task.credentials().uid == credentials.uid);
    if same.count() as u64 >= limit { Err(Errno::EAGAIN) } else { Ok(()) }
}

/// Waits until the child has another memory or ended. Only its own end takes the caller out of it.
fn wait_for_vfork(task: &Task, vfork: &Vfork) {
    loop {
        task.waiter().clear();
        if vfork.done.load(Ordering::SeqCst) || task.is_ending() {
            // What else woke the task meanwhile is found by its flag, which is still up.
            return;
        }
        task.waiter().wait(None);
    }
}

impl Task {
    /// Lets the caller of `vfork` go on, whose memory this task used.
    pub(super) fn finish_vfork(&self) {
        if let Some(vfork) = lock(&self.vfork).take() {
            vfork.done.store(true, Ordering::SeqCst);
            vfork.waiter.set();
        }
    }

    /// Whether its process ends, or another of its threads replaces the program.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        let tree = self.tasks.tree();
        tree.groups
            .get(&self.group.pid())
            .is_none_or(|state| state.exiting.is_some() || state.execs.is_some_and(|by| by != self.pid()))
    }
}

impl Tree {
    /// Numbers of a new task: what was asked for, or what is free (`alloc_pid`).
    fn numbers(
        &mut self,
        args: &CloneArgs,
        space: &Arc<PidNamespace>,
        who: &Credentials,
    ) -> Result<(Pid, Option<Arc<Numbers>>), Errno> {
        let wanted = args.numbers.get(..args.numbered).unwrap_or_default();
        let levels = usize::try_from(space.level()).unwrap_or(usize::MAX);
        if wanted.len() > levels.saturating_add(1) || wanted.iter().any(|pid| !(1..PID_MAX).contains(pid)) {
            return Err(Errno::EINVAL);
        }
        let mut at = Some(space);
        for number in wanted {
            let Some(namespace) = at else { break };
            if *number != 1 && namespace.init() == 0 {
                return Err(Errno::EINVAL);
            }
            let may = [capability::CHECKPOINT_RESTORE, capability::SYS_ADMIN];
            if !may.iter().any(|capability| who.capable_in(namespace.owner(), *capability)) {
                return Err(Errno::EPERM);
            }
            at = namespace.parent();
        }
        let pid = self.allocate(wanted.get(levels).copied())?;
        let numbers = Numbers::claim(pid, space, wanted.get(..levels).unwrap_or(wanted))?;
        Ok((pid, numbers))
    }

    fn add(
        &mut self,
        caller: &Arc<Task>,
        args: &CloneArgs,
        (parts, credentials): (Parts, Option<Credentials>),
        started: std::time::Duration,
    ) -> Result<Arc<Task>, Errno> {
        let state = self.groups.get(&caller.group().pid()).ok_or(Errno::ESRCH)?;
        if args.has(flag::PARENT) && !args.has(flag::THREAD) && (state.parent == 0 || state.unkillable) {
            return Err(Errno::EINVAL);
        }
        // A thread of a process that ends would outlive the end.
        if state.exiting.is_some() || state.execs.is_some() {
            return Err(Errno::EAGAIN);
        }
        let same_process = args.has(flag::THREAD);
        let space = Arc::clone(if same_process {
            caller.pid_namespace()
        } else {
            &parts.namespaces.pids_for_children
        });
        let credentials = credentials.map_or_else(|| caller.credentials(), Arc::new);
        let (pid, numbers) = self.numbers(args, &space, &credentials)?;
        let tasks = Arc::clone(caller.tasks());
        let group = if same_process {
            Arc::clone(caller.group())
        } else {
            let place = (space, caller.group().container());
            let group = ThreadGroup::new(pid, place, Arc::clone(&tasks), started, caller.group().limits());
            group.set_dumpable(caller.group().dumpable());
            group.set_oom_score_adjustment(caller.group().oom_score_adjustment());
            group
        };
        let task = Arc::new(Task::new(pid, Arc::clone(&group), tasks, Arc::clone(&credentials), parts));
        task.inherit(caller);
        let mut thread = ThreadState::new(Arc::clone(&task), group.pid());
        if let Some(parent) = self.threads.get(&caller.pid()) {
            thread.mask = parent.mask;
            let fresh_stack = args.has(flag::VM) && !args.has(flag::VFORK);
            thread.stack = if fresh_stack { AltStack::default() } else { parent.stack };
        }
        thread.numbers.clone_from(&numbers);
        self.threads.insert(pid, thread);
        if same_process {
            if let Some(state) = self.groups.get_mut(&group.pid()) {
                state.threads.push(pid);
            }
        } else {
            self.add_group(caller, args, (group, numbers), credentials);
        }
        self.trace_child(caller.pid(), args, pid);
        self.settle(&task);
        Ok(task)
    }

    fn add_group(
        &mut self,
        caller: &Task,
        args: &CloneArgs,
        (group, numbers): (Arc<ThreadGroup>, Option<Arc<Numbers>>),
        credentials: Arc<Credentials>,
    ) {
        let Some(from) = self.groups.get(&caller.group().pid()) else { return };
        let actions = if args.has(flag::SIGHAND) {
            Arc::clone(&from.actions)
        } else {
            let mut actions = lock(&from.actions).clone();
            if args.has(flag::CLEAR_SIGHAND) {
                actions.clear_handlers();
            }
            Arc::new(Mutex::new(actions))
        };
        let pid = group.pid();
        let mut state = GroupState::new(group, credentials, actions);
        (state.pgid, state.sid) = (from.pgid, from.sid);
        let [_, of_group, of_session] = from.numbers.clone();
        state.numbers = [numbers, of_group, of_session];
        let space = Arc::clone(state.group.pid_namespace());
        state.become_init_if_first(&space);
        if args.has(flag::PARENT) {
            (state.parent, state.parent_thread) = (from.parent, from.parent_thread);
            state.exit_signal = from.exit_signal;
        } else {
            (state.parent, state.parent_thread) = (caller.group().pid(), caller.pid());
            state.exit_signal = if is_signal(args.exit_signal) { args.exit_signal } else { 0 };
        }
        let parent = state.parent;
        self.groups.insert(pid, state);
        if let Some(parent) = self.groups.get_mut(&parent) {
            parent.children.insert(pid);
        }
    }

    /// Takes a task back that never ran. What is to be dropped without the lock.
    fn forget(&mut self, task: &Task) -> (Option<ThreadState>, Option<GroupState>) {
        self.unlink(task.pid(), 0);
        let thread = self.threads.remove(&task.pid());
        let group = task.group().pid();
        if group != task.pid() {
            if let Some(state) = self.groups.get_mut(&group) {
                state.threads.retain(|pid| *pid != task.pid());
                let signals = SignalSet::ALL;
                self.retarget(group, signals);
            }
            return (thread, None);
        }
        let state = self.groups.remove(&group);
        if task.pid_namespace().init() == group {
            task.pid_namespace().set_init(0);
        }
        if let Some(parent) = state.as_ref().and_then(|state| self.groups.get_mut(&state.parent)) {
            parent.children.remove(&group);
        }
        (thread, state)
    }
}
