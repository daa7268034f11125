//! Processes that are put into a sandbox from outside: the first one of a container, and those that are run beside it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::Errno;
use crate::kernel::Kernel;
use crate::launch::{self, Launch, Loaded};
use crate::sandbox::{Command, SandboxError, mount_error};
use crate::task::{Capabilities, Credentials, Limits, Namespaces, NewProcess, Resource, Task};
use crate::vfs::host_io::HostIo;
use crate::vfs::tty::adopt;
use crate::vfs::{Caller, FdTable, Flags, FsContext, Place, Resolve, Walk};

/// Capabilities of a process that is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapabilitySets {
    /// That can ever be had.
    pub bounding: Capabilities,
    /// In force.
    pub effective: Capabilities,
    /// That may be put in force.
    pub permitted: Capabilities,
    /// That an execve may keep.
    pub inheritable: Capabilities,
    /// That an execve keeps.
    pub ambient: Capabilities,
}

/// A process that is to be started.
#[derive(Debug, Clone)]
pub struct Process {
    /// Program and arguments; the program is looked for along `PATH` where it has no slash.
    pub arguments: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Working folder.
    pub folder: String,
    /// User and group.
    pub user: (u32, u32),
    /// Further groups.
    pub groups: Vec<u32>,
    /// Capabilities; unless said, all for user 0 and none in force for others.
    pub capabilities: Option<CapabilitySets>,
    /// Limits.
    pub limits: Limits,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// Permissions that new files do not get.
    pub umask: u32,
    /// `/proc/…/oom_score_adj`.
    pub oom_score_adjustment: i32,
}

impl From<&Command> for Process {
    fn from(command: &Command) -> Self {
        Self {
            arguments: command.arguments.clone(),
            environment: command.environment.clone(),
            folder: command.folder.clone(),
            user: command.user,
            groups: Vec::new(),
            capabilities: None,
            limits: Limits::default(),
            no_new_privileges: false,
            umask: 0o022,
            oom_score_adjustment: 0,
        }
    }
}

impl Process {
    fn credentials(&self) -> Credentials {
        let (uid, gid) = self.user;
        let user = Credentials::of_user(uid, gid, self.groups.clone());
        let mut who = Credentials { no_new_privileges: self.no_new_privileges, ..user };
        if uid != 0 {
            who.effective = Capabilities::default();
            who.permitted = Capabilities::default();
        }
        if let Some(sets) = self.capabilities {
            who.bounding = sets.bounding;
            who.effective = sets.effective;
            who.permitted = sets.permitted;
            who.inheritable = sets.inheritable;
            who.ambient = sets.ambient;
        }
        who
    }
}

/// Where a process is started.
pub(crate) struct Room<'a> {
    pub(crate) kernel: &'a Arc<Kernel>,
    pub(crate) root: &'a Place,
    /// `None`: those that the sandbox began with.
    pub(crate) namespaces: Option<Arc<Namespaces>>,
    pub(crate) container: u64,
}

impl Room<'_> {
    /// Starts a process with these descriptors of the host as 0, 1 and 2; the first is its controlling terminal, if it is one.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub(crate) fn start(&self, process: &Process, streams: [OwnedFd; 3]) -> Result<Arc<Task>, SandboxError> {
        let files = Arc::new(FdTable::default());
        let input = streams[0].try_clone().ok();
        for (number, stream) in streams.into_iter().enumerate() {
            let flags = if number == 0 { Flags::READ } else { Flags(libc::O_WRONLY.cast_unsigned()) };
            let file = HostIo::open(stream, flags).map_err(mount_error("a stream"))?;
            files.insert(file, false).map_err(mount_error("a stream"))?;
        }
        self.start_with(process, files, input.as_ref())
    }

    /// The same with open files of the sandbox.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub(crate) fn start_with(
        &self,
        process: &Process,
        files: Arc<FdTable>,
        terminal: Option<&OwnedFd>,
    ) -> Result<Arc<Task>, SandboxError> {
        let credentials = process.credentials();
        let caller = Caller { credentials: Arc::new(credentials.clone()), process: 1, umask: process.umask };
        let fs = FsContext::new(self.root.clone().down());
        fs.set_umask(process.umask);
        let folder = self.walk(&caller, self.root, process.folder.as_bytes());
        fs.set_cwd(folder.map_err(mount_error("the working folder"))?);
        let limits = process.limits;
        files.set_limit(u32::try_from(limits.of(Resource::OpenFiles).soft).unwrap_or(u32::MAX));
        let launch = Launch { kernel: self.kernel, credentials: &credentials, fs: &fs, limits: &limits };
        let loaded = launch.load(&process.arguments, &process.environment).map_err(|errno| {
            let program = process.arguments.first().cloned().unwrap_or_default();
            SandboxError::Program { program, errno }
        })?;
        let Loaded { space, thread, credentials, name } = loaded;
        let new = NewProcess {
            credentials,
            limits,
            files,
            fs: Arc::new(fs),
            space: Arc::new(space),
            namespaces: self.namespaces.clone(),
            container: self.container,
        };
        let task = self.kernel.new_process(new).map_err(SandboxError::Process)?;
        task.set_comm(&name);
        task.group().set_oom_score_adjustment(process.oom_score_adjustment);
        if let Some(terminal) = terminal {
            adopt(terminal, &task);
        }
        launch::run(self.kernel, &task, thread).map_err(SandboxError::Process)?;
        Ok(task)
    }

    fn walk(&self, caller: &Caller, start: &Place, path: &[u8]) -> Result<Place, Errno> {
        Walk::new(caller, self.root, start, path, Resolve::default())?.finish(true)
    }
}
