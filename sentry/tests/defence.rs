//! What the sentry has given up when a guest runs, seen from the host.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use kata_cc_sentry::platform::Kind;

fn command(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry"));
    command.arg("do").args(options).env("KATA_CC_LOG", "warn").stdin(Stdio::null());
    command
}

fn output(options: &[&str], program: &[&str]) -> Output {
    command(options).arg("--").args(program).output().unwrap()
}

/// Processes of the host by their parent.
fn children_of(parent: u32) -> Vec<u32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let of_parent = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or("");
        after.split_whitespace().nth(1).and_then(|text| text.parse().ok()) == Some(parent)
    };
    pids.filter(of_parent).collect()
}

/// A sandbox whose guest waits.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        let script = "sleep 1000 & echo ready; wait";
        command.args(["--", "/bin/bash", "-c", script]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        assert_eq!(&line, b"ready\n");
        Self(child)
    }

    fn sentry(&self) -> u32 {
        let (gofers, sentries) = self.children();
        assert_eq!((gofers.len(), sentries.len()), (1, 1));
        sentries[0]
    }

    fn gofer(&self) -> u32 {
        self.children().0[0]
    }

    fn children(&self) -> (Vec<u32>, Vec<u32>) {
        let is_gofer = |pid: &u32| status(&process(*pid))["Name"] == "kata-cc-gofer";
        children_of(self.0.id()).into_iter().partition(is_gofer)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// The stubs of a sentry whose guest waits: those of programs that were replaced are gone.
fn stubs_of(sentry: u32) -> Vec<u32> {
    loop {
        let before = children_of(sentry);
        std::thread::sleep(Duration::from_millis(100));
        let alive = |pid: &u32| fs::read_link(process(*pid).join("ns/pid")).is_ok();
        if children_of(sentry) == before && before.iter().all(alive) {
            return before;
        }
    }
}

fn status(of: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(of.join("status")).unwrap();
    let line =
        |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(line).collect()
}

/// A filter, and nothing that could be had without it.
fn assert_confined(of: &Path) {
    let status = status(of);
    assert_eq!((&*status["Seccomp"], &*status["NoNewPrivs"]), ("2", "1"), "{}", of.display());
    let mut sets = vec!["CapInh", "CapPrm", "CapEff", "CapAmb"];
    if nix::unistd::geteuid().is_root() {
        sets.push("CapBnd");
    }
    for set in sets {
        assert_eq!(status[set], "0000000000000000", "{set} of {}", of.display());
    }
}

fn process(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

#[test]
fn a_call_that_is_not_in_the_table_ends_the_sentry_which_says_so() {
    for call in [
        "openat",
        "openat2",
        "open",
        "execve",
        "socket",
        "connect",
        "ptrace",
        "mount",
        "bpf",
        "kill",
        "clone",
        "fork",
        "mprotect",
        "unshare",
        "setns",
        "pidfd_open",
        "io_uring_setup",
        "chroot",
        "perf_event_open",
        "userfaultfd",
        "add_key",
        "setuid",
    ] {
        let output = output(&["--try-call", call], &["/bin/true"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(&format!("the host call {call} (")), "{call}: {output:?}");
        assert_eq!(output.status.code(), Some(128 + libc::SIGSYS), "{call}: {output:?}");
    }
    // Nothing of the sentry's runs any more, so the process that waits for it says it.
    let output = output(&["--try-call", "reboot"], &["/bin/true"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("ended by SIGSYS"), "{text}");
}

#[test]
fn every_thread_and_every_stub_is_confined() {
    let running = Running::start(command(&[]));
    let sentry = running.sentry();
    let threads: Vec<_> = fs::read_dir(process(sentry).join("task")).unwrap().collect();
    assert!(threads.len() > 2);
    for thread in threads {
        assert_confined(&thread.unwrap().path());
    }
    let stubs = stubs_of(sentry);
    assert!(stubs.len() >= 2, "{stubs:?}");
    for stub in stubs {
        assert_confined(&process(stub));
    }
    let limits = fs::read_to_string(process(sentry).join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}

/// The mask of these capabilities.
fn mask(capabilities: &[u32]) -> String {
    format!("{:016x}", capabilities.iter().fold(0_u64, |all, number| all | 1 << number))
}

#[test]
fn a_gofer_is_confined_to_what_it_exports() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("only root sees into the gofer");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let volume = format!("{}:/volume", folder.path().display());
    // CAP_DAC_READ_SEARCH; with it CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_SETFCAP.
    for (options, capabilities) in [(vec![], &[2][..]), (vec!["--volume", &volume], &[0, 1, 2, 3, 4, 31])] {
        let running = Running::start(command(&options));
        let gofer = running.gofer();
        for thread in fs::read_dir(process(gofer).join("task")).unwrap() {
            let status = status(&thread.unwrap().path());
            assert_eq!((&*status["Seccomp"], &*status["NoNewPrivs"]), ("2", "1"));
            for set in ["CapPrm", "CapEff", "CapBnd"] {
                assert_eq!(status[set], mask(capabilities), "{set}");
            }
            assert_eq!((&*status["CapInh"], &*status["CapAmb"]), (&*mask(&[]), &*mask(&[])));
        }
        for name in ["mnt", "net", "ipc", "uts", "cgroup"] {
            let of = |process: &Path| fs::read_link(process.join("ns").join(name)).unwrap();
            assert_ne!(of(&process(gofer)), of(Path::new("/proc/self")), "{name}");
            assert_ne!(of(&process(gofer)), of(&process(running.sentry())), "{name}");
        }
        assert_eq!(fs::read_dir(process(gofer).join("root/.")).unwrap().count(), 0);
        let mounts = fs::read_to_string(process(gofer).join("mounts")).unwrap();
        assert!(mounts.starts_with("empty / tmpfs ro") && mounts.lines().count() == 1, "{mounts}");
    }
}

/// When either goes, both go, and it is said.
#[test]
fn gofer_and_sentry_end_together() {
    // Of datagrams each is one `write`: a line that is written in pieces would mix with what others say.
    let (said, stderr) = UnixDatagram::pair().unwrap();
    said.set_nonblocking(true).unwrap();
    let mut command = command(&[]);
    command.stderr(Stdio::from(OwnedFd::from(stderr)));
    let mut running = Running::start(command);
    let (gofer, sentry) = (running.gofer(), running.sentry());
    let gone = |pid: u32| {
        let begin = std::time::Instant::now();
        while process(pid).exists()
            && !status(&process(pid)).get("State").is_some_and(|state| state.starts_with('Z'))
        {
            assert!(begin.elapsed().as_secs() < 10, "{pid} is still there");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let kill = |pid: u32| {
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    };
    kill(gofer);
    assert_eq!(running.0.wait().unwrap().code(), Some(125));
    let mut buffer = [0; 4096];
    let lines: Vec<String> =
        std::iter::from_fn(|| said.recv(&mut buffer).ok().map(|count| buffer[..count].to_vec()))
            .map(|line| String::from_utf8(line).unwrap())
            .collect();
    let expected = "kata-cc-sentry: the gofer, which holds the sandbox's files, was ended by SIGKILL: the sandbox is ended\n";
    assert!(lines.iter().any(|line| line == expected), "{lines:?}");
    assert!(lines.iter().all(|line| line.matches('\n').count() == 1 && line.ends_with('\n')), "{lines:?}");
    gone(sentry);
    let mut running = Running::start(self::command(&[]));
    let (gofer, sentry) = (running.gofer(), running.sentry());
    kill(sentry);
    assert_eq!(running.0.wait().unwrap().code(), Some(137));
    gone(gofer);
    let mut running = Running::start(self::command(&[]));
    let (gofer, sentry) = (running.gofer(), running.sentry());
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    gone(gofer);
    gone(sentry);
}

#[test]
fn namespaces_are_its_own_and_its_root_is_empty() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("only root sees into the sentry");
        return;
    }
    let running = Running::start(command(&[]));
    let sentry = running.sentry();
    let stubs = stubs_of(sentry);
    for pid in stubs.iter().copied().chain([sentry]) {
        for name in ["pid", "mnt", "net", "ipc", "uts", "cgroup"] {
            let of = |process: &Path| fs::read_link(process.join("ns").join(name)).unwrap();
            assert_ne!(of(&process(pid)), of(Path::new("/proc/self")), "{name} of {pid}");
        }
        assert_eq!(fs::read_dir(process(pid).join("root/.")).unwrap().count(), 0, "root of {pid}");
        assert_eq!(fs::read_dir(process(pid).join("cwd/.")).unwrap().count(), 0, "folder of {pid}");
        let mounts = fs::read_to_string(process(pid).join("mounts")).unwrap();
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        assert!(mounts.starts_with("empty / tmpfs ro,nosuid,nodev,noexec"), "{mounts}");
    }
    // In its namespace of processes it is the first, and nobody of outside is in it.
    assert_eq!(status(&process(sentry))["NSpid"].split_whitespace().last(), Some("1"));
}

#[test]
fn descriptors_are_those_that_it_needs() {
    let inherited = fs::File::open("/etc/hostname").or_else(|_| fs::File::open("/etc/passwd")).unwrap();
    let number = inherited.as_raw_fd();
    let kept = nix::fcntl::fcntl(&inherited, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()));
    kept.unwrap();
    let root = tempfile::tempdir().unwrap();
    let link = |pid: u32, fd: &str| fs::read_link(process(pid).join("fd").join(fd));
    let running = Running::start(command(&[]));
    drop(root);
    let (outer, sentry) = (running.0.id(), running.sentry());
    let path = fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
    assert_eq!(link(outer, &number.to_string()).unwrap(), path, "the test gives it away");
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut streams = 0;
    for entry in fs::read_dir(process(sentry).join("fd")).unwrap() {
        let entry = entry.unwrap();
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let name = target.to_string_lossy().into_owned();
        let info =
            fs::read_to_string(process(sentry).join("fdinfo").join(entry.file_name())).unwrap_or_default();
        // With O_PATH (010000000) it is a place in the root and cannot be read; files that are open to be read are programs and libraries.
        let made = ["socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/null"];
        streams += u32::from(name.starts_with("pipe:") || name == "/dev/null");
        let writable = info.lines().any(|line| {
            line.strip_prefix("flags:")
                .is_some_and(|flags| u32::from_str_radix(flags.trim(), 8).unwrap() & 3 != 0)
        });
        let known = made.iter().any(|start| name.starts_with(start)) || !writable;
        assert!(known && !target.ends_with(path.strip_prefix("/").unwrap()), "{entry:?}: {name} {info}");
    }
    assert!(streams >= 3, "{streams}");
    let fixed = |fd| link(sentry, fd).unwrap();
    assert_eq!((fixed("3"), fixed("4")), (PathBuf::from("/"), PathBuf::from("/")), "trees of their own");
}

#[test]
fn signals_end_the_command_and_the_sentry_with_it() {
    let mut running = Running::start(command(&[]));
    let sentry = running.sentry();
    let pid = nix::unistd::Pid::from_raw(running.0.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    running.0.wait().unwrap();
    let gone = || !process(sentry).exists() || status(&process(sentry))["State"].starts_with('Z');
    let begin = std::time::Instant::now();
    while !gone() {
        assert!(begin.elapsed().as_secs() < 10, "the sentry outlives the command");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn no_mount_is_left_behind() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    assert!(output(&[], &["/bin/true"]).status.success());
    drop(Running::start(command(&[])));
    assert_eq!(mounts(), before);
}

#[test]
fn without_a_defence_it_is_said() {
    let output = output(&["--no-defence"], &["/bin/true"]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("the defence is off"), "{output:?}");
}

/// What the host says of the machine and of stubs still arrives.
#[test]
fn the_guest_sees_the_machine() {
    let script = "grep -c ^processor /proc/cpuinfo; awk '/MemTotal/ {print ($2 > 1000)}' /proc/meminfo; \
                  awk '{print ($2 > 10)}' /proc/self/statm; mkdir /tmp/s && mount -t sysfs none /tmp/s && \
                  cat /tmp/s/devices/system/cpu/online /sys/devices/system/cpu/cpu0/topology/core_id";
    let output = output(&[], &["/bin/bash", "-c", script]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<_> = text.lines().collect();
    assert!(output.status.success() && lines.len() == 5, "{output:?}");
    assert_eq!((lines[1], lines[2]), ("1", "1"), "{output:?}");
}

/// The page of the documentation is that of the table, and the table is short.
#[test]
fn the_documentation_lists_the_host_calls() {
    const MOST: usize = 60;
    let table = Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry")).arg("host-calls").output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    let count = table.lines().filter(|line| line.starts_with("| `")).count();
    for platform in Kind::ALL {
        assert!(kata_cc_sentry::defence::count(platform) <= MOST, "{platform}");
    }
    assert!(count >= kata_cc_sentry::defence::count(Kind::Systrap), "{count}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sentry.md");
    let page = fs::read_to_string(page).unwrap();
    assert!(
        page.contains(&table),
        "docs/sentry.md has not what `kata-cc-sentry host-calls` prints: write it anew"
    );
    let tables = Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry")).arg("gofer-calls").output().unwrap();
    let tables = String::from_utf8(tables.stdout).unwrap();
    for table in tables.split("\n\n") {
        assert!(
            table.contains("| call |") && page.contains(table),
            "docs/sentry.md has not what `kata-cc-sentry gofer-calls` prints: write it anew"
        );
    }
    assert!(page.contains(&format!("{count} calls")), "docs/sentry.md does not say {count} calls");
}
