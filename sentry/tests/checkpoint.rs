//! Checkpoint and restore of containers of `kata-cc-sentry serve`: what goes on after it, and what is refused.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may panic, and tells what it does not do"
)]

#[path = "serve/harness.rs"]
#[allow(dead_code, reason = "each file of tests uses a part")]
mod harness;

use std::fs::File;
use std::io::{IoSlice, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use harness::{Sandbox, sockets, spec};
use kata_cc_agent_protocol::oci;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Asks for something to be done with an image: the answer.
fn ask(sandbox: &Sandbox, id: &str, what: &str, image: &File) -> String {
    let mut socket = UnixStream::connect(sockets(sandbox.folder.path()).1).unwrap();
    let line = format!("{{\"container\":\"{id}\",\"image\":\"{what}\"}}\n");
    let numbers = [image.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&numbers)];
    let slices = [IoSlice::new(line.as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &slices, &rights, MsgFlags::empty(), None).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

fn save(sandbox: &Sandbox, id: &str, what: &str, image: &File) {
    let answer = ask(sandbox, id, what, image);
    assert_eq!(answer, "{\"ok\":true}\n", "{}", sandbox.log());
}

/// A container in a fresh sandbox that goes on with an image.
fn restore(id: &str, spec: &oci::Spec, image: &File) -> Sandbox {
    let sandbox = Sandbox::start(&[]);
    save(&sandbox, id, "restore", image);
    sandbox.run(id, spec);
    sandbox
}

fn python(program: &str) -> oci::Spec {
    spec(&["python3", "-u", "-c", program])
}

const WORK: &str = r#"
import os, sys, threading, time, socket, select, signal, mmap
log = open('/var/tmp/log', 'w+')
memory = open('/tmp/held', 'w+')
memory.write('before')
memory.flush()
gone = open('/tmp/gone', 'w+')
gone.write('nameless')
gone.flush()
os.unlink('/tmp/gone')
shared = mmap.mmap(-1, 4096)
to_child, from_parent = os.pipe()
to_parent, from_child = os.pipe()
os.write(from_parent, b'unread')
parent = os.getpid()
child = os.fork()
if child == 0:
    assert os.read(to_child, 6) == b'unread'
    while True:
        n = int(os.read(to_child, 16))
        shared[0] = n % 256
        os.write(from_child, b'%d %d' % (n * n, os.getppid() == parent))
zombie = os.fork()
if zombie == 0:
    os._exit(7)
time.sleep(0.1)
ticks = [0]
def tick():
    while True:
        time.sleep(0.01)
        ticks[0] += 1
threading.Thread(target=tick, daemon=True).start()
lock = threading.Condition()
def wait():
    with lock:
        lock.wait()
    print('woken', flush=True)
waiter = threading.Thread(target=wait)
waiter.start()
def on_usr1(*_):
    print('signal', flush=True)
signal.signal(signal.SIGUSR1, on_usr1)
os.chdir('/var/tmp')
os.environ['X'] = 'y'
n = 0
for line in sys.stdin:
    n += 1
    before = ticks[0]
    time.sleep(0.05)
    assert ticks[0] > before, 'the thread stands still'
    os.write(from_parent, b'%d' % n)
    answer = os.read(to_parent, 32).decode()
    assert shared[0] == n % 256
    log.write(line)
    log.flush()
    log.seek(0)
    lines = len(log.readlines())
    gone.seek(0)
    memory.seek(0)
    print(n, answer, lines, memory.read(), gone.read(), os.getcwd(), os.getpid(), flush=True)
    if line == 'end\n':
        break
with lock:
    lock.notify()
waiter.join()
os.kill(os.getpid(), signal.SIGUSR1)
print(os.waitpid(zombie, 0)[1] >> 8, os.path.exists('/tmp/gone'), flush=True)
os.kill(child, 9)
print(os.waitpid(child, 0)[1])
"#;

#[test]
fn a_python_goes_on() {
    let spec = python(WORK);
    let image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    sandbox.run("c", &spec);
    sandbox.write("c", "", b"one\n").unwrap();
    assert_eq!(sandbox.read_until("c", "", "\n"), "1 1 1 1 before nameless /var/tmp 1\n");
    save(&sandbox, "c", "checkpoint", &image);
    assert_eq!(sandbox.wait("c", "").unwrap(), 137);
    drop(sandbox);

    let sandbox = restore("c", &spec, &image);
    sandbox.write("c", "", b"two\n").unwrap();
    assert_eq!(sandbox.read_until("c", "", "\n"), "2 4 1 2 before nameless /var/tmp 1\n");
    sandbox.write("c", "", b"end\n").unwrap();
    let rest = sandbox.output("c", "") + &sandbox.errors("c", "");
    assert_eq!(rest, "3 9 1 3 before nameless /var/tmp 1\nwoken\nsignal\n7 False\n9\n");
    assert_eq!(sandbox.wait("c", "").unwrap(), 0);
    assert_eq!(sandbox.end(), 0);
}

#[test]
fn a_redis_answers_with_its_data() {
    // As `tests/programs.rs` has it: what `tests/programs/make-root programs` prints.
    let Ok(root) = std::env::var("KATA_CC_PROGRAMS_ROOT") else {
        eprintln!("not tested: KATA_CC_PROGRAMS_ROOT names no root with a redis-server");
        return;
    };
    let mut spec = spec(&["redis-server", "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]);
    spec.Root.mut_or_insert_default().Path = root;
    let image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    sandbox.run("c", &spec);
    sandbox.read_until("c", "", "eady to accept connections");
    let client = |sandbox: &Sandbox, exec: &str, words: &str| {
        let (code, output) = sandbox.run_in("c", exec, &["sh", "-c", &format!("redis-cli {words}")]);
        assert_eq!(code, 0, "{output}");
        output
    };
    assert_eq!(client(&sandbox, "e1", "set answer 42"), "OK\n");
    assert_eq!(client(&sandbox, "e2", "eval 'for n=1,20000 do redis.call(\"set\", n, n*n) end' 0"), "\n");
    save(&sandbox, "c", "checkpoint", &image);
    drop(sandbox);

    let sandbox = restore("c", &spec, &image);
    assert_eq!(client(&sandbox, "e1", "get answer"), "42\n");
    assert_eq!(client(&sandbox, "e2", "get 19999"), "399960001\n");
    assert_eq!(client(&sandbox, "e3", "incr answer"), "43\n");
    assert_eq!(client(&sandbox, "e4", "dbsize"), "20001\n");
    // It works as before, its threads and timers included.
    assert_eq!(client(&sandbox, "e5", "set soon gone px 200"), "OK\n");
    assert_eq!(client(&sandbox, "e6", "flushall async"), "OK\n");
    assert_eq!(client(&sandbox, "e7", "dbsize"), "0\n");
    sandbox.signal("c", "", 15).unwrap();
    assert_eq!(sandbox.wait("c", "").unwrap(), 0);
}

#[test]
fn what_goes_on_was_not_touched() {
    let program = "import sys\nfor n, line in enumerate(sys.stdin): print(n, line.strip(), flush=True)";
    let spec = python(program);
    let image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    sandbox.run("c", &spec);
    sandbox.write("c", "", b"a\n").unwrap();
    assert_eq!(sandbox.read_until("c", "", "\n"), "0 a\n");
    save(&sandbox, "c", "leave-running", &image);
    sandbox.write("c", "", b"b\n").unwrap();
    assert_eq!(sandbox.read_until("c", "", "\n"), "1 b\n");
    // The same image in two sandboxes beside it.
    let others = [restore("c", &spec, &image), restore("d", &spec, &image)];
    for (id, other) in ["c", "d"].into_iter().zip(&others) {
        other.write(id, "", b"c\n").unwrap();
        assert_eq!(other.read_until(id, "", "\n"), "1 c\n");
    }
    sandbox.pause("c", true).unwrap();
    save(&sandbox, "c", "leave-running", &image);
    sandbox.pause("c", false).unwrap();
    sandbox.write("c", "", b"d\n").unwrap();
    assert_eq!(sandbox.read_until("c", "", "\n"), "2 d\n");
    sandbox.close_input("c", "").unwrap();
    assert_eq!(sandbox.wait("c", "").unwrap(), 0);
}

#[test]
fn what_cannot_be_kept_is_named_and_the_container_goes_on() {
    let program = r#"
import os, sys, socket, select, ctypes, fcntl
a, b = socket.socketpair()
os.mkfifo('/tmp/fifo')
f = os.open('/tmp/fifo', os.O_RDWR)
locked = open('/tmp/locked', 'w')
fcntl.flock(locked, fcntl.LOCK_EX)
i = ctypes.CDLL(None).inotify_init()
print('ready', a.fileno(), f, locked.fileno(), i, flush=True)
for line in sys.stdin: print(line.strip(), flush=True)
"#;
    let image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    sandbox.run("c", &python(program));
    let ready = sandbox.read_until("c", "", "\n");
    let fds: Vec<&str> = ready.trim().split(' ').skip(1).collect();
    sandbox.exec("c", "e", &harness::process(&["sleep", "1000"])).unwrap();
    let answer = ask(&sandbox, "c", "checkpoint", &image);
    for (fd, what) in fds.iter().zip(["a socket of family 1", "/tmp/fifo", "holds a lock", "inotify"]) {
        let at = format!("process 1, descriptor {fd}: ");
        assert!(answer.contains(&at) && answer.contains(what), "{at} {what}: {answer}");
    }
    assert!(answer.contains("put into the container from outside (exec)"), "{answer}");
    sandbox.write("c", "", b"still here\n").unwrap();
    assert_eq!(sandbox.read_until("c", "", "\n"), "still here\n");
    let answer = ask(&sandbox, "nobody", "checkpoint", &image);
    assert!(answer.contains("container nobody does not exist"), "{answer}");
}

#[test]
fn a_broken_image_is_refused_with_words() {
    let spec = python("import sys; print('up', flush=True); sys.stdin.read()");
    let mut image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    sandbox.run("c", &spec);
    sandbox.read_until("c", "", "up");
    save(&sandbox, "c", "checkpoint", &image);
    let mut whole = Vec::new();
    image.seek(SeekFrom::Start(0)).unwrap();
    image.read_to_end(&mut whole).unwrap();
    let sandbox = Sandbox::start(&[]);
    let refused = |bytes: &[u8], spec: &oci::Spec| {
        let mut image = tempfile::tempfile().unwrap();
        image.write_all(bytes).unwrap();
        save(&sandbox, "c", "restore", &image);
        sandbox.create("c", spec).unwrap_err().to_string()
    };
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let mut other = spec.clone();
    other.Mounts.pop();
    for (bytes, spec, words) in [
        (Vec::new(), &spec, "no image of a checkpoint"),
        (vec![0; 5000], &spec, "no image of a checkpoint"),
        (changed(0), &spec, "no image of a checkpoint"),
        (changed(16), &spec, "version 0"),
        (changed(30), &spec, "header is damaged"),
        (changed(5000), &spec, "part with memory and files is damaged"),
        (changed(whole.len() - 1), &spec, "state is damaged"),
        (whole[..whole.len() - 1].to_vec(), &spec, "state is cut off"),
        (whole[..whole.len() / 2].to_vec(), &spec, "cut off"),
        ([whole.as_slice(), b"x"].concat(), &spec, "longer than it says"),
        (whole.clone(), &other, "other mounts: /tmp"),
    ] {
        let error = refused(&bytes, spec);
        assert!(error.contains(words), "{words}: {error}");
    }
    // And the sandbox takes the right one.
    save(&sandbox, "c", "restore", &image);
    sandbox.run("c", &spec);
    sandbox.close_input("c", "").unwrap();
    assert_eq!(sandbox.wait("c", "").unwrap(), 0);
}

#[test]
fn traced_guests_go_on_and_another_platform_refuses_them() {
    let spec = python("import sys\nfor n, line in enumerate(sys.stdin): print(n, line.strip(), flush=True)");
    let image = tempfile::tempfile().unwrap();
    let ptrace = ["--platform", "ptrace"];
    let sandbox = Sandbox::start(&ptrace);
    sandbox.run("c", &spec);
    sandbox.write("c", "", b"a\n").unwrap();
    assert_eq!(sandbox.read_until("c", "", "\n"), "0 a\n");
    save(&sandbox, "c", "checkpoint", &image);

    let sandbox = Sandbox::start(&["--platform", "systrap"]);
    save(&sandbox, "c", "restore", &image);
    let error = sandbox.create("c", &spec).unwrap_err().to_string();
    assert!(error.contains("of platform ptrace, and this is systrap"), "{error}");

    let sandbox = Sandbox::start(&ptrace);
    save(&sandbox, "c", "restore", &image);
    sandbox.run("c", &spec);
    sandbox.write("c", "", b"b\n").unwrap();
    assert_eq!(sandbox.read_until("c", "", "\n"), "1 b\n");
    sandbox.close_input("c", "").unwrap();
    assert_eq!(sandbox.wait("c", "").unwrap(), 0);
}

/// The container's profile is that of its bundle, before and after; a filter that a process has given itself cannot be kept.
#[test]
fn a_profile_of_calls_holds_afterwards_too() {
    const ASKS: &str = r"
import sys, socket, ctypes, struct
C = ctypes.CDLL(None)
for line in sys.stdin:
    if line == 'filter\n':
        allow = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))
        program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 1, ctypes.addressof(allow)))
        C.prctl(38, 1, 0, 0, 0)
        print('filtered', C.prctl(22, 2, program), flush=True)
        continue
    try:
        socket.sethostname('x')
        print('set', flush=True)
    except OSError as error:
        print('errno', error.errno, flush=True)
";
    let mut spec = python(ASKS);
    spec.Linux.mut_or_insert_default().Seccomp = Some(oci::LinuxSeccomp {
        DefaultAction: "SCMP_ACT_ALLOW".to_owned(),
        Syscalls: vec![oci::LinuxSyscall {
            Names: vec!["sethostname".to_owned()],
            Action: "SCMP_ACT_ERRNO".to_owned(),
            ErrnoRet: Some(oci::linux_syscall::ErrnoRet::Errnoret(95)),
            ..Default::default()
        }],
        ..Default::default()
    })
    .into();
    let image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    let asked = |sandbox: &Sandbox, line: &[u8]| {
        sandbox.write("c", "", line).unwrap();
        sandbox.read_until("c", "", "\n")
    };
    sandbox.run("c", &spec);
    assert_eq!(asked(&sandbox, b"\n"), "errno 95\n");
    save(&sandbox, "c", "checkpoint", &image);

    let sandbox = restore("c", &spec, &image);
    assert_eq!(asked(&sandbox, b"\n"), "errno 95\n");
    save(&sandbox, "c", "leave-running", &image);
    assert_eq!(asked(&sandbox, b"filter\n"), "filtered 0\n");
    let answer = ask(&sandbox, "c", "checkpoint", &image);
    assert!(answer.contains("process 1: it has a filter of system calls of its own"), "{answer}");
    assert_eq!(asked(&sandbox, b"\n"), "errno 95\n");
}
