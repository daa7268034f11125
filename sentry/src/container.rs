//! Containers of a sandbox: each has namespaces of its own, a tree of mounts, a first process, and further ones that are put into it.
//!
//! ```text
//! let sandbox = Sandbox::empty(platform, "pod");
//! let container = sandbox.container(tree, &ContainerConfig::default())?;   // namespaces and a root; no process yet
//! container.mount("/proc", Source::Proc, secure)?;                         // and so on: `Source` has all kinds
//! let init = container.start(&process, streams)?;                          // the first one is number 1 of its namespace
//! let other = container.start(&another, streams)?;                         // `exec`: beside it, a child of nobody
//! container.kill_all(libc::SIGKILL);
//! let status = init.group().wait_exited(None);
//! ```

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::Errno;
use crate::kernel::Kernel;
use crate::sandbox::{SandboxError, mount_at, mount_error, populate_dev};
use crate::start::Room;
pub use crate::start::{CapabilitySets, Process};
use crate::sync::lock;
use crate::task::namespaces::Kind;
use crate::task::{Namespaces, Pid, PidNamespace, Task, ThreadGroup, UserNamespace};
use crate::vfs::mount::MountNamespace;
use crate::vfs::proc::Proc;
use crate::vfs::sys::Sysfs;
use crate::vfs::tmpfs::Tmpfs;
use crate::vfs::tty::DevPts;
use crate::vfs::{Caller, Content, Dentry, FdTable, Mount, MountFlags, Place, Resolve, Tree, Walk, names};

/// Whose namespace of a kind a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Space {
    /// One of its own.
    #[default]
    Own,
    /// That of the sandbox, which all containers with this share.
    Sandbox,
}

/// What a container is like besides its files.
#[derive(Debug, Clone, Default)]
pub struct ContainerConfig {
    /// Name of its machine, where it has names of its own; that of the sandbox unless said.
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

/// What is mounted.
#[derive(Clone)]
pub enum Source {
    /// `proc`, with the processes that the container sees.
    Proc,
    /// `sysfs`.
    Sysfs,
    /// A `tmpfs` with the usual devices.
    Devices,
    /// `devpts`.
    Terminals,
    /// Memory.
    Tmpfs {
        /// Most bytes.
        size: Option<u64>,
        /// Permissions of its top.
        mode: u32,
    },
    /// Any file system, from its top or a folder in it.
    Tree(Arc<Dentry>),
    /// What is seen at a place (a bind mount).
    Bind {
        /// Where.
        from: Place,
        /// With all that is mounted in it.
        recursive: bool,
    },
}

/// A container of a sandbox.
pub struct Container {
    number: u64,
    kernel: Arc<Kernel>,
    namespaces: Arc<Namespaces>,
    init: Mutex<Option<Arc<ThreadGroup>>>,
}

impl Container {
    pub(crate) fn new(
        kernel: &Arc<Kernel>,
        root: Arc<Dentry>,
        config: &ContainerConfig,
    ) -> Result<Arc<Self>, SandboxError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let first = kernel.tasks.first_namespaces();
        let kinds = [(config.names, Kind::Uts), (config.ipc, Kind::Ipc), (config.network, Kind::Net)];
        let own = kinds.iter().filter(|(space, _)| *space == Space::Own);
        let flags = own.fold(Kind::Cgroup.flag(), |flags, (_, kind)| flags | kind.flag());
        let users = UserNamespace::root();
        let mut namespaces = first.renewed(flags, users).map_err(SandboxError::Namespace)?;
        namespaces.mounts = MountNamespace::new(root);
        if config.processes == Space::Own {
            namespaces.pids_for_children =
                PidNamespace::below(kernel.tasks.pids(), users).map_err(SandboxError::Namespace)?;
        }
        let container = Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            kernel: Arc::clone(kernel),
            namespaces: Arc::new(namespaces),
            init: Mutex::default(),
        };
        if let (Space::Own, Some(name)) = (config.names, &config.hostname) {
            container.set_hostname(name);
        }
        Ok(Arc::new(container))
    }

    /// Its number in the sandbox: [`ThreadGroup::container`] of its processes.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its namespaces.
    #[must_use]
    pub fn namespaces(&self) -> &Arc<Namespaces> {
        &self.namespaces
    }

    /// Its `/`.
    #[must_use]
    pub fn root(&self) -> Place {
        self.namespaces.mounts.root_place().down()
    }

    /// Mounts something; the folder (or file, for one of a file) is made where it is not there and can be.
    ///
    /// # Errors
    /// [`SandboxError::Mount`]; EROFS where the folder is not there and cannot be made.
    pub fn mount(&self, path: &str, source: Source, flags: MountFlags) -> Result<Arc<Mount>, SandboxError> {
        let fail = mount_error("mounting");
        let devices = matches!(source, Source::Devices);
        let tree = match source {
            Source::Proc => Proc::of_namespace(&self.kernel, &self.namespaces.pids_for_children),
            Source::Sysfs => Sysfs::tree(),
            Source::Devices => Tree::of(Box::new(Tmpfs::with_root(None, 0o755, 0, 0))),
            Source::Terminals => DevPts::tree(),
            Source::Tmpfs { size, mode } => Tree::of(Box::new(Tmpfs::with_root(size, mode, 0, 0))),
            Source::Tree(tree) => tree,
            Source::Bind { from, recursive } => {
                return self.bind(path, &from, recursive, flags).map_err(fail);
            }
        };
        if !tree.is_folder() {
            return self
                .place_for(path, false)
                .and_then(|place| Mount::add(&place, tree, flags))
                .map_err(fail);
        }
        let mount = mount_at(&self.root(), path.as_bytes(), tree, flags)?;
        let mount = mount.ok_or(Errno::EROFS).map_err(fail)?;
        if devices {
            populate_dev(&mount.root_place()).map_err(mount_error("filling a mount"))?;
        }
        Ok(mount)
    }

    fn bind(
        &self,
        path: &str,
        from: &Place,
        recursive: bool,
        flags: MountFlags,
    ) -> Result<Arc<Mount>, Errno> {
        let place = self.place_for(path, from.dentry.is_folder())?;
        let mount = Mount::bind(&place, from, recursive)?;
        mount.set_flags(mount.flags() | flags);
        Ok(mount)
    }

    /// A folder or file to mount on.
    fn place_for(&self, path: &str, folder: bool) -> Result<Place, Errno> {
        let (caller, root) = (Caller::root(), self.root());
        let walk = || Walk::new(&caller, &root, &root, path.as_bytes(), Resolve::default());
        match walk()?.finish(true) {
            Err(Errno::ENOENT) => {}
            found => return found,
        }
        let content = || if folder { Content::Folder } else { Content::Regular };
        let mode = if folder { 0o755 } else { 0o644 };
        names::create(&caller, &mut walk()?, content(), mode)
    }

    fn room<'a>(&'a self, root: &'a Place) -> Room<'a> {
        Room {
            kernel: &self.kernel,
            root,
            namespaces: Some(Arc::clone(&self.namespaces)),
            container: self.number,
        }
    }

    fn started(&self, task: &Arc<Task>) {
        let mut init = lock(&self.init);
        if init.is_none() {
            *init = Some(Arc::clone(task.group()));
        }
    }

    /// Starts a process with these descriptors of the host as 0, 1 and 2. The first one is its init: in a namespace of its own it has number
    /// 1, and with its end all others of the namespace end.
    ///
    /// # Errors
    /// See [`SandboxError`]. ENOMEM: its init has ended.
    pub fn start(&self, process: &Process, streams: [OwnedFd; 3]) -> Result<Arc<Task>, SandboxError> {
        let task = self.room(&self.root()).start(process, streams)?;
        self.started(&task);
        Ok(task)
    }

    /// The same with open files of the sandbox.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(&self, process: &Process, files: Arc<FdTable>) -> Result<Arc<Task>, SandboxError> {
        let task = self.room(&self.root()).start_with(process, files, None)?;
        self.started(&task);
        Ok(task)
    }

    /// Its init, once there is one.
    #[must_use]
    pub fn init(&self) -> Option<Arc<ThreadGroup>> {
        lock(&self.init).clone()
    }

    /// Its living processes with their numbers as it sees them; also those that went to other namespaces, which may have none (0).
    #[must_use]
    pub fn processes(&self) -> Vec<(Pid, Arc<ThreadGroup>)> {
        let pids = &self.namespaces.pids_for_children;
        let all = self.kernel.tasks.of_container(self.number).into_iter();
        all.map(|group| (pids.shown(group.pid()), group)).collect()
    }

    /// Sends a signal to all its processes, from outside: SIGKILL reaches its init, too.
    pub fn kill_all(&self, signal: i32) {
        for (_, group) in self.processes() {
            // Who has gone meanwhile needs none.
            let _ = group.send_from_outside(signal);
        }
    }

    /// Names its machine; with the sandbox's names, that of all who share them.
    pub fn set_hostname(&self, name: &str) {
        lock(self.namespaces.names.uts()).host = name.as_bytes().iter().copied().take(64).collect();
    }
}
