//! A pod as the kubelet starts it: by containerd's Container Runtime Interface, from its manifest.
//!
//! What the kubelet makes of a manifest is here as far as the tests' manifests need it (`pkg/kubelet/kuberuntime` in kubernetes/kubernetes; more of it
//! in `policy/tests/recordings/kubelet.py`).

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
mod wire {
    tonic::include_proto!("runtime.v1");
}

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

use self::wire::image_service_client::ImageServiceClient;
use self::wire::runtime_service_client::RuntimeServiceClient;
pub use self::wire::{ContainerConfig, PodSandboxConfig};

/// The runtime handler of containerd's configuration.
pub const HANDLER: &str = "kata-cc";

/// The pod's control group, which the kubelet makes and removes.
const CGROUP: &str = "/kubepods/besteffort/pod7b9f0d3e-5c2a-4b1e-9d7d-1f2e3a4b5c6d";

/// Paths that Kubernetes 1.26 hides in every container, and makes read-only (`pkg/securitycontext/util.go`).
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 6] =
    ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A network plugin that gives the pod an address and no link: what a confidential guest needs of a network goes by its way out.
const PLUGIN: &str = r#"#!/bin/sh
case $CNI_COMMAND in
  VERSION) echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}' ;;
  ADD)
    echo '{"cniVersion":"0.4.0","interfaces":[{"name":"'"$CNI_IFNAME"'","sandbox":"'"$CNI_NETNS"'"}],
      "ips":[{"version":"4","address":"10.9.0.2/24","interface":0}]}'
    ;;
esac
"#;

/// Puts the network plugins into containerd's folder; gives the part of its configuration (version 2) that is about pods.
pub(crate) fn configuration(folder: &Path, pause: &str) -> anyhow::Result<String> {
    let (programs, networks) = (folder.join("cni-bin"), folder.join("cni"));
    for dir in [&programs, &networks] {
        std::fs::create_dir(dir)?;
    }
    for name in ["loopback", "apart"] {
        let program = programs.join(name);
        std::fs::write(&program, PLUGIN)?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    }
    let list = json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "apart"}]});
    std::fs::write(networks.join("pods.conflist"), list.to_string())?;
    Ok(format!(
        r#"[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
disable_hugetlb_controller = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{programs}"
conf_dir = "{networks}"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "{HANDLER}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{HANDLER}]
runtime_type = "io.containerd.kata-cc.v2"
pod_annotations = ["io.katacontainers.*"]
privileged_without_host_devices = true
"#,
        programs = programs.display(),
        networks = networks.display(),
    ))
}

/// A kubelet of one pod.
#[derive(Debug)]
pub struct Kubelet {
    runtime: tokio::runtime::Runtime,
    client: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    /// Folder of the pod's volumes and logs.
    folder: PathBuf,
}

/// A pod that runs.
#[derive(Debug)]
pub struct Running {
    /// containerd's id of the sandbox.
    pub id: String,
    /// What it was started with.
    pub config: PodSandboxConfig,
}

impl Kubelet {
    /// Of a containerd whose socket this is; the pod's files go to `folder`.
    pub fn new(socket: &Path, folder: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let channel = runtime
            .block_on(Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect())
            .context("containerd's CRI does not answer")?;
        let images = ImageServiceClient::new(channel.clone());
        Ok(Self { runtime, client: RuntimeServiceClient::new(channel), images, folder: folder.to_owned() })
    }

    /// Waits until containerd's CRI knows of an image that was imported.
    pub fn wait_for_image(&self, image: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let image = Some(wire::ImageSpec { image: image.to_owned(), ..Default::default() });
            let mut client = self.images.clone();
            let found = self.runtime.block_on(client.image_status(wire::ImageStatusRequest { image }));
            if found.map_err(words)?.into_inner().image.is_some() {
                return Ok(());
            }
            ensure!(begun.elapsed() < Duration::from_secs(60), "containerd's CRI does not know the image");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts the pod's sandbox, from its manifest (one Pod).
    pub fn sandbox(&self, pod: &Value) -> anyhow::Result<Running> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (name, namespace) = (text(&pod["metadata"]["name"]), text(&pod["metadata"]["namespace"]));
        let annotations = pod["metadata"]["annotations"].as_object().into_iter().flatten();
        let config = PodSandboxConfig {
            metadata: Some(wire::PodSandboxMetadata {
                name: name.clone(),
                uid: "7b9f0d3e-5c2a-4b1e-9d7d-1f2e3a4b5c6d".to_owned(),
                namespace: namespace.clone(),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: self.folder.join("logs").display().to_string(),
            labels: identity(&name, &namespace),
            annotations: annotations.map(|(key, value)| (key.clone(), text(value))).collect(),
            linux: Some(wire::LinuxPodSandboxConfig {
                cgroup_parent: CGROUP.to_owned(),
                security_context: Some(wire::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    seccomp: Some(wire::SecurityProfile::default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        std::fs::create_dir_all(&config.log_directory)?;
        std::fs::create_dir_all(format!("/sys/fs/cgroup{CGROUP}"))?;
        let request =
            wire::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: HANDLER.to_owned() };
        let mut client = self.client.clone();
        let answer = self.runtime.block_on(client.run_pod_sandbox(request));
        let id = answer.map_err(words)?.into_inner().pod_sandbox_id;
        Ok(Running { id, config })
    }

    /// What the kubelet asks for a container of the pod.
    pub fn container(&self, pod: &Value, container: &Value) -> anyhow::Result<ContainerConfig> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let texts = |value: &Value| value.as_array().into_iter().flatten().map(text).collect();
        let name = text(&container["name"]);
        let sandbox = &pod["metadata"];
        let env = container["env"].as_array().into_iter().flatten();
        let mut labels = identity(&text(&sandbox["name"]), &text(&sandbox["namespace"]));
        labels.insert("io.kubernetes.container.name".to_owned(), name.clone());
        std::fs::create_dir_all(self.folder.join("logs").join(&name))?;
        Ok(ContainerConfig {
            metadata: Some(wire::ContainerMetadata { name: name.clone(), attempt: 0 }),
            image: Some(wire::ImageSpec { image: text(&container["image"]), ..Default::default() }),
            command: texts(&container["command"]),
            args: texts(&container["args"]),
            envs: env
                .map(|one| wire::KeyValue { key: text(&one["name"]), value: text(&one["value"]) })
                .collect(),
            mounts: self.mounts(pod, container)?,
            labels,
            log_path: format!("{name}/0.log"),
            linux: Some(wire::LinuxContainerConfig {
                resources: Some(wire::LinuxContainerResources {
                    cpu_period: 100_000,
                    cpu_shares: 2,
                    ..Default::default()
                }),
                security_context: Some(wire::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    run_as_user: Some(wire::Int64Value { value: 0 }),
                    masked_paths: MASKED.map(str::to_owned).to_vec(),
                    readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
                    seccomp: Some(wire::SecurityProfile {
                        profile_type: wire::security_profile::ProfileType::Unconfined.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        })
    }

    /// Volumes as the kubelet lays them out, and the files that it makes for every container.
    fn mounts(&self, pod: &Value, container: &Value) -> anyhow::Result<Vec<wire::Mount>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut mounts = Vec::new();
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let name = text(&mount["name"]);
            let mut volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
            let volume = volumes.find(|volume| volume["name"] == mount["name"]);
            let volume = volume.with_context(|| format!("the pod has no volume {name}"))?;
            ensure!(volume["emptyDir"].is_object(), "volume {name}: the tests' kubelet makes emptyDir only");
            let folder = self.folder.join("volumes/kubernetes.io~empty-dir").join(&name);
            std::fs::create_dir_all(&folder)?;
            std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))?;
            mounts.push(wire::Mount {
                container_path: text(&mount["mountPath"]),
                host_path: folder.display().to_string(),
                readonly: mount["readOnly"] == true,
                ..Default::default()
            });
        }
        for (place, file) in [("/etc/hosts", "etc-hosts"), ("/dev/termination-log", "termination-log")] {
            let path = self.folder.join(file);
            std::fs::write(&path, if file == "etc-hosts" { "127.0.0.1 localhost\n" } else { "" })?;
            let host_path = path.display().to_string();
            mounts.push(wire::Mount { container_path: place.to_owned(), host_path, ..Default::default() });
        }
        Ok(mounts)
    }

    /// Creates and starts a container; gives its id.
    pub fn start(&self, pod: &Running, config: ContainerConfig) -> anyhow::Result<String> {
        self.start_within(pod, config, None)
    }

    /// The same, waiting for the start as long as `runtimeRequestTimeout` of a kubelet says: for ever without.
    pub fn start_within(
        &self,
        pod: &Running,
        config: ContainerConfig,
        limit: Option<Duration>,
    ) -> anyhow::Result<String> {
        let mut client = self.client.clone();
        self.runtime.block_on(async {
            let request = wire::CreateContainerRequest {
                pod_sandbox_id: pod.id.clone(),
                config: Some(config),
                sandbox_config: Some(pod.config.clone()),
            };
            let container_id =
                client.create_container(request).await.map_err(words)?.into_inner().container_id;
            let mut request =
                tonic::Request::new(wire::StartContainerRequest { container_id: container_id.clone() });
            if let Some(limit) = limit {
                request.set_timeout(limit);
            }
            client.start_container(request).await.map_err(words)?;
            Ok(container_id)
        })
    }

    /// Stops and removes the pod.
    pub fn remove(&self, pod: &Running) -> anyhow::Result<()> {
        let (mut client, pod_sandbox_id) = (self.client.clone(), pod.id.clone());
        self.runtime.block_on(async {
            let stop = wire::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
            client.stop_pod_sandbox(stop).await.map_err(words)?;
            let remove = wire::RemovePodSandboxRequest { pod_sandbox_id };
            client.remove_pod_sandbox(remove).await.map_err(words)
        })?;
        let group = format!("/sys/fs/cgroup{CGROUP}");
        for group in Path::new(&group).ancestors().take(3) {
            // Those above may be another pod's too.
            let _ = std::fs::remove_dir(group);
        }
        Ok(())
    }

    /// What a container has written, once `part` is in it.
    pub fn log(&self, container: &str, part: &str) -> anyhow::Result<String> {
        let path = self.folder.join("logs").join(container).join("0.log");
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if text.contains(part) {
                return Ok(text);
            }
            if begun.elapsed() > Duration::from_secs(120) {
                bail!("container {container} did not write {part:?} within two minutes, but:\n{text}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn identity(name: &str, namespace: &str) -> HashMap<String, String> {
    [
        ("io.kubernetes.pod.name", name),
        ("io.kubernetes.pod.namespace", namespace),
        ("io.kubernetes.pod.uid", "7b9f0d3e-5c2a-4b1e-9d7d-1f2e3a4b5c6d"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn namespaces() -> wire::NamespaceOption {
    let pod = i32::from(wire::NamespaceMode::Pod);
    let pid = wire::NamespaceMode::Container.into();
    wire::NamespaceOption { network: pod, pid, ipc: pod, ..Default::default() }
}

fn words(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{:?}: {}", status.code(), status.message())
}
