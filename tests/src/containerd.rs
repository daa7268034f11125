//! A real containerd of the test's own.
//!
//! Everything lives in one folder under `/run`: root, state, sockets, records. Runtimes are found by links in the
//! folder's `bin`, one for each class.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::pod::{self, Kubelet};
use crate::process::{Daemon, Finished, run};
use crate::traces::{RUN, STATE, Traces, names};
use crate::{binaries, image, share};

/// The image that [`Containerd::start`] imports.
pub const IMAGE: &str = "docker.io/library/kata-cc-busybox:latest";
/// The plain microVM's runtime type.
pub const VM: &str = "io.containerd.kata-cc-vm.v2";
/// The confidential runtime type.
pub const CONFIDENTIAL: &str = "io.containerd.kata-cc.v2";

/// How long one `ctr` call may take: a microVM in the lab is slow.
const LIMIT: u64 = 900;

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    folder: tempfile::TempDir,
    daemon: Daemon,
    programs: Programs,
}

/// Whose `containerd` and `ctr` are meant: this machine's, or those of another release that
/// `tests/lab/fetch-programs` unpacked (its `run`).
#[derive(Clone, Debug, Default)]
pub struct Programs(Option<PathBuf>);

impl Programs {
    /// Other releases, by the name of their folder below `KATA_CC_CONTAINERDS`.
    #[must_use]
    pub fn other_releases() -> Vec<(String, Self)> {
        let Some(folder) = std::env::var_os("KATA_CC_CONTAINERDS").map(PathBuf::from) else {
            return Vec::new();
        };
        let mut found: Vec<_> = names(&folder)
            .map(|name| (name.clone(), folder.join(name).join("run")))
            .filter(|(_, run)| run.is_file())
            .map(|(name, run)| (name, Self(Some(run))))
            .collect();
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found
    }

    fn command(&self, name: &str) -> Command {
        match &self.0 {
            Some(run) => {
                let mut command = Command::new(run);
                command.arg(name);
                command
            }
            None => Command::new(name),
        }
    }
}

impl Containerd {
    /// Start this machine's containerd with the image imported. `node` is the node configuration (TOML).
    pub fn start(node: &str) -> anyhow::Result<Self> {
        Self::start_release(node, Programs::default())
    }

    /// The same without any image: nothing of the plain image's content is in its stores.
    pub fn start_empty(node: &str) -> anyhow::Result<Self> {
        Self::start_daemon(node, Programs::default())
    }

    /// With its Container Runtime Interface, for pods of the confidential class whose images all are `image` (without a tag; the image made
    /// for the tests, which containerd has as `latest`).
    pub fn start_for_pods(node: &str, image: &str) -> anyhow::Result<Self> {
        let pause = format!("{image}:latest");
        let containerd = Self::start_configured(node, Programs::default(), |folder| {
            Ok(config(folder, true) + &pod::configuration(folder, &pause)?)
        })?;
        containerd.import_as(&["--namespace", "k8s.io"], image)?;
        Ok(containerd)
    }

    /// A kubelet of it, for one pod.
    pub fn kubelet(&self) -> anyhow::Result<Kubelet> {
        Kubelet::new(&self.folder.path().join("c.sock"), &self.folder.path().join("pod"))
    }

    /// The same with another release's programs.
    pub fn start_release(node: &str, programs: Programs) -> anyhow::Result<Self> {
        let containerd = Self::start_daemon(node, programs)?;
        containerd.import()?;
        Ok(containerd)
    }

    fn start_daemon(node: &str, programs: Programs) -> anyhow::Result<Self> {
        Self::start_configured(node, programs, |folder| Ok(config(folder, false)))
    }

    fn start_configured(
        node: &str,
        programs: Programs,
        config: impl FnOnce(&Path) -> anyhow::Result<String>,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("kct-").tempdir_in("/run")?;
        let path = folder.path();
        let bin = path.join("bin");
        std::fs::create_dir(&bin)?;
        for class in ["", "-vm", "-auto"] {
            let link = bin.join(format!("containerd-shim-kata-cc{class}-v2"));
            std::os::unix::fs::symlink(binaries().join("containerd-shim-kata-cc-v2"), link)?;
        }
        std::fs::write(path.join("node.toml"), node)?;
        std::fs::write(path.join("config.toml"), config(path)?)?;
        let mut command = programs.command("containerd");
        command.arg("--config").arg(path.join("config.toml"));
        command.env("PATH", search_path(&bin)?);
        command.env("KATA_CC_CONFIG", path.join("node.toml")).env("KATA_CC_SHARE_DIR", share());
        command.env("KATA_CC_RUN_DIR", path.join(RUN)).env("KATA_CC_STATE_DIR", path.join(STATE));
        let mut daemon = Daemon::start("containerd", path, &mut command)?;
        let socket = path.join("c.sock");
        daemon.wait_until(120, || {
            let version = programs.command("ctr").arg("--address").arg(&socket).arg("version").output();
            version.is_ok_and(|output| output.status.success())
        })?;
        Ok(Self { folder, daemon, programs })
    }

    fn import(&self) -> anyhow::Result<()> {
        self.import_as(&[], IMAGE.trim_end_matches(":latest"))
    }

    fn import_as(&self, options: &[&str], base: &str) -> anyhow::Result<()> {
        let layout = self.folder.path().join("layout");
        std::fs::create_dir(&layout)?;
        image::busybox_layout(&layout)?;
        let archive = self.folder.path().join("image.tar");
        run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout).arg("."), 60)?.ok()?;
        let import = ["image", "import", "--base-name", base, &archive.to_string_lossy()];
        self.ctr(&[options, &import].concat())?.ok()?;
        Ok(())
    }

    /// containerd's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// The stages that a sandbox has come to.
    #[must_use]
    pub fn stages(&self, id: &str) -> Vec<String> {
        let record = self.folder.path().join(STATE).join("sandboxes").join(id).join("record.jsonl");
        let text = std::fs::read_to_string(record).unwrap_or_default();
        let stage = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(line["stage"].as_str()?.to_owned())
        };
        text.lines().filter_map(stage).collect()
    }

    /// The folder everything lives in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// containerd's log, and what each sandbox has left of its own.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = std::fs::read_to_string(self.folder.path().join("containerd.log")).unwrap_or_default();
        let records = self.folder.path().join(STATE).join("sandboxes");
        for id in names(&records) {
            let log = std::fs::read_to_string(records.join(&id).join("log.jsonl")).unwrap_or_default();
            text += &format!("--- {id}\n{log}");
        }
        text
    }

    /// A `ctr` command, not yet run.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.programs.command("ctr");
        command.arg("--address").arg(self.folder.path().join("c.sock")).args(arguments);
        command
    }

    /// Run `ctr`.
    pub fn ctr(&self, arguments: &[&str]) -> anyhow::Result<Finished> {
        run(&mut self.command(arguments), LIMIT)
    }

    /// `ctr run` in the foreground, removed afterwards.
    pub fn run(
        &self,
        runtime: &str,
        id: &str,
        options: &[&str],
        command: &[&str],
    ) -> anyhow::Result<Finished> {
        let mut arguments = vec!["run", "--rm", "--runtime", runtime];
        arguments.extend(options);
        arguments.extend([IMAGE, id]);
        arguments.extend(command);
        self.ctr(&arguments)
    }

    /// `ctr run --detach`.
    pub fn detach(&self, runtime: &str, id: &str, command: &[&str]) -> anyhow::Result<()> {
        let mut arguments = vec!["run", "--detach", "--runtime", runtime, IMAGE, id];
        arguments.extend(command);
        self.ctr(&arguments)?.ok()?;
        Ok(())
    }

    /// Kill, delete task and container, whatever state they are in.
    pub fn remove(&self, id: &str) -> anyhow::Result<()> {
        let _ = self.ctr(&["task", "kill", "--signal", "SIGKILL", id]);
        let _ = self.ctr(&["task", "delete", "--force", id]);
        self.ctr(&["container", "delete", id])?;
        Ok(())
    }

    /// Status column of a task, none when there is no such task.
    pub fn status(&self, id: &str) -> anyhow::Result<Option<String>> {
        let listed = self.ctr(&["task", "list"])?.ok()?;
        let line = listed.stdout.lines().find(|line| line.split_whitespace().next() == Some(id));
        Ok(line.and_then(|line| line.split_whitespace().nth(2)).map(str::to_owned))
    }

    /// Process id of the server of a container.
    pub fn shim_pid(&self, id: &str) -> anyhow::Result<u32> {
        let path =
            self.folder.path().join(format!("state/io.containerd.runtime.v2.task/default/{id}/shim.pid"));
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.trim().parse()?)
    }
}

/// containerd's configuration, with its Container Runtime Interface switched off or not.
fn config(folder: &Path, cri: bool) -> String {
    let folder = folder.display();
    let off = if cri { "" } else { r#""io.containerd.grpc.v1.cri", "# };
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{off}"io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "{folder}/c.sock"
[debug]
level = "info"
"#
    )
}

fn search_path(first: &Path) -> anyhow::Result<std::ffi::OsString> {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(std::iter::once(first.to_owned()).chain(std::env::split_paths(&inherited)))?)
}

/// Wait until the machine is as it was before; what stays for a minute is a panic.
///
/// # Panics
/// When something is left behind.
pub fn nothing_left(containerd: &Containerd, before: &Traces) {
    let left = before.left_after_a_minute(containerd.folder());
    assert!(left.is_empty(), "left behind: {left:#?}\n{}", containerd.log());
}
