//! What a sandbox would leave behind if its shim died, noted in the run-time folder, and how it is taken away.

use std::path::{Path, PathBuf};

use kata_cc_oci::cgroup::Groups;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::charge::Charge;
use crate::{disks, network, paths, process};

const FILE: &str = "leftovers.json";

/// The note.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Leftovers {
    /// The monitor: process id and start, see [`process::start_time`]; none before it runs.
    pub(crate) monitor: Option<(u32, u64)>,
    /// Namespace in which a virtual machine has its taps.
    pub(crate) netns: Option<PathBuf>,
    /// Name of that namespace when it is the sandbox's own.
    pub(crate) own_netns: Option<String>,
    /// Control group that is made for the monitor.
    pub(crate) cgroup: Option<PathBuf>,
    /// What is made with it: see [`Cgroup::missing`]. A shim of an earlier version did not note it.
    #[serde(default)]
    pub(crate) missing_cgroups: Vec<PathBuf>,
    /// Control groups of the sentry, and a scope of systemd's.
    #[serde(default)]
    pub(crate) groups: Option<Groups>,
}

impl Leftovers {
    /// Note it, in place of what was noted before.
    pub(crate) fn write(&self, dir: &Path) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        let new = dir.join(format!("{FILE}.new"));
        std::fs::write(&new, bytes)?;
        // In one step: a shim that dies meanwhile leaves the old note or the new one.
        std::fs::rename(new, dir.join(FILE))
    }

    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()
    }
}

/// Remove what a sandbox whose shim died has left: the monitor, its network, control group and disks, its run-time folder.
///
/// The monitor dies with the shim by itself; this makes sure, and takes away the rest. Nothing happens when there is
/// nothing.
pub async fn cleanup_leftovers(id: &str) {
    if !paths::is_id(id) {
        return;
    }
    let dir = paths::run_dir().join(id);
    if let Some(left) = Leftovers::read(&dir) {
        if let Some((pid, start)) = left.monitor {
            process::kill_if_same(pid, start).await;
        }
        if let Some(netns) = &left.netns {
            network::remove_leftovers(left.own_netns.as_deref(), netns).await;
        }
        if let Some(path) = left.cgroup {
            Cgroup::noted(path, left.missing_cgroups).remove().await;
        }
        if let Some(groups) = left.groups {
            Charge::Groups(groups).remove().await;
        }
    }
    disks::remove_leftovers(&paths::disks(), id);
    let _ = std::fs::remove_dir_all(&dir);
}
