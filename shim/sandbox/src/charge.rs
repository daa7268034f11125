//! Where a sandbox is charged: a group of version 2 for a virtual machine, those of an OCI runtime for the sentry.

use std::fs::File;
use std::io;

use kata_cc_oci::cgroup::{Driver, Groups, Hierarchies, Wanted};
use serde_json::Value;

use crate::cgroup::Cgroup;

/// What was made for a monitor.
#[derive(Clone, Debug)]
pub(crate) enum Charge {
    /// A virtual machine's.
    Vm(Cgroup),
    /// The sentry's.
    Sentry(Groups),
}

impl Charge {
    /// The groups that an engine names for a pod of the sentry, limited.
    pub(crate) fn sentry(name: &str, id: &str, limits: &Value) -> io::Result<Self> {
        let hierarchies = Hierarchies::of_host().map_err(io::Error::other)?;
        // Engines that name a unit of systemd and are served by a shim leave making it to the shim; its path is as good.
        let groups =
            Groups::make(&hierarchies, Driver::Cgroupfs, Some(name), id).map_err(io::Error::other)?;
        if let Err(error) = groups.limit(limits) {
            groups.remove();
            return Err(io::Error::other(error));
        }
        Ok(Self::Sentry(groups))
    }

    /// A virtual machine's.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        if let Self::Vm(cgroup) = self { Some(cgroup) } else { None }
    }

    /// The sentry's.
    pub(crate) fn groups(&self) -> Option<&Groups> {
        if let Self::Sentry(groups) = self { Some(groups) } else { None }
    }

    /// The files to which a process writes `0` to be moved in.
    pub(crate) fn doors(&self) -> io::Result<Vec<File>> {
        match self {
            Self::Vm(cgroup) => Ok(vec![cgroup.door()?]),
            Self::Sentry(groups) => groups.doors().map_err(io::Error::other),
        }
    }

    /// Whether the kernel has killed in it for want of memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        match self {
            Self::Vm(cgroup) => cgroup.ran_out_of_memory(),
            Self::Sentry(groups) => groups.out_of_memory() > 0,
        }
    }

    /// Take away what was made; false when it stays, since it is in use.
    pub(crate) async fn remove(&self) -> bool {
        match self {
            Self::Vm(cgroup) => cgroup.remove().await,
            Self::Sentry(groups) => {
                let groups = groups.clone();
                tokio::task::spawn_blocking(move || groups.remove()).await.unwrap_or_default()
            }
        }
    }

    /// Its name, for messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Vm(cgroup) => cgroup.path().display().to_string(),
            Self::Sentry(groups) => {
                groups.folders.values().next().map(|folder| folder.display().to_string()).unwrap_or_default()
            }
        }
    }
}
