//! How a served sandbox begins and ends, and what clients can do to it: descriptors that are given, garbage, kills.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "serve/harness.rs"]
#[allow(dead_code, reason = "each file of tests uses a part")]
mod harness;

use std::fs;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use harness::{Sandbox, code_of, command, context, mount, process, sockets, spec};
use kata_cc_agent_protocol::agent as api;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::Pid;

/// Gives descriptors to a process: the answer, and the descriptor that came with it.
fn give(sandbox: &Sandbox, line: &str, descriptors: &[RawFd]) -> (String, Option<OwnedFd>) {
    let socket = UnixStream::connect(sockets(sandbox.folder.path()).1).unwrap();
    let line = format!("{line}\n");
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights };
    let slices = [IoSlice::new(line.as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &slices, control, MsgFlags::empty(), None).unwrap();
    let (mut bytes, mut room) = (vec![0; 4096], nix::cmsg_space!([RawFd; 1]));
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut room), flags).unwrap();
    let mut came = None;
    for message in received.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            // SAFETY: the kernel has just made it.
            came = numbers.first().map(|number| unsafe { OwnedFd::from_raw_fd(*number) });
        }
    }
    let count = received.bytes;
    (String::from_utf8_lossy(&bytes[..count]).into_owned(), came)
}

/// Reads a terminal's master until something is shown.
fn read_until(master: &OwnedFd, wanted: &str) -> String {
    let mut seen = String::new();
    let mut bytes = [0; 1024];
    while !seen.contains(wanted) {
        let count = nix::unistd::read(master, &mut bytes).unwrap_or(0);
        assert!(count > 0, "{seen:?} is all, without {wanted:?}");
        seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    seen
}

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

/// KiB of its own program's code that a process maps.
fn code_of_program(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut code =
        maps.lines().skip_while(|line| !(line.contains(" r-xp ") && line.ends_with("/kata-cc-sentry")));
    let rss = code.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    rss.trim_end_matches("kB").trim().parse().unwrap()
}

/// When its containers run the monitor lets go of the code that its start needed, and does all that it did.
#[test]
fn a_monitor_at_rest_maps_little_of_its_code() {
    let sandbox = Sandbox::start(&[]);
    let monitor = sandbox.child.id();
    sandbox.run("box", &spec(&["sleep", "100"]));
    let (before, begin) = (code_of_program(monitor), Instant::now());
    while code_of_program(monitor) > before / 2 {
        assert!(begin.elapsed() < Duration::from_secs(20), "{before} KiB, now {}", code_of_program(monitor));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(sandbox.run_in("box", "echo", &["echo", "here"]), (0, "here\n".into()));
    assert_eq!(sandbox.end(), 0);
}

fn is_gofer(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().starts_with(b"kata-cc-gofer\0")
}

/// Whether it is there, and not only to be waited for.
fn lives(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !state.is_empty() && !state.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z')
}

/// The sentry's process of a sandbox, and gofers.
fn processes(sandbox: &Sandbox) -> (u32, Vec<u32>) {
    let (gofers, others): (Vec<_>, Vec<_>) =
        children_of(sandbox.child.id()).into_iter().filter(|pid| lives(*pid)).partition(|pid| is_gofer(*pid));
    assert_eq!(others.len(), 1, "{others:?}");
    (others[0], gofers)
}

fn wait_until_gone(pids: &[u32]) {
    let begin = Instant::now();
    while pids.iter().any(|pid| lives(*pid)) {
        assert!(begin.elapsed() < Duration::from_secs(20), "{pids:?} live on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

#[test]
fn a_process_has_the_descriptors_that_were_given() {
    let sandbox = Sandbox::start(&[]);
    let (input, mut typed) = std::io::pipe().unwrap();
    let (mut shown, output) = std::io::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    let given = [output.as_raw_fd(), input.as_raw_fd(), file.as_raw_fd()];
    let line = r#"{"container":"one","streams":["stdout","stdin","stderr"]}"#;
    assert_eq!(give(&sandbox, line, &given).0, "{\"ok\":true}\n");
    drop((input, output));
    sandbox.run("one", &spec(&["/bin/sh", "-c", "read x; echo \"<$x>\"; echo err >&2; cat"]));
    typed.write_all(b"hello\nrest").unwrap();
    drop(typed);
    let mut text = String::new();
    shown.read_to_string(&mut text).unwrap();
    assert_eq!(text, "<hello>\nrest");
    assert_eq!(sandbox.wait("one", "").unwrap(), 0);
    let mut errors = String::new();
    std::io::Seek::rewind(&mut &file).unwrap();
    (&file).read_to_string(&mut errors).unwrap();
    assert_eq!(errors, "err\n");
    assert_eq!(code_of(sandbox.read("one", "", false)), ttrpc::Code::FAILED_PRECONDITION);
    // What is not given is nothing.
    sandbox.run("two", &spec(&["/bin/sleep", "1000"]));
    assert_eq!(give(&sandbox, r#"{"container":"two","exec":"e"}"#, &[]).0, "{\"ok\":true}\n");
    sandbox.exec("two", "e", &process(&["/bin/cat"])).unwrap();
    assert_eq!(sandbox.wait("two", "e").unwrap(), 0);
    // A terminal was spoken of, and the process has none.
    assert_eq!(give(&sandbox, r#"{"container":"two","exec":"f","terminal":true}"#, &[]).0, "{\"ok\":true}\n");
    let refused = sandbox.exec("two", "f", &process(&["/bin/true"])).unwrap_err().to_string();
    assert!(refused.contains("process.terminal"), "{refused}");
}

#[test]
fn a_terminal_of_the_host_carries_that_of_the_container() {
    let sandbox = Sandbox::start(&[]);
    let (text, master) = give(&sandbox, r#"{"container":"one","terminal":true}"#, &[]);
    assert_eq!(text, "{\"ok\":true}\n");
    let master = master.unwrap();
    let script = "tty; trap 'echo caught' INT; trap 'stty size' WINCH; echo ready; \
                  while :; do read line && echo \"<$line>\" && test \"$line\" = end && exit 5; done";
    let mut given = spec(&["/bin/sh", "-c", script]);
    given.Process.as_mut().unwrap().Terminal = true;
    sandbox.run("one", &given);
    assert!(read_until(&master, "ready").contains("/dev/pts/0\r\n"));
    nix::unistd::write(&master, b"hello\n").unwrap();
    read_until(&master, "<hello>");
    nix::unistd::write(&master, b"\x03").unwrap();
    read_until(&master, "caught");
    let size = libc::winsize { ws_row: 41, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the structure lives during the call.
    assert_eq!(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
    nix::unistd::write(&master, b"\n").unwrap();
    read_until(&master, "41 101");
    nix::unistd::write(&master, b"end\n").unwrap();
    assert_eq!(sandbox.wait("one", "").unwrap(), 5);
    // The slave is closed: the master is at its end.
    let begin = Instant::now();
    let mut bytes = [0; 64];
    while nix::unistd::read(&master, &mut bytes).is_ok_and(|count| count > 0) {
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
    // A slave that the client made.
    sandbox.run("two", &spec(&["/bin/sleep", "1000"]));
    let pair = nix::pty::openpty(None, None).unwrap();
    let line = r#"{"container":"two","exec":"e","terminal":true}"#;
    assert_eq!(give(&sandbox, line, &[pair.slave.as_raw_fd()]).0, "{\"ok\":true}\n");
    drop(pair.slave);
    let mut other = process(&["/bin/sh", "-c", "test -t 0 && echo terminal"]);
    other.Terminal = true;
    sandbox.exec("two", "e", &other).unwrap();
    read_until(&pair.master, "terminal\r\n");
}

#[test]
fn garbage_is_refused_and_the_sandbox_goes_on() {
    let sandbox = Sandbox::start(&[]);
    let (agent, streams) = sockets(sandbox.folder.path());
    for bytes in [&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..], &[0; 4096], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut client = UnixStream::connect(&agent).unwrap();
        let _ = client.write_all(bytes);
        drop(client);
    }
    let long = format!("{{\"container\":\"{}\"}}", "x".repeat(10_000));
    for line in ["", "nonsense", "{\"container\":\"a/b\"}", "[1,2]", &long] {
        let (answer, came) = give(&sandbox, line, &[]);
        assert!(answer.starts_with("{\"error\":") && came.is_none(), "{line}: {answer}");
    }
    let null = fs::File::open("/dev/null").unwrap();
    let many = vec![null.as_raw_fd(); 5];
    let (answer, _) = give(&sandbox, r#"{"container":"c","streams":["stdin"]}"#, &many);
    assert!(answer.contains("error"), "{answer}");
    // Somebody who says nothing holds nobody up.
    let silent = UnixStream::connect(&streams).unwrap();
    sandbox.run("one", &spec(&["/bin/echo", "still here"]));
    assert_eq!(sandbox.output("one", ""), "still here\n");
    drop(silent);
}

#[test]
fn when_the_sentry_is_killed_calls_end_with_the_reason() {
    let mut sandbox = Sandbox::start(&[]);
    sandbox.run("one", &spec(&["/bin/sleep", "1000"]));
    let (sentry, gofers) = processes(&sandbox);
    assert_eq!(gofers.len(), 1);
    let stubs = children_of(sentry);
    assert!(!stubs.is_empty());
    signal(sentry, Signal::SIGKILL);
    let error = sandbox.wait("one", "");
    let text = error.as_ref().unwrap_err().to_string();
    assert!(text.contains("the sentry is gone") && text.contains("signal 9"), "{text}");
    assert_eq!(code_of(error), ttrpc::Code::UNAVAILABLE);
    assert_eq!(sandbox.ended(), 70);
    wait_until_gone(&[&stubs[..], &gofers[..], &[sentry]].concat());
    let (agent, streams) = sockets(sandbox.folder.path());
    assert!(!agent.exists() && !streams.exists());
}

#[test]
fn when_the_monitor_is_killed_nothing_lives_on() {
    let mut sandbox = Sandbox::start(&[]);
    sandbox.run("one", &spec(&["/bin/sleep", "1000"]));
    let (sentry, gofers) = processes(&sandbox);
    let stubs = children_of(sentry);
    sandbox.child.kill().unwrap();
    sandbox.child.wait().unwrap();
    wait_until_gone(&[&stubs[..], &gofers[..], &[sentry]].concat());
    // Sockets that nobody listens on give way.
    let mut next = command(sandbox.folder.path(), &[]).stderr(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    while UnixStream::connect(sockets(sandbox.folder.path()).1).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(next.id(), Signal::SIGTERM);
    assert_eq!(next.wait().unwrap().code(), Some(0));
}

#[test]
fn when_a_gofer_is_killed_its_container_ends() {
    let sandbox = Sandbox::start(&[]);
    sandbox.run("one", &spec(&["/bin/sleep", "1000"]));
    let (_, first) = processes(&sandbox);
    sandbox.run("two", &spec(&["/bin/sleep", "1000"]));
    signal(first[0], Signal::SIGKILL);
    assert_eq!(sandbox.wait("one", "").unwrap(), 137);
    assert_eq!(sandbox.run_in("two", "e", &["/bin/echo", "lives"]), (0, "lives\n".to_owned()));
    assert!(sandbox.log().contains("gofer"), "{}", sandbox.log());
    sandbox.remove("one").unwrap();
    sandbox.remove("two").unwrap();
    // Gofers end with their containers.
    let begin = Instant::now();
    while !processes(&sandbox).1.is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(20), "gofers live on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn it_ends_with_a_container_where_that_is_wanted() {
    let mut sandbox = Sandbox::start(&["--until", "one"]);
    sandbox.run("other", &spec(&["/bin/sleep", "1000"]));
    sandbox.run("one", &spec(&["/bin/sh", "-c", "exit 9"]));
    assert_eq!(sandbox.wait("one", "").unwrap(), 9);
    assert_eq!(sandbox.ended(), 9);
    let mut sandbox = Sandbox::start(&["--until", "one"]);
    sandbox.run("one", &spec(&["/bin/sleep", "1000"]));
    signal(sandbox.child.id(), Signal::SIGTERM);
    assert_eq!(sandbox.ended(), 143);
}

#[test]
fn who_starts_it_hears_when_it_listens_and_why_it_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ready, tell) = std::io::pipe().unwrap();
    let number = tell.as_raw_fd();
    nix::fcntl::fcntl(&tell, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let text = number.to_string();
    let mut child = command(folder.path(), &["--ready-fd", &text]).stderr(Stdio::null()).spawn().unwrap();
    drop(tell);
    let mut told = Vec::new();
    // Nobody else holds it: its end is heard, too.
    ready.read_to_end(&mut told).unwrap();
    assert_eq!(told, b"\n");
    let (agent, _) = sockets(folder.path());
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&agent).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let refused = |options: &[&str], folder: &Path| {
        let output = command(folder, options).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused(&[], folder.path()).contains("somebody listens on it"));
    signal(child.id(), Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!agent.exists());
    fs::write(&agent, b"data").unwrap();
    assert!(refused(&[], folder.path()).contains("is no socket"));
    assert!(refused(&[], Path::new("/no/such/folder")).contains("cannot listen on"));
    assert!(refused(&["--ready-fd", "99"], folder.path()).contains("--ready-fd 99 is not open"));
    assert!(refused(&["--id", "a/b"], folder.path()).contains("no identifier"));
}

/// Idle processes of a sandbox, all together, in KiB.
#[test]
fn an_idle_sandbox_is_small_and_still() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("only root sees into the sentry");
        return;
    }
    let sandbox = Sandbox::start(&[]);
    sandbox.run("one", &spec(&["/bin/sleep", "1000"]));
    std::thread::sleep(Duration::from_millis(300));
    let (sentry, gofers) = processes(&sandbox);
    let all = [&children_of(sentry)[..], &gofers[..], &[sentry, sandbox.child.id()]].concat();
    let ticks = || -> u64 {
        let of = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
            fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum::<u64>()
        };
        all.iter().map(of).sum()
    };
    let pss = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap_or("Pss: 0").to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(1));
    assert!(ticks() - before <= 1, "it works though nothing happens");
    let kib: u64 = all.iter().map(pss).sum();
    eprintln!("{} processes of an idle sandbox: {kib} KiB", all.len());
    assert!(kib < 20 << 10, "{kib} KiB");
}

/// A control group of the host for memory, until it is dropped.
struct Limited(std::path::PathBuf);

impl Limited {
    fn new(bytes: u64) -> Option<Self> {
        let (mut root, mut limit) = (Path::new("/sys/fs/cgroup/memory"), "memory.limit_in_bytes");
        if !root.join(limit).exists() {
            (root, limit) = (Path::new("/sys/fs/cgroup"), "memory.max");
        }
        let group = Self(root.join(format!("kcc-sentry-{}", std::process::id())));
        let made = fs::create_dir(&group.0).and_then(|()| fs::write(group.0.join(limit), bytes.to_string()));
        if let Err(error) = made {
            eprintln!("not tested: a control group for memory cannot be made: {error}");
            return None;
        }
        Some(group)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let begin = Instant::now();
        while fs::remove_dir(&self.0).is_err() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What the host kills for want of memory is told, and counted where the container looks. Who is killed otherwise is not.
#[test]
fn a_container_that_runs_out_of_memory_is_told_of() {
    let python = "/usr/bin/python3";
    let Some(limited) = Limited::new(192 << 20).filter(|_| Path::new(python).exists()) else { return };
    let entered = format!("echo 0 > {}/cgroup.procs", limited.0.display());
    let sandbox = Sandbox::start_after(&entered, &[]);
    let eats = "a = []\nwhile True: a.append(bytearray(b'x') * (1 << 20))";
    let script = format!(
        "{python} -c \"{eats}\"; echo \"code $?\"; cat /sys/fs/cgroup/memory.events; exec sleep 1000"
    );
    let mut shell = spec(&["/bin/sh", "-c", &script]);
    shell.Mounts.push(mount("cgroup2", "/sys/fs/cgroup", "ro"));
    sandbox.run("quiet", &spec(&["/bin/sleep", "1000"]));
    sandbox.signal("quiet", "", 9).unwrap();
    sandbox.wait("quiet", "").unwrap();
    sandbox.run("eats", &shell);
    let request = api::GetOOMEventRequest::new();
    let event = sandbox.call(sandbox.client.get_oom_event(context(), &request)).unwrap();
    assert_eq!(event.container_id, "eats");
    sandbox.read_until("eats", "", "code 137");
    let looks = |exec: &str| sandbox.run_in("eats", exec, &["/bin/cat", "/sys/fs/cgroup/memory.events"]).1;
    let begin = Instant::now();
    let mut number = 0;
    while !looks(&format!("look{number}")).contains("oom_kill 1\n") {
        assert!(begin.elapsed() < Duration::from_secs(30), "{}", sandbox.log());
        number += 1;
    }
    assert_eq!(sandbox.end(), 0);
}
