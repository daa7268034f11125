//! A real containerd runs real containers in real microVMs, through `ctr`.
//!
//! One containerd serves all tests of this program, which `./x test` runs where virtual machines can.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write;
use std::process::Stdio;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use kata_cc_tests::containerd::{Containerd, IMAGE, Programs, VM, nothing_left};
use kata_cc_tests::machines_run_here;
use kata_cc_tests::traces::Traces;

/// Limits of one container: small, so that many fit into the lab's memory.
const SMALL: [&str; 2] = ["--memory-limit", "67108864"];

/// One containerd for all tests that run at the same time; the last one ends it.
fn containerd() -> Option<Arc<Containerd>> {
    static SHARED: OnceLock<Mutex<Weak<Containerd>>> = OnceLock::new();
    if !machines_run_here() {
        return None;
    }
    let mut shared = SHARED.get_or_init(Mutex::default).lock().unwrap();
    if let Some(running) = shared.upgrade() {
        return Some(running);
    }
    let started = Arc::new(Containerd::start("agent_timeout_s = 900\n").expect("containerd starts"));
    *shared = Arc::downgrade(&started);
    Some(started)
}

/// Wait for something that must come; says what did not.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what} did not come");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// The task's process is the VMM.
fn vmm_pid(containerd: &Containerd, id: &str) -> u32 {
    let listed = containerd.ctr(&["task", "list"]).unwrap().ok().unwrap();
    let line =
        listed.stdout.lines().find(|line| line.split_whitespace().next() == Some(id)).unwrap().to_owned();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The monitor is in the control group that containerd names, and limited there.
fn charged_to_the_pod(containerd: &Containerd, id: &str) {
    let group = std::fs::read_to_string(format!("/proc/{}/cgroup", vmm_pid(containerd, id))).unwrap();
    let path = group.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    assert!(path.ends_with(&format!("/default/{id}")), "{group}");
    let limit = std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).unwrap();
    assert!(limit.trim().parse::<u64>().is_ok_and(|limit| limit < 1 << 30), "{limit}");
}

#[test]
fn output_and_exit_codes_come_back() {
    let Some(containerd) = containerd() else { return };
    let before = Traces::take(containerd.folder());
    let script = "echo out; echo err >&2; uname -r; exit 7";
    let ran = containerd.run(VM, "codes", &SMALL, &["sh", "-c", script]).unwrap();
    assert_eq!(ran.code, 7, "{}\n{}", ran.text(), containerd.log());
    assert!(ran.stdout.starts_with("out\n"), "{}", ran.text());
    assert!(ran.stderr.contains("err"), "{}", ran.text());
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(!ran.stdout.contains(host.trim()), "it ran on the host's kernel: {}", ran.stdout);
    nothing_left(&containerd, &before);
}

#[test]
fn stdin_is_piped_to_its_end() {
    let Some(containerd) = containerd() else { return };
    let mut command =
        containerd.command(&["run", "--rm", "--runtime", VM, SMALL[0], SMALL[1], IMAGE, "piped", "wc", "-c"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let bytes = vec![b'x'; 300_000];
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.trim(), "300000", "{}\n{}", String::from_utf8_lossy(&output.stderr), containerd.log());
}

#[test]
fn exec_kill_stats_pause_and_resume() {
    let Some(containerd) = containerd() else { return };
    let before = Traces::take(containerd.folder());
    containerd.detach(VM, "long", &["sleep", "100000"]).unwrap();
    let exec = containerd
        .ctr(&["task", "exec", "--exec-id", "e1", "long", "sh", "-c", "echo in exec; exit 5"])
        .unwrap();
    assert_eq!((exec.code, exec.stdout.as_str()), (5, "in exec\n"), "{}\n{}", exec.text(), containerd.log());
    // What every container gets, even without a profile of its own: the guard before the sandbox's channels.
    let guarded =
        ["task", "exec", "--exec-id", "e2", "long", "grep", "-c", "^Seccomp:.2$", "/proc/self/status"];
    assert_eq!(containerd.ctr(&guarded).unwrap().stdout.trim(), "1", "{}", containerd.log());
    charged_to_the_pod(&containerd, "long");
    let metrics = containerd.ctr(&["task", "metrics", "long"]).unwrap().ok().unwrap();
    assert!(metrics.stdout.contains("memory"), "{}", metrics.text());
    containerd.ctr(&["task", "pause", "long"]).unwrap().ok().unwrap();
    assert_eq!(containerd.status("long").unwrap().as_deref(), Some("PAUSED"));
    containerd.ctr(&["task", "resume", "long"]).unwrap().ok().unwrap();
    assert_eq!(containerd.status("long").unwrap().as_deref(), Some("RUNNING"));
    containerd.ctr(&["task", "kill", "--all", "--signal", "SIGKILL", "long"]).unwrap().ok().unwrap();
    eventually("the end", || containerd.status("long").unwrap().as_deref() == Some("STOPPED"));
    let deleted = containerd.ctr(&["task", "delete", "long"]).unwrap();
    assert!(deleted.code == 137 || deleted.text().contains("137"), "{}", deleted.text());
    containerd.remove("long").unwrap();
    nothing_left(&containerd, &before);
}

#[test]
fn a_terminal_is_one() {
    let Some(containerd) = containerd() else { return };
    // `script` gives ctr the terminal that it wants
    let socket = containerd.folder().join("c.sock");
    let line = format!(
        "ctr --address {} run --rm --tty --runtime {VM} --memory-limit 67108864 {IMAGE} term sh -c 'tty && stty size'",
        socket.display()
    );
    let mut command = std::process::Command::new("script");
    command.args(["-qec", &line, "/dev/null"]);
    let ran = kata_cc_tests::process::run(&mut command, 240).unwrap();
    assert!(ran.stdout.contains("/dev/"), "{}\n{}", ran.text(), containerd.log());
    assert!(!ran.stdout.contains("not a tty"), "{}", ran.text());
}

#[test]
fn running_out_of_memory_is_reported_as_such() {
    let Some(containerd) = containerd() else { return };
    let mut events = containerd.command(&["events"]);
    let mut events = events.stdout(Stdio::piped()).spawn().unwrap();
    let ran = containerd.run(VM, "hungry", &SMALL, &["sh", "-c", "tail /dev/zero"]).unwrap();
    events.kill().unwrap();
    let seen = String::from_utf8_lossy(&events.wait_with_output().unwrap().stdout).into_owned();
    assert_eq!(ran.code, 137, "{}\n{}", ran.text(), containerd.log());
    assert!(seen.contains("/tasks/oom"), "{seen}");
}

#[test]
fn many_at_once() {
    let Some(containerd) = containerd() else { return };
    let before = Traces::take(containerd.folder());
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
    let available: usize = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse().ok())
        .unwrap();
    // each: 64 MiB for the container, and the guest's kernel and agent
    let count = (available / 1024 / 320).clamp(2, 20);
    println!("{count} containers at once ({} MiB available)", available / 1024);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..count)
            .map(|n| {
                let containerd = &containerd;
                scope.spawn(move || {
                    containerd.run(VM, &format!("many{n}"), &SMALL, &["sh", "-c", &format!("exit {n}")])
                })
            })
            .collect();
        for (n, run) in runs.into_iter().enumerate() {
            let ran = run.join().unwrap().unwrap();
            assert_eq!(usize::try_from(ran.code).unwrap(), n, "{}", ran.text());
        }
    });
    nothing_left(&containerd, &before);
}

#[test]
fn killed_monitors_and_servers_leave_nothing() {
    let Some(containerd) = containerd() else { return };
    let before = Traces::take(containerd.folder());
    for (id, victim) in [("victim-vmm", "vmm"), ("victim-shim", "shim")] {
        containerd.detach(VM, id, &["sleep", "100000"]).unwrap();
        kill(if victim == "vmm" { vmm_pid(&containerd, id) } else { containerd.shim_pid(id).unwrap() });
        eventually("the end", || !matches!(containerd.status(id).unwrap().as_deref(), Some("RUNNING")));
        containerd.remove(id).unwrap();
        nothing_left(&containerd, &before);
    }
}

/// The stages of a plain start (`docs/design.md`): each one is waited for, then the victim is killed.
const STAGES: [&str; 4] = ["created", "vmm-started", "agent-ready", "container-started"];

#[test]
fn a_kill_at_each_stage_of_a_start_leaves_nothing_and_hangs_nobody() {
    let Some(containerd) = containerd() else { return };
    let before = Traces::take(containerd.folder());
    for victim in ["containerd-shim-kata-cc", "kata-cc-vmm"] {
        for stage in STAGES.into_iter().filter(|stage| *stage != "created" || victim != "kata-cc-vmm") {
            let id = format!("at-{stage}-{}", &victim[..4]);
            let mut command = containerd.command(&[
                "run",
                "--rm",
                "--runtime",
                VM,
                SMALL[0],
                SMALL[1],
                IMAGE,
                &id,
                "sleep",
                "1000",
            ]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            eventually(stage, || containerd.stages(&id).iter().any(|seen| seen == stage));
            let found = Traces::take(containerd.folder()).new_since(&before);
            let pid = found
                .iter()
                .filter_map(|trace| trace.strip_prefix("process "))
                .find(|process| process.split(' ').nth(1).is_some_and(|program| program.contains(victim)))
                .and_then(|process| process.split(' ').next()?.parse().ok())
                .unwrap_or_else(|| panic!("no {victim} at {stage}: {found:?}"));
            kill(pid);
            println!("killed {victim} at {stage}");
            eventually("ctr's end", || child.try_wait().unwrap().is_some());
            containerd.remove(&id).unwrap();
            nothing_left(&containerd, &before);
        }
    }
}

/// Other releases of containerd speak other versions of the protocol: the same short round with each.
#[test]
fn other_releases_of_containerd_run_the_same() {
    if !machines_run_here() {
        return;
    }
    let releases = Programs::other_releases();
    if releases.is_empty() {
        println!("skipped: no other release of containerd is there (tests/lab/fetch-programs)");
    }
    for (name, programs) in releases {
        let containerd = Containerd::start_release("agent_timeout_s = 900\n", programs).unwrap();
        let version = containerd.ctr(&["version"]).unwrap().ok().unwrap();
        println!("{name}: {}", version.stdout.split_whitespace().collect::<Vec<_>>().join(" "));
        let before = Traces::take(containerd.folder());
        let ran = containerd.run(VM, "codes", &SMALL, &["sh", "-c", "echo out; exit 7"]).unwrap();
        assert_eq!((ran.code, ran.stdout.as_str()), (7, "out\n"), "{}\n{}", ran.text(), containerd.log());
        containerd.detach(VM, "long", &["sleep", "100000"]).unwrap();
        let exec =
            containerd.ctr(&["task", "exec", "--exec-id", "e1", "long", "sh", "-c", "echo in; exit 5"]);
        let exec = exec.unwrap();
        assert_eq!((exec.code, exec.stdout.as_str()), (5, "in\n"), "{}\n{}", exec.text(), containerd.log());
        let metrics = containerd.ctr(&["task", "metrics", "long"]).unwrap().ok().unwrap();
        assert!(metrics.stdout.contains("memory"), "{}", metrics.text());
        containerd.remove("long").unwrap();
        nothing_left(&containerd, &before);
    }
}

#[test]
fn a_confidential_class_without_confidential_hardware_is_refused_and_says_why() {
    let Some(containerd) = containerd() else { return };
    let before = Traces::take(containerd.folder());
    let ran = containerd.run(kata_cc_tests::containerd::CONFIDENTIAL, "refused", &[], &["true"]).unwrap();
    assert_ne!(ran.code, 0);
    assert!(ran.text().contains("SNP") || ran.text().contains("snp"), "{}", ran.text());
    nothing_left(&containerd, &before);
}
