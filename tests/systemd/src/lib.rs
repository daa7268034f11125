//! A real systemd for tests, wherever they run: it is the first process of namespaces of its own (pid, mount, cgroup, uts, ipc, net), its control
//! groups lie in one group of each tree that is made for it, and its root is an overlay of the machine's that goes with it. The machine's own
//! first process is not asked for anything.
//!
//! [`within`] runs the body of a test as a service of it. Where this machine's controllers are in trees of version 1, [`Layout::V1`] has
//! them all and [`Layout::V2`] a tree of version 2 without (systemd's own part is whole: units, groups, who is in them); where they are in version 2, as in the
//! lab, that has them.
#![forbid(unsafe_code)]

mod groups;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use groups::Own;

/// Set for what runs within.
const INSIDE: &str = "KATA_CC_TEST_SYSTEMD";
/// What becomes systemd.
const ROOT: &str = include_str!("root.sh");
/// How long systemd may take to come up or to end, also in an emulated machine.
const LIMIT: Duration = Duration::from_secs(120);
/// Programs that are needed, with Debian's packages.
const PROGRAMS: [(&str, &str); 6] = [
    ("/lib/systemd/systemd", "systemd"),
    ("/usr/bin/systemd-run", "systemd"),
    ("/usr/bin/busctl", "systemd"),
    ("/usr/bin/dbus-daemon", "dbus"),
    ("/usr/bin/unshare", "util-linux"),
    ("/usr/bin/nsenter", "util-linux"),
];

/// Of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A tree for each controller, systemd's own beside them (it calls this hybrid).
    V1,
    /// One tree.
    V2,
}

impl Layout {
    fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// A systemd that runs; it and all it started end with this.
#[derive(Debug)]
pub struct Systemd {
    /// Holds the namespaces, and kills their first process when it ends.
    holder: Child,
    /// The first process, by the machine's number.
    first: u32,
    _work: tempfile::TempDir,
    _groups: Own,
}

/// Runs the body of a test within a systemd: the test's program is started there once more, for the one test that is named.
///
/// # Panics
/// The body does.
pub fn within(layout: Layout, test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let Some(systemd) = Systemd::start(layout) else { return };
    let own = std::env::current_exe().expect("this program");
    let words = [own.to_string_lossy().into_owned(), "--exact".into(), test.into(), "--nocapture".into()];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = systemd.service(&words);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    print!("{}", text(&output.stdout));
    let journal = || text(&systemd.enter(&["journalctl", "--no-pager", "--lines=200"]).stdout);
    assert!(output.status.success(), "{}\n{}", text(&output.stderr), journal());
    assert!(text(&output.stdout).contains("1 passed"), "no test is named {test}");
}

impl Systemd {
    /// Starts one and waits for it. None where this machine lacks a part; says which.
    ///
    /// # Panics
    /// It does not come up.
    #[must_use]
    pub fn start(layout: Layout) -> Option<Self> {
        if let Some((program, package)) = PROGRAMS.iter().find(|(program, _)| !Path::new(program).exists()) {
            kata_cc_test_vectors::skip("binaries", &format!("there is no {program}: install {package}"));
            return None;
        }
        if !is_root() {
            println!("skipped: a systemd of its own is for root");
            return None;
        }
        let groups = match Own::make(layout) {
            Ok(groups) => groups,
            Err(why) => {
                println!("skipped: {why}");
                return None;
            }
        };
        let work = tempfile::Builder::new().prefix("kata-cc-systemd-").tempdir().expect("a folder");
        let mut holder = hold(layout, &groups, work.path());
        let begun = Instant::now();
        let first = loop {
            if let Some(first) = child_of(holder.id()) {
                break first;
            }
            assert!(
                begun.elapsed() < LIMIT && holder.try_wait().ok() == Some(None),
                "no namespaces: {}",
                said(work.path())
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        groups.put_aside(holder.id());
        let mut systemd = Self { holder, first, _work: work, _groups: groups };
        systemd.await_start(begun);
        Some(systemd)
    }

    fn await_start(&mut self, begun: Instant) {
        let door = PathBuf::from(format!("/proc/{}/root/run/systemd/private", self.first));
        loop {
            let running = door.exists()
                && String::from_utf8_lossy(&self.enter(&["systemctl", "is-system-running"]).stdout).trim()
                    == "running";
            if running {
                return;
            }
            let gone = self.holder.try_wait().ok() != Some(None);
            if gone || begun.elapsed() > LIMIT {
                let state = self.enter(&["systemctl", "--failed", "--no-pager"]);
                panic!("systemd does not start: {}\n{state:?}", said(self._work.path()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a program in the namespaces, but in this process' control groups.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn enter(&self, words: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.first.to_string(),
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
        ]);
        command.args(["--wd=/", "--"]).args(words).stdin(Stdio::null());
        command.output().expect("nsenter")
    }

    /// Runs a program as a service, with this one's variables, and waits for it.
    #[must_use]
    pub fn service(&self, words: &[&str]) -> Output {
        let mut line: Vec<String> =
            ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--property=Delegate=yes"]
                .map(str::to_owned)
                .to_vec();
        for (name, value) in
            std::env::vars().filter(|(name, _)| name.starts_with("KATA_CC_") || name == "CARGO_MANIFEST_DIR")
        {
            line.push(format!("--setenv={name}={value}"));
        }
        line.push(format!("--setenv={INSIDE}=1"));
        line.push("--".to_owned());
        line.extend(words.iter().map(|word| (*word).to_owned()));
        self.enter(&line.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // Its child, the first process, is killed with it, and all others with that.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let begun = Instant::now();
        while Path::new(&format!("/proc/{}", self.first)).exists() && begun.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Starts the process that holds the namespaces.
fn hold(layout: Layout, groups: &Own, work: &Path) -> Child {
    // Before the namespaces: the group that a process is in when it makes one of control groups is the root of that.
    const ENTER: &str = r#"while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift
        exec setpriv --pdeathsig KILL unshare --mount --uts --ipc --net --cgroup --pid --fork --kill-child --propagation private "$@""#;
    let mut command = Command::new("sh");
    command.args(["-euc", ENTER, "sh"]).args(groups.folders()).arg("--");
    command.args(["sh", "-c", ROOT, "sh", layout.name()]).arg(work).args(shared());
    let log = std::fs::File::create(log(work)).expect("a file");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
    command.spawn().expect("sh")
}

/// Beside what becomes the root of the new namespaces: hidden there by that, seen from here.
fn log(work: &Path) -> PathBuf {
    work.join("log")
}

fn said(work: &Path) -> String {
    std::fs::read_to_string(log(work)).unwrap_or_default()
}

/// Folders that programs of the tests lie in, which may be mounts of their own.
fn shared() -> Vec<PathBuf> {
    let own = std::env::current_exe().ok();
    let named = ["KATA_CC_BIN_DIR", "KATA_CC_SHARE_DIR", "CARGO_MANIFEST_DIR"];
    let named = named.map(|name| std::env::var_os(name).map(PathBuf::from));
    // `deps`, and what is above it.
    let beside = own.as_deref().and_then(|own| own.ancestors().nth(2)).map(Path::to_path_buf);
    named.into_iter().flatten().chain(beside).filter(|path| path.is_dir()).collect()
}

/// The first child of a process.
fn child_of(parent: u32) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let (_, after) = stat.rsplit_once(')')?;
        (after.split_ascii_whitespace().nth(1)? == parent.to_string()).then_some(pid)
    })
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:\t0\t0\t"))
}
