//! A sandbox that is driven by the agent API, on its pod's network: a veth that lies in a namespace as a CNI plugin leaves it.
//!
//! It needs root, `ip` and python3; where one is missing nothing is tested, and that is said.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "serve/harness.rs"]
#[allow(dead_code, reason = "each file of tests uses a part")]
mod harness;
#[path = "network/lab.rs"]
#[allow(dead_code, reason = "each file of tests uses a part")]
mod lab;

use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Called, Sandbox, code_of, context, spec};
use kata_cc_agent_protocol::{agent as api, oci, types};
use lab::{Lab, PYTHON, SERVER, client, ip};

/// Two servers cannot have one port, and so the second container's program has another.
fn other_port(script: &str) -> String {
    script.replace("7000", "7001")
}

fn python(script: &str) -> oci::Spec {
    spec(&[PYTHON, "-c", script])
}

fn with_annotation(mut spec: oci::Spec, value: &str) -> oci::Spec {
    spec.Annotations.insert("dev.kata-cc.sentry.network".to_owned(), value.to_owned());
    spec
}

/// What the host's kernel has on the pod's interface.
fn of_host(lab: &Lab) -> String {
    let show = |words: &str| {
        let output = Command::new("ip").args(["-n", &lab.pod]).args(words.split(' ')).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    ["-o address show dev eth0", "route", "-6 route", "neighbour show nud permanent"].map(show).join("---\n")
}

#[track_caller]
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn interfaces(sandbox: &Sandbox) -> Vec<types::Interface> {
    let request = api::ListInterfacesRequest::new();
    sandbox.call(sandbox.client.list_interfaces(context(), &request)).unwrap().Interfaces
}

fn addresses(sandbox: &Sandbox) -> Vec<String> {
    let shown = |address: types::IPAddress| format!("{}/{}", address.address, address.mask);
    interfaces(sandbox).into_iter().flat_map(|interface| interface.IPAddresses).map(shown).collect()
}

fn routes(sandbox: &Sandbox) -> Vec<(String, String)> {
    let request = api::ListRoutesRequest::new();
    let routes = sandbox.call(sandbox.client.list_routes(context(), &request)).unwrap().Routes;
    routes.into_iter().map(|route| (route.dest, route.gateway)).collect()
}

/// A container serves and calls, by TCP and UDP and both families, while the host's kernel has nothing to say there; afterwards all is as it was.
#[test]
fn a_pods_interface_is_taken_over_and_given_back() {
    let Some(lab) = Lab::new(false) else { return };
    assert!(ip(&format!("-n {} neighbour add 10.77.0.9 lladdr 02:00:00:00:00:09 dev eth0", lab.pod)));
    eventually("the link's own address", || {
        of_host(&lab).contains("fe80") && !of_host(&lab).contains("tentative")
    });
    let before = of_host(&lab);
    let sandbox = Sandbox::start_in(&lab.pod, &["--network", "sandbox"]);
    assert_eq!(of_host(&lab), before, "nothing is taken before there is a container");
    sandbox.create("one", &python(SERVER)).unwrap();
    let told = interfaces(&sandbox);
    assert_eq!((told.len(), told[0].name.as_str(), told[0].mtu), (1, "eth0", 1500));
    let all = addresses(&sandbox);
    assert!(["10.77.0.2/24", "fd77::2/64"].iter().all(|one| all.iter().any(|other| other == one)), "{all:?}");
    assert!(routes(&sandbox).contains(&(String::new(), "10.77.0.1".to_owned())), "{:?}", routes(&sandbox));
    assert!(!of_host(&lab).contains("10.77.0.2") && !of_host(&lab).contains("inet6"), "{}", of_host(&lab));
    sandbox.start_container("one").unwrap();
    sandbox.read_until("one", "", "ready");
    let talk = client("['10.77.0.2', 'fd77::2']", 10_000_000, true);
    assert_eq!(lab.outside(&talk).printed(), "[True, True] [True, True]\n");
    let server = lab.outside(SERVER).ready();
    let talk = client("['10.77.0.1', 'fd77::1']", 10_000_000, true);
    assert_eq!(
        sandbox.run_in("one", "out", &[PYTHON, "-c", &talk]),
        (0, "[True, True] [True, True]\n".into())
    );
    server.printed();
    assert_eq!(sandbox.end(), 0);
    eventually("the host's interface as it was", || of_host(&lab) == before);
}

/// What is sent to one container's port of the pod's address, or of loopback, is heard there, whichever asks.
#[test]
fn containers_of_a_pod_have_one_network() {
    let Some(lab) = Lab::new(false) else { return };
    let sandbox = Sandbox::start_in(&lab.pod, &["--network", "sandbox"]);
    sandbox.run("one", &python(SERVER));
    sandbox.run("two", &python(&other_port(SERVER)));
    sandbox.read_until("one", "", "ready");
    sandbox.read_until("two", "", "ready");
    let talk = client("['127.0.0.1', '::1', '10.77.0.2']", 100_000, true);
    let good = "[True, True, True] [True, True, True]\n";
    assert_eq!(sandbox.run_in("two", "talk", &[PYTHON, "-c", &talk]), (0, good.into()));
    assert_eq!(sandbox.run_in("one", "talk", &[PYTHON, "-c", &other_port(&talk)]), (0, good.into()));
    let talk = client("['10.77.0.2', 'fd77::2']", 100_000, true);
    assert_eq!(lab.outside(&talk).printed(), "[True, True] [True, True]\n");
    assert_eq!(lab.outside(&other_port(&talk)).printed(), "[True, True] [True, True]\n");
    // The network is the sandbox', not the first container's.
    sandbox.signal("one", "", 9).unwrap();
    sandbox.wait("one", "").unwrap();
    sandbox.remove("one").unwrap();
    assert_eq!(lab.outside(&other_port(&talk)).printed(), "[True, True] [True, True]\n");
}

/// Hooks make the network when the sandbox is there already; engines connect containers that run.
#[test]
fn interfaces_come_and_go() {
    let Some(lab) = Lab::new(false) else { return };
    let (pod, out) = (&lab.pod, &lab.out);
    assert!(ip(&format!("-n {pod} address flush dev eth0")));
    let sandbox = Sandbox::start_in(pod, &["--network", "sandbox"]);
    assert!(ip(&format!("-n {pod} address add 10.77.0.2/24 dev eth0")));
    assert!(ip(&format!("-n {pod} -6 address add fd77::2/64 dev eth0 nodad")));
    sandbox.run("one", &python(SERVER));
    sandbox.read_until("one", "", "ready");
    let talk = |peers: &str| lab.outside(&client(peers, 100_000, true)).printed();
    assert_eq!(talk("['10.77.0.2', 'fd77::2']"), "[True, True] [True, True]\n");

    assert!(ip(&format!("link add eth1 netns {pod} type veth peer name out1 netns {out}")));
    assert!(
        ip(&format!("-n {out} link set out1 up"))
            && ip(&format!("-n {out} address add 10.78.0.1/24 dev out1"))
    );
    assert!(
        ip(&format!("-n {pod} link set eth1 up"))
            && ip(&format!("-n {pod} address add 10.78.0.2/24 dev eth1"))
    );
    eventually("the second interface", || interfaces(&sandbox).len() == 2);
    assert_eq!(talk("['10.77.0.2', '10.78.0.2']"), "[True, True] [True, True]\n");
    let names = "import socket; print([name for _, name in socket.if_nameindex()])";
    let names = |exec: &str| sandbox.run_in("one", exec, &[PYTHON, "-c", names]).1;
    assert_eq!(names("before"), "['lo', 'eth0', 'eth1']\n");

    // A further address of one that is the sandbox' already.
    assert!(ip(&format!("-n {pod} address add 10.78.0.7/24 dev eth1")));
    eventually("the further address", || addresses(&sandbox).iter().any(|address| address == "10.78.0.7/24"));
    assert_eq!(talk("['10.78.0.7']"), "[True] [True]\n");

    assert!(ip(&format!("-n {pod} link delete eth1")));
    eventually("the end of the second interface", || interfaces(&sandbox).len() == 1);
    assert_eq!(names("after"), "['lo', 'eth0']\n");
    assert_eq!(talk("['10.77.0.2']"), "[True] [True]\n");
    assert_eq!(sandbox.end(), 0);
    assert!(of_host(&lab).contains("10.77.0.2/24"));
}

fn update(sandbox: &Sandbox, interface: types::Interface) -> Called<types::Interface> {
    let request = api::UpdateInterfaceRequest { interface: Some(interface).into(), ..Default::default() };
    sandbox.call(sandbox.client.update_interface(context(), &request))
}

#[test]
fn a_client_of_the_agent_changes_the_network() {
    let Some(lab) = Lab::new(false) else { return };
    let sandbox = Sandbox::start_in(&lab.pod, &["--network", "sandbox"]);
    sandbox.run("one", &python(SERVER));
    sandbox.read_until("one", "", "ready");
    let mut interface = interfaces(&sandbox).remove(0);
    let mut further = types::IPAddress::new();
    (further.address, further.mask) = ("10.77.0.5".into(), "24".into());
    interface.IPAddresses.push(further);
    interface.mtu = 1280;
    update(&sandbox, interface.clone()).unwrap();
    assert_eq!(interfaces(&sandbox).remove(0).mtu, 1280);
    assert_eq!(
        lab.outside(&client("['10.77.0.5', '10.77.0.2']", 100_000, true)).printed(),
        "[True, True] [True, True]\n"
    );

    // Behind the outer end is another network.
    assert!(ip(&format!("-n {} address add 10.99.0.1/32 dev lo", lab.out)));
    let route = types::Route {
        dest: "10.99.0.0/16".into(),
        gateway: "10.77.0.1".into(),
        device: "eth0".into(),
        ..Default::default()
    };
    let routes_of = |route| api::Routes { Routes: vec![route], ..Default::default() };
    let request =
        api::UpdateRoutesRequest { routes: Some(routes_of(route.clone())).into(), ..Default::default() };
    let told = sandbox.call(sandbox.client.update_routes(context(), &request)).unwrap().Routes;
    assert!(told.iter().any(|told| told.dest == "10.99.0.0/16" && told.gateway == "10.77.0.1"), "{told:?}");
    let server = lab.outside(SERVER).ready();
    let talk = client("['10.99.0.1']", 100_000, false);
    assert_eq!(sandbox.run_in("one", "out", &[PYTHON, "-c", &talk]), (0, "[True] \n".into()));
    server.printed();

    // One that nobody would answer for.
    let mut ip = types::IPAddress::new();
    ip.address = "10.77.0.77".into();
    let neighbour = types::ARPNeighbor {
        toIPAddress: Some(ip).into(),
        device: "eth0".into(),
        lladdr: "02:00:00:00:00:77".into(),
        ..Default::default()
    };
    let neighbours = api::ARPNeighbors { ARPNeighbors: vec![neighbour], ..Default::default() };
    let request = api::AddARPNeighborsRequest { neighbors: Some(neighbours).into(), ..Default::default() };
    sandbox.call(sandbox.client.add_arp_neighbors(context(), &request)).unwrap();
    let (_, table) = sandbox.run_in("one", "arp", &["/bin/cat", "/proc/net/arp"]);
    assert!(table.contains("10.77.0.77") && table.contains("02:00:00:00:00:77"), "{table}");

    // What cannot be is refused by name, and changes nothing.
    interface.name = "eth7".into();
    assert_eq!(code_of(update(&sandbox, interface.clone())), ttrpc::Code::INVALID_ARGUMENT);
    (interface.name, interface.mtu) = ("eth0".into(), 9000);
    assert_eq!(code_of(update(&sandbox, interface)), ttrpc::Code::INVALID_ARGUMENT);
    let elsewhere = types::Route { device: "eth7".into(), ..route };
    let request =
        api::UpdateRoutesRequest { routes: Some(routes_of(elsewhere)).into(), ..Default::default() };
    let error = sandbox.call(sandbox.client.update_routes(context(), &request)).unwrap_err().to_string();
    assert!(error.contains("eth7") && error.contains("eth0"), "{error}");
    assert_eq!(interfaces(&sandbox).remove(0).mtu, 1280);
}

#[test]
fn a_container_says_whether_there_is_a_network() {
    let Some(lab) = Lab::new(false) else { return };
    eventually("the end of a look for doubles", || !of_host(&lab).contains("tentative"));
    let before = of_host(&lab);
    let sandbox = Sandbox::start_in(&lab.pod, &["--network", "sandbox"]);
    let plain = spec(&["/bin/sleep", "1000"]);
    let refused = |spec: &oci::Spec, says: &str| {
        let error = sandbox.create("bad", spec).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(says) && text.contains("dev.kata-cc.sentry.network"), "{text}");
        assert_eq!(code_of::<()>(Err(error)), ttrpc::Code::INVALID_ARGUMENT);
    };
    refused(&with_annotation(plain.clone(), "host"), "calls (socket, connect");
    refused(&with_annotation(plain.clone(), "x"), "neither sandbox nor none");
    // A container that cannot be made leaves the network where it is.
    assert!(sandbox.create("missing", &spec(&["/nothing/like/this"])).is_err());
    assert_eq!(of_host(&lab), before);
    sandbox.run("one", &with_annotation(plain.clone(), "none"));
    assert!(interfaces(&sandbox).is_empty());
    refused(&with_annotation(plain.clone(), "sandbox"), "whose first container says");
    sandbox.run("two", &plain);
    assert_eq!(of_host(&lab), before);
    assert!(interfaces(&sandbox).is_empty());
    assert_eq!(sandbox.end(), 0);

    let sandbox = Sandbox::start_in(&lab.pod, &["--network", "sandbox"]);
    sandbox.run("one", &plain);
    let error = sandbox.create("two", &with_annotation(plain.clone(), "none")).unwrap_err().to_string();
    assert!(error.contains("whose first container says"), "{error}");
    assert_eq!(sandbox.end(), 0);

    let sandbox = Sandbox::start_in(&lab.pod, &[]);
    let error = sandbox.create("one", &with_annotation(plain, "sandbox")).unwrap_err().to_string();
    assert!(error.contains("not started with --network sandbox"), "{error}");
}

/// Gives an interface of the pod more addresses than a sandbox takes, all at once.
fn give_too_many(lab: &Lab, interface: &str, then: &str) {
    use std::io::Write as _;
    let mut ip = Command::new("ip");
    ip.args(["-n", &lab.pod, "-batch", "-"]).stdin(std::process::Stdio::piped());
    let mut ip = ip.spawn().unwrap();
    let many: String = (0..4097)
        .map(|n| format!("address add 10.90.{}.{}/32 dev {interface}\n", n / 256, n % 256))
        .collect();
    ip.stdin.take().unwrap().write_all((many + then).as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}

/// Addresses that the host's kernel has on an interface of the pod.
fn count_of_host(lab: &Lab, interface: &str) -> usize {
    let output =
        Command::new("ip").args(["-n", &lab.pod, "-o", "-4", "address", "show", "dev", interface]).output();
    output.unwrap().stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count()
}

/// What the sandbox cannot take stays the host's, whole; what was found beside it is taken over.
#[test]
fn an_interface_that_is_not_taken_concerns_no_other() {
    let Some(lab) = Lab::new(false) else { return };
    let (pod, out) = (&lab.pod, &lab.out);
    let sandbox = Sandbox::start_in(pod, &["--network", "sandbox"]);
    sandbox.run("one", &python(SERVER));
    sandbox.read_until("one", "", "ready");
    for number in [1, 2] {
        assert!(
            ip(&format!("link add eth{number} netns {pod} type veth peer name out{number} netns {out}"))
                && ip(&format!("-n {out} link set out{number} up"))
        );
    }
    assert!(
        ip(&format!("-n {out} address add 10.78.0.1/24 dev out2"))
            && ip(&format!("-n {pod} address add 10.78.0.2/24 dev eth2"))
    );
    // The first is refused by the sentry. Both are found by one look.
    give_too_many(&lab, "eth1", "link set eth1 up\nlink set eth2 up\n");
    eventually("the interface beside it", || interfaces(&sandbox).len() == 2);
    let talk = |peers: &str| lab.outside(&client(peers, 100_000, true)).printed();
    assert_eq!(talk("['10.77.0.2', '10.78.0.2']"), "[True, True] [True, True]\n");
    eventually("what was refused", || count_of_host(&lab, "eth1") == 4097);
    assert!(ip(&format!("-n {pod} link delete eth1")));

    // More of one that is the sandbox' already: that is the host's, and what was there before still the sandbox'.
    let before = addresses(&sandbox);
    give_too_many(&lab, "eth2", "");
    // They are found by one look or by several, which take some. None is lost.
    let all_are_somewhere = || {
        let (host, sandbox) = (count_of_host(&lab, "eth2"), addresses(&sandbox).len());
        host > 0 && host + sandbox == before.len() + 4097
    };
    // A look that is under way has some in its hands.
    eventually("the refusal of addresses", || {
        let first = all_are_somewhere();
        std::thread::sleep(Duration::from_secs(1));
        first && all_are_somewhere()
    });
    assert!(before.iter().all(|address| addresses(&sandbox).contains(address)));
    assert_eq!(talk("['10.77.0.2', '10.78.0.2']"), "[True, True] [True, True]\n");
    assert_eq!(sandbox.end(), 0);
    assert_eq!(count_of_host(&lab, "eth2"), 4098);
    assert!(of_host(&lab).contains("10.77.0.2/24"));
}

/// A program of the host that stays in a namespace until it is dropped.
struct Neighbour(std::process::Child);

impl Neighbour {
    fn start(lab: &Lab) -> Self {
        let child = Command::new("ip").args(["netns", "exec", &lab.pod, "sleep", "1000"]).spawn().unwrap();
        let comm = format!("/proc/{}/comm", child.id());
        eventually("the neighbour", || {
            std::fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "sleep")
        });
        Self(child)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process of the host that is in the namespace keeps its network, unless that was said to be taken.
#[test]
fn what_others_use_is_left_to_them() {
    let Some(lab) = Lab::new(false) else { return };
    eventually("the end of a look for doubles", || !of_host(&lab).contains("tentative"));
    let before = of_host(&lab);
    let neighbour = Neighbour::start(&lab);
    let plain = spec(&["/bin/sleep", "1000"]);
    let sandbox = Sandbox::start_in(&lab.pod, &["--network", "sandbox"]);
    let error = sandbox.create("one", &plain).unwrap_err().to_string();
    let process = format!("process {} (sleep)", neighbour.0.id());
    assert!(error.contains(&process) && error.contains("sandbox,seize"), "{error}");
    assert_eq!(of_host(&lab), before);
    // It can do without, or have it all the same.
    sandbox.run("without", &with_annotation(plain.clone(), "none"));
    assert_eq!((interfaces(&sandbox).len(), sandbox.end()), (0, 0));
    let sandbox = Sandbox::start_in(&lab.pod, &["--network", "sandbox"]);
    sandbox.run("one", &with_annotation(plain.clone(), "sandbox,seize"));
    assert!(!of_host(&lab).contains("10.77.0.2"));
    assert_eq!((interfaces(&sandbox).len(), sandbox.end()), (1, 0));
    eventually("the network as it was", || of_host(&lab) == before);
    let sandbox = Sandbox::start_in(&lab.pod, &["--network", "sandbox,seize"]);
    sandbox.run("one", &plain);
    assert_eq!((interfaces(&sandbox).len(), sandbox.end()), (1, 0));

    // A sandbox that is refused can be had when the other has ended.
    let sandbox = Sandbox::start_in(&lab.pod, &["--network", "sandbox"]);
    sandbox.create("one", &plain).unwrap_err();
    drop(neighbour);
    sandbox.run("one", &plain);
    assert_eq!((interfaces(&sandbox).len(), sandbox.end()), (1, 0));
    eventually("the network as it was", || of_host(&lab) == before);
}

/// What the command line cannot have.
#[test]
fn networks_that_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let said = |mut command: Command| {
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let host = said(harness::command(folder.path(), &["--network", "host"]));
    assert!(host.contains("sockets of the host would need host calls"), "{host}");
    let own = |path: &str| std::fs::read_link(path).ok();
    if own("/proc/1/ns/net") == own("/proc/self/ns/net") {
        let machine = said(harness::command(folder.path(), &["--network", "sandbox"]));
        assert!(machine.contains("the network namespace of process 1"), "{machine}");
    }
    let Some(lab) = Lab::new(false) else { return };
    eventually("the end of a look for doubles", || !of_host(&lab).contains("tentative"));
    let (pod, before) = (&lab.pod, of_host(&lab));
    let missing = harness::inside(pod, &harness::command(folder.path(), &["--network", "host-veth=eth9"]));
    assert!(said(missing).contains("there is no interface eth9"));
    assert_eq!(of_host(&lab), before);
    if ip(&format!("-n {pod} link add link eth0 name ipvl0 type ipvlan mode l2")) {
        assert!(
            ip(&format!("-n {pod} link set ipvl0 up"))
                && ip(&format!("-n {pod} address add 10.77.0.8/24 dev ipvl0"))
        );
        let before = of_host(&lab);
        let sandbox = Sandbox::start_in(pod, &["--network", "sandbox"]);
        let error = sandbox.create("one", &spec(&["/bin/true"])).unwrap_err().to_string();
        assert!(error.contains("ipvl0 is an ipvlan"), "{error}");
        eventually("what was taken before it", || of_host(&lab) == before);
    }
}
