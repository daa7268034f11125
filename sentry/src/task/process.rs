//! Processes that come from outside the sandbox, and what can be seen of a process; groups and sessions.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::signal::{Actions, Pending, SignalSet};
use super::tree::{GroupState, ThreadState};
use super::{Credentials, Limits, Parts, Pid, Task, Tasks, ThreadGroup, Tree};
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
            threads: vec![pid],
            actions,
            pending: Pending::default(),
            stop: None,
            stopped: false,
            report: None,
            exiting: None,
            execs: None,
            zombie: None,
            leader_status: 0,
            exit_signal: libc::SIGCHLD,
            unkillable: false,
            execed: false,
            credentials,
        }
    }
}

impl Kernel {
    /// Makes a process that has no parent in the sandbox and a session of its own. It runs once [`run`](super::run) is called for it.
    /// The very first one is number 1: orphans become its children, and the sandbox ends with it.
    ///
    /// # Errors
    /// EAGAIN when the sandbox has as many tasks as it may.
    pub fn new_process(&self, new: NewProcess) -> Result<Arc<Task>, Errno> {
        let mut tree = self.tasks.tree();
        let pid = tree.allocate()?;
        let group = ThreadGroup::new(pid, Arc::clone(&self.tasks), self.clocks.monotonic(), new.limits);
        let credentials = Arc::new(new.credentials);
        let parts = Parts { files: new.files, fs: new.fs, space: new.space };
        let tasks = Arc::clone(&self.tasks);
        let task = Arc::new(Task::new(pid, Arc::clone(&group), tasks, Arc::clone(&credentials), parts));
        let mut state = GroupState::new(group, credentials, Arc::default());
        state.unkillable = pid == 1;
        tree.groups.insert(pid, state);
        tree.threads.insert(pid, ThreadState::new(Arc::clone(&task), pid));
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
    /// Number of its process' parent (`getppid`); 0 for none in the sandbox.
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
            pid => tree.threads.get(&pid).map_or(pid, |thread| thread.group),
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
        Ok(pid)
    }

    /// `setpgid` (`man 2 setpgid`; `kernel/sys.c`).
    ///
    /// # Errors
    /// EINVAL, ESRCH, EACCES, EPERM, as the manual has them.
    pub fn set_process_group(&self, pid: Pid, pgid: Pid) -> Result<(), Errno> {
        let own = self.group.pid();
        let pid = if pid == 0 { own } else { pid };
        let pgid = if pgid == 0 { pid } else { pgid };
        if pgid < 0 {
            return Err(Errno::EINVAL);
        }
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
        if pgid != pid && !self.groups.values().any(|state| state.pgid == pgid && state.sid == sid) {
            return Err(Errno::EPERM);
        }
        if let Some(target) = self.groups.get_mut(&pid) {
            target.pgid = pgid;
        }
        Ok(())
    }
}
