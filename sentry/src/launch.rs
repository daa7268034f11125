//! A program from outside, put into an address space of its own before there is a process for it.

use std::sync::Arc;

use crate::error::Errno;
use crate::kernel::Kernel;
use crate::loader::{self, Identity, Opener, Program, Strings};
use crate::mm::{self, AddressSpace};
use crate::platform::Thread;
use crate::syscalls::run_place;
use crate::task::{self, Credentials, Limits, Resource, Task};
use crate::vfs::{Caller, FsContext, Resolve, Walk};

/// Where programs are looked for when nobody says where.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who runs a program, and where it is looked for.
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'a Arc<Kernel>,
    pub(crate) credentials: &'a Credentials,
    pub(crate) fs: &'a FsContext,
    pub(crate) limits: &'a Limits,
}

/// A program that is ready to run.
pub(crate) struct Loaded {
    pub(crate) space: AddressSpace,
    pub(crate) thread: Box<dyn Thread>,
    /// Who it runs as.
    pub(crate) credentials: Credentials,
    /// What its process is called.
    pub(crate) name: Vec<u8>,
}

impl Launch<'_> {
    /// Finds the program of these arguments and loads it.
    pub(crate) fn load(&self, arguments: &[String], environment: &[String]) -> Result<Loaded, Errno> {
        let name = arguments.first().map_or("", String::as_str);
        let caller =
            Caller { credentials: Arc::new(self.credentials.clone()), process: 1, umask: self.fs.umask() };
        let opener = FromOutside { fs: self.fs, caller: &caller };
        let (path, program) = opener.find(environment, name)?;
        let bytes = |texts: &[String]| texts.iter().map(|text| text.clone().into_bytes()).collect();
        let strings = Strings { arguments: bytes(arguments), environment: bytes(environment) };
        let limits = mm::Limits { stack: self.limits.of(Resource::Stack).soft, ..mm::Limits::default() };
        let prepared = loader::prepare(&opener, program, path.as_bytes(), true, strings, limits.stack)?;
        let (set_uid, set_gid) = prepared.program().set_ids();
        let credentials = self.credentials.after_exec(set_uid, set_gid);
        let platform = &self.kernel.platform;
        let mut thread = platform.new_address_space()?;
        let futexes = Arc::clone(&self.kernel.futexes);
        let space = AddressSpace::new(platform.guest_range(), limits.stack, Some(thread.remote()), futexes);
        let identity = Identity {
            uid: credentials.uid,
            euid: credentials.euid,
            gid: credentials.gid,
            egid: credentials.egid,
            secure: credentials.uid != credentials.euid || credentials.gid != credentials.egid,
            vdso: self.kernel.vdso(),
        };
        prepared.load(&space, thread.as_mut(), &limits, &identity)?;
        thread.release();
        let name = path.rsplit('/').next().unwrap_or(&path).as_bytes().to_vec();
        Ok(Loaded { space, thread, credentials, name })
    }
}

/// Lets a task's guest code run.
pub(crate) fn run(kernel: &Arc<Kernel>, task: &Arc<Task>, thread: Box<dyn Thread>) -> Result<(), Errno> {
    let (served, of) = (Arc::clone(task), Arc::clone(kernel));
    kernel.workers.run(Box::new(move || task::run(&of, &served, thread)))
}

/// Opens programs for a first process.
struct FromOutside<'a> {
    fs: &'a FsContext,
    caller: &'a Caller,
}

impl Opener for FromOutside<'_> {
    fn open_program(&self, path: &[u8]) -> Result<Arc<dyn Program>, Errno> {
        let mut walk = Walk::new(self.caller, &self.fs.root(), &self.fs.cwd(), path, Resolve::default())?;
        run_place(self.caller, walk.finish(true)?)
    }
}

impl FromOutside<'_> {
    /// The program and its path, along `PATH` as a shell does it: what is found and may not be run counts last.
    fn find(&self, environment: &[String], name: &str) -> Result<(String, Arc<dyn Program>), Errno> {
        if name.contains('/') {
            return Ok((name.to_owned(), self.open_program(name.as_bytes())?));
        }
        let path = environment.iter().find_map(|entry| entry.strip_prefix("PATH="));
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
