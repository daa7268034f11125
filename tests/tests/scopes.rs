//! The monitor of a virtual machine in a scope that systemd makes, as containerd names it where the kubelet has the systemd driver.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kata_cc_test_systemd::{Layout, within};
use kata_cc_tests::containerd::{Containerd, IMAGE, VM};
use kata_cc_tests::machines_run_here;

const UNIT: &str = "kct-scoped.scope";
const SLICE: &str = "kata-pod.slice";

fn property(name: &str) -> String {
    let output =
        Command::new("systemctl").args(["show", "--property", name, "--value", UNIT]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what} did not come");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_monitor_is_in_a_scope_of_systemds() {
    if !machines_run_here() {
        return;
    }
    within(Layout::V2, "a_monitor_is_in_a_scope_of_systemds", || {
        let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
        if !controllers.contains("memory") {
            println!("skipped: this machine's controllers are in control groups of version 1");
            return;
        }
        let containerd = Containerd::start("agent_timeout_s = 900\n").unwrap();
        let group = format!("{SLICE}:kct:scoped");
        let line = ["run", "--detach", "--runtime", VM, "--memory-limit", "67108864", "--cgroup", &group];
        let started = containerd.ctr(&[&line[..], &[IMAGE, "scoped", "sleep", "100000"]].concat());
        assert!(started.is_ok_and(|started| started.code == 0), "{}", containerd.log());
        assert_eq!((property("ActiveState"), property("Slice")), ("active".into(), SLICE.into()));
        let folder = Path::new("/sys/fs/cgroup/kata.slice").join(SLICE).join(UNIT);
        let inside = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        let list = containerd.ctr(&["task", "list"]).unwrap().stdout;
        let monitor = list.lines().find(|line| line.starts_with("scoped")).unwrap();
        let monitor = monitor.split_whitespace().nth(1).unwrap();
        assert_eq!(inside.lines().collect::<Vec<_>>(), [monitor], "the monitor alone");

        let limit = || std::fs::read_to_string(folder.join("memory.max")).unwrap().trim().to_owned();
        let before = limit();
        assert!(before.parse::<u64>().is_ok_and(|limit| limit < 1 << 30), "{before}");
        assert_eq!(property("MemoryMax"), before);
        assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
        assert_eq!(limit(), before, "after systemd has read its units again");

        containerd.remove("scoped").unwrap();
        eventually("the end of the scope", || property("LoadState") == "not-found");
        assert!(!folder.exists());
    });
}
