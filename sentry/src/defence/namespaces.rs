//! Namespaces of the host that the sentry is not in (`man 7 namespaces`).

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid};

use super::{Refused, Strength};
use crate::error::Errno;

const WAY_OUT: &str = "run it as root with CAP_SYS_ADMIN or where user namespaces are allowed \
                       (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or give --allow-weak";

/// Each and what it is called.
const NAMESPACES: [(&str, CloneFlags); 5] = [
    ("a namespace of mounts", CloneFlags::CLONE_NEWNS),
    ("a network of its own", CloneFlags::CLONE_NEWNET),
    ("a namespace of System V IPC", CloneFlags::CLONE_NEWIPC),
    ("a namespace of host names", CloneFlags::CLONE_NEWUTS),
    ("a namespace of cgroups", CloneFlags::CLONE_NEWCGROUP),
];

/// The next process that is made is number 1 of a namespace of processes. Whether this one had to leave the host's users for it.
pub(super) fn leave_processes(strength: Strength) -> Result<bool, Refused> {
    let step = "a namespace of processes";
    let leave = || unshare(CloneFlags::CLONE_NEWPID);
    let (uid, gid) = (geteuid(), getegid());
    // Root needs no namespace of users: who has no capabilities gains nothing by one, and numbers of users would be lost.
    if uid.is_root() && leave().is_ok() {
        return Ok(false);
    }
    let left_users = strength.judge(leave_users(uid, gid))?;
    strength.judge(leave().map_err(|errno| Refused { step, errno, way_out: WAY_OUT }))?;
    Ok(left_users)
}

/// Mounts of its own that follow the host's, for a process that left the host's users: only in its own can it copy trees of mounts.
pub(super) fn follow_mounts() -> Result<(), Refused> {
    let refused = |errno| Refused { step: "a namespace of mounts", errno, way_out: WAY_OUT };
    unshare(CloneFlags::CLONE_NEWNS).map_err(refused)?;
    super::rooms::follow_host()
}

/// Leaves the host's others but that of processes, with `users` that of users, too, unless it is root; and says whether the tree of mounts is
/// its own.
pub(crate) fn leave(strength: Strength, users: bool) -> Result<bool, Refused> {
    let (uid, gid) = (geteuid(), getegid());
    if users && !(uid.is_root() && unshare(CloneFlags::CLONE_NEWCGROUP).is_ok()) {
        strength.judge(leave_users(uid, gid))?;
    }
    let mut own_mounts = false;
    for (step, flag) in NAMESPACES {
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
