//! Who a container is and what it may do: user, groups, capabilities.

use super::model::UserData;
use super::{Context, GenerateError};
use crate::manifest::{Container, Security};

/// What containerd gives to a container that asks for nothing (`oci.defaultUnixCaps`).
const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// All that Linux 6.16 has (`capability.h`).
const ALL: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Capabilities of a container, with `CAP_`, sorted.
pub(super) fn capabilities(security: &Security) -> Vec<String> {
    let all = |names: &[String]| names.iter().any(|name| name == "ALL");
    let mut set: std::collections::BTreeSet<&str> = match security {
        s if s.privileged == Some(true) || all(&s.add) => ALL.into(),
        s if all(&s.drop) => std::collections::BTreeSet::new(),
        _ => DEFAULT.into(),
    };
    if security.privileged != Some(true) {
        for name in &security.drop {
            set.remove(name.as_str());
        }
        // adding wins over dropping, as in containerd
        set.extend(security.add.iter().map(String::as_str).filter(|name| *name != "ALL"));
    }
    set.into_iter().map(|name| format!("CAP_{name}")).collect()
}

/// The capabilities of the pause container: those of any other.
pub(super) fn default_capabilities() -> Vec<String> {
    capabilities(&Security::default())
}

/// User and groups of a container.
pub(super) fn user(
    context: &Context<'_>,
    container: &Container,
    image_user: &str,
) -> Result<UserData, GenerateError> {
    let security = container.security.over(&context.spec().security);
    let (name, group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let number = |text: &str| text.parse::<u32>().ok();
    // The empty user is 0. Groups of numbers without one are the image's own to tell.
    let image_uid = if name.is_empty() { Some(0) } else { number(name) };
    let image_gid = match (name, group) {
        ("", "") => Some(0),
        (_, group) => number(group),
    };
    let uid = security.user.or(image_uid);
    let gid = match (security.group, security.user) {
        (Some(group), _) => Some(group),
        (None, Some(user)) if Some(user) != image_uid => None,
        (None, _) => image_gid,
    };
    let gid_or_zero = security.group.is_none() && gid.is_some_and(|gid| gid != 0) && gid == image_gid;
    let not_root = security.non_root == Some(true);
    if not_root && uid == Some(0) {
        return Err(GenerateError::Contradiction {
            path: container.path.clone(),
            reason: "runAsNonRoot is set and the user is 0: the kubelet does not start it".to_owned(),
        });
    }
    let mut groups = context.spec().groups.clone();
    groups.extend(gid);
    groups.sort_unstable();
    groups.dedup();
    Ok(UserData { uid, gid, gid_or_zero, groups, not_root })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn of(add: &[&str], drop: &[&str], privileged: bool) -> Vec<String> {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let privileged = privileged.then_some(true);
        capabilities(&Security { add: owned(add), drop: owned(drop), privileged, ..Security::default() })
    }

    #[test]
    fn capabilities_are_added_to_what_is_left() {
        assert_eq!(of(&[], &[], false).len(), 14);
        assert_eq!(of(&["NET_BIND_SERVICE"], &["ALL"], false), ["CAP_NET_BIND_SERVICE"]);
        assert_eq!(of(&[], &["ALL"], false), [""; 0]);
        assert_eq!(of(&["ALL"], &["SYS_ADMIN"], false).len(), 40);
        assert_eq!(of(&[], &["ALL"], true).len(), 41);
        assert!(of(&["NET_ADMIN"], &["CHOWN"], false).contains(&"CAP_NET_ADMIN".to_owned()));
    }
}
