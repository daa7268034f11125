//! What agent and stage tell each other. One enum for each direction: a new step is a new variant, here.

use std::path::PathBuf;

use nix::sched::CloneFlags;
use serde::{Deserialize, Serialize};

/// From the agent to the stage.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromAgent {
    /// First message. Carries stdin, stdout, stderr (none with a terminal), then for `Exec` a process descriptor.
    Config(Box<Config>),
    /// The id maps of the stage's user namespace are written.
    IdsMapped,
    /// Run the program now.
    Start,
}

/// From the stage to the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromStage {
    /// The stage is in a new user namespace and waits for its id maps.
    MapIds {
        /// The stage's own number.
        pid: i32,
    },
    /// The process that will become the program, numbered as the agent sees it.
    Forked {
        /// Its number.
        pid: i32,
    },
    /// All is set up but for privileges. Carries the terminal's master when there is one.
    Ready,
    /// A step failed; the stage ends.
    Failed {
        /// Chain of what was tried and why it failed.
        message: String,
    },
}

/// Everything needed to become a process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    /// Cgroup folder to join; none where there is no cgroup v2.
    pub(crate) cgroup: Option<PathBuf>,
    /// The program and its privileges.
    pub(crate) process: Process,
    /// New container or a process in one.
    pub(crate) kind: Kind,
}

/// New container or a process in one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// A container's first process.
    Create(Box<Create>),
    /// A further process.
    Exec(Exec),
}

/// A process to add to a container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Exec {
    /// `CLONE_NEW*` bits of the namespaces to join through the process descriptor.
    pub(crate) namespaces: i32,
}

/// A container to build.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Create {
    /// Namespaces to make or join.
    pub(crate) namespaces: Vec<Namespace>,
    /// Root file system on the guest.
    pub(crate) rootfs: PathBuf,
    /// Remount it read-only at the end.
    pub(crate) readonly: bool,
    /// `MS_SHARED`-like flags for the root mount; 0 means private to the container.
    pub(crate) propagation: u64,
    /// Mounts in order.
    pub(crate) mounts: Vec<Mount>,
    /// Device nodes to make, besides the standard ones.
    pub(crate) devices: Vec<DeviceNode>,
    /// Paths to hide.
    pub(crate) masked: Vec<String>,
    /// Paths to make read-only.
    pub(crate) readonly_paths: Vec<String>,
    /// Kernel parameters of the container's namespaces.
    pub(crate) sysctls: Vec<(String, String)>,
    /// Host name, when the UTS namespace is its own.
    pub(crate) hostname: Option<String>,
}

impl Create {
    /// Namespaces to be made.
    pub(crate) fn unshare(&self) -> CloneFlags {
        self.namespaces.iter().filter(|n| n.join.is_none()).fold(CloneFlags::empty(), |all, n| all | n.flag())
    }
}

/// One namespace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Namespace {
    /// `CLONE_NEW*` bit.
    pub(crate) bits: i32,
    /// File of an existing one to join.
    pub(crate) join: Option<PathBuf>,
}

impl Namespace {
    /// The bit as a flag.
    pub(crate) fn flag(&self) -> CloneFlags {
        CloneFlags::from_bits_retain(self.bits)
    }
}

/// One mount, options already taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// Where, inside the root file system.
    pub(crate) destination: String,
    /// What.
    pub(crate) source: String,
    /// File system type, or `bind`.
    pub(crate) fstype: String,
    /// `MS_*` flags.
    pub(crate) flags: u64,
    /// Propagation flags to set afterwards, one mount call each.
    pub(crate) propagation: Vec<u64>,
    /// Options for the file system.
    pub(crate) data: String,
}

/// A device node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeviceNode {
    /// Path in the container.
    pub(crate) path: String,
    /// `c`, `b`, `u` or `p`.
    pub(crate) kind: char,
    /// Major number.
    pub(crate) major: u64,
    /// Minor number.
    pub(crate) minor: u64,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
}

/// A program and its privileges.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Program and arguments.
    pub(crate) args: Vec<String>,
    /// Environment, `NAME=value`.
    pub(crate) env: Vec<String>,
    /// Working directory.
    pub(crate) cwd: String,
    /// User number.
    pub(crate) uid: u32,
    /// Group number.
    pub(crate) gid: u32,
    /// More groups.
    pub(crate) groups: Vec<u32>,
    /// `user[:group]` to look up in the container's own files; wins over the numbers when set.
    pub(crate) user_name: String,
    /// Give it a terminal.
    pub(crate) terminal: bool,
    /// Rows and columns of the terminal.
    pub(crate) size: Option<(u16, u16)>,
    /// Capability sets.
    pub(crate) capabilities: Capabilities,
    /// `(resource, soft, hard)`.
    pub(crate) rlimits: Vec<(u32, u64, u64)>,
    /// Set `no_new_privs`.
    pub(crate) no_new_privs: bool,
    /// `oom_score_adj`.
    pub(crate) oom_score_adj: Option<i32>,
    /// Filter that every program of a container gets; loaded before any other.
    pub(crate) guard: Seccomp,
    /// The container's own seccomp profile, compiled.
    pub(crate) seccomp: Option<Seccomp>,
}

/// A compiled filter and its load flags.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Seccomp {
    /// Instructions in `sock_filter` layout.
    pub(crate) program: Vec<u64>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub(crate) flags: u32,
}

/// The five sets as bit masks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capabilities {
    /// Upper bound of what can be gained.
    pub(crate) bounding: u64,
    /// In force.
    pub(crate) effective: u64,
    /// Kept over `execve` with the file's.
    pub(crate) inheritable: u64,
    /// May be put in force.
    pub(crate) permitted: u64,
    /// Kept over `execve` of plain files.
    pub(crate) ambient: u64,
}
