//! `config.json` as the agent's messages (Kata's `grpc.Spec`), read from JSON field by field: what has no place in a message is not sent.
//!
//! What every tier has in common is here. Namespace paths and cgroup parents of the host mean nothing to a guest and are cleared.

use std::collections::HashMap;

use kata_cc_agent_protocol::oci as wire;
use serde_json::Value;

/// A text field; empty when it is not there.
#[must_use]
pub fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

/// A list of texts.
#[must_use]
pub fn texts(value: &Value, key: &str) -> Vec<String> {
    list(value, key).iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

/// A list; empty when it is not there.
#[must_use]
pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn unsigned(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
}

fn small(value: &Value, key: &str) -> u32 {
    u32::try_from(unsigned(value, key)).unwrap_or(u32::MAX)
}

fn signed(value: &Value, key: &str) -> i64 {
    value[key].as_i64().or_else(|| value[key].as_u64().map(|_| i64::MAX)).unwrap_or_default()
}

/// A map of texts.
#[must_use]
pub fn map(value: &Value, key: &str) -> HashMap<String, String> {
    let pairs = value[key].as_object().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// A container's specification but for its mounts, which each tier has its own way for. `root` is its root where the agent looks.
#[must_use]
pub fn specification(id: &str, spec: &Value, root: &str, mounts: Vec<wire::Mount>) -> wire::Spec {
    wire::Spec {
        Version: text(spec, "ociVersion"),
        Process: Some(process(&spec["process"])).into(),
        Root: Some(wire::Root {
            Path: root.to_owned(),
            Readonly: spec["root"]["readonly"].as_bool().unwrap_or_default(),
            ..Default::default()
        })
        .into(),
        Hostname: text(spec, "hostname"),
        Mounts: mounts,
        Hooks: spec["hooks"]
            .as_object()
            .filter(|hooks| !hooks.is_empty())
            .map(|_| hooks(&spec["hooks"]))
            .into(),
        Annotations: map(spec, "annotations"),
        Linux: Some(linux(id, &spec["linux"])).into(),
        ..Default::default()
    }
}

/// Annotations of `kata-cc-sentry serve` (docs/sentry.md) that carry what the agent's messages have no field for.
const SENTRY_UMASK: &str = "dev.kata-cc.sentry.umask";
const SENTRY_SECCOMP_ERRNO: &str = "dev.kata-cc.sentry.seccomp-errno";
const SENTRY_DOMAIN: &str = "dev.kata-cc.sentry.domainname";

/// A container's specification as the sentry takes it: paths are the host's, hooks are run by whoever starts it, and what has no field is said by
/// annotations, which the sentry believes as it does the rest. An agent in a guest is told no errno of a default action: its policy, which looks at
/// the answers of a profile, does not look at annotations.
#[must_use]
pub fn for_sentry(id: &str, spec: &Value, root: &str) -> wire::Spec {
    let mounts = list(spec, "mounts").iter().map(mount).collect();
    let mut made = specification(id, spec, root, mounts);
    made.Hooks = None.into();
    let mut say = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            made.Annotations.insert(name.to_owned(), value);
        }
    };
    say(SENTRY_UMASK, spec["process"]["user"]["umask"].as_u64().map(|umask| format!("{umask:04o}")));
    let errno = &spec["linux"]["seccomp"]["defaultErrnoRet"];
    say(SENTRY_SECCOMP_ERRNO, errno.as_u64().map(|errno| errno.to_string()));
    say(SENTRY_DOMAIN, spec["domainname"].as_str().map(str::to_owned));
    made
}

/// A mount as it is.
#[must_use]
pub fn mount(mount: &Value) -> wire::Mount {
    wire::Mount {
        destination: text(mount, "destination"),
        source: text(mount, "source"),
        type_: text(mount, "type"),
        options: texts(mount, "options"),
        ..Default::default()
    }
}

/// Whether a mount shows a part of the host.
#[must_use]
pub fn is_bind(mount: &wire::Mount) -> bool {
    mount.type_ == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind")
}

/// A process, of a container or an exec.
#[must_use]
pub fn process(value: &Value) -> wire::Process {
    let caps = &value["capabilities"];
    let user = &value["user"];
    wire::Process {
        Terminal: value["terminal"].as_bool().unwrap_or_default(),
        ConsoleSize: value["consoleSize"]
            .as_object()
            .map(|_| wire::Box {
                Height: small(&value["consoleSize"], "height"),
                Width: small(&value["consoleSize"], "width"),
                ..Default::default()
            })
            .into(),
        User: Some(wire::User {
            UID: small(user, "uid"),
            GID: small(user, "gid"),
            AdditionalGids: list(user, "additionalGids")
                .iter()
                .filter_map(|gid| u32::try_from(gid.as_u64()?).ok())
                .collect(),
            Username: text(user, "username"),
            ..Default::default()
        })
        .into(),
        Args: texts(value, "args"),
        Env: texts(value, "env"),
        Cwd: text(value, "cwd"),
        Capabilities: caps
            .as_object()
            .map(|_| wire::LinuxCapabilities {
                Bounding: texts(caps, "bounding"),
                Effective: texts(caps, "effective"),
                Inheritable: texts(caps, "inheritable"),
                Permitted: texts(caps, "permitted"),
                Ambient: texts(caps, "ambient"),
                ..Default::default()
            })
            .into(),
        Rlimits: list(value, "rlimits")
            .iter()
            .map(|limit| wire::POSIXRlimit {
                Type: text(limit, "type"),
                Hard: unsigned(limit, "hard"),
                Soft: unsigned(limit, "soft"),
                ..Default::default()
            })
            .collect(),
        NoNewPrivileges: value["noNewPrivileges"].as_bool().unwrap_or_default(),
        ApparmorProfile: String::new(),
        OOMScoreAdj: signed(value, "oomScoreAdj"),
        SelinuxLabel: String::new(),
        ..Default::default()
    }
}

fn hooks(value: &Value) -> wire::Hooks {
    let of = |key: &str| {
        let hook = |hook: &Value| wire::Hook {
            Path: text(hook, "path"),
            Args: texts(hook, "args"),
            Env: texts(hook, "env"),
            Timeout: signed(hook, "timeout"),
            ..Default::default()
        };
        list(value, key).iter().map(hook).collect()
    };
    wire::Hooks {
        Prestart: of("prestart"),
        Poststart: of("poststart"),
        Poststop: of("poststop"),
        CreateRuntime: of("createRuntime"),
        CreateContainer: of("createContainer"),
        StartContainer: of("startContainer"),
        ..Default::default()
    }
}

fn linux(id: &str, value: &Value) -> wire::Linux {
    let mappings = |key: &str| {
        let mapping = |mapping: &Value| wire::LinuxIDMapping {
            HostID: small(mapping, "hostID"),
            ContainerID: small(mapping, "containerID"),
            Size: small(mapping, "size"),
            ..Default::default()
        };
        list(value, key).iter().map(mapping).collect()
    };
    wire::Linux {
        UIDMappings: mappings("uidMappings"),
        GIDMappings: mappings("gidMappings"),
        Sysctl: map(value, "sysctl"),
        Resources: Some(resources(&value["resources"])).into(),
        // the host's cgroup means nothing in the guest
        CgroupsPath: format!("/{id}"),
        Namespaces: list(value, "namespaces")
            .iter()
            // the guest has one network, the pod's
            .filter(|namespace| namespace["type"] != "network" && namespace["type"] != "cgroup")
            .map(|namespace| wire::LinuxNamespace { Type: text(namespace, "type"), ..Default::default() })
            .collect(),
        Devices: list(value, "devices")
            .iter()
            .map(|device| wire::LinuxDevice {
                Path: text(device, "path"),
                Type: text(device, "type"),
                Major: signed(device, "major"),
                Minor: signed(device, "minor"),
                FileMode: small(device, "fileMode"),
                UID: small(device, "uid"),
                GID: small(device, "gid"),
                ..Default::default()
            })
            .collect(),
        Seccomp: value["seccomp"].as_object().map(|_| seccomp(&value["seccomp"])).into(),
        RootfsPropagation: text(value, "rootfsPropagation"),
        MaskedPaths: texts(value, "maskedPaths"),
        ReadonlyPaths: texts(value, "readonlyPaths"),
        ..Default::default()
    }
}

/// Limits, of a new container or an update.
#[must_use]
pub fn resources(value: &Value) -> wire::LinuxResources {
    let (memory, cpu, pids) = (&value["memory"], &value["cpu"], &value["pids"]);
    wire::LinuxResources {
        Devices: list(value, "devices")
            .iter()
            .map(|device| wire::LinuxDeviceCgroup {
                Allow: device["allow"].as_bool().unwrap_or_default(),
                Type: text(device, "type"),
                Major: device["major"].as_i64().unwrap_or(-1),
                Minor: device["minor"].as_i64().unwrap_or(-1),
                Access: text(device, "access"),
                ..Default::default()
            })
            .collect(),
        Memory: memory
            .as_object()
            .map(|_| wire::LinuxMemory {
                Limit: signed(memory, "limit"),
                Reservation: signed(memory, "reservation"),
                Swap: signed(memory, "swap"),
                Swappiness: unsigned(memory, "swappiness"),
                DisableOOMKiller: memory["disableOOMKiller"].as_bool().unwrap_or_default(),
                ..Default::default()
            })
            .into(),
        CPU: cpu
            .as_object()
            .map(|_| wire::LinuxCPU {
                Shares: unsigned(cpu, "shares"),
                Quota: signed(cpu, "quota"),
                Period: unsigned(cpu, "period"),
                // numbers of the host's CPUs mean nothing in the guest
                ..Default::default()
            })
            .into(),
        Pids: pids
            .as_object()
            .map(|_| wire::LinuxPids { Limit: signed(pids, "limit"), ..Default::default() })
            .into(),
        ..Default::default()
    }
}

fn seccomp(value: &Value) -> wire::LinuxSeccomp {
    let argument = |argument: &Value| wire::LinuxSeccompArg {
        Index: unsigned(argument, "index"),
        Value: unsigned(argument, "value"),
        ValueTwo: unsigned(argument, "valueTwo"),
        Op: text(argument, "op"),
        ..Default::default()
    };
    let syscall = |syscall: &Value| wire::LinuxSyscall {
        Names: texts(syscall, "names"),
        Action: text(syscall, "action"),
        Args: list(syscall, "args").iter().map(argument).collect(),
        ErrnoRet: syscall["errnoRet"]
            .as_u64()
            .and_then(|errno| u32::try_from(errno).ok())
            .map(wire::linux_syscall::ErrnoRet::Errnoret),
        ..Default::default()
    };
    wire::LinuxSeccomp {
        DefaultAction: text(value, "defaultAction"),
        Architectures: texts(value, "architectures"),
        Flags: texts(value, "flags"),
        Syscalls: list(value, "syscalls").iter().map(syscall).collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_sentry_gets_paths_of_the_host_and_no_hooks() {
        let spec = json!({"ociVersion": "1.0.2", "process": {"args": ["x"], "user": {"umask": 18}}, "domainname": "d",
            "hooks": {"prestart": [{"path": "/x"}]}, "linux": {"seccomp": {"defaultErrnoRet": 38}},
            "mounts": [{"destination": "/v", "type": "bind", "source": "/srv", "options": ["rbind", "ro"]}]});
        let made = for_sentry("c", &spec, "/b/rootfs");
        assert_eq!(made.Root.Path, "/b/rootfs");
        assert!(made.Hooks.is_none());
        assert_eq!(made.Mounts[0].source, "/srv");
        let annotation = |name: &str| made.Annotations.get(name).map(String::as_str);
        assert_eq!(annotation(SENTRY_UMASK), Some("0022"));
        assert_eq!(annotation(SENTRY_DOMAIN), Some("d"));
        assert_eq!(annotation(SENTRY_SECCOMP_ERRNO), Some("38"));
        assert!(for_sentry("c", &json!({}), "/").Annotations.is_empty());
    }
}
