//! Drives whole sandboxes without KVM: everything of the host is real (processes, namespaces, sockets, records), the
//! monitor and the agent are stand-ins (see [`fake`]), so that either can die at any moment.
//!
//! What is asked after every end is the same: an error that says why, promptly, and nothing left.

#![allow(clippy::unwrap_used, reason = "a test")]

mod fake;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kata_cc_sandbox::{ContainerSpec, Output, Sandbox, SandboxError, cleanup_leftovers};

use fake::agent::{Agent, At, Read};
use fake::{World, alone, eventually, sh};

/// An end that takes longer was waited out, not noticed. (The limits that it would run into are 5 s and more.)
const PROMPT: Duration = Duration::from_secs(4);

/// Not a test: the fake monitor, when a sandbox starts this program as one.
#[test]
fn the_monitor() {
    if let Some(config) = std::env::var_os("KATA_CC_TEST_VMM") {
        fake::monitor(Path::new(&config));
    }
}

fn assert_says_that_the_monitor_ended(error: &SandboxError) {
    let text = error.to_string();
    assert!(matches!(error, SandboxError::Ended(_)), "{error:?}");
    assert!(text.contains("monitor was killed by signal 9"), "{text}");
}

fn agent_that_kills(at: At) -> Arc<Agent> {
    Arc::new(Agent { kill: Some(at), ..Agent::default() })
}

#[test]
fn a_sandbox_lives_and_leaves_nothing() {
    alone("a_sandbox_lives_and_leaves_nothing", async |world| {
        let agent = Arc::new(Agent::default());
        let _server = agent.serve().await;
        let sandbox = Sandbox::create(&world.config(), world.spec()).await.unwrap();
        // Disks are no memory: they lie beside the records.
        assert!(kata_cc_sandbox::paths::disks().join(World::id()).join("scratch.img").is_file());
        sandbox.create_container(&world.container("c")).await.unwrap();
        sandbox.start_container("c").await.unwrap();
        assert_eq!(sandbox.wait("c", "").await.unwrap(), 0);
        sandbox.remove_container("c").await.unwrap();
        sandbox.stop().await;
        world.assert_gone().await;
        let stages: Vec<String> = world.stages().into_iter().map(|stage| stage.stage).collect();
        assert_eq!(
            stages,
            ["created", "tier", "vmm-started", "agent-ready", "container-started", "exited"],
            "an end that was asked for is no failure"
        );
        let log = world.log();
        let monitor = World::monitor().unwrap();
        for line in [
            "Shim info starting: class kata-cc-vm",
            "Shim info tier vm",
            &format!("runs as process {monitor} with 1 vCPUs and 352 MiB"),
            "Vmm info the fake monitor runs",
            "Shim info the guest's agent answers",
            "Shim info the sandbox runs",
            "Shim info container c is created",
            "Shim info container c is started",
            "Shim info container c has ended with code 0",
            "Shim info container c is removed",
            "Shim info stopping",
            "Shim info the sandbox is stopped and removed",
        ] {
            assert!(log.iter().any(|seen| seen.contains(line)), "{line:?} is not in {log:#?}");
        }
    });
}

/// Whether the monitor dies before its guest answers, or while it is asked for a sandbox: `create` says so.
async fn dies_in_create(world: &World) {
    let begun = Instant::now();
    let error = Sandbox::create(&world.config(), world.spec()).await.unwrap_err();
    assert_says_that_the_monitor_ended(&error);
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    world.assert_gone().await;
    let stages = world.stages();
    assert_eq!(stages.last().unwrap().stage, "failed");
    let log = world.log();
    assert!(log.iter().any(|line| line.starts_with("Shim error") && line.contains("signal 9")), "{log:#?}");
}

#[test]
fn the_monitor_dies_as_soon_as_it_is_started() {
    alone("the_monitor_dies_as_soon_as_it_is_started", async |world| {
        // Nobody serves the agent's socket: the guest never comes up.
        let killer = tokio::spawn(async {
            eventually("the monitor is started", || World::monitor().is_some()).await;
            World::kill_monitor();
        });
        dies_in_create(&world).await;
        killer.await.unwrap();
    });
}

#[test]
fn the_monitor_dies_before_the_agent_is_ready() {
    alone("the_monitor_dies_before_the_agent_is_ready", async |world| {
        let _server = agent_that_kills(At::Health).serve().await;
        dies_in_create(&world).await;
    });
}

#[test]
fn the_monitor_dies_during_create_sandbox() {
    alone("the_monitor_dies_during_create_sandbox", async |world| {
        let _server = agent_that_kills(At::CreateSandbox).serve().await;
        dies_in_create(&world).await;
    });
}

/// The monitor dies in a call on a sandbox that runs.
async fn dies_in_a_call(world: World, at: At, call: impl AsyncFnOnce(&Sandbox) -> Result<(), SandboxError>) {
    let _server = agent_that_kills(at).serve().await;
    let sandbox = Sandbox::create(&world.config(), world.spec()).await.unwrap();
    let begun = Instant::now();
    let error = call(&sandbox).await.unwrap_err();
    assert_says_that_the_monitor_ended(&error);
    assert!(sandbox.ended().await.contains("signal 9"));
    // Calls that come too late are told the same, and nobody waits for an orderly end.
    assert_says_that_the_monitor_ended(&sandbox.start_container("c").await.unwrap_err());
    sandbox.stop().await;
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    world.assert_gone().await;
    assert_eq!(world.stages().last().unwrap().stage, "failed");
    assert!(world.log().iter().any(|line| line.starts_with("Shim error the sandbox has ended")));
}

#[test]
fn the_monitor_dies_during_create_container() {
    alone("the_monitor_dies_during_create_container", async |world| {
        let container = world.container("c");
        dies_in_a_call(world, At::CreateContainer, async |sandbox| {
            sandbox.create_container(&container).await
        })
        .await;
    });
}

#[test]
fn the_monitor_dies_during_start_container() {
    alone("the_monitor_dies_during_start_container", async |world| {
        let container = world.container("c");
        dies_in_a_call(world, At::StartContainer, async |sandbox| {
            sandbox.create_container(&container).await?;
            sandbox.start_container("c").await
        })
        .await;
    });
}

#[test]
fn the_monitor_dies_after_the_container_started() {
    alone("the_monitor_dies_after_the_container_started", async |world| {
        let container = world.container("c");
        dies_in_a_call(world, At::Wait, async |sandbox| {
            sandbox.create_container(&container).await?;
            sandbox.start_container("c").await?;
            sandbox.wait("c", "").await.map(drop)
        })
        .await;
    });
}

#[test]
fn a_second_sandbox_of_a_running_id_is_refused_and_the_first_keeps_all() {
    alone("a_second_sandbox_of_a_running_id_is_refused_and_the_first_keeps_all", async |world| {
        let agent = Arc::new(Agent::default());
        let _server = agent.serve().await;
        let sandbox = Sandbox::create(&world.config(), world.spec()).await.unwrap();
        let files = || {
            let dir = World::records();
            let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
            (read("record.jsonl"), read("log.jsonl"))
        };
        let before = files();
        let error = Sandbox::create(&world.config(), world.spec()).await.unwrap_err();
        assert!(matches!(&error, SandboxError::Exists(id) if *id == World::id()), "{error:?}");
        assert_eq!(files(), before);
        // The first goes on, into the same files.
        sandbox.create_container(&world.container("c")).await.unwrap();
        sandbox.start_container("c").await.unwrap();
        assert_eq!(world.stages().last().unwrap().stage, "container-started");
        sandbox.stop().await;
        world.assert_gone().await;
        // The id is free again, and its record begins anew.
        let again = Sandbox::create(&world.config(), world.spec()).await.unwrap();
        assert_eq!(world.stages().iter().filter(|stage| stage.stage == "created").count(), 1);
        again.stop().await;
        world.assert_gone().await;
    });
}

#[test]
fn a_refused_tier_leaves_the_record_and_gives_the_id_up() {
    alone("a_refused_tier_leaves_the_record_and_gives_the_id_up", async |world| {
        let mut spec = world.spec();
        spec.class = kata_cc_sandbox::Class::KataCc;
        let error = Sandbox::create(&world.config(), spec).await.unwrap_err();
        assert!(matches!(error, SandboxError::Tier(_)), "{error:?}");
        assert_eq!(world.stages().last().unwrap().stage, "refused");
        world.assert_gone().await;
    });
}

#[test]
fn an_agent_that_does_not_answer_ends_the_start_in_time() {
    alone("an_agent_that_does_not_answer_ends_the_start_in_time", async |world| {
        let mut config = world.config();
        config.agent_timeout_s = 1;
        let begun = Instant::now();
        let error = Sandbox::create(&config, world.spec()).await.unwrap_err();
        assert!(matches!(error, SandboxError::NoAgent { seconds: 1, .. }), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(1) + PROMPT);
        world.assert_gone().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let failures: Vec<_> = world.stages().into_iter().filter(|stage| stage.stage == "failed").collect();
        assert_eq!(failures.len(), 1, "that we killed the monitor is no second failure: {failures:?}");
        assert!(failures[0].detail["reason"].as_str().unwrap().contains("did not answer within 1 s"));
    });
}

#[test]
fn only_no_data_is_the_end_of_an_output() {
    alone("only_no_data_is_the_end_of_an_output", async |world| {
        let agent = Arc::new(Agent::default());
        let _server = agent.serve().await;
        let sandbox = Sandbox::create(&world.config(), world.spec()).await.unwrap();
        *agent.reads.lock().unwrap() = vec![
            Read::Data("hello"),
            Read::Error(ttrpc::Code::NOT_FOUND, "no process \"x\" in container \"c\""),
            Read::Error(ttrpc::Code::INTERNAL, "the typeof operator failed"),
        ];
        assert_eq!(sandbox.read("c", "", Output::Stdout).await.unwrap(), b"hello");
        for code in [5, 13] {
            let error = sandbox.read("c", "", Output::Stdout).await.unwrap_err();
            assert!(matches!(error, SandboxError::Agent { code: seen, .. } if seen == code), "{error:?}");
        }
        assert!(sandbox.read("c", "", Output::Stdout).await.unwrap().is_empty());
        let log = world.log();
        assert_eq!(log.iter().filter(|line| line.contains("Shim error output of c is lost")).count(), 2);
        sandbox.stop().await;
        world.assert_gone().await;
    });
}

#[test]
fn a_volume_reaches_the_guest_in_pieces_and_with_its_links() {
    alone("a_volume_reaches_the_guest_in_pieces_and_with_its_links", async |world| {
        let agent = Arc::new(Agent::default());
        let _server = agent.serve().await;
        let sandbox = Sandbox::create(&world.config(), world.spec()).await.unwrap();
        let volume = tempfile::tempdir().unwrap();
        std::fs::write(volume.path().join("big"), vec![7; 600 << 10]).unwrap();
        std::fs::write(volume.path().join("none"), "").unwrap();
        std::os::unix::fs::symlink("big", volume.path().join("link")).unwrap();
        let mut container = world.container("c");
        container.spec["mounts"] = serde_json::json!(
            [{"destination": "/v", "type": "bind", "source": volume.path(), "options": ["rbind", "ro"]}]);
        sandbox.create_container(&container).await.unwrap();
        let copied = agent.copied.lock().unwrap().clone();
        let seen: Vec<(u32, i64, i64, usize)> = copied
            .iter()
            .map(|one| (one.file_mode >> 12, one.offset, one.file_size, one.data.len()))
            .collect();
        let (folder, file, link) = (0o4, 0o10, 0o12);
        assert_eq!(
            seen,
            [
                (folder, 0, 0, 0),
                (file, 0, 614_400, 524_288),
                (file, 524_288, 614_400, 90_112),
                (link, 0, 0, 3),
                (file, 0, 0, 0),
            ]
        );
        assert!(
            copied[1].path.ends_with("/big") && copied[0].path.starts_with("/run/kata-containers/shared")
        );
        sandbox.stop().await;
        world.assert_gone().await;
    });
}

#[test]
fn a_sealed_secret_is_refused_on_a_weaker_tier() {
    alone("a_sealed_secret_is_refused_on_a_weaker_tier", async |world| {
        let agent = Arc::new(Agent::default());
        let _server = agent.serve().await;
        let sandbox = Sandbox::create(&world.config(), world.spec()).await.unwrap();
        let refused = async |container: &ContainerSpec, place: &str| {
            let error = sandbox.create_container(container).await.unwrap_err();
            let SandboxError::Tier(refusal) = &error else { panic!("{error}") };
            assert!(
                refusal.reason.contains("carries a sealed secret") && refusal.reason.contains(place),
                "{error}"
            );
        };
        let mut container = world.container("c");
        container.spec["process"]["env"] = serde_json::json!(["A=b", "KEY=sealed.e30.e30.x"]);
        refused(&container, "environment variable KEY").await;
        let volume = tempfile::tempdir().unwrap();
        std::fs::write(volume.path().join("token"), "sealed.e30.e30.x").unwrap();
        let mut container = world.container("c");
        container.spec["mounts"] = serde_json::json!(
            [{"destination": "/v", "type": "bind", "source": volume.path(), "options": ["rbind", "ro"]}]);
        refused(&container, "/token").await;
        assert!(agent.copied.lock().unwrap().iter().all(|one| one.data.is_empty()), "nothing of it went in");
        // Another text is another file.
        std::fs::write(volume.path().join("token"), "open").unwrap();
        sandbox.create_container(&container).await.unwrap();
        sandbox.stop().await;
        world.assert_gone().await;
    });
}

/// A namespace made by the test; gone with it.
struct Netns(String);

impl Netns {
    fn new(name: &str) -> Self {
        let name = format!("kcc-{name}-{}", std::process::id());
        sh(&format!("ip netns add {name}"));
        Self(name)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    fn run(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} {command}", self.0))
    }

    /// An interface as a CNI plugin makes it: one end here, the other on the host.
    fn add(&self, name: &str, address: &str, host: &Netns) {
        let peer = format!("peer name {name} netns {}", host.0);
        self.run(&format!("ip link add {name} mtu 1400 type veth {peer}"));
        self.run(&format!("ip address add {address} dev {name}"));
        self.run(&format!("ip link set {name} up"));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[test]
fn an_interface_that_appears_late_reaches_the_guest_and_is_left_as_it_was() {
    alone("an_interface_that_appears_late_reaches_the_guest_and_is_left_as_it_was", async |world| {
        let (pod, host) = (Netns::new("late"), Netns::new("host"));
        let agent = Arc::new(Agent::default());
        let _server = agent.serve().await;
        let mut spec = world.spec();
        spec.netns = Some(pod.path());
        let sandbox = Sandbox::create(&world.config(), spec).await.unwrap();
        assert!(agent.interfaces.lock().unwrap().is_empty());
        pod.add("eth0", "10.71.0.5/24", &host);
        let told = || {
            let interfaces = agent.interfaces.lock().unwrap();
            let ours = interfaces.iter().rfind(|one| one.name == "eth0");
            ours.and_then(|one| Some((one.device.clone(), one.mtu, one.IPAddresses.first()?.address.clone())))
        };
        eventually("the guest hears of it", || told().is_some()).await;
        assert_eq!(told().unwrap(), ("eth0".into(), 1400, "10.71.0.5".into()));
        assert!(pod.run("tc filter show dev eth0 parent ffff:").contains("kcc-tap0"));
        assert!(pod.run("tc filter show dev kcc-tap0 parent ffff:").contains("eth0"));
        // A change of one that is known is told as well; what has not changed is not told again.
        pod.run("ip address add 10.71.0.6/24 dev eth0");
        let addresses = || {
            let interfaces = agent.interfaces.lock().unwrap();
            interfaces.last().map_or(0, |one| one.IPAddresses.len())
        };
        eventually("the guest hears of the second address", || addresses() == 2).await;
        let heard = agent.interfaces.lock().unwrap().len();
        pod.run("ip route add 10.72.0.0/24 dev eth0");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(agent.interfaces.lock().unwrap().len(), heard);
        sandbox.stop().await;
        world.assert_gone().await;
        assert!(!pod.run("tc qdisc show").contains("ingress"));
        assert!(!pod.run("ip link show").contains("kcc-tap"));
    });
}

#[test]
fn what_a_dead_shim_left_in_the_pods_network_is_removed_and_nothing_else() {
    alone("what_a_dead_shim_left_in_the_pods_network_is_removed_and_nothing_else", async |world| {
        let (pod, host) = (Netns::new("left"), Netns::new("host"));
        let agent = Arc::new(Agent::default());
        let _server = agent.serve().await;
        pod.add("eth0", "10.73.0.5/24", &host);
        let mut spec = world.spec();
        spec.netns = Some(pod.path());
        let sandbox = Sandbox::create(&world.config(), spec).await.unwrap();
        assert!(pod.run("tc qdisc show dev eth0").contains("ingress"));
        // Somebody else's, on an interface that came when all taps were in use.
        pod.add("eth1", "10.74.0.5/24", &host);
        eventually("eth1 is tied", || pod.run("tc qdisc show dev eth1").contains("ingress")).await;
        pod.add("other", "10.75.0.5/24", &host);
        pod.run("tc qdisc add dev other ingress");
        let filter = "parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev eth1";
        pod.run(&format!("tc filter add dev other {filter}"));
        tokio::time::sleep(Duration::from_millis(300)).await;
        // The sandbox is not stopped: as far as the network is concerned, its shim is dead.
        cleanup_leftovers(&World::id()).await;
        assert_eq!(pod.run("tc qdisc show").matches("ingress").count(), 1);
        assert!(pod.run("tc qdisc show dev other").contains("ingress"));
        assert!(!pod.run("ip link show").contains("kcc-tap"));
        assert!(sandbox.ended().await.contains("signal 9"));
        sandbox.stop().await;
        world.assert_gone().await;
    });
}
