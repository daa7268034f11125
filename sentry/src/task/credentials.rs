//! Who a task is and what it may do (`man 7 credentials`, `man 7 capabilities`).

use std::sync::Arc;

use super::UserNamespace;

/// Capabilities that this room asks for.
#[allow(missing_docs, reason = "names as the manual has them")]
pub mod capability {
    pub const DAC_READ_SEARCH: u32 = 2;
    pub const KILL: u32 = 5;
    pub const SETGID: u32 = 6;
    pub const SETUID: u32 = 7;
    pub const SETPCAP: u32 = 8;
    pub const SYS_PTRACE: u32 = 19;
    pub const SYS_ADMIN: u32 = 21;
    pub const SYS_NICE: u32 = 23;
    pub const SYS_RESOURCE: u32 = 24;
    pub const SYS_TIME: u32 = 25;
    pub const SETFCAP: u32 = 31;
    pub const SYSLOG: u32 = 34;
    pub const CHECKPOINT_RESTORE: u32 = 40;
    /// The highest that is known.
    pub const LAST: u32 = 40;
}

/// What root is worth (`include/uapi/linux/securebits.h`).
pub mod securebits {
    /// User 0 has no capabilities for being so.
    pub const NO_ROOT: u32 = 1;
    /// A change of users changes no capabilities.
    pub const NO_SETUID_FIXUP: u32 = 1 << 2;
    /// Capabilities stay when user 0 is left.
    pub const KEEP_CAPS: u32 = 1 << 4;
    /// Ambient capabilities cannot be raised.
    pub const NO_CAP_AMBIENT_RAISE: u32 = 1 << 6;
    /// Those above.
    pub const ALL: u32 = NO_ROOT | NO_SETUID_FIXUP | KEEP_CAPS | NO_CAP_AMBIENT_RAISE;
    /// Each has a lock, one bit above.
    pub const LOCKS: u32 = ALL << 1;
}

/// A set of capabilities, by their numbers (`include/uapi/linux/capability.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Every capability that is known: 0 (`CAP_CHOWN`) to 40 (`CAP_CHECKPOINT_RESTORE`).
    pub const ALL: Self = Self((1 << 41) - 1);

    /// Whether `capability` (a number) is in it.
    #[must_use]
    pub fn has(self, capability: u32) -> bool {
        capability < 64 && self.0 & (1 << capability) != 0
    }
}

/// Users, groups and capabilities of a task. Immutable: a change makes another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Real user.
    pub uid: u32,
    /// Effective user.
    pub euid: u32,
    /// Saved user.
    pub suid: u32,
    /// User for file access.
    pub fsuid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective group.
    pub egid: u32,
    /// Saved group.
    pub sgid: u32,
    /// Group for file access.
    pub fsgid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// In force.
    pub effective: Capabilities,
    /// That may be put in force.
    pub permitted: Capabilities,
    /// That an execve may keep.
    pub inheritable: Capabilities,
    /// That can ever be had.
    pub bounding: Capabilities,
    /// That an execve keeps without a file's help.
    pub ambient: Capabilities,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// [`securebits`].
    pub securebits: u32,
    /// Where its capabilities count, and whose numbers of users and groups it is shown. All numbers above are those of the root namespace.
    pub user_ns: Arc<UserNamespace>,
}

impl Credentials {
    /// Root with every capability.
    #[must_use]
    pub fn root() -> Self {
        Self {
            uid: 0,
            euid: 0,
            suid: 0,
            fsuid: 0,
            gid: 0,
            egid: 0,
            sgid: 0,
            fsgid: 0,
            groups: Vec::new(),
            effective: Capabilities::ALL,
            permitted: Capabilities::ALL,
            inheritable: Capabilities::default(),
            bounding: Capabilities::ALL,
            ambient: Capabilities::default(),
            no_new_privileges: false,
            securebits: 0,
            user_ns: Arc::clone(UserNamespace::root()),
        }
    }

    /// A user with root's capabilities, of these groups in whatever order.
    #[must_use]
    pub fn of_user(uid: u32, gid: u32, mut groups: Vec<u32>) -> Self {
        // As `setgroups` leaves them.
        groups.sort_unstable();
        Self {
            uid,
            euid: uid,
            suid: uid,
            fsuid: uid,
            gid,
            egid: gid,
            sgid: gid,
            fsgid: gid,
            groups,
            ..Self::root()
        }
    }

    /// Whether a capability is in force for the whole sandbox: that is, in the root namespace.
    #[must_use]
    pub fn capable(&self, capability: u32) -> bool {
        self.effective.has(capability) && self.user_ns.is_root()
    }

    /// Whether `group` is the group for file access or a supplementary one.
    #[must_use]
    pub fn in_group(&self, group: u32) -> bool {
        self.fsgid == group || self.groups.contains(&group)
    }

    /// Changes users, and capabilities with them (`cap_task_fix_setuid` in `security/commoncap.c`).
    #[must_use]
    pub fn with_users(&self, uid: u32, euid: u32, suid: u32) -> Self {
        let mut new = Self { uid, euid, suid, fsuid: euid, ..self.clone() };
        if self.securebits & securebits::NO_SETUID_FIXUP == 0 {
            let zero = self.user_ns.uid(0);
            let was_root = [self.uid, self.euid, self.suid].contains(&zero);
            let is_root = [uid, euid, suid].contains(&zero);
            if was_root && !is_root {
                if self.securebits & securebits::KEEP_CAPS == 0 {
                    new.permitted = Capabilities::default();
                    new.effective = Capabilities::default();
                }
                new.ambient = Capabilities::default();
            }
            if self.euid == zero && euid != zero {
                new.effective = Capabilities::default();
            }
            if self.euid != zero && euid == zero {
                new.effective = new.permitted;
            }
        }
        new.fix_file_capabilities(self.fsuid);
        new
    }

    /// Changes the user for file access, and the capabilities that have to do with files.
    #[must_use]
    pub fn with_file_user(&self, fsuid: u32) -> Self {
        let mut new = Self { fsuid, ..self.clone() };
        new.fix_file_capabilities(self.fsuid);
        new
    }

    /// `CAP_FS_SET`: chown, dac_override, dac_read_search, fowner, fsetid, linux_immutable, mknod, mac_override.
    fn fix_file_capabilities(&mut self, old: u32) {
        const FILES: u64 = 0x1f | 1 << 9 | 1 << 27 | 1 << 32;
        if self.securebits & securebits::NO_SETUID_FIXUP != 0 {
            return;
        }
        let zero = self.user_ns.uid(0);
        if old == zero && self.fsuid != zero {
            self.effective.0 &= !FILES;
        }
        if old != zero && self.fsuid == zero {
            self.effective.0 |= self.permitted.0 & FILES;
        }
    }
}

impl Credentials {
    /// `capset` (`cap_capset` in `security/commoncap.c`); `None` where that is not allowed.
    #[must_use]
    pub fn with_capabilities(
        &self,
        effective: Capabilities,
        permitted: Capabilities,
        inheritable: Capabilities,
    ) -> Option<Self> {
        let within = |set: Capabilities, bound: u64| set.0 & !bound == 0;
        let may_inherit_more = self.capable_here(capability::SETPCAP);
        let allowed = (may_inherit_more || within(inheritable, self.inheritable.0 | self.permitted.0))
            && within(inheritable, self.inheritable.0 | self.bounding.0)
            && within(permitted, self.permitted.0)
            && within(effective, permitted.0);
        let ambient = Capabilities(self.ambient.0 & permitted.0 & inheritable.0);
        allowed.then(|| Self { effective, permitted, inheritable, ambient, ..self.clone() })
    }
}
