//! A pod's network namespace, one outside, and programs that run in both.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) const PYTHON: &str = "/usr/bin/python3";
/// The longest that one program may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn ip(arguments: &str) -> bool {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    output.is_ok_and(|output| output.status.success())
}

/// A pod's namespace and one outside, with a wire between them.
pub(crate) struct Lab {
    pub(crate) pod: String,
    pub(crate) out: String,
    pub(crate) middle: String,
    pub(crate) bad: bool,
}

impl Lab {
    /// `bad`: between them is a program that loses and delays frames.
    pub(crate) fn new(bad: bool) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let [pod, out, middle] = ["pod", "out", "mid"].map(|what| format!("kcc-{what}-{id}"));
        let lab = Self { pod, out, middle, bad };
        if !nix::unistd::geteuid().is_root() || !Path::new(PYTHON).exists() || !lab.make() {
            eprintln!("not tested: this needs root, ip and {PYTHON}");
            return None;
        }
        Some(lab)
    }

    pub(crate) fn make(&self) -> bool {
        let Self { pod, out, middle, bad } = self;
        let mut done = ip(&format!("netns add {pod}")) && ip(&format!("netns add {out}"));
        if *bad {
            done &= ip(&format!("netns add {middle}"))
                && ip(&format!("link add eth0 netns {pod} type veth peer name m0 netns {middle}"))
                && ip(&format!("link add out0 netns {out} type veth peer name m1 netns {middle}"))
                && ip(&format!("-n {middle} link set m0 up"))
                && ip(&format!("-n {middle} link set m1 up"));
        } else {
            done &= ip(&format!("link add eth0 netns {pod} type veth peer name out0 netns {out}"));
        }
        done && ip(&format!("-n {out} link set out0 up"))
            && ip(&format!("-n {out} link set lo up"))
            && ip(&format!("-n {out} address add 10.77.0.1/24 dev out0"))
            && ip(&format!("-n {out} -6 address add fd77::1/64 dev out0 nodad"))
            && self.give_addresses()
    }

    /// What a CNI plugin does; each sandbox takes it off again.
    pub(crate) fn give_addresses(&self) -> bool {
        let pod = &self.pod;
        let enable = "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6";
        let _ = Command::new("ip").args(["netns", "exec", pod, "sh", "-c", enable]).status();
        ip(&format!("-n {pod} link set eth0 up"))
            && ip(&format!("-n {pod} address add 10.77.0.2/24 dev eth0"))
            && ip(&format!("-n {pod} -6 address add fd77::2/64 dev eth0 nodad"))
            && ip(&format!("-n {pod} route add default via 10.77.0.1"))
    }

    pub(crate) fn sentry(&self, program: &[&str]) -> Command {
        let network = format!("host-veth=eth0,netns=/run/netns/{}", self.pod);
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry"));
        command.args(["do", "--network", &network, "--"]).args(program).env("KATA_CC_LOG", "warn");
        command
    }

    /// Python in the sandbox, which has the network to itself.
    pub(crate) fn inside(&self, script: &str) -> Running {
        Running::start(self.sentry(&[PYTHON, "-c", script]))
    }

    /// Python outside.
    pub(crate) fn outside(&self, script: &str) -> Running {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.out, PYTHON, "-c", script]);
        Running::start(command)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.pod, &self.out, &self.middle] {
            ip(&format!("netns delete {name}"));
        }
    }
}

/// A program that runs.
pub(crate) struct Running {
    pub(crate) child: Option<Child>,
    pub(crate) lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child: Some(child), lines }
    }

    /// Waits for a line that says so.
    pub(crate) fn ready(mut self) -> Self {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        if line != "ready\n" {
            panic!("{line:?}: {:?}", self.end());
        }
        self
    }

    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.child.as_mut().unwrap().stdin.as_mut().unwrap();
        input.write_all(line.as_bytes()).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Output {
        let mut child = self.child.take().unwrap();
        drop(child.stdin.take());
        let begin = Instant::now();
        while child.try_wait().unwrap().is_none() && begin.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let mut output = child.wait_with_output().unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.lines, &mut rest).unwrap();
        output.stdout = rest.into_bytes();
        output
    }

    /// What it printed, having succeeded.
    pub(crate) fn printed(self) -> String {
        let output = self.end();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A server of echo by TCP and UDP, IPv4 and IPv6, until its input ends.
pub(crate) const SERVER: &str = r"
import socket, sys, threading
def serve(c):
    try:
        while True:
            b = c.recv(1 << 18)
            if not b: break
            c.sendall(b)
    except OSError: pass
    c.close()
l = socket.socket(socket.AF_INET6)
l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.bind(('::', 7000)); l.listen(256)
def accept():
    while True:
        c, _ = l.accept()
        threading.Thread(target=serve, args=(c,), daemon=True).start()
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.bind(('::', 7000))
def datagrams():
    while True:
        b, a = u.recvfrom(70000)
        u.sendto(b, a)
for f in accept, datagrams: threading.Thread(target=f, daemon=True).start()
print('ready', flush=True)
sys.stdin.read()
";

/// Talks to the server at the addresses that stand in `PEERS`.
pub(crate) const CLIENT: &str = r"
import hashlib, socket, threading
def tcp(peer):
    s = socket.create_connection((peer, 7000)); s.settimeout(60)
    data = bytes(range(256)) * (SIZE // 256)
    def write(): s.sendall(data); s.shutdown(socket.SHUT_WR)
    t = threading.Thread(target=write); t.start()
    got, h = 0, hashlib.sha256()
    while True:
        b = s.recv(1 << 18)
        if not b: break
        got += len(b); h.update(b)
    t.join()
    return got == len(data) and h.digest() == hashlib.sha256(data).digest()
def udp(peer):
    s = socket.socket(socket.AF_INET6 if ':' in peer else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)
    for n in 0, 1, 1452, 1473, 9000, 65000:
        s.sendto(b'u' * n, (peer, 7000))
        if len(s.recv(70000)) != n: return False
    return True
print([tcp(p) for p in PEERS], [udp(p) for p in PEERS] if WITH_UDP else '', flush=True)
";

pub(crate) fn client(peers: &str, size: usize, udp: bool) -> String {
    let udp = if udp { "True" } else { "False" };
    format!("PEERS = {peers}; SIZE = {size}; WITH_UDP = {udp}\n{CLIENT}")
}
