//! What `execve` does to a task (`begin_new_exec` in `fs/exec.c`, `cap_bprm_creds_from_file` in `security/commoncap.c`).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::namespaces::INVALID;
use super::signal::AltStack;
use super::{Capabilities, Credentials, Pid, Task, Tree, hooks, lock, securebits};
use crate::error::{Restart, SysError};

impl Credentials {
    /// Who a task is after it began a program. `set_uid` and `set_gid`: owner of a file with such a bit, where the mount allows them.
    /// Capabilities of files are not known.
    #[must_use]
    pub fn after_exec(&self, set_uid: Option<u32>, set_gid: Option<u32>) -> Self {
        let mut new = self.clone();
        let known = set_uid.is_none_or(|uid| self.user_ns.uid_up(uid) != INVALID)
            && set_gid.is_none_or(|gid| self.user_ns.gid_up(gid) != INVALID);
        if !self.no_new_privileges && known {
            new.euid = set_uid.unwrap_or(new.euid);
            new.egid = set_gid.unwrap_or(new.egid);
        }
        let changed = new.euid != self.euid || new.egid != self.egid;
        if changed {
            new.ambient = Capabilities::default();
        }
        new.permitted = new.ambient;
        new.effective = new.ambient;
        let root_counts = new.securebits & securebits::NO_ROOT == 0;
        let zero = self.user_ns.uid(0);
        if root_counts && (new.euid == zero || new.uid == zero) {
            new.permitted = Capabilities(new.inheritable.0 | new.bounding.0);
            if self.no_new_privileges {
                new.permitted.0 &= self.permitted.0;
            }
            new.effective = if new.euid == zero { new.permitted } else { new.ambient };
        }
        (new.suid, new.fsuid) = (new.euid, new.euid);
        (new.sgid, new.fsgid) = (new.egid, new.egid);
        new.securebits &= !securebits::KEEP_CAPS;
        new
    }
}

impl Task {
    /// The point of no return of `execve`: ends all other threads of the process and takes over its number. Afterwards nobody else uses
    /// what belongs to the process, and nobody attaches to it until [`finish_exec`](Self::finish_exec). `covered`: what
    /// [`tracer_covers`](Self::tracer_covers) said when the new credentials were made; `false` where that is so no more: somebody has attached
    /// since, nothing was done, and they have to be made again.
    ///
    /// # Errors
    /// The process ends, or another thread does the same: the caller gives this on as it is.
    pub fn begin_exec(&self, covered: bool) -> Result<bool, SysError> {
        let group = self.group.pid();
        {
            let mut tree = self.tasks.tree();
            if covered && !tree.tracer_covers(self) {
                return Ok(false);
            }
            if !tree.claim_exec(group, self.pid()) {
                return Err(SysError::Interrupted(Restart::Always));
            }
        }
        loop {
            self.waiter.clear();
            let mut tree = self.tasks.tree();
            let Some(state) = tree.groups.get_mut(&group) else {
                return Err(SysError::Interrupted(Restart::Always));
            };
            if state.exiting.is_some() {
                state.execs = None;
                return Err(SysError::Interrupted(Restart::Always));
            }
            if state.threads.as_slice() == [self.pid()] {
                // Until it is who it will be.
                state.execs = Some(group);
                tree.become_leader(self, group);
                tree.settle(self);
                return Ok(true);
            }
            drop(tree);
            self.waiter.wait(None);
        }
    }

    /// The rest. The credentials are the new ones; then `put` puts the new program in place ([`set_space`](Self::set_space),
    /// [`replace_thread`](Self::replace_thread)): who finds that in the task finds those, too. Handlers and the other stack are gone,
    /// files are closed that are to be, a caller of `vfork` goes on.
    pub fn finish_exec(&self, name: &[u8], credentials: Credentials, put: impl FnOnce()) {
        {
            let mut tree = self.tasks.tree();
            let privileged = {
                let old = self.credentials();
                old.euid != credentials.euid || old.egid != credentials.egid
            };
            if let Some(state) = tree.groups.get_mut(&self.group.pid()) {
                let mut actions = lock(&state.actions).clone();
                actions.reset_for_exec();
                state.actions = Arc::new(Mutex::new(actions));
                state.execed = true;
            }
            if let Some(thread) = tree.threads.get_mut(&self.pid()) {
                thread.stack = AltStack::default();
                thread.fault = (0, 0, 0);
                if privileged {
                    thread.parent_death = 0;
                }
            }
            self.group.set_dumpable(u32::from(!privileged));
        }
        self.set_credentials(credentials);
        put();
        if let Some(state) = self.tasks.tree().groups.get_mut(&self.group.pid()) {
            state.execs = None;
        }
        self.set_comm(name);
        self.set_clear_child_tid(0);
        self.personality.fetch_and(!PER_CLEAR_ON_EXEC, Ordering::Relaxed);
        let timers = self.group.timers().take_posix();
        drop(timers);
        let files = self.files();
        if Arc::strong_count(&files) > 2 {
            // This one, the task's, and somebody else's: a process has its files alone from now on.
            let own = hooks::fork_files(&files);
            drop(self.set_files(own));
        }
        drop(files);
        hooks::close_on_exec(&self.files());
        self.finish_vfork();
    }
}

/// `READ_IMPLIES_EXEC`, which a program does not hand on.
const PER_CLEAR_ON_EXEC: u32 = 0x40_0000;

impl Tree {
    fn claim_exec(&mut self, group: Pid, by: Pid) -> bool {
        let Some(state) = self.groups.get_mut(&group) else { return false };
        if state.exiting.is_some() || state.execs.is_some() {
            return false;
        }
        state.execs = Some(by);
        for task in self.tasks_of(group) {
            if task.pid() != by {
                task.poke();
            }
        }
        true
    }

    /// The one thread left has the number of its process from now on.
    fn become_leader(&mut self, task: &Task, group: Pid) {
        let old = task.pid();
        if old == group {
            return;
        }
        self.take_over_traces(old, group);
        let numbers = self.groups.get(&group).and_then(|state| state.numbers[0].clone());
        if let Some(thread) = self.threads.remove(&old) {
            self.threads.insert(group, super::tree::ThreadState { numbers, ..thread });
        }
        task.pid.store(group, Ordering::Relaxed);
        let Some(state) = self.groups.get_mut(&group) else { return };
        state.threads = vec![group];
        state.traced_end = None;
        state.credentials = task.credentials();
        for child in state.children.clone() {
            if let Some(child) = self.groups.get_mut(&child)
                && child.parent_thread == old
            {
                child.parent_thread = group;
            }
        }
    }
}
