//! Processes as a checkpoint keeps them, and made anew of that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::namespaces::{Numbers, PID_MAX};
use super::signal::{Actions, AltStack, Pending, SIGNALS, SigAction, SignalSet};
use super::tree::{GroupState, ThreadState};
use super::{
    Capabilities, ControlGroup, Credentials, Limit, Limits, Namespaces, Parts, Pid, RestartBlock, Task,
    ThreadGroup, Tree, UserNamespace, lock, seccomp,
};
use crate::checkpoint::state::{SavedCredentials, SavedProcess, SavedThread};
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::mm::AddressSpace;
use crate::platform::{Regs, Thread};
use crate::time::{Clock, Setting, Which};
use crate::vfs::{FdTable, FsContext};

/// What a guest thread is like between two instructions.
#[derive(Clone)]
pub(crate) struct Parked {
    /// Registers.
    pub(crate) regs: Regs,
    /// Base of `fs`.
    pub(crate) fs_base: u64,
    /// Vector state; `None` where it could not be had.
    pub(crate) vector: Option<Vec<u8>>,
    /// Restartable sequences.
    pub(crate) sequences: Option<[u64; 4]>,
}

/// Gives numbers to what tasks share, and hears what cannot be kept.
pub(crate) trait Lists {
    /// Of an address space.
    fn space(&mut self, pid: Pid, space: &Arc<AddressSpace>) -> u32;
    /// Of a table of descriptors.
    fn table(&mut self, pid: Pid, table: &Arc<FdTable>) -> u32;
    /// Of root and working folder.
    fn folders(&mut self, pid: Pid, folders: &Arc<FsContext>) -> u32;
    /// What judges calls of all processes of the container.
    fn filter(&self) -> Option<&Arc<seccomp::Program>>;
    /// Something of a process is not kept.
    fn refuse(&mut self, pid: Pid, what: &str);
}

impl Task {
    /// Says what its guest thread is like. By the thread that serves it, while no guest code runs.
    pub(super) fn park(&self, thread: &mut dyn Thread) {
        let mut parked = lock(&self.parked);
        // Looked at under the lock: what is noted after the end of a checkpoint would be taken for the state at the next one.
        if parked.is_none() && self.control_group().saving() {
            let (regs, fs_base) = (*thread.regs(), *thread.fs_base());
            let (vector, sequences) = (thread.vector_state().ok(), thread.registered());
            *parked = Some(Parked { regs, fs_base, vector, sequences });
        }
    }

    pub(super) fn unpark(&self) {
        *lock(&self.parked) = None;
        // Signals that came meanwhile are looked at now.
        self.waiter.set();
    }

    pub(super) fn is_parked(&self) -> bool {
        lock(&self.parked).is_some()
    }

    /// Whether a call that was interrupted was so for a checkpoint alone.
    pub(super) fn only_saved(&self) -> bool {
        if !self.control_group().saving() {
            return false;
        }
        self.tasks.tree().settle(self);
        !self.signal_pending()
    }
}

fn save_credentials(who: &Credentials) -> SavedCredentials {
    let sets = [who.effective, who.permitted, who.inheritable, who.bounding, who.ambient];
    SavedCredentials {
        uids: [who.uid, who.euid, who.suid, who.fsuid],
        gids: [who.gid, who.egid, who.sgid, who.fsgid],
        groups: who.groups.clone(),
        sets: sets.map(|set| set.0),
        no_new_privileges: who.no_new_privileges,
        securebits: who.securebits,
    }
}

fn restore_credentials(saved: &SavedCredentials) -> Credentials {
    let set = |bits: u64| Capabilities(bits & Capabilities::ALL.0);
    let [effective, permitted, inheritable, bounding, ambient] = saved.sets.map(set);
    let ([uid, euid, suid, fsuid], [gid, egid, sgid, fsgid]) = (saved.uids, saved.gids);
    Credentials {
        uid,
        euid,
        suid,
        fsuid,
        gid,
        egid,
        sgid,
        fsgid,
        groups: saved.groups.clone(),
        effective,
        permitted,
        inheritable,
        bounding,
        ambient,
        no_new_privileges: saved.no_new_privileges,
        securebits: saved.securebits,
        user_ns: Arc::clone(UserNamespace::root()),
    }
}

/// Saves the processes of a container: all of them stand still, those that ended and were not waited for included.
pub(crate) fn save(
    kernel: &Kernel,
    (container, namespaces): (u64, &Arc<Namespaces>),
    lists: &mut dyn Lists,
) -> Vec<SavedProcess> {
    let groups: Vec<Arc<ThreadGroup>> = {
        let tree = kernel.tasks.tree();
        tree.groups.values().map(|state| Arc::clone(&state.group)).collect()
    };
    let mut saved = Vec::new();
    for group in groups.iter().filter(|group| group.container() == container) {
        let intervals = save_timers(group, lists);
        let mut tree = kernel.tasks.tree();
        if let Some(process) = save_process(&mut tree, group, namespaces, lists) {
            saved.push(SavedProcess { intervals, ..process });
        }
    }
    let clock = kernel.clocks.monotonic();
    for thread in saved.iter_mut().flat_map(|process| process.threads.iter_mut()) {
        if let Some((until, _)) = &mut thread.sleep {
            *until = until.saturating_sub(clock);
        }
    }
    parents_first(saved)
}

fn parents_first(mut left: Vec<SavedProcess>) -> Vec<SavedProcess> {
    let mut sorted = Vec::with_capacity(left.len());
    let mut known = BTreeSet::from([0]);
    while !left.is_empty() {
        let (ready, later): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|process| known.contains(&process.parent));
        if ready.is_empty() {
            sorted.extend(later);
            break;
        }
        known.extend(ready.iter().map(|process| process.pid));
        sorted.extend(ready);
        left = later;
    }
    sorted
}

fn save_timers(group: &Arc<ThreadGroup>, lists: &mut dyn Lists) -> Vec<(Duration, Duration)> {
    let timers = group.timers();
    if timers.has_posix() {
        lists.refuse(group.pid(), "timers of timer_create");
    }
    let which = [Which::Real, Which::Virtual, Which::Profile];
    let settings = which.map(|which| timers.interval_setting(which));
    settings.iter().map(|setting| (setting.value, setting.interval)).collect()
}

fn save_process(
    tree: &mut Tree,
    group: &Arc<ThreadGroup>,
    namespaces: &Arc<Namespaces>,
    lists: &mut dyn Lists,
) -> Option<SavedProcess> {
    let pid = group.pid();
    let state = tree.groups.get(&pid)?;
    if state.stop.is_some() || state.stopped {
        lists.refuse(pid, "it is stopped by a signal");
    }
    if state.exiting.is_some() && state.zombie.is_none() || state.execs.is_some() {
        lists.refuse(pid, "it is about to end or to run another program");
    }
    if !Arc::ptr_eq(group.pid_namespace(), &namespaces.pids_for_children) {
        lists.refuse(pid, "it is in a namespace of processes of its own");
    }
    let shared = tree.groups.values().any(|other| {
        other.group.pid() != pid && Arc::ptr_eq(&other.actions, &state.actions) && other.zombie.is_none()
    });
    if shared && state.zombie.is_none() {
        lists.refuse(pid, "it has the signal handlers of another process (CLONE_SIGHAND)");
    }
    let actions = lock(&state.actions);
    let actions = (1..=SIGNALS).map(|signal| {
        let action = actions.of(signal);
        [action.handler, action.flags, action.restorer, action.mask.0]
    });
    let saved = SavedProcess {
        pid,
        parent: state.parent,
        parent_thread: state.parent_thread,
        pgid: state.pgid,
        sid: state.sid,
        number: group.pid_namespace().shown(pid),
        actions: actions.collect(),
        pending: state.pending.saved(),
        zombie: state.zombie,
        leader_status: state.leader_status,
        exit_signal: state.exit_signal,
        execed: state.execed,
        unkillable: state.unkillable,
        credentials: save_credentials(&state.credentials),
        limits: (0..16).filter_map(|n| group.limits().by_number(n)).map(|l| (l.soft, l.hard)).collect(),
        dumpable: group.dumpable(),
        oom_score: group.oom_score_adjustment(),
        subreaper: group.is_subreaper(),
        started: group.started(),
        last_comm: group.last_comm(),
        intervals: Vec::new(),
        threads: Vec::new(),
    };
    let threads = state.threads.iter().filter_map(|pid| tree.threads.get(pid));
    let threads = threads.filter_map(|thread| save_thread(thread, namespaces, lists)).collect();
    Some(SavedProcess { threads, ..saved })
}

fn save_thread(
    state: &ThreadState,
    namespaces: &Arc<Namespaces>,
    lists: &mut dyn Lists,
) -> Option<SavedThread> {
    let task = &state.task;
    let pid = task.pid();
    let credentials = task.credentials();
    if !Arc::ptr_eq(&credentials.user_ns, UserNamespace::root()) {
        lists.refuse(pid, "it is in a namespace of users of its own");
    }
    if !Arc::ptr_eq(&task.namespaces(), namespaces) {
        lists.refuse(pid, "it has other namespaces than its container (unshare, setns)");
    }
    // That of the container comes with its bundle.
    if !task.filters().is_only(lists.filter()) {
        lists.refuse(pid, "it has a filter of system calls of its own (seccomp)");
    }
    if task.is_traced() {
        lists.refuse(pid, "it is traced (ptrace)");
    }
    if lock(&task.vfork).is_some() {
        lists.refuse(pid, "its parent waits for it in vfork");
    }
    let parked = lock(&task.parked).clone();
    let Some(Parked { regs, fs_base, vector: Some(vector), sequences }) = parked else {
        lists.refuse(pid, "its registers cannot be had");
        return None;
    };
    let restart = lock(&task.restart).clone();
    let sleep = restart.and_then(|restart| match restart.clock {
        Clock::Monotonic => Some((restart.until, restart.left_to)),
        _ => None,
    });
    let space = task.space();
    let affinity = lock(&task.affinity).clone();
    Some(SavedThread {
        pid,
        number: task.own_number(),
        regs: regs.to_array().to_vec(),
        fs_base,
        vector,
        sequences,
        mask: state.mask.0,
        saved_mask: state.saved_mask.map(|mask| mask.0),
        stack: (state.stack.address, state.stack.size, state.stack.flags),
        pending: state.pending.saved(),
        parent_death: state.parent_death,
        credentials: save_credentials(&credentials),
        comm: task.comm(),
        clear_child_tid: task.clear_child_tid(),
        robust_list: space.robust_list(pid),
        timer_slack: task.timer_slack(),
        personality: task.personality(),
        nice: task.nice(),
        io_priority: task.io_priority(),
        scheduling: task.scheduling(),
        affinity,
        no_huge_pages: task.huge_pages_disabled(),
        sleep,
        space: lists.space(pid, &space),
        table: lists.table(pid, &task.files()),
        folders: lists.folders(pid, &task.fs()),
    })
}

/// What processes are put into when they are made anew, and what they share.
pub(crate) struct Room<'a> {
    /// The kernel.
    pub(crate) kernel: &'a Kernel,
    /// Its namespaces.
    pub(crate) namespaces: &'a Arc<Namespaces>,
    /// The container's number.
    pub(crate) container: u64,
    /// With which tasks they are held and counted.
    pub(crate) control_group: &'a Arc<ControlGroup>,
    /// Address spaces.
    pub(crate) spaces: &'a [Arc<AddressSpace>],
    /// Tables of descriptors.
    pub(crate) tables: &'a [Arc<FdTable>],
    /// Roots and working folders.
    pub(crate) folders: &'a [Arc<FsContext>],
}

type Claimed = BTreeMap<Pid, Option<Arc<Numbers>>>;

/// Makes processes anew; none of them runs. Their tasks, in the order of the image.
///
/// # Errors
/// EINVAL for what no container is like; EEXIST where a number is taken; EAGAIN for too many.
pub(crate) fn restore(room: &Room<'_>, processes: &[SavedProcess]) -> Result<Vec<Arc<Task>>, Errno> {
    let made = {
        let mut tree = room.kernel.tasks.tree();
        check_numbers(&mut tree, processes)?;
        // All numbers were free: what has one from now on is of this image.
        restore_all(&mut tree, room, processes)
    };
    let tasks = made.inspect_err(|_| forget(room.kernel, processes))?;
    for process in processes {
        restore_timers(room.kernel, process);
    }
    Ok(tasks)
}

fn restore_all(
    tree: &mut Tree,
    room: &Room<'_>,
    processes: &[SavedProcess],
) -> Result<Vec<Arc<Task>>, Errno> {
    let mut tasks = Vec::new();
    let mut claimed = Claimed::new();
    for process in processes {
        restore_process(tree, room, process, &mut claimed, &mut tasks)?;
    }
    for process in processes {
        // Leaders are of the image, too (`checkpoint::admission`).
        let known = |pid: Pid| claimed.get(&pid).cloned().flatten();
        if let Some(state) = tree.groups.get_mut(&process.pid) {
            state.numbers = [known(process.pid), known(process.pgid), known(process.sid)];
        }
        if let Some(parent) = tree.groups.get_mut(&process.parent) {
            parent.children.insert(process.pid);
        }
    }
    // What signals each has is known now.
    tasks.iter().for_each(|task| tree.settle(task));
    Ok(tasks)
}

/// Takes back what [`restore`] made of an image, where something else fails afterwards: none of it runs.
pub(crate) fn forget(kernel: &Kernel, processes: &[SavedProcess]) {
    let mut gone = (Vec::new(), Vec::new());
    let mut tree = kernel.tasks.tree();
    for process in processes {
        gone.0.extend(process.threads.iter().filter_map(|thread| tree.threads.remove(&thread.pid)));
        gone.1.extend(tree.groups.remove(&process.pid));
    }
    drop(tree);
    // Dropped without the lock.
    drop(gone);
}

fn check_numbers(tree: &mut Tree, processes: &[SavedProcess]) -> Result<(), Errno> {
    let mut seen = BTreeSet::new();
    for process in processes {
        let threads = process.threads.iter().map(|thread| thread.pid).filter(|pid| *pid != process.pid);
        for pid in threads.chain([process.pid]) {
            if !(1..PID_MAX).contains(&pid) || !seen.insert(pid) {
                return Err(Errno::EINVAL);
            }
            tree.allocate(Some(pid))?;
            if tree.is_full(seen.len()) {
                return Err(Errno::EAGAIN);
            }
        }
        if process.threads.is_empty() != process.zombie.is_some() {
            return Err(Errno::EINVAL);
        }
    }
    let highest = seen.last().copied().unwrap_or(0);
    tree.gave(highest);
    Ok(())
}

fn claim(
    claimed: &mut Claimed,
    room: &Room<'_>,
    pid: Pid,
    number: Pid,
) -> Result<Option<Arc<Numbers>>, Errno> {
    if let Some(known) = claimed.get(&pid) {
        return Ok(known.clone());
    }
    let pids = &room.namespaces.pids_for_children;
    let own = pids.level() > 0;
    let numbers = match own {
        true if !(1..PID_MAX).contains(&number) => return Err(Errno::EINVAL),
        true => Numbers::claim(pid, pids, &[number])?,
        false => None,
    };
    if own {
        pids.gave(number);
    }
    claimed.insert(pid, numbers.clone());
    Ok(numbers)
}

fn restore_limits(saved: &SavedProcess) -> Limits {
    let mut limits = Limits::default();
    for (number, (soft, hard)) in (0..).zip(&saved.limits) {
        limits.set_by_number(number, Limit { soft: *soft, hard: *hard });
    }
    limits
}

fn restore_actions(saved: &SavedProcess) -> Actions {
    let mut actions = Actions::default();
    for (signal, [handler, flags, restorer, mask]) in (1..).zip(&saved.actions) {
        let mask = SignalSet(*mask);
        let action = SigAction { handler: *handler, flags: *flags, restorer: *restorer, mask };
        // SIGKILL and SIGSTOP have none, and stay so.
        let _ = actions.set(signal, action);
    }
    actions
}

fn restore_process(
    tree: &mut Tree,
    room: &Room<'_>,
    saved: &SavedProcess,
    claimed: &mut Claimed,
    tasks: &mut Vec<Arc<Task>>,
) -> Result<(), Errno> {
    let pids = &room.namespaces.pids_for_children;
    claim(claimed, room, saved.pid, saved.number)?;
    let all = Arc::clone(&room.kernel.tasks);
    let place = (Arc::clone(pids), room.container);
    let group = ThreadGroup::new(saved.pid, place, all, saved.started, restore_limits(saved));
    group.set_dumpable(saved.dumpable);
    group.set_oom_score_adjustment(saved.oom_score);
    group.set_subreaper(saved.subreaper);
    group.set_last_comm(saved.last_comm.clone());
    let credentials = Arc::new(restore_credentials(&saved.credentials));
    let actions = Arc::new(Mutex::new(restore_actions(saved)));
    let mut state = GroupState::new(Arc::clone(&group), credentials, actions);
    state.become_init_if_first(pids);
    (state.parent, state.parent_thread) = (saved.parent, saved.parent_thread);
    (state.pgid, state.sid) = (saved.pgid, saved.sid);
    state.threads = saved.threads.iter().map(|thread| thread.pid).collect();
    state.pending = Pending::restored(&saved.pending).ok_or(Errno::EINVAL)?;
    state.zombie = saved.zombie;
    (state.leader_status, state.exit_signal) = (saved.leader_status, saved.exit_signal);
    state.execed = saved.execed;
    state.unkillable = saved.unkillable && state.unkillable;
    if let Some(status) = saved.zombie {
        state.exiting = Some(status);
        group.set_exited(status);
    }
    tree.groups.insert(saved.pid, state);
    for thread in &saved.threads {
        let (state, task) = restore_thread(room, &group, thread, claimed)?;
        tree.threads.insert(thread.pid, state);
        tasks.push(task);
    }
    Ok(())
}

fn pick<T>(list: &[Arc<T>], number: u32) -> Result<Arc<T>, Errno> {
    let place = usize::try_from(number).ok().and_then(|number| list.get(number));
    place.map(Arc::clone).ok_or(Errno::EINVAL)
}

fn restore_thread(
    room: &Room<'_>,
    group: &Arc<ThreadGroup>,
    saved: &SavedThread,
    claimed: &mut Claimed,
) -> Result<(ThreadState, Arc<Task>), Errno> {
    let numbers = claim(claimed, room, saved.pid, saved.number)?;
    let space = pick(room.spaces, saved.space)?;
    space.set_robust_list(saved.pid, saved.robust_list);
    let parts = Parts {
        files: pick(room.tables, saved.table)?,
        fs: pick(room.folders, saved.folders)?,
        space,
        namespaces: Arc::clone(room.namespaces),
    };
    let credentials = Arc::new(restore_credentials(&saved.credentials));
    let all = Arc::clone(&room.kernel.tasks);
    let task = Arc::new(Task::new(saved.pid, Arc::clone(group), all, credentials, parts));
    task.set_comm(&saved.comm);
    task.set_control_group(Arc::clone(room.control_group));
    task.set_clear_child_tid(saved.clear_child_tid);
    task.set_timer_slack(saved.timer_slack);
    task.set_personality(saved.personality);
    task.set_nice(saved.nice);
    task.set_io_priority(saved.io_priority);
    task.set_scheduling(saved.scheduling.0, saved.scheduling.1);
    if let Some(affinity) = &saved.affinity {
        task.set_affinity(affinity.clone());
    }
    task.set_huge_pages_disabled(saved.no_huge_pages);
    if let Some((left, left_to)) = saved.sleep {
        let until = room.kernel.clocks.monotonic().saturating_add(left);
        task.set_restart(RestartBlock { clock: Clock::Monotonic, until, left_to });
    }
    let mut state = ThreadState::new(Arc::clone(&task), group.pid());
    let mask = |bits: u64| SignalSet(bits).without(SignalSet::UNBLOCKABLE);
    state.numbers = numbers;
    state.pending = Pending::restored(&saved.pending).ok_or(Errno::EINVAL)?;
    state.mask = mask(saved.mask);
    state.saved_mask = saved.saved_mask.map(mask);
    let (address, size, flags) = saved.stack;
    state.stack = AltStack { address, size, flags };
    state.parent_death = saved.parent_death;
    Ok((state, task))
}

fn restore_timers(kernel: &Kernel, saved: &SavedProcess) {
    let Some(group) = kernel.tasks.find_group(saved.pid) else { return };
    for (which, (value, interval)) in
        [Which::Real, Which::Virtual, Which::Profile].into_iter().zip(&saved.intervals)
    {
        if !value.is_zero() {
            let timer = group.timers().interval(kernel, &group, which);
            timer.set(Setting { value: *value, interval: *interval }, false);
        }
    }
    if group.limits().of(super::Resource::Cpu).soft != super::limits::INFINITY {
        super::watch_cpu_limit(kernel, &group);
    }
}

/// Registers of a guest thread from an image.
///
/// # Errors
/// EINVAL for what no thread has; ENOSYS for restartable sequences where the platform has none.
pub(crate) fn set_registers(thread: &mut dyn Thread, saved: &SavedThread) -> Result<(), Errno> {
    let regs: [u64; Regs::COUNT] = saved.regs.as_slice().try_into().map_err(|_| Errno::EINVAL)?;
    *thread.regs() = Regs::from_array(regs);
    *thread.fs_base() = saved.fs_base;
    thread.set_vector_state(&saved.vector)?;
    // The host's kernel writes to the structure: its memory is there by now.
    saved.sequences.map_or(Ok(()), |arguments| thread.restartable(arguments))
}
