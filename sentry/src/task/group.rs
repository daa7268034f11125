//! A process, as others hold on to it.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::signal::{SignalInfo, Target};
use super::{CpuTimes, Limits, Pid, PidNamespace, Tasks, lock};
use crate::error::Errno;
use crate::events::{Events, WaitQueue, Waiter, Wake};
use crate::time::ProcessTimers;

/// A process: the threads that share a number and signals.
pub struct ThreadGroup {
    pid: Pid,
    pid_namespace: Arc<PidNamespace>,
    /// Which container it belongs to; 0 for none.
    container: u64,
    tasks: Arc<Tasks>,
    started: Duration,
    exit_status: OnceLock<i32>,
    pub(super) child_events: WaitQueue,
    pub(super) signal_events: WaitQueue,
    pub(super) exit_events: WaitQueue,
    limits: Mutex<Limits>,
    timers: Mutex<ProcessTimers>,
    pub(super) ended_threads: Mutex<CpuTimes>,
    pub(super) ended_children: Mutex<CpuTimes>,
    last_comm: Mutex<Vec<u8>>,
    dumpable: AtomicU32,
    oom_score_adjustment: AtomicI32,
    pub(super) subreaper: AtomicBool,
}

impl ThreadGroup {
    pub(super) fn new(
        pid: Pid,
        (pid_namespace, container): (Arc<PidNamespace>, u64),
        tasks: Arc<Tasks>,
        started: Duration,
        limits: Limits,
    ) -> Arc<Self> {
        Arc::new(Self {
            pid,
            pid_namespace,
            container,
            tasks,
            started,
            exit_status: OnceLock::new(),
            child_events: WaitQueue::new(),
            signal_events: WaitQueue::new(),
            exit_events: WaitQueue::new(),
            limits: Mutex::new(limits),
            timers: Mutex::default(),
            ended_threads: Mutex::default(),
            ended_children: Mutex::default(),
            last_comm: Mutex::default(),
            dumpable: AtomicU32::new(1),
            oom_score_adjustment: AtomicI32::new(0),
            subreaper: AtomicBool::new(false),
        })
    }

    /// Its number; as a guest sees it: [`Task::shown`](super::Task::shown).
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The namespace that it has its number in.
    #[must_use]
    pub fn pid_namespace(&self) -> &Arc<PidNamespace> {
        &self.pid_namespace
    }

    /// Which container of the sandbox it belongs to, as all that descends from it; 0 for none.
    #[must_use]
    pub fn container(&self) -> u64 {
        self.container
    }

    /// When it began, on the sandbox's monotonic clock.
    #[must_use]
    pub fn started(&self) -> Duration {
        self.started
    }

    /// Sends a signal to the process, whoever takes it of its threads. No permission is asked for.
    ///
    /// # Errors
    /// ESRCH when it is gone; EAGAIN when too many are queued (`RLIMIT_SIGPENDING`).
    pub fn send_signal(&self, info: SignalInfo) -> Result<(), Errno> {
        self.tasks.tree().send(Target::Group(self.pid), info, false)
    }

    /// As [`send_signal`](Self::send_signal), from outside the sandbox: SIGKILL and SIGSTOP are then good for its first process, too.
    ///
    /// # Errors
    /// As there.
    pub fn send_from_outside(&self, signal: i32) -> Result<(), Errno> {
        self.tasks.tree().send(Target::Group(self.pid), SignalInfo::user(signal, 0, 0), true)
    }

    /// How it ended, as `wait` tells it; `None` while it lives.
    #[must_use]
    pub fn exit_status(&self) -> Option<i32> {
        self.exit_status.get().copied()
    }

    /// It ended: pidfds are readable.
    pub(super) fn set_exited(&self, status: i32) {
        // It is set once, by the last thread.
        let _ = self.exit_status.set(status);
        self.exit_events.notify(Events::IN | Events::RDNORM | Events::CHANGED);
    }

    /// Told `IN` when it ends: what a pidfd polls.
    #[must_use]
    pub fn exit_events(&self) -> &WaitQueue {
        &self.exit_events
    }

    /// Told `IN` when a signal is pending for it or one of its threads: what a signalfd polls.
    #[must_use]
    pub fn signal_events(&self) -> &WaitQueue {
        &self.signal_events
    }

    /// Waits on the calling thread of the sentry, which serves no guest thread, until the process ended.
    #[must_use]
    pub fn wait_exited(&self, deadline: Option<Instant>) -> Option<i32> {
        let waiter = Waiter::new();
        let wake: Arc<dyn Wake> = waiter.clone();
        self.exit_events.add(Events::CHANGED, &wake);
        loop {
            waiter.clear();
            if let Some(status) = self.exit_status() {
                return Some(status);
            }
            if !waiter.wait(deadline) {
                return None;
            }
        }
    }

    /// Its limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        *lock(&self.limits)
    }

    /// Changes its limits.
    pub fn change_limits<T>(&self, change: impl FnOnce(&mut Limits) -> T) -> T {
        change(&mut lock(&self.limits))
    }

    /// Its timers.
    pub(crate) fn timers(&self) -> std::sync::MutexGuard<'_, ProcessTimers> {
        lock(&self.timers)
    }

    /// CPU time of all its threads, also of those that ended.
    #[must_use]
    pub fn cpu_times(&self) -> CpuTimes {
        let living = self.tasks.tree().tasks_of(self.pid);
        let ended = *lock(&self.ended_threads);
        living.iter().fold(ended, |sum, task| sum.plus(&task.cpu_times()))
    }

    /// CPU time of its children that ended and were waited for, and of theirs.
    #[must_use]
    pub fn children_cpu_times(&self) -> CpuTimes {
        *lock(&self.ended_children)
    }

    /// Name of its first thread, once that ended: what is left to call a process by that nobody waited for.
    #[must_use]
    pub fn last_comm(&self) -> Vec<u8> {
        lock(&self.last_comm).clone()
    }

    /// Its first thread ends under this name.
    pub(super) fn set_last_comm(&self, name: Vec<u8>) {
        *lock(&self.last_comm) = name;
    }

    /// `PR_GET_DUMPABLE`: 0, 1, or 2.
    #[must_use]
    pub fn dumpable(&self) -> u32 {
        self.dumpable.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_dumpable(&self, dumpable: u32) {
        self.dumpable.store(dumpable, Ordering::Relaxed);
    }

    /// `/proc/…/oom_score_adj`.
    #[must_use]
    pub fn oom_score_adjustment(&self) -> i32 {
        self.oom_score_adjustment.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_oom_score_adjustment(&self, adjustment: i32) {
        self.oom_score_adjustment.store(adjustment, Ordering::Relaxed);
    }

    /// `PR_GET_CHILD_SUBREAPER`.
    #[must_use]
    pub fn is_subreaper(&self) -> bool {
        self.subreaper.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_subreaper(&self, subreaper: bool) {
        self.subreaper.store(subreaper, Ordering::Relaxed);
    }

    /// Every task of the sandbox.
    #[must_use]
    pub fn tasks(&self) -> &Arc<Tasks> {
        &self.tasks
    }
}
