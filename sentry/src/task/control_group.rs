//! What a container's tasks have in common: they are held, counted and bounded together (`Documentation/admin-guide/cgroup-v2.rst`, "pids"
//! and "cgroup.freeze"). Bounds on memory and CPU are held by the host's control group; here they are known, so that guests see them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::events::Waiter;

use super::{CpuTimes, Task, Tasks, ThreadGroup, lock};
use crate::control::message::{Bound, Bounds};

/// A container's tasks.
#[derive(Default)]
pub struct ControlGroup {
    frozen: AtomicBool,
    /// Whether what is frozen is to be saved, too: waiting is given up, and goes on later.
    saving: AtomicBool,
    /// Most tasks; 0 for no bound.
    most: AtomicU64,
    /// Most bytes of memory; 0 for no bound.
    memory: AtomicU64,
    /// Microseconds of CPU in a period of so many.
    cpu: Mutex<Option<(u64, u64)>>,
    /// No task is made any more.
    closed: AtomicBool,
    /// Of tasks that ended.
    ended: Mutex<CpuTimes>,
    /// Processes that the host ended for want of memory.
    out_of_memory: AtomicU64,
    /// Who is told that a process was ended from outside.
    loss: OnceLock<Tell>,
}

/// Tells something once more.
type Tell = Box<dyn Fn() + Send + Sync>;

/// How long those that run are waited for when they are to stand still.
const STANDS_STILL: Duration = Duration::from_secs(2);

impl ControlGroup {
    /// Whether its tasks are to stand still before guest code.
    #[must_use]
    pub fn frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// Whether its tasks are to say what they are like.
    pub(super) fn saving(&self) -> bool {
        self.saving.load(Ordering::Acquire)
    }

    /// Brings all tasks to where they can be saved: frozen, and in no call. A call that waits is given up as if by a signal that nobody has,
    /// and made again later. Gives those that do not get there in time.
    pub(crate) fn park(self: &Arc<Self>, tasks: &Tasks) -> Vec<Arc<Task>> {
        let begin = Instant::now();
        let nobody = Waiter::new();
        self.saving.store(true, Ordering::Release);
        loop {
            let moving: Vec<_> =
                self.tasks(tasks).into_iter().filter(|task| !task.is_parked() || task.in_guest()).collect();
            if moving.is_empty() || begin.elapsed() > STANDS_STILL {
                return moving;
            }
            moving.iter().for_each(|task| task.poke());
            nobody.wait(Some(Instant::now() + Duration::from_millis(1)));
        }
    }

    /// Ends what [`park`](Self::park) began; they stay frozen.
    pub(crate) fn unpark(self: &Arc<Self>, tasks: &Tasks) {
        self.saving.store(false, Ordering::Release);
        self.tasks(tasks).iter().for_each(|task| task.unpark());
    }

    /// Most tasks, where there is a bound.
    #[must_use]
    pub fn most(&self) -> Option<u64> {
        Some(self.most.load(Ordering::Relaxed)).filter(|most| *most != 0)
    }

    /// Sets it. A bound of none is one of one: 0 is no bound.
    pub fn set_most(&self, most: Option<u64>) {
        self.most.store(most.map_or(0, |most| most.max(1)), Ordering::Relaxed);
    }

    /// Changes bounds, those that are said.
    pub fn set_bounds(&self, bounds: &Bounds) {
        match bounds.tasks {
            Bound::Unsaid => {}
            Bound::Infinite => self.set_most(None),
            Bound::To(most) => self.set_most(Some(most)),
        }
        match bounds.memory {
            Bound::Unsaid => {}
            Bound::Infinite => self.memory.store(0, Ordering::Relaxed),
            Bound::To(most) => self.memory.store(most.max(1), Ordering::Relaxed),
        }
        match bounds.cpu {
            Bound::Unsaid => {}
            Bound::Infinite => *lock(&self.cpu) = None,
            Bound::To(quota) => *lock(&self.cpu) = Some(quota),
        }
    }

    /// Has `tell` hear of processes that are ended from outside; the first one that is said stays.
    pub(crate) fn tell_losses(&self, tell: impl Fn() + Send + Sync + 'static) {
        let _ = self.loss.set(Box::new(tell));
    }

    /// The host, or its own code, has ended the process in which a guest's process ran.
    pub(super) fn lost_one(&self) {
        if let Some(tell) = self.loss.get() {
            tell();
        }
    }

    /// The host says that it ended a process for want of memory.
    pub(crate) fn count_out_of_memory(&self) {
        self.out_of_memory.fetch_add(1, Ordering::Relaxed);
    }

    /// Processes that the host ended for want of memory.
    #[must_use]
    pub fn out_of_memory(&self) -> u64 {
        self.out_of_memory.load(Ordering::Relaxed)
    }

    /// Most bytes of memory, where there is a bound.
    #[must_use]
    pub fn most_memory(&self) -> Option<u64> {
        Some(self.memory.load(Ordering::Relaxed)).filter(|most| *most != 0)
    }

    /// Microseconds of CPU, and of the period in which they are, where there is a bound.
    #[must_use]
    pub fn cpu_quota(&self) -> Option<(u64, u64)> {
        *lock(&self.cpu)
    }

    /// Bytes of memory that its processes have in use.
    #[must_use]
    pub fn memory_in_use(self: &Arc<Self>, tasks: &Tasks) -> u64 {
        // Threads of one process have one memory.
        let spaces = self.tasks(tasks).into_iter().map(|task| task.space());
        let spaces: BTreeMap<_, _> = spaces.map(|space| (Arc::as_ptr(&space).addr(), space)).collect();
        let resident = spaces.values().filter_map(|space| Some(space.memory()?.resident()?.0));
        resident.fold(0_u64, u64::saturating_add)
    }

    /// How much memory there is for its tasks, and how much of it is left: `None` where that is all of the machine's.
    #[must_use]
    pub fn memory_left(self: &Arc<Self>, tasks: &Tasks) -> Option<(u64, u64)> {
        let most = self.most_memory()?;
        Some((most, most.saturating_sub(self.memory_in_use(tasks))))
    }

    /// From now on no task is made.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether another task may be made.
    pub(super) fn may_grow(self: &Arc<Self>, tasks: &Tasks) -> bool {
        if self.closed.load(Ordering::Acquire) {
            return false;
        }
        self.most().is_none_or(|most| (self.tasks(tasks).len() as u64) < most)
    }

    /// A task of it ended.
    pub(super) fn count_ended(&self, times: &CpuTimes) {
        let mut ended = lock(&self.ended);
        *ended = ended.plus(times);
    }

    /// Its living tasks.
    #[must_use]
    pub fn tasks(self: &Arc<Self>, tasks: &Tasks) -> Vec<Arc<Task>> {
        tasks.select(|task, _| Arc::ptr_eq(&task.control_group(), self).then(|| Arc::clone(task)))
    }

    /// Its processes of which a thread lives.
    #[must_use]
    pub fn processes(self: &Arc<Self>, tasks: &Tasks) -> Vec<Arc<ThreadGroup>> {
        let mut groups: Vec<_> = self.tasks(tasks).iter().map(|task| Arc::clone(task.group())).collect();
        groups.sort_by_key(|group| group.pid());
        groups.dedup_by_key(|group| group.pid());
        groups
    }

    /// CPU time of all its tasks, also of those that ended.
    #[must_use]
    pub fn cpu_times(self: &Arc<Self>, tasks: &Tasks) -> CpuTimes {
        // A task that ends in between is missed for a moment; the other way round it would count twice.
        let ended = *lock(&self.ended);
        self.tasks(tasks).iter().fold(ended, |sum, task| sum.plus(&task.cpu_times()))
    }

    /// Lets its tasks stand still, or go on. Whether no guest code of it runs when this comes back.
    pub fn freeze(self: &Arc<Self>, tasks: &Tasks, frozen: bool) -> bool {
        self.frozen.store(frozen, Ordering::Release);
        if !frozen {
            for task in self.tasks(tasks) {
                task.waiter().set();
            }
            return true;
        }
        let begin = Instant::now();
        // Also those that seem to run no guest code: one may have looked at `frozen` just before, and is stopped as it begins. A task that is made
        // meanwhile looks after it can be interrupted.
        self.tasks(tasks).iter().for_each(|task| task.interrupt());
        loop {
            let mut running = false;
            for task in self.tasks(tasks).iter().filter(|task| task.in_guest()) {
                running = true;
                task.interrupt();
            }
            if !running || begin.elapsed() > STANDS_STILL {
                return !running;
            }
            std::thread::yield_now();
        }
    }
}
