//! A world of its own for each test: a process with its own folders, a fake monitor and a fake agent.
//!
//! A test runs its body in a child process, because the folders are named by environment variables and because "no
//! process is left" can then be asked of everything that carries the child's environment. The fake monitor is this very
//! test program again, started by a script as `NodeConfig::vmm`: a real process to be killed, with a control socket
//! and a vsock socket that carries port 1024 to the fake agent.

pub(crate) mod agent;
mod monitor;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kata_cc_sandbox::{Class, ContainerSpec, NodeConfig, Rootfs, SandboxSpec, paths, record};

pub(crate) use monitor::monitor;

/// The folder of a test's world; set in the child, and in all that it starts.
const WORLD: &str = "KATA_CC_TEST_WORLD";
/// The id of its sandbox.
const ID: &str = "KATA_CC_TEST_ID";

/// Run `body` in a child process of its own, and see that nothing is left of it.
pub(crate) fn alone(test: &str, body: impl AsyncFnOnce(World)) {
    if let Some(dir) = std::env::var_os(WORLD) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(body(World { dir: dir.into() }));
        return;
    }
    for needed in ["/dev/kvm", "/dev/net/tun"] {
        if !nix::unistd::geteuid().is_root() || !Path::new(needed).exists() {
            eprintln!("skipped: root and {needed} are needed");
            return;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("vmm");
    let own = std::env::current_exe().unwrap();
    let text = format!("#!/bin/sh\nKATA_CC_TEST_VMM=\"$2\" exec {own:?} the_monitor --exact --nocapture\n");
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    // Namespaces are named after ids for the whole machine.
    let id = dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_lowercase();
    let status = Command::new(own)
        .args([test, "--exact", "--nocapture"])
        .env(WORLD, dir.path())
        .env(ID, &id)
        .env("KATA_CC_RUN_DIR", dir.path().join("run"))
        .env("KATA_CC_STATE_DIR", dir.path().join("state"))
        .status()
        .unwrap();
    let left = World { dir: dir.path().to_owned() }.processes();
    if !status.success() {
        let (_, netns) = kata_cc_sandbox::network::Network::place(None, &id);
        let _ = Command::new("ip").args(["netns", "delete", &netns.unwrap()]).output();
    }
    assert!(status.success(), "the test's own process says why");
    assert!(left.is_empty(), "processes are left: {left:?}");
}

/// Wait until something is so.
pub(crate) async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Run a command that must succeed; its output.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// One test's world.
#[derive(Debug)]
pub(crate) struct World {
    dir: PathBuf,
}

impl World {
    /// Socket of the fake agent.
    pub(crate) fn agent() -> PathBuf {
        PathBuf::from(std::env::var_os(WORLD).unwrap()).join("agent.sock")
    }

    /// Id of its sandbox.
    pub(crate) fn id() -> String {
        std::env::var(ID).unwrap()
    }

    /// Folder of its sandbox' record.
    pub(crate) fn records() -> PathBuf {
        paths::records().join(Self::id())
    }

    /// A node whose monitor is the fake one.
    pub(crate) fn config(&self) -> NodeConfig {
        let initramfs = Some(self.dir.join("no root image is needed"));
        NodeConfig { vmm: Some(self.dir.join("vmm")), initramfs, scratch_mib: 1, ..NodeConfig::default() }
    }

    /// A plain sandbox.
    pub(crate) fn spec(&self) -> SandboxSpec {
        SandboxSpec {
            id: Self::id(),
            class: Class::KataCcVm,
            netns: None,
            annotations: HashMap::new(),
            limits: kata_cc_sandbox::sizing::Limits::default(),
            hostname: "h".into(),
            dns: Vec::new(),
            image: None,
            demand: kata_cc_sandbox::tier::Demand::default(),
            shared_pids: false,
            cgroup: None,
        }
    }

    /// A container that brings nothing of the host.
    pub(crate) fn container(&self, id: &str) -> ContainerSpec {
        let spec = serde_json::json!({"process": {"args": ["true"]}});
        ContainerSpec { id: id.into(), spec, rootfs: Rootfs::GuestPull("image".into()) }
    }

    /// The record's stages.
    pub(crate) fn stages(&self) -> Vec<record::Stage> {
        record::read(&Self::records()).unwrap_or_default()
    }

    /// Lines of the log, `source level msg`.
    pub(crate) fn log(&self) -> Vec<String> {
        let lines = kata_cc_sandbox::log::read(&Self::records()).unwrap();
        lines.map(|line| format!("{:?} {} {}", line.source, line.level, line.msg)).collect()
    }

    /// Process id of a sandbox' monitor, from its record.
    pub(crate) fn monitor() -> Option<i32> {
        let stages = record::read(&Self::records()).ok()?;
        let started = stages.iter().find(|stage| stage.stage == "vmm-started")?;
        i32::try_from(started.detail["pid"].as_i64()?).ok()
    }

    /// Kill a sandbox' monitor as the out-of-memory killer would.
    pub(crate) fn kill_monitor() {
        let pid = nix::unistd::Pid::from_raw(Self::monitor().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    /// All processes of this world but this one, with their command lines.
    fn processes(&self) -> Vec<String> {
        let mark = format!("{WORLD}={}", self.dir.display()).into_bytes();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let pid: Option<u32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if pid.is_some_and(|pid| pid != std::process::id())
                && environment.split(|byte| *byte == 0).any(|variable| variable == mark)
            {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push(String::from_utf8_lossy(&line).replace('\0', " "));
            }
        }
        found
    }

    /// Nothing is left of a sandbox: no process, run-time folder, namespace or socket.
    pub(crate) async fn assert_gone(&self) {
        let id = Self::id();
        let begun = Instant::now();
        while !self.processes().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(5), "processes are left: {:?}", self.processes());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let dir = paths::run_dir().join(&id);
        let disks = paths::disks().join(&id);
        assert!(!dir.exists() && !disks.exists(), "{} {}", dir.display(), disks.display());
        let (netns, own) = kata_cc_sandbox::network::Network::place(None, &id);
        assert!(!netns.exists(), "{own:?}");
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        assert!(!sockets.contains(&dir.display().to_string()), "{sockets}");
    }
}
