//! The runtimes, and how each starts a program: this file is the only one that knows.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::json;

use super::processes;
use crate::paths;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Runtime {
    /// Containers of the host's kernel: the floor.
    Runc,
    /// gVisor, its default platform: the peer.
    RunscSystrap,
    /// gVisor, its platform that works everywhere.
    RunscPtrace,
    /// The sentry.
    Ours,
}

impl Runtime {
    /// In the order of the report.
    pub(super) const ALL: [Self; 4] = [Self::Runc, Self::RunscSystrap, Self::RunscPtrace, Self::Ours];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::RunscSystrap => "runsc-systrap",
            Self::RunscPtrace => "runsc-ptrace",
            Self::Ours => "ours",
        }
    }
}

/// Capabilities of the programs: those that container engines give, and what setting up loopback takes.
const CAPABILITIES: [&str; 15] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Whether a runtime's command ends with the program, or leaves it running where the runtime can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Ends with the program.
    Wait,
    /// Ends when the program runs.
    Detach,
}

/// Root folder, runtimes, and a folder for bundles and state that goes with this value.
pub(super) struct Place {
    root: PathBuf,
    runsc: Option<PathBuf>,
    sentry: PathBuf,
    /// Whether the sentry is given bundles, by the verbs of an OCI runtime; else it is started by `do`, and `/scratch` lies in its memory.
    bundles: bool,
    verbs: PathBuf,
    work: PathBuf,
}

impl Place {
    pub(super) fn new(root: PathBuf, runsc: Option<PathBuf>, bundles: bool) -> anyhow::Result<Self> {
        let (sentry, verbs) =
            (paths::binaries().join("kata-cc-sentry"), paths::binaries().join("kata-cc-runc"));
        let work = std::env::temp_dir().join(format!("kata-cc-tiers-{}", std::process::id()));
        for part in ["state", "bundles", "scratch"] {
            let folder = work.join(part);
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(Self { root, runsc, sentry, bundles, verbs, work })
    }

    /// The folder with bundles and state.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// Whether this machine has it.
    pub(super) fn has(&self, runtime: Runtime) -> bool {
        match runtime {
            Runtime::Runc => Command::new("runc").arg("--version").output().is_ok(),
            Runtime::RunscSystrap | Runtime::RunscPtrace => self.runsc.is_some(),
            Runtime::Ours => true,
        }
    }

    /// Who was measured, with what version.
    pub(super) fn versions(&self) -> Vec<String> {
        let first = |program: &Path| {
            let output = Command::new(program).arg("--version").stderr(Stdio::null()).output().ok()?;
            String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
        };
        let all = [Some(Path::new("runc")), self.runsc.as_deref(), Some(&self.sentry)];
        let mut versions: Vec<String> = all.into_iter().flatten().filter_map(first).collect();
        let how =
            if self.bundles { "by bundles" } else { "by `do`: its /scratch lies in memory, not on the disk" };
        versions.push(format!("ours is started {how}"));
        versions
    }

    /// The command that starts `program` in a new sandbox of this name.
    pub(super) fn start(
        &self,
        runtime: Runtime,
        name: &str,
        mode: Mode,
        program: &[&str],
    ) -> anyhow::Result<Command> {
        let mut command = self.runtime(runtime)?;
        if runtime == Runtime::Ours && !self.bundles {
            command.arg("do").arg("--rootfs").arg(&self.root).arg("--").args(program);
        } else {
            command.arg("run").arg("--bundle").arg(self.bundle(name, program)?);
            if mode == Mode::Detach {
                command.arg("--detach");
            }
            command.arg(name);
        }
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Whether a detached start leaves nothing but the sandbox; else the command stays.
    pub(super) fn detaches(&self, runtime: Runtime) -> bool {
        runtime != Runtime::Ours || self.bundles
    }

    /// Removes a sandbox that was detached.
    pub(super) fn remove(&self, runtime: Runtime, name: &str) -> anyhow::Result<()> {
        if !self.detaches(runtime) {
            return Ok(());
        }
        let mut delete = self.runtime(runtime)?;
        delete
            .args(["delete", "--force", name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = delete.spawn()?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            processes::take_orphans(child.id())?;
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut told = String::new();
        child.stderr.take().context("its errors are piped")?.read_to_string(&mut told)?;
        ensure!(status.success(), "{} cannot delete {name}: {}", runtime.name(), told.trim());
        Ok(())
    }

    /// The runtime with its own flags, before the verb.
    fn runtime(&self, runtime: Runtime) -> anyhow::Result<Command> {
        let mut command = match runtime {
            Runtime::Runc => Command::new("runc"),
            Runtime::Ours if self.bundles => {
                let mut verbs = Command::new(&self.verbs);
                verbs.env("KATA_CC_SENTRY", &self.sentry);
                verbs
            }
            Runtime::Ours => Command::new(&self.sentry),
            Runtime::RunscSystrap | Runtime::RunscPtrace => {
                let mut runsc = Command::new(self.runsc.as_ref().context("there is no runsc")?);
                let platform = if runtime == Runtime::RunscPtrace { "ptrace" } else { "systrap" };
                runsc.args(["--network=none", "--ignore-cgroups", "--overlay2=root:memory"]);
                runsc.arg(format!("--platform={platform}"));
                runsc
            }
        };
        if runtime != Runtime::Ours || self.bundles {
            command.arg("--root").arg(self.work.join("state").join(runtime.name()));
        }
        Ok(command)
    }

    /// A bundle for `program`: the root cannot be changed, `/tmp` and `/run` are in memory, `/scratch` is on the disk.
    fn bundle(&self, name: &str, program: &[&str]) -> anyhow::Result<PathBuf> {
        let folder = self.work.join("bundles").join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let memory = |at: &str| json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]});
        let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|name| json!({"type": name})).to_vec();
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": program,
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"],
                "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            },
            "root": {"path": self.root, "readonly": true},
            "hostname": "sandbox",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
                memory("/dev/shm"), memory("/tmp"), memory("/run"),
                {"destination": "/scratch", "type": "bind", "source": self.work.join("scratch"), "options": ["rbind", "rw"]},
            ],
            "linux": {"namespaces": namespaces},
        });
        std::fs::write(folder.join("config.json"), spec.to_string())?;
        Ok(folder)
    }
}

/// Removes the folder of a [`Place`], whose processes have ended, with the control groups of containers that runc could not remove itself.
pub(super) fn clean(work: &Path) {
    let state = work.join("state").join(Runtime::Runc.name());
    for container in std::fs::read_dir(&state).into_iter().flatten().flatten() {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(&state).args(["delete", "--force"]).arg(container.file_name());
        // one that never came to be has nothing to be removed
        let _ = runc.stderr(Stdio::null()).status();
    }
    if let Err(error) = std::fs::remove_dir_all(work) {
        eprintln!("x: cannot remove {}: {error}", work.display());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        clean(&self.work);
    }
}
