//! A process of a specification.

use kata_cc_agent_protocol::oci;
use kata_cc_sentry::control::message::{
    CapabilityPlan, Descriptor, ProcessNumber, ProcessPlan, Size, StreamPlan,
};

use super::{SpecError, invalid, unsupported};

/// Descriptors of a process among those of the request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Streams {
    /// Input, output, errors.
    Plain([Descriptor; 3]),
    /// What is typed and what is shown.
    Terminal(Descriptor, Descriptor),
}

/// Capabilities by their numbers (`include/uapi/linux/capability.h`).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Limits by their numbers (`include/uapi/asm-generic/resource.h`).
const LIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// Plans a process.
pub(crate) fn process(
    process: &oci::Process,
    number: ProcessNumber,
    umask: u32,
    streams: &Streams,
) -> Result<ProcessPlan, SpecError> {
    if process.Args.first().is_none_or(String::is_empty) {
        return invalid("process.args", "there is no program in it");
    }
    let user = process.User.get_or_default();
    if !user.Username.is_empty() {
        return unsupported("process.user.username", "it is of containers of Windows; give numbers");
    }
    for (field, texts) in [("process.args", &process.Args), ("process.env", &process.Env)] {
        if texts.iter().any(|text| text.contains('\0')) {
            return invalid(field, "has a zero byte in it");
        }
    }
    if process.Cwd.contains('\0') || !process.Cwd.is_empty() && !process.Cwd.starts_with('/') {
        return invalid("process.cwd", format!("{:?} is no absolute path", process.Cwd));
    }
    if !process.ApparmorProfile.is_empty() || !process.SelinuxLabel.is_empty() {
        tracing::debug!(
            "labels of AppArmor and SELinux concern the host's kernel, which the container does not reach"
        );
    }
    let Ok(oom_score) = i32::try_from(process.OOMScoreAdj) else {
        return invalid("process.oomScoreAdj", "is not between -1000 and 1000");
    };
    if !(-1000..=1000).contains(&oom_score) {
        return invalid("process.oomScoreAdj", format!("{oom_score} is not between -1000 and 1000"));
    }
    Ok(ProcessPlan {
        number,
        arguments: process.Args.clone(),
        environment: process.Env.clone(),
        folder: process.Cwd.clone(),
        uid: user.UID,
        gid: user.GID,
        groups: user.AdditionalGids.clone(),
        umask,
        capabilities: capabilities(process)?,
        limits: limits(process)?,
        no_new_privileges: process.NoNewPrivileges,
        oom_score,
        streams: stream_plan(process, streams),
        more: Vec::new(),
    })
}

/// The size of a terminal that a specification asks for.
fn size(process: &oci::Process) -> Option<Size> {
    let clip = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    let size = process.ConsoleSize.as_ref()?;
    Some(Size { rows: clip(size.Height), columns: clip(size.Width) })
        .filter(|size| size.rows > 0 && size.columns > 0)
}

fn stream_plan(process: &oci::Process, streams: &Streams) -> StreamPlan {
    match *streams {
        Streams::Plain(descriptors) => StreamPlan::Plain(descriptors),
        Streams::Terminal(input, output) => StreamPlan::Terminal { input, output, size: size(process) },
    }
}

fn capabilities(process: &oci::Process) -> Result<CapabilityPlan, SpecError> {
    let Some(sets) = process.Capabilities.as_ref() else { return Ok(CapabilityPlan::default()) };
    let set = |field: &str, names: &[String]| {
        names.iter().try_fold(0, |all, name| {
            let short = name.strip_prefix("CAP_").unwrap_or(name);
            match CAPABILITIES.iter().position(|known| known.eq_ignore_ascii_case(short)) {
                Some(place) => Ok(all | 1 << place),
                None => invalid(format!("process.capabilities.{field}"), format!("there is no {name}")),
            }
        })
    };
    Ok(CapabilityPlan {
        bounding: set("bounding", &sets.Bounding)?,
        effective: set("effective", &sets.Effective)?,
        permitted: set("permitted", &sets.Permitted)?,
        inheritable: set("inheritable", &sets.Inheritable)?,
        ambient: set("ambient", &sets.Ambient)?,
    })
}

fn limits(process: &oci::Process) -> Result<Vec<(u32, u64, u64)>, SpecError> {
    let mut limits: Vec<(u32, u64, u64)> = Vec::new();
    for limit in &process.Rlimits {
        let short = limit.Type.strip_prefix("RLIMIT_").unwrap_or("");
        let place =
            LIMITS.iter().position(|known| *known == short).and_then(|place| u32::try_from(place).ok());
        let Some(place) = place else {
            return invalid("process.rlimits", format!("there is no {}", limit.Type));
        };
        if limit.Soft > limit.Hard {
            return invalid("process.rlimits", format!("soft is above hard for {}", limit.Type));
        }
        if limits.iter().any(|(known, ..)| *known == place) {
            return invalid("process.rlimits", format!("{} is there twice", limit.Type));
        }
        limits.push((place, limit.Soft, limit.Hard));
    }
    Ok(limits)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn plan(of: &oci::Process) -> Result<ProcessPlan, String> {
        let streams = Streams::Plain([Descriptor(0), Descriptor(1), Descriptor(2)]);
        process(of, ProcessNumber(1), 0o022, &streams).map_err(|error| error.to_string())
    }

    fn program() -> oci::Process {
        oci::Process { Args: vec!["id".to_owned()], ..Default::default() }
    }

    #[test]
    fn a_process_is_planned_whole() {
        let mut given = program();
        given.User.mut_or_insert_default().UID = 7;
        given.User.mut_or_insert_default().AdditionalGids = vec![8, 9];
        given.Capabilities.mut_or_insert_default().Bounding =
            vec!["CAP_CHOWN".into(), "CAP_CHECKPOINT_RESTORE".into()];
        let mut limit = oci::POSIXRlimit::new();
        (limit.Type, limit.Soft, limit.Hard) = ("RLIMIT_NOFILE".to_owned(), 10, 20);
        given.Rlimits.push(limit);
        given.OOMScoreAdj = -500;
        let plan = plan(&given).unwrap();
        assert_eq!((plan.uid, &*plan.groups, plan.oom_score), (7, &[8, 9][..], -500));
        assert_eq!(plan.capabilities.bounding, 1 | 1 << 40);
        assert_eq!(plan.limits, [(7, 10, 20)]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let with = |change: &dyn Fn(&mut oci::Process)| {
            let mut given = program();
            change(&mut given);
            plan(&given).unwrap_err()
        };
        let limit = |kind: &str, soft, hard| {
            let mut limit = oci::POSIXRlimit::new();
            (limit.Type, limit.Soft, limit.Hard) = (kind.to_owned(), soft, hard);
            limit
        };
        for (named, error) in [
            ("process.args", with(&|p| p.Args.clear())),
            ("process.args", with(&|p| p.Args[0].clear())),
            ("process.env", with(&|p| p.Env.push("A=\0".into()))),
            ("process.cwd", with(&|p| p.Cwd = "tmp".into())),
            ("process.user.username", with(&|p| p.User.mut_or_insert_default().Username = "web".into())),
            (
                "CAP_MAGIC",
                with(&|p| p.Capabilities.mut_or_insert_default().Ambient = vec!["CAP_MAGIC".into()]),
            ),
            ("RLIMIT_LUCK", with(&|p| p.Rlimits.push(limit("RLIMIT_LUCK", 1, 1)))),
            ("soft is above hard", with(&|p| p.Rlimits.push(limit("RLIMIT_CPU", 2, 1)))),
            ("twice", with(&|p| p.Rlimits = vec![limit("RLIMIT_CPU", 1, 1), limit("RLIMIT_CPU", 1, 1)])),
            ("process.oomScoreAdj", with(&|p| p.OOMScoreAdj = 1001)),
        ] {
            assert!(error.contains(named), "{named}: {error}");
        }
    }
}
