//! Containers on their pod's network: a veth that lies in a namespace as a plugin leaves it, and a real Podman with a bridge, a published port and names.
//! The host's side is a network namespace of the test's own: bridges, rules and routes are made there.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use support::{Done, RUNTIME, World, eventually, finish};

fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split(' ')).output().is_ok_and(|output| output.status.success())
}

/// A network namespace, for as long as this.
struct Namespace(String);

impl Namespace {
    fn new(what: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kcc-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace = Self(name);
        if ip(&format!("netns add {}", namespace.0)) && ip(&format!("-n {} link set lo up", namespace.0)) {
            return Some(namespace);
        }
        kata_cc_test_vectors::skip("binaries", "network namespaces cannot be made: root and ip are needed");
        None
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// A command of its network; of the rest of the machine as it is.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &str) -> Done {
        let mut words = words.split(' ');
        let mut command = self.command(words.next().unwrap());
        finish(command.args(words))
    }

    /// Rules of its firewall, without how often each was met, and in an order.
    fn rules(&self) -> Vec<String> {
        let mut rules: Vec<String> = self.run("iptables-save").out.lines().map(str::to_owned).collect();
        rules.retain(|rule| rule.starts_with('-'));
        rules.sort();
        rules
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns delete {}", self.0));
    }
}

/// A program that runs until this is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves a page with this text at a port of any address; `busybox` and the words after it are the program.
fn page(text: &str, port: u16) -> String {
    format!(
        "mkdir -p /tmp/www; echo {text} >/tmp/www/index.html; exec busybox httpd -f -p {port} -h /tmp/www"
    )
}

fn get(from: &Namespace, url: &str) -> Done {
    from.run(&format!("busybox wget -T 5 -q -O - {url}"))
}

/// Containers of one pod, by the verbs: one serves, the other asks it by loopback; who is outside asks by the pod's address. Then the
/// namespace is as it was.
#[test]
fn containers_of_a_pod_are_on_its_network() {
    let (Some(world), Some(pod), Some(out)) = (World::new(), Namespace::new("pod"), Namespace::new("out"))
    else {
        return;
    };
    assert!(ip(&format!("link add eth0 netns {} type veth peer name out0 netns {}", pod.0, out.0)));
    assert!(ip(&format!("-n {} address add 10.67.0.1/24 dev out0", out.0)));
    assert!(ip(&format!("-n {} link set out0 up", out.0)));
    assert!(ip(&format!("-n {} address add 10.67.0.2/24 dev eth0", pod.0)));
    assert!(ip(&format!("-n {} link set eth0 up", pod.0)));
    assert!(ip(&format!("-n {} route add default via 10.67.0.1", pod.0)));
    let seen = || ["ip -4 -o address", "ip route"].map(|words| pod.run(words).out);
    let before = seen();
    let bundle = |name: &str, kind: &str, script: &str| {
        world.bundle_with(name, script, |spec| {
            spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "network", "path": pod.path()}]);
            spec["annotations"] =
                json!({"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "one"});
        })
    };
    let first = bundle("one", "sandbox", &page("by-the-first", 8000));
    let ask =
        "for n in 1 2 3 4 5; do busybox wget -T 5 -q -O - http://127.0.0.1:8000/ && break; sleep 1; done";
    let second = bundle("two", "container", &format!("{ask}; {}", page("by-the-second", 8001)));
    let process = world.create("one", &first);
    assert!(!seen()[0].contains("10.67.0.2"), "the sandbox has it now");
    world.run("start one").ok();
    world.create("two", &second);
    world.run("start two").ok();
    eventually("an answer of the other container", || world.output("two") == "by-the-first\n");
    eventually("the second server", || get(&out, "http://10.67.0.2:8001/").out == "by-the-second\n");
    assert_eq!(get(&out, "http://10.67.0.2:8000/").ok(), "by-the-first\n");
    world.run("delete --force two").ok();
    assert_eq!(get(&out, "http://10.67.0.2:8000/").ok(), "by-the-first\n");
    world.run("kill one KILL").ok();
    support::reap(process);
    world.run("delete one").ok();
    assert_eq!(seen(), before);

    // One that is deleted while it runs gives the interface back, too; one that wants none leaves it.
    let process = world.create("one", &first);
    assert_ne!(seen(), before);
    world.run("delete --force one").ok();
    support::reap(process);
    assert_eq!(seen(), before);
    let out_file = std::fs::File::create(world.path("none.out")).unwrap();
    let mut command = world.command("--network none create --bundle");
    command.arg(&first).arg("one").stdout(out_file.try_clone().unwrap()).stderr(out_file);
    assert!(command.status().unwrap().success(), "{}", world.output("none"));
    assert_eq!(seen(), before);
    world.run("delete --force one").ok();
    let refused = world.run("--network host list");
    assert!(refused.code != 0 && refused.err.contains("given up the calls"), "{refused:?}");
    world.nothing_left();
}

/// A Podman whose networks are those of a namespace.
struct Podman {
    world: World,
    host: Namespace,
}

impl Podman {
    fn new() -> Option<Self> {
        for program in ["podman", "iptables", "nsenter"] {
            if Command::new(program).arg("--version").output().is_err() {
                kata_cc_test_vectors::skip("binaries", &format!("there is no {program}"));
                return None;
            }
        }
        if !Path::new("/usr/lib/cni/bridge").exists() {
            kata_cc_test_vectors::skip("binaries", "there is no CNI: install containernetworking-plugins");
            return None;
        }
        let podman = Self { world: World::new()?, host: Namespace::new("host")? };
        let archive = podman.world.path("rootfs.tar");
        let bundle = podman.world.bundle("image", "true");
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&archive).arg("-C").arg(bundle.join("rootfs")).arg(".");
        assert!(tar.status().unwrap().success());
        podman.run(&["import", "--change", "ENV PATH=/bin", &archive.to_string_lossy(), "box"]).ok();
        podman.run(&["network", "create", "--subnet", "10.66.0.0/24", "kccnet"]).ok();
        Some(podman)
    }

    fn run(&self, words: &[&str]) -> Done {
        let mut command = self.host.command("podman");
        let folders = [
            ("--root", "storage"),
            ("--runroot", "runroot"),
            ("--tmpdir", "tmp"),
            ("--network-config-dir", "nets"),
        ];
        for (flag, name) in folders {
            command.arg(flag).arg(self.world.path(name));
        }
        command.args(["--storage-driver", "vfs", "--events-backend", "none", "--cgroup-manager", "cgroupfs"]);
        command.arg("--runtime").arg(RUNTIME).args(words);
        finish(&mut command)
    }

    /// A container in the background.
    fn start(&self, options: &[&str], script: &str) -> Done {
        let fixed = ["run", "--detach", "--log-driver=k8s-file", "--security-opt", "seccomp=unconfined"];
        self.run(&[&fixed, options, &["box", "sh", "-c", script]].concat())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.run(&["pod", "rm", "--all", "--force", "--time", "0"]);
        let _ = self.run(&["rm", "--all", "--force", "--time", "0"]);
        let _ = self.run(&["network", "rm", "--force", "kccnet"]);
    }
}

/// Answers each question for an address with 192.0.2.7.
const NAMES: &str = r"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('10.66.0.1', 53))
print('ready', flush=True)
while True:
    q, a = s.recvfrom(2048)
    end = q.index(b'\0', 12) + 5
    wide = q[end - 4:end - 2] != b'\0\1'
    answer = b'' if wide else b'\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\x07'
    s.sendto(q[:2] + b'\x81\x80' + q[4:6] + (b'\0\0' if wide else b'\0\1') + b'\0\0\0\0' + q[12:end] + answer, a)
";

#[test]
fn podman_connects_containers() {
    let Some(podman) = Podman::new() else { return };
    let host = &podman.host;
    podman
        .start(
            &["--name", "web", "--network", "kccnet", "--publish", "8080:8000", "--dns", "10.66.0.1"],
            &page("published", 8000),
        )
        .ok();
    eventually("the published port", || get(host, "http://10.66.0.1:8080/").out == "published\n");
    let address =
        podman.run(&["inspect", "--format", "{{.NetworkSettings.Networks.kccnet.IPAddress}}", "web"]).ok();
    assert_eq!(get(host, &format!("http://{}:8000/", address.trim())).ok(), "published\n");
    let rules = host.rules();

    // A second one asks the first, the host, and a server of names.
    let folder = podman.world.path("page");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("index.html"), "of the host\n").unwrap();
    let mut server = host.command("busybox");
    let server = Server(server.args(["httpd", "-f", "-p", "9000", "-h"]).arg(&folder).spawn().unwrap());
    podman.start(&["--name", "asks", "--network", "kccnet", "--dns", "10.66.0.1"], "exec sleep 1000").ok();
    let exec = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        podman.run(&[&["exec", "asks"][..], &words].concat())
    };
    assert_eq!(
        exec(&format!("busybox wget -T 5 -q -O - http://{}:8000/", address.trim())).ok(),
        "published\n"
    );
    eventually("the host's page", || {
        exec("busybox wget -T 5 -q -O - http://10.66.0.1:9000/").out == "of the host\n"
    });
    drop(server);
    assert_eq!(exec("busybox ping -c 2 -W 5 10.66.0.1").code, 0);
    assert_eq!(host.run(&format!("busybox ping -c 2 -W 5 {}", address.trim())).code, 0);
    if Path::new("/usr/bin/python3").exists() {
        let mut names = host.command("/usr/bin/python3");
        let mut names = Server(names.args(["-c", NAMES]).stdout(Stdio::piped()).spawn().unwrap());
        std::io::Read::read_exact(names.0.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
        let found = exec("busybox nslookup -type=a pod.example");
        assert!(found.out.contains("192.0.2.7"), "{found:?}");
    }

    // Plugins that take the network away find the addresses by which they know their rules.
    podman.run(&["rm", "--force", "--time", "0", "asks"]).ok();
    assert_eq!(host.rules(), rules);
    podman.run(&["rm", "--force", "--time", "0", "web"]).ok();
    let left = host.rules();
    assert!(!left.iter().any(|rule| rule.contains(address.trim())), "{left:?}");
    podman.world.nothing_left();
}
