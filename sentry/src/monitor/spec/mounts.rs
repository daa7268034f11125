//! Mounts of a specification.

use kata_cc_agent_protocol::oci;
use kata_cc_sentry::control::message::{MountKind, MountPlan};

use super::{SpecError, invalid, unsupported};
use crate::monitor::open::Exports;

/// Size of `/dev/shm` where nobody says another.
const SHM: u64 = 64 << 20;

// Of `mount`, as far as the sentry knows them (`include/uapi/linux/mount.h`).
const READ_ONLY: u32 = 1;
const NO_SUID: u32 = 2;
const NO_DEV: u32 = 4;
const NO_EXEC: u32 = 8;
const NO_ATIME: u32 = 1024;

/// Options without a meaning here: defaults, stamps, propagation.
const NOTHING: [&str; 28] = [
    "",
    "rw",
    "suid",
    "dev",
    "exec",
    "atime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "async",
    "defaults",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "unbindable",
    "runbindable",
    "bind",
    "rbind",
    "newinstance",
    "nosymfollow",
    "silent",
    "loud",
];

/// What options say.
struct Parsed {
    flags: u32,
    bind: bool,
    /// `name=value`, and what else is the file system's own.
    data: Vec<(String, String)>,
}

/// All mounts, in their order.
pub(super) fn plan(spec: &oci::Spec, exports: &mut Exports) -> Result<Vec<MountPlan>, SpecError> {
    let mut plans = Vec::new();
    for mount in &spec.Mounts {
        let field = format!("mounts {}", mount.destination);
        if !mount.destination.starts_with('/') || mount.destination.contains('\0') {
            return invalid(field, "is no absolute path");
        }
        let parsed = parse(&field, mount)?;
        let kind = if parsed.bind || mount.type_ == "bind" {
            bind(&field, mount, &parsed, exports)?
        } else {
            made(&field, mount, &parsed)?
        };
        let mut flags = parsed.flags;
        if kind == MountKind::ControlGroup {
            flags |= READ_ONLY;
        }
        plans.push(MountPlan { at: mount.destination.clone(), kind, flags });
    }
    Ok(plans)
}

fn parse(field: &str, mount: &oci::Mount) -> Result<Parsed, SpecError> {
    let mut parsed = Parsed { flags: 0, bind: false, data: Vec::new() };
    for option in &mount.options {
        parsed.bind |= option == "bind" || option == "rbind";
        match option.as_str() {
            "ro" | "rro" => parsed.flags |= READ_ONLY,
            "nosuid" => parsed.flags |= NO_SUID,
            "nodev" => parsed.flags |= NO_DEV,
            "noexec" => parsed.flags |= NO_EXEC,
            "noatime" => parsed.flags |= NO_ATIME,
            "rw" => parsed.flags &= !READ_ONLY,
            nothing if NOTHING.contains(&nothing) => {}
            other => match other.split_once('=') {
                Some((name, value)) => parsed.data.push((name.to_owned(), value.to_owned())),
                None => return unsupported(field, format!("option {other:?} has no effect there")),
            },
        }
    }
    Ok(parsed)
}

/// What the sentry makes itself.
fn made(field: &str, mount: &oci::Mount, parsed: &Parsed) -> Result<MountKind, SpecError> {
    let known: &[&str] = match mount.type_.as_str() {
        "tmpfs" => &["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge"],
        "devpts" => &["mode", "ptmxmode", "gid", "uid", "max"],
        _ => &[],
    };
    if let Some((name, _)) = parsed.data.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        return unsupported(field, format!("option {name:?} has no effect on {:?}", mount.type_));
    }
    Ok(match mount.type_.as_str() {
        "proc" => MountKind::Proc,
        "sysfs" => MountKind::Sys,
        "devpts" => MountKind::Terminals,
        "tmpfs" => memory(field, parsed)?,
        // Queues are the sandbox's, and have no names in a file system here.
        "mqueue" => MountKind::Memory { limit: Some(1 << 20), mode: 0o1777, uid: 0, gid: 0, shared: None },
        // Both are what version 2 looks like: the container's own group, which cannot be changed.
        "cgroup" | "cgroup2" => MountKind::ControlGroup,
        other => {
            let known = "proc, sysfs, tmpfs, devpts, mqueue, cgroup, cgroup2 and bind";
            return unsupported(field, format!("there is no file system {other:?}; there are {known}"));
        }
    })
}

fn memory(field: &str, parsed: &Parsed) -> Result<MountKind, SpecError> {
    let value = |name: &str| {
        let found = parsed.data.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    };
    let number = |name: &str, radix, default| match value(name) {
        None => Ok(default),
        Some(text) => u32::from_str_radix(text, radix)
            .or_else(|_| invalid(field, format!("{name}={text} is no number"))),
    };
    let limit = match value("size") {
        None => None,
        Some(text) => match size(text) {
            Some(limit) => Some(limit).filter(|limit| *limit > 0),
            None => return invalid(field, format!("size={text} is no number of bytes")),
        },
    };
    Ok(MountKind::Memory {
        limit,
        mode: number("mode", 8, 0o1777)? & 0o7777,
        uid: number("uid", 10, 0)?,
        gid: number("gid", 10, 0)?,
        shared: None,
    })
}

/// A number of bytes with the suffix `k`, `m` or `g`. Percentages are of the machine's memory, as without one.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let shift = match text.get(digits.len()..)? {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A file or folder of the host.
fn bind(
    field: &str,
    mount: &oci::Mount,
    parsed: &Parsed,
    exports: &mut Exports,
) -> Result<MountKind, SpecError> {
    if let Some((name, _)) = parsed.data.first() {
        return unsupported(field, format!("option {name:?} has no effect on a bind mount"));
    }
    let at = mount.destination.trim_end_matches('/');
    let read_only = parsed.flags & READ_ONLY != 0;
    if at == "/dev/shm" && !read_only {
        let shared = Some(mount.source.clone());
        return Ok(MountKind::Memory { limit: Some(SHM), mode: 0o1777, uid: 0, gid: 0, shared });
    }
    let added = exports.add(&mount.source, !read_only);
    let (export, _) = added.map_err(|error| SpecError::Host { field: field.to_owned(), error })?;
    Ok(MountKind::Host { export, writable: !read_only })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn one(kind: &str, source: &str, at: &str, given: &str) -> Result<MountPlan, String> {
        let mut spec = oci::Spec::new();
        let mut mount = oci::Mount::new();
        (mount.type_, mount.source, mount.destination) = (kind.into(), source.into(), at.into());
        mount.options = given.split(',').map(str::to_owned).collect();
        spec.Mounts.push(mount);
        let planned = plan(&spec, &mut Exports::default());
        planned.map(|mut all| all.remove(0)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_sentry_makes_has_its_options() {
        let tmpfs = one("tmpfs", "tmpfs", "/dev", "nosuid,strictatime,mode=755,size=65536k").unwrap();
        assert_eq!(tmpfs.flags, NO_SUID);
        let expected = MountKind::Memory { limit: Some(64 << 20), mode: 0o755, uid: 0, gid: 0, shared: None };
        assert_eq!(tmpfs.kind, expected);
        assert_eq!(one("proc", "proc", "/proc", "nosuid,noexec,nodev").unwrap().flags, 14);
        let pts = one("devpts", "devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620,gid=5");
        assert_eq!(pts.unwrap().kind, MountKind::Terminals);
        let cgroup = one("cgroup2", "cgroup", "/sys/fs/cgroup", "nosuid").unwrap();
        assert_eq!((cgroup.kind, cgroup.flags & READ_ONLY), (MountKind::ControlGroup, READ_ONLY));
    }

    #[test]
    fn what_has_no_effect_is_refused_by_name() {
        for (kind, at, options, named) in [
            ("ext4", "/data", "", "\"ext4\""),
            ("tmpfs", "/tmp", "size=many", "size=many"),
            ("tmpfs", "/tmp", "mode=9", "mode=9"),
            ("tmpfs", "/tmp", "context=x", "\"context\""),
            ("tmpfs", "tmp", "", "absolute"),
            ("proc", "/proc", "hidepid=2", "\"hidepid\""),
            ("bind", "/x", "ro,idmap", "\"idmap\""),
            ("bind", "/x", "uid=1", "\"uid\""),
        ] {
            let error = one(kind, "/tmp", at, options).unwrap_err();
            assert!(error.contains(named) && error.contains(at), "{kind} {options}: {error}");
        }
    }

    #[test]
    fn bind_mounts_are_of_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().to_str().unwrap();
        let kind = |source, at, given| one("bind", source, at, given).unwrap().kind;
        assert_eq!(kind(folder, "/data", "rbind,ro"), MountKind::Host { export: 0, writable: false });
        assert_eq!(kind(folder, "/data", "rbind"), MountKind::Host { export: 0, writable: true });
        let shm = kind("/somewhere/shm", "/dev/shm", "rbind");
        assert!(matches!(shm, MountKind::Memory { shared: Some(name), .. } if name == "/somewhere/shm"));
        let missing = one("bind", "/no/such/file", "/data", "ro").unwrap_err();
        assert!(missing.contains("/no/such/file") && missing.contains("No such file"), "{missing}");
    }
}
