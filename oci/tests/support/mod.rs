//! A world of its own for each test: a root for states, bundles of the machine's busybox, and the real programs.
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod podman;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The runtime under test.
pub(crate) const RUNTIME: &str = env!("CARGO_BIN_EXE_kata-cc-runc");

/// What a program said and how it ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// It did what it was asked.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }
}

/// A test's folder.
pub(crate) struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// None where this machine lacks a part; says which.
    pub(crate) fn new() -> Option<Self> {
        let sentry = Path::new(RUNTIME).with_file_name("kata-cc-sentry");
        if !sentry.is_file() {
            kata_cc_test_vectors::skip("binaries", &format!("{} is not built", sentry.display()));
            return None;
        }
        if !Path::new("/bin/busybox").is_file() {
            kata_cc_test_vectors::skip("binaries", "there is no /bin/busybox: install busybox-static");
            return None;
        }
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: these tests are for root");
            return None;
        }
        // Who reaps what a verb leaves is asked of this process, as of an engine.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let dir = tempfile::Builder::new().prefix("oci-").tempdir_in("/run").unwrap();
        Some(Self { dir })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// A bundle whose program is a line of shell.
    pub(crate) fn bundle(&self, name: &str, script: &str) -> PathBuf {
        self.bundle_with(name, script, |_| {})
    }

    /// The same, with a change of its specification.
    pub(crate) fn bundle_with(&self, name: &str, script: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let bundle = self.path(name);
        let bin = bundle.join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        for folder in ["dev", "proc", "sys", "tmp", "etc"] {
            std::fs::create_dir_all(bundle.join("rootfs").join(folder)).unwrap();
        }
        std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for tool in [
            "sh", "cat", "echo", "sleep", "id", "pwd", "tty", "stty", "kill", "true", "ls", "wc", "env",
            "touch",
        ] {
            let _ = std::os::unix::fs::symlink("busybox", bin.join(tool));
        }
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", script], "cwd": "/",
                "env": ["PATH=/bin", "GREETING=hello"],
                "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}},
            "root": {"path": "rootfs"},
            "hostname": "box",
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts"}],
            "linux": {"cgroupsPath": format!("/kata-cc-oci-e2e-{}-{name}", self.name()),
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]},
        });
        change(&mut spec);
        std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    fn name(&self) -> String {
        self.dir.path().file_name().unwrap().to_string_lossy().into_owned()
    }

    /// A runtime, not yet run; `words` are a line.
    pub(crate) fn command_of(&self, program: &str, words: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--root").arg(self.root()).args(words.split(' '));
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn command(&self, words: &str) -> Command {
        self.command_of(RUNTIME, words)
    }

    /// Runs a verb.
    pub(crate) fn run(&self, words: &str) -> Done {
        finish(&mut self.command(words))
    }

    /// Creates a container whose output goes to a file of its name, and gives its process.
    #[track_caller]
    pub(crate) fn create(&self, id: &str, bundle: &Path) -> i32 {
        let out = std::fs::File::create(self.path(&format!("{id}.out"))).unwrap();
        let pid = self.path(&format!("{id}.pid"));
        let line = format!("create --bundle {} --pid-file {} {id}", bundle.display(), pid.display());
        let mut command = self.command(&line);
        command.stdout(out.try_clone().unwrap()).stderr(out);
        let status = command.status().unwrap();
        assert!(status.success(), "{}", self.output(id));
        std::fs::read_to_string(pid).unwrap().parse().unwrap()
    }

    pub(crate) fn output(&self, id: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{id}.out"))).unwrap_or_default()
    }

    pub(crate) fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.run(&format!("state {id}")).ok()).unwrap()
    }

    pub(crate) fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    /// Nothing of this world is left: states, processes, control groups.
    #[track_caller]
    pub(crate) fn nothing_left(&self) {
        let states: Vec<_> = std::fs::read_dir(self.root()).into_iter().flatten().flatten().collect();
        assert!(states.is_empty(), "{states:?}");
        let mark = self.dir.path().to_string_lossy().into_owned();
        eventually("the end of all processes", || processes(&mark).is_empty());
        let groups = groups(&self.name());
        assert!(groups.is_empty(), "{groups:?}");
    }
}

impl Drop for World {
    /// A test that failed leaves nothing either.
    fn drop(&mut self) {
        let list = self.command("list -q").output().map(|output| output.stdout).unwrap_or_default();
        for id in String::from_utf8_lossy(&list).lines() {
            let _ = self.command(&format!("delete --force {id}")).output();
        }
    }
}

/// Runs to the end, with a limit.
pub(crate) fn finish(command: &mut Command) -> Done {
    // Some descendants that stay would hold pipes open: files do not wait for them.
    let mut out = tempfile::tempfile().unwrap();
    let mut err = tempfile::tempfile().unwrap();
    command.stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(120) {
            let _ = child.kill();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let read = |file: &mut std::fs::File| {
        use std::io::{Read, Seek};
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    Done::of(&Output { status, stdout: read(&mut out), stderr: read(&mut err) })
}

/// Reaps a process that a verb left, as an engine does; its exit code.
#[track_caller]
pub(crate) fn reap(pid: i32) -> i32 {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let begun = Instant::now();
    loop {
        match waitpid(nix::unistd::Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::Exited(_, code) => return code,
            WaitStatus::Signaled(_, signal, _) => return 128 + signal as i32,
            _ => assert!(begun.elapsed() < Duration::from_secs(60), "process {pid} does not end"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for something that must come.
#[track_caller]
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Processes (of ours) that name a folder.
fn processes(mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if line.contains("kata-cc") && (line.contains(mark) || cwd.to_string_lossy().contains(mark)) {
            found.push(line);
        }
    }
    found
}

/// Control groups that name a world.
fn groups(name: &str) -> Vec<PathBuf> {
    let trees = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    let all = trees.chain([PathBuf::from("/sys/fs/cgroup")]);
    all.flat_map(|tree| std::fs::read_dir(tree).into_iter().flatten().flatten().map(|entry| entry.path()))
        .filter(|path| path.to_string_lossy().contains(name))
        .collect()
}
