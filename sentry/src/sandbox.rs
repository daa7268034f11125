//! A sandbox from outside: its root, its first process, its end.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::error::Errno;
use crate::kernel::Kernel;
use crate::loader::{self, Identity, Opener, Program, Strings};
use crate::mm::{self, AddressSpace};
use crate::platform::Platform;
use crate::syscalls::run_place;
use crate::task::{self, Credentials, Limits, NewProcess, Resource, Task};
use crate::vfs::host::{HostFs, LocalTree};
use crate::vfs::host_io::HostIo;
use crate::vfs::overlay::Overlay;
use crate::vfs::proc::Proc;
use crate::vfs::sys::Sysfs;
use crate::vfs::tmpfs::Tmpfs;
use crate::vfs::tty::{DevPts, adopt};
use crate::vfs::{
    Caller, Content, Dentry, FdTable, FileSystem, Flags, FsContext, Mount, MountFlags, Place, Resolve, Tree,
    Walk, dev, names,
};

/// Why a sandbox does not start.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The folder with the root cannot be had.
    #[error("root {path}: {error}")]
    Root {
        /// The folder.
        path: PathBuf,
        /// What the host says.
        error: std::io::Error,
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

/// What a sandbox is like.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whether `/` can be changed. What changes lies in memory and is gone with the sandbox.
    pub writable: bool,
    /// Most bytes of such changes.
    pub memory: Option<u64>,
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
}

fn mount_error(what: &'static str) -> impl FnOnce(Errno) -> SandboxError {
    move |errno| SandboxError::Mount { what, errno }
}

impl Sandbox {
    /// With its mounts and without a process. `root` is the folder of the host that becomes `/` ([`open_root`]).
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub fn new(platform: Box<dyn Platform>, root: OwnedFd, config: &Config) -> Result<Self, SandboxError> {
        let kernel = Kernel::new(platform);
        task::lock(&kernel.uts).host = config.hostname.clone().into_bytes();
        let tree = Box::new(LocalTree::new(root));
        let host = HostFs::new(tree, true).map_err(mount_error("reading the root"))?;
        let root = if config.writable {
            Overlay::in_memory(vec![host.root()], config.memory).map_err(mount_error("the root's changes"))?
        } else {
            Tree::of(Box::new(host))
        };
        let root = Mount::namespace(root).root_place();
        mount_memory(&root, b"/dev", 0o755, populate_dev)?;
        mount_terminals(&root)?;
        mount_memory(&root, b"/tmp", 0o1777, |_| Ok(()))?;
        let secure = MountFlags::NO_SUID | MountFlags::NO_DEV | MountFlags::NO_EXEC;
        mount_at(&root, b"/proc", Proc::tree(&kernel), secure)?;
        mount_at(&root, b"/sys", Sysfs::tree(), secure | MountFlags::READ_ONLY)?;
        Ok(Self { kernel, root })
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

    /// Starts a process with these descriptors of the host as 0, 1 and 2.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub fn start(&self, command: &Command, streams: [OwnedFd; 3]) -> Result<Arc<Task>, SandboxError> {
        let mut credentials = Credentials::root();
        let (uid, gid) = command.user;
        (credentials.uid, credentials.euid, credentials.suid, credentials.fsuid) = (uid, uid, uid, uid);
        (credentials.gid, credentials.egid, credentials.sgid, credentials.fsgid) = (gid, gid, gid, gid);
        if uid != 0 {
            credentials.effective = task::Capabilities::default();
            credentials.permitted = task::Capabilities::default();
        }
        let caller = Caller { credentials: Arc::new(credentials.clone()), process: 1, umask: 0o022 };
        let fs = FsContext::new(self.root.clone());
        let folder = self.walk(&caller, &self.root, command.folder.as_bytes());
        fs.set_cwd(folder.map_err(mount_error("the working folder"))?);
        let files = Arc::new(FdTable::default());
        let open_files = Limits::default().of(Resource::OpenFiles).soft;
        files.set_limit(u32::try_from(open_files).unwrap_or(u32::MAX));
        let input = streams[0].try_clone().ok();
        for (number, stream) in streams.into_iter().enumerate() {
            let flags = if number == 0 { Flags::READ } else { Flags(libc::O_WRONLY.cast_unsigned()) };
            let file = HostIo::open(stream, flags).map_err(mount_error("a stream"))?;
            files.insert(file, false).map_err(mount_error("a stream"))?;
        }
        let process = self
            .load(command, &caller, &fs)
            .map_err(|(program, errno)| SandboxError::Program { program, errno })?;
        let (space, thread, name) = process;
        let limits = Limits::default();
        let new = NewProcess { credentials, limits, files, fs: Arc::new(fs), space: Arc::new(space) };
        let task = self.kernel.new_process(new).map_err(SandboxError::Process)?;
        task.set_comm(&name);
        if let Some(input) = input {
            adopt(&input, &task);
        }
        let (kernel, served) = (Arc::clone(&self.kernel), Arc::clone(&task));
        self.kernel
            .workers
            .run(Box::new(move || task::run(&kernel, &served, thread)))
            .map_err(SandboxError::Process)?;
        Ok(task)
    }

    fn walk(&self, caller: &Caller, start: &Place, path: &[u8]) -> Result<Place, Errno> {
        Walk::new(caller, &self.root, start, path, Resolve::default())?.finish(true)
    }

    /// Puts the program into an address space of its own.
    fn load(&self, command: &Command, caller: &Caller, fs: &FsContext) -> Result<Loaded, (String, Errno)> {
        let name = command.arguments.first().cloned().unwrap_or_default();
        let fail = |errno| (name.clone(), errno);
        let opener = FromOutside { sandbox: self, caller, fs };
        let (path, program) = opener.find(command, &name).map_err(fail)?;
        let bytes = |texts: &[String]| texts.iter().map(|text| text.clone().into_bytes()).collect();
        let strings =
            Strings { arguments: bytes(&command.arguments), environment: bytes(&command.environment) };
        let limits = mm::Limits::default();
        let prepared =
            loader::prepare(&opener, program, path.as_bytes(), true, strings, limits.stack).map_err(fail)?;
        let platform = &self.kernel.platform;
        let mut thread = platform.new_address_space().map_err(fail)?;
        let futexes = Arc::clone(&self.kernel.futexes);
        let space = AddressSpace::new(platform.guest_range(), limits.stack, Some(thread.remote()), futexes);
        let (uid, gid) = command.user;
        let identity = Identity { uid, euid: uid, gid, egid: gid, secure: false, vdso: platform.vdso() };
        prepared.load(&space, thread.as_mut(), &limits, &identity).map_err(fail)?;
        let base = path.rsplit('/').next().unwrap_or(&path).as_bytes().to_vec();
        Ok((space, thread, base))
    }
}

type Loaded = (AddressSpace, Box<dyn crate::platform::Thread>, Vec<u8>);

/// Opens programs for the first process.
struct FromOutside<'a> {
    sandbox: &'a Sandbox,
    caller: &'a Caller,
    fs: &'a FsContext,
}

impl Opener for FromOutside<'_> {
    fn open_program(&self, path: &[u8]) -> Result<Arc<dyn Program>, Errno> {
        run_place(self.caller, self.sandbox.walk(self.caller, &self.fs.cwd(), path)?)
    }
}

impl FromOutside<'_> {
    /// The program and its path, along `PATH` as a shell does it: what is found and may not be run counts last.
    fn find(&self, command: &Command, name: &str) -> Result<(String, Arc<dyn Program>), Errno> {
        if name.contains('/') {
            return Ok((name.to_owned(), self.open_program(name.as_bytes())?));
        }
        let path = command.environment.iter().find_map(|entry| entry.strip_prefix("PATH="));
        let mut worst = Errno::ENOENT;
        for folder in path.unwrap_or(DEFAULT_PATH).split(':') {
            let path = format!("{folder}/{name}");
            match self.open_program(path.as_bytes()) {
                Ok(program) => return Ok((path, program)),
                Err(Errno::EACCES) => worst = Errno::EACCES,
                Err(_) => {}
            }
        }
        Err(worst)
    }
}

/// Where programs are looked for when nobody says where.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Opens the folder of the host that becomes a container's root.
///
/// # Errors
/// It cannot be opened, or is none.
pub fn open_root(path: &Path) -> Result<OwnedFd, SandboxError> {
    let fail = |error| SandboxError::Root { path: path.to_owned(), error };
    let file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_dir() {
        return Err(fail(std::io::Error::from(std::io::ErrorKind::NotADirectory)));
    }
    Ok(file.into())
}

fn populate_dev(place: &Place) -> Result<(), Errno> {
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
fn mount_at(
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
