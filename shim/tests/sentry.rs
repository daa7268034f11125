//! A real containerd with containers of the sentry: by the shim, and by containerd's own shim with the OCI runtime. No virtual machine is needed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kata_cc_test_systemd::{Layout, within};

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-kata-cc-v2");
/// The runtime type that leads to the shim.
const SENTRY: [&str; 2] = ["--runtime", "io.containerd.kata-cc-sentry.v2"];

/// A containerd of the test's own, in a folder of its own.
struct Containerd {
    folder: tempfile::TempDir,
    daemon: Child,
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn beside(name: &str) -> PathBuf {
    Path::new(SHIM).with_file_name(name)
}

/// What is missing of what these tests need.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("these tests are for root".to_owned());
    }
    let programs =
        [PathBuf::from("/bin/busybox"), PathBuf::from("/usr/bin/containerd"), beside("kata-cc-sentry")];
    let lacking = programs.into_iter().find(|program| !program.is_file())?;
    Some(format!("there is no {}", lacking.display()))
}

impl Containerd {
    fn start() -> Option<Self> {
        if let Some(what) = missing() {
            println!("skipped: {what}");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("kcs-").tempdir_in("/run").unwrap();
        let path = folder.path();
        let bin = path.join("bin");
        std::fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(SHIM, bin.join("containerd-shim-kata-cc-sentry-v2")).unwrap();
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.aufs\"]\n[grpc]\naddress = \"{0}/c.sock\"\n",
            path.display()
        );
        std::fs::write(path.join("config.toml"), config).unwrap();
        std::fs::write(path.join("node.toml"), format!("sentry = {:?}\n", beside("kata-cc-sentry"))).unwrap();
        rootfs(&path.join("rootfs"));
        let search = std::env::var("PATH").unwrap_or_default();
        let log = std::fs::File::create(path.join("containerd.log")).unwrap();
        let daemon = Command::new("containerd")
            .arg("--config")
            .arg(path.join("config.toml"))
            .env("PATH", format!("{}:{search}", bin.display()))
            .env("KATA_CC_CONFIG", path.join("node.toml"))
            .env("KATA_CC_RUN_DIR", path.join("run"))
            .env("KATA_CC_STATE_DIR", path.join("records"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let containerd = Self { folder, daemon };
        eventually("containerd", || containerd.ctr(&["version"]).status.success());
        Some(containerd)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.path("c.sock")).args(words).stdin(Stdio::null());
        command
    }

    fn ctr(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let output = self.ctr(words);
        assert!(output.status.success(), "{words:?}: {}\n{}", text(&output), self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// `ctr run` of a root file system, with more options before it.
    fn run_words<'a>(
        &self,
        runtime: &[&'a str],
        options: &[&'a str],
        rootfs: &'a str,
        id: &'a str,
        command: &[&'a str],
    ) -> Vec<&'a str> {
        [&["run"], runtime, options, &["--env", "PATH=/bin", "--rootfs", rootfs, id], command].concat()
    }

    fn status(&self, id: &str) -> Option<String> {
        let list = self.ok(&["task", "list"]);
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(id))?;
        line.split_whitespace().nth(2).map(str::to_owned)
    }

    fn log(&self) -> String {
        let mut text = std::fs::read_to_string(self.path("containerd.log")).unwrap_or_default();
        for entry in std::fs::read_dir(self.path("records/sandboxes")).into_iter().flatten().flatten() {
            text += &std::fs::read_to_string(entry.path().join("log.jsonl")).unwrap_or_default();
        }
        text
    }

    /// Nothing of ours is left but records.
    #[track_caller]
    fn nothing_left(&self) {
        let mark = self.folder.path().to_string_lossy().into_owned();
        eventually("the end of all processes", || processes(&mark).is_empty());
        let left: Vec<_> = std::fs::read_dir(self.path("run")).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A root file system of busybox.
fn rootfs(path: &Path) {
    let bin = path.join("bin");
    for folder in ["bin", "dev", "proc", "sys", "tmp", "etc", "run", "data"] {
        std::fs::create_dir_all(path.join(folder)).unwrap();
    }
    std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    let names = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for name in String::from_utf8_lossy(&names.stdout).lines().filter(|name| *name != "busybox") {
        let _ = std::os::unix::fs::symlink("busybox", bin.join(name));
    }
}

fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}: {out}{err}", output.status)
}

/// Our processes that name a folder; not containerd's.
fn processes(mark: &str) -> Vec<String> {
    let lines = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ")
    });
    lines.filter(|line| line.contains(mark) && line.contains("kata-cc")).collect()
}

#[track_caller]
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The same for both ways.
fn lives(containerd: &Containerd, runtime: &[&str]) {
    let rootfs = containerd.path("rootfs").display().to_string();
    let script = "echo out; echo err >&2; cat /proc/version; exit 7";
    let ran =
        containerd.ctr(&containerd.run_words(runtime, &["--rm"], &rootfs, "codes", &["sh", "-c", script]));
    assert_eq!(ran.status.code(), Some(7), "{}\n{}", text(&ran), containerd.log());
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(out.starts_with("out\n") && err.contains("err"), "{}", text(&ran));
    let host = std::fs::read_to_string("/proc/version").unwrap();
    assert!(!out.contains(host.trim()), "it ran on the host's kernel: {out}");

    containerd.ok(&containerd.run_words(
        runtime,
        &["--detach", "--memory-limit", "268435456"],
        &rootfs,
        "long",
        &["sleep", "100000"],
    ));
    assert_eq!(containerd.status("long").as_deref(), Some("RUNNING"));
    let exec =
        containerd.ctr(&["task", "exec", "--exec-id", "e1", "long", "sh", "-c", "echo in exec; exit 5"]);
    assert_eq!(
        (exec.status.code(), String::from_utf8_lossy(&exec.stdout).as_ref()),
        (Some(5), "in exec\n"),
        "{}\n{}",
        text(&exec),
        containerd.log()
    );
    let list = containerd.ok(&["task", "ps", "long"]);
    assert!(
        list.lines()
            .nth(1)
            .is_some_and(|line| line.split_whitespace().next().is_some_and(|pid| pid.parse::<u32>().is_ok())),
        "{list}"
    );
    let metrics = containerd.ok(&["task", "metrics", "long"]);
    assert!(metrics.contains("memory"), "{metrics}");
    containerd.ok(&["task", "pause", "long"]);
    assert_eq!(containerd.status("long").as_deref(), Some("PAUSED"));
    containerd.ok(&["task", "resume", "long"]);
    assert_eq!(containerd.status("long").as_deref(), Some("RUNNING"));
    containerd.ok(&["task", "kill", "--signal", "SIGKILL", "long"]);
    eventually("the end", || containerd.status("long").as_deref() == Some("STOPPED"));
    let deleted = containerd.ctr(&["task", "delete", "long"]);
    assert!(deleted.status.code() == Some(137) || text(&deleted).contains("137"), "{}", text(&deleted));
    containerd.ok(&["container", "delete", "long"]);
}

/// `script` gives ctr the terminal that it wants.
fn has_a_terminal(containerd: &Containerd, runtime: &[&str]) {
    let rootfs = containerd.path("rootfs").display().to_string();
    let words = containerd.run_words(
        runtime,
        &["--rm", "--tty"],
        &rootfs,
        "term",
        &["sh", "-c", "'tty && stty size'"],
    );
    let line = format!("ctr --address {} {}", containerd.path("c.sock").display(), words.join(" "));
    let ran =
        Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let out = String::from_utf8_lossy(&ran.stdout);
    assert!(out.contains("/dev/") && !out.contains("not a tty"), "{}\n{}", text(&ran), containerd.log());
}

/// A folder of the host, to read.
fn has_volumes(containerd: &Containerd, runtime: &[&str]) {
    let (rootfs, data) = (containerd.path("rootfs").display().to_string(), containerd.path("volume"));
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("file"), "of the host\n").unwrap();
    let mount = format!("type=bind,src={},dst=/data,options=rbind:ro", data.display());
    let script = "cat /data/file; echo x >/data/new && exit 1; exit 0";
    let ran = containerd.ctr(&containerd.run_words(
        runtime,
        &["--rm", "--mount", &mount],
        &rootfs,
        "vol",
        &["sh", "-c", script],
    ));
    assert!(
        ran.status.success() && String::from_utf8_lossy(&ran.stdout) == "of the host\n",
        "{}\n{}",
        text(&ran),
        containerd.log()
    );
    assert!(!data.join("new").exists());
}

#[test]
fn by_the_shim() {
    let Some(containerd) = Containerd::start() else { return };
    lives(&containerd, &SENTRY);
    has_a_terminal(&containerd, &SENTRY);
    has_volumes(&containerd, &SENTRY);
    containerd.nothing_left();
}

#[test]
fn by_the_oci_runtime() {
    let runtime = beside("kata-cc-runc");
    if !runtime.is_file() {
        println!("skipped: {} is not built", runtime.display());
        return;
    }
    let Some(containerd) = Containerd::start() else { return };
    let runtime = runtime.display().to_string();
    let words = ["--runc-binary", runtime.as_str()];
    lives(&containerd, &words);
    has_a_terminal(&containerd, &words);
    has_volumes(&containerd, &words);
    containerd.nothing_left();
}

#[test]
fn a_killed_sentry_is_told_and_leaves_nothing() {
    let Some(containerd) = Containerd::start() else { return };
    let rootfs = containerd.path("rootfs").display().to_string();
    containerd.ok(&containerd.run_words(&SENTRY, &["--detach"], &rootfs, "doomed", &["sleep", "100000"]));
    let list = containerd.ok(&["task", "list"]);
    let pid =
        list.lines().find(|line| line.starts_with("doomed")).and_then(|line| line.split_whitespace().nth(1));
    let pid: i32 = pid.unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the end", || containerd.status("doomed").as_deref() == Some("STOPPED"));
    let _ = containerd.ctr(&["task", "delete", "doomed"]);
    containerd.ok(&["container", "delete", "doomed"]);
    assert!(containerd.log().contains("the sentry was killed by signal 9"), "{}", containerd.log());
    containerd.nothing_left();
}

/// A property of a unit of systemd's.
fn property(unit: &str, name: &str) -> String {
    let output =
        Command::new("systemctl").args(["show", "--property", name, "--value", unit]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What the engine names `slice:prefix:name` is a scope of systemd's, with the pod's limit, as long as the pod.
fn is_a_scope(containerd: &Containerd, runtime: &[&str], id: &str) {
    const SLICE: &str = "kata-pod.slice";
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    // A tree of version 2 has no controllers where those are in trees of version 1.
    let limited = !unified || controllers.contains("memory");
    let rootfs = containerd.path("rootfs").display().to_string();
    let (unit, group) = (format!("kcs-{id}.scope"), format!("{SLICE}:kcs:{id}"));
    let limit: &[&str] = if limited { &["--memory-limit", "268435456"] } else { &[] };
    let options = [&["--detach", "--cgroup", &group], limit].concat();
    containerd.ok(&containerd.run_words(runtime, &options, &rootfs, id, &["sleep", "100000"]));
    let state = (property(&unit, "ActiveState"), property(&unit, "Slice"));
    assert_eq!(state, ("active".into(), SLICE.into()), "{}", containerd.log());
    let list = containerd.ok(&["task", "list"]);
    let line = list.lines().find(|line| line.split_whitespace().next() == Some(id)).unwrap();
    let pid = line.split_whitespace().nth(1).unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let counts = |line: &&str| if unified { line.starts_with("0:") } else { !line.contains(":devices:") };
    let all = groups.lines().filter(counts);
    assert!(
        all.clone().count() > 0 && all.clone().all(|line| line.ends_with(&format!("/{SLICE}/{unit}"))),
        "{groups}"
    );
    let of_shims = processes("-namespace default");
    for shim in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(shim.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if of_shims.contains(&line) {
            let groups = std::fs::read_to_string(shim.path().join("cgroup")).unwrap_or_default();
            assert!(!groups.contains(&unit), "a shim stays outside: {groups}");
        }
    }
    if limited {
        assert_eq!(property(&unit, if unified { "MemoryMax" } else { "MemoryLimit" }), "268435456");
        let file = if unified { "memory.max" } else { "memory.limit_in_bytes" };
        let tree = if unified { "" } else { "memory" };
        let path =
            Path::new("/sys/fs/cgroup").join(tree).join("kata.slice").join(SLICE).join(&unit).join(file);
        let reload = Command::new("systemctl").arg("daemon-reload").status().unwrap();
        assert!(reload.success());
        assert_eq!(std::fs::read_to_string(path).unwrap().trim(), "268435456");
    }
    containerd.ok(&["task", "kill", "--signal", "SIGKILL", id]);
    eventually("the end", || containerd.status(id).as_deref() == Some("STOPPED"));
    let _ = containerd.ctr(&["task", "delete", id]);
    containerd.ok(&["container", "delete", id]);
    eventually("the end of the scope", || property(&unit, "LoadState") == "not-found");
    let left = Command::new("find").args(["/sys/fs/cgroup", "-name", &unit]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

fn scopes_by_both() {
    let runtime = beside("kata-cc-runc");
    let Some(containerd) = Containerd::start() else { return };
    is_a_scope(&containerd, &SENTRY, "shim");
    // containerd names shares of the processors in any case.
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    if controllers.is_ok_and(|controllers| !controllers.contains("cpu")) {
        println!("skipped: by the OCI runtime, without controllers");
        return containerd.nothing_left();
    }
    let runtime = runtime.display().to_string();
    is_a_scope(&containerd, &["--runc-binary", &runtime, "--runc-systemd-cgroup"], "oci");
    containerd.nothing_left();
}

#[test]
fn scopes_with_version_1() {
    within(Layout::V1, "scopes_with_version_1", scopes_by_both);
}

#[test]
fn scopes_with_version_2() {
    within(Layout::V2, "scopes_with_version_2", scopes_by_both);
}
