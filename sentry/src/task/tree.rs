//! Who is what to whom: the structure under the one lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};

use super::hooks::Sessions;
use super::namespaces::{Numbers, PID_MAX, RESERVED};
use super::ptrace::{Ended, Trace};
use super::signal::{Actions, AltStack, Pending, SignalSet};
use super::{Credentials, Namespaces, Pid, PidNamespace, Task, ThreadGroup, lock};
use crate::error::Errno;

/// Tasks of a sandbox unless it is told another bound.
const TASKS: usize = 32_768;

/// Every task of a sandbox.
pub struct Tasks {
    tree: Mutex<Tree>,
    terminals: Sessions,
    pids: Arc<PidNamespace>,
    namespaces: Arc<Namespaces>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new(TASKS)
    }
}

impl Tasks {
    /// Room for so many tasks.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let tree = Tree {
            threads: BTreeMap::new(),
            groups: BTreeMap::new(),
            accounts: BTreeMap::new(),
            last: 0,
            wrapped: false,
            limit,
            tracees: BTreeMap::new(),
            ended_tracees: BTreeMap::new(),
        };
        let pids = PidNamespace::first();
        let namespaces = Arc::new(Namespaces::first(&pids));
        Self { tree: Mutex::new(tree), terminals: Sessions::default(), pids, namespaces }
    }

    /// The first namespace of processes.
    #[must_use]
    pub fn pids(&self) -> &Arc<PidNamespace> {
        &self.pids
    }

    /// The namespaces that the sandbox began with.
    #[must_use]
    pub fn first_namespaces(&self) -> &Arc<Namespaces> {
        &self.namespaces
    }

    /// Which session has which terminal.
    #[must_use]
    pub fn terminals(&self) -> &Sessions {
        &self.terminals
    }

    /// The task of this number.
    #[must_use]
    pub fn find(&self, pid: Pid) -> Option<Arc<Task>> {
        self.tree().threads.get(&pid).map(|thread| Arc::clone(&thread.task))
    }

    /// The process of this number; also one that ended and was not waited for.
    #[must_use]
    pub fn find_group(&self, pid: Pid) -> Option<Arc<ThreadGroup>> {
        self.tree().groups.get(&pid).map(|state| Arc::clone(&state.group))
    }

    /// Numbers of all processes, ascending.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        self.tree().groups.keys().copied().collect()
    }

    /// The living processes of a container, ascending.
    #[must_use]
    pub fn of_container(&self, container: u64) -> Vec<Arc<ThreadGroup>> {
        let tree = self.tree();
        let living = tree.groups.values().filter(|state| state.zombie.is_none());
        living.map(|state| &state.group).filter(|group| group.container() == container).cloned().collect()
    }

    /// What `look` makes of living tasks, which it gets with their process groups. It is called under the lock.
    #[must_use]
    pub(crate) fn select<T>(&self, look: impl Fn(&Arc<Task>, Pid) -> Option<T>) -> Vec<T> {
        let tree = self.tree();
        let pgid = |group: Pid| tree.groups.get(&group).map_or(0, |state| state.pgid);
        tree.threads.values().filter_map(|thread| look(&thread.task, pgid(thread.group))).collect()
    }

    /// How many tasks there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tree().threads.len()
    }

    pub(crate) fn tree(&self) -> MutexGuard<'_, Tree> {
        lock(&self.tree)
    }
}

/// The structure itself.
pub(crate) struct Tree {
    pub(super) threads: BTreeMap<Pid, ThreadState>,
    pub(super) groups: BTreeMap<Pid, GroupState>,
    /// Queued signals of each user.
    accounts: BTreeMap<u32, Arc<AtomicU64>>,
    last: Pid,
    wrapped: bool,
    limit: usize,
    /// What a thread traces.
    pub(super) tracees: BTreeMap<Pid, BTreeSet<Pid>>,
    /// Threads that ended, and that their tracers have not heard of yet.
    pub(super) ended_tracees: BTreeMap<Pid, Ended>,
}

/// What of a thread is under the lock.
pub(crate) struct ThreadState {
    pub(super) task: Arc<Task>,
    pub(super) group: Pid,
    /// Its numbers in namespaces besides the first.
    pub(super) numbers: Option<Arc<Numbers>>,
    pub(super) pending: Pending,
    pub(super) mask: SignalSet,
    /// What the mask is to be after the next signal (`sigsuspend`).
    pub(super) saved_mask: Option<SignalSet>,
    /// Blocked signals that it waits for (`sigtimedwait`).
    pub(super) awaited: SignalSet,
    pub(super) stack: AltStack,
    pub(super) stopped: bool,
    /// Sent to it when its parent ends (`PR_SET_PDEATHSIG`).
    pub(super) parent_death: i32,
    /// Exception, error code and address of its last fault, for signal frames.
    pub(super) fault: (u64, u64, u64),
    /// Who traces it.
    pub(super) trace: Option<Trace>,
}

impl ThreadState {
    pub(super) fn new(task: Arc<Task>, group: Pid) -> Self {
        Self {
            task,
            group,
            numbers: None,
            pending: Pending::default(),
            mask: SignalSet::EMPTY,
            saved_mask: None,
            awaited: SignalSet::EMPTY,
            stack: AltStack::default(),
            stopped: false,
            parent_death: 0,
            fault: (0, 0, 0),
            trace: None,
        }
    }
}

/// News of a child that its parent has not fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// It stopped by this signal.
    Stopped(i32),
    /// It went on.
    Continued,
}

/// What of a process is under the lock.
pub(crate) struct GroupState {
    pub(super) group: Arc<ThreadGroup>,
    /// Number of the process it is a child of; 0 for none in the sandbox.
    pub(super) parent: Pid,
    /// The thread that made it.
    pub(super) parent_thread: Pid,
    pub(super) children: BTreeSet<Pid>,
    pub(super) pgid: Pid,
    pub(super) sid: Pid,
    /// Numbers of itself, of its group and of its session in namespaces besides the first: taken as long as one bears them.
    pub(super) numbers: [Option<Arc<Numbers>>; 3],
    /// Its living threads.
    pub(super) threads: Vec<Pid>,
    pub(super) actions: Arc<Mutex<Actions>>,
    pub(super) pending: Pending,
    /// It stops, or is stopped, by this signal.
    pub(super) stop: Option<i32>,
    /// All its threads stand still.
    pub(super) stopped: bool,
    pub(super) report: Option<Report>,
    /// It ends, with this status.
    pub(super) exiting: Option<i32>,
    /// By SIGKILL, or as its namespace does: nothing holds it up.
    pub(super) killed: bool,
    /// Its first thread ended, which this thread traced: that one hears of the end first.
    pub(super) traced_end: Option<Pid>,
    /// This thread replaces the program: the others end.
    pub(super) execs: Option<Pid>,
    /// It ended, with this status.
    pub(super) zombie: Option<i32>,
    /// Status of its first thread, where that ended alone.
    pub(super) leader_status: i32,
    /// Sent to the parent at the end; 0 for none.
    pub(super) exit_signal: i32,
    /// The first process: signals without a handler do nothing to it.
    pub(super) unkillable: bool,
    /// It has made an `execve` since it was made.
    pub(super) execed: bool,
    /// Of its first thread, as they were last.
    pub(super) credentials: Arc<Credentials>,
}

impl Tree {
    /// The parent of a process; 0 for none in the sandbox.
    pub(super) fn parent_of(&self, group: Pid) -> Pid {
        self.groups.get(&group).map_or(0, |state| state.parent)
    }

    /// Whether so many tasks more are too many.
    pub(super) fn is_full(&self, more: usize) -> bool {
        self.threads.len().saturating_add(more) > self.limit
            || self.groups.len().saturating_add(more) > self.limit
    }

    /// Numbers up to this one were given: the next is another.
    pub(super) fn gave(&mut self, pid: Pid) {
        self.last = self.last.max(pid).min(PID_MAX);
    }

    /// A number for a task: `wanted`, or the next that is free.
    ///
    /// # Errors
    /// EAGAIN when the sandbox has as many as it may, or none is free; EEXIST.
    pub(super) fn allocate(&mut self, wanted: Option<Pid>) -> Result<Pid, Errno> {
        if self.threads.len() >= self.limit || self.groups.len() >= self.limit {
            return Err(Errno::EAGAIN);
        }
        if let Some(wanted) = wanted {
            let taken = |group: &GroupState| group.pgid == wanted || group.sid == wanted;
            let free = !self.in_use(wanted) && !self.groups.values().any(taken);
            return if free { Ok(wanted) } else { Err(Errno::EEXIST) };
        }
        // As many tries as there can be numbers in use: each task can hold three (its own, a group's, a session's).
        for _ in 0..self.limit.saturating_mul(4).saturating_add(1) {
            self.last = self.last.checked_add(1).unwrap_or(PID_MAX);
            if self.last >= PID_MAX {
                self.last = RESERVED;
                self.wrapped = true;
            }
            if !self.in_use(self.last) {
                return Ok(self.last);
            }
        }
        Err(Errno::EAGAIN)
    }

    fn in_use(&self, pid: Pid) -> bool {
        self.threads.contains_key(&pid)
            || self.groups.contains_key(&pid)
            || self.ended_tracees.contains_key(&pid)
            || (self.wrapped && self.groups.values().any(|group| group.pgid == pid || group.sid == pid))
    }

    /// The account of queued signals of a user.
    pub(super) fn account(&mut self, uid: u32) -> Arc<AtomicU64> {
        if self.accounts.len() > 1024 {
            self.accounts.retain(|_, account| Arc::strong_count(account) > 1);
        }
        Arc::clone(self.accounts.entry(uid).or_default())
    }

    /// The living tasks of a process.
    pub(super) fn tasks_of(&self, group: Pid) -> Vec<Arc<Task>> {
        let threads = self.groups.get(&group).map(|state| state.threads.as_slice()).unwrap_or_default();
        threads
            .iter()
            .filter_map(|pid| self.threads.get(pid))
            .map(|thread| Arc::clone(&thread.task))
            .collect()
    }

    /// Makes all threads of a process look up.
    pub(super) fn poke_all(&self, group: Pid) {
        for task in self.tasks_of(group) {
            task.poke();
        }
    }

    /// Whether nobody in a process group has a parent in the same session but in another group (`is_orphaned_pgrp`), the process
    /// `without` aside.
    pub(super) fn is_orphaned(&self, pgid: Pid, without: Pid) -> bool {
        !self.groups.values().any(|member| {
            member.pgid == pgid
                && member.group.pid() != without
                && member.zombie.is_none()
                && self
                    .groups
                    .get(&member.parent)
                    .is_some_and(|parent| parent.pgid != pgid && parent.sid == member.sid)
        })
    }

    /// Whether somebody of a process group is stopped.
    pub(super) fn has_stopped(&self, pgid: Pid) -> bool {
        self.groups.values().any(|member| member.pgid == pgid && member.stopped)
    }

    /// The processes of a group, ascending.
    pub(super) fn members(&self, pgid: Pid) -> Vec<Pid> {
        self.groups.iter().filter(|(_, state)| state.pgid == pgid).map(|(pid, _)| *pid).collect()
    }
}
