//! The systemd driver with a real systemd (`kata-cc-test-systemd`): scopes, their limits, who is in them, and that nothing is left. runc is asked for the same.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use kata_cc_test_systemd::{Layout, within};
use serde_json::{Value, json};
use support::podman::Podman;
use support::{Done, RUNTIME, World, eventually, finish};

const RUNC: &str = "runc";
/// Slice of the tests' scopes: it lies in `kata.slice`.
const SLICE: &str = "kata-pod.slice";
/// What runs in containers.
const SLEEPER: &str = "trap 'exit 0' TERM; sleep 100000 & wait";

fn systemctl(words: &[&str]) -> Done {
    finish(Command::new("systemctl").args(words).stdin(std::process::Stdio::null()))
}

/// A property of a unit.
fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--property", name, "--value", unit]).ok().trim().to_owned()
}

fn state(unit: &str) -> String {
    property(unit, "ActiveState")
}

/// Where the processes of a unit are, in a controller's tree.
fn folder(unit: &str, controller: &str) -> PathBuf {
    let top = Path::new("/sys/fs/cgroup");
    let tree = if unified() { top.to_owned() } else { top.join(controller) };
    let group = property(unit, "ControlGroup");
    assert!(group.ends_with(&format!("/{unit}")), "{unit}: {group:?}");
    tree.join(group.trim_start_matches('/'))
}

fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Whether containers can be limited here: a tree of version 2 has no controllers where they are in trees of version 1.
fn limited() -> bool {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    !unified() || controllers.split_whitespace().any(|name| name == "memory")
}

fn read(folder: &Path, file: &str) -> String {
    let path = folder.join(file);
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

fn bundle(world: &World, name: &str, resources: Value) -> PathBuf {
    world.bundle_with(name, SLEEPER, |spec| {
        spec["linux"]["cgroupsPath"] = json!(format!("{SLICE}:kcc:{name}"));
        if limited() {
            spec["linux"]["resources"] = resources;
        }
    })
}

/// Runs a line with the systemd driver.
fn run(world: &World, program: &str, line: &str) -> Done {
    finish(&mut world.command_of(program, &format!("--systemd-cgroup {line}")))
}

/// A container that runs; its process.
fn start(world: &World, program: &str, id: &str, bundle: &Path) -> i32 {
    let pid = world.path(&format!("{id}.pid"));
    let log = std::fs::File::create(world.path(&format!("{id}.out"))).unwrap();
    let line =
        format!("--systemd-cgroup create --bundle {} --pid-file {} {id}", bundle.display(), pid.display());
    let mut command = world.command_of(program, &line);
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let status = command.status().unwrap();
    assert!(status.success(), "{program}: {}", world.output(id));
    run(world, program, &format!("start {id}")).ok();
    std::fs::read_to_string(pid).unwrap().trim().parse().unwrap()
}

fn gone(unit: &str) {
    eventually("the end of the scope", || state(unit) == "inactive");
    assert_eq!(property(unit, "LoadState"), "not-found", "{unit} stays");
}

/// No group of a unit is left, in any tree.
fn no_groups(unit: &str) {
    let found = Command::new("find").args(["/sys/fs/cgroup", "-name", unit]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

fn processes(unit: &str) -> Vec<i32> {
    let text = read(&folder(unit, "systemd"), "cgroup.procs");
    text.lines().map(|line| line.parse().unwrap()).collect()
}

fn a_scope_lives_as_its_container() {
    let Some(world) = World::new() else { return };
    let limits = json!({"memory": {"limit": 268_435_456}, "pids": {"limit": 100}, "cpu": {"shares": 512, "quota": 50_000, "period": 100_000}});
    let bundle = bundle(&world, "one", limits);
    let unit = "kcc-one.scope";
    let pid = start(&world, RUNTIME, "one", &bundle);
    assert_eq!((state(unit).as_str(), property(unit, "Slice").as_str()), ("active", SLICE));
    assert_eq!(property(unit, "ControlGroup"), format!("/kata.slice/{SLICE}/{unit}"));
    assert_eq!(property(unit, "Delegate"), "yes");
    assert!(processes(unit).contains(&pid), "{pid}: {:?}", processes(unit));
    let of_host: Vec<i32> = serde_json::from_str(&world.run("ps --format json one").ok()).unwrap();
    assert!(of_host.contains(&pid) && of_host.len() > 1, "{of_host:?}");
    for pid in of_host {
        // A stub that has ended meanwhile is nowhere.
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        // With version 2, trees of version 1 are the machine's.
        let all = if unified() {
            groups.lines().filter(|line| line.starts_with("0:")).collect()
        } else {
            groups.lines().filter(|line| !line.contains(":devices:")).collect::<Vec<_>>()
        };
        assert!(all.iter().all(|line| line.ends_with(&format!("/{unit}"))), "{pid}: {groups}");
    }
    // This program was in it for a moment.
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(!own.contains(unit), "{own}");
    if limited() {
        the_limits_are_systemds(&world, unit);
    }
    run(&world, RUNTIME, "kill one TERM").ok();
    eventually("the end of the container", || world.status("one") == "stopped");
    run(&world, RUNTIME, "delete one").ok();
    assert_eq!(property(unit, "LoadState"), "not-found", "when delete is done the scope is gone");
    no_groups(unit);
    world.nothing_left();
}

/// Files and what is in them: memory, processes, weight, quota.
fn files(unit: &str) -> [String; 4] {
    let of = |controller: &str, one: &str, two: &str| {
        read(&folder(unit, controller), if unified() { two } else { one })
    };
    [
        of("memory", "memory.limit_in_bytes", "memory.max"),
        of("pids", "pids.max", "pids.max"),
        of("cpu", "cpu.shares", "cpu.weight"),
        of("cpu", "cpu.cfs_quota_us", "cpu.max"),
    ]
}

fn properties(unit: &str) -> [String; 4] {
    let names = if unified() { ["MemoryMax", "CPUWeight"] } else { ["MemoryLimit", "CPUShares"] };
    [names[0], "TasksMax", names[1], "CPUQuotaPerSecUSec"].map(|name| property(unit, name))
}

fn the_limits_are_systemds(world: &World, unit: &str) {
    let weight = if unified() { "20" } else { "512" };
    let quota = |time: &str| if unified() { format!("{time} 100000") } else { time.to_owned() };
    let before = ["268435456", "464", weight, &quota("50000")].map(str::to_owned);
    assert_eq!(properties(unit), ["268435456", "464", weight, "500ms"]);
    assert_eq!(files(unit), before);
    // systemd writes what it knows.
    systemctl(&["daemon-reload"]).ok();
    assert_eq!(files(unit), before, "after systemd has read its units again");

    let line = "update --memory 134217728 --pids-limit 50 --cpu-share 2048 --cpu-quota 20000 --cpu-period 100000 one";
    run(world, RUNTIME, line).ok();
    let weight = if unified() { "79" } else { "2048" };
    let after = ["134217728", "264", weight, &quota("20000")].map(str::to_owned);
    assert_eq!(properties(unit), ["134217728", "264", weight, "200ms"]);
    assert_eq!(files(unit), after);
    systemctl(&["daemon-reload"]).ok();
    assert_eq!(files(unit), after);
    // What is not named stays.
    for (change, time, period, share) in
        [("--cpu-period 50000", 20_000, 50_000, "400ms"), ("--cpu-quota 10000", 10_000, 50_000, "200ms")]
    {
        run(world, RUNTIME, &format!("update {change} one")).ok();
        systemctl(&["daemon-reload"]).ok();
        let told = if unified() { format!("{time} {period}") } else { time.to_string() };
        assert_eq!(
            (files(unit)[3].as_str(), properties(unit)[3].as_str()),
            (told.as_str(), share),
            "{change}"
        );
    }
    run(world, RUNTIME, "update --cpuset-cpus 0 one").ok();
    assert_eq!(property(unit, "AllowedCPUs"), "0");
    assert_eq!(read(&folder(unit, "cpuset"), "cpuset.cpus"), "0");
    let bad = run(world, RUNTIME, "update --cpuset-cpus nonsense one");
    assert!(bad.code == 1 && bad.err.contains("cpuset.cpus"), "{bad:?}");
}

#[test]
fn scopes_with_version_1() {
    within(Layout::V1, "scopes_with_version_1", a_scope_lives_as_its_container);
}

#[test]
fn scopes_with_version_2() {
    within(Layout::V2, "scopes_with_version_2", a_scope_lives_as_its_container);
}

fn killing_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let unit = "kcc-killed.scope";
    for round in 0..3 {
        let bundle = bundle(&world, "killed", json!({}));
        let pid = start(&world, RUNTIME, "killed", &bundle);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        gone(unit);
        // In trees of version 1 some groups are not systemd's.
        if unified() {
            no_groups(unit);
        }
        // The name can be had again, also before the first is deleted from the list.
        if round == 1 {
            let again = start(&world, RUNTIME, "again", &bundle);
            assert!(processes(unit).contains(&again));
            run(&world, RUNTIME, "delete --force again").ok();
        }
        run(&world, RUNTIME, "delete killed").ok();
        no_groups(unit);
    }
    let running = start(&world, RUNTIME, "killed", &bundle(&world, "killed", json!({})));
    run(&world, RUNTIME, "delete --force killed").ok();
    assert!(!Path::new(&format!("/proc/{running}/exe")).exists());
    assert_eq!(property(unit, "LoadState"), "not-found");
    no_groups(unit);
    world.nothing_left();
}

#[test]
fn killing_with_version_1() {
    within(Layout::V1, "killing_with_version_1", killing_leaves_nothing);
}

#[test]
fn killing_with_version_2() {
    within(Layout::V2, "killing_with_version_2", killing_leaves_nothing);
}

/// `run` waits for its container, and is not taken along when its scope is taken away; the program that users call.
fn run_waits() {
    let Some(world) = World::new() else { return };
    let script = |name: &str| {
        world.bundle_with(name, "echo in $(cat /proc/sys/kernel/hostname); exit 5", |spec| {
            spec["linux"]["cgroupsPath"] = json!(format!("{SLICE}:kcc:{name}"));
        })
    };
    let ran = run(&world, RUNTIME, &format!("run --bundle {} r", script("r").display()));
    assert_eq!((ran.code, ran.out.as_str()), (5, "in box\n"), "{ran:?}");
    assert_eq!(property("kcc-r.scope", "LoadState"), "not-found");
    let program = Path::new(RUNTIME).with_file_name("kata-cc");
    if program.is_file() {
        let mut command = Command::new(&program);
        command.args(["--tier", "sentry", "--root"]).arg(world.root()).args([
            "--systemd-cgroup",
            "run",
            "--bundle",
        ]);
        let ran = finish(command.arg(script("k")).arg("k").stdin(std::process::Stdio::null()));
        assert_eq!((ran.code, ran.out.as_str()), (5, "in box\n"), "{ran:?}");
    } else {
        kata_cc_test_vectors::skip("binaries", &format!("{} is not built", program.display()));
    }
    no_groups("kcc-*.scope");
    world.nothing_left();
}

#[test]
fn run_with_version_1() {
    within(Layout::V1, "run_with_version_1", run_waits);
}

#[test]
fn run_with_version_2() {
    within(Layout::V2, "run_with_version_2", run_waits);
}

/// `systemctl stop` ends the container, as an administrator may do.
#[test]
fn systemd_may_stop_it() {
    within(Layout::V2, "systemd_may_stop_it", || {
        let Some(world) = World::new() else { return };
        start(&world, RUNTIME, "s", &bundle(&world, "s", json!({})));
        systemctl(&["stop", "kcc-s.scope"]).ok();
        eventually("the end of the container", || world.status("s") == "stopped");
        run(&world, RUNTIME, "delete s").ok();
        no_groups("kcc-s.scope");
        world.nothing_left();
    });
}

#[test]
fn refusals_leave_no_scope() {
    within(Layout::V2, "refusals_leave_no_scope", || {
        let Some(world) = World::new() else { return };
        let with = |name: &str, change: &dyn Fn(&mut Value)| {
            let bundle = world.bundle_with(name, "true", |spec| {
                spec["linux"]["cgroupsPath"] = json!(format!("{SLICE}:kcc:refused"));
                change(spec);
            });
            let done = run(&world, RUNTIME, &format!("create --bundle {} refused", bundle.display()));
            assert_eq!(done.code, 1, "{done:?}");
            assert_eq!(property("kcc-refused.scope", "LoadState"), "not-found", "{name}");
            no_groups("kcc-refused.scope");
            world.nothing_left();
            done.err
        };
        let told = with("path", &|spec| spec["linux"]["cgroupsPath"] = json!("/a/b"));
        assert!(told.contains("expected cgroupsPath to be of format"), "{told}");
        let told = with("slice", &|spec| spec["linux"]["cgroupsPath"] = json!("no slice:kcc:refused"));
        assert!(told.contains("systemd did not make kcc-refused.scope"), "{told}");
        let told = with("program", &|spec| spec["process"]["args"] = json!(["nothing-like-this"]));
        assert!(told.contains("executable file not found"), "{told}");
        let told =
            with("unknown", &|spec| spec["annotations"] = json!({"org.systemd.property.NoSuchThing": "5"}));
        assert!(told.contains("NoSuchThing"), "{told}");
        let told =
            with("bad", &|spec| spec["annotations"] = json!({"org.systemd.property.KillSignal": "bare"}));
        assert!(told.contains("is no property of a systemd unit"), "{told}");
        if limited() {
            let told =
                with("limit", &|spec| spec["linux"]["resources"] = json!({"cpu": {"cpus": "nonsense"}}));
            assert!(told.contains("cpuset.cpus"), "{told}");
        }
    });
}

#[test]
fn annotations_are_properties() {
    within(Layout::V2, "annotations_are_properties", || {
        let Some(world) = World::new() else { return };
        let bundle = world.bundle_with("a", SLEEPER, |spec| {
            spec["linux"]["cgroupsPath"] = json!(":kcc:a");
            spec["annotations"] = json!({"org.systemd.property.TimeoutStopSec": "uint32 7", "org.systemd.property.CollectMode": "'inactive-or-failed'"});
        });
        start(&world, RUNTIME, "a", &bundle);
        let unit = "kcc-a.scope";
        assert_eq!(property(unit, "Slice"), "system.slice");
        assert_eq!(
            (property(unit, "TimeoutStopUSec"), property(unit, "CollectMode")),
            ("7s".into(), "inactive-or-failed".into())
        );
        run(&world, RUNTIME, "delete --force a").ok();
        world.nothing_left();
    });
}

/// What of a unit's properties a container's resources decide.
const COMPARED: [&str; 16] = [
    "Slice",
    "Delegate",
    "DelegateControllers",
    "DefaultDependencies",
    "MemoryAccounting",
    "CPUAccounting",
    "TasksAccounting",
    "IOAccounting",
    "MemoryMax",
    "MemoryLow",
    "MemorySwapMax",
    "CPUWeight",
    "CPUShares",
    "CPUQuotaPerSecUSec",
    "CPUQuotaPeriodUSec",
    "AllowedCPUs",
];

/// Changes, one after another. A quota without its period is none of them: runc 1.1 tells systemd a share of the kernel's own period then.
const UPDATES: [&str; 3] = [
    "--memory 300000000 --memory-swap 400000000 --cpu-share 100",
    "--cpu-quota 20000 --cpu-period 40000",
    "--cpu-quota -1 --cpu-period 40000",
];

/// The same bundle by runc and by ours: the same properties, the same files.
fn runc_has_the_same() {
    let Some(world) = World::new() else { return };
    if Command::new(RUNC).arg("--version").output().is_err() {
        kata_cc_test_vectors::skip("binaries", "there is no runc to compare with: install runc");
        return;
    }
    let limits = json!({"memory": {"limit": 268_435_456, "swap": 402_653_184, "reservation": 134_217_728},
        "cpu": {"shares": 512, "quota": 33_333, "period": 50_000, "cpus": "0"}});
    let of = |program: &str, name: &str| {
        let unit = format!("kcc-{name}.scope");
        let bundle = bundle(&world, name, limits.clone());
        start(&world, program, name, &bundle);
        let look = |after: &str| {
            let told = systemctl(&["show", "--property", &COMPARED.join(","), &unit]).ok();
            let mut told: Vec<&str> = told.lines().collect();
            told.sort_unstable();
            // Our tasks are more than the container's.
            let written = if limited() { files(&unit).to_vec() } else { Vec::new() };
            let written = written.into_iter().enumerate().filter(|(index, _)| *index != 1);
            (after.to_owned(), told.join(" "), written.map(|(_, text)| text).collect::<Vec<_>>())
        };
        let mut seen = vec![look("create")];
        for update in UPDATES.iter().filter(|_| limited()) {
            run(&world, program, &format!("update {update} {name}")).ok();
            seen.push(look(update));
        }
        run(&world, program, &format!("delete --force {name}")).ok();
        gone(&unit);
        seen
    };
    for (ours, theirs) in of(RUNTIME, "ours").into_iter().zip(of(RUNC, "theirs")) {
        assert_eq!(ours, theirs);
    }
}

#[test]
fn runc_with_version_1() {
    within(Layout::V1, "runc_with_version_1", runc_has_the_same);
}

#[test]
fn runc_with_version_2() {
    within(Layout::V2, "runc_with_version_2", runc_has_the_same);
}

/// A user's own systemd, as a session has it; and the line that begins what is run as that user.
fn of_user(world: &World) -> String {
    const USER: &str = "4321";
    let append = |file: &str, line: &str| {
        let text = std::fs::read_to_string(file).unwrap();
        std::fs::write(file, text + line).unwrap();
    };
    append("/etc/passwd", "kata:x:4321:4321::/home/kata:/bin/sh\n");
    append("/etc/group", "kata:x:4321:\n");
    let line = format!(
        "set -e; install -d -m 755 /run/user /run/bin; install -d -o {USER} -g {USER} -m 700 /home/kata /run/user/{USER}
         systemd-run --quiet --unit=user@{USER}.service --slice=user-{USER}.slice --property=User=kata --property=Delegate=yes \
             --property=Type=notify --property=NotifyAccess=all --setenv=XDG_RUNTIME_DIR=/run/user/{USER} --setenv=HOME=/home/kata \
             /lib/systemd/systemd --user
         mount --bind {} /run/bin; chown -R {USER}:{USER} {}",
        Path::new(RUNTIME).parent().unwrap().display(),
        world.path("").display(),
    );
    finish(Command::new("sh").args(["-c", &line])).ok();
    format!(
        "setpriv --reuid {USER} --regid {USER} --clear-groups env HOME=/home/kata XDG_RUNTIME_DIR=/run/user/{USER}"
    )
}

/// A user without privileges, asking a systemd of their own: from within its groups, and from without, where the runtime cannot go back to.
#[test]
fn users_have_scopes_too() {
    within(Layout::V2, "users_have_scopes_too", || {
        let Some(world) = World::new() else { return };
        let bundle = world.bundle_with("u", "trap 'exit 3' TERM; echo begun; sleep 100000 & wait", |spec| {
            spec["linux"]["cgroupsPath"] = json!(":kcc:u");
            let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
            spec["linux"]["namespaces"] = json!(namespaces);
            if limited() {
                spec["linux"]["resources"] = json!({"memory": {"limit": 268_435_456}});
            }
        });
        let user = of_user(&world);
        let runtime = format!("/run/bin/kata-cc-runc --root {} --systemd-cgroup", world.root().display());
        for way in ["systemd-run --user --quiet --pipe --wait", ""] {
            let begun = std::time::Instant::now();
            let line = format!("{user} {way} {runtime} run --bundle {} u", bundle.display());
            let out = std::fs::File::create(world.path("out")).unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", &format!("exec {line}")]).stdin(std::process::Stdio::null());
            let mut child = command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
            let said = || std::fs::read_to_string(world.path("out")).unwrap();
            eventually("its output", || said().contains("begun") || child.try_wait().unwrap().is_some());
            let show = |name: &str| {
                let line = format!("{user} systemctl --user show --property {name} --value kcc-u.scope");
                finish(Command::new("sh").args(["-c", &line])).ok().trim().to_owned()
            };
            assert_eq!(show("ActiveState"), "active", "{}", said());
            let group = show("ControlGroup");
            assert_eq!(group, "/user.slice/user-4321.slice/user@4321.service/user.slice/kcc-u.scope");
            let folder = Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/'));
            assert!(read(&folder, "cgroup.procs").lines().count() > 1);
            if limited() {
                assert_eq!(
                    (show("MemoryMax").as_str(), read(&folder, "memory.max").as_str()),
                    ("268435456", "268435456")
                );
            }
            let line = format!("{user} {runtime} kill u TERM");
            finish(Command::new("sh").args(["-c", &line])).ok();
            assert_eq!(child.wait().unwrap().code(), Some(3), "{}", said());
            eventually("the end of the scope", || show("LoadState") == "not-found");
            assert!(
                limited() || begun.elapsed() < std::time::Duration::from_secs(8),
                "nobody waits for the runtime itself"
            );
            no_groups("kcc-u.scope");
        }
        world.nothing_left();
    });
}

/// Podman with systemd: its runtime is told `--systemd-cgroup`, and its limits.
fn podman_asks_systemd() {
    let Some(podman) = Podman::new("systemd") else { return };
    let limits: &[&str] = if limited() {
        &["--memory", "256m", "--cpus", "0.5", "--pids-limit", "100"]
    } else {
        &["--pids-limit", "0"]
    };
    let options = [&["--detach", "--name", "long"][..], limits].concat();
    podman.container(&options, &["sh", "-c", "echo begun; exec sleep 1000"]).ok();
    eventually("its output", || podman.run(&["logs", "long"]).out == "begun\n");
    let id = podman.run(&["inspect", "--format", "{{.Id}}", "long"]).ok();
    let unit = format!("libpod-{}.scope", id.trim());
    assert_eq!((state(&unit).as_str(), property(&unit, "Slice").as_str()), ("active", "machine.slice"));
    if limited() {
        assert_eq!(property(&unit, if unified() { "MemoryMax" } else { "MemoryLimit" }), "268435456");
        assert_eq!(
            (property(&unit, "CPUQuotaPerSecUSec"), property(&unit, "TasksMax")),
            ("500ms".into(), "464".into())
        );
    }
    assert_eq!(podman.run(&["exec", "long", "echo", "inside"]).ok(), "inside\n");
    podman.run(&["rm", "--force", "--time", "0", "long"]).ok();
    gone(&unit);
    no_groups(&unit);
    podman.world.nothing_left();
}

#[test]
fn podman_with_version_1() {
    within(Layout::V1, "podman_with_version_1", podman_asks_systemd);
}

#[test]
fn podman_with_version_2() {
    within(Layout::V2, "podman_with_version_2", podman_asks_systemd);
}
