//! The verbs, one after another as engines call them, with the real sentry.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::{Value, json};
use support::{World, finish, reap};

#[test]
fn a_container_lives_from_create_to_delete() {
    let Some(world) = World::new() else { return };
    let bundle = world.bundle("b", "echo $GREETING from $(cat /proc/sys/kernel/hostname); exit 7");
    let pid = world.create("c", &bundle);
    let state = world.state("c");
    assert_eq!((&state["status"], &state["pid"]), (&json!("created"), &json!(pid)));
    assert_eq!(state["bundle"], bundle.to_str().unwrap());
    assert_eq!(world.output("c"), "", "its program waits for the start");
    world.run("start c").ok();
    assert_eq!(reap(pid), 7, "{}", world.output("c"));
    assert_eq!(world.output("c"), "hello from box\n");
    let state = world.state("c");
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &json!(0)));
    let again = world.run("start c");
    assert!(again.code == 1 && again.err.contains("cannot start a container that has stopped"), "{again:?}");
    world.run("delete c").ok();
    assert!(world.run("state c").err.contains("container does not exist"));
    world.nothing_left();
}

#[test]
fn run_gives_output_input_and_the_code() {
    let Some(world) = World::new() else { return };
    let bundle = world.bundle("b", "cat; echo err >&2; exit 3");
    let mut command = world.command(&format!("run --bundle {} c", bundle.display()));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::spawn(move || stdin.write_all(&vec![b'x'; 300_000]).unwrap());
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.len(), err.as_str()), (Some(3), 300_000, "err\n"));
    world.nothing_left();
}

#[test]
fn others_run_in_a_container() {
    let Some(world) = World::new() else { return };
    let pid = world.create("c", &world.bundle("b", "sleep 1000"));
    world.run("start c").ok();
    assert_eq!(world.status("c"), "running");
    let said = world.run("exec --cwd /tmp --env A=b --user 5:6 c sh -c id\\ -u;pwd;echo\\ $A;exit\\ 9");
    assert_eq!(said.code, 127, "the words are not those of a shell: {said:?}");
    let mut command = world.command("exec --cwd /tmp --env A=b --user 5:6 c sh -c");
    let said = finish(command.arg("id -u; id -g; pwd; echo $A; exit 9"));
    assert_eq!((said.code, said.out.as_str()), (9, "5\n6\n/tmp\nb\n"), "{said:?}");
    let missing = world.run("exec c nothing-like-this");
    assert!(missing.code == 255 && missing.err.contains("executable file not found"), "{missing:?}");

    let (file, process) = (world.path("e.pid"), world.path("p.json"));
    let spec = json!({"args": ["sh", "-c", "exit 5"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
    std::fs::write(&process, spec.to_string()).unwrap();
    let line = format!("exec --detach --pid-file {} --process {} c", file.display(), process.display());
    world.run(&line).ok();
    let exec: i32 = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    assert_eq!(reap(exec), 5, "the process that stands for it ends as it does");

    let line = format!("exec --detach --pid-file {} c sleep 1000", file.display());
    world.run(&line).ok();
    let exec: i32 = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(exec), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(reap(exec), 143, "signals for it are handed on");

    world.run("kill c KILL").ok();
    assert_eq!(reap(pid), 137);
    let gone = world.run("exec c true");
    assert!(gone.code == 255 && gone.err.contains("container not running"), "{gone:?}");
    world.run("delete c").ok();
    world.nothing_left();
}

#[test]
fn lists_limits_and_signals() {
    let Some(world) = World::new() else { return };
    let bundle =
        world.bundle_with("b", "trap 'echo term; exit 4' TERM; while :; do sleep 0.05; done", |spec| {
            spec["linux"]["resources"] = json!({"memory": {"limit": 268_435_456}, "pids": {"limit": 64}});
            spec["annotations"] = json!({"a": "b"});
        });
    let pid = world.create("c", &bundle);
    world.run("start c").ok();
    let running = world.run("delete c");
    assert!(running.code == 1 && running.err.contains("that is not stopped: running"), "{running:?}");
    assert!(world.run("start c").err.contains("cannot start an already running container"));

    let list: Value = serde_json::from_str(&world.run("list --format json").ok()).unwrap();
    assert_eq!(
        (&list[0]["id"], &list[0]["owner"], &list[0]["annotations"]["a"]),
        (&json!("c"), &json!("root"), &json!("b"))
    );
    assert_eq!(world.run("list -q").ok(), "c\n");
    assert!(world.run("list").ok().lines().nth(1).unwrap().starts_with("c "));
    let of_host: Vec<i32> = serde_json::from_str(&world.run("ps --format json c").ok()).unwrap();
    assert!(of_host.contains(&pid), "{of_host:?}");
    let table = world.run("ps c").ok();
    assert!(table.starts_with("UID ") && table.contains("sh"), "{table}");

    let stats: Value = serde_json::from_str(&world.run("events --stats c").ok()).unwrap();
    assert_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!("c")));
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 268_435_456, "{stats}");
    assert!(stats["data"]["pids"]["current"].as_u64().unwrap() > 0, "{stats}");
    world.run("update --memory 536870912 --pids-limit 100 c").ok();
    let stats: Value = serde_json::from_str(&world.run("events --stats c").ok()).unwrap();
    assert_eq!(stats["data"]["pids"]["limit"], 464, "tasks of the host: {stats}");

    world.run("pause c").ok();
    assert_eq!(world.status("c"), "paused");
    assert!(world.run("exec c true").err.contains("container paused"));
    world.run("resume c").ok();
    assert_eq!(world.status("c"), "running");
    assert!(world.run("resume c").err.contains("container not paused"));
    assert!(world.run("kill c FROB").err.contains("unknown signal"));
    // The trap is set before the loop, which the first output of `ps` has seen or not.
    std::thread::sleep(std::time::Duration::from_millis(300));
    world.run("kill c TERM").ok();
    assert_eq!(reap(pid), 4, "{}", world.output("c"));
    assert_eq!(world.output("c"), "term\n");
    let stopped = world.run("kill c TERM");
    assert!(stopped.code == 1 && stopped.err.contains("container not running"), "{stopped:?}");
    world.run("kill --all c KILL").ok();
    world.run("delete c").ok();
    world.nothing_left();
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let with = |name: &str, change: fn(&mut Value)| {
        let bundle = world.bundle_with(name, "true", change);
        let log = world.path("log");
        let _ = std::fs::remove_file(&log);
        let line =
            format!("--log {} --log-format json create --bundle {} c", log.display(), bundle.display());
        let done = world.run(&line);
        assert_eq!(done.code, 1, "{name}: {done:?}");
        let last = std::fs::read_to_string(&log).unwrap();
        let last: Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
        assert_eq!(last["level"], "error");
        assert!(done.err.contains(last["msg"].as_str().unwrap()), "{done:?} {last}");
        world.nothing_left();
        last["msg"].as_str().unwrap().to_owned()
    };
    let message = with("program", |spec| spec["process"]["args"] = json!(["nothing-like-this"]));
    assert!(message.contains("executable file not found"), "{message}");
    let message = with("args", |spec| spec["process"]["args"] = json!([]));
    assert!(message.contains("args must not be empty"), "{message}");
    let message = with("mount", |spec| {
        spec["mounts"] =
            json!([{"destination": "/x", "type": "bind", "source": "/no/such/folder", "options": ["ro"]}]);
    });
    assert!(message.contains("/no/such/folder"), "{message}");
    let message = with("netns", |spec| {
        spec["linux"]["namespaces"] = json!([{"type": "network", "path": "/no/such/netns"}]);
    });
    assert!(message.contains("/no/such/netns"), "{message}");
    let message = with("limit", |spec| spec["linux"]["resources"] = json!({"cpu": {"cpus": "nonsense"}}));
    assert!(message.contains("cpuset.cpus"), "{message}");
    let message = with("hook", |spec| {
        spec["hooks"] =
            json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 1"]}]});
    });
    assert!(message.contains("prestart hook #0") && message.contains("no"), "{message}");
    let message = with("terminal", |spec| spec["process"]["terminal"] = json!(true));
    assert!(message.contains("without setting console socket"), "{message}");
}

#[test]
fn an_id_is_taken_until_it_is_deleted() {
    let Some(world) = World::new() else { return };
    let bundle = world.bundle("b", "true");
    let pid = world.create("c", &bundle);
    let again = world.run(&format!("create --bundle {} c", bundle.display()));
    assert!(again.code == 1 && again.err.contains("container with given ID already exists"), "{again:?}");
    assert_eq!(world.status("c"), "created");
    world.run("delete c").ok();
    assert_eq!(reap(pid), 137, "deleting what was created and not started kills it");
    world.run("delete --force c").ok();
    let missing = world.run("delete c");
    assert!(missing.code == 1 && missing.err.contains("container does not exist"), "{missing:?}");
    world.nothing_left();
}

#[test]
fn killing_the_monitor_ends_the_container() {
    let Some(world) = World::new() else { return };
    let pid = world.create("c", &world.bundle("b", "sleep 1000"));
    world.run("start c").ok();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(reap(pid), 137);
    assert_eq!(world.status("c"), "stopped");
    world.run("delete c").ok();
    world.nothing_left();
    let pid = world.create("c", &world.bundle("b", "sleep 1000"));
    world.run("start c").ok();
    world.run("delete --force c").ok();
    assert_eq!(reap(pid), 137);
    world.nothing_left();
}

#[test]
fn hooks_run_at_their_points() {
    let Some(world) = World::new() else { return };
    let out = world.path("hooks");
    let hook = |name: &str| {
        let script = format!("echo {name} $(grep -o '\"status\":\"[a-z]*\"') >>{}", out.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    let bundle = world.bundle_with("b", "true", |spec| {
        spec["hooks"] = json!({"prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
            "createContainer": hook("createContainer"), "poststart": hook("poststart"), "poststop": hook("poststop")});
    });
    let pid = world.create("c", &bundle);
    world.run("start c").ok();
    reap(pid);
    world.run("delete c").ok();
    let text = std::fs::read_to_string(&out).unwrap();
    let seen: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(seen, ["prestart", "createRuntime", "createContainer", "poststart", "poststop"], "{text}");
    assert!(
        text.contains("prestart \"status\":\"creating\"") && text.contains("poststop \"status\":\"stopped\""),
        "{text}"
    );
    world.nothing_left();
}

/// The master of a terminal that comes over a socket.
fn master(listener: &UnixListener) -> std::fs::File {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::FromRawFd;
    let (peer, _) = listener.accept().unwrap();
    let mut text = [0; 128];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut parts = [std::io::IoSliceMut::new(&mut text)];
    let received = recvmsg::<()>(peer.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
    for message in received.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(all) = message {
            // SAFETY: the descriptor has just come, and nobody else knows it.
            #[allow(unsafe_code, reason = "a descriptor that was received has no owner yet")]
            return unsafe { std::fs::File::from_raw_fd(all[0]) };
        }
    }
    panic!("no descriptor came");
}

fn read_all(mut master: std::fs::File) -> String {
    let mut bytes = Vec::new();
    // The end of a terminal is EIO.
    let _ = master.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn a_terminal_goes_to_the_engine() {
    let Some(world) = World::new() else { return };
    let socket = world.path("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let bundle = world.bundle_with("b", "tty; stty size; exec cat", |spec| {
        spec["process"]["terminal"] = json!(true);
        spec["process"]["consoleSize"] = json!({"height": 33, "width": 44});
    });
    let pid_file = world.path("pid");
    let line = format!(
        "create --bundle {} --pid-file {} --console-socket {} c",
        bundle.display(),
        pid_file.display(),
        socket.display()
    );
    world.run(&line).ok();
    let mut terminal = master(&listener);
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    world.run("start c").ok();
    // A line, and an end of input: the sentry's own line discipline.
    terminal.write_all(b"abc\n\x04").unwrap();
    assert_eq!(reap(pid), 0);
    let text = read_all(terminal);
    assert!(text.contains("/dev/") && text.contains("33 44") && text.contains("abc"), "{text:?}");
    world.run("delete c").ok();

    let pid = world.create("d", &world.bundle("d", "sleep 1000"));
    world.run("start d").ok();
    let line = format!(
        "exec --tty --detach --pid-file {} --console-socket {} d sh -c tty",
        pid_file.display(),
        socket.display()
    );
    world.run(&line).ok();
    let exec: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert_eq!(reap(exec), 0);
    let text = read_all(master(&listener));
    assert!(text.contains("/dev/"), "{text:?}");
    world.run("delete --force d").ok();
    reap(pid);
    world.nothing_left();
}

#[test]
fn containers_of_a_pod_share_a_sandbox() {
    let Some(world) = World::new() else { return };
    let pause = world.bundle_with("pause", "sleep 1000", |spec| {
        spec["annotations"] =
            json!({"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "pod"});
    });
    let member = |name: &str, script: &str| {
        world.bundle_with(name, script, |spec| {
            spec["annotations"] = json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"});
        })
    };
    let early = world.run(&format!("create --bundle {} one", member("one", "true").display()));
    assert!(early.code == 1 && early.err.contains("sandbox pod of container one does not run"), "{early:?}");
    world.nothing_left();
    let sandbox = world.create("pod", &pause);
    world.run("start pod").ok();
    let one = world.create("one", &member("one", "echo one; exit 3"));
    let two = world.create("two", &member("two", "sleep 1000"));
    world.run("start one").ok();
    world.run("start two").ok();
    assert_eq!((reap(one), world.output("one").as_str()), (3, "one\n"));
    assert_eq!((world.status("one"), world.status("two")), ("stopped".into(), "running".into()));
    assert_eq!(world.run("exec two echo in two").ok(), "in two\n");
    world.run("delete one").ok();
    world.run("kill two KILL").ok();
    assert_eq!(reap(two), 137);
    world.run("delete two").ok();
    let three = world.create("three", &member("three", "sleep 1000"));
    world.run("start three").ok();
    world.run("delete --force pod").ok();
    assert_eq!((reap(sandbox), reap(three)), (137, 137), "the pod's end is that of its containers");
    world.run("delete three").ok();
    world.nothing_left();
}

#[test]
fn what_is_not_there_yet_says_so() {
    let Some(world) = World::new() else { return };
    let bundle = world.bundle("b", "true");
    for (count, named) in [(33, "at most 32"), (9, "descriptor")] {
        let done = world.run(&format!("run --preserve-fds {count} --bundle {} c", bundle.display()));
        assert!(done.code == 1 && done.err.contains(named), "{done:?}");
    }
    world.nothing_left();
}

#[test]
fn hooks_run_in_the_container_before_its_program() {
    let Some(world) = World::new() else { return };
    let with = |name: &str, hooks: serde_json::Value| {
        world.bundle_with(name, "cat /tmp/seen", |spec| spec["hooks"] = json!({"startContainer": hooks}))
    };
    let hook = |script: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin", "A=inside"]});
    let good = with("b", json!([hook("echo $A $(cat | wc -l) >/tmp/seen"), hook("echo second >>/tmp/seen")]));
    assert_eq!(world.run(&format!("run --bundle {} c", good.display())).ok(), "inside 0\nsecond\n");
    let bad = with("d", json!([hook("echo no luck >&2; exit 3")]));
    let pid = world.create("d", &bad);
    let done = world.run("start d");
    let told = "startContainer hook #0: /bin/sh: exit status: 3, stderr: no luck";
    assert!(done.code == 1 && done.err.contains(told), "{done:?}");
    world.run("delete --force d").ok();
    assert_eq!(reap(pid), 137);
    world.nothing_left();
}

#[test]
fn descriptors_are_handed_on() {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    let Some(world) = World::new() else { return };
    let (from, mut to) = std::io::pipe().unwrap();
    to.write_all(b"handed\n").unwrap();
    drop(to);
    let bundle = world.bundle("b", "cat <&3; (echo x >&4) 2>/dev/null || echo three");
    // A shell puts the pipe where the runtime looks for it.
    let line = format!("exec 3<&{}; exec \"$@\"", from.as_raw_fd());
    nix::fcntl::fcntl(&from, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let runtime = world.command(&format!("run --preserve-fds 1 --bundle {} c", bundle.display()));
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", &line, "sh"]).arg(runtime.get_program()).args(runtime.get_args());
    let done = shell.stdin(std::process::Stdio::null()).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert_eq!(String::from_utf8_lossy(&done.stdout), "handed\nthree\n");
    world.nothing_left();
}

#[test]
fn a_container_is_saved_and_goes_on() {
    let Some(world) = World::new() else { return };
    let script = "n=0; echo kept > /tmp/f; while :; do n=$((n+1)); echo $n $(cat /tmp/f); sleep 0.05; done";
    let bundle = world.bundle("b", script);
    let image = world.path("image");
    let counted =
        |text: &str| text.lines().filter_map(|line| line.split(' ').next()?.parse::<u32>().ok()).next_back();
    let pid = world.create("c", &bundle);
    let early = world.run(&format!("checkpoint --image-path {} c", image.display()));
    assert!(early.code == 1 && early.err.contains("not running"), "{early:?}");
    world.run("start c").ok();
    support::eventually("it counts", || counted(&world.output("c")) > Some(3));
    world.run(&format!("checkpoint --image-path {} --leave-running c", image.display())).ok();
    let then = counted(&world.output("c"));
    support::eventually("it goes on", || counted(&world.output("c")) > then);
    // Where the image cannot get its name the container goes on.
    let file = image.join("sentry.img");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let nameless = world.run(&format!("checkpoint --image-path {} c", image.display()));
    assert!(nameless.code == 1 && nameless.err.contains("cannot name the image"), "{nameless:?}");
    assert_eq!(std::fs::read_dir(&image).unwrap().count(), 1);
    let then = counted(&world.output("c"));
    support::eventually("it goes on without an image", || counted(&world.output("c")) > then);
    std::fs::remove_dir(&file).unwrap();
    world.run(&format!("checkpoint --image-path {} --work-path /tmp --file-locks c", image.display())).ok();
    assert_eq!(reap(pid), 137);
    let then = counted(&world.output("c")).unwrap();
    assert!(world.run("state c").err.contains("container does not exist"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!((mode & 0o777, std::fs::read_dir(&image).unwrap().count()), (0o600, 1));

    let line = format!("restore --detach --bundle {} --image-path {} d", bundle.display(), image.display());
    let out = std::fs::File::create(world.path("d.out")).unwrap();
    let mut command = world.command(&line);
    assert!(
        command.stdout(out.try_clone().unwrap()).stderr(out).status().unwrap().success(),
        "{}",
        world.output("d")
    );
    support::eventually("it goes on in another sandbox", || counted(&world.output("d")) > Some(then + 3));
    let output = world.output("d");
    let first: u32 = output.split(' ').next().unwrap().parse().unwrap();
    assert!(
        (then..=then + 2).contains(&first) && output.lines().all(|line| line.ends_with(" kept")),
        "{output}"
    );
    world.run("delete --force d").ok();

    std::fs::write(&file, b"no image at all").unwrap();
    let broken = world.run(&line);
    assert!(broken.code == 1 && broken.err.contains("no image of a checkpoint"), "{broken:?}");
    std::fs::remove_file(&file).unwrap();
    let missing = world.run(&line);
    assert!(missing.code == 1 && missing.err.contains("cannot open the image"), "{missing:?}");
    for refused in ["checkpoint --pre-dump c", "checkpoint --lazy-pages c", "checkpoint --page-server x c"] {
        let done = world.run(refused);
        assert!(done.code == 1 && done.err.contains("leave the option away"), "{done:?}");
    }
    world.nothing_left();
}
