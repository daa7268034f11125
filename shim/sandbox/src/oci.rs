//! A container's `config.json` as the agent's request message (Kata's `grpc.Spec`), and what of it stays on the host.
//!
//! Read from JSON, field by field: what has no place in the message is not sent. Namespace paths and cgroup parents of
//! the host mean nothing in the guest and are cleared. Bind mounts of the host become files copied into the guest
//! ([`Copy`]) where a copy is the same thing (small, read-only or one of the pod's own files), and are refused otherwise:
//! a copy of a writable volume would lose what is written. `emptyDir` volumes are made in the guest ([`EmptyDir`]).

use std::path::PathBuf;

use kata_cc_agent_protocol::oci as wire;
use kata_cc_oci::wire as common;
pub use kata_cc_oci::wire::{process, resources};
use serde_json::Value;
use thiserror::Error;

use crate::copy;
use crate::empty_dir::EmptyDir;

/// Guest folder of copied files (Kata's path).
pub const SHARED: &str = "/run/kata-containers/shared/containers";
/// Guest's shared memory of the sandbox.
pub const SANDBOX_SHM: &str = "/run/kata-containers/sandbox/shm";

/// Files that a pod's runtime writes for the container; a copy is as good, although they are mounted writable.
const POD_FILES: [&str; 5] =
    ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log", "/etc/machine-id"];

/// Why a specification cannot be given to the guest.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// A bind mount that cannot become a copy.
    #[error(
        "mount {destination} from {source_path}: {why}; volumes of the host come with virtio-fs, which is not built yet"
    )]
    Mount {
        /// Where in the container.
        destination: String,
        /// The host's path.
        source_path: String,
        /// Why a copy will not do.
        why: String,
    },
}

/// A file or folder to copy into the guest before the container is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// On the host.
    pub from: PathBuf,
    /// In the guest.
    pub to: String,
}

/// What a specification becomes.
#[derive(Clone, Debug, Default)]
pub struct Converted {
    /// For the agent.
    pub spec: wire::Spec,
    /// To be copied first.
    pub copies: Vec<Copy>,
    /// To be made first.
    pub empty_dirs: Vec<EmptyDir>,
}

/// Convert a container's specification. `rootfs` is its root in the guest.
///
/// # Errors
/// When a mount cannot be had in the guest.
pub fn convert(id: &str, spec: &Value, rootfs: &str) -> Result<Converted, SpecError> {
    let (mut copies, mut empty_dirs, mut mounts) = (Vec::new(), Vec::new(), Vec::new());
    for (index, mount) in common::list(spec, "mounts").iter().enumerate() {
        mounts.push(convert_mount(id, index, mount, &mut copies, &mut empty_dirs)?);
    }
    let mut spec = common::specification(id, spec, rootfs, mounts);
    // The guest has its own copy, and its digest is measured; this one is only large.
    spec.Annotations.remove(kata_cc_kbs_protocol::initdata::ANNOTATION);
    Ok(Converted { spec, copies, empty_dirs })
}

fn convert_mount(
    id: &str,
    index: usize,
    mount: &Value,
    copies: &mut Vec<Copy>,
    empty_dirs: &mut Vec<EmptyDir>,
) -> Result<wire::Mount, SpecError> {
    let mut converted = common::mount(mount);
    if !common::is_bind(&converted) {
        return Ok(converted);
    }
    if converted.destination == "/dev/shm" {
        SANDBOX_SHM.clone_into(&mut converted.source);
        return Ok(converted);
    }
    let from = PathBuf::from(&converted.source);
    if let Some(volume) = EmptyDir::of(&from) {
        converted.source = volume.guest_path();
        empty_dirs.push(volume);
        return Ok(converted);
    }
    let readonly = converted.options.iter().any(|option| option == "ro");
    let refuse = |why: String| SpecError::Mount {
        destination: converted.destination.clone(),
        source_path: converted.source.clone(),
        why,
    };
    if !readonly && !POD_FILES.contains(&converted.destination.as_str()) {
        return Err(refuse("it is writable, and a copy would lose what is written".into()));
    }
    copy::check(&from).map_err(|why| refuse(why.to_string()))?;
    let base = from.file_name().map_or_else(|| "root".into(), |name| name.to_string_lossy().into_owned());
    // Kata's form: container id, 16 hex digits, base name
    let to = format!("{SHARED}/{id}-{index:016x}-{base}");
    copies.push(Copy { from, to: to.clone() });
    converted.source = to;
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::copy::MAX_BYTES;
    use serde_json::json;

    fn spec() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"terminal": true, "user": {"uid": 1000, "gid": 1000, "additionalGids": [5]},
                "args": ["sh", "-c", "true"], "env": ["A=b"], "cwd": "/", "noNewPrivileges": true,
                "capabilities": {"bounding": ["CAP_KILL"]}, "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 8}]},
            "root": {"path": "rootfs", "readonly": true},
            "hostname": "h",
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                       {"destination": "/dev/shm", "type": "bind", "source": "/run/x/shm", "options": ["rbind", "rw"]}],
            "annotations": {"a": "b", "io.katacontainers.config.hypervisor.cc_init_data": "large"},
            "linux": {
                "cgroupsPath": "/system.slice/x",
                "resources": {"memory": {"limit": 1048576}, "cpu": {"shares": 2, "quota": -1, "period": 100000, "cpus": "0-3"},
                              "pids": {"limit": 7}, "devices": [{"allow": false, "access": "rwm"}]},
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}, {"type": "mount"}],
                "maskedPaths": ["/proc/kcore"],
                "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
                    "syscalls": [{"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38,
                                  "args": [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}]}]},
            },
        })
    }

    #[test]
    fn a_specification_becomes_the_agents_message() {
        let converted = convert("c1", &spec(), "/guest/rootfs").unwrap();
        let wire = converted.spec;
        assert_eq!((wire.Root.Path.as_str(), wire.Root.Readonly), ("/guest/rootfs", true));
        assert_eq!(wire.Process.Args, ["sh", "-c", "true"]);
        assert_eq!((wire.Process.User.UID, wire.Process.User.AdditionalGids.as_slice()), (1000, &[5][..]));
        assert_eq!(wire.Process.Rlimits[0].Soft, 8);
        assert!(wire.Process.NoNewPrivileges && wire.Process.Terminal);
        assert_eq!(wire.Linux.Resources.Memory.Limit, 1 << 20);
        assert_eq!(wire.Linux.Resources.Pids.Limit, 7);
        let device = &wire.Linux.Resources.Devices[0];
        assert_eq!((device.Allow, device.Major, device.Minor), (false, -1, -1));
        assert_eq!(wire.Linux.MaskedPaths, ["/proc/kcore"]);
        let syscall = &wire.Linux.Seccomp.Syscalls[0];
        assert_eq!(syscall.ErrnoRet, Some(wire::linux_syscall::ErrnoRet::Errnoret(38)));
        assert_eq!(syscall.Args[0].Value, 2_114_060_288);
        assert!(wire.Hooks.is_none());
    }

    #[test]
    fn what_belongs_to_the_host_stays_there() {
        let wire = convert("c1", &spec(), "/guest/rootfs").unwrap().spec;
        assert_eq!(wire.Linux.CgroupsPath, "/c1");
        let kinds: Vec<&str> =
            wire.Linux.Namespaces.iter().map(|namespace| namespace.Type.as_str()).collect();
        assert_eq!(kinds, ["pid", "mount"]);
        assert!(wire.Linux.Namespaces.iter().all(|namespace| namespace.Path.is_empty()));
        assert_eq!(wire.Mounts[1].source, SANDBOX_SHM);
        assert_eq!(wire.Annotations.len(), 1);
        assert!(wire.Linux.Resources.CPU.Cpus.is_empty());
    }

    #[test]
    fn small_read_only_mounts_become_copies() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "x").unwrap();
        let spec = json!({"mounts": [{"destination": "/s", "type": "bind", "source": file, "options": ["rbind", "ro"]}]});
        let converted = convert("c1", &spec, "/r").unwrap();
        let to = format!("{SHARED}/c1-0000000000000000-secret");
        assert_eq!(converted.copies, [Copy { from: file, to: to.clone() }]);
        assert_eq!(converted.spec.Mounts[0].source, to);
    }

    #[test]
    fn an_empty_dir_is_made_in_the_guest_whatever_the_mount_allows() {
        let pod = tempfile::tempdir().unwrap();
        let folder = pod.path().join("volumes/kubernetes.io~empty-dir/cache");
        std::fs::create_dir_all(&folder).unwrap();
        for option in ["rw", "ro"] {
            let spec = json!({"mounts": [{"destination": "/c", "type": "bind", "source": folder, "options": ["rbind", option]}]});
            let converted = convert("c1", &spec, "/r").unwrap();
            assert_eq!(converted.spec.Mounts[0].source, "/run/kata-containers/sandbox/empty-dir/cache");
            assert_eq!(converted.spec.Mounts[0].options, ["rbind", option]);
            assert!(converted.copies.is_empty() && converted.empty_dirs.len() == 1);
        }
    }

    #[test]
    fn mounts_that_a_copy_cannot_stand_for_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let big = dir.path().join("big");
        std::fs::write(&big, vec![0; usize::try_from(MAX_BYTES).unwrap() + 1]).unwrap();
        let refused = |source: &Path, options: &[&str]| {
            let spec = json!({"mounts": [{"destination": "/d", "type": "bind", "source": source, "options": options}]});
            convert("c", &spec, "/r").unwrap_err().to_string()
        };
        assert!(refused(dir.path(), &["rbind", "rw"]).contains("writable"));
        assert!(refused(&big, &["ro"]).contains("larger"));
        assert!(refused(Path::new("/dev/null"), &["ro"]).contains("device"));
        assert!(refused(Path::new("/nonexistent"), &["ro"]).contains("cannot be looked at"));
    }
}
