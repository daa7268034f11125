//! Containers of a sandbox: each has namespaces of its own, a tree of mounts, a first process, and further ones that are put into it.
//!
//! ```text
//! let sandbox = Sandbox::empty(platform, "pod");
//! let container = sandbox.container(tree, &ContainerConfig::default())?;   // namespaces and a root; no process yet
//! container.mount(b"/proc", Source::Proc, secure)?;                        // and so on: `Source` has all kinds
//! let init = container.start(&process, streams)?;                          // the first one is number 1 of its namespace
//! let other = container.start(&another, streams)?;                         // `exec`: beside it, a child of nobody
//! container.kill_all(libc::SIGKILL);
//! let status = init.group().wait_exited(None);
//! ```

/// Whose namespace of a kind a container has.
pub enum Space {
    /// One of its own.
    Own,
    /// That of the sandbox, which all containers with this share.
    Sandbox,
}

/// What a container is like besides its files.
pub struct ContainerConfig {
    /// Name of its machine; that of the sandbox unless said.
    pub hostname: Option<String>,
    /// Processes. With [`Space::Sandbox`] the containers of a pod see each other's.
    pub processes: Space,
    /// Names of the machine.
    pub names: Space,
    /// System V IPC and POSIX message queues.
    pub ipc: Space,
    /// Network.
    pub network: Space,
}

/// A process that is to be started.
pub struct Process {
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
    pub folder: String,
    pub user: (u32, u32),
    pub groups: Vec<u32>,
    /// Capabilities; by default all for user 0 and none for others.
    pub capabilities: Option<CapabilitySets>,
    pub limits: Limits,
    pub no_new_privileges: bool,
    pub umask: u32,
    pub oom_score_adjustment: i32,
}

/// What is mounted.
pub enum Source {
    Proc,
    Sysfs,
    /// `/dev` with the usual devices, in memory.
    Devices,
    Terminals,
    Tmpfs { size: Option<u64>, mode: u32 },
    /// Any file system.
    Tree(Arc<Dentry>),
    /// What is seen at a place (a bind mount), with all that is mounted in it if `recursive`.
    Bind { from: Place, recursive: bool },
}

impl Sandbox {
    /// Without a root of its own: its processes are those of its containers.
    pub fn empty(platform: Box<dyn Platform>, hostname: &str) -> Self;
    /// A container whose `/` is this tree of files.
    pub fn container(&self, root: Arc<Dentry>, config: &ContainerConfig) -> Result<Arc<Container>, SandboxError>;
}

impl Container {
    /// Its `/`.
    pub fn root(&self) -> Place;
    /// Mounts something; the folder (or file, for a bind of one) is made where it is not there.
    pub fn mount(&self, path: &[u8], source: Source, flags: MountFlags) -> Result<Arc<Mount>, SandboxError>;
    /// Starts a process with these descriptors of the host as 0, 1 and 2. The first one is its init: it has number 1, and with its end all others of its
    /// namespace end.
    pub fn start(&self, process: &Process, streams: [OwnedFd; 3]) -> Result<Arc<Task>, SandboxError>;
    /// The same with open files of the sandbox.
    pub fn start_with(&self, process: &Process, files: Arc<FdTable>) -> Result<Arc<Task>, SandboxError>;
    /// Its init, once there is one.
    pub fn init(&self) -> Option<Arc<ThreadGroup>>;
    /// Its living processes: their numbers as it sees them, and they themselves; also those that left its namespace by making others in it.
    pub fn processes(&self) -> Vec<(Pid, Arc<ThreadGroup>)>;
    /// Sends a signal to all its processes, from outside: SIGKILL reaches its init, too.
    pub fn kill_all(&self, signal: i32);
    /// Names its machine (its own name, or the sandbox's where it shares that).
    pub fn set_hostname(&self, name: &str);
}
