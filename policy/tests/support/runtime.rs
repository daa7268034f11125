//! What reaches the agent when a pod starts, by containerd and Kubernetes version.
//!
//! Shapes: those of the recorded specifications of Debian's containerd 1.6, 1.7 and 2.1 (`../recordings`), and `kata_cc_sandbox::oci` for what
//! the shim makes of them. The last version is none that there is: it adds an annotation, raises the OCI version, changes default mounts and
//! their order, as one to come may.

use std::collections::BTreeMap;

use kata_cc_policy::generate::{ImageConfig, ImageMap, ImageResolver};
use kata_cc_policy::manifest::{
    Container, EnvSource, Manifest, PodName, Projected, Security, VolumeSource, Workload,
};
use serde_json::{Value, json};

/// A containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Containerd {
    V1_6,
    V1_7,
    V2_0,
    V2_2,
}

pub const ALL: [Containerd; 4] = [Containerd::V1_6, Containerd::V1_7, Containerd::V2_0, Containerd::V2_2];

/// Id of the sandbox.
pub const SANDBOX: &str = "c0ffee0000000000000000000000000000000000000000000000000000000001";
const SHARED: &str = "/run/kata-containers/shared/containers";

/// What the agent is asked about a container.
#[derive(Clone, Debug)]
pub struct Asked {
    pub container: String,
    pub create: Value,
    /// None for the pause container.
    pub image: Option<Value>,
}

/// The pod as it runs.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    pub manifest: &'a Manifest,
    pub workload: &'a Workload,
    pub images: &'a ImageMap,
    pub version: Containerd,
}

impl Node<'_> {
    fn name(&self) -> String {
        match &self.workload.pod_name {
            PodName::Exactly(name) => name.clone(),
            PodName::Begins(begin) => format!("{begin}7c5ddbdf54-x2x9z"),
            PodName::Numbered(begin) => format!("{begin}0"),
        }
    }

    fn hostname(&self) -> String {
        let name = self.workload.spec.hostname.clone().unwrap_or_else(|| self.name());
        name.chars().take(63).collect()
    }

    fn namespace(&self) -> String {
        self.workload.namespace.clone().unwrap_or_else(|| "default".to_owned())
    }

    pub fn create_sandbox(&self) -> Value {
        json!({
            "hostname": self.hostname(), "dns": ["nameserver 10.96.0.10"], "sandbox_pidns": false, "sandbox_id": SANDBOX,
            "guest_hook_path": "", "kernel_modules": [],
            "storages": [{"driver": "ephemeral", "driver_options": [], "source": "shm", "fstype": "tmpfs",
                "options": ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"],
                "mount_point": "/run/kata-containers/sandbox/shm", "fs_group": null, "shared": false}],
        })
    }

    /// The pause container and all others, in the order in which they are created.
    pub fn containers(&self) -> Vec<Asked> {
        let pause = Asked { container: "(sandbox)".to_owned(), create: self.pause(), image: None };
        let all = self.workload.spec.all_containers();
        std::iter::once(pause).chain(all.enumerate().map(|(i, (_, c))| self.container(i, c))).collect()
    }

    fn pause(&self) -> Value {
        let process = json!({
            "Terminal": false, "ConsoleSize": null,
            "User": {"UID": 65535, "GID": 65535, "AdditionalGids": [65535], "Username": ""},
            "Args": ["/pause"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cwd": "/",
            "Capabilities": capabilities(&Security::default()), "Rlimits": [], "NoNewPrivileges": true,
            "ApparmorProfile": "", "OOMScoreAdj": -998, "SelinuxLabel": "",
        });
        let mut mounts = kernel_mounts(true, self.version);
        if self.version == Containerd::V1_6 {
            mounts.push(json!({"destination": "/dev/shm", "source": "shm", "type_": "tmpfs",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}));
        }
        mounts.push(bind("/dev/shm", "/run/kata-containers/sandbox/shm", "ro"));
        mounts.push(bind(
            "/etc/resolv.conf",
            &format!("{SHARED}/{SANDBOX}-0000000000000006-resolv.conf"),
            "ro",
        ));
        let mut annotations = self.annotations("sandbox");
        annotations["io.kubernetes.cri.sandbox-log-directory"] = "/var/log/pods/x".into();
        annotations["io.kubernetes.cri.sandbox-cpu-shares"] = "2".into();
        let mut sysctls = BTreeMap::new();
        if self.two() {
            annotations["io.kubernetes.cri.podsandbox.image-name"] = "registry.k8s.io/pause:3.10".into();
            sysctls.insert("net.ipv4.ip_unprivileged_port_start", "0");
            sysctls.insert("net.ipv4.ping_group_range", "0 2147483647");
        }
        sysctls.extend(self.workload.spec.sysctls.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        let mut spec = self.spec(SANDBOX, process, mounts, annotations, (true, false));
        spec["Hostname"] = self.hostname().into();
        spec["Linux"]["Sysctl"] = json!(sysctls);
        request(SANDBOX, spec, "pause", &[])
    }

    fn two(&self) -> bool {
        matches!(self.version, Containerd::V2_0 | Containerd::V2_2)
    }

    fn annotations(&self, kind: &str) -> Value {
        let mut all = json!({
            "io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": SANDBOX,
            "io.kubernetes.cri.sandbox-name": self.name(), "io.kubernetes.cri.sandbox-namespace": self.namespace(),
            "io.kubernetes.cri.sandbox-uid": "7b9f0d3e-5c2a-4b1e-9d7d-1f2e3a4b5c6d",
        });
        if self.version == Containerd::V2_2 {
            all["io.containerd.cri.something-new"] = "1".into();
        }
        all
    }

    fn container(&self, number: usize, container: &Container) -> Asked {
        let id = format!("{:064x}", 0xabc0 + number);
        let info = self.images.resolve(&container.image).unwrap();
        let security = container.security.over(&self.workload.spec.security);
        let privileged = security.privileged == Some(true);
        let (uid, gid) = ids(&security, &info.config.user);
        let mut groups = self.workload.spec.groups.clone();
        groups.insert(0, gid);
        let (env, args) = self.process(container, &info.config);
        let process = json!({
            "Terminal": container.tty, "ConsoleSize": null,
            "User": {"UID": uid, "GID": gid, "AdditionalGids": groups, "Username": ""},
            "Args": args, "Env": env,
            "Cwd": container.working_dir.clone().or(Some(info.config.working_dir.clone())).filter(|d| !d.is_empty())
                .unwrap_or_else(|| "/".to_owned()),
            "Capabilities": capabilities(&security), "Rlimits": [], "NoNewPrivileges": security.escalation == Some(false),
            "ApparmorProfile": "", "OOMScoreAdj": 1000, "SelinuxLabel": "",
        });
        let mut mounts = kernel_mounts(!privileged, self.version);
        if self.version == Containerd::V2_2 {
            mounts.rotate_left(2);
        }
        for path in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
            let mode =
                if security.read_only_root == Some(true) && path != "/etc/hosts" { "ro" } else { "rw" };
            mounts.push(bind(path, &copied(&id, mounts.len(), path.rsplit('/').next().unwrap()), mode));
        }
        let log = container.termination_message_path.clone().unwrap_or("/dev/termination-log".to_owned());
        mounts.push(bind(&log, &copied(&id, mounts.len(), "d8c8d3c1"), "rw"));
        if !container.mounts.iter().any(|mount| mount.path == "/dev/shm") {
            mounts.push(bind("/dev/shm", "/run/kata-containers/sandbox/shm", "rw"));
        }
        let mut storages = Vec::new();
        self.volumes(container, &info.config, &id, &mut mounts, &mut storages);
        let mut annotations = self.annotations("container");
        annotations["io.kubernetes.cri.container-name"] = container.name.clone().into();
        let image_name = self.image_name(&container.image);
        annotations["io.kubernetes.cri.image-name"] = image_name.clone().into();
        let flags = (security.read_only_root == Some(true), privileged || security.unmasked);
        let mut spec = self.spec(&id, process.clone(), mounts, annotations, flags);
        if privileged {
            spec["Linux"]["Resources"]["Devices"] =
                json!([{"Allow": true, "Type": "", "Major": -1, "Minor": -1, "Access": "rwm"}]);
        }
        let mut create = request(&id, spec, &image_name, &storages);
        create["devices"] = container
            .devices
            .iter()
            .map(|path| json!({"id": "01", "type_": "blk", "vm_path": "", "container_path": path, "options": []}))
            .collect();
        create["sandbox_pidns"] = self.workload.spec.share_processes.into();
        let (image_uid, image_gid) = image_ids(&info.config.user);
        let image_args = [info.config.entrypoint.clone(), info.config.cmd.clone()].concat();
        let image = json!({
            "container_id": id,
            "image": {"reference": image_name, "manifest_digest": info.digest, "pulled": true,
                "args": image_args, "env": info.config.env,
                "cwd": "/", "user": info.config.user, "uid": image_uid, "gid": image_gid, "groups": []},
            "process": {"Args": process["Args"], "Env": process["Env"], "Cwd": process["Cwd"], "User": process["User"]},
        });
        Asked { container: container.name.clone(), create, image: Some(image) }
    }

    /// containerd before 2 gives the full name.
    fn image_name(&self, name: &str) -> String {
        if self.two() {
            return name.to_owned();
        }
        let (first, rest) = name.split_once('/').unwrap_or(("", name));
        let full = match first {
            "" => format!("docker.io/library/{rest}"),
            first if first.contains(['.', ':']) => name.to_owned(),
            _ => format!("docker.io/{name}"),
        };
        if full.contains('@') || full.rsplit('/').next().unwrap().contains(':') {
            full
        } else {
            full + ":latest"
        }
    }

    fn process(&self, container: &Container, image: &ImageConfig) -> (Vec<String>, Vec<String>) {
        let mut pod: Vec<(String, String)> = Vec::new();
        let set = |pod: &mut Vec<(String, String)>, name: &str, value: String| {
            pod.retain(|(n, _)| n != name);
            pod.push((name.to_owned(), value));
        };
        for (name, value) in [
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("KUBERNETES_PORT", "tcp://10.96.0.1:443"),
            ("KUBERNETES_PORT_443_TCP", "tcp://10.96.0.1:443"),
            ("KUBERNETES_PORT_443_TCP_PROTO", "tcp"),
            ("KUBERNETES_PORT_443_TCP_PORT", "443"),
            ("KUBERNETES_PORT_443_TCP_ADDR", "10.96.0.1"),
        ] {
            set(&mut pod, name, value.to_owned());
        }
        if self.workload.spec.service_links {
            set(&mut pod, "SHOP_API_SERVICE_HOST", "10.96.7.7".to_owned());
            set(&mut pod, "SHOP_API_SERVICE_PORT_HTTP", "8080".to_owned());
            set(&mut pod, "SHOP_API_PORT_8080_TCP", "tcp://10.96.7.7:8080".to_owned());
        }
        for from in &container.env_from {
            let objects = if from.secret { &self.manifest.secrets } else { &self.manifest.config_maps };
            for (key, value) in objects.get(&from.name).into_iter().flatten() {
                set(&mut pod, &format!("{}{key}", from.prefix), value.clone());
            }
        }
        for variable in &container.env {
            if let Some(value) = self.value(container, &variable.source, &pod) {
                set(&mut pod, &variable.name, value);
            }
        }
        let words = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let (command, args) = (words(&container.command), words(&container.args));
        let expand = |list: Vec<String>| list.iter().map(|w| substitute(w, &pod)).collect::<Vec<_>>();
        let args = match (command.is_empty(), args.is_empty()) {
            (false, _) => [expand(command), expand(args)].concat(),
            (true, false) => [image.entrypoint.clone(), expand(args)].concat(),
            (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
        };
        let mut env: Vec<String> = Vec::new();
        if !image.env.iter().any(|e| e.starts_with("PATH=")) {
            env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        }
        if container.tty {
            env.push("TERM=xterm".to_owned());
        }
        env.push(format!("HOSTNAME={}", self.hostname()));
        // the image's stay before the pod's of the same name
        env.extend(image.env.iter().cloned());
        env.extend(pod.iter().map(|(name, value)| format!("{name}={value}")));
        env.retain({
            let set_path = pod.iter().any(|(n, _)| n == "PATH");
            let mut paths = 0;
            move |e| {
                paths += usize::from(e.starts_with("PATH="));
                !(set_path && paths == 1 && e.starts_with("PATH=/usr/local/sbin:"))
            }
        });
        (env, args)
    }

    fn value(&self, container: &Container, source: &EnvSource, pod: &[(String, String)]) -> Option<String> {
        let spec = &self.workload.spec;
        Some(match source {
            EnvSource::Value(text) => substitute(text, pod),
            EnvSource::ConfigMap { name, key, .. } => match self.manifest.config_maps.get(name) {
                Some(map) => map.get(key).cloned()?,
                None => "whatever the cluster has".to_owned(),
            },
            EnvSource::Secret { name, key, .. } => {
                let found = self.manifest.secrets.get(name).and_then(|s| s.get(key));
                found.cloned().unwrap_or_else(|| "s3cr3t".to_owned())
            }
            EnvSource::Field(path) => match path.as_str() {
                "metadata.name" => self.name(),
                "metadata.namespace" => self.namespace(),
                "metadata.uid" => "7b9f0d3e-5c2a-4b1e-9d7d-1f2e3a4b5c6d".to_owned(),
                "spec.nodeName" => spec.node.clone().unwrap_or_else(|| "node-7.example".to_owned()),
                "spec.serviceAccountName" => {
                    spec.service_account.clone().unwrap_or_else(|| "default".to_owned())
                }
                "status.hostIP" => "192.168.1.7".to_owned(),
                "status.podIP" => "10.244.1.17".to_owned(),
                "status.podIPs" => "10.244.1.17,fd00::17".to_owned(),
                other => {
                    let key = other.split('\'').nth(1).unwrap();
                    self.workload
                        .labels
                        .get(key)
                        .or(self.workload.annotations.get(key))
                        .cloned()
                        .unwrap_or_default()
                }
            },
            EnvSource::Resource { resource, .. } => match resource.as_str() {
                "limits.cpu" if container.limits.contains_key("cpu") => {
                    let cpu = &container.limits["cpu"];
                    let millis = cpu.strip_suffix('m').and_then(|m| m.parse::<u32>().ok());
                    millis.map_or_else(|| cpu.clone(), |millis| millis.div_ceil(1000).to_string())
                }
                "limits.memory" if container.limits.contains_key("memory") => {
                    let mebi: u64 = container.limits["memory"].trim_end_matches("Mi").parse().unwrap();
                    (mebi << 20).to_string()
                }
                _ => "8".to_owned(),
            },
        })
    }

    fn volumes(
        &self,
        container: &Container,
        image: &ImageConfig,
        id: &str,
        mounts: &mut Vec<Value>,
        storages: &mut Vec<Value>,
    ) {
        let spec = &self.workload.spec;
        let mut token = spec.automount_token != Some(false);
        for path in image.volumes.keys() {
            if !container.mounts.iter().any(|m| m.path.trim_end_matches('/') == path) {
                mounts.push(bind(path, &copied(id, mounts.len(), "image-volume"), "rw"));
            }
        }
        for mount in &container.mounts {
            let path = mount.path.trim_end_matches('/');
            token &= path != "/var/run/secrets/kubernetes.io/serviceaccount";
            let volume = spec.volumes.iter().find(|v| v.name == mount.volume).map(|v| &v.source);
            let mode = if mount.read_only { "ro" } else { "rw" };
            let (source, mode) = match volume {
                Some(VolumeSource::EmptyDir { memory: true }) => {
                    (format!("/run/kata-containers/sandbox/ephemeral/{}", mount.volume), mode)
                }
                Some(VolumeSource::EmptyDir { memory: false }) => {
                    (format!("{SHARED}/{SANDBOX}/rootfs/local/{}", mount.volume), mode)
                }
                Some(VolumeSource::HostPath(host)) if host.starts_with("/dev/") => (host.clone(), mode),
                Some(VolumeSource::HostPath(_)) => (copied(id, mounts.len(), "host"), mode),
                Some(VolumeSource::Claim(_) | VolumeSource::Other(_)) | None => {
                    ("/run/kata-containers/sandbox/storage/L3Zhci9saWI".to_owned(), mode)
                }
                Some(VolumeSource::Projected(parts)) if parts == &[Projected::Token] => {
                    (copied(id, mounts.len(), "kube-api-access"), "ro")
                }
                Some(_) => (copied(id, mounts.len(), &mount.volume), "ro"),
            };
            // our shim gives the sandbox's memory for whatever is to be there
            let shm = path == "/dev/shm" && self.version == Containerd::V2_0;
            let source = if shm { "/run/kata-containers/sandbox/shm".to_owned() } else { source };
            let source = if mount.sub_path { copied(id, mounts.len(), "0") } else { source };
            if source.contains("/ephemeral/") || source.contains("/local/") {
                let driver = if source.contains("/local/") { "local" } else { "ephemeral" };
                storages.push(storage(driver, &source));
            } else if source.contains("/storage/") {
                storages.push(storage("blk", &source));
            }
            mounts.push(bind(&mount.path, &source, mode));
        }
        if token {
            mounts.push(bind(
                "/var/run/secrets/kubernetes.io/serviceaccount",
                &copied(id, mounts.len(), "kube-api-access-x2x9z"),
                "ro",
            ));
        }
    }

    fn spec(
        &self,
        id: &str,
        process: Value,
        mounts: Vec<Value>,
        annotations: Value,
        (readonly, unmasked): (bool, bool),
    ) -> Value {
        let version = match self.version {
            Containerd::V1_6 => "1.0.2-dev",
            Containerd::V1_7 => "1.2.0",
            Containerd::V2_0 => "1.2.1",
            Containerd::V2_2 => "1.3.0",
        };
        let mut masked = vec![
            "/proc/acpi",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/sys/firmware",
            "/proc/scsi",
        ];
        let mut readonly_paths =
            vec!["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
        if self.version == Containerd::V1_6 {
            readonly_paths.push("/proc/asound");
        } else {
            masked.extend(["/proc/asound", "/sys/devices/virtual/powercap"]);
        }
        if self.two() {
            masked.extend(["/proc/interrupts", "/sys/devices/system/cpu/cpu0/thermal_throttle"]);
        }
        if unmasked {
            masked.clear();
            readonly_paths.clear();
        }
        let namespaces: Vec<Value> =
            ["pid", "ipc", "uts", "mount"].iter().map(|t| json!({"Type": t, "Path": ""})).collect();
        json!({
            "Version": version, "Process": process,
            "Root": {"Path": format!("/run/kata-containers/{id}/rootfs"), "Readonly": readonly},
            "Hostname": "", "Mounts": mounts, "Hooks": null, "Annotations": annotations,
            "Linux": {
                "UIDMappings": [], "GIDMappings": [], "Sysctl": {},
                "Resources": {"Devices": [{"Allow": false, "Type": "", "Major": -1, "Minor": -1, "Access": "rwm"}],
                    "Memory": null, "CPU": {"Shares": 2, "Quota": 0, "Period": 0, "RealtimeRuntime": 0, "RealtimePeriod": 0, "Cpus": "", "Mems": ""},
                    "Pids": null, "BlockIO": null, "HugepageLimits": [], "Network": null},
                "CgroupsPath": format!("/{id}"), "Namespaces": namespaces, "Devices": [],
                "Seccomp": {"DefaultAction": "SCMP_ACT_ERRNO", "Architectures": ["SCMP_ARCH_X86_64"], "Flags": [],
                    "Syscalls": [{"Names": ["read", "write", "execve"], "Action": "SCMP_ACT_ALLOW", "Args": [], "errnoret": null},
                        {"Names": ["clone3"], "Action": "SCMP_ACT_ERRNO", "Args": [], "errnoret": 38}]},
                "RootfsPropagation": "", "MaskedPaths": masked, "ReadonlyPaths": readonly_paths, "MountLabel": "", "IntelRdt": null,
            },
            "Solaris": null, "Windows": null,
        })
    }
}

fn copied(id: &str, number: usize, base: &str) -> String {
    format!("{SHARED}/{id}-{number:016x}-{base}")
}

fn bind(destination: &str, source: &str, mode: &str) -> Value {
    json!({"destination": destination, "source": source, "type_": "bind", "options": ["rbind", "rprivate", mode]})
}

fn storage(driver: &str, point: &str) -> Value {
    json!({"driver": driver, "driver_options": [], "source": driver, "fstype": driver, "options": ["mode=0777"],
        "mount_point": point, "fs_group": null, "shared": false})
}

fn kernel_mounts(closed: bool, version: Containerd) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "source": kind, "type_": kind, "options": options});
    let mode = if closed { "ro" } else { "rw" };
    let mut all = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", mode]),
    ];
    let cgroup = if version == Containerd::V2_2 { "cgroup2" } else { "cgroup" };
    all.push(mount("/sys/fs/cgroup", cgroup, &["nosuid", "noexec", "nodev", "relatime", mode]));
    all
}

fn request(id: &str, spec: Value, image: &str, storages: &[Value]) -> Value {
    let mut all = vec![
        json!({"driver": "image_guest_pull", "driver_options": [], "source": image, "fstype": "overlay",
        "options": [], "mount_point": format!("/run/kata-containers/{id}/rootfs"), "fs_group": null, "shared": false}),
    ];
    all.extend_from_slice(storages);
    json!({"container_id": id, "exec_id": id, "string_user": null, "devices": [], "storages": all, "OCI": spec,
        "sandbox_pidns": false, "shared_mounts": [], "stdin_port": 0, "stdout_port": 0, "stderr_port": 0})
}

/// User and group of a container where the image's files name nobody. Of an image's `user:group` the kubelet hands on the user alone
/// (`getImageUser` in kuberuntime's helpers.go), and the runtime looks up its group.
fn ids(security: &Security, image: &str) -> (u32, u32) {
    let user = image.split_once(':').map_or(image, |(user, _)| user);
    let (uid, gid) = image_ids(user);
    match security.user {
        Some(uid) => (uid, security.group.unwrap_or(0)),
        None => (uid, security.group.unwrap_or(gid)),
    }
}

/// As the guest resolves an image's user there. A name of the image is whatever its files say.
pub fn image_ids(image: &str) -> (u32, u32) {
    let (user, group) = image.split_once(':').unwrap_or((image, ""));
    let number = |text: &str| if text.is_empty() { 0 } else { text.parse().unwrap_or(999) };
    let named = !user.is_empty() && user.parse::<u32>().is_err();
    (number(user), if group.is_empty() && named { 999 } else { number(group) })
}

fn capabilities(security: &Security) -> Value {
    let mut set: Vec<String> = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ]
    .map(str::to_owned)
    .to_vec();
    if security.privileged == Some(true) {
        set.push("SYS_ADMIN".to_owned());
    } else {
        set.retain(|name| !security.drop.contains(name) && !security.drop.contains(&"ALL".to_owned()));
        set.extend(
            security.add.iter().filter(|n| *n != "ALL" && !set.contains(n)).cloned().collect::<Vec<_>>(),
        );
    }
    let set: Vec<String> = set.into_iter().map(|name| format!("CAP_{name}")).collect();
    json!({"Bounding": set, "Effective": set, "Inheritable": [], "Permitted": set, "Ambient": []})
}

fn substitute(text: &str, pod: &[(String, String)]) -> String {
    let mut text = text.replace("$$", "\u{1}");
    for (name, value) in pod {
        text = text.replace(&format!("$({name})"), value);
    }
    text.replace('\u{1}', "$")
}
