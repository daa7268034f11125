//! Checkpoint and restore of containers of `kata-cc-sentry serve`: what goes on after it, and what is refused.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may panic, and tells what it does not do"
)]

#[path = "checkpoint/around.rs"]
mod around;
#[path = "serve/harness.rs"]
#[allow(dead_code, reason = "each file of tests uses a part")]
mod harness;

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Called, Sandbox, context, sockets, spec};
use kata_cc_agent_protocol::agent as api;
use kata_cc_agent_protocol::oci;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// What the sentry says of an image that is whole.
const WRITTEN: &str = "{\"written\":true}\n";

/// Asks for something to be done with an image: the answer. An image that is whole is kept.
fn ask(sandbox: &Sandbox, id: &str, what: &str, image: &File) -> String {
    let socket = begin(sandbox.folder.path(), id, what, image);
    let first = line(&socket);
    if first != WRITTEN {
        return first;
    }
    (&socket).write_all(b"{\"kept\":true}\n").unwrap();
    line(&socket)
}

fn line(mut socket: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(&mut socket).read_line(&mut line).unwrap();
    line
}

fn begin(folder: &Path, id: &str, what: &str, image: &File) -> UnixStream {
    let socket = UnixStream::connect(sockets(folder).1).unwrap();
    let line = format!("{{\"container\":\"{id}\",\"image\":\"{what}\"}}\n");
    let numbers = [image.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&numbers)];
    let slices = [IoSlice::new(line.as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &slices, &rights, MsgFlags::empty(), None).unwrap();
    socket
}

/// How far what is done with a container's image has come.
fn progress(folder: &Path, id: &str) -> String {
    let socket = UnixStream::connect(sockets(folder).1).unwrap();
    (&socket).write_all(format!("{{\"container\":\"{id}\",\"progress\":true}}\n").as_bytes()).unwrap();
    line(&socket)
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

/// A container of this image reads its input to its end, and ends well.
fn goes_on_and_ends(sandbox: &Sandbox, spec: &oci::Spec, image: &File) {
    save(sandbox, "c", "restore", image);
    sandbox.run("c", spec);
    sandbox.close_input("c", "").unwrap();
    assert_eq!(sandbox.wait("c", "").unwrap(), 0);
}

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
open('/tmp/leased', 'w').close()
leased = open('/tmp/leased')
fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_RDLCK)
folder = os.open('/tmp', os.O_RDONLY)
fcntl.fcntl(folder, fcntl.F_NOTIFY, fcntl.DN_ATTRIB)
print('ready', a.fileno(), f, locked.fileno(), i, leased.fileno(), folder, flush=True)
for line in sys.stdin: print(line.strip(), flush=True)
"#;
    let image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    sandbox.run("c", &python(program));
    let ready = sandbox.read_until("c", "", "\n");
    let fds: Vec<&str> = ready.trim().split(' ').skip(1).collect();
    sandbox.exec("c", "e", &harness::process(&["sleep", "1000"])).unwrap();
    let answer = ask(&sandbox, "c", "checkpoint", &image);
    let refused = [
        "a socket of family 1",
        "/tmp/fifo",
        "holds a lock",
        "inotify",
        "holds a lock or a lease",
        "F_NOTIFY",
    ];
    for (fd, what) in fds.iter().zip(refused) {
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
        (changed(16), &spec, "version 3"),
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
    goes_on_and_ends(&sandbox, &spec, &image);
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

const COUNT: &str = "import sys\nfor n, line in enumerate(sys.stdin): print(n, line.strip(), flush=True)";

/// Lets a container that counts lines tell the next one.
fn counts(sandbox: &Sandbox, id: &str, number: u32) {
    sandbox.write(id, "", b"line\n").unwrap();
    assert_eq!(sandbox.read_until(id, "", "\n"), format!("{number} line\n"));
}

#[test]
fn a_container_whose_image_nobody_keeps_goes_on() {
    let image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    sandbox.run("c", &python(COUNT));
    counts(&sandbox, "c", 0);
    let folder = sandbox.folder.path();
    // It goes away when the image is whole: the verb was killed, or could not give the image its name.
    let socket = begin(folder, "c", "checkpoint", &image);
    assert_eq!(line(&socket), WRITTEN);
    let busy = "an image of the container is being written or read";
    let refused = |called: Called<()>| called.unwrap_err().to_string();
    assert!(refused(sandbox.exec("c", "e", &harness::process(&["true"]))).contains(busy));
    assert!(refused(sandbox.pause("c", false)).contains(busy));
    let other = tempfile::tempfile().unwrap();
    assert!(ask(&sandbox, "c", "leave-running", &other).contains(busy));
    sandbox.write("c", "", b"line\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    drop(socket);
    assert_eq!(sandbox.read_until("c", "", "\n"), "1 line\n");
    // It says no, or something else.
    for answer in ["{\"kept\":false}\n", "what\n"] {
        let socket = begin(folder, "c", "checkpoint", &image);
        assert_eq!(line(&socket), WRITTEN);
        (&socket).write_all(answer.as_bytes()).unwrap();
        let told = line(&socket);
        assert!(told.contains("the image is not kept, and the container goes on"), "{told}");
    }
    counts(&sandbox, "c", 2);
    // It goes away while the image is written.
    drop(begin(folder, "c", "checkpoint", &image));
    counts(&sandbox, "c", 3);
    // One that was paused stays so, and one that is removed goes.
    let pause = |paused| {
        let begun = Instant::now();
        while sandbox.pause("c", paused).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{}", sandbox.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    pause(true);
    let socket = begin(folder, "c", "checkpoint", &image);
    assert_eq!(line(&socket), WRITTEN);
    drop(socket);
    pause(false);
    counts(&sandbox, "c", 4);
    let socket = begin(folder, "c", "checkpoint", &image);
    assert_eq!(line(&socket), WRITTEN);
    sandbox.remove("c").unwrap();
    sandbox.run("c", &python(COUNT));
    counts(&sandbox, "c", 0);
}

/// Has 256 MiB in memory that are no zeros.
const LARGE: &str =
    "import sys\nheld = bytes(range(1, 256)) * (1 << 20)\nprint('up', flush=True)\nsys.stdin.read()";

/// Answers of another container until `done`: how many, and how long one took at most.
async fn answered(sandbox: &Sandbox, done: impl Fn() -> bool) -> (u32, Duration) {
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !done() {
        let begun = Instant::now();
        let request = api::StatsContainerRequest { container_id: "o".to_owned(), ..Default::default() };
        sandbox.client.stats_container(context(), &request).await.unwrap();
        longest = longest.max(begun.elapsed());
        count += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (count, longest)
}

#[test]
fn others_are_answered_while_an_image_is_written_or_read() {
    let image = tempfile::tempfile().unwrap();
    let sandbox = Sandbox::start(&[]);
    sandbox.run("o", &python(COUNT));
    sandbox.run("c", &python(LARGE));
    sandbox.read_until("c", "", "up");
    let folder = sandbox.folder.path().to_owned();
    let begun = Instant::now();
    let (of, watched, file) = (folder.clone(), folder.clone(), image.try_clone().unwrap());
    let saved = std::thread::spawn(move || line(&begin(&of, "c", "leave-running", &file)));
    let far = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        [progress(&watched, "c"), progress(&watched, "nobody")]
    });
    let (count, longest) = sandbox.runtime.block_on(answered(&sandbox, || saved.is_finished()));
    assert_eq!(saved.join().unwrap(), "{\"ok\":true}\n");
    let all = begun.elapsed();
    eprintln!("written in {all:?}: {count} answers, the longest took {longest:?}");
    assert!(count > 4 && longest < all / 2, "{count} answers, the longest took {longest:?} of {all:?}");
    let [of_it, of_nobody] = far.join().unwrap();
    assert!(
        of_it.starts_with("{\"progress\":") && of_nobody.contains("does not exist"),
        "{of_it} {of_nobody}"
    );
    assert_eq!(progress(&folder, "c"), "{\"progress\":0}\n");
    sandbox.remove("c").unwrap();

    save(&sandbox, "c", "restore", &image);
    let begun = Instant::now();
    let done = std::cell::Cell::new(false);
    let mut request = api::CreateContainerRequest::new();
    request.container_id = "c".to_owned();
    request.OCI = Some(python(LARGE)).into();
    let create = async {
        let created = sandbox.client.create_container(context(), &request).await;
        done.set(true);
        created.map(drop).map_err(|error| error.to_string())
    };
    let both = async { tokio::join!(create, answered(&sandbox, || done.get())) };
    let (created, (count, longest)) = sandbox.runtime.block_on(both);
    created.unwrap();
    let all = begun.elapsed();
    eprintln!("read in {all:?}: {count} answers, the longest took {longest:?}");
    assert!(count > 4 && longest < all / 2, "{count} answers, the longest took {longest:?} of {all:?}");
    // One that is removed while it is made is given up.
    sandbox.remove("c").unwrap();
    save(&sandbox, "c", "restore", &image);
    let removed = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let request = api::RemoveContainerRequest { container_id: "c".to_owned(), ..Default::default() };
        sandbox.client.remove_container(context(), &request).await
    };
    let create = sandbox.client.create_container(context(), &request);
    let (created, removed) = sandbox.runtime.block_on(async { tokio::join!(create, removed) });
    match (created, removed) {
        (Err(error), _) => assert!(error.to_string().contains("nobody waits for it"), "{error}"),
        // A fast machine has made it by then.
        (Ok(_), removed) => drop(removed.unwrap()),
    }
    sandbox.run("c", &python(COUNT));
    counts(&sandbox, "c", 0);
    counts(&sandbox, "o", 0);
}
