//! Events as a real containerd takes them and its `ctr events` prints them: this machine's, and those that `tests/lab/fetch-programs` unpacked
//! below `KATA_CC_CONTAINERDS`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kata_cc_sandbox::Pull;
use kata_cc_shim::events::{Details, Publisher};
use kata_cc_shim::machine::{Event, Exit};

/// How long each step may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // A release's own programs are started by a script: the group has them all.
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// A program of this machine's containerd, or of a release's by its `run`.
fn program(release: Option<&Path>, name: &str) -> Command {
    let mut command = match release {
        None => Command::new(name),
        Some(run) => {
            let mut command = Command::new(run);
            command.arg(name);
            command
        }
    };
    command.stdin(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command
}

/// The containerds there are.
fn releases() -> Vec<Option<PathBuf>> {
    let mut found = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: containerd needs root");
        return found;
    }
    if ["containerd", "ctr"].iter().all(|name| Path::new("/usr/bin").join(name).exists()) {
        found.push(None);
    }
    let folder = std::env::var_os("KATA_CC_CONTAINERDS").map(PathBuf::from);
    let others = folder.into_iter().flat_map(|folder| std::fs::read_dir(folder).unwrap().flatten());
    found.extend(others.map(|entry| entry.path().join("run")).filter(|run| run.is_file()).map(Some));
    if found.is_empty() {
        println!("skipped: not installed: containerd");
    }
    found
}

/// A containerd of its own.
fn start(release: Option<&Path>, folder: &Path) -> Running {
    let at = folder.display();
    let config = format!(
        "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \"io.containerd.nri.v1.nri\"]\n\
         [grpc]\naddress = \"{at}/c.sock\"\n[ttrpc]\naddress = \"{at}/t.sock\"\n"
    );
    std::fs::write(folder.join("config.toml"), config).unwrap();
    let mut command = program(release, "containerd");
    command.arg("--config").arg(folder.join("config.toml")).stdout(Stdio::null());
    let running = Running(command.spawn().unwrap());
    let begin = Instant::now();
    let mut version = program(release, "ctr");
    version.arg("--address").arg(folder.join("c.sock")).arg("version").stdout(Stdio::null());
    while !version.status().unwrap().success() {
        assert!(begin.elapsed() < PATIENCE, "{release:?}: containerd does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    running
}

/// `ctr events`, line by line.
fn events(release: Option<&Path>, folder: &Path) -> (Running, mpsc::Receiver<String>) {
    let mut command = program(release, "ctr");
    command.arg("--address").arg(folder.join("c.sock")).arg("events").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    (Running(child), told)
}

#[tokio::test(flavor = "multi_thread")]
async fn ctr_prints_how_far_a_pull_is_and_goes_on() {
    for release in releases() {
        let release = release.as_deref();
        let folder = tempfile::Builder::new().prefix("kce-").tempdir_in("/run").unwrap();
        let _containerd = start(release, folder.path());
        let (_ctr, told) = events(release, folder.path());
        let socket = folder.path().join("t.sock").display().to_string();
        let publisher = Publisher::start("ns".into(), Some(socket));
        let details = |container: &str| Details { container: container.into(), pid: 7, create: None };

        // ctr asks for events some time after it was started: until then they are told to nobody.
        let begin = Instant::now();
        while told.try_recv().is_err() {
            assert!(begin.elapsed() < PATIENCE, "{release:?}: ctr prints no event");
            publisher.publish(&Event::Started, &details("first"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let pull = Pull { bytes: 41_000_000, of: 100_000_000, seconds: 12 };
        publisher.publish(&Event::Pulling("r.example/app:1".into(), pull), &details("c1"));
        let exit = Exit { code: 3, at: std::time::SystemTime::now() };
        publisher.publish(&Event::Exited(String::new(), exit), &details("c1"));
        let until = |topic: &str| loop {
            let line = told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{release:?}: no {topic}"));
            if line.contains(topic) {
                return line;
            }
        };
        let line = until("/kata-cc/image-pull");
        for part in [
            " ns /kata-cc/image-pull {\"media_type\":\"application/vnd.kata-cc.image-pull.v1\"",
            "\"size\":100000000",
            "\"annotations\":{\"bytes\":\"41000000\",\"container_id\":\"c1\",\"image\":\"r.example/app:1\",\"seconds\":\"12\"}",
        ] {
            assert!(line.contains(part), "{release:?}: {part}: {line}");
        }
        let line = until("/tasks/exit");
        assert!(line.contains("\"exit_status\":3"), "{release:?}: {line}");
    }
}
