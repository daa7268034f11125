//! Control groups for a systemd of its own: one in each tree.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Layout;

/// Name of groups made here; the process that made them follows.
const PREFIX: &str = "kata-cc-test-systemd-";
/// How long what was killed may stay in them.
const LIMIT: Duration = Duration::from_secs(20);
/// Most levels that are looked at.
const DEEPEST: usize = 24;

/// One group of each tree; they go with this.
#[derive(Debug)]
pub(crate) struct Own {
    folders: Vec<PathBuf>,
    /// For the process that holds the namespaces: a group of version 2 that passes controllers on has no processes itself.
    aside: Option<PathBuf>,
}

/// A mounted tree.
struct Tree {
    mount: PathBuf,
    unified: bool,
    cpuset: bool,
}

fn trees() -> Vec<Tree> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let (mount, kind, options) = (*fields.get(1)?, *fields.get(2)?, *fields.get(3)?);
        if !matches!(kind, "cgroup" | "cgroup2") || !mount.starts_with("/sys/fs/cgroup") {
            return None;
        }
        Some(Tree {
            mount: mount.into(),
            unified: kind == "cgroup2",
            cpuset: options.split(',').any(|one| one == "cpuset"),
        })
    };
    mounts.lines().filter_map(of_line).collect()
}

impl Own {
    /// Makes them, in all trees: a systemd that sees one tree must not be in the machine's groups of the others.
    pub(crate) fn make(layout: Layout) -> Result<Self, String> {
        let trees = trees();
        if !trees.iter().any(|tree| tree.unified) {
            return Err("no control groups of version 2 are mounted here".to_owned());
        }
        if layout == Layout::V1 && trees.iter().all(|tree| tree.unified) {
            return Err("this machine's controllers are in control groups of version 2".to_owned());
        }
        let number = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let mut own = Self { folders: Vec::new(), aside: None };
        for tree in &trees {
            sweep(&tree.mount);
            own.folders.push(made(tree.mount.join(&name))?);
            if tree.unified {
                own.aside = Some(made(tree.mount.join(format!("{name}-aside")))?);
            }
            if tree.cpuset {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let value = std::fs::read_to_string(tree.mount.join(file)).unwrap_or_default();
                    let _ = std::fs::write(tree.mount.join(&name).join(file), value.trim());
                }
            }
        }
        Ok(own)
    }

    /// Puts a process aside.
    pub(crate) fn put_aside(&self, pid: u32) {
        if let Some(folder) = &self.aside {
            std::fs::write(folder.join("cgroup.procs"), pid.to_string()).expect("a group");
        }
    }

    pub(crate) fn folders(&self) -> &[PathBuf] {
        &self.folders
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            let all = || self.folders.iter().chain(&self.aside);
            all().for_each(|folder| remove(folder, 0));
            if all().all(|folder| !folder.exists()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("control groups stay: {self:?}");
    }
}

fn made(folder: PathBuf) -> Result<PathBuf, String> {
    match std::fs::create_dir(&folder) {
        Ok(()) => Ok(folder),
        Err(error) => Err(format!("cannot make {}: {error}", folder.display())),
    }
}

/// Removes what tests that were killed have left.
fn sweep(mount: &Path) {
    for entry in std::fs::read_dir(mount).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if maker.is_some_and(|maker| !Path::new("/proc").join(maker).exists()) {
            remove(&entry.path(), 0);
        }
    }
}

fn remove(folder: &Path, depth: usize) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for child in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if depth < DEEPEST {
            remove(&child.path(), depth + 1);
        }
    }
    let _ = std::fs::remove_dir(folder);
}
