//! What to look at before a policy is trusted: rules that always hold, requests that are open, images and values that are not pinned.
//!
//! Generated policies are judged by their document, and by whether their rules are still the generator's; any other agent policy by asking it
//! questions that no careful policy answers with yes.

use serde::Serialize;
use serde_json::{Value, json};

use crate::agent::AgentPolicy;
use crate::engine::EngineError;
use crate::generate::{ContainerData, PolicyData, data_of, is_digest, rules};

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// The host decides something that matters.
    Warning,
    /// The host may do as it likes.
    Danger,
}

/// Something found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Name of the check.
    pub check: &'static str,
    /// Where in the policy.
    pub place: String,
    /// What it means.
    pub message: String,
}

/// Looks at a policy.
///
/// # Errors
/// When the agent would not take it.
pub fn lint(name: &str, text: &str) -> Result<Vec<Finding>, EngineError> {
    let mut policy = AgentPolicy::new(name, text)?;
    let mut found = Findings::default();
    if let Some(data) = data_of(text) {
        if !text.ends_with(&rules()) {
            found.add(
                Severity::Warning,
                "own-rules",
                "rules",
                "the rules are not the generator's of this version: read them",
            );
        }
        of_data(&data, &mut found);
    }
    by_asking(&mut policy, &mut found);
    found.0.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    found.0.dedup();
    Ok(found.0)
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        check: &'static str,
        place: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.0.push(Finding { severity, check, place: place.into(), message: message.into() });
    }
}

fn of_data(data: &PolicyData, found: &mut Findings) {
    let open = &data.open;
    for (name, is, severity, message) in [
        (
            "exec",
            open.exec,
            Severity::Danger,
            "any command runs in any container: whoever is root on the node reads every secret of the pod",
        ),
        (
            "copy",
            open.copy,
            Severity::Danger,
            "tar runs in any container, with its streams: the host reads and writes files",
        ),
        ("stdin", open.stdin, Severity::Warning, "standard input steers a program"),
        (
            "logs",
            open.logs,
            Severity::Warning,
            "the host reads what programs print: they must print no secrets",
        ),
        ("metrics", open.metrics, Severity::Note, "figures of the guest are read by the host"),
        ("pause", open.pause, Severity::Note, "the host may stop the pod and let it go on"),
    ] {
        if is {
            found.add(severity, "open-request", format!("policy_data.open.{name}"), message);
        }
    }
    if data.pod.namespace.is_none() {
        found.add(
            Severity::Note,
            "namespace",
            "policy_data.pod.namespace",
            "the pod may run in any namespace: name it in the manifest",
        );
    }
    for (name, container) in &data.containers {
        of_container(&format!("policy_data.containers[{name:?}]"), container, found);
    }
}

fn of_container(place: &str, container: &ContainerData, found: &mut Findings) {
    if container.image.digests.is_empty() || !container.image.digests.iter().all(|digest| is_digest(digest)) {
        let message = "the image is not named by a digest: whoever runs the registry decides what runs";
        found.add(Severity::Danger, "unpinned-image", format!("{place}.image.digests"), message);
    }
    if container.image.references.iter().any(|name| !name.contains('@')) {
        let message = "the manifest names the image by a tag. The agent of kata-cc compares the digest before it runs; Kata's own does not: \
                       there the manifest must name the digest";
        found.add(Severity::Note, "image-by-tag", format!("{place}.image.references"), message);
    }
    if container.privileged {
        let message =
            "the container is the guest's root: it reads the other containers' memory and the guest's keys";
        found.add(Severity::Danger, "privileged", format!("{place}.privileged"), message);
    } else if let Some(name) = container.capabilities.iter().find(|name| DANGEROUS.contains(&name.as_str())) {
        let message = format!("{name} leads out of the container into the guest");
        found.add(Severity::Warning, "capability", format!("{place}.capabilities"), message);
    }
    for (name, matcher) in &container.env_at_run_time {
        if matcher.is_any() || matcher.matches.as_deref().is_some_and(|m| m.contains(".*")) {
            let message = format!("the host chooses the value ({})", matcher.from);
            found.add(Severity::Warning, "any-value", format!("{place}.env_at_run_time[{name:?}]"), message);
        }
    }
    for (number, matcher) in &container.args_at_run_time {
        if matcher.is_any() || matcher.matches.as_deref().is_some_and(|m| m.contains(".*")) {
            let message = format!("the host chooses the argument ({})", matcher.from);
            found.add(
                Severity::Danger,
                "any-argument",
                format!("{place}.args_at_run_time[{number}]"),
                message,
            );
        }
    }
    for (entry, from) in &container.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        if from != "image" && looks_secret(name) && !value.is_empty() && !is_reference(value) {
            let message = "a secret in clear: the manifest, the node and this policy show it; seal it (`kata-cc secret seal`)";
            found.add(Severity::Warning, "clear-secret", format!("{place}.env[\"{name}=…\"]"), message);
        }
    }
    for (path, mount) in &container.mounts {
        let (severity, message) = match mount.kind.as_str() {
            "host" => (Severity::Warning, "the host chooses what is there"),
            "claim" => (
                Severity::Warning,
                "the host reads and writes what is there, unless it is encrypted in the guest",
            ),
            _ => continue,
        };
        found.add(severity, "host-volume", format!("{place}.mounts[{path:?}]"), message);
    }
    for command in &container.exec {
        let shell = command.args.first().is_some_and(|program| {
            ["sh", "bash", "ash", "dash", "zsh"].contains(&program.rsplit('/').next().unwrap_or_default())
        });
        if shell && command.args.len() < 3 {
            let message = "a shell without a command: it reads what to do from standard input";
            found.add(Severity::Warning, "shell", format!("{place}.exec"), message);
        }
    }
}

/// Capabilities that lead from a container to its guest.
const DANGEROUS: [&str; 8] = [
    "CAP_BPF",
    "CAP_DAC_READ_SEARCH",
    "CAP_NET_ADMIN",
    "CAP_PERFMON",
    "CAP_SYS_ADMIN",
    "CAP_SYS_MODULE",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
];

/// Whether a variable's name says that its value is a secret.
fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let ends = [
        "PASSWORD",
        "PASSWD",
        "SECRET",
        "TOKEN",
        "API_KEY",
        "APIKEY",
        "ACCESS_KEY",
        "PRIVATE_KEY",
        "CREDENTIALS",
    ];
    ends.iter().any(|end| name.ends_with(end))
}

/// Whether a value only tells where the secret is.
fn is_reference(value: &str) -> bool {
    value.starts_with("sealed.") || value.starts_with("kbs://") || value.starts_with('/')
}

/// Requests that no policy should let pass, whatever it is made for.
fn by_asking(policy: &mut AgentPolicy, found: &mut Findings) {
    let stranger = "c0ffee";
    let process = json!({"Args": ["/bin/sh", "-c", "id"], "Env": ["LD_PRELOAD=/tmp/x.so"], "Cwd": "/", "Terminal": false,
        "User": {"UID": 0, "GID": 0, "AdditionalGids": [], "Username": ""}, "NoNewPrivileges": false,
        "Capabilities": {"Bounding": ["CAP_SYS_ADMIN"]}});
    let root = format!("/run/kata-containers/{stranger}/rootfs");
    let create = json!({"container_id": stranger, "exec_id": "", "string_user": null, "devices": [], "shared_mounts": [],
        "sandbox_pidns": false, "stdin_port": 0, "stdout_port": 0, "stderr_port": 0,
        "storages": [{"driver": "image_guest_pull", "source": "evil.example/x:1", "fstype": "overlay", "options": [],
            "driver_options": [], "mount_point": root, "fs_group": null, "shared": false}],
        "OCI": {"Version": "1.1.0", "Process": process, "Root": {"Path": root, "Readonly": false}, "Hostname": "", "Mounts": [],
            "Hooks": null, "Annotations": {}, "Linux": {"Sysctl": {}, "Namespaces": [{"Type": "mount", "Path": ""}], "Devices": [],
            "MaskedPaths": MASKED, "ReadonlyPaths": READ_ONLY, "Seccomp": null, "Resources": {"Devices": []},
            "UIDMappings": [], "GIDMappings": [], "RootfsPropagation": ""}}});
    let questions: [(&str, Value, Severity, &str); 9] = [
        (
            "CreateContainerRequest",
            create,
            Severity::Danger,
            "an image, a program and variables that nobody named are let in",
        ),
        (
            "ExecProcessRequest",
            json!({"container_id": stranger, "exec_id": "e", "string_user": null, "process": process}),
            Severity::Danger,
            "any command runs in a container",
        ),
        (
            "SetPolicyRequest",
            json!({"policy": "package agent_policy"}),
            Severity::Danger,
            "the host may put another policy in this one's place",
        ),
        (
            "CopyFileRequest",
            json!({"path": "/run/kata-containers/shared/containers/../../../../etc/x", "file_type": "Regular",
            "symlink_target": "", "file_size": 1, "file_mode": 33188, "dir_mode": 493, "uid": 0, "gid": 0, "offset": 0}),
            Severity::Danger,
            "files are copied to anywhere in the guest",
        ),
        (
            "WriteStreamRequest",
            json!({"container_id": stranger, "exec_id": "", "data": [105, 100, 10]}),
            Severity::Warning,
            "standard input of any container is open",
        ),
        (
            "SecureMountRequest",
            json!({"volume_type": "block-device", "options": {"key": "kbs:///any/key/1"}, "flags": [],
            "mount_point": "/run/kata-containers/sandbox/x"}),
            Severity::Warning,
            "any encrypted volume is mounted",
        ),
        (
            "ReseedRandomDevRequest",
            json!({"data": [0]}),
            Severity::Warning,
            "the host feeds the guest's random numbers",
        ),
        (
            "SetGuestDateTimeRequest",
            json!({"Sec": 0, "Usec": 0}),
            Severity::Warning,
            "the host sets the guest's clock",
        ),
        (
            "AllowRequestsFailingPolicy",
            json!({}),
            Severity::Danger,
            "requests that the policy fails on are let through",
        ),
    ];
    for (request, input, severity, message) in questions {
        if policy.would_allow(request, &input).is_ok() {
            let message = format!("always true: {message}");
            found.add(severity, "always-true", format!("data.agent_policy.{request}"), message);
        }
    }
}

const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn checks(text: &str) -> Vec<String> {
        let found = lint("t", &format!("package agent_policy\nimport rego.v1\n{text}")).unwrap();
        found.iter().map(|f| format!("{} {}", f.check, f.place)).collect()
    }

    #[test]
    fn rules_that_always_hold_are_found_by_asking() {
        let none = "default CreateContainerRequest := false";
        assert_eq!(checks(none), [""; 0]);
        assert_eq!(
            checks("ExecProcessRequest := true\nSetPolicyRequest if true\nCreateContainerRequest if 1 == 1"),
            [
                "always-true data.agent_policy.CreateContainerRequest",
                "always-true data.agent_policy.ExecProcessRequest",
                "always-true data.agent_policy.SetPolicyRequest"
            ]
        );
        assert!(checks("AllowRequestsFailingPolicy := true").len() > 5);
        assert!(lint("t", "package other").is_err());
    }

    #[test]
    fn names_tell_secrets() {
        for name in ["DB_PASSWORD", "api_key", "GITHUB_TOKEN"] {
            assert!(looks_secret(name), "{name}");
        }
        for name in ["PASSWORD_FILE", "TOKENS", "KEYBOARD"] {
            assert!(!looks_secret(name), "{name}");
        }
        assert!(is_reference("sealed.a.b") && is_reference("/run/secret") && !is_reference("hunter2"));
    }
}
