//! Starting a sandbox: `kata-cc-sentry serve`, in the control groups and the network namespace that its container names.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::agent::{AGENT_SOCKET, STREAMS_SOCKET};
use crate::arguments::Mode;
use crate::cgroup::Groups;
use crate::error::{OciError, io, sys};
use crate::spawn::{Entry, Network};
use crate::wire::list;

/// What the sentry says goes here, in its sandbox' folder.
pub const SENTRY_LOG: &str = "sentry.log";
/// How much of that is told when it does not start.
const TOLD: u64 = 4096;

/// A sandbox to start.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Folder of its sockets and log.
    pub folder: &'a Path,
    /// The container that it ends with.
    pub container: &'a str,
    /// Its specification.
    pub spec: &'a Value,
    /// Its control groups.
    pub groups: Option<&'a Groups>,
    /// What it has of its network namespace.
    pub mode: Mode,
    /// Whether the sentry may go on where the host refuses a part of its defence.
    pub weak: bool,
}

impl Plan<'_> {
    /// The network namespace, and whether its interfaces are the sandbox'. The machine's own are never taken.
    fn network(&self) -> Result<(Network, bool), OciError> {
        let network = network(self.spec)?;
        let pods = match &network {
            Network::Inherited => false,
            Network::New => true,
            Network::Of(file) => !is_of_machine(file),
        };
        Ok((network, pods && self.mode == Mode::Sandbox && nix::unistd::geteuid().is_root()))
    }

    /// Why the container has loopback alone though its bundle wants more.
    #[must_use]
    pub fn lacks_network(&self) -> Option<&'static str> {
        let (network, taken) = self.network().ok()?;
        let wanted = self.mode == Mode::Sandbox && !taken && nix::unistd::geteuid().is_root();
        match network {
            Network::New => None,
            _ if !wanted => None,
            _ => Some(
                "the container's network is the machine's own, which a sentry cannot pass on: the container has loopback alone",
            ),
        }
    }
}

/// Whether a network namespace is the machine's own, that of process 1. Where that cannot be told, it is: nothing of it is taken then.
fn is_of_machine(namespace: &File) -> bool {
    let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
    match (namespace.metadata(), std::fs::metadata("/proc/1/ns/net")) {
        (Ok(own), Ok(first)) => identity(own) == identity(first),
        // Process 1 may not be looked at.
        _ => looks_like_first(namespace).unwrap_or(true),
    }
}

/// Whether a network namespace has a setting that the first one alone has (`net_core_table` in `net/core/sysctl_net_core.c`). A thread goes there
/// to look, and ends.
fn looks_like_first(namespace: &File) -> Option<bool> {
    let namespace = namespace.try_clone().ok()?;
    let look = move || {
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
        let has = |setting: &str| Path::new("/proc/sys/net/core").join(setting).exists();
        // The second one all have: else the settings are not shown here.
        has("somaxconn").then(|| has("netdev_budget"))
    };
    std::thread::spawn(look).join().ok().flatten()
}

/// One of our programs: beside the running one, else found in `PATH`. `KATA_CC_SENTRY` names another sentry.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("KATA_CC_SENTRY").filter(|name| !name.is_empty()) {
        return named.into();
    }
    let own = std::env::current_exe().and_then(|own| own.canonicalize()).ok();
    let beside = own.as_deref().and_then(Path::parent).map(|dir| dir.join("kata-cc-sentry"));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| "kata-cc-sentry".into())
}

/// The network namespace that a specification names. It is where the pod's network comes from: hooks and engines find it by the process'
/// number, and the sentry takes its interfaces from it.
fn network(spec: &Value) -> Result<Network, OciError> {
    let namespaces = list(&spec["linux"], "namespaces");
    let Some(network) = namespaces.iter().find(|one| one["type"] == "network") else {
        return Ok(Network::Inherited);
    };
    match network["path"].as_str().filter(|path| !path.is_empty()) {
        Some(path) => {
            let file = File::open(path).map_err(io(format!("cannot open network namespace {path}")))?;
            Ok(Network::Of(file))
        }
        // A user other than root may not make one by itself; the sentry's own is empty anyway.
        None if !nix::unistd::geteuid().is_root() => Ok(Network::Inherited),
        None => Ok(Network::New),
    }
}

/// Starts it and waits until it listens.
///
/// # Errors
/// It does not, and what it said.
pub fn start(plan: &Plan<'_>) -> Result<Child, OciError> {
    let program = program();
    let log = plan.folder.join(SENTRY_LOG);
    let errors = File::options().create(true).append(true).open(&log);
    let errors = errors.map_err(io(format!("cannot make {}", log.display())))?;
    let (ready, keep) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(sys("cannot make a pipe"))?;
    let doors = plan.groups.map(Groups::doors).transpose()?.unwrap_or_default();
    let (network, taken) = plan.network()?;
    let entry = Entry { doors, network, keep };
    let mut command = Command::new(&program);
    command.args(["serve", "--agent-socket", AGENT_SOCKET, "--streams-socket", STREAMS_SOCKET]);
    command.args(["--id", plan.container, "--until", plan.container]);
    // Engines look at the process itself. What a terminal's program said last is still on its way.
    let terminal = plan.spec["process"]["terminal"] == true;
    command.args(["--linger", if terminal { "100" } else { "0" }]);
    command.arg("--ready-fd").arg(entry.kept().to_string());
    command.args(["--network", if taken { "sandbox" } else { "none" }]);
    if plan.weak {
        command.arg("--allow-weak");
    }
    // Sockets are named from the folder on: its path may be too long for them.
    command.current_dir(plan.folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    entry.add_to(&mut command);
    let failed = |reason: String| OciError::Sentry { program: program.clone(), reason };
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    // The command holds our end of the pipe.
    drop(command);
    if let Err(reason) = await_ready(ready) {
        let _ = child.kill();
        let status = child.wait().map(|status| status.to_string()).unwrap_or_default();
        let said = last_words(&log);
        return Err(failed(if said.is_empty() { format!("{reason} ({status})") } else { said }));
    }
    Ok(child)
}

fn await_ready(ready: OwnedFd) -> Result<(), String> {
    let mut byte = [0];
    match File::from(ready).read(&mut byte) {
        Ok(1) => Ok(()),
        Ok(_) => Err("it ended before it listened".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The end of what the sentry said.
#[must_use]
pub fn last_words(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        use std::io::{Seek, SeekFrom};
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TOLD)))?;
        let mut bytes = Vec::new();
        file.take(TOLD).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    text.trim().lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_network_is_that_of_the_specification() {
        let of = |namespaces: Value| network(&json!({"linux": {"namespaces": namespaces}}));
        assert!(matches!(of(json!([{"type": "pid"}])).unwrap(), Network::Inherited));
        assert!(matches!(
            of(json!([{"type": "network", "path": "/proc/self/ns/net"}])).unwrap(),
            Network::Of(_)
        ));
        let new = of(json!([{"type": "network"}])).unwrap();
        assert!(matches!(new, Network::New) == nix::unistd::geteuid().is_root());
        let error = of(json!([{"type": "network", "path": "/nowhere"}])).unwrap_err().to_string();
        assert!(error.contains("network namespace /nowhere"), "{error}");
    }

    #[test]
    fn the_machines_own_network_is_not_taken() {
        let spec = |path: &str| json!({"linux": {"namespaces": [{"type": "network", "path": path}]}});
        let of = |spec: &Value, mode| {
            let folder = Path::new("/");
            let plan = Plan { folder, container: "c", spec, groups: None, mode, weak: false };
            (plan.network().unwrap().1, plan.lacks_network().is_some())
        };
        let root = nix::unistd::geteuid().is_root();
        // The tests run in the machine's network, or in one that cannot be told from it.
        assert_eq!(of(&spec("/proc/self/ns/net"), Mode::Sandbox), (false, root));
        assert_eq!(of(&spec("/proc/self/ns/net"), Mode::None), (false, false));
        assert_eq!(of(&json!({}), Mode::Sandbox), (false, root));
        let new = json!({"linux": {"namespaces": [{"type": "network"}]}});
        assert_eq!(of(&new, Mode::Sandbox), (root, false));
        assert_eq!(of(&new, Mode::None), (false, false));
    }

    #[test]
    fn the_end_of_a_log_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(last_words(&log), "");
        let text: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&log, text).unwrap();
        assert_eq!(last_words(&log), "line 995; line 996; line 997; line 998; line 999");
    }
}
