//! The sentry on a network: a veth in a namespace that stands for a pod's, the host's own kernel with python at the other end.
//!
//! It needs root, `ip` and python3; where one is missing nothing is tested, and that is said.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "network/lab.rs"]
#[allow(dead_code, reason = "each file of tests uses a part")]
mod lab;

use std::io::BufRead as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::{Lab, PYTHON, Running, SERVER, client, ip};

#[test]
fn a_client_in_the_sandbox() {
    let Some(lab) = Lab::new(false) else { return };
    let server = lab.outside(SERVER).ready();
    let talk = client("['10.77.0.1', 'fd77::1']", 10_000_000, true);
    assert_eq!(lab.inside(&talk).printed(), "[True, True] [True, True]\n");
    server.printed();
}

#[test]
fn a_server_in_the_sandbox() {
    let Some(lab) = Lab::new(false) else { return };
    let server = lab.inside(SERVER).ready();
    let talk = client("['10.77.0.2', 'fd77::2']", 10_000_000, true);
    assert_eq!(lab.outside(&talk).printed(), "[True, True] [True, True]\n");
    server.printed();
}

/// Programs of the sandbox reach each other by loopback and by the pod's address, at the sockets that are reached from outside.
#[test]
fn one_socket_serves_loopback_and_outside() {
    let Some(lab) = Lab::new(false) else { return };
    let own = client("['127.0.0.1', '::1', '10.77.0.2', 'fd77::2']", 100_000, true);
    let script = format!("import threading\nexec('''{}''')\n", SERVER.replace("sys.stdin.read()", ""));
    let script = format!("{script}{own}\nsys.stdin.read()");
    let mut server = lab.inside(&script).ready();
    let mut line = String::new();
    server.lines.read_line(&mut line).unwrap();
    assert_eq!(line, "[True, True, True, True] [True, True, True, True]\n");
    let talk = client("['10.77.0.2', 'fd77::2']", 100_000, true);
    assert_eq!(lab.outside(&talk).printed(), "[True, True] [True, True]\n");
    server.printed();
}

/// What programs are told when it does not work, as Linux tells it.
#[test]
fn errors_by_the_book() {
    let Some(lab) = Lab::new(false) else { return };
    let script = r"
import errno, socket
def name(f):
    try: return f()
    except OSError as e: return errno.errorcode.get(e.errno, repr(e))
def connect(address, family=socket.AF_INET, source=None):
    s = socket.socket(family); s.settimeout(30)
    if source: s.bind(source)
    return name(lambda: s.connect(address))
print(connect(('10.77.0.1', 1)), connect(('fd77::1', 1), socket.AF_INET6), connect(('10.77.0.99', 1)))
print(connect(('2001:db8::1', 1), socket.AF_INET6), connect(('10.77.0.1', 1), source=('127.0.0.1', 0)))
s = socket.socket(); print(name(lambda: s.bind(('10.77.0.3', 0))))
for family, peer in (socket.AF_INET, '10.77.0.1'), (socket.AF_INET6, 'fd77::1'):
    u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(10); u.connect((peer, 9)); u.send(b'x')
    print(name(lambda: u.recv(1)))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print(name(lambda: u.sendto(b'x', ('255.255.255.255', 9))))
u.setsockopt(socket.IPPROTO_IP, 10, 2)
print(name(lambda: u.sendto(b'x' * 2000, ('10.77.0.1', 9))))
s = socket.socket(); s.settimeout(1)
try: s.connect(('10.77.0.77', 1)); print('?')
except TimeoutError: print('timeout')
";
    let expected = "ECONNREFUSED ECONNREFUSED EHOSTUNREACH\nENETUNREACH EINVAL\nEADDRNOTAVAIL\nECONNREFUSED\nECONNREFUSED\n\
                    EACCES\nEMSGSIZE\ntimeout\n";
    assert_eq!(lab.inside(script).printed(), expected);
}

#[test]
fn echo_both_ways() {
    let Some(lab) = Lab::new(false) else { return };
    // Raw and datagram sockets; the sandbox itself; a size that does not fit into one packet.
    let script = r"
import socket, struct, sys
def checksum(b):
    s = sum(struct.unpack('>%dH' % (len(b) // 2), b)); s = (s >> 16) + (s & 0xffff); return ~(s + (s >> 16)) & 0xffff
def ping(peer, kind, size):
    wide = ':' in peer
    s = socket.socket(socket.AF_INET6 if wide else socket.AF_INET, kind, 58 if wide else 1); s.settimeout(10)
    head = struct.pack('>BBHHH', 128 if wide else 8, 0, 0, 77, 1)
    body = b'p' * size
    if kind == socket.SOCK_RAW and not wide: head = head[:2] + struct.pack('>H', checksum(head + body)) + head[4:]
    s.sendto(head + body, (peer, 0))
    while True:
        got, who = s.recvfrom(70000)
        if kind == socket.SOCK_RAW and not wide: got = got[20:]
        if got[0] == (129 if wide else 0): return got[8:] == body and who[0] == peer
print([ping(p, k, n) for p in PEERS for k in KINDS for n in (56, 4000)], flush=True)
print('ready', flush=True); sys.stdin.read()
";
    let both = "import socket; KINDS = (socket.SOCK_DGRAM, socket.SOCK_RAW)\n";
    let raw = "import socket; KINDS = (socket.SOCK_RAW,)\n";
    let inside = format!("{both}PEERS = ['10.77.0.1', 'fd77::1', '127.0.0.1', '10.77.0.2']\n{script}");
    let mut running = lab.inside(&inside);
    let mut line = String::new();
    running.lines.read_line(&mut line).unwrap();
    assert_eq!(line, format!("[{}]\n", ["True"; 16].join(", ")));
    let running = running.ready();
    let outside = format!("{raw}PEERS = ['10.77.0.2', 'fd77::2']\n{script}");
    assert_eq!(lab.outside(&outside).printed(), "[True, True, True, True]\nready\n");
    running.printed();
}

/// A line that loses, repeats and reorders frames.
#[test]
fn a_bad_line() {
    let Some(lab) = Lab::new(true) else { return };
    let relay = r"
import heapq, random, select, socket, sys, time
def port(name):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    for option in 23, 15: s.setsockopt(263, option, 1)
    s.bind((name, 3)); s.setblocking(False); return s
a, b = port('m0'), port('m1'); other = {a: b, b: a}; late = []; n = 0; random.seed(7)
print('ready', flush=True)
while True:
    wait = max(0, late[0][0] - time.time()) if late else None
    ready = select.select([a, b, sys.stdin], [], [], wait)[0]
    if sys.stdin in ready: break
    for s in ready:
        try: f = s.recv(70000)
        except BlockingIOError: continue
        if random.random() < 0.03: continue
        for _ in range(1 + (random.random() < 0.03)):
            n += 1; heapq.heappush(late, (time.time() + 0.001 * (1 + 2 * (random.random() < 0.1)), n, other[s], f))
    while late and late[0][0] <= time.time():
        _, _, o, f = heapq.heappop(late)
        try: o.send(f)
        except OSError: pass
";
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &lab.middle, PYTHON, "-c", relay]);
    let relay = Running::start(command).ready();
    let server = lab.outside(SERVER).ready();
    let talk = client("['10.77.0.1', 'fd77::1']", 2_000_000, false);
    assert_eq!(lab.inside(&talk).printed(), "[True, True] \n");
    server.printed();
    assert!(lab.give_addresses());
    let server = lab.inside(SERVER).ready();
    let talk = client("['10.77.0.2']", 2_000_000, false);
    assert_eq!(lab.outside(&talk).printed(), "[True] \n");
    server.printed();
    relay.printed();
}

/// Many connections, a backlog that is full, ends in every order.
#[test]
fn many_connections() {
    let Some(lab) = Lab::new(false) else { return };
    let server = lab.outside(SERVER).ready();
    let script = r"
import socket
all = [socket.create_connection(('10.77.0.1', 7000), 30) for _ in range(300)]
for n, s in enumerate(all): s.sendall(b'%d' % n)
print(sum(s.recv(9) == b'%d' % n for n, s in enumerate(all)))
for s in all: s.close()
for n in range(200):
    s = socket.create_connection(('10.77.0.1', 7000), 30); s.sendall(b'x')
    assert s.recv(1) == b'x'
    if n % 2: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
    s.close()
";
    assert_eq!(lab.inside(script).printed(), "300\n");
    server.printed();
    assert!(lab.give_addresses());
    let script = r"
import socket, sys
l = socket.socket(); l.bind(('', 7000)); l.listen(2)
print('ready', flush=True); sys.stdin.readline()
n = 0; l.settimeout(5)
try:
    while True: c, _ = l.accept(); n += 1; c.close()
except TimeoutError: print(n)
";
    let mut server = lab.inside(script).ready();
    // As on Linux three are there; more wait until one is accepted, and then come in by a SYN that is sent again.
    let script = r"
import errno, select, socket, time
all = []
for _ in range(6):
    s = socket.socket(); s.setblocking(False); s.connect_ex(('10.77.0.2', 7000)); all.append(s)
    time.sleep(0.3)
print(len(select.select([], all, [], 0)[1]))
print('ready', flush=True)
end = time.time() + 20
while time.time() < end and len(select.select([], all, [], 0.1)[1]) < 6: time.sleep(0.05)
print(len(select.select([], all, [], 0)[1]))
";
    let mut clients = lab.outside(script);
    let mut line = String::new();
    clients.lines.read_line(&mut line).unwrap();
    assert_eq!(line, "3\n");
    let clients = clients.ready();
    server.tell("go\n");
    assert_eq!(clients.printed(), "6\n");
    assert_eq!(server.printed(), "6\n");
}

/// The host's kernel says nothing in the sandbox' place: of everything there is one answer.
#[test]
fn the_host_keeps_quiet() {
    let Some(lab) = Lab::new(false) else { return };
    let watch = r"
import socket, struct, sys, threading
p = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); p.bind(('out0', 0)); p.settimeout(0.2)
print('ready', flush=True)
seen = {'rst': 0, 'synack': 0, 'arp': 0, 'unreachable': 0, 'echo': 0}
asked = []
stop = threading.Event()
def look():
    while not stop.is_set():
        try: f, a = p.recvfrom(70000)
        except TimeoutError: continue
        if a[2] == 4:
            if f[12:14] == b'\x08\x06' and f[20:22] == b'\0\1': asked.append(f)
            continue
        if f[12:14] == b'\x08\x06': seen['arp'] += f[20:22] == b'\0\2'
        if f[12:14] == b'\x08\0' and f[23] == 6: seen['rst'] += f[47] >> 2 & 1; seen['synack'] += f[47] & 0x12 == 0x12
        if f[12:14] == b'\x08\0' and f[23] == 1: seen['unreachable'] += f[34] == 3; seen['echo'] += f[34] == 0
t = threading.Thread(target=look); t.start()
for port in 7000, 7001:
    s = socket.socket()
    print(s.connect_ex(('10.77.0.2', port)))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('10.77.0.2', 9)); u.send(b'x')
r = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); r.sendto(b'\x08\0\xf7\xfe\0\0\0\1', ('10.77.0.2', 0))
import time; time.sleep(1); stop.set(); t.join(); seen['arp'] -= len(asked); print(len(asked) > 0, sorted(seen.items()))
";
    let server = lab.inside(SERVER).ready();
    let printed = lab.outside(watch).ready().printed();
    let expected = "0\n111\nTrue [('arp', 0), ('echo', 1), ('rst', 1), ('synack', 1), ('unreachable', 1)]\n";
    assert_eq!(printed, expected);
    server.printed();
}

#[test]
fn names_are_resolved_and_tools_see_the_interface() {
    let Some(lab) = Lab::new(false) else { return };
    let resolver = r"
import socket, sys, threading
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('0.0.0.0', 53))
def serve():
    while True:
        q, a = u.recvfrom(1500); i = 12
        while q[i]: i += q[i] + 1
        head, name = q[:2] + b'\x81\x80\0\1', q[12:i + 5]
        if q[i + 2] == 1: r = head + b'\0\1\0\0\0\0' + name + b'\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x0a\x4d\0\1'
        else: r = head + b'\0\0\0\0\0\0' + name
        u.sendto(r, a)
threading.Thread(target=serve, daemon=True).start()
print('ready', flush=True); sys.stdin.read()
";
    let server = lab.outside(resolver).ready();
    let script = "rm -f /etc/resolv.conf; echo nameserver 10.77.0.1 > /etc/resolv.conf; getent ahostsv4 a.example.org | head -1; \
                  ip -o -4 address show dev eth0 | tr -s ' ' | cut -d' ' -f2-6; ip route; ip route get 192.0.2.1 | head -1 | cut -d' ' -f1-7; \
                  cut -f1-4 /proc/net/route | tail -2; cat /sys/class/net/eth0/address 2>/dev/null; ip neighbour | cut -d' ' -f1-3";
    let output = Running::start(lab.sentry(&["/bin/bash", "-c", script])).printed();
    let expected = "10.77.0.1       STREAM a.example.org\neth0 inet 10.77.0.2/24 brd 10.77.0.255\ndefault via 10.77.0.1 dev eth0 \n\
                    10.77.0.0/24 dev eth0 proto kernel scope link src 10.77.0.2 \n192.0.2.1 via 10.77.0.1 dev eth0 src 10.77.0.2\n\
                    eth0\t00000000\t01004D0A\t0003\neth0\t00004D0A\t00000000\t0001\n10.77.0.1 dev eth0\n";
    assert_eq!(output, expected);
    server.printed();
}

/// A tap, of which the sandbox' end has what it was told; the host's end is an interface of the host.
#[test]
fn a_tap() {
    let Some(lab) = Lab::new(false) else { return };
    if !Path::new("/dev/net/tun").exists() {
        eprintln!("not tested: /dev/net/tun is missing");
        return;
    }
    let network = format!("tap=tap9,address=10.88.0.2/24,gateway=10.88.0.1,netns=/run/netns/{}", lab.out);
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry"));
    let wait = format!("import time; time.sleep(1)\n{}", client("['10.88.0.1']", 3_000_000, true));
    command.args(["do", "--network", &network, "--", PYTHON, "-c", &wait]).env("KATA_CC_LOG", "warn");
    let server = lab.outside(SERVER).ready();
    let running = Running::start(command);
    let begin = Instant::now();
    while !ip(&format!("-n {} address add 10.88.0.1/24 dev tap9", lab.out)) {
        assert!(begin.elapsed() < Duration::from_secs(10), "there is no tap");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(ip(&format!("-n {} link set tap9 up", lab.out)));
    assert_eq!(running.printed(), "[True] [True]\n");
    server.printed();
}

#[test]
fn what_cannot_be_taken_over_is_said() {
    let Some(lab) = Lab::new(false) else { return };
    let fails = |network: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry"));
        let output = command.args(["do", "--network", network, "--", "/bin/true"]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let inside = format!("netns=/run/netns/{}", lab.pod);
    assert!(fails(&format!("host-veth=eth7,{inside}")).contains("no interface eth7"));
    assert!(fails(&format!("host-veth=lo,{inside}")).contains("no Ethernet"));
    assert!(fails("host-veth=eth0,netns=/run/netns/no-such").contains("/run/netns/no-such"));
    assert!(fails("host").contains("host calls"));
    assert!(fails("bridge").contains("host-veth"));
    assert!(ip(&format!("-n {} link set eth0 down", lab.pod)));
    assert!(fails(&format!("host-veth=eth0,{inside}")).contains("is down"));
}
