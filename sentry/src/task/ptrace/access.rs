//! Who may look into whom (`__ptrace_may_access`; `cap_ptrace_access_check` in `security/commoncap.c`). Yama's scope is 0.

use std::sync::Arc;

use super::super::{Credentials, Task, Tree, capability};

impl Credentials {
    /// Whether the user alone lets him look into a task of `other`, with his real identity.
    #[must_use]
    pub fn may_access(&self, other: &Self) -> bool {
        let same_user = [other.uid, other.euid, other.suid].iter().all(|uid| *uid == self.uid);
        let same_group = [other.gid, other.egid, other.sgid].iter().all(|gid| *gid == self.gid);
        let covers = other.permitted.0 & !self.permitted.0 == 0;
        (same_user && same_group && covers) || self.capable_in(&other.user_ns, capability::SYS_PTRACE)
    }
}

impl Task {
    /// Whether it may look into another task and change it (PTRACE_MODE_ATTACH_REALCREDS).
    #[must_use]
    pub fn may_access(&self, other: &Self) -> bool {
        if Arc::ptr_eq(self.group(), other.group()) {
            return true;
        }
        let (own, theirs) = (self.credentials(), other.credentials());
        let shown = other.group().dumpable() == 1 || own.capable_in(&theirs.user_ns, capability::SYS_PTRACE);
        shown && own.may_access(&theirs)
    }

    /// Whether its tracer, if it has one, could have done what a program does that is somebody else's by its file (`ptracer_capable`).
    #[must_use]
    pub fn tracer_covers(&self) -> bool {
        self.tasks.tree().tracer_covers(self)
    }
}

impl Tree {
    /// See [`Task::tracer_covers`].
    pub(in super::super) fn tracer_covers(&self, task: &Task) -> bool {
        let Some(trace) = self.trace(task.pid()) else { return true };
        let tracer = self.threads.get(&trace.tracer).map(|thread| thread.task.credentials());
        let own = task.credentials();
        tracer.is_some_and(|tracer| tracer.capable_in(&own.user_ns, capability::SYS_PTRACE))
    }
}
