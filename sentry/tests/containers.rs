//! Several containers of one sandbox, with programs of this machine.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kata_cc_sentry::container::{Container, ContainerConfig, Process, Source, Space};
use kata_cc_sentry::gofer::{self, Client};
use kata_cc_sentry::platform::systrap::Systrap;
use kata_cc_sentry::sandbox::{DEFAULT_PATH, Sandbox};
use kata_cc_sentry::task::{Limits, Task};
use kata_cc_sentry::vfs::host::{HostFs, Sharing};
use kata_cc_sentry::vfs::overlay::Overlay;
use kata_cc_sentry::vfs::{Dentry, FileSystem, MountFlags};

fn root() -> Arc<Dentry> {
    let folder = File::open("/").unwrap().into();
    let client = Client::connect(gofer::within(folder, false).unwrap()).unwrap();
    let host = HostFs::new(client, 0, false, Sharing::Exclusive).unwrap();
    Overlay::in_memory(vec![host.root()], None).unwrap()
}

fn container(sandbox: &Sandbox, name: &str, config: ContainerConfig) -> Arc<Container> {
    let config = ContainerConfig { hostname: Some(name.to_owned()), ..config };
    let container = sandbox.container(root(), &config).unwrap();
    container.mount("/proc", Source::Proc, MountFlags::empty()).unwrap();
    container.mount("/dev", Source::Devices, MountFlags::empty()).unwrap();
    container.mount("/tmp", Source::Tmpfs { size: None, mode: 0o1777 }, MountFlags::empty()).unwrap();
    container
}

fn process(script: &str) -> Process {
    Process {
        arguments: ["sh", "-c", script].map(str::to_owned).to_vec(),
        environment: vec![format!("PATH={DEFAULT_PATH}")],
        folder: "/".to_owned(),
        user: (0, 0),
        groups: Vec::new(),
        capabilities: None,
        limits: Limits::default(),
        no_new_privileges: false,
        umask: 0o022,
        oom_score_adjustment: 0,
    }
}

/// A process with what it writes.
struct Running {
    task: Arc<Task>,
    output: File,
}

impl Running {
    fn start(container: &Container, script: &str) -> Self {
        let (output, input) = std::io::pipe().unwrap();
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let streams = [null(), OwnedFd::from(input.try_clone().unwrap()), OwnedFd::from(input)];
        let task = container.start(&process(script), streams).unwrap();
        Self { task, output: OwnedFd::from(output).into() }
    }

    /// The next line.
    fn line(&mut self) -> String {
        let mut line = String::new();
        let mut byte = [0];
        while self.output.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(char::from(byte[0]));
        }
        line
    }

    fn end(&self) -> i32 {
        let limit = Instant::now() + Duration::from_secs(60);
        self.task.group().wait_exited(Some(limit)).unwrap()
    }
}

fn exec(container: &Container, script: &str) -> String {
    let mut running = Running::start(container, script);
    let line = running.line();
    running.end();
    line
}

#[test]
fn containers_have_processes_names_and_mounts_of_their_own() {
    let sandbox = Sandbox::empty(Box::new(Systrap::new().unwrap()), "pod");
    let one = container(&sandbox, "one", ContainerConfig::default());
    let other = container(&sandbox, "other", ContainerConfig::default());
    assert_eq!(exec(&other, "exit 3"), "", "its init may be short");
    let other = container(&sandbox, "other", ContainerConfig::default());
    let begin = "echo $$ $(uname -n) $(readlink /proc/self); while :; do sleep 1; done";
    let mut first = Running::start(&one, begin);
    let mut second = Running::start(&other, begin);
    let line = first.line();
    assert!(line.starts_with("1 one "), "{line}");
    assert!(second.line().starts_with("1 other "));
    assert_eq!(exec(&one, "echo x > /only-one; echo $(cd /proc; ls -d [0-9]* | head -1) $PPID"), "1 0");
    assert_eq!(exec(&other, "ls /only-one 2>/dev/null; kill -0 1 && echo there"), "there");
    assert_eq!(exec(&one, "cat /only-one"), "x");
    let init = one.init().unwrap();
    assert!(one.processes().iter().any(|(number, group)| *number == 1 && Arc::ptr_eq(group, &init)));
    other.set_hostname("renamed");
    assert_eq!(exec(&other, "uname -n"), "renamed");
    assert_eq!(exec(&one, "uname -n"), "one");

    let mut beside = Running::start(&one, "echo ready; exec sleep 100");
    beside.line();
    one.kill_all(libc::SIGKILL);
    assert_eq!((first.end(), beside.end()), (libc::SIGKILL, libc::SIGKILL));
    assert!(one.processes().is_empty());
    assert!(second.task.group().exit_status().is_none());
    other.init().unwrap().send_from_outside(libc::SIGKILL).unwrap();
    assert_eq!(second.end(), libc::SIGKILL);
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    assert!(one.start(&process("true"), [null(), null(), null()]).is_err(), "its init has ended");
}

#[test]
fn all_end_with_the_first_process() {
    let sandbox = Sandbox::empty(Box::new(Systrap::new().unwrap()), "pod");
    let container = container(&sandbox, "one", ContainerConfig::default());
    let mut init =
        Running::start(&container, "mkfifo /tmp/go; (setsid sleep 100 &); echo up; read line < /tmp/go");
    init.line();
    let mut beside = Running::start(&container, "echo ready; exec sleep 100");
    beside.line();
    container.init().unwrap().send_from_outside(libc::SIGKILL).unwrap();
    init.end();
    assert_eq!(beside.task.group().exit_status(), Some(libc::SIGKILL), "before its init");
    assert!(container.processes().is_empty());
}

#[test]
fn containers_of_a_pod_share_what_they_are_told_to() {
    let sandbox = Sandbox::empty(Box::new(Systrap::new().unwrap()), "pod");
    let shared = ContainerConfig {
        hostname: None,
        processes: Space::Sandbox,
        names: Space::Sandbox,
        ipc: Space::Sandbox,
        network: Space::Sandbox,
    };
    let one = container(&sandbox, "ignored", shared.clone());
    let other = container(&sandbox, "ignored", shared);
    let mut first = Running::start(&one, "echo $$; while :; do sleep 1; done");
    let number = first.line();
    assert_eq!(exec(&other, &format!("uname -n; kill -0 {number} && exit 0")), "pod");
    assert_eq!(exec(&other, &format!("kill -0 {number} && echo seen")), "seen");
    one.kill_all(libc::SIGKILL);
    assert_eq!(first.end(), libc::SIGKILL);
}
