//! Capabilities, user and group, seccomp: what a process gives up before it runs a foreign program.

use std::io;

use anyhow::{Context as _, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{Gid, Uid};

use super::message::{Capabilities, Seccomp};

/// Gives every signal its default action and unblocks all.
pub(crate) fn reset_signals() -> io::Result<()> {
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        crate::sys::default_signal(signal)?;
    }
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// The set named by a mask; bits this kernel does not know are dropped.
fn set_of(mask: u64) -> CapsHashSet {
    caps::all().into_iter().filter(|c| mask & c.bitmask() != 0).collect()
}

/// Shrinks the bounding set. Needs `CAP_SETPCAP`, so it comes before the user changes.
pub(crate) fn limit_bounding(wanted: &Capabilities) -> Result<()> {
    let keep = set_of(wanted.bounding);
    let present = caps::read(None, CapSet::Bounding).context("read bounding capabilities")?;
    for cap in present.difference(&keep) {
        caps::drop(None, CapSet::Bounding, *cap)
            .with_context(|| format!("drop {cap} from the bounding set"))?;
    }
    Ok(())
}

/// Changes group, supplementary groups and user, keeping permitted capabilities for [`set_capabilities`].
pub(crate) fn change_user(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    nix::sys::prctl::set_keepcaps(true).context("keep capabilities")?;
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    let denied = std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|s| s.trim() == "deny");
    if !denied {
        nix::unistd::setgroups(&groups).context("set supplementary groups")?;
    }
    let gid = Gid::from_raw(gid);
    nix::unistd::setresgid(gid, gid, gid).context("set group")?;
    let uid = Uid::from_raw(uid);
    nix::unistd::setresuid(uid, uid, uid).context("set user")?;
    nix::sys::prctl::set_keepcaps(false).context("stop keeping capabilities")?;
    Ok(())
}

/// Sets effective, permitted, inheritable and ambient.
pub(crate) fn set_capabilities(wanted: &Capabilities) -> Result<()> {
    // Inheritable first: it may only grow within permitted, which the next call shrinks.
    let permitted = set_of(wanted.permitted);
    let effective: CapsHashSet = set_of(wanted.effective).intersection(&permitted).copied().collect();
    // Raising effective is needed to be able to set the others when the user is not root.
    let held = caps::read(None, CapSet::Permitted).context("read permitted capabilities")?;
    caps::set(None, CapSet::Effective, &held).context("raise held capabilities")?;
    caps::set(None, CapSet::Inheritable, &set_of(wanted.inheritable))
        .context("set inheritable capabilities")?;
    caps::set(None, CapSet::Effective, &effective).context("set effective capabilities")?;
    caps::set(None, CapSet::Permitted, &permitted).context("set permitted capabilities")?;
    caps::clear(None, CapSet::Ambient).context("clear ambient capabilities")?;
    for cap in set_of(wanted.ambient & wanted.permitted & wanted.inheritable) {
        caps::raise(None, CapSet::Ambient, cap).with_context(|| format!("raise ambient {cap}"))?;
    }
    Ok(())
}

/// Whether the process will still hold `CAP_SYS_ADMIN` (it may then load a filter without `no_new_privs`).
pub(crate) fn keeps_admin(wanted: &Capabilities) -> bool {
    wanted.effective & Capability::CAP_SYS_ADMIN.bitmask() != 0
}

/// Installs the filter.
pub(crate) fn install(filter: &Seccomp) -> Result<()> {
    crate::sys::install_seccomp(&filter.program, filter.flags).context("install the seccomp filter")
}
