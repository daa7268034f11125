//! A sandbox that is driven by the agent API, as a shim drives it: the real binary, over its sockets.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "serve/harness.rs"]
#[allow(dead_code, reason = "each file of tests uses a part")]
mod harness;

use harness::{Sandbox, code_of, context, mount, process, spec};
use kata_cc_agent_protocol::{agent as api, oci};

#[test]
fn a_container_is_made_runs_and_is_waited_for() {
    let sandbox = Sandbox::start(&[]);
    sandbox.create("one", &spec(&["/bin/sh", "-c", "echo out; echo err >&2; cat; exit 7"])).unwrap();
    sandbox.start_container("one").unwrap();
    sandbox.write("one", "", b"typed\n").unwrap();
    sandbox.close_input("one", "").unwrap();
    assert_eq!(sandbox.wait("one", "").unwrap(), 7);
    assert_eq!(sandbox.output("one", ""), "out\ntyped\n");
    assert_eq!(sandbox.errors("one", ""), "err\n");
    // It can be waited for again, until it is removed.
    assert_eq!(sandbox.wait("one", "one").unwrap(), 7);
    sandbox.remove("one").unwrap();
    assert_eq!(code_of(sandbox.wait("one", "")), ttrpc::Code::INVALID_ARGUMENT);
    assert_eq!(sandbox.end(), 0);
}

#[test]
fn processes_are_put_into_a_container() {
    let sandbox = Sandbox::start(&[]);
    sandbox.create("one", &spec(&["/bin/sleep", "1000"])).unwrap();
    sandbox.start_container("one").unwrap();
    let echo = process(&["/bin/sh", "-c", "echo $0 $HOME; exit 3"]);
    sandbox.exec("one", "e1", &echo).unwrap();
    assert_eq!(sandbox.wait("one", "e1").unwrap(), 3);
    assert_eq!(sandbox.output("one", "e1"), "/bin/sh /root\n");
    sandbox.exec("one", "e1", &echo).unwrap();
    assert_eq!(code_of(sandbox.exec("one", "e1", &echo)), ttrpc::Code::ALREADY_EXISTS);
    sandbox.exec("one", "e2", &process(&["/bin/sleep", "1000"])).unwrap();
    sandbox.signal("one", "e2", 15).unwrap();
    assert_eq!(sandbox.wait("one", "e2").unwrap(), 128 + 15);
    assert_eq!(code_of(sandbox.wait("one", "e3")), ttrpc::Code::NOT_FOUND);
    let missing = sandbox.exec("one", "e4", &process(&["no-such-program"])).unwrap_err().to_string();
    assert!(missing.contains("executable file not found in $PATH"), "{missing}");
    // The name of a process that never was is free.
    sandbox.exec("one", "e4", &process(&["/bin/true"])).unwrap();
    assert_eq!(sandbox.wait("one", "e4").unwrap(), 0);
    sandbox.signal("one", "", 9).unwrap();
    assert_eq!(sandbox.wait("one", "").unwrap(), 128 + 9);
    let late = sandbox.exec("one", "e5", &process(&["/bin/true"])).unwrap_err().to_string();
    assert!(late.contains("has ended"), "{late}");
}

#[test]
fn containers_have_files_of_their_own() {
    let sandbox = Sandbox::start(&[]);
    let mut first = spec(&["/bin/sleep", "1000"]);
    first.Process.as_mut().unwrap().User.mut_or_insert_default().UID = 12345;
    first.Process.as_mut().unwrap().Cwd = "/made/for/it".to_owned();
    sandbox.run("one", &first);
    let mut second = spec(&["/bin/sleep", "1000"]);
    second.Root.mut_or_insert_default().Readonly = true;
    sandbox.run("two", &second);
    let written = sandbox.run_in("one", "w", &["/bin/sh", "-c", "echo one > /etc/who; cat /etc/who; pwd"]);
    assert_eq!(written, (0, "one\n/\n".to_owned()));
    let (code, text) = sandbox.run_in("two", "r", &["/bin/sh", "-c", "cat /etc/who; echo two > /etc/who"]);
    assert!(code != 0 && text.contains("No such file") && text.contains("Read-only"), "{code} {text}");
    assert!(!std::path::Path::new("/etc/who").exists());
    // What is masked is empty, what is protected cannot be changed, and devices are there.
    let (_, text) = sandbox.run_in(
        "one",
        "m",
        &["/bin/sh", "-c", "cat /proc/keys /sys/firmware/* 2> /dev/null; echo x > /proc/sys/kernel/hostname"],
    );
    assert!(text.contains("Read-only") && text.lines().count() == 1, "{text}");
    let devices = "echo x > /dev/null; head -c 3 /dev/zero | wc -c; stat -c %A /dev/shm; ls -d /dev/pts/ptmx";
    assert_eq!(sandbox.run_in("one", "d", &["/bin/sh", "-c", devices]).1, "3\ndrwxrwxrwt\n/dev/pts/ptmx\n");
}

#[test]
fn a_process_is_who_its_specification_says() {
    let sandbox = Sandbox::start(&["--hostname", "pod"]);
    sandbox.run("one", &spec(&["/bin/sleep", "1000"]));
    let mut who = process(&[
        "/bin/sh",
        "-c",
        "id -u; id -g; id -G; umask; ulimit -n; grep -E 'CapBnd|NoNewPrivs' /proc/self/status; cat /proc/self/oom_score_adj; uname -n",
    ]);
    let user = who.User.mut_or_insert_default();
    (user.UID, user.GID, user.AdditionalGids) = (65534, 65533, vec![7, 8]);
    let mut limit = oci::POSIXRlimit::new();
    (limit.Type, limit.Soft, limit.Hard) = ("RLIMIT_NOFILE".to_owned(), 99, 100);
    who.Rlimits.push(limit);
    who.NoNewPrivileges = true;
    who.OOMScoreAdj = 7;
    sandbox.exec("one", "who", &who).unwrap();
    let text = sandbox.output("one", "who");
    let expected = "65534\n65533\n65533 7 8\n0022\n99\nCapBnd:\t00000000000000e3\nNoNewPrivs:\t1\n7\npod\n";
    assert_eq!(text, expected);
}

#[test]
fn folders_and_files_of_the_host_are_mounted() {
    let host = tempfile::tempdir().unwrap();
    std::fs::create_dir(host.path().join("folder")).unwrap();
    std::fs::write(host.path().join("folder/file"), "of the host\n").unwrap();
    std::fs::write(host.path().join("hosts"), "127.0.0.1 here\n").unwrap();
    let bind = |name: &str, at: &str, options: &str| {
        let mut mount = mount("bind", at, options);
        mount.source = host.path().join(name).to_str().unwrap().to_owned();
        mount
    };
    let sandbox = Sandbox::start(&[]);
    let mut given = spec(&[
        "/bin/sh",
        "-c",
        "cat /data/file /single; (echo x > /data/file || echo y > /single || echo refused) 2>/dev/null; \
         echo more >> /etc/hosts; cat /etc/hosts; echo new > /written/made",
    ]);
    given.Mounts.push(bind("folder", "/data", "rbind,ro"));
    given.Mounts.push(bind("folder/file", "/single", "bind,ro"));
    given.Mounts.push(bind("hosts", "/etc/hosts", "rbind,rprivate"));
    given.Mounts.push(bind("folder", "/written", "rbind"));
    sandbox.run("one", &given);
    let seen = sandbox.output("one", "");
    assert_eq!(seen, "of the host\nof the host\nrefused\n127.0.0.1 here\nmore\n");
    assert_eq!(sandbox.wait("one", "").unwrap(), 0, "{}", sandbox.errors("one", ""));
    let read = |name: &str| std::fs::read_to_string(host.path().join(name)).unwrap();
    assert_eq!((read("hosts"), read("folder/made")), ("127.0.0.1 here\nmore\n".into(), "new\n".into()));
    // `/dev/shm` of one source is one memory.
    let mut given = spec(&["/bin/sh", "-c", "echo shared > /dev/shm/x; sleep 1000"]);
    given.Mounts.push(bind("shm", "/dev/shm", "rbind"));
    sandbox.run("two", &given);
    let look = "until test -s /dev/shm/x; do sleep 0.01; done; cat /dev/shm/x";
    given.Process.as_mut().unwrap().Args[2] = look.to_owned();
    sandbox.run("three", &given);
    assert_eq!(sandbox.output("three", ""), "shared\n");
}

#[test]
fn a_root_is_changed_on_the_host_where_that_is_wanted() {
    let root = tempfile::tempdir().unwrap();
    for folder in ["proc", "dev", "sys", "tmp", "bin"] {
        std::fs::create_dir(root.path().join(folder)).unwrap();
    }
    let shell =
        ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| std::path::Path::new(path).exists());
    let Some(shell) = shell else {
        eprintln!("skipped: there is no static shell here");
        return;
    };
    std::fs::copy(shell, root.path().join("bin/sh")).unwrap();
    let sandbox = Sandbox::start(&[]);
    let mut given = spec(&["/bin/sh", "-c", "echo kept > /file"]);
    given.Root.mut_or_insert_default().Path = root.path().to_str().unwrap().to_owned();
    sandbox.run("one", &given);
    assert_eq!(sandbox.wait("one", "").unwrap(), 0, "{}", sandbox.errors("one", ""));
    assert!(!root.path().join("file").exists(), "changes stay in memory");
    given.Annotations.insert("dev.kata-cc.sentry.overlay".to_owned(), "none".to_owned());
    sandbox.run("two", &given);
    assert_eq!(sandbox.wait("two", "").unwrap(), 0, "{}", sandbox.errors("two", ""));
    assert_eq!(std::fs::read_to_string(root.path().join("file")).unwrap(), "kept\n");
}

#[test]
fn specifications_are_refused_by_the_name_of_the_field() {
    let sandbox = Sandbox::start(&[]);
    let refused = |change: &dyn Fn(&mut oci::Spec)| {
        let mut given = spec(&["/bin/true"]);
        change(&mut given);
        let error = sandbox.create("one", &given);
        let text = error.as_ref().unwrap_err().to_string();
        assert_eq!(code_of(error), ttrpc::Code::INVALID_ARGUMENT, "{text}");
        text
    };
    let hook = |spec: &mut oci::Spec| {
        let hook = oci::Hook { Path: "/bin/evil".to_owned(), ..Default::default() };
        spec.Hooks.mut_or_insert_default().CreateContainer.push(hook);
    };
    let device = |spec: &mut oci::Spec| {
        let device = oci::LinuxDevice {
            Path: "/dev/kvm".into(),
            Type: "c".into(),
            Major: 10,
            Minor: 232,
            ..Default::default()
        };
        spec.Linux.mut_or_insert_default().Devices.push(device);
    };
    let mapping = |spec: &mut oci::Spec| {
        let mapping = oci::LinuxIDMapping { HostID: 100_000, Size: 1, ..Default::default() };
        spec.Linux.mut_or_insert_default().UIDMappings.push(mapping);
    };
    let annotation = |name: &str, value: &str| {
        let pair = (format!("dev.kata-cc.sentry.{name}"), value.to_owned());
        move |spec: &mut oci::Spec| spec.Annotations.extend([pair.clone()])
    };
    for (named, text) in [
        ("hooks", refused(&hook)),
        ("/bin/evil", refused(&hook)),
        ("linux.devices /dev/kvm", refused(&device)),
        ("linux.uidMappings", refused(&mapping)),
        ("process.args", refused(&|spec| spec.Process.as_mut().unwrap().Args.clear())),
        ("process: is missing", refused(&|spec| spec.Process = None.into())),
        ("root.path", refused(&|spec| spec.Root.mut_or_insert_default().Path = "/no/such".into())),
        ("root.path", refused(&|spec| spec.Root.mut_or_insert_default().Path = "/etc/passwd".into())),
        ("mounts /x", refused(&|spec| spec.Mounts.push(mount("ext4", "/x", "")))),
        (
            "linux.sysctl",
            refused(&|spec| {
                spec.Linux.mut_or_insert_default().Sysctl.insert("kernel.magic".into(), "1".into());
            }),
        ),
        (
            "linux.intelRdt",
            refused(&|spec| {
                spec.Linux.mut_or_insert_default().IntelRdt.mut_or_insert_default();
            }),
        ),
        ("sentry.overlay", refused(&annotation("overlay", "disk"))),
        ("sentry.colour", refused(&annotation("colour", "red"))),
        ("sentry.umask", refused(&annotation("umask", "999"))),
        ("process.cwd", refused(&|spec| spec.Process.as_mut().unwrap().Cwd = "/etc/passwd/x".into())),
    ] {
        assert!(text.contains(named), "{named}: {text}");
    }
    assert_eq!(code_of(sandbox.create("a/b", &spec(&["/bin/true"]))), ttrpc::Code::INVALID_ARGUMENT);
    let missing = sandbox.create("one", &spec(&["/no/such/program"])).unwrap_err().to_string();
    assert!(missing.contains("no such file or directory"), "{missing}");
    let denied = sandbox.create("one", &spec(&["/etc/passwd"])).unwrap_err().to_string();
    assert!(denied.contains("permission denied"), "{denied}");
    // Nothing of all this is left: the name is free.
    sandbox.run("one", &spec(&["/bin/true"]));
    assert_eq!(sandbox.wait("one", "").unwrap(), 0);
    assert_eq!(code_of(sandbox.create("one", &spec(&["/bin/true"]))), ttrpc::Code::ALREADY_EXISTS);
}

#[test]
fn a_terminal_is_one() {
    let sandbox = Sandbox::start(&[]);
    let mut given = spec(&[
        "/bin/sh",
        "-c",
        "tty; stty size; trap 'echo caught' INT; trap 'stty size' WINCH; echo ready; \
                            while :; do read line && echo \"<$line>\" && test \"$line\" = end && exit 5; done",
    ]);
    let first = given.Process.as_mut().unwrap();
    first.Terminal = true;
    let size = first.ConsoleSize.mut_or_insert_default();
    (size.Height, size.Width) = (33, 77);
    sandbox.run("one", &given);
    let text = sandbox.read_until("one", "", "ready");
    assert!(text.contains("/dev/pts/0\r\n33 77\r\n"), "{text:?}");
    sandbox.write("one", "", b"hello\n").unwrap();
    sandbox.read_until("one", "", "<hello>");
    // Typed as it is shown, and an interrupt as a signal.
    sandbox.write("one", "", b"\x03").unwrap();
    sandbox.read_until("one", "", "caught");
    sandbox.resize("one", "", 40, 100).unwrap();
    sandbox.write("one", "", b"\n").unwrap();
    sandbox.read_until("one", "", "40 100");
    assert!(sandbox.read("one", "", true).unwrap().is_empty(), "a terminal has no errors of its own");
    let mut other = process(&["/bin/sh", "-c", "tty; ls -l /dev/console | cut -c 1"]);
    other.Terminal = true;
    sandbox.exec("one", "e", &other).unwrap();
    assert_eq!(sandbox.output("one", "e"), "/dev/pts/1\r\nc\r\n");
    sandbox.write("one", "", b"end\n").unwrap();
    assert_eq!(sandbox.wait("one", "").unwrap(), 5);
    let rest = sandbox.output("one", "");
    assert!(rest.contains("<end>"), "{rest:?}");
    sandbox.run("two", &spec(&["/bin/sleep", "1000"]));
    assert_eq!(code_of(sandbox.resize("two", "", 1, 1)), ttrpc::Code::UNAVAILABLE);
}

#[test]
fn a_container_is_held_counted_and_bounded() {
    let sandbox = Sandbox::start(&[]);
    // Guest code that makes no calls.
    let mut given = spec(&["/bin/sh", "-c", "echo begun; while :; do :; done"]);
    let resources = given.Linux.mut_or_insert_default().Resources.mut_or_insert_default();
    resources.Pids.mut_or_insert_default().Limit = 6;
    sandbox.run("one", &given);
    sandbox.read_until("one", "", "begun");
    let user = || sandbox.stats("one").cgroup_stats.unwrap().cpu_stats.cpu_usage.usage_in_usermode;
    let pause = || std::thread::sleep(std::time::Duration::from_millis(100));
    pause();
    let stats = sandbox.stats("one").cgroup_stats.unwrap();
    assert!(stats.cpu_stats.cpu_usage.total_usage > 0, "{stats:?}");
    assert!(stats.memory_stats.usage.usage > 100_000, "{stats:?}");
    assert_eq!((stats.pids_stats.current, stats.pids_stats.limit), (1, 6));
    sandbox.pause("one", true).unwrap();
    let before = user();
    pause();
    assert_eq!(user(), before, "guest code runs");
    // Who is held can be killed: a process beside it, which never runs.
    sandbox.exec("one", "held", &process(&["/bin/true"])).unwrap();
    sandbox.signal("one", "held", 9).unwrap();
    assert_eq!(sandbox.wait("one", "held").unwrap(), 137);
    sandbox.pause("one", false).unwrap();
    let begin = std::time::Instant::now();
    while user() == before {
        assert!(begin.elapsed().as_secs() < 20, "it does not go on");
        pause();
    }
    let bomb = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 > /dev/null 2>&1 & done; echo end";
    let (_, text) = sandbox.run_in("one", "bomb", &["/bin/sh", "-c", bomb]);
    assert!(text.contains("fork"), "{text}");
    let processes = sandbox.processes("one");
    assert!(processes.contains("\"pid\":1,") && processes.contains("\"exec\":\"\""), "{processes}");
    sandbox.remove("one").unwrap();
    assert_eq!(code_of(sandbox.call_stats("one")), ttrpc::Code::INVALID_ARGUMENT);
}

#[test]
fn a_container_that_was_not_started_is_killed_and_removed() {
    let sandbox = Sandbox::start(&[]);
    sandbox.create("one", &spec(&["/bin/sleep", "1000"])).unwrap();
    sandbox.signal("one", "", 9).unwrap();
    assert_eq!(sandbox.wait("one", "").unwrap(), 137);
    sandbox.create("two", &spec(&["/bin/sleep", "1000"])).unwrap();
    sandbox.remove("two").unwrap();
    sandbox.create("two", &spec(&["/bin/sleep", "1000"])).unwrap();
    sandbox.start_container("two").unwrap();
    assert_eq!(code_of(sandbox.start_container("two")), ttrpc::Code::INVALID_ARGUMENT);
    assert_eq!(sandbox.end(), 0);
}

#[test]
fn what_is_not_there_says_its_name() {
    let sandbox = Sandbox::start(&[]);
    let error = sandbox.call(sandbox.client.copy_file(context(), &api::CopyFileRequest::new()));
    let text = error.as_ref().unwrap_err().to_string();
    assert!(text.contains("CopyFile") && code_of(error) == ttrpc::Code::UNIMPLEMENTED, "{text}");
    let routes = sandbox.call(sandbox.client.list_routes(context(), &api::ListRoutesRequest::new()));
    assert!(routes.unwrap().Routes.is_empty());
    let mut request = api::CreateContainerRequest::new();
    request.container_id = "one".to_owned();
    request.OCI = Some(spec(&["/bin/true"])).into();
    request.storages.push(api::Storage::new());
    let error = sandbox.call(sandbox.client.create_container(context(), &request));
    let text = error.as_ref().unwrap_err().to_string();
    assert!(text.contains("storages") && code_of(error) == ttrpc::Code::INVALID_ARGUMENT, "{text}");
}

/// A profile by which all is allowed but `kill` with one number, `sethostname`, and `chroot`, which ends who asks for it.
fn profile() -> oci::LinuxSeccomp {
    let refuse = |name: &str, errno: u32, args: Vec<oci::LinuxSeccompArg>| oci::LinuxSyscall {
        Names: vec![name.to_owned(), "no_such_call".to_owned()],
        Action: "SCMP_ACT_ERRNO".to_owned(),
        ErrnoRet: Some(oci::linux_syscall::ErrnoRet::Errnoret(errno)),
        Args: args,
        ..Default::default()
    };
    let signal =
        oci::LinuxSeccompArg { Index: 1, Value: 0, Op: "SCMP_CMP_EQ".to_owned(), ..Default::default() };
    oci::LinuxSeccomp {
        DefaultAction: "SCMP_ACT_ALLOW".to_owned(),
        Architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].map(str::to_owned).to_vec(),
        Syscalls: vec![
            refuse("kill", 28, vec![signal]),
            refuse("sethostname", 95, Vec::new()),
            oci::LinuxSyscall {
                Names: vec!["chroot".to_owned()],
                Action: "SCMP_ACT_KILL_PROCESS".to_owned(),
                ..Default::default()
            },
        ],
        ..Default::default()
    }
}

#[test]
fn a_profile_of_system_calls_is_applied() {
    const MODE: &str = "grep Seccomp: /proc/self/status";
    const TRY: &str = "kill -0 $$ || echo refused; kill -CONT $$ && echo sent; chroot / true; echo $?";
    let sandbox = Sandbox::start(&[]);
    let mut given = spec(&["/bin/sh", "-c", &format!("{MODE}; {TRY}; sleep 1000")]);
    given.Linux.mut_or_insert_default().Seccomp = Some(profile()).into();
    sandbox.run("one", &given);
    let (status, said) = sandbox.run_in("one", "e1", &["/bin/sh", "-c", &format!("{MODE}; {TRY}")]);
    assert_eq!(status, 0, "{said}");
    assert!(said.starts_with("Seccomp:\t2\nrefused\nsent\n159\n"), "{said}");
    assert!(said.contains("kill: No space left on device"), "{said}");
    sandbox.read_until("one", "", "Seccomp:\t2\nrefused\nsent\n159\n");
    // The same, left out.
    given.Annotations.insert("dev.kata-cc.sentry.seccomp".to_owned(), "ignore".to_owned());
    given.Process.as_mut().unwrap().Args[2] = format!("{MODE}; {TRY}");
    sandbox.run("two", &given);
    assert_eq!(sandbox.wait("two", "").unwrap(), 0);
    assert_eq!(sandbox.output("two", ""), "Seccomp:\t0\nsent\n125\n", "{}", sandbox.errors("two", ""));
    given.Annotations.clear();
    given.Linux.as_mut().unwrap().Seccomp.as_mut().unwrap().Syscalls[0].Action = "SCMP_ACT_NOTIFY".to_owned();
    let refused = sandbox.create("three", &given).unwrap_err().to_string();
    assert!(refused.contains("linux.seccomp") && refused.contains("SCMP_ACT_NOTIFY"), "{refused}");
}

#[test]
fn a_container_sees_its_bounds() {
    const LOOK: &str = "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max; sed -n 's/MemTotal: *//p' /proc/meminfo; \
                        test \"$(cat memory.current)\" -gt 4096 && echo used; cat cgroup.procs | head -1; \
                        echo 1 2> /dev/null > memory.max || echo kept";
    let sandbox = Sandbox::start(&[]);
    let mut given = spec(&["/bin/sleep", "1000"]);
    let resources = given.Linux.mut_or_insert_default().Resources.mut_or_insert_default();
    resources.Memory.mut_or_insert_default().Limit = 64 << 20;
    resources.Pids.mut_or_insert_default().Limit = 100;
    let cpu = resources.CPU.mut_or_insert_default();
    (cpu.Quota, cpu.Period) = (150_000, 100_000);
    sandbox.run("one", &given);
    let look = |exec: &str| sandbox.run_in("one", exec, &["/bin/sh", "-c", LOOK]).1;
    assert_eq!(look("e1"), "67108864\n100\n150000 100000\n65536 kB\nused\n1\nkept\n");
    let mut request = api::UpdateContainerRequest::new();
    request.container_id = "one".to_owned();
    let resources = request.resources.mut_or_insert_default();
    resources.Memory.mut_or_insert_default().Limit = 32 << 20;
    resources.CPU.mut_or_insert_default().Quota = -1;
    sandbox.call(sandbox.client.update_container(context(), &request)).unwrap();
    assert_eq!(look("e2"), "33554432\n100\nmax 100000\n32768 kB\nused\n1\nkept\n");
    // What a sandbox may have bounds a container that says nothing.
    let small = Sandbox::start(&["--memory", "48"]);
    small.run("one", &spec(&["/bin/sleep", "1000"]));
    let (_, total) = small.run_in("one", "e1", &["/bin/sh", "-c", "sed -n 's/MemTotal: *//p' /proc/meminfo"]);
    assert_eq!(total, "49152 kB\n");
}
