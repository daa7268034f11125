//! The OCI configuration in its wire form → what the stage needs. Pure: no file is touched here.
//!
//! Host paths of namespaces are ignored (Kata's rule): IPC and UTS are the sandbox's, PID is new or the
//! sandbox's, network is the guest's. Hooks name programs of the host's choice: they are refused in the
//! confidential tiers and, as Kata's agent does with hooks other than guest ones, not run elsewhere.

use std::path::{Path, PathBuf};

use caps::Capability;
use kata_cc_agent_protocol::{agent, oci};
use nix::sched::CloneFlags;
use thiserror::Error;

use super::seccomp;
use crate::mounts;
use crate::stage::message::{self, Create, DeviceNode, Namespace};

/// Most bytes of a container's or exec's name.
const MAX_ID: usize = 128;

/// Why a configuration is refused.
#[derive(Debug, Error)]
pub(crate) enum SpecError {
    /// The request carries no OCI configuration or a part is missing.
    #[error("the OCI configuration has no {0}")]
    Missing(&'static str),
    /// An identifier that could be a path or is too long.
    #[error(
        "{0:?} is no valid identifier: 1 to {MAX_ID} of letters, digits, `_`, `.`, `-`, starting with a letter or digit; not image, sandbox, shared"
    )]
    Id(String),
    /// A namespace type the kernel does not have.
    #[error("unknown namespace type {0:?}")]
    Namespace(String),
    /// A capability that does not exist.
    #[error("unknown capability {0:?} in {1}")]
    Capability(String, &'static str),
    /// A resource limit that does not exist.
    #[error("unknown resource limit {0:?}")]
    Rlimit(String),
    /// A device type other than b, c, u, p.
    #[error("device {path} has the unknown type {kind:?}")]
    Device {
        /// Path in the container.
        path: String,
        /// What was given.
        kind: String,
    },
    /// Hooks in a confidential sandbox.
    #[error("hooks are refused in a confidential sandbox: {0}")]
    Hooks(String),
    /// A kernel parameter that is not the container's own.
    #[error(
        "sysctl {0:?} is not one that acts on containers alone: it could change the whole guest, or open it"
    )]
    Sysctl(String),
    /// A mount whose options a policy would read otherwise.
    #[error("mount on {destination}: {error}")]
    Mount {
        /// Where.
        destination: String,
        /// What is wrong.
        error: mounts::OptionError,
    },
    /// A path that is not absolute or leads upwards.
    #[error("{what} {path:?} must be absolute and have no `..`")]
    Path {
        /// Which path.
        what: &'static str,
        /// The value.
        path: String,
    },
    /// The seccomp profile cannot be compiled.
    #[error("seccomp profile: {0}")]
    Seccomp(#[from] seccomp::SeccompError),
}

/// Checks a container's or exec's name.
pub(crate) fn check_id(id: &str) -> Result<(), SpecError> {
    let first = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    // Folders of the agent beside the bundles.
    let reserved = matches!(id, "image" | "sandbox" | "shared");
    if first && rest && !reserved && id.len() <= MAX_ID {
        return Ok(());
    }
    Err(SpecError::Id(id.chars().take(MAX_ID).collect()))
}

/// Checks that a path is absolute and does not lead upwards.
pub(crate) fn check_path(what: &'static str, path: &str) -> Result<(), SpecError> {
    let fine = path.starts_with('/') && !path.split('/').any(|p| p == "..") && !path.contains('\0');
    if fine {
        return Ok(());
    }
    Err(SpecError::Path { what, path: path.to_owned() })
}

/// What the sandbox offers to its containers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// IPC namespace of the sandbox.
    pub(crate) ipc: Option<PathBuf>,
    /// UTS namespace of the sandbox.
    pub(crate) uts: Option<PathBuf>,
    /// PID namespace to join, when the container shares the sandbox's.
    pub(crate) pid: Option<PathBuf>,
    /// Refuse hooks.
    pub(crate) confidential: bool,
}

/// The build plan of a container.
pub(crate) fn create(spec: &oci::Spec, rootfs: &Path, around: &Surroundings) -> Result<Create, SpecError> {
    let linux = spec.Linux.as_ref().ok_or(SpecError::Missing("Linux"))?;
    check_hooks(spec, around)?;
    let readonly = spec.Root.as_ref().is_some_and(|r| r.Readonly);
    let mut mounts = Vec::new();
    for mount in &spec.Mounts {
        check_path("mount destination", &mount.destination)?;
        mounts::check_options(&mount.type_, &mount.options)
            .map_err(|error| SpecError::Mount { destination: mount.destination.clone(), error })?;
        mounts.push(mounts::from_oci(mount));
    }
    for path in linux.MaskedPaths.iter().chain(&linux.ReadonlyPaths) {
        check_path("masked or read-only path", path)?;
    }
    let namespaces = namespaces(linux, around)?;
    let own_uts = namespaces.iter().any(|n| n.bits == CloneFlags::CLONE_NEWUTS.bits() && n.join.is_none());
    Ok(Create {
        namespaces,
        rootfs: rootfs.to_owned(),
        readonly,
        propagation: mounts::propagation_flag(&linux.RootfsPropagation).unwrap_or(0),
        mounts,
        devices: linux.Devices.iter().map(device).collect::<Result<_, _>>()?,
        masked: linux.MaskedPaths.clone(),
        readonly_paths: linux.ReadonlyPaths.clone(),
        sysctls: sysctls(linux)?,
        hostname: Some(spec.Hostname.clone()).filter(|h| own_uts && !h.is_empty()),
    })
}

fn check_hooks(spec: &oci::Spec, around: &Surroundings) -> Result<(), SpecError> {
    let Some(hooks) = spec.Hooks.as_ref() else {
        return Ok(());
    };
    let all = hooks
        .Prestart
        .iter()
        .chain(&hooks.CreateRuntime)
        .chain(&hooks.CreateContainer)
        .chain(&hooks.StartContainer)
        .chain(&hooks.Poststart)
        .chain(&hooks.Poststop);
    let paths: Vec<&str> = all.map(|h| h.Path.as_str()).collect();
    if paths.is_empty() || !around.confidential {
        return Ok(());
    }
    Err(SpecError::Hooks(paths.join(", ")))
}

fn namespaces(linux: &oci::Linux, around: &Surroundings) -> Result<Vec<Namespace>, SpecError> {
    // A container always has its own mounts and processes, whatever the configuration forgets.
    let mut wanted = vec![
        (CloneFlags::CLONE_NEWNS, None),
        (CloneFlags::CLONE_NEWPID, around.pid.clone()),
        (CloneFlags::CLONE_NEWIPC, around.ipc.clone()),
        (CloneFlags::CLONE_NEWUTS, around.uts.clone()),
        (CloneFlags::CLONE_NEWCGROUP, None),
    ];
    for ns in &linux.Namespaces {
        match ns.Type.as_str() {
            "mount" | "pid" | "ipc" | "uts" | "cgroup" => {}
            // Shared with the guest: the sandbox is the guest.
            "network" | "time" => {}
            "user" => wanted.push((CloneFlags::CLONE_NEWUSER, None)),
            other => return Err(SpecError::Namespace(other.to_owned())),
        }
    }
    Ok(wanted.into_iter().map(|(flag, join)| Namespace { bits: flag.bits(), join }).collect())
}

fn device(device: &oci::LinuxDevice) -> Result<DeviceNode, SpecError> {
    check_path("device path", &device.Path)?;
    let refuse = || SpecError::Device { path: device.Path.clone(), kind: device.Type.clone() };
    let mut letters = device.Type.chars();
    let (Some(kind @ ('b' | 'c' | 'u' | 'p')), None) = (letters.next(), letters.next()) else {
        return Err(refuse());
    };
    Ok(DeviceNode {
        path: device.Path.clone(),
        kind,
        major: u64::try_from(device.Major).map_err(|_| refuse())?,
        minor: u64::try_from(device.Minor).map_err(|_| refuse())?,
        mode: if device.FileMode == 0 { 0o666 } else { device.FileMode },
        uid: device.UID,
        gid: device.GID,
    })
}

/// Network parameters that a container may set. Containers share the guest's network with the agent, whose services are on
/// the loopback: nothing is here that forwards packets or lets foreign ones reach a local address (`route_localnet`,
/// `accept_local`, `rp_filter`, `ip_forward`, `arp_*`).
const NETWORK: [&str; 12] = [
    "net.core.somaxconn",
    "net.core.rmem_default",
    "net.core.rmem_max",
    "net.core.wmem_default",
    "net.core.wmem_max",
    "net.core.netdev_max_backlog",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.unix.max_dgram_qlen",
    "net.ipv4.udp_mem",
];
/// Of connections that programs make or take themselves.
const NETWORK_PREFIX: &str = "net.ipv4.tcp_";

fn sysctls(linux: &oci::Linux) -> Result<Vec<(String, String)>, SpecError> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let mut all = Vec::new();
    for (name, value) in &linux.Sysctl {
        // A slash separates where a part itself has dots (net/ipv4/conf/eth0.1/...): not taken.
        let plain = !name.contains('/') && !name.contains("..") && !name.starts_with('.');
        let own = IPC.contains(&name.as_str())
            || name.starts_with("fs.mqueue.")
            || NETWORK.contains(&name.as_str())
            || name.starts_with(NETWORK_PREFIX)
            || name == "kernel.domainname";
        if !plain || !own {
            return Err(SpecError::Sysctl(name.clone()));
        }
        all.push((name.clone(), value.clone()));
    }
    all.sort();
    Ok(all)
}

/// The user by name (image terms, `user[:group]`), if any; it wins over the numbers.
pub(crate) fn user_name(process: &oci::Process, string_user: Option<&agent::StringUser>) -> String {
    match string_user.filter(|n| !n.uid.is_empty()) {
        Some(names) if names.gid.is_empty() => names.uid.clone(),
        Some(names) => format!("{}:{}", names.uid, names.gid),
        None => process.User.as_ref().map(|u| u.Username.clone()).unwrap_or_default(),
    }
}

/// The program and its privileges. `string_user` (image terms, `user[:group]`) wins over the numbers.
pub(crate) fn process(
    process: &oci::Process,
    linux: Option<&oci::Linux>,
    string_user: Option<&agent::StringUser>,
) -> Result<message::Process, SpecError> {
    if process.Args.is_empty() {
        return Err(SpecError::Missing("Process.Args"));
    }
    let user = process.User.as_ref();
    let user_name = user_name(process, string_user);
    let size = process.ConsoleSize.as_ref().map(|b| {
        let clip = |v: u32| u16::try_from(v).unwrap_or(u16::MAX);
        (clip(b.Height), clip(b.Width))
    });
    let filter = match linux.and_then(|l| l.Seccomp.as_ref()) {
        Some(profile) => seccomp::compile(profile)?,
        None => None,
    };
    Ok(message::Process {
        args: process.Args.clone(),
        env: process.Env.clone(),
        cwd: process.Cwd.clone(),
        uid: user.map_or(0, |u| u.UID),
        gid: user.map_or(0, |u| u.GID),
        groups: user.map(|u| u.AdditionalGids.clone()).unwrap_or_default(),
        user_name,
        terminal: process.Terminal,
        size: size.filter(|s| s.0 > 0 && s.1 > 0),
        capabilities: capabilities(process)?,
        rlimits: process
            .Rlimits
            .iter()
            .map(|r| Ok((rlimit(&r.Type)?, r.Soft, r.Hard)))
            .collect::<Result<_, SpecError>>()?,
        no_new_privs: process.NoNewPrivileges,
        oom_score_adj: i32::try_from(process.OOMScoreAdj).ok().filter(|s| *s != 0),
        guard: seccomp::channels_shut(),
        seccomp: filter,
    })
}

fn capabilities(process: &oci::Process) -> Result<message::Capabilities, SpecError> {
    let Some(sets) = process.Capabilities.as_ref() else {
        return Ok(message::Capabilities::default());
    };
    let mask = |names: &[String], set: &'static str| {
        names.iter().try_fold(0_u64, |all, name| {
            let cap: Capability =
                caps::to_canonical(name).parse().map_err(|_| SpecError::Capability(name.clone(), set))?;
            Ok::<_, SpecError>(all | cap.bitmask())
        })
    };
    Ok(message::Capabilities {
        bounding: mask(&sets.Bounding, "bounding")?,
        effective: mask(&sets.Effective, "effective")?,
        inheritable: mask(&sets.Inheritable, "inheritable")?,
        permitted: mask(&sets.Permitted, "permitted")?,
        ambient: mask(&sets.Ambient, "ambient")?,
    })
}

fn rlimit(name: &str) -> Result<u32, SpecError> {
    Ok(match name {
        "RLIMIT_AS" => libc::RLIMIT_AS,
        "RLIMIT_CORE" => libc::RLIMIT_CORE,
        "RLIMIT_CPU" => libc::RLIMIT_CPU,
        "RLIMIT_DATA" => libc::RLIMIT_DATA,
        "RLIMIT_FSIZE" => libc::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => libc::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => libc::RLIMIT_NICE,
        "RLIMIT_NOFILE" => libc::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => libc::RLIMIT_NPROC,
        "RLIMIT_RSS" => libc::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => libc::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => libc::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => libc::RLIMIT_STACK,
        other => return Err(SpecError::Rlimit(other.to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> oci::Spec {
        let mut spec = oci::Spec::new();
        spec.Process.mut_or_insert_default().Args = vec!["sh".to_owned()];
        spec.Linux.mut_or_insert_default();
        spec
    }

    #[test]
    fn identifiers_cannot_be_paths() {
        for bad in ["", "..", "a/b", ".a", "a b", &"x".repeat(129)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
        check_id("0a_B.c-1").unwrap();
    }

    #[test]
    fn hooks_are_refused_when_confidential() {
        let mut spec = spec();
        let mut hook = oci::Hook::new();
        hook.Path = "/bin/evil".to_owned();
        spec.Hooks.mut_or_insert_default().CreateContainer.push(hook);
        let mut around = Surroundings { confidential: true, ..Default::default() };
        let error = create(&spec, Path::new("/r"), &around).unwrap_err();
        assert!(error.to_string().contains("/bin/evil"));
        around.confidential = false;
        create(&spec, Path::new("/r"), &around).unwrap();
    }

    #[test]
    fn host_namespace_paths_are_ignored() {
        let mut spec = spec();
        for kind in ["pid", "network", "mount"] {
            let mut ns = oci::LinuxNamespace::new();
            ns.Type = kind.to_owned();
            ns.Path = "/proc/1/ns/mnt".to_owned();
            spec.Linux.mut_or_insert_default().Namespaces.push(ns);
        }
        let plan = create(&spec, Path::new("/r"), &Surroundings::default()).unwrap();
        assert!(plan.namespaces.iter().all(|n| n.join.is_none()));
        assert!(!plan.unshare().contains(CloneFlags::CLONE_NEWNET));
        assert!(plan.unshare().contains(CloneFlags::CLONE_NEWPID));
    }

    #[test]
    fn upward_destinations_and_guest_sysctls_are_refused() {
        let mut bad = spec();
        let mut mount = oci::Mount::new();
        mount.destination = "/a/../../etc".to_owned();
        bad.Mounts.push(mount);
        let around = Surroundings::default();
        assert!(matches!(create(&bad, Path::new("/r"), &around), Err(SpecError::Path { .. })));
        for name in [
            "kernel.core_pattern",
            "net/../kernel.core_pattern",
            "vm.swappiness",
            "net.ipv4.conf.all.route_localnet",
            "net.ipv4.conf.eth0.accept_local",
            "net.ipv4.conf.all.rp_filter",
            "net.ipv4.ip_forward",
            "net.ipv6.conf.all.forwarding",
        ] {
            let mut bad = spec();
            let linux = bad.Linux.mut_or_insert_default();
            linux.Sysctl.insert(name.to_owned(), "1".to_owned());
            assert!(create(&bad, Path::new("/r"), &around).is_err(), "{name}");
        }
    }

    #[test]
    fn network_parameters_of_connections_are_taken() {
        let mut spec = spec();
        for name in ["net.core.somaxconn", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range"] {
            spec.Linux.mut_or_insert_default().Sysctl.insert(name.to_owned(), "1".to_owned());
        }
        assert_eq!(create(&spec, Path::new("/r"), &Surroundings::default()).unwrap().sysctls.len(), 3);
    }

    #[test]
    fn a_bind_mount_is_one_by_its_type() {
        for (kind, option) in
            [("tmpfs", "ro,rbind"), ("tmpfs", "rbind"), ("bind", "rbind,ro"), ("bind", "remount")]
        {
            let mut bad = spec();
            let mut mount = oci::Mount::new();
            (mount.type_, mount.source) = (kind.to_owned(), "/".to_owned());
            mount.destination = "/usr/bin/app".to_owned();
            mount.options = vec![option.to_owned()];
            bad.Mounts.push(mount);
            let seen = create(&bad, Path::new("/r"), &Surroundings::default());
            assert!(matches!(seen, Err(SpecError::Mount { .. })), "{kind} {option}: {seen:?}");
        }
    }

    #[test]
    fn a_process_is_converted_whole() {
        let mut p = oci::Process::new();
        p.Args = vec!["id".to_owned()];
        p.Capabilities.mut_or_insert_default().Bounding = vec!["CAP_CHOWN".to_owned()];
        let mut limit = oci::POSIXRlimit::new();
        limit.Type = "RLIMIT_NOFILE".to_owned();
        (limit.Soft, limit.Hard) = (10, 20);
        p.Rlimits.push(limit);
        let mut names = agent::StringUser::new();
        names.uid = "web".to_owned();
        names.gid = "mail".to_owned();
        let seen = process(&p, None, Some(&names)).unwrap();
        assert_eq!(seen.user_name, "web:mail");
        assert_eq!(seen.capabilities.bounding, 1);
        assert_eq!(seen.rlimits, [(7, 10, 20)]);
        p.Capabilities.mut_or_insert_default().Bounding = vec!["CAP_MAGIC".to_owned()];
        assert!(process(&p, None, None).is_err());
        p.Args.clear();
        assert!(matches!(process(&p, None, None), Err(SpecError::Missing(_))));
    }
}
