//! `kill` and what is like it: who may send what to whom.

use super::super::{Pid, Task, ThreadGroup, Tree};
use super::{SignalInfo, Target, is_signal};
use crate::error::Errno;

fn check_signal(signal: i32) -> Result<(), Errno> {
    if signal == 0 || is_signal(signal) { Ok(()) } else { Err(Errno::EINVAL) }
}

impl Task {
    /// `kill` (`man 2 kill`), with numbers as the caller has them: to a process, to a group (0, or negative), to all but the first process and the caller's (-1). Signal 0 asks
    /// whether it may.
    ///
    /// # Errors
    /// EINVAL for no signal, ESRCH, EPERM.
    pub fn kill(&self, pid: Pid, signal: i32, info: &SignalInfo) -> Result<(), Errno> {
        let own = self.group.pid();
        let space = self.pid_namespace();
        let named = |number: Pid| space.named(number).ok_or(Errno::ESRCH);
        let mut tree = self.tasks.tree();
        let targets = match pid {
            i32::MIN => return Err(Errno::ESRCH),
            -1 => {
                let all = tree.groups.keys().copied();
                let init = space.init();
                let seen = all.filter(|group| space.shown(*group) > 0);
                seen.filter(|group| *group != init && *group != own).collect::<Vec<_>>()
            }
            0 => {
                let pgid = tree.groups.get(&own).map_or(0, |state| state.pgid);
                tree.members(pgid)
            }
            pid if pid < 0 => tree.members(named(-pid)?),
            pid => {
                let pid = named(pid)?;
                vec![tree.threads.get(&pid).map_or(pid, |thread| thread.group)]
            }
        };
        // With -1, those that may not be reached do not count.
        let result = tree.kill_all(self, targets, signal, info);
        if pid == -1 && result == Err(Errno::EPERM) { Ok(()) } else { result }
    }

    /// `rt_sigqueueinfo`: to one process.
    ///
    /// # Errors
    /// As [`kill`](Self::kill), and EAGAIN when too many are queued.
    pub fn kill_process(&self, pid: Pid, signal: i32, info: &SignalInfo) -> Result<(), Errno> {
        if pid <= 0 {
            return Err(Errno::ESRCH);
        }
        self.kill(pid, signal, info)
    }

    /// `tgkill`, and `tkill` without `group`: to one thread.
    ///
    /// # Errors
    /// As [`kill_process`](Self::kill_process); ESRCH also where the thread is of another process.
    pub fn kill_thread(
        &self,
        group: Option<Pid>,
        pid: Pid,
        signal: i32,
        info: &SignalInfo,
    ) -> Result<(), Errno> {
        let pid = self.named(pid).ok_or(Errno::ESRCH)?;
        let mut tree = self.tasks.tree();
        let of = tree.threads.get(&pid).map(|thread| thread.group).ok_or(Errno::ESRCH)?;
        if group.is_some_and(|group| self.named(group) != Some(of)) {
            return Err(Errno::ESRCH);
        }
        tree.kill_one(self, Target::Thread(pid), of, signal, info)
    }

    /// `pidfd_send_signal`: to a process that is held on to, whatever became of its number.
    ///
    /// # Errors
    /// As [`kill_process`](Self::kill_process).
    pub fn kill_group(&self, group: &ThreadGroup, signal: i32, info: &SignalInfo) -> Result<(), Errno> {
        let mut tree = self.tasks.tree();
        let held = tree.groups.get(&group.pid()).is_some_and(|state| std::ptr::eq(&*state.group, group));
        if !held {
            return Err(Errno::ESRCH);
        }
        tree.kill_one(self, Target::Group(group.pid()), group.pid(), signal, info)
    }

    /// `pidfd_send_signal` to the first thread of a process.
    ///
    /// # Errors
    /// As [`kill_process`](Self::kill_process).
    pub fn kill_first_thread(
        &self,
        group: &ThreadGroup,
        signal: i32,
        info: &SignalInfo,
    ) -> Result<(), Errno> {
        let mut tree = self.tasks.tree();
        let pid = group.pid();
        if !tree.threads.contains_key(&pid) {
            return Err(Errno::ESRCH);
        }
        tree.kill_one(self, Target::Thread(pid), pid, signal, info)
    }

    /// `pidfd_send_signal` to the process group that a process is in.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn kill_its_group(&self, group: &ThreadGroup, signal: i32, info: &SignalInfo) -> Result<(), Errno> {
        let mut tree = self.tasks.tree();
        let pgid = tree.groups.get(&group.pid()).ok_or(Errno::ESRCH)?.pgid;
        let members = tree.members(pgid);
        tree.kill_all(self, members, signal, info)
    }

    /// A signal that cannot be put off: if it is blocked or ignored, the process loses its say.
    pub fn force_signal(&self, info: SignalInfo) {
        super::force_fault(self, info);
    }
}

impl Tree {
    /// One that could be reached is enough.
    fn kill_all(
        &mut self,
        sender: &Task,
        targets: Vec<Pid>,
        signal: i32,
        info: &SignalInfo,
    ) -> Result<(), Errno> {
        let mut result = Err(Errno::ESRCH);
        for target in targets {
            match self.kill_one(sender, Target::Group(target), target, signal, info) {
                Ok(()) => result = Ok(()),
                Err(errno) if result.is_err() => result = Err(errno),
                Err(_) => {}
            }
        }
        result
    }

    fn kill_one(
        &mut self,
        sender: &Task,
        target: Target,
        group: Pid,
        signal: i32,
        info: &SignalInfo,
    ) -> Result<(), Errno> {
        let handle = self.groups.get(&group).map(|state| state.group.clone()).ok_or(Errno::ESRCH)?;
        // As Linux, which looks at the number once it knows for whom it is (`check_kill_permission`).
        check_signal(signal)?;
        if !self.may_signal(sender.group.pid(), &sender.credentials(), &handle, signal) {
            return Err(Errno::EPERM);
        }
        if signal == 0 {
            return Ok(());
        }
        // From a namespace around the target's: even its first process ends by SIGKILL, and nobody there has a number for the sender.
        let from_above = handle.pid_namespace().shown(sender.group.pid()) == 0;
        let mut info = info.clone();
        if from_above && let super::Payload::Raw(rest) = &mut info.payload {
            rest[..4].fill(0);
        }
        self.send(target, info, from_above)
    }
}
