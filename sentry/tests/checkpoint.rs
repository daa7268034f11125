//! Checkpoint and restore of containers of `kata-cc-sentry serve`: what goes on after it, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

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
