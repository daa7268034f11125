//! Processes that come from outside the sandbox, and what can be seen of a process; groups and sessions.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::namespaces::Numbers;
use super::signal::{Actions, Pending, SignalSet};
use super::tree::{GroupState, ThreadState};
use super::{Credentials, Limits, Namespaces, Parts, Pid, PidNamespace, Task, Tasks, ThreadGroup, Tree};
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::mm::AddressSpace;
use crate::vfs::{FdTable, FsContext};

/// A process from outside: the first one of a container, or one that is put into it.
pub struct NewProcess {
    /// Who it is.
    pub credentials: Credentials,
    /// Its limits.
    pub limits: Limits,
    /// Its open files.
    pub files: Arc<FdTable>,
    /// Its root, working folder, umask.
    pub fs: Arc<FsContext>,
    /// Its memory.
    pub space: Arc<AddressSpace>,
    /// Its namespaces; it is a process of [`Namespaces::pids_for_children`]. `None`: the first ones, with the mounts that its root is in.
    pub namespaces: Option<Arc<Namespaces>>,
    /// Which container it belongs to; 0 for none.
    pub container: u64,
}

/// What can be seen of a process (`/proc/…/stat`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its number.
    pub pid: Pid,
    /// Of its parent.
    pub parent: Pid,
    /// Of its group.
    pub pgid: Pid,
    /// Of its session.
    pub sid: Pid,
    /// `R`, `T`, `Z`.
    pub state: char,
    /// Numbers of its living threads.
    pub threads: Vec<Pid>,
    /// Its children.
    pub children: Vec<Pid>,
    /// Signals that are ignored, and those that have a handler.
    pub ignored: SignalSet,
    /// Those that have a handler.
    pub handled: SignalSet,
    /// Who its first thread is, or was.
    pub credentials: Arc<Credentials>,
    /// Sent to the parent at the end.
    pub exit_signal: i32,
}

impl GroupState {
    pub(super) fn new(
        group: Arc<ThreadGroup>,
        credentials: Arc<Credentials>,
        actions: Arc<Mutex<Actions>>,
    ) -> Self {
        let pid = group.pid();
        Self {
            group,
            parent: 0,
            parent_thread: 0,
            children: BTreeSet::new(),
            pgid: pid,
            sid: pid,
            numbers: [None, None, None],
            threads: vec![pid],
            actions,
            pending: Pending::default(),
            stop: None,
            stopped: false,
            report: None,
            exiting: None,
            killed: false,
            traced_end: None,
            execs: None,
            zombie: None,
            leader_status: 0,
            exit_signal: libc::SIGCHLD,
            unkillable: false,
            execed: false,
            credentials,
        }
    }

    /// The first process of a namespace takes its orphans, and has a say about most signals.
    pub(super) fn become_init_if_first(&mut self, pids: &PidNamespace) {
        if pids.init() == 0 && pids.shown(self.group.pid()) == 1 {
            pids.set_init(self.group.pid());
            self.unkillable = true;
        }
    }
}

impl Kernel {
    /// Makes a process that has no parent in the sandbox and a session of its own. It runs once [`run`](super::run) is called for it.
    /// The very first one of a namespace is number 1 in it: orphans become its children, and all others end with it.
    ///
    /// # Errors
    /// EAGAIN when the sandbox has as many tasks as it may; ENOMEM where the first process of the namespace ended.
    pub fn new_process(&self, new: NewProcess) -> Result<Arc<Task>, Errno> {
        let namespaces = new.namespaces.unwrap_or_else(|| {
            let mounts = crate::vfs::mount::MountNamespace::of(&new.fs.root());
            Arc::new(Namespaces { mounts, ..(**self.tasks.first_namespaces()).clone() })
        });
        let pids = Arc::clone(&namespaces.pids_for_children);
        let mut tree = self.tasks.tree();
        let pid = tree.allocate(None)?;
        let numbers = Numbers::claim(pid, &pids, &[])?;
        let started = self.clocks.monotonic();
        let place = (Arc::clone(&pids), new.container);
        let group = ThreadGroup::new(pid, place, Arc::clone(&self.tasks), started, new.limits);
        let credentials = Arc::new(new.credentials);
        let parts = Parts { files: new.files, fs: new.fs, space: new.space, namespaces };
        let tasks = Arc::clone(&self.tasks);
        let task = Arc::new(Task::new(pid, Arc::clone(&group), tasks, Arc::clone(&credentials), parts));
        let mut state = GroupState::new(group, credentials, Arc::default());
        state.become_init_if_first(&pids);
        state.numbers = std::array::from_fn(|_| numbers.clone());
        tree.groups.insert(pid, state);
        let thread = ThreadState { numbers, ..ThreadState::new(Arc::clone(&task), pid) };
        tree.threads.insert(pid, thread);
        Ok(task)
    }
}

impl Tasks {
    /// What can be seen of a process.
    #[must_use]
    pub fn process_info(&self, pid: Pid) -> Option<ProcessInfo> {
        let tree = self.tree();
        let state = tree.groups.get(&pid)?;
        let letter = match (state.zombie, state.stopped) {
            (Some(_), _) => 'Z',
            (None, true) => 'T',
            (None, false) => 'R',
        };
        let actions = super::lock(&state.actions);
        let with = |wanted: &dyn Fn(u64) -> bool| {
            let signals = (1..=super::signal::SIGNALS).filter(|signal| wanted(actions.of(*signal).handler));
            SignalSet::of(&signals.collect::<Vec<_>>())
        };
        Some(ProcessInfo {
            pid,
            parent: state.parent,
            pgid: state.pgid,
            sid: state.sid,
            state: letter,
            threads: state.threads.clone(),
            children: state.children.iter().copied().collect(),
            ignored: with(&|handler| handler == 1),
            handled: with(&|handler| handler > 1),
            credentials: Arc::clone(&state.credentials),
            exit_signal: state.exit_signal,
        })
    }

    /// Session of a process.
    #[must_use]
    pub fn session_of(&self, process: Pid) -> Option<Pid> {
        self.tree().groups.get(&process).map(|state| state.sid)
    }

    /// Sends a signal to all processes of a group: what a terminal does. No permission is asked for.
    pub fn signal_process_group(&self, pgid: Pid, info: &super::signal::SignalInfo) {
        let mut tree = self.tree();
        for pid in tree.members(pgid) {
            // Each is there; a signal that is one too many is lost to it alone.
            let _ = tree.send(super::signal::Target::Group(pid), info.clone(), false);
        }
    }

    /// Whether nobody in a process group has a parent in the same session but in another group.
    #[must_use]
    pub fn is_orphaned_group(&self, pgid: Pid) -> bool {
        self.tree().is_orphaned(pgid, 0)
    }
}

impl Task {
    /// Number of its process' parent; 0 for none in the sandbox. As the task sees it: [`shown`](Self::shown).
    #[must_use]
    pub fn parent(&self) -> Pid {
        self.tasks.tree().parent_of(self.group.pid())
    }

    /// Number of its process group.
    #[must_use]
    pub fn process_group(&self) -> Pid {
        self.tasks.tree().groups.get(&self.group.pid()).map_or(0, |state| state.pgid)
    }

    /// Number of its session.
    #[must_use]
    pub fn session(&self) -> Pid {
        self.tasks.tree().groups.get(&self.group.pid()).map_or(0, |state| state.sid)
    }

    /// `getpgid` and `getsid`: group and session of a process or thread; 0 for its own.
    ///
    /// # Errors
    /// ESRCH.
    pub fn group_and_session(&self, pid: Pid) -> Result<(Pid, Pid), Errno> {
        let tree = self.tasks.tree();
        let group = match pid {
            0 => self.group.pid(),
            pid => {
                let pid = self.named(pid).ok_or(Errno::ESRCH)?;
                tree.threads.get(&pid).map_or(pid, |thread| thread.group)
            }
        };
        tree.groups.get(&group).map(|state| (state.pgid, state.sid)).ok_or(Errno::ESRCH)
    }

    /// `setsid`: a new session with a new group, both of its own number.
    ///
    /// # Errors
    /// EPERM where there is a group of that number already.
    pub fn set_session(&self) -> Result<Pid, Errno> {
        let mut tree = self.tasks.tree();
        let pid = self.group.pid();
        if !tree.members(pid).is_empty() {
            return Err(Errno::EPERM);
        }
        let state = tree.groups.get_mut(&pid).ok_or(Errno::ESRCH)?;
        (state.sid, state.pgid) = (pid, pid);
        let own = state.numbers[0].clone();
        state.numbers = std::array::from_fn(|_| own.clone());
        Ok(pid)
    }

    /// `setpgid` (`man 2 setpgid`; `kernel/sys.c`).
    ///
    /// # Errors
    /// EINVAL, ESRCH, EACCES, EPERM, as the manual has them.
    pub fn set_process_group(&self, pid: Pid, pgid: Pid) -> Result<(), Errno> {
        let own = self.group.pid();
        // Without a group it is that of the process' number, whatever this is.
        if pgid < 0 || pgid == 0 && pid < 0 {
            return Err(Errno::EINVAL);
        }
        let pid = if pid == 0 { own } else { self.named(pid).ok_or(Errno::ESRCH)? };
        // What is no number of anybody is found to be no group.
        let pgid = if pgid == 0 { pid } else { self.named(pgid).unwrap_or(0) };
        self.tasks.tree().set_process_group(own, pid, pgid)
    }
}

impl Tree {
    fn set_process_group(&mut self, own: Pid, pid: Pid, pgid: Pid) -> Result<(), Errno> {
        let caller_sid = self.groups.get(&own).ok_or(Errno::ESRCH)?.sid;
        let Some(target) = self.groups.get(&pid) else {
            // A thread that is not the first of its process has a number, but is no process.
            return Err(if self.threads.contains_key(&pid) { Errno::EINVAL } else { Errno::ESRCH });
        };
        if target.parent == own {
            if target.sid != caller_sid {
                return Err(Errno::EPERM);
            }
            if target.execed {
                return Err(Errno::EACCES);
            }
        } else if pid != own {
            return Err(Errno::ESRCH);
        }
        if target.sid == pid {
            return Err(Errno::EPERM);
        }
        let sid = target.sid;
        let numbers = if pgid == pid {
            target.numbers[0].clone()
        } else {
            let member = self.groups.values().find(|state| state.pgid == pgid && state.sid == sid);
            member.ok_or(Errno::EPERM)?.numbers[1].clone()
        };
        if let Some(target) = self.groups.get_mut(&pid) {
            target.pgid = pgid;
            target.numbers[1] = numbers;
        }
        Ok(())
    }
}
