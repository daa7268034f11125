//! Who a task is and what it may do (`man 7 credentials`, `man 7 capabilities`).

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
        }
    }

    /// Whether a capability is in force.
    #[must_use]
    pub fn capable(&self, capability: u32) -> bool {
        self.effective.has(capability)
    }

    /// Whether `group` is the group for file access or a supplementary one.
    #[must_use]
    pub fn in_group(&self, group: u32) -> bool {
        self.fsgid == group || self.groups.contains(&group)
    }
}
