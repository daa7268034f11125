//! What the monitor asks and what the sentry answers.
//!
//! Both are one program, made of one build: there are no versions. Numbers of containers and processes are the monitor's own; names that
//! clients give them never come here. A [`Descriptor`] is a place among the descriptors that came with the message.

use serde::{Deserialize, Serialize};

use crate::net::stack::LinkConfig;

/// Place of a descriptor among those of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor(pub u8);

/// A container, as the monitor counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerNumber(pub u32);

/// A process that was started from outside, as the monitor counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessNumber(pub u32);

/// From the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The answer has it, too.
    pub number: u64,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Names the machine.
    Names {
        /// `nodename`.
        host: Option<String>,
        /// `domainname`.
        domain: Option<String>,
    },
    /// Makes a container with its first process, which does not run yet.
    Create(Box<ContainerPlan>),
    /// Lets the first process run.
    Start(ContainerNumber),
    /// Runs another process in a container.
    Exec(ContainerNumber, Box<ProcessPlan>),
    /// Sends a signal to a process.
    Signal(ProcessNumber, i32),
    /// Sends a signal to all processes of a container.
    SignalAll(ContainerNumber, i32),
    /// Lets no guest code of a container run, or all of it again.
    Freeze(ContainerNumber, bool),
    /// Writes a container to a file: to it, and whether it goes on at once. Where it does not, it stands still until [`Ask::Settle`].
    Checkpoint(ContainerNumber, Descriptor, bool),
    /// Whether the image of a container is kept: it ends, or goes on. One that is still being written is given up.
    Settle(ContainerNumber, bool),
    /// How far what is done with a container's image has come.
    Progress(ContainerNumber),
    /// Changes bounds of a container.
    Limit(ContainerNumber, Bounds),
    /// What a container uses.
    Usage(ContainerNumber),
    /// Its processes.
    Processes(ContainerNumber),
    /// The size of a process' terminal.
    Resize(ProcessNumber, Size),
    /// Ends what still runs of a container, and forgets it.
    Remove(ContainerNumber),
    /// Forgets a process that ended.
    Forget(ProcessNumber),
    /// Attaches an interface of the pod, whose frames are at a descriptor.
    Attach(Box<LinkConfig>, Descriptor),
    /// Gives an interface, by its name, other addresses, routes, neighbours and another MTU.
    Configure(Box<LinkConfig>),
    /// Lets an interface go.
    Detach(String),
    /// The process that a container lost was ended by the host for want of memory.
    OutOfMemory(ContainerNumber),
}

/// Rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// A container to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// What it is called from now on.
    pub number: ContainerNumber,
    /// The way to the gofer that holds its files. Its first export becomes the root.
    pub files: Descriptor,
    /// Whether the root cannot be changed.
    pub read_only: bool,
    /// Whether changes stay in memory, and most bytes of them. `None`: the host's folder itself.
    pub overlay: Option<Option<u64>>,
    /// In this order.
    pub mounts: Vec<MountPlan>,
    /// Devices besides those that each container has.
    pub devices: Vec<DevicePlan>,
    /// What nobody may look into.
    pub masked: Vec<String>,
    /// What nobody may change.
    pub read_only_paths: Vec<String>,
    /// Settings of the kernel: names with dots, and values.
    pub settings: Vec<(String, String)>,
    /// What it may have, and what it is told that it may.
    pub bounds: Bounds,
    /// Whether its processes are numbered by themselves, or with those of the sandbox.
    pub own_processes: bool,
    /// Judges calls of all its processes: classic BPF, each instruction as the eight bytes of a `struct sock_filter`.
    pub filter: Option<Vec<u64>>,
    /// The first process.
    pub process: ProcessPlan,
    /// An image that its processes are restored from; of the plan of the first one only the streams count then.
    pub image: Option<Descriptor>,
}

/// Something to be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Path in the container.
    pub at: String,
    /// What it is.
    pub kind: MountKind,
    /// As `mount` has them, as far as the sentry knows them.
    pub flags: u32,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A folder or file of the host.
    Host {
        /// Which of what the gofer exports.
        export: u32,
        /// Whether it can be changed.
        writable: bool,
    },
    /// A file system in memory.
    Memory {
        /// Most bytes.
        limit: Option<u64>,
        /// Permissions of its root.
        mode: u32,
        /// Owner of its root.
        uid: u32,
        /// Group of its root.
        gid: u32,
        /// Containers that give the same name have the same one.
        shared: Option<String>,
    },
    /// `proc`.
    Proc,
    /// `sysfs`.
    Sys,
    /// `devpts`.
    Terminals,
    /// The container's control group.
    ControlGroup,
}

/// A device file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    /// Path in the container.
    pub at: String,
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A bound, as far as it is to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Bound<T> {
    /// It stays as it is.
    #[default]
    Unsaid,
    /// There is none.
    Infinite,
    /// This much.
    To(T),
}

/// Bounds of a container. Those of memory and CPU are the host's control group's: the container is told of them, no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bounds {
    /// Most tasks.
    pub tasks: Bound<u64>,
    /// Most bytes of memory.
    pub memory: Bound<u64>,
    /// Microseconds of CPU in each period of so many.
    pub cpu: Bound<(u64, u64)>,
}

/// A process to be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// What it is called from now on.
    pub number: ProcessNumber,
    /// Program and arguments.
    pub arguments: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Working folder.
    pub folder: String,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Permissions that new files do not get.
    pub umask: u32,
    /// Sets of capabilities.
    pub capabilities: CapabilityPlan,
    /// Number, soft and hard bound.
    pub limits: Vec<(u32, u64, u64)>,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// `oom_score_adj`.
    pub oom_score: i32,
    /// Its input and output.
    pub streams: StreamPlan,
    /// Further descriptors, from 3 on, with what they are open for (`O_RDONLY` to `O_RDWR`).
    pub more: Vec<(Descriptor, u32)>,
}

/// Sets of capabilities, a bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CapabilityPlan {
    /// That can ever be had.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// That may be put in force.
    pub permitted: u64,
    /// That an `execve` may keep.
    pub inheritable: u64,
    /// That an `execve` keeps without a file's help.
    pub ambient: u64,
}

/// Input and output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamPlan {
    /// Descriptors that it has as 0, 1 and 2.
    Plain([Descriptor; 3]),
    /// A terminal of its own.
    Terminal {
        /// What is typed.
        input: Descriptor,
        /// What is shown; may be the same.
        output: Descriptor,
        /// How large it is.
        size: Option<Size>,
    },
}

/// From the sentry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// The answer to a request.
    Answer {
        /// Of the request.
        number: u64,
        /// What came of it.
        result: Result<Answer, Failure>,
    },
    /// A process that was started from outside ended.
    Ended {
        /// Which.
        process: ProcessNumber,
        /// Its status as `wait` tells it.
        status: i32,
    },
    /// A process of a container was ended from outside the sandbox, or by its own stub.
    Lost(ContainerNumber),
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// A process was made; its number as guests see it.
    Process(i32),
    /// What a container uses.
    Usage(Usage),
    /// Its processes.
    Processes(Vec<ProcessEntry>),
    /// A number that grows as long as something is done.
    Progress(u64),
}

/// What a container uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Nanoseconds in guest code.
    pub user: u64,
    /// Nanoseconds in the sentry.
    pub system: u64,
    /// Bytes of memory that its processes have in use.
    pub memory: u64,
    /// Tasks.
    pub tasks: u64,
    /// Most tasks.
    pub most_tasks: Option<u64>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// Its number.
    pub pid: i32,
    /// Of its parent.
    pub parent: i32,
    /// Its user.
    pub uid: u32,
    /// `R`, `S`, `T`, `Z`.
    pub state: char,
    /// When it began, in nanoseconds of the sandbox's clock.
    pub started: u64,
    /// CPU time, in nanoseconds.
    pub cpu: u64,
    /// What it is called.
    pub name: String,
    /// What it is called from outside, where it was started from there.
    pub process: Option<ProcessNumber>,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Who is to blame.
    pub kind: FailureKind,
    /// What failed, what was seen, what can be done.
    pub text: String,
}

/// Who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// There is no such container or process.
    Missing,
    /// What was asked for is not possible.
    Invalid,
    /// The program cannot be run.
    Program,
    /// There are as many as there may be.
    Full,
    /// The kernel, or the host.
    Failed,
}
