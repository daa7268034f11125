//! A pod of the confidential class as a kubelet starts it, held to the policy that `kata-cc policy gen` made of its manifest.

use std::time::Duration;

use anyhow::{Context, ensure};
use kata_cc_kbs_protocol::initdata::ANNOTATION;
use kata_cc_tests::containerd::{Containerd, nothing_left};
use kata_cc_tests::image::MARKER;
use kata_cc_tests::machines_run_here;
use kata_cc_tests::pki::Pki;
use kata_cc_tests::pod::{ContainerConfig, Kubelet, Running};
use kata_cc_tests::process::run;
use kata_cc_tests::relay::Relay;
use kata_cc_tests::traces::Traces;
use kata_cc_tests::world::{Tampering, World};
use serde_json::{Value, json};

/// How long the kubelet of a slow image waits for a container: a guest tells how far a pull is after ten seconds, and is slow itself.
const PATIENCE: Duration = Duration::from_secs(120);
/// Reads the volume's size too.
const PREPARE: &str = "echo made by init > /work/it; df -k /work | tail -1";
const WEB: &str = "cat /work/it /secret.txt; echo $GREETING; exec sleep 1000";

/// An init container that leaves something in a volume for the other one, as people write it.
fn manifest(image: &str) -> String {
    format!(
        "# kept when the policy is written\n\
         apiVersion: v1\n\
         kind: Pod\n\
         metadata:\n  name: web\n  namespace: shop\n\
         spec:\n\
         \x20 runtimeClassName: kata-cc\n\
         \x20 volumes: [{{name: work, emptyDir: {{}}}}]\n\
         \x20 initContainers:\n\
         \x20   - name: prepare\n      image: {image}\n      command: [sh, -c, {PREPARE:?}]\n\
         \x20     volumeMounts: [{{name: work, mountPath: /work}}]\n\
         \x20 containers:\n\
         \x20   - name: web\n      image: {image}\n      command: [sh, -c]\n      args: [{WEB:?}]\n\
         \x20     env: [{{name: GREETING, value: good day}}]\n\
         \x20     volumeMounts: [{{name: work, mountPath: /work}}]\n"
    )
}

/// The same as the API server has it, with the annotation that was written into the manifest.
fn object(image: &str, init_data: &str) -> Value {
    let mount = json!([{"name": "work", "mountPath": "/work"}]);
    json!({
        "metadata": {"name": "web", "namespace": "shop", "annotations": {ANNOTATION: init_data}},
        "spec": {
            "volumes": [{"name": "work", "emptyDir": {}}],
            "initContainers": [{"name": "prepare", "image": image, "volumeMounts": mount, "command": ["sh", "-c", PREPARE]}],
            "containers": [{"name": "web", "image": image, "volumeMounts": mount, "command": ["sh", "-c"], "args": [WEB],
                "env": [{"name": "GREETING", "value": "good day"}]}],
        },
    })
}

/// Has the policy put into the manifest, and gives the pod as it is then.
fn with_policy(world: &World, image: &str) -> anyhow::Result<Value> {
    with_policy_of_node(world, image, &world.config(&Tampering::default()))
}

/// The same on a node with another configuration.
fn with_policy_of_node(world: &World, image: &str, node: &str) -> anyhow::Result<Value> {
    let file = world.dir.join("pod.yaml");
    std::fs::write(&file, manifest(image))?;
    let config = world.dir.join("node.toml");
    std::fs::write(&config, node)?;
    let mut command = world.kata_cc(&Tampering::default())?;
    command.env("KATA_CC_CONFIG", &config);
    command.args(["policy", "gen", "--write", "--allow", "logs"]).arg(&file);
    run(command.arg("--registry-ca").arg(Pki::at(&world.material).ca), 120)?.ok().context("policy gen")?;
    // What the policy makes of the launch can be foretold.
    let mut command = world.kata_cc(&Tampering::default())?;
    command.env("KATA_CC_CONFIG", &config);
    run(command.args(["measure", "--pod"]).arg(&file).args(["--tier", "sim-snp"]), 120)?
        .ok()
        .context("measure")?;
    let text = std::fs::read_to_string(&file)?;
    ensure!(text.starts_with("# kept"), "the comment is gone:\n{text}");
    let written = text.lines().find_map(|line| line.trim().strip_prefix(ANNOTATION)?.strip_prefix(':'));
    Ok(object(image, written.context("no annotation was written")?.trim().trim_matches(['"', '\''])))
}

/// Starts the pod's containers one after another.
fn start(kubelet: &Kubelet, pod: &Value, running: &Running) -> anyhow::Result<()> {
    for (containers, part) in [("initContainers", "tmpfs"), ("containers", "good day")] {
        for container in pod["spec"][containers].as_array().context("the manifest has none")? {
            kubelet.start(running, kubelet.container(pod, container)?)?;
            kubelet.log(container["name"].as_str().unwrap_or_default(), part)?;
        }
    }
    Ok(())
}

/// What a node could ask for instead, and the rule that refuses it.
fn changes(config: &ContainerConfig) -> Vec<(&'static str, ContainerConfig, &'static str)> {
    let change = |what, rule, change: &dyn Fn(&mut ContainerConfig)| {
        let mut config = config.clone();
        change(&mut config);
        (what, config, rule)
    };
    vec![
        change("another program", "rule command", &|config| {
            config.args = vec!["cat /secret.txt".to_owned()];
        }),
        change("another variable's value", "rule environment", &|config| {
            config.envs[0].value = "good night".to_owned()
        }),
        change("a variable more", "rule environment", &|config| {
            let mut more = config.envs[0].clone();
            more.key = "LD_PRELOAD".to_owned();
            config.envs.push(more);
        }),
        change("the volume elsewhere", "rule mounts", &|config| {
            config.mounts[0].container_path = "/usr".to_owned();
        }),
    ]
}

#[test]
fn a_pod_runs_by_the_policy_of_its_manifest_and_a_changed_one_does_not() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let world = World::of_test("pods")?;
    let name = format!("{}/demo/plain", world.registry.host);
    let image = format!("{name}:latest");
    world.push_plain(&image)?;
    let pod = with_policy(&world, &image)?;
    let node = format!("agent_timeout_s = 900\n{}", world.config(&Tampering::default()));
    let containerd = Containerd::start_for_pods(&node, &name)?;
    let told = |error: anyhow::Error| error.context(containerd.log());
    let before = Traces::take(containerd.folder());
    let kubelet = containerd.kubelet()?;

    kubelet.wait_for_image(&image)?;
    let running = kubelet.sandbox(&pod).map_err(told)?;
    start(&kubelet, &pod, &running).map_err(told)?;
    let log = kubelet.log("web", "good day")?;
    ensure!(log.contains("made by init") && log.contains(MARKER), "the container wrote:\n{log}");
    // As large as what the pod may use, not half of the guest's memory.
    let volume = kubelet.log("prepare", "tmpfs")?;
    let kib = volume
        .lines()
        .find_map(|line| line.split("tmpfs").nth(1)?.split_whitespace().next()?.parse::<u64>().ok());
    ensure!(kib.is_some_and(|kib| kib > 1 << 20), "the volume: {volume}");

    // In the pod that runs, the node asks for other containers.
    let web = kubelet.container(&pod, &pod["spec"]["containers"][0])?;
    for (number, (what, mut config, rule)) in changes(&web).into_iter().enumerate() {
        if let Some(metadata) = &mut config.metadata {
            metadata.attempt = u32::try_from(number + 1)?;
        }
        let Err(error) = kubelet.start(&running, config) else { anyhow::bail!("{what} ran") };
        let text = format!("{error:#}");
        ensure!(text.contains("blocked by policy") && text.contains(rule), "{what}: {text}");
    }
    shell_is_refused(&containerd)?;
    kubelet.remove(&running).map_err(told)?;
    nothing_left(&containerd, &before);
    drop(containerd);
    std::fs::remove_dir_all(&world.dir)?;
    Ok(())
}

/// A container whose image comes more slowly than the kubelet waits is given up, with the reason; the pod goes on, and takes it when it comes.
#[test]
fn a_container_whose_image_comes_too_slowly_is_given_up_and_its_pod_goes_on() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let world = World::of_test("slow-pods")?;
    let port = world.registry.host.rsplit(':').next().unwrap_or_default().parse()?;
    let relay = Relay::start(port)?;
    let registry = format!("localhost:{}", relay.port);
    let name = format!("{registry}/demo/plain");
    let image = format!("{name}:latest");
    world.push_plain(&format!("{}/demo/plain:latest", world.registry.host))?;
    let node = world.config(&Tampering::default()).replace(&world.registry.host, &registry);
    let pod = with_policy_of_node(&world, &image, &node)?;
    let containerd = Containerd::start_for_pods(&format!("agent_timeout_s = 900\n{node}"), &name)?;
    let told = |error: anyhow::Error| error.context(containerd.log());
    let before = Traces::take(containerd.folder());
    let kubelet = containerd.kubelet()?;
    kubelet.wait_for_image(&image)?;
    let running = kubelet.sandbox(&pod).map_err(told)?;

    relay.slow(true);
    let web = kubelet.container(&pod, &pod["spec"]["containers"][0])?;
    let Err(error) = kubelet.start_within(&running, web.clone(), Some(PATIENCE)) else {
        anyhow::bail!("it ran")
    };
    let text = format!("{error:#}");
    for part in [&*format!("{image} is being pulled, "), "bytes had come", "runtimeRequestTimeout"] {
        ensure!(text.contains(part), "expected {part:?}, seen: {text}\n{}", containerd.log());
    }
    // The pull has ended with it: what follows has the guest to itself.
    relay.slow(false);
    let mut again = web;
    if let Some(metadata) = &mut again.metadata {
        metadata.attempt = 1;
    }
    kubelet.start(&running, again).map_err(told)?;
    kubelet.log("web", "good day").map_err(told)?;
    kubelet.remove(&running).map_err(told)?;
    nothing_left(&containerd, &before);
    drop(containerd);
    std::fs::remove_dir_all(&world.dir)?;
    Ok(())
}

/// Nobody opened `exec`.
fn shell_is_refused(containerd: &Containerd) -> anyhow::Result<()> {
    let tasks = containerd.ctr(&["--namespace", "k8s.io", "task", "list", "--quiet"])?.ok()?.stdout;
    let refused = tasks.lines().map(|task| {
        let exec = ["--namespace", "k8s.io", "task", "exec", "--exec-id", "shell", task, "sh", "-c", "id"];
        containerd.ctr(&exec).map(|ended| (ended.code, ended.text()))
    });
    let refused: Vec<_> = refused.collect::<anyhow::Result<_>>()?;
    ensure!(!refused.is_empty(), "no task is there");
    ensure!(refused.iter().all(|(code, _)| *code != 0), "a shell was had: {refused:?}");
    ensure!(refused.iter().any(|(_, text)| text.contains("ExecProcessRequest is blocked")), "{refused:?}");
    Ok(())
}
