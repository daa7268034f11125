//! A process of the host that stands for one of a sandbox: `exec --detach` and further containers of a pod have a number to tell by it. It lives
//! as long, ends with the same code, and hands signals on.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::agent::Agent;
use crate::arguments::Keep;
use crate::cgroup::Groups;
use crate::error::{OciError, io, sys};
use crate::signals;
use crate::spawn::{self, Entry, Network};

/// What is told when the sandbox is gone: as for a process that was killed.
const KILLED: u8 = 137;

/// A keeper that waits for its process to be made.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// It.
    pub(crate) child: Child,
    go: OwnedFd,
}

/// Starts one, in control groups of the process that it stands for.
pub(crate) fn start(
    folder: &Path,
    container: &str,
    exec: &str,
    groups: Option<&Groups>,
) -> Result<Keeper, OciError> {
    let own = std::env::current_exe().map_err(io("cannot find this program"))?;
    let (keep, go) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(sys("cannot make a pipe"))?;
    let doors = groups.map(Groups::doors).transpose()?.unwrap_or_default();
    let entry = Entry { doors, network: Network::Inherited, keep };
    let mut command = Command::new(own);
    // However it was called: the first word says what it is.
    std::os::unix::process::CommandExt::arg0(&mut command, "kata-cc-runc");
    command.arg("keep").arg("--folder").arg(folder);
    command.args(["--container", container, "--exec", exec]);
    command.arg("--go").arg(entry.kept().as_raw_fd().to_string());
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    entry.add_to(&mut command);
    let child = command.spawn().map_err(io("cannot start the process that stands for one of the sandbox"))?;
    Ok(Keeper { child, go })
}

impl Keeper {
    /// The process is there.
    pub(crate) fn go(self) -> Child {
        self.leave();
        self.child
    }

    /// The process is there, and its keeper outlives this program: whoever reaps that waits for it. The host's number of the keeper.
    pub(crate) fn leave(&self) -> u32 {
        let _ = nix::unistd::write(&self.go, b"\n");
        self.child.id()
    }

    /// It will not be.
    pub(crate) fn call_off(mut self) {
        drop(self.go);
        let _ = self.child.wait();
    }
}

/// What the keeper does.
pub(crate) fn keep(arguments: &Keep) -> Result<u8, OciError> {
    let mut byte = [0];
    let go = spawn::inherited(arguments.go).and_then(|mut go| go.read(&mut byte));
    if go.map_err(io("cannot wait for the process"))? == 0 {
        return Ok(KILLED);
    }
    signals::hand_on(&arguments.folder, &arguments.container, &arguments.exec, false)?;
    // A sandbox that is gone took all its processes along.
    let ended = Agent::connect(&arguments.folder)
        .and_then(|mut agent| agent.wait(&arguments.container, &arguments.exec));
    Ok(ended.unwrap_or(KILLED))
}
