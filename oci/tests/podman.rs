//! A real Podman that is given this runtime: run, exec, logs, kill, inspect, remove. Everything is in folders of the test's own, and no network is made.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;

use support::podman::Podman;
use support::{RUNTIME, eventually};

#[test]
fn podman_runs_containers() {
    let Some(podman) = Podman::new("cgroupfs") else { return };
    let ran =
        podman.container(&["--rm", "--env", "A=b"], &["sh", "-c", "echo $A; cat /proc/version; exit 6"]);
    assert_eq!(ran.code, 6, "{ran:?}");
    let host = std::fs::read_to_string("/proc/version").unwrap();
    assert!(ran.out.starts_with("b\n") && !ran.out.contains(host.trim()), "{ran:?}");
    let missing = podman.container(&["--rm"], &["nothing-like-this"]);
    assert_eq!(missing.code, 127, "{missing:?}");

    podman.container(&["--detach", "--name", "long"], &["sh", "-c", "echo begun; exec sleep 1000"]).ok();
    eventually("its output", || podman.run(&["logs", "long"]).out == "begun\n");
    let exec = podman.run(&["exec", "--env", "X=y", "long", "sh", "-c", "echo $X; exit 4"]);
    assert_eq!((exec.code, exec.out.as_str()), (4, "y\n"), "{exec:?}");
    let state =
        podman.run(&["inspect", "--format", "{{.State.Status}} {{.OCIRuntime}} {{.State.Pid}}", "long"]).ok();
    let fields: Vec<&str> = state.split_whitespace().collect();
    assert_eq!((fields[0], fields[1]), ("running", RUNTIME));
    assert!(Path::new(&format!("/proc/{}", fields[2])).exists(), "{state}");
    podman.run(&["kill", "--signal", "KILL", "long"]).ok();
    eventually("its end", || {
        podman.run(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "long"]).out.trim()
            == "exited 137"
    });
    podman.run(&["rm", "long"]).ok();
    assert_eq!(podman.run(&["ps", "--all", "--quiet"]).ok(), "");
    podman.world.nothing_left();
}
