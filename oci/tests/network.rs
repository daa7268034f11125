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

/// Asks for a page, in words of a shell. (A static `wget` crashes where the C library looks for modules of names.)
fn asking(host: &str, port: u16) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 5 {host} {port}")
}

fn get(from: &Namespace, host: &str, port: u16) -> String {
    let mut shell = from.command("sh");
    finish(shell.arg("-c").arg(asking(host, port))).out
}

/// A pod's namespace whose `eth0` has an address and a route, and the one at the other end.
fn pod_with_a_network() -> Option<(Namespace, Namespace)> {
    let (pod, out) = (Namespace::new("pod")?, Namespace::new("out")?);
    assert!(ip(&format!("link add eth0 netns {} type veth peer name out0 netns {}", pod.0, out.0)));
    assert!(ip(&format!("-n {} address add 10.67.0.1/24 dev out0", out.0)));
    assert!(ip(&format!("-n {} link set out0 up", out.0)));
    assert!(ip(&format!("-n {} address add 10.67.0.2/24 dev eth0", pod.0)));
    assert!(ip(&format!("-n {} link set eth0 up", pod.0)));
    assert!(ip(&format!("-n {} route add default via 10.67.0.1", pod.0)));
    Some((pod, out))
}

/// Addresses and routes that the host's kernel has there.
fn seen(pod: &Namespace) -> [String; 2] {
    ["ip -4 -o address", "ip route"].map(|words| pod.run(words).out)
}

/// A creation that fails when the container has its network already leaves that as it was.
#[test]
fn a_creation_that_fails_gives_the_network_back() {
    let (Some(world), Some((pod, _out))) = (World::new(), pod_with_a_network()) else { return };
    let seen = || seen(&pod);
    let before = seen();
    let bundle = world.bundle_with("one", "sleep 1000", |spec| {
        spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "network", "path": pod.path()}]);
    });
    let file = world.path("missing/pid");
    let done = world.run(&format!("create --bundle {} --pid-file {} one", bundle.display(), file.display()));
    assert!(done.code != 0 && done.err.contains("missing/pid"), "{done:?}");
    assert_eq!(seen(), before);
    world.nothing_left();
}

/// Containers of one pod, by the verbs: one serves, the other asks it by loopback; who is outside asks by the pod's address. Then the
/// namespace is as it was.
#[test]
fn containers_of_a_pod_are_on_its_network() {
    let (Some(world), Some((pod, out))) = (World::new(), pod_with_a_network()) else { return };
    let seen = || seen(&pod);
    let before = seen();
    let bundle = |name: &str, kind: &str, script: &str| {
        world.bundle_with(name, script, |spec| {
            spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "network", "path": pod.path()}]);
            spec["annotations"] =
                json!({"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "one"});
        })
    };
    let first = bundle("one", "sandbox", &page("by-the-first", 8000));
    let ask = format!("for n in 1 2 3 4 5; do {} && break; sleep 1; done", asking("127.0.0.1", 8000));
    let second = bundle("two", "container", &format!("{ask}; {}", page("by-the-second", 8001)));
    let process = world.create("one", &first);
    assert!(!seen()[0].contains("10.67.0.2"), "the sandbox has it now");
    world.run("start one").ok();
    world.create("two", &second);
    world.run("start two").ok();
    eventually("an answer of the other container", || world.output("two").ends_with("by-the-first\n"));
    eventually("the second server", || get(&out, "10.67.0.2", 8001).ends_with("by-the-second\n"));
    assert!(get(&out, "10.67.0.2", 8000).ends_with("by-the-first\n"));
    world.run("delete --force two").ok();
    assert!(get(&out, "10.67.0.2", 8000).ends_with("by-the-first\n"));
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
        podman.run(&["network", "create", "--subnet", "10.66.0.0/24", &podman.network("net")]).ok();
        Some(podman)
    }

    /// A name of a network that no other test has: plugins keep addresses in use for the whole machine.
    fn network(&self, what: &str) -> String {
        format!("{}-{what}", self.host.0)
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

    /// Rules of the firewall that name an address of the first network.
    fn rules(&self) -> Vec<String> {
        let mut rules: Vec<String> = self.host.run("iptables-save").out.lines().map(str::to_owned).collect();
        rules.retain(|rule| rule.starts_with('-') && rule.contains("10.66.0."));
        rules.sort();
        rules
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
        for what in ["net", "more"] {
            let _ = std::fs::remove_dir_all(Path::new("/var/lib/cni/networks").join(self.network(what)));
        }
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
    let (network, more) = (podman.network("net"), podman.network("more"));
    let options = ["--name", "web", "--network", &network, "--publish", "8080:8000"];
    podman.start(&options, &page("published", 8000)).ok();
    eventually("the published port", || get(host, "10.66.0.1", 8080).ends_with("published\n"));
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = podman.run(&["inspect", "--format", format, "web"]).ok();
    let address = address.trim();
    assert!(get(host, address, 8000).ends_with("published\n"));
    let rules = podman.rules();

    // A second one asks the first, the host, and a server of names.
    let folder = podman.world.path("page");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("index.html"), "of the host\n").unwrap();
    let mut server = host.command("busybox");
    let server = Server(server.args(["httpd", "-f", "-p", "9000", "-h"]).arg(&folder).spawn().unwrap());
    let options = ["--name", "asks", "--network", &network, "--dns", "10.66.0.1", "--cap-add", "NET_RAW"];
    podman.start(&options, "exec sleep 1000").ok();
    let exec = |script: &str| podman.run(&["exec", "asks", "sh", "-c", script]);
    assert!(exec(&asking(address, 8000)).ok().ends_with("published\n"));
    eventually("the host's page", || exec(&asking("10.66.0.1", 9000)).out.ends_with("of the host\n"));
    drop(server);
    exec("busybox ping -c 2 -W 5 10.66.0.1").ok();
    host.run(&format!("busybox ping -c 2 -W 5 {address}")).ok();
    if Path::new("/usr/bin/python3").exists() {
        let mut names = host.command("/usr/bin/python3");
        let mut names = Server(names.args(["-c", NAMES]).stdout(Stdio::piped()).spawn().unwrap());
        std::io::Read::read_exact(names.0.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
        let found = exec("busybox nslookup -type=a pod.example");
        assert!(found.out.contains("192.0.2.7"), "{found:?}");
    }

    // It is connected to a further network while it runs, and taken off it.
    podman.run(&["network", "create", "--subnet", "10.65.0.0/24", &more]).ok();
    podman.run(&["network", "connect", &more, "asks"]).ok();
    eventually("the second interface", || exec("busybox ip address").out.contains("10.65.0."));
    exec("busybox ping -c 1 -W 5 10.65.0.1").ok();
    podman.run(&["network", "disconnect", &more, "asks"]).ok();
    eventually("its end", || !exec("busybox ip address").out.contains("10.65.0."));

    // Plugins that take a network away find the addresses by which they know their rules.
    podman.run(&["rm", "--force", "--time", "0", "asks"]).ok();
    assert_eq!(podman.rules(), rules);
    podman.run(&["rm", "--force", "--time", "0", "web"]).ok();
    assert_eq!(podman.rules(), Vec::<String>::new());
    podman.world.nothing_left();
}

/// All containers of Podman's pod are in one sandbox, whose first container is the pod's own.
#[test]
fn podman_runs_a_pod() {
    let Some(podman) = Podman::new() else { return };
    let network = podman.network("net");
    let create = ["pod", "create", "--name", "pod", "--network", &network, "--publish", "8080:8000"];
    podman.run(&[&create[..], &["--infra-image", "box", "--infra-command", "sleep 1000"]].concat()).ok();
    podman.start(&["--pod", "pod", "--name", "web"], &page("of the pod", 8000)).ok();
    podman.start(&["--pod", "pod", "--name", "asks"], "exec sleep 1000").ok();
    let ask = asking("127.0.0.1", 8000);
    let asked = || podman.run(&["exec", "asks", "sh", "-c", &ask]);
    eventually("the other container's page", || asked().out.ends_with("of the pod\n"));
    assert!(get(&podman.host, "10.66.0.1", 8080).ends_with("of the pod\n"));
    podman.run(&["pod", "rm", "--force", "--time", "0", "pod"]).ok();
    assert_eq!(podman.rules(), Vec::<String>::new());
    podman.world.nothing_left();
}
