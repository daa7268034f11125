//! Control groups: where a container is charged and limited, with version 1 and 2, made here or by systemd.
//!
//! The monitor, the sentry and its stubs are in them; limits of the bundle are theirs together. Devices are not limited: the sentry opens none of
//! the host's. What is made here is noted with the state, so that `delete` takes away just that. Limits of systemd's units are told to systemd and
//! written besides: not everything has a property, and properties are coarser.

mod hierarchy;
mod limits;
mod name;
pub mod stats;
mod systemd;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

pub use hierarchy::Hierarchies;
pub use limits::for_the_host;
pub use name::below_the_root;
pub use systemd::Inside;

use crate::process::until;

/// How long what a killed sandbox held may take to be let go of.
const EMPTYING: Duration = Duration::from_secs(10);
/// How often groups are made that systemd takes away.
const TRIES: usize = 10;
/// The only key of a container's groups with version 2.
const UNIFIED: &str = "";

/// Why a group cannot be had.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The name leaves the root.
    #[error("cgroupsPath {0:?} must not leave the control groups' root")]
    Name(String),
    /// The name is not what systemd takes.
    #[error(
        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {0:?} instead"
    )]
    SystemdName(String),
    /// There is no systemd.
    #[error(
        "systemd not running on this host, cannot use systemd cgroups manager: leave --systemd-cgroup away"
    )]
    NoSystemd,
    /// systemd refuses.
    #[error("systemd did not make {unit}: {reason}")]
    Systemd {
        /// What it was to make.
        unit: String,
        /// What it said.
        reason: String,
    },
    /// systemd refuses a limit.
    #[error("systemd did not take the limits of {unit}: {reason}")]
    SystemdLimit {
        /// Whose.
        unit: String,
        /// What it said.
        reason: String,
    },
    /// An annotation is no property.
    #[error(
        "annotation {key}={value:?} is no property of a systemd unit: letters alone in the name, and a value such as 'text', true, 5 or uint64 5"
    )]
    SystemdProperty {
        /// Which.
        key: String,
        /// What it says.
        value: String,
    },
    /// A file cannot be written.
    #[error("control group: cannot write {value:?} to {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// What.
        value: String,
        /// What the host says.
        source: std::io::Error,
    },
    /// A folder cannot be made.
    #[error("control group: cannot make {path}: {source}")]
    Make {
        /// Which.
        path: PathBuf,
        /// What the host says.
        source: std::io::Error,
    },
    /// A limit needs a controller that is not there.
    #[error("control group: {field} is set, and this host has no controller {controller}")]
    NoController {
        /// The field of the bundle.
        field: String,
        /// What would be needed.
        controller: String,
    },
    /// What groups there are cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the host says.
        source: std::io::Error,
    },
}

impl CgroupError {
    /// Whether it is for want of privileges, which a user other than root may go on without.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        let (Self::Write { source, .. } | Self::Make { source, .. }) = self else { return false };
        matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
    }
}

/// Who makes groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Driver {
    /// We.
    #[default]
    Cgroupfs,
    /// systemd.
    Systemd,
}

/// What groups are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// `linux.cgroupsPath` of the bundle.
    pub cgroups_path: Option<&'a str>,
    /// The container.
    pub id: &'a str,
    /// Its annotations: some are properties of systemd's unit.
    pub annotations: &'a Value,
}

/// The groups of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// Folder of each controller; one without a name with version 2.
    pub folders: BTreeMap<String, PathBuf>,
    /// Folders that were made for it, the inner ones last.
    pub made: Vec<PathBuf>,
    /// systemd's unit.
    pub unit: Option<String>,
}

/// Writes to a file that is there: in this file system, making one that is not fails by another reason.
fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let written =
        File::options().write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|source| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source })
}

impl Groups {
    /// Those that an engine names, made. With systemd this process is in them until what comes with them is dropped.
    ///
    /// # Errors
    /// See [`CgroupError`]; what was made until then is gone again.
    pub fn make(
        hierarchies: &Hierarchies,
        driver: Driver,
        wanted: &Wanted<'_>,
    ) -> Result<(Self, Inside), CgroupError> {
        let mut groups = Self::default();
        let (folders, inside) = match driver {
            Driver::Cgroupfs => (hierarchies.named(wanted.cgroups_path, wanted.id)?, Inside::default()),
            Driver::Systemd => {
                let unit = systemd::Unit::named(wanted)?;
                let (group, inside) = unit.start(hierarchies.is_unified())?;
                groups.unit = Some(unit.name);
                let mut folders = hierarchies.at_top(Path::new(&group));
                // Devices are not limited, and of what systemd knows of version 1 this is what it does not delegate: it moves all
                // processes out of such groups, and takes these away, whenever it looks at the slices above.
                folders.retain(|(controller, ..)| controller != "devices");
                (folders, inside)
            }
        };
        let mut made = groups.make_folders(hierarchies, &folders).and_then(|()| groups.hold());
        for _ in 1..TRIES {
            // systemd took an empty one away before this process was in it.
            match &made {
                Err(CgroupError::Write { source, .. }) if source.kind() == ErrorKind::NotFound => {
                    made = groups.make_folders(hierarchies, &folders).and_then(|()| groups.hold());
                }
                _ => break,
            }
        }
        if let Err(error) = made {
            drop(inside);
            groups.remove();
            return Err(error);
        }
        Ok((groups, inside))
    }

    /// Whether systemd runs, and may be asked for groups.
    #[must_use]
    pub fn systemd_runs() -> bool {
        systemd::booted()
    }

    fn make_folders(
        &mut self,
        hierarchies: &Hierarchies,
        folders: &[(String, PathBuf, PathBuf)],
    ) -> Result<(), CgroupError> {
        for (controller, top, folder) in folders {
            let missing: Vec<&Path> = folder
                .ancestors()
                .take_while(|path| *path != top)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect();
            for path in missing {
                // What systemd's slices pass on is systemd's to say.
                if hierarchies.is_unified()
                    && self.unit.is_none()
                    && let Some(parent) = path.parent()
                {
                    hierarchy::pass_on(parent);
                }
                match std::fs::create_dir(path) {
                    Ok(()) => self.made.push(path.to_owned()),
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                    Err(source) => return Err(CgroupError::Make { path: path.to_owned(), source }),
                }
                if controller == "cpuset" {
                    hierarchy::inherit_cpuset(path);
                }
            }
            self.folders.insert(controller.clone(), folder.clone());
        }
        Ok(())
    }

    /// With systemd and trees of version 1 there are some that it does not put the unit into, and where it takes empty groups of that name away
    /// whenever it looks at them: this process enters them, too.
    fn hold(&self) -> Result<(), CgroupError> {
        if self.unit.is_none() || self.is_unified() {
            return Ok(());
        }
        let folders: BTreeSet<&PathBuf> = self.folders.values().collect();
        folders.into_iter().try_for_each(|folder| write(&folder.join("cgroup.procs"), "0"))
    }

    /// Folder of a controller.
    #[must_use]
    pub fn folder(&self, controller: &str) -> Option<&Path> {
        self.folders.get(UNIFIED).or_else(|| self.folders.get(controller)).map(PathBuf::as_path)
    }

    /// Whether they are of version 2.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.folders.contains_key(UNIFIED)
    }

    /// The files to which a process writes `0` to be moved into the groups, each once.
    ///
    /// # Errors
    /// One cannot be opened.
    pub fn doors(&self) -> Result<Vec<File>, CgroupError> {
        let folders: BTreeSet<&PathBuf> = self.folders.values().collect();
        let open = |folder: &PathBuf| {
            let path = folder.join("cgroup.procs");
            let opened = File::options().write(true).open(&path);
            opened.map_err(|source| CgroupError::Write { path, value: "0".into(), source })
        };
        folders.into_iter().map(open).collect()
    }

    /// Applies limits, OCI's `LinuxResources` as JSON.
    ///
    /// # Errors
    /// One that is set and cannot be.
    pub fn limit(&self, resources: &Value) -> Result<(), CgroupError> {
        let resources = limits::complete(self, resources);
        if let Some(unit) = &self.unit {
            systemd::limit(unit, &resources, self.is_unified())?;
        }
        limits::apply(self, &resources)
    }

    /// The processes in them and in those below.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let folder = self.folder("pids").or_else(|| self.folders.values().next().map(PathBuf::as_path));
        let mut found = Vec::new();
        if let Some(folder) = folder {
            collect_processes(folder, &mut found, 0);
        }
        found.sort_unstable();
        found
    }

    /// How often the kernel has killed in them for want of memory.
    #[must_use]
    pub fn out_of_memory(&self) -> u64 {
        let Some(folder) = self.folder("memory") else { return 0 };
        let file = if self.is_unified() { "memory.events" } else { "memory.oom_control" };
        let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or_default()
    }

    /// Takes away what was made, as far as nobody else has put something into it; whether the groups themselves are gone.
    pub fn remove(&self) -> bool {
        let own: Vec<&PathBuf> = self.folders.values().filter(|folder| self.made.contains(folder)).collect();
        if let Some(unit) = &self.unit {
            // systemd would ask what is still there to end, and wait for that.
            let own = std::process::id();
            until(EMPTYING, || self.processes().iter().all(|pid| *pid == own));
            systemd::stop(unit);
        }
        let gone = until(EMPTYING, || {
            for folder in &own {
                remove_tree(folder, 0);
            }
            own.iter().all(|folder| !folder.exists())
        });
        for folder in self.made.iter().rev() {
            let _ = std::fs::remove_dir(folder);
        }
        gone
    }
}

/// Most levels of groups that somebody made within a container's.
const DEEPEST: usize = 16;

fn below(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

fn remove_tree(folder: &Path, depth: usize) {
    if std::fs::remove_dir(folder).is_ok() || depth > DEEPEST {
        return;
    }
    for child in below(folder) {
        remove_tree(&child, depth + 1);
    }
    let _ = std::fs::remove_dir(folder);
}

fn collect_processes(folder: &Path, found: &mut Vec<u32>, depth: usize) {
    let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.trim().parse::<u32>().ok()));
    if depth < DEEPEST {
        for child in below(folder) {
            collect_processes(&child, found, depth + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wanted(path: &str) -> Wanted<'_> {
        Wanted { cgroups_path: Some(path), id: "x", annotations: &Value::Null }
    }

    /// Groups of this machine, where this process may make some.
    fn here(name: &str) -> Option<Groups> {
        let hierarchies = Hierarchies::of_host().unwrap();
        let path = format!("/kata-cc-oci-test-{}/{name}", std::process::id());
        let made = Groups::make(&hierarchies, Driver::Cgroupfs, &wanted(&path));
        match made.map(|(groups, _)| groups) {
            Ok(groups) if !groups.folders.is_empty() => Some(groups),
            other => {
                println!("skipped: no control groups here that may be written to: {other:?}");
                None
            }
        }
    }

    #[test]
    fn groups_are_made_entered_limited_and_removed() {
        let Some(groups) = here("one") else { return };
        let limits = json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 5}, "cpu": {"shares": 512, "quota": 50000, "period": 100_000}});
        groups.limit(&limits).unwrap();
        let file = if groups.is_unified() { "memory.max" } else { "memory.limit_in_bytes" };
        let read = |name: &str| std::fs::read_to_string(groups.folder("memory").unwrap().join(name)).unwrap();
        assert_eq!(read(file).trim(), "67108864");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        for mut door in groups.doors().unwrap() {
            door.write_all(child.id().to_string().as_bytes()).unwrap();
        }
        assert_eq!(groups.processes(), [child.id()]);
        let used = stats::stats(&groups);
        assert_eq!(used["pids"]["current"], 1);
        assert_eq!(used["pids"]["limit"], 5);
        assert_eq!(used["memory"]["usage"]["limit"], 67_108_864);
        assert_eq!(groups.out_of_memory(), 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(groups.remove());
        assert!(groups.made.iter().all(|folder| !folder.exists()));
    }

    #[test]
    fn what_others_made_stays() {
        let Some(prepared) = here("prepared") else { return };
        let hierarchies = Hierarchies::of_host().unwrap();
        let path = format!("/kata-cc-oci-test-{}/prepared", std::process::id());
        let (groups, _) = Groups::make(&hierarchies, Driver::Cgroupfs, &wanted(&path)).unwrap();
        assert!(groups.made.is_empty());
        assert!(groups.remove());
        assert!(prepared.folders.values().all(|folder| folder.exists()));
        prepared.remove();
    }

    #[test]
    fn a_limit_that_cannot_be_is_named() {
        let Some(groups) = here("bad") else { return };
        let error = groups.limit(&json!({"cpu": {"cpus": "nonsense"}})).unwrap_err().to_string();
        groups.remove();
        assert!(error.contains("cpuset.cpus") && error.contains("nonsense"), "{error}");
    }
}
