//! A sandbox from outside: its root, its first process, its end.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use thiserror::Error;

use crate::container::{Container, ContainerConfig};
use crate::error::Errno;
use crate::kernel::Kernel;
pub use crate::launch::DEFAULT_PATH;
use crate::platform::Platform;
use crate::start::{self, Process};
use crate::task::Task;
use crate::vfs::mount::MountNamespace;
use crate::vfs::overlay::Overlay;
use crate::vfs::proc::Proc;
use crate::vfs::sys::Sysfs;
use crate::vfs::tmpfs::Tmpfs;
use crate::vfs::tty::DevPts;
use crate::vfs::{
    Caller, Content, Dentry, FileKind, FileSystem, Mount, MountFlags, Place, Resolve, Tree, Walk, dev, names,
};

/// Why a sandbox does not start.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A place of the sandbox cannot be had.
    #[error("{}: {errno}", path.escape_ascii())]
    Place {
        /// Where it is to be.
        path: Vec<u8>,
        /// Why it cannot be.
        errno: Errno,
    },
    /// Something of the root's tree of mounts.
    #[error("{what}: {errno}")]
    Mount {
        /// What was to be done.
        what: &'static str,
        /// Why it cannot be.
        errno: Errno,
    },
    /// The program cannot be run.
    #[error("cannot run {program}: {errno}")]
    Program {
        /// Its path in the sandbox.
        program: String,
        /// Why.
        errno: Errno,
    },
    /// A container's namespaces cannot be made.
    #[error("namespaces of a container: {0}")]
    Namespace(Errno),
    /// The platform gives no address space, or the host no thread.
    #[error("cannot start a process: {0}")]
    Process(Errno),
}

impl SandboxError {
    /// The exit code that shells give for it: 127 not found, 126 not to be run, 125 anything else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Program { errno: Errno::ENOENT, .. } => 127,
            Self::Program { .. } => 126,
            _ => 125,
        }
    }
}

/// What becomes of changes to a sandbox's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// They lie in memory, of at most so many bytes, and are gone with the sandbox.
    InMemory(Option<u64>),
    /// The root's own file system has them, where it allows any.
    Direct,
}

/// What a sandbox is like.
#[derive(Debug, Clone)]
pub struct Config {
    /// What becomes of changes to `/`.
    pub changes: Changes,
    /// Name of the machine.
    pub hostname: String,
}

/// What is run.
#[derive(Debug, Clone)]
pub struct Command {
    /// Program and arguments; the program is looked for along `PATH` where it has no slash.
    pub arguments: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Working folder.
    pub folder: String,
    /// User and group.
    pub user: (u32, u32),
}

/// A running sandbox.
pub struct Sandbox {
    kernel: Arc<Kernel>,
    root: Place,
    /// Held, as mounts of a namespace are taken apart with it.
    _mounts: Arc<MountNamespace>,
}

pub(crate) fn mount_error(what: &'static str) -> impl FnOnce(Errno) -> SandboxError {
    move |errno| SandboxError::Mount { what, errno }
}

impl Sandbox {
    /// With its mounts and without a process. `root` becomes `/`.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub fn new(
        platform: Box<dyn Platform>,
        root: Box<dyn FileSystem>,
        config: &Config,
    ) -> Result<Self, SandboxError> {
        let kernel = Kernel::new(platform);
        kernel.set_host_name(config.hostname.as_bytes());
        let root = match config.changes {
            Changes::InMemory(limit) => {
                Overlay::in_memory(vec![root.root()], limit).map_err(mount_error("the root's changes"))?
            }
            Changes::Direct => Tree::of(root),
        };
        let mounts = MountNamespace::new(root);
        let root = mounts.root_place();
        mount_memory(&root, b"/dev", 0o755, populate_dev)?;
        mount_terminals(&root)?;
        mount_memory(&root, b"/tmp", 0o1777, |_| Ok(()))?;
        let secure = MountFlags::NO_SUID | MountFlags::NO_DEV | MountFlags::NO_EXEC;
        mount_at(&root, b"/proc", Proc::tree(&kernel), secure)?;
        mount_at(&root, b"/sys", Sysfs::tree(), secure | MountFlags::READ_ONLY)?;
        Ok(Self { kernel, root, _mounts: mounts })
    }

    /// Without a root of its own: its processes are those of its [containers](Container).
    #[must_use]
    pub fn empty(platform: Box<dyn Platform>, hostname: &str) -> Self {
        let kernel = Kernel::new(platform);
        kernel.set_host_name(hostname.as_bytes());
        let mounts = Arc::clone(&kernel.tasks.first_namespaces().mounts);
        Self { root: mounts.root_place(), kernel, _mounts: mounts }
    }

    /// A container whose `/` is this tree of files.
    ///
    /// # Errors
    /// [`SandboxError::Namespace`]: there are too many.
    pub fn container(
        &self,
        root: Arc<Dentry>,
        config: &ContainerConfig,
    ) -> Result<Arc<Container>, SandboxError> {
        Container::new(&self.kernel, root, config)
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// Its `/`.
    #[must_use]
    pub fn root(&self) -> &Place {
        &self.root
    }

    /// Mounts a file system at a path, which is made where it is not there.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub fn mount(&self, path: &[u8], tree: Arc<Dentry>, flags: MountFlags) -> Result<(), SandboxError> {
        let fail = |errno| SandboxError::Place { path: path.to_vec(), errno };
        let caller = Caller::root();
        let folder = tree.is_folder();
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.skip(1).chain([path.len()]) {
            let part = path.get(..end).unwrap_or(path);
            let content = if folder || end < path.len() { Content::Folder } else { Content::Regular };
            let mode = if content.kind() == FileKind::Folder { 0o755 } else { 0o644 };
            let mut walk =
                Walk::new(&caller, &self.root, &self.root, part, Resolve::default()).map_err(fail)?;
            match names::create(&caller, &mut walk, content, mode) {
                Ok(_) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(fail(errno)),
            }
        }
        let walk = Walk::new(&caller, &self.root, &self.root, path, Resolve::default());
        let place = walk.and_then(|mut walk| walk.finish(true)).map_err(fail)?;
        Mount::add(&place, tree, flags).map(drop).map_err(fail)
    }

    /// Starts a process with these descriptors of the host as 0, 1 and 2.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub fn start(&self, command: &Command, streams: [OwnedFd; 3]) -> Result<Arc<Task>, SandboxError> {
        let place = start::Room { kernel: &self.kernel, root: &self.root, namespaces: None, container: 0 };
        place.start(&Process::from(command), streams)
    }
}

pub(crate) fn populate_dev(place: &Place) -> Result<(), Errno> {
    dev::populate(&place.dentry)
}

/// Mounts `devpts` where `/dev` has a folder for it.
fn mount_terminals(root: &Place) -> Result<(), SandboxError> {
    let caller = Caller::root();
    let walk = Walk::new(&caller, root, root, b"/dev/pts", Resolve::default());
    match walk.and_then(|mut walk| walk.finish(true)) {
        Ok(place) => {
            let mounted = Mount::add(&place, DevPts::tree(), MountFlags::default());
            mounted.map(drop).map_err(mount_error("mounting devpts"))
        }
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
        Err(errno) => Err(mount_error("mounting devpts")(errno)),
    }
}

/// Mounts a `tmpfs` and fills it.
fn mount_memory(
    root: &Place,
    path: &[u8],
    mode: u32,
    fill: impl FnOnce(&Place) -> Result<(), Errno>,
) -> Result<(), SandboxError> {
    let memory = Tree::of(Box::new(Tmpfs::with_root(None, mode, 0, 0)));
    match mount_at(root, path, memory, MountFlags::default())? {
        Some(mount) => fill(&mount.root_place()).map_err(mount_error("filling a mount")),
        None => Ok(()),
    }
}

/// Mounts a file system at a folder that is made where it is not there and can be.
pub(crate) fn mount_at(
    root: &Place,
    path: &[u8],
    tree: Arc<Dentry>,
    flags: MountFlags,
) -> Result<Option<Arc<Mount>>, SandboxError> {
    let caller = Caller::root();
    let walk = || Walk::new(&caller, root, root, path, Resolve::default());
    let fail = mount_error("mounting");
    let made = walk().and_then(|mut walk| names::create(&caller, &mut walk, Content::Folder, 0o755));
    let place = match made {
        Ok(place) => Ok(place),
        Err(Errno::EEXIST) => walk().and_then(|mut walk| walk.finish(true)),
        // A root that cannot be changed and has no such folder goes without.
        Err(Errno::EROFS) => return Ok(None),
        Err(errno) => Err(errno),
    };
    place.and_then(|place| Mount::add(&place, tree, flags)).map(Some).map_err(fail)
}
