//! Policies of manifests against what containerd 1.6, 1.7 and 2.1 really made of them (`recordings/README.md`), sent as the shim sends
//! it: the same pod is let in whatever the version, and nothing else is.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says how much it tried")]

mod support;

use std::path::{Path, PathBuf};

use kata_cc_agent_protocol::agent::{CreateContainerRequest, Storage};
use kata_cc_agent_protocol::oci;
use kata_cc_policy::AgentPolicy;
use kata_cc_policy::generate::{Generated, ImageResolver};
use kata_cc_policy::manifest::VolumeSource;
use serde_json::{Value, json};
use support::mutations::{self, Mutation};
use support::runtime::{Asked, Containerd, Node, image_ids};
use support::{Agreement, Case};

const SHARED: &str = "/run/kata-containers/shared/containers";

/// What one containerd made of one manifest.
struct Recording {
    containerd: String,
    manifest: String,
    /// Specifications by container, the sandbox's first.
    specs: Vec<(String, Value)>,
}

fn recordings(line: &str) -> Vec<Recording> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(line);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| Recording::read(&std::fs::read_to_string(file).unwrap())).collect()
}

impl Recording {
    fn read(text: &str) -> Self {
        let recorded: Value = serde_json::from_str(text).unwrap();
        let of = |key: &str| recorded[key].as_str().unwrap().to_owned();
        let specs = recorded["containers"].as_object().unwrap().clone().into_iter();
        let mut specs: Vec<(String, Value)> = specs.collect();
        specs.sort_by_key(|(name, _)| name != "(sandbox)");
        Self { containerd: of("containerd"), manifest: of("manifest"), specs }
    }

    fn sandbox(&self) -> &str {
        self.specs[0].1["annotations"]["io.kubernetes.cri.sandbox-id"].as_str().unwrap()
    }

    /// As the shim asks, for each container.
    fn asked(&self, case: &Case) -> Vec<Asked> {
        self.specs.iter().map(|(name, spec)| self.container(case, name, spec)).collect()
    }

    fn container(&self, case: &Case, name: &str, spec: &Value) -> Asked {
        let cgroup = spec["linux"]["cgroupsPath"].as_str().unwrap();
        let id = cgroup.rsplit('/').next().unwrap();
        let image = spec["annotations"]["io.kubernetes.cri.image-name"].as_str();
        let create = kata_cc_agent_protocol::json::message(&self.create(
            case,
            id,
            spec.clone(),
            image.unwrap_or("pause"),
        ));
        let question = image.map(|image| question(case, id, name, image, &create["OCI"]["Process"]));
        Asked { container: name.to_owned(), create, image: question }
    }

    fn create(&self, case: &Case, id: &str, mut spec: Value, image: &str) -> CreateContainerRequest {
        let root = format!("/run/kata-containers/{id}/rootfs");
        let host = tempfile::tempdir().unwrap();
        let volumes = self.volumes(case, spec["mounts"].as_array_mut().unwrap());
        files(host.path(), spec["mounts"].as_array_mut().unwrap());
        let mut spec = kata_cc_sandbox::oci::convert(id, &spec, &root).unwrap().spec;
        let mut storages = vec![storage("image_guest_pull", image, &root)];
        for (mount, driver) in volumes {
            if let Some(driver) = driver {
                storages.push(storage(driver, driver, &mount.source));
            }
            spec.Mounts.push(mount);
        }
        CreateContainerRequest {
            container_id: id.to_owned(),
            exec_id: id.to_owned(),
            OCI: Some(spec).into(),
            storages,
            ..Default::default()
        }
    }

    /// Takes out what the shim does not bring, writable volumes, and gives it in the forms of Kata's shims.
    fn volumes(&self, case: &Case, mounts: &mut Vec<Value>) -> Vec<(oci::Mount, Option<&'static str>)> {
        let own = |mount: &Value| {
            let source = mount["source"].as_str().unwrap();
            let (source, driver) = if let Some((_, name)) = source.split_once("/kubernetes.io~empty-dir/") {
                if memory(case, name) {
                    (format!("/run/kata-containers/sandbox/ephemeral/{name}"), Some("ephemeral"))
                } else {
                    (format!("{SHARED}/{}/rootfs/local/{name}", self.sandbox()), Some("local"))
                }
            } else if source.contains("/kubernetes.io~csi/") {
                ("/run/kata-containers/sandbox/storage/L3Zhci9saWI".to_owned(), Some("blk"))
            } else if source.starts_with("/dev/") {
                (source.to_owned(), None)
            } else {
                return None;
            };
            let text = |key: &str| mount[key].as_str().unwrap().to_owned();
            let options = mount["options"].as_array().unwrap().iter();
            let options = options.map(|option| option.as_str().unwrap().to_owned()).collect();
            let (destination, type_) = (text("destination"), text("type"));
            Some((oci::Mount { destination, source, type_, options, ..Default::default() }, driver))
        };
        // the shim itself gives the sandbox's memory, whatever is asked for there
        let taken = |mount: &Value| if mount["destination"] == "/dev/shm" { None } else { own(mount) };
        let volumes = mounts.iter().filter_map(taken).collect();
        mounts.retain(|mount| taken(mount).is_none());
        volumes
    }
}

fn memory(case: &Case, volume: &str) -> bool {
    let mut volumes = case.manifest.workloads[0].spec.volumes.iter();
    volumes.any(|one| one.name == volume && matches!(one.source, VolumeSource::EmptyDir { memory: true }))
}

/// The files that the recorded mounts named are not on this machine: others stand for them.
fn files(host: &Path, mounts: &mut [Value]) {
    for (number, mount) in mounts.iter_mut().enumerate() {
        let Some(source) = mount["source"].as_str().filter(|_| mount["type"] == "bind") else { continue };
        let folder = host.join(number.to_string());
        let file = folder.join(Path::new(source).file_name().unwrap());
        std::fs::create_dir(folder).unwrap();
        std::fs::write(&file, "").unwrap();
        mount["source"] = file.to_str().into();
    }
}

fn storage(driver: &str, source: &str, mount_point: &str) -> Storage {
    Storage {
        driver: driver.to_owned(),
        source: source.to_owned(),
        mount_point: mount_point.to_owned(),
        ..Default::default()
    }
}

/// What the agent asks when the image is there, which knows no user by name.
fn question(case: &Case, id: &str, name: &str, reference: &str, process: &Value) -> Value {
    let mut containers = case.manifest.workloads[0].spec.all_containers();
    let container = containers.find(|(_, one)| one.name == name).unwrap().1;
    let info = support::images().resolve(&container.image).unwrap();
    let (uid, gid) = image_ids(&info.config.user);
    let args = [info.config.entrypoint.clone(), info.config.cmd.clone()].concat();
    json!({
        "container_id": id,
        "image": {"reference": reference, "manifest_digest": info.digest, "pulled": true, "args": args,
            "env": info.config.env, "cwd": "/", "user": info.config.user, "uid": uid, "gid": gid, "groups": []},
        "process": {"Args": process["Args"], "Env": process["Env"], "Cwd": process["Cwd"], "User": process["User"]},
    })
}

/// A policy that has been asked for the sandbox.
fn started(case: &Case, generated: &Generated, recording: &Recording) -> AgentPolicy {
    let images = support::images();
    let workload = &case.manifest.workloads[0];
    let node = Node { manifest: &case.manifest, workload, images: &images, version: Containerd::V1_7 };
    let mut request = node.create_sandbox();
    request["hostname"] = recording.specs[0].1["hostname"].clone();
    request["sandbox_id"] = recording.sandbox().into();
    let mut policy = AgentPolicy::new("policy.rego", &generated.text).unwrap();
    policy.check("CreateSandboxRequest", &request).unwrap();
    policy
}

/// The containers of a recording as its policy sees them: what is refused, and how many changes were tried.
fn judge(case: &Case, recording: &Recording, wrong: &mut Vec<String>) -> usize {
    let generated = support::policy(case, &case.manifest.workloads[0]);
    let mut policy = started(case, &generated, recording);
    let place = format!("containerd {} {}", recording.containerd, recording.manifest);
    let mut tried = 0;
    for asked in recording.asked(case) {
        let name = &asked.container;
        let id = json!({"container_id": asked.create["container_id"]});
        let mut questions = vec![("CreateContainerRequest", &asked.create)];
        questions.extend(asked.image.as_ref().map(|image| ("RunImageRequest", image)));
        questions.push(("StartContainerRequest", &id));
        let mut both = Agreement::default();
        for (request, input) in &questions {
            wrong.extend(both.on(&mut policy, request, input));
        }
        let denied = questions.into_iter().find_map(|(request, input)| policy.check(request, input).err());
        if let Some(denial) = denied {
            wrong.push(format!("{place} {name}: {denial}"));
            continue;
        }
        for mutation in changes(&asked, &generated) {
            tried += 1;
            wrong.extend(both.on(&mut policy, mutation.request, &mutation.input));
            let denial = policy.would_allow(mutation.request, &mutation.input).err();
            let words = denial.map(|denial| denial.to_string());
            if words.as_ref().is_none_or(|words| !words.contains(mutation.rule)) {
                let why = format!("not refused by {:?}, but {words:?}", mutation.rule);
                wrong.push(format!("{place} {name} {}: {why}", mutation.name));
            }
        }
    }
    tried
}

fn changes(asked: &Asked, generated: &Generated) -> Vec<Mutation> {
    let data = match asked.container.as_str() {
        "(sandbox)" => serde_json::to_value(&generated.data.sandbox),
        name => serde_json::to_value(&generated.data.containers[name]),
    };
    mutations::of(asked, &data.unwrap(), &serde_json::to_value(&generated.data.pod).unwrap())
}

/// Each line of releases: its folder, how its versions begin, how many manifests were recorded.
const LINES: [(&str, &str, usize); 3] = [("1.6", "1.6.", 10), ("1.7", "1.7.", 8), ("2.x", "2.", 10)];

#[test]
fn the_same_pod_is_let_in_whatever_containerd_starts_it_and_nothing_else() {
    let corpus = support::corpus();
    let (mut tried, mut wrong) = (0, Vec::new());
    for (line, version, number) in LINES {
        let recordings = recordings(line);
        assert_eq!(recordings.len(), number, "{line}");
        for recording in recordings {
            assert!(recording.containerd.starts_with(version), "{line}: {}", recording.containerd);
            let Some(case) = corpus.iter().find(|case| case.name == recording.manifest) else { continue };
            tried += judge(case, &recording, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    println!("{tried} changes were denied");
    assert!(tried >= 1000 || std::env::var_os("KATA_CC_CORPUS").is_some(), "{tried}");
}
