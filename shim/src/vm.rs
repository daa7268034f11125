//! The sandbox behind the seam: [`crate::guest`]'s traits on `kata-cc-sandbox`.
//!
//! Here a containerd specification becomes a sandbox's: the network namespace, limits, name server lines and host
//! name of the pod's first container, and for each container either its mounted root file system (plain microVM) or
//! only its image's reference (confidential: the guest pulls, and the host's layers are never looked at).

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use kata_cc_agent_protocol::agent::StatsContainerResponse;
use kata_cc_sandbox::Pull;
use kata_cc_sandbox::copy::read_small;
use kata_cc_sandbox::sealed;
use kata_cc_sandbox::sizing::Limits;
use kata_cc_sandbox::tier::Demand;
use kata_cc_sandbox::{
    Class, ContainerSpec, NodeConfig, Output as SandboxOutput, Rootfs, Sandbox, SandboxError, SandboxSpec,
};
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Process, Spec};
use serde_json::Value;

use crate::grouping::{self, Kind};
use crate::guest::{ContainerRequest, GuestError, Launcher, Output, Pod, PodRequest};

/// Longest host name that Linux takes.
const HOSTNAME: usize = 64;
/// More of a `resolv.conf` than any resolver reads.
const DNS_LINES: usize = 64;
const DNS_BYTES: u64 = 64 << 10;

/// Launches microVMs.
#[derive(Debug)]
pub struct VmLauncher {
    /// What the runtime class promises.
    pub class: Class,
}

#[async_trait]
impl Launcher for VmLauncher {
    async fn launch(&self, request: PodRequest) -> Result<Arc<dyn Pod>, GuestError> {
        let config = NodeConfig::load().map_err(|error| GuestError::FailedPrecondition(error.to_string()))?;
        let spec = sandbox_spec(&request, self.class);
        let sandbox = Sandbox::create(&config, spec).await.map_err(guest_error)?;
        tracing::info!(tier = sandbox.tier().name(), vmm = sandbox.vmm_pid(), "the sandbox runs");
        Ok(Arc::new(Vm(sandbox)))
    }
}

fn sandbox_spec(request: &PodRequest, class: Class) -> SandboxSpec {
    let spec = &request.spec;
    let annotations = spec.annotations().clone().unwrap_or_default();
    let mut hostname =
        spec.hostname().clone().filter(|name| !name.is_empty()).unwrap_or_else(|| request.id.clone());
    hostname.truncate((0..=HOSTNAME).rev().find(|at| hostname.is_char_boundary(*at)).unwrap_or_default());
    let shared_pids =
        spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref()).is_some_and(|namespaces| {
            request.kind == Kind::Sandbox
                && !namespaces.iter().any(|one| one.typ() == LinuxNamespaceType::Pid)
        });
    SandboxSpec {
        id: request.id.clone(),
        class,
        netns: network_namespace(spec),
        limits: limits(spec),
        hostname,
        dns: dns(spec),
        image: grouping::image(&annotations).map(str::to_owned),
        demand: Demand { sealed_secret: carries_sealed_secret(spec), ..Demand::default() },
        shared_pids,
        cgroup: cgroup(spec),
        annotations,
    }
}

/// Whether the first container (of a pod it is the pause container, which has none) carries one; the others are looked at when they come.
fn carries_sealed_secret(spec: &Spec) -> bool {
    let env = spec.process().as_ref().and_then(|process| process.env().as_ref());
    sealed::variable(env.into_iter().flatten().map(String::as_str)).is_some()
}

/// Where the engine wants the pod to be charged.
fn cgroup(spec: &Spec) -> Option<String> {
    spec.linux().as_ref()?.cgroups_path().as_ref()?.to_str().map(str::to_owned)
}

/// The pod's network namespace, when it was made beforehand. Without one the sandbox makes its own; the host's own
/// network is never given to a guest.
fn network_namespace(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    namespaces.iter().find(|one| one.typ() == LinuxNamespaceType::Network)?.path().clone()
}

/// The pod's limits: the sums that Kubernetes writes at the sandbox container, else the container's own.
fn limits(spec: &Spec) -> Limits {
    let annotation = |key: &str| spec.annotations().as_ref().and_then(|all| all.get(key));
    let number = |key: &str| {
        annotation(&format!("io.kubernetes.cri.sandbox-{key}")).and_then(|text| text.parse().ok())
    };
    let pod = Limits::from_oci(
        number("cpu-quota"),
        number("cpu-period").and_then(|period: i64| u64::try_from(period).ok()),
        number("memory"),
    );
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let memory = resources.and_then(|resources| resources.memory().as_ref());
    let own = Limits::from_oci(
        cpu.and_then(oci_spec::runtime::LinuxCpu::quota),
        cpu.and_then(oci_spec::runtime::LinuxCpu::period),
        memory.and_then(oci_spec::runtime::LinuxMemory::limit),
    );
    pod.or(own)
}

/// Lines of the `resolv.conf` that containerd or Docker made for the pod.
fn dns(spec: &Spec) -> Vec<String> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let source = mounts.iter().find(|mount| mount.destination().as_os_str() == "/etc/resolv.conf");
    let path = source.and_then(|mount| mount.source().as_ref());
    // One that is not there, or is no file, is no name server lines; mounting it then says what is wrong.
    let bytes = path.and_then(|path| read_small(path, DNS_BYTES).ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().take(DNS_LINES).map(str::to_owned).collect()
}

/// What a guest gets of the specification: the hooks that the shim itself has run are not in it.
fn guest_spec(spec: &Spec) -> Result<Value, GuestError> {
    let mut value = serde_json::to_value(spec).map_err(|error| GuestError::Other(error.to_string()))?;
    if let Some(hooks) = value.get_mut("hooks").and_then(Value::as_object_mut) {
        for ours in ["prestart", "createRuntime", "poststop"] {
            hooks.remove(ours);
        }
        hooks.retain(|_, list| list.as_array().is_some_and(|list| !list.is_empty()));
    }
    Ok(value)
}

struct Vm(Arc<Sandbox>);

impl Vm {
    fn rootfs(&self, request: &ContainerRequest) -> Result<Rootfs, GuestError> {
        if !self.0.tier().is_confidential() {
            return Ok(Rootfs::HostDir(request.rootfs.clone()));
        }
        match (request.kind, &request.image) {
            (Kind::Sandbox, _) => Ok(Rootfs::Pause),
            (_, Some(image)) => Ok(Rootfs::GuestPull(image.clone())),
            (_, None) => Err(GuestError::InvalidArgument(
                "a confidential guest pulls its image itself and must be told which: set the annotation \
                 dev.kata-cc.image (with ctr: --annotation dev.kata-cc.image=REFERENCE)"
                    .to_owned(),
            )),
        }
    }
}

#[async_trait]
impl Pod for Vm {
    fn pid(&self) -> u32 {
        self.0.vmm_pid()
    }

    fn uses_host_rootfs(&self) -> bool {
        !self.0.tier().is_confidential()
    }

    async fn ended(&self) -> String {
        self.0.ended().await
    }

    async fn create(&self, request: &ContainerRequest) -> Result<(), GuestError> {
        let mut spec = guest_spec(&request.spec)?;
        if request.terminal {
            spec["process"]["terminal"] = Value::Bool(true);
        }
        let container = ContainerSpec { id: request.id.clone(), spec, rootfs: self.rootfs(request)? };
        self.0.create_container(&container).await.map_err(guest_error)
    }

    fn pull(&self, image: &str) -> Option<Pull> {
        self.0.pull(image)
    }

    async fn start(&self, container: &str) -> Result<(), GuestError> {
        self.0.start_container(container).await.map_err(guest_error)
    }

    async fn exec(&self, container: &str, exec: &str, process: &Process) -> Result<(), GuestError> {
        let process = serde_json::to_value(process).map_err(|error| GuestError::Other(error.to_string()))?;
        self.0.exec(container, exec, &process).await.map_err(guest_error)
    }

    async fn signal(&self, container: &str, exec: &str, signal: u32) -> Result<(), GuestError> {
        self.0.signal(container, exec, signal).await.map_err(guest_error)
    }

    async fn wait(&self, container: &str, exec: &str) -> Result<u32, GuestError> {
        self.0.wait(container, exec).await.map_err(guest_error)
    }

    async fn write_stdin(&self, container: &str, exec: &str, data: &[u8]) -> Result<usize, GuestError> {
        self.0.write_stdin(container, exec, data).await.map_err(guest_error)
    }

    async fn close_stdin(&self, container: &str, exec: &str) -> Result<(), GuestError> {
        self.0.close_stdin(container, exec).await.map_err(guest_error)
    }

    async fn read(&self, container: &str, exec: &str, output: Output) -> Result<Vec<u8>, GuestError> {
        let output = match output {
            Output::Stdout => SandboxOutput::Stdout,
            Output::Stderr => SandboxOutput::Stderr,
        };
        self.0.read(container, exec, output).await.map_err(guest_error)
    }

    async fn resize(&self, container: &str, exec: &str, rows: u32, columns: u32) -> Result<(), GuestError> {
        self.0.resize(container, exec, rows, columns).await.map_err(guest_error)
    }

    async fn update(&self, container: &str, resources: &LinuxResources) -> Result<(), GuestError> {
        let resources =
            serde_json::to_value(resources).map_err(|error| GuestError::Other(error.to_string()))?;
        self.0.update(container, &resources).await.map_err(guest_error)
    }

    async fn stats(&self, container: &str) -> Result<StatsContainerResponse, GuestError> {
        self.0.stats(container).await.map_err(guest_error)
    }

    async fn pause(&self, container: &str) -> Result<(), GuestError> {
        self.0.pause(container).await.map_err(guest_error)
    }

    async fn resume(&self, container: &str) -> Result<(), GuestError> {
        self.0.resume(container).await.map_err(guest_error)
    }

    async fn remove(&self, container: &str) -> Result<(), GuestError> {
        self.0.remove_container(container).await.map_err(guest_error)
    }

    async fn out_of_memory(&self) -> Result<String, GuestError> {
        self.0.out_of_memory().await.map_err(guest_error)
    }

    async fn stop(&self) {
        self.0.stop().await;
    }
}

fn guest_error(error: SandboxError) -> GuestError {
    let text = error.to_string();
    match error {
        // gRPC codes of the agent
        SandboxError::Agent { code: 3, .. } | SandboxError::Spec(_) | SandboxError::InitData(_) => {
            GuestError::InvalidArgument(text)
        }
        SandboxError::Agent { code: 5, .. } => GuestError::NotFound(text),
        SandboxError::Agent { code: 7, .. } => GuestError::Denied(text),
        SandboxError::Agent { code: 9, .. } | SandboxError::Tier(_) | SandboxError::NoSlot => {
            GuestError::FailedPrecondition(text)
        }
        SandboxError::Ended(_) | SandboxError::NoAgent { .. } => GuestError::Unavailable(text),
        _ => GuestError::Other(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(spec: Value) -> PodRequest {
        PodRequest {
            id: "p".into(),
            namespace: "n".into(),
            bundle: "/b".into(),
            spec: serde_json::from_value(spec).unwrap(),
            kind: Kind::Single,
        }
    }

    #[test]
    fn a_pods_sums_outweigh_the_pause_containers_own_limits() {
        let spec = json!({
            "ociVersion": "1.0.2",
            "annotations": {"io.kubernetes.cri.sandbox-memory": "268435456",
                "io.kubernetes.cri.sandbox-cpu-quota": "200000", "io.kubernetes.cri.sandbox-cpu-period": "100000"},
            "linux": {"resources": {"memory": {"limit": 1024}}, "cgroupsPath": "/kubepods/pod1/p",
                "namespaces": [{"type": "network", "path": "/run/netns/x"}]},
        });
        let made = sandbox_spec(&request(spec), Class::KataCc);
        assert_eq!((made.limits.memory_bytes, made.limits.cpu_millis), (Some(256 << 20), Some(2000)));
        assert_eq!(made.netns.unwrap(), std::path::Path::new("/run/netns/x"));
        assert_eq!((made.hostname.as_str(), made.cgroup.as_deref()), ("p", Some("/kubepods/pod1/p")));
    }

    #[test]
    fn without_a_namespace_path_the_sandbox_makes_its_own() {
        let spec = json!({"ociVersion": "1.0.2", "linux": {"namespaces": [{"type": "network"}]}});
        assert_eq!(sandbox_spec(&request(spec), Class::KataCc).netns, None);
    }

    #[test]
    fn only_the_beginning_of_a_resolv_conf_is_read_and_only_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let spec = |path: &std::path::Path| {
            let mounts = json!([{"destination": "/etc/resolv.conf", "type": "bind", "source": path}]);
            serde_json::from_value(json!({"ociVersion": "1.0.2", "mounts": mounts})).unwrap()
        };
        std::fs::write(&path, format!("nameserver 10.0.0.1\n{}", "#".repeat(1 << 20))).unwrap();
        let lines = dns(&spec(&path));
        assert_eq!(lines[0], "nameserver 10.0.0.1");
        assert!(lines.iter().map(String::len).sum::<usize>() <= 64 << 10);
        assert!(dns(&spec(std::path::Path::new("/dev/zero"))).is_empty());
    }

    #[test]
    fn hooks_that_ran_on_the_host_are_not_sent_into_the_guest() {
        let spec = json!({"ociVersion": "1.0.2",
            "hooks": {"prestart": [{"path": "/bin/net"}], "createContainer": [{"path": "/bin/in"}]}});
        let sent = guest_spec(&serde_json::from_value(spec).unwrap()).unwrap();
        assert!(sent["hooks"].get("prestart").is_none());
        assert_eq!(sent["hooks"]["createContainer"][0]["path"], "/bin/in");
    }

    #[test]
    fn a_policys_denial_stays_one() {
        let denial = SandboxError::Agent { code: 7, message: "rule x".into() };
        assert_eq!(guest_error(denial), GuestError::Denied("rule x".into()));
        assert!(matches!(guest_error(SandboxError::Ended("x".into())), GuestError::Unavailable(_)));
    }
}
