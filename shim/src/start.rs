//! The `start` action: answer the address of the pod's server, starting one when there is none.
//!
//! containerd reads stdout and stderr together and until both are closed, so the answer is all that is printed, and
//! the server is started without either.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::bootstrap::{self, Input, MAX_INPUT, Options};
use crate::flags::Flags;
use crate::grouping;
use crate::socket::{self, Claim};
use crate::sys;

/// Name of the file in the bundle that containerd up to 1.7 reads the address from after a restart.
pub const ADDRESS_FILE: &str = "address";
/// Name of the file in the bundle with the server's process id, for `delete`.
pub const PID_FILE: &str = "shim.pid";
/// Environment variable that names the node configuration.
const CONFIG: &str = "KATA_CC_CONFIG";

/// Do it; the bytes to print.
pub fn start(flags: &Flags) -> anyhow::Result<Vec<u8>> {
    let mut stdin = Vec::new();
    let limit = u64::try_from(MAX_INPUT).unwrap_or(u64::MAX) + 1;
    std::io::stdin().lock().take(limit).read_to_end(&mut stdin).context("cannot read standard input")?;
    let input = Input::parse(&stdin, &flags.id, &flags.namespace)?;
    let bundle = std::env::current_dir().context("cannot tell the bundle")?;
    let group = grouping::group(&flags.id, &annotations(&bundle)?);
    let path = match &flags.socket {
        Some(path) => path.clone(),
        None => socket::path(input.socket_dir.as_deref(), &flags.address, &flags.namespace, &group.id)?,
    };
    let address = socket::address(&path);
    if let Claim::Ours(listener) = socket::claim(&path)? {
        let started = serve(flags, &input, &group.id, &path, &bundle, listener.into());
        if let Err(error) = started {
            socket::remove(&path);
            return Err(error);
        }
    }
    write_file(&bundle.join(ADDRESS_FILE), address.as_bytes())?;
    Ok(bootstrap::answer(&address, input.modern)?)
}

/// Annotations of the bundle's specification. A bundle without one is a pod of its own.
pub(crate) fn annotations(bundle: &Path) -> anyhow::Result<HashMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: Option<HashMap<String, String>>,
    }
    let path = bundle.join("config.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let parsed: Annotated =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is malformed", path.display()))?;
    Ok(parsed.annotations.unwrap_or_default())
}

fn serve(
    flags: &Flags,
    input: &Input,
    group: &str,
    socket: &Path,
    bundle: &Path,
    listener: OwnedFd,
) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot tell the own program")?;
    let mut command = Command::new(program);
    // The class is told by the program's name, which may be a link's.
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command.args(["-namespace", &flags.namespace, "-id", group, "-address", &flags.address]);
    command.args(["-publish-binary", &flags.publish_binary]).arg("-socket").arg(socket);
    if flags.debug || input.debug {
        command.arg("-debug");
    }
    if let Some(address) = &input.ttrpc_address {
        command.env("TTRPC_ADDRESS", address);
    }
    if let Some(config) = config(&input.options, bundle)? {
        command.env(CONFIG, config);
    }
    command.stdin(Stdio::from(listener)).stdout(Stdio::null()).stderr(Stdio::null());
    command.process_group(0).current_dir(bundle);
    if std::env::var_os("SCHED_CORE").is_some() {
        sys::share_core_with_nobody().context("SCHED_CORE is set, but core scheduling failed")?;
    }
    let mut child = command.spawn().context("cannot start the server")?;
    let pid = child.id();
    let placed = place(pid, &input.options, bundle);
    if placed.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    placed
}

fn place(pid: u32, options: &Options, bundle: &Path) -> anyhow::Result<()> {
    write_file(&bundle.join(PID_FILE), pid.to_string().as_bytes())?;
    if let Some(cgroup) = &options.shim_cgroup {
        join_cgroup(pid, cgroup)?;
    }
    // One more than containerd's own: when memory runs out, the pod's server goes before the node's. Without
    // the right to do so the server is none the worse.
    let parent = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", nix::unistd::getppid()))
        .unwrap_or_default();
    let score = parent.trim().parse::<i32>().unwrap_or_default().saturating_add(1).min(1000);
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
    Ok(())
}

/// The node configuration that the runtime's options name or contain.
fn config(options: &Options, bundle: &Path) -> anyhow::Result<Option<std::path::PathBuf>> {
    if let Some(path) = &options.config_path {
        return Ok(Some(path.into()));
    }
    let Some(body) = &options.config_body else { return Ok(None) };
    let path = bundle.join("kata-cc.toml");
    write_file(&path, body)?;
    Ok(Some(path))
}

fn join_cgroup(pid: u32, cgroup: &str) -> anyhow::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let name = cgroup.trim_start_matches('/');
    let hierarchies: Vec<_> = if root.join("cgroup.controllers").exists() {
        vec![root.to_owned()]
    } else {
        let found = std::fs::read_dir(root).context("no cgroup file system")?;
        found.flatten().map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").exists()).collect()
    };
    for hierarchy in hierarchies {
        let folder = hierarchy.join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        std::fs::write(folder.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("cannot move the server to {}", folder.display()))?;
    }
    Ok(())
}

fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_without_specification_has_no_annotations_and_a_broken_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(annotations(folder.path()).unwrap().is_empty());
        std::fs::write(folder.path().join("config.json"), r#"{"annotations":{"a":"b"}}"#).unwrap();
        assert_eq!(annotations(folder.path()).unwrap()["a"], "b");
        std::fs::write(folder.path().join("config.json"), "{").unwrap();
        assert!(annotations(folder.path()).is_err());
    }

    #[test]
    fn options_name_or_contain_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let named = Options { config_path: Some("/etc/x".into()), ..Options::default() };
        assert_eq!(config(&named, folder.path()).unwrap().unwrap(), Path::new("/etc/x"));
        let body = Options { config_body: Some(b"[tee]".to_vec()), ..Options::default() };
        let path = config(&body, folder.path()).unwrap().unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"[tee]");
        assert_eq!(config(&Options::default(), folder.path()).unwrap(), None);
    }
}
