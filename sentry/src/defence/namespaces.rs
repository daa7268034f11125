//! Namespaces of the host that the sentry is not in (`man 7 namespaces`).

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid};

use super::{Refused, Strength};
use crate::error::Errno;

const WAY_OUT: &str = "run it as root with CAP_SYS_ADMIN or where user namespaces are allowed \
                       (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or give --allow-weak";

/// Each and what it is called.
const NAMESPACES: [(&str, CloneFlags); 6] = [
    ("a namespace of processes", CloneFlags::CLONE_NEWPID),
    ("a namespace of mounts", CloneFlags::CLONE_NEWNS),
    ("a network of its own", CloneFlags::CLONE_NEWNET),
    ("a namespace of System V IPC", CloneFlags::CLONE_NEWIPC),
    ("a namespace of host names", CloneFlags::CLONE_NEWUTS),
    ("a namespace of cgroups", CloneFlags::CLONE_NEWCGROUP),
];

/// Leaves the host's, and says whether the tree of mounts is its own. With `processes`, the next process that is made is number 1 of a
/// namespace of them.
pub(crate) fn leave(strength: Strength, processes: bool) -> Result<bool, Refused> {
    let (uid, gid) = (geteuid(), getegid());
    // Root needs none: who has no capabilities gains nothing by one, and numbers of users would be lost.
    if !(uid.is_root() && unshare(CloneFlags::CLONE_NEWCGROUP).is_ok()) {
        strength.judge(leave_users(uid, gid))?;
    }
    let mut own_mounts = false;
    let left_alone = |flag: CloneFlags| flag == CloneFlags::CLONE_NEWPID && !processes;
    for (step, flag) in NAMESPACES.into_iter().filter(|(_, flag)| !left_alone(*flag)) {
        let left = unshare(flag).map_err(|errno| Refused { step, errno, way_out: WAY_OUT });
        let left = strength.judge(left)?;
        own_mounts |= left && flag == CloneFlags::CLONE_NEWNS;
    }
    Ok(own_mounts)
}

/// A namespace of users in which there is nobody but this one, by the same number.
fn leave_users(uid: Uid, gid: Gid) -> Result<(), Refused> {
    let refused = |errno| Refused { step: "a namespace of users", errno, way_out: WAY_OUT };
    unshare(CloneFlags::CLONE_NEWUSER).map_err(refused)?;
    // Without this no group may be mapped (`man 7 user_namespaces`).
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ];
    for (file, text) in maps {
        let written = std::fs::write(format!("/proc/self/{file}"), text);
        written.map_err(|error| refused(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))?;
    }
    Ok(())
}
