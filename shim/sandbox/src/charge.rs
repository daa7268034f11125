//! Where a sandbox is charged: a group of version 2 for a virtual machine, those of an OCI runtime for the sentry, and for both a scope of systemd's
//! where the engine names one.

use std::fs::File;
use std::io;

use kata_cc_oci::cgroup::{Driver, Groups, Hierarchies, Inside, Wanted};
use serde_json::Value;

use crate::cgroup::Cgroup;

/// What was made for a monitor.
#[derive(Clone, Debug)]
pub(crate) enum Charge {
    /// A virtual machine's.
    Vm(Cgroup),
    /// The sentry's, and what systemd made.
    Groups(Groups),
}

/// Whether an engine names a unit of systemd: `slice:prefix:name`.
fn is_unit(name: &str) -> bool {
    name.split(':').count() == 3
}

impl Charge {
    /// A scope of systemd's with these limits, where the engine names one and systemd runs: a group made beside systemd loses its limits and
    /// controllers when systemd sets up what is above it. This process is in it until what comes with it is dropped.
    ///
    /// # Errors
    /// systemd does not make it.
    pub(crate) fn scope(name: &str, id: &str, limits: &Value) -> io::Result<Option<(Self, Inside)>> {
        if !is_unit(name) || !Groups::systemd_runs() {
            return Ok(None);
        }
        Self::made(Driver::Systemd, name, id, limits).map(Some)
    }

    /// The groups that an engine names for a pod of the sentry, limited.
    pub(crate) fn sentry(name: &str, id: &str, limits: &Value) -> io::Result<Self> {
        Self::made(Driver::Cgroupfs, name, id, limits).map(|(made, _)| made)
    }

    fn made(driver: Driver, name: &str, id: &str, limits: &Value) -> io::Result<(Self, Inside)> {
        let hierarchies = Hierarchies::of_host().map_err(io::Error::other)?;
        let wanted = Wanted { cgroups_path: Some(name), id, annotations: &Value::Null };
        let (groups, inside) = Groups::make(&hierarchies, driver, &wanted).map_err(io::Error::other)?;
        if let Err(error) = groups.limit(limits) {
            drop(inside);
            groups.remove();
            return Err(io::Error::other(error));
        }
        Ok((Self::Groups(groups), inside))
    }

    /// A virtual machine's.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        if let Self::Vm(cgroup) = self { Some(cgroup) } else { None }
    }

    /// The sentry's, and systemd's.
    pub(crate) fn groups(&self) -> Option<&Groups> {
        if let Self::Groups(groups) = self { Some(groups) } else { None }
    }

    /// The files to which a process writes `0` to be moved in.
    pub(crate) fn doors(&self) -> io::Result<Vec<File>> {
        match self {
            Self::Vm(cgroup) => Ok(vec![cgroup.door()?]),
            Self::Groups(groups) => groups.doors().map_err(io::Error::other),
        }
    }

    /// Whether the kernel has killed in it for want of memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        match self {
            Self::Vm(cgroup) => cgroup.ran_out_of_memory(),
            Self::Groups(groups) => groups.out_of_memory() > 0,
        }
    }

    /// Take away what was made; false when it stays, since it is in use.
    pub(crate) async fn remove(&self) -> bool {
        match self {
            Self::Vm(cgroup) => cgroup.remove().await,
            Self::Groups(groups) => {
                let groups = groups.clone();
                tokio::task::spawn_blocking(move || groups.remove()).await.unwrap_or_default()
            }
        }
    }

    /// Its name, for messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Vm(cgroup) => cgroup.path().display().to_string(),
            Self::Groups(groups) => {
                groups.folders.values().next().map(|folder| folder.display().to_string()).unwrap_or_default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_told_from_paths() {
        assert!(is_unit("kubepods-pod1.slice:cri-containerd:c1") && is_unit(":docker:c1"));
        assert!(!is_unit("/kubepods/pod1/c1") && !is_unit("a:b") && !is_unit(""));
        assert!(Charge::scope("/a/b", "x", &Value::Null).unwrap().is_none(), "a path is no unit");
    }
}
