//! Processes, threads, signals, credentials.
//!
//! A [`Task`] is a guest thread, a [`ThreadGroup`] a process. What they are to each other (who is whose child, who is in which group
//! and session, who is stopped, which signals are pending for whom) is one structure, the *tree*, under one lock of the sandbox, as
//! `tasklist_lock` and `siglock` of Linux would be if they were one. It is held for a few hundred instructions, never while guest
//! memory is touched, a file is closed or something is waited for. What a task looks at before it goes back to guest code is
//! a flag of its own, without a lock.
//!
//! **Order of locks**, outermost first:
//! 1. the timers of a process (`ThreadGroup::timers`);
//! 2. the tree;
//! 3. the actions of a process (shared by processes after `CLONE_SIGHAND`);
//! 4. a group's small locks (limits, time of what ended), then a task's (credentials, files, interrupt, CPU time);
//! 5. wait queues, and in them waiters.
//!
//! A [`crate::events::Wake`] is called under 2 and 5, so it must not send signals nor ask for anything here.
//! The timer thread's own lock is a leaf: it fires with no lock held.

mod clone;
mod control_group;
mod cpu_limit;
mod credentials;
mod current;
mod exec;
mod exit;
mod group;
mod hooks;
mod limits;
pub mod namespaces;
mod pool;
mod process;
pub mod ptrace;
mod run;
mod saved;
pub mod seccomp;
pub mod signal;
mod tree;
mod usage;
mod wait;

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub(crate) use crate::sync::lock;
use std::time::Duration;

pub use clone::{CloneArgs, clone};
pub use control_group::ControlGroup;
pub(crate) use cpu_limit::watch_cpu_limit;
pub use credentials::{Capabilities, Credentials, capability, securebits};
pub use current::{Serving, current};
pub use group::ThreadGroup;
pub use limits::{Limit, Limits, Resource};
pub use namespaces::{Namespaces, PidNamespace, UserNamespace, unshare};
pub use pool::Workers;
pub use process::{NewProcess, ProcessInfo};
pub use run::run;
pub(crate) use saved::{Lists, Parked, Room, forget, restore, save, set_registers};
pub use tree::Tasks;
pub(crate) use tree::Tree;
pub use usage::{CpuTimes, Usage};
pub use wait::{WaitOptions, WaitTarget, Waited};

use crate::events::Waiter;
use crate::mm::AddressSpace;
use crate::platform::{Interrupt, Thread};
use crate::vfs::{FdTable, FsContext};

/// Number of a task: as guests of the root namespace see it ([`namespaces`]).
pub type Pid = i32;

/// An interrupted sleep for a time, which goes on by `restart_syscall`.
#[derive(Clone)]
pub struct RestartBlock {
    /// By which it sleeps.
    pub clock: crate::time::Clock,
    /// What the clock shows when it is over.
    pub until: Duration,
    /// Where the guest is told how much is left; 0 for nowhere.
    pub left_to: u64,
}

/// A thread of a guest process.
pub struct Task {
    pid: AtomicI32,
    group: Arc<ThreadGroup>,
    tasks: Arc<Tasks>,
    waiter: Arc<Waiter>,
    attention: AtomicBool,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
    next_thread: Mutex<Option<Box<dyn Thread>>>,
    restart: Mutex<Option<RestartBlock>>,
    vfork: Mutex<Option<Arc<clone::Vfork>>>,
    credentials: Mutex<Arc<Credentials>>,
    namespaces: Mutex<Arc<Namespaces>>,
    stale_answers: AtomicBool,
    filters: Mutex<seccomp::Filters>,
    filtered: seccomp::Cached,
    files: Mutex<Arc<FdTable>>,
    fs: Mutex<Arc<FsContext>>,
    space: Mutex<Arc<AddressSpace>>,
    comm: Mutex<[u8; 16]>,
    clear_child_tid: AtomicU64,
    timer_slack: AtomicU64,
    personality: AtomicU32,
    nice: AtomicI32,
    io_priority: AtomicU32,
    scheduling: Mutex<(i32, i32)>,
    affinity: Mutex<Option<Vec<u8>>>,
    no_huge_pages: AtomicBool,
    exit_status: AtomicI32,
    usage: Usage,
    control_group: Mutex<Arc<ControlGroup>>,
    /// What its guest thread is like, while it stands still to be saved.
    parked: Mutex<Option<Parked>>,
    traced: AtomicBool,
    called: AtomicI64,
    shared: ptrace::Shared,
}

/// Default slack of a timer, in nanoseconds.
pub const TIMER_SLACK: u64 = 50_000;

/// What a new task shares with others or has of its own.
pub(crate) struct Parts {
    pub(crate) files: Arc<FdTable>,
    pub(crate) fs: Arc<FsContext>,
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) namespaces: Arc<Namespaces>,
}

impl Task {
    /// A task that is nowhere yet.
    fn new(
        pid: Pid,
        group: Arc<ThreadGroup>,
        tasks: Arc<Tasks>,
        credentials: Arc<Credentials>,
        parts: Parts,
    ) -> Self {
        Self {
            pid: AtomicI32::new(pid),
            group,
            tasks,
            waiter: Waiter::new(),
            attention: AtomicBool::new(false),
            interrupt: Mutex::new(None),
            next_thread: Mutex::new(None),
            restart: Mutex::new(None),
            vfork: Mutex::new(None),
            credentials: Mutex::new(credentials),
            namespaces: Mutex::new(parts.namespaces),
            stale_answers: AtomicBool::new(false),
            filters: Mutex::default(),
            filtered: seccomp::Cached::default(),
            files: Mutex::new(parts.files),
            fs: Mutex::new(parts.fs),
            space: Mutex::new(parts.space),
            comm: Mutex::new([0; 16]),
            clear_child_tid: AtomicU64::new(0),
            timer_slack: AtomicU64::new(TIMER_SLACK),
            personality: AtomicU32::new(0),
            nice: AtomicI32::new(0),
            io_priority: AtomicU32::new(0),
            scheduling: Mutex::new((libc::SCHED_OTHER, 0)),
            affinity: Mutex::new(None),
            no_huge_pages: AtomicBool::new(false),
            exit_status: AtomicI32::new(0),
            usage: Usage::default(),
            control_group: Mutex::default(),
            parked: Mutex::default(),
            traced: AtomicBool::new(false),
            called: AtomicI64::new(-1),
            shared: ptrace::Shared::default(),
        }
    }

    /// What `fork` and `clone` hand on besides what they are told about.
    fn inherit(&self, from: &Self) {
        *lock(&self.comm) = *lock(&from.comm);
        self.set_filters(from.filters());
        *lock(&self.scheduling) = *lock(&from.scheduling);
        self.set_control_group(from.control_group());
        let affinity = lock(&from.affinity).clone();
        *lock(&self.affinity) = affinity;
        self.timer_slack.store(from.timer_slack(), Ordering::Relaxed);
        self.personality.store(from.personality(), Ordering::Relaxed);
        self.nice.store(from.nice(), Ordering::Relaxed);
        self.io_priority.store(from.io_priority.load(Ordering::Relaxed), Ordering::Relaxed);
        self.no_huge_pages.store(from.no_huge_pages.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Its number; as a guest sees it: [`shown`](Self::shown).
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid.load(Ordering::Relaxed)
    }

    /// Its process.
    #[must_use]
    pub fn group(&self) -> &Arc<ThreadGroup> {
        &self.group
    }

    /// Told `CHANGED` when a child of its process ends, stops, or goes on.
    #[must_use]
    pub fn child_events(&self) -> &crate::events::WaitQueue {
        &self.group.child_events
    }

    /// Every task of the sandbox.
    #[must_use]
    pub fn tasks(&self) -> &Arc<Tasks> {
        &self.tasks
    }

    /// What wakes it: set at every signal, and by whatever it waits for.
    #[must_use]
    pub fn waiter(&self) -> &Arc<Waiter> {
        &self.waiter
    }

    /// Whether something is there for which a call that waits ends and guest code stops: a signal that is not blocked, a stop, the end.
    #[must_use]
    pub fn signal_pending(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    /// Makes the task look at what happened to it: out of guest code, out of a call that waits.
    fn poke(&self) {
        self.attention.store(true, Ordering::SeqCst);
        self.waiter.set();
        self.interrupt();
    }

    /// Brings it out of guest code.
    fn interrupt(&self) {
        let interrupt = lock(&self.interrupt).clone();
        if let Some(interrupt) = interrupt {
            interrupt.interrupt();
        }
    }

    /// Its process ends: its platform hears of it.
    fn told_to_end(&self) {
        let interrupt = lock(&self.interrupt).clone();
        if let Some(interrupt) = interrupt {
            interrupt.ends();
        }
    }

    /// What it has in common with the other tasks of its container.
    #[must_use]
    pub fn control_group(&self) -> Arc<ControlGroup> {
        Arc::clone(&lock(&self.control_group))
    }

    /// Puts it into one. It was not run yet.
    pub fn set_control_group(&self, group: Arc<ControlGroup>) {
        let before = std::mem::replace(&mut *lock(&self.control_group), group);
        drop(before);
    }

    /// For fuzzing: whether something seems to be there, so that a call which would wait ends at once.
    pub(crate) fn set_attention(&self, there: bool) {
        self.attention.store(there, Ordering::SeqCst);
    }

    /// The guest thread that an execve put in the place of the one that called it.
    pub(crate) fn take_next_thread(&self) -> Option<Box<dyn Thread>> {
        lock(&self.next_thread).take()
    }

    /// Who it is. A change puts another one in place.
    #[must_use]
    pub fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&lock(&self.credentials))
    }

    /// Makes it another one. Only the task itself does so.
    pub fn set_credentials(&self, credentials: Credentials) {
        let credentials = Arc::new(credentials);
        let mut tree = self.tasks.tree();
        if self.pid() == self.group.pid()
            && let Some(state) = tree.groups.get_mut(&self.group.pid())
        {
            state.credentials = Arc::clone(&credentials);
        }
        *lock(&self.credentials) = credentials;
    }

    /// With which status it ends, as `wait` tells it, once a call gives [`SysError::Exit`](crate::error::SysError::Exit).
    pub fn set_exit_status(&self, status: i32) {
        self.exit_status.store(status, Ordering::Relaxed);
    }

    fn exit_status(&self) -> i32 {
        self.exit_status.load(Ordering::Relaxed)
    }

    /// Its open files.
    #[must_use]
    pub fn files(&self) -> Arc<FdTable> {
        Arc::clone(&lock(&self.files))
    }

    /// Gives it other open files (`unshare`, `execve`, `close_range`). The table it had, to be dropped without a lock.
    pub fn set_files(&self, files: Arc<FdTable>) -> Arc<FdTable> {
        std::mem::replace(&mut *lock(&self.files), files)
    }

    /// Its root, its working folder, its umask.
    #[must_use]
    pub fn fs(&self) -> Arc<FsContext> {
        Arc::clone(&lock(&self.fs))
    }

    /// Gives it another root, working folder and umask (`unshare`).
    pub fn set_fs(&self, fs: Arc<FsContext>) -> Arc<FsContext> {
        std::mem::replace(&mut *lock(&self.fs), fs)
    }

    /// Whether others use the same root, working folder and umask.
    #[must_use]
    pub fn shares_fs(&self) -> bool {
        Arc::strong_count(&lock(&self.fs)) > 1
    }

    /// Its namespaces.
    #[must_use]
    pub fn namespaces(&self) -> Arc<Namespaces> {
        Arc::clone(&lock(&self.namespaces))
    }

    /// Gives it other namespaces. Those it had, to be dropped without a lock. Only the task itself does so.
    pub fn set_namespaces(&self, namespaces: Arc<Namespaces>) -> Arc<Namespaces> {
        std::mem::replace(&mut *lock(&self.namespaces), namespaces)
    }

    /// The namespace that it has its number in.
    #[must_use]
    pub fn pid_namespace(&self) -> &Arc<PidNamespace> {
        self.group.pid_namespace()
    }

    /// Number of a task, a process, a process group or a session as this task sees it; 0 where it does not.
    #[must_use]
    pub fn shown(&self, pid: Pid) -> Pid {
        self.pid_namespace().shown(pid)
    }

    /// Its own number as it sees it (`gettid`).
    #[must_use]
    pub fn own_number(&self) -> Pid {
        self.shown(self.pid())
    }

    /// Whom this task means by a number.
    #[must_use]
    pub fn named(&self, number: Pid) -> Option<Pid> {
        self.pid_namespace().named(number)
    }

    /// The task that this one means by a number.
    #[must_use]
    pub fn find(&self, number: Pid) -> Option<Arc<Self>> {
        self.tasks.find(self.named(number)?)
    }

    /// The process that this task means by a number.
    #[must_use]
    pub fn find_group(&self, number: Pid) -> Option<Arc<ThreadGroup>> {
        self.tasks.find_group(self.named(number)?)
    }

    /// Says that calls which the stub answers have other answers now, though the task did nothing for it.
    pub(crate) fn refresh_answers(&self) {
        self.stale_answers.store(true, Ordering::SeqCst);
        self.poke();
    }

    fn forbid_by_itself(&self) {
        if let Some(interrupt) = &*lock(&self.interrupt) {
            interrupt.forbid_by_itself();
        }
    }

    fn take_stale_answers(&self) -> bool {
        self.stale_answers.swap(false, Ordering::SeqCst)
    }

    /// Its memory.
    #[must_use]
    pub fn space(&self) -> Arc<AddressSpace> {
        Arc::clone(&lock(&self.space))
    }

    /// Gives it another memory (`execve`).
    pub fn set_space(&self, space: Arc<AddressSpace>) -> Arc<AddressSpace> {
        std::mem::replace(&mut *lock(&self.space), space)
    }

    /// Lets the task go on as this guest thread once its present call is over (`execve` out of an address space that others still use).
    /// The call then gives [`SysError::RegistersSet`](crate::error::SysError::RegistersSet).
    pub fn replace_thread(&self, thread: Box<dyn Thread>) {
        *lock(&self.next_thread) = Some(thread);
    }

    /// Says what `restart_syscall` does. The call then gives [`Restart::Block`](crate::error::Restart::Block).
    pub fn set_restart(&self, restart: RestartBlock) {
        *lock(&self.restart) = Some(restart);
    }

    /// What `restart_syscall` does; once.
    pub(crate) fn take_restart(&self) -> Option<RestartBlock> {
        lock(&self.restart).take()
    }

    /// Its name: up to 15 bytes (`PR_GET_NAME`, `/proc/…/comm`).
    #[must_use]
    pub fn comm(&self) -> Vec<u8> {
        let comm = lock(&self.comm);
        comm.iter().copied().take_while(|byte| *byte != 0).collect()
    }

    /// Names it; what is behind 15 bytes is cut off.
    pub fn set_comm(&self, name: &[u8]) {
        let mut comm = [0; 16];
        for (to, from) in comm.iter_mut().take(15).zip(name.iter().take_while(|byte| **byte != 0)) {
            *to = *from;
        }
        *lock(&self.comm) = comm;
    }

    /// Address that is zeroed and woken when the thread ends (`set_tid_address`); 0 for none.
    #[must_use]
    pub fn clear_child_tid(&self) -> u64 {
        self.clear_child_tid.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_clear_child_tid(&self, address: u64) {
        self.clear_child_tid.store(address, Ordering::Relaxed);
    }

    /// `PR_GET_TIMERSLACK`, in nanoseconds.
    #[must_use]
    pub fn timer_slack(&self) -> u64 {
        self.timer_slack.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_timer_slack(&self, nanoseconds: u64) {
        self.timer_slack.store(nanoseconds, Ordering::Relaxed);
    }

    /// `personality`.
    #[must_use]
    pub fn personality(&self) -> u32 {
        self.personality.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_personality(&self, personality: u32) {
        self.personality.store(personality, Ordering::Relaxed);
    }

    /// Niceness, -20 to 19.
    #[must_use]
    pub fn nice(&self) -> i32 {
        self.nice.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_nice(&self, nice: i32) {
        self.nice.store(nice.clamp(-20, 19), Ordering::Relaxed);
    }

    /// `ioprio_get`.
    #[must_use]
    pub fn io_priority(&self) -> u32 {
        self.io_priority.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_io_priority(&self, priority: u32) {
        self.io_priority.store(priority, Ordering::Relaxed);
    }

    /// Scheduling policy and realtime priority, as they were set: the host schedules as it likes.
    #[must_use]
    pub fn scheduling(&self) -> (i32, i32) {
        *lock(&self.scheduling)
    }

    /// Sets them.
    pub fn set_scheduling(&self, policy: i32, priority: i32) {
        *lock(&self.scheduling) = (policy, priority);
    }

    /// The mask of CPUs that was asked for; `None` for all.
    #[must_use]
    pub fn affinity(&self) -> Option<Vec<u8>> {
        lock(&self.affinity).clone()
    }

    /// Sets it.
    pub fn set_affinity(&self, mask: Vec<u8>) {
        *lock(&self.affinity) = Some(mask);
    }

    /// `PR_SET_THP_DISABLE`.
    #[must_use]
    pub fn huge_pages_disabled(&self) -> bool {
        self.no_huge_pages.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_huge_pages_disabled(&self, disabled: bool) {
        self.no_huge_pages.store(disabled, Ordering::Relaxed);
    }

    /// CPU time of this thread.
    #[must_use]
    pub fn cpu_times(&self) -> CpuTimes {
        self.usage.times(self.slept().0)
    }

    fn slept(&self) -> (u64, bool) {
        lock(&self.interrupt).as_ref().map_or((0, false), |interrupt| interrupt.slept())
    }

    /// Whether its own code runs just now, and does not sleep.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.in_guest() && !self.slept().1
    }

    /// Whether it waits: in a call, or in code of its own that sleeps.
    #[must_use]
    pub fn sleeps(&self) -> bool {
        self.waiter().sleeps() || (self.in_guest() && self.slept().1)
    }

    /// Whether its own code runs just now; else it is in a call, which mostly means that it waits.
    #[must_use]
    pub fn in_guest(&self) -> bool {
        self.usage.in_guest()
    }

    /// CPU time of this thread since it began, both kinds.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        self.cpu_times().total()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
