//! The monitor's control group (cgroup v2): the one that the container engine names for the pod, so that what the guest
//! uses is charged to the pod, and limited with it.
//!
//! The engine names a group and leaves making it to the runtime (OCI runtime-spec, config-linux "Control groups"). What is
//! made here, the group and those on the way to it, bears a mark ([`MARK`]), so that whoever finds one empty knows that it may go.
//!
//! Where it names a unit of systemd's, systemd makes the group ([`crate::charge`]).

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_cc_oci::cgroup::below_the_root;

use crate::process;

/// Where cgroup v2 is mounted on a node that has nothing else (cgroups(7)).
const ROOT: &str = "/sys/fs/cgroup";
/// Extended attribute of groups that were made here.
const MARK: &str = "trusted.kata-cc";
/// How long the monitor's memory may take to be freed, which keeps its group in use.
const EMPTYING: Duration = Duration::from_secs(10);
/// A group on the way may go in the moment before ours is made in it.
const TRIES: usize = 10;

/// A control group that was made for a monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup {
    root: PathBuf,
    path: PathBuf,
    /// Of a noted one, what its maker was about to make: it may have died before it could mark that.
    unmarked: Vec<PathBuf>,
}

/// Writes to a file that is there: in this file system, making one that is not fails by another reason.
fn write(file: &Path, text: &str) -> io::Result<()> {
    File::options().write(true).open(file)?.write_all(text.as_bytes())
}

/// Without its mark a group stays, which harms nobody.
fn mark(path: &Path) {
    let _ = xattr::set(path, MARK, b"made");
}

fn is_marked(path: &Path) -> bool {
    matches!(xattr::get(path, MARK), Ok(Some(_)))
}

/// Whether processes are in a group or below it (`cgroup.events`).
fn is_used(path: &Path) -> io::Result<bool> {
    Ok(std::fs::read_to_string(path.join("cgroup.events"))?.lines().any(|line| line == "populated 1"))
}

/// What a guest of `memory_mib` and its monitor may take, MiB: its memory; two page tables of it, the monitor's and KVM's,
/// each a 512th when nothing is mapped by large pages; the monitor itself, which is some ten MiB (`./x bench boot`);
/// and page cache of its disks, which gives way.
pub(crate) fn needed_mib(memory_mib: u64) -> u64 {
    memory_mib + memory_mib / 128 + 128
}

impl Cgroup {
    /// The group that an engine named, on this node. None when it named none, or when the node has no cgroup v2.
    ///
    /// # Errors
    /// When the name leaves the root.
    pub(crate) fn named(cgroups_path: Option<&str>) -> io::Result<Option<Self>> {
        let root = Path::new(ROOT);
        if !root.join("cgroup.controllers").exists() {
            return Ok(None);
        }
        let path = cgroups_path.map(below_the_root).transpose()?.flatten();
        Ok(path.map(|path| Self { root: root.to_owned(), path: root.join(path), unmarked: Vec::new() }))
    }

    /// One that systemd made and takes away, to look at.
    pub(crate) fn of_systemd(folder: &Path) -> Self {
        Self { root: ROOT.into(), path: folder.to_owned(), unmarked: Vec::new() }
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// One that was noted, see [`Cgroup::path`], with what [`Cgroup::missing`] named then.
    pub(crate) fn noted(path: PathBuf, missing: Vec<PathBuf>) -> Self {
        Self { root: ROOT.into(), path, unmarked: missing }
    }

    /// The groups that making it will make: it and those on the way to it, as far as they are not there. To be noted before it is
    /// made. A group takes the kernel milliseconds to make, and who is killed meanwhile dies before the mark.
    pub(crate) fn missing(&self) -> Vec<PathBuf> {
        let below = self.path.ancestors().take_while(|path| *path != self.root);
        below.filter(|path| !path.exists()).map(Path::to_path_buf).collect()
    }

    fn is_ours(&self, path: &Path) -> bool {
        is_marked(path) || self.unmarked.iter().any(|unmarked| unmarked == path)
    }

    /// Make it, with a limit of [`needed_mib`]. One that somebody has prepared is taken as it is, with its own limits, and
    /// stays in the end.
    ///
    /// Returns what the user should know: why what the guest uses is not limited here, or will not fit.
    ///
    /// # Errors
    /// When it cannot be made, or is in use: two sandboxes must not share one.
    pub(crate) fn make(&self, memory_mib: u64) -> io::Result<Option<String>> {
        let mut made = self.make_once();
        for _ in 1..TRIES {
            match &made {
                Err(error) if error.kind() == io::ErrorKind::NotFound => made = self.make_once(),
                _ => break,
            }
        }
        let needed = needed_mib(memory_mib);
        if made? {
            match write(&self.path.join("memory.max"), &(needed << 20).to_string()) {
                // A container's own root, a hybrid node, a parent with processes in it: the group still is.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let path = self.path.display();
                    return Ok(Some(format!(
                        "memory cannot be limited in {path}: its parent does not pass the controller on"
                    )));
                }
                other => other?,
            }
        }
        Ok(self.warning(memory_mib))
    }

    /// Why a guest of so much memory will not fit, if it will not.
    pub(crate) fn warning(&self, memory_mib: u64) -> Option<String> {
        let needed = needed_mib(memory_mib);
        self.narrowest_limit().filter(|(_, mib)| *mib < needed).map(|(path, mib)| {
            format!(
                "{} allows {mib} MiB and the virtual machine with its monitor may take {needed} MiB: it will be killed \
                 when it does. In Kubernetes, give the RuntimeClass an overhead (docs/design.md)",
                path.display()
            )
        })
    }

    /// The smallest limit of the group and those above it, MiB.
    fn narrowest_limit(&self) -> Option<(&Path, u64)> {
        let all = self.path.ancestors().take_while(|path| *path != self.root);
        let limit = |path: &Path| -> Option<u64> {
            std::fs::read_to_string(path.join("memory.max")).ok()?.trim().parse().ok()
        };
        all.filter_map(|path| Some((path, limit(path)? >> 20))).min_by_key(|(_, mib)| *mib)
    }

    /// Whether it was made here, rather than found.
    fn make_once(&self) -> io::Result<bool> {
        let parents: Vec<&Path> =
            self.path.ancestors().skip(1).take_while(|path| path.starts_with(&self.root)).collect();
        for parent in parents.iter().rev() {
            match std::fs::create_dir(parent) {
                Ok(()) => mark(parent),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            // One at a time: what the parent does not have must not keep the others away.
            for controller in ["+memory", "+cpu", "+pids"] {
                let _ = write(&parent.join("cgroup.subtree_control"), controller);
            }
        }
        match std::fs::create_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if is_used(&self.path)? {
                    return Err(error);
                }
                if !is_marked(&self.path) {
                    return Ok(false);
                }
                // Left of a sandbox that was.
                std::fs::remove_dir(&self.path)?;
                std::fs::create_dir(&self.path)?;
            }
            other => other?,
        }
        mark(&self.path);
        Ok(true)
    }

    /// The file to which a process writes `0` to be moved into the group.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn door(&self) -> io::Result<File> {
        File::options().write(true).open(self.path.join("cgroup.procs"))
    }

    /// Whether the kernel has killed in it for want of memory (`memory.events`).
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let events = std::fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0"))
    }

    /// Take it away, with the empty ones above it, as far as they bear the mark or were noted as about to be
    /// made. What others have put into it stays, and so does it: then false.
    pub(crate) async fn remove(&self) -> bool {
        process::until(EMPTYING, || self.remove_once()).await
    }

    fn remove_once(&self) -> bool {
        for path in self.path.ancestors().take_while(|path| *path != self.root) {
            if !path.exists() {
                continue;
            }
            if !self.is_ours(path) {
                break;
            }
            if std::fs::remove_dir(path).is_err() {
                return path != self.path || !path.exists();
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cgroup v2 mount that this process may write to.
    fn mounted() -> Option<&'static Path> {
        let mounts = [Path::new(ROOT), Path::new("/sys/fs/cgroup/unified")];
        let found = mounts.into_iter().find(|root| root.join("cgroup.controllers").exists());
        let writable = found.filter(|root| {
            let probe = root.join(format!("kata-cc-probe-{}", std::process::id()));
            std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).is_ok()
        });
        if writable.is_none() {
            println!("skipped: no cgroup v2 here that may be written to");
        }
        writable
    }

    #[tokio::test]
    async fn a_group_is_made_entered_and_goes_with_the_ways_to_it() {
        let Some(root) = mounted() else { return };
        let top = root.join(format!("kata-cc-test-{}", std::process::id()));
        let group = |name: &str| Cgroup {
            root: root.to_owned(),
            path: top.join("pod").join(name),
            unmarked: Vec::new(),
        };
        let (one, two) = (group("one"), group("two"));
        one.make(256).unwrap();
        two.make(256).unwrap();
        two.make(256).expect("an empty one is left of a sandbox that was");
        assert_eq!(needed_mib(64 << 10), (64 << 10) + 512 + 128);

        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        one.door().unwrap().write_all(child.id().to_string().as_bytes()).unwrap();
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        assert!(text.lines().any(|line| line.starts_with("0::") && line.ends_with("/pod/one")), "{text}");
        assert!(!one.ran_out_of_memory());
        assert_eq!(one.make(256).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(!one.remove_once());
        assert!(one.path().exists(), "it is in use");
        child.kill().unwrap();
        child.wait().unwrap();
        one.remove().await;
        assert!(!one.path().exists() && two.path().exists());
        two.remove().await;
        assert!(!top.exists());
    }

    #[test]
    fn a_limit_above_that_is_too_small_is_told() {
        let top = tempfile::tempdir().unwrap();
        let group =
            Cgroup { root: top.path().to_owned(), path: top.path().join("pod/one"), unmarked: Vec::new() };
        std::fs::create_dir_all(group.path()).unwrap();
        for (path, limit) in [("pod", "268435456\n"), ("pod/one", "503316480\n"), (".", "1\n")] {
            std::fs::write(top.path().join(path).join("memory.max"), limit).unwrap();
        }
        let (path, mib) = group.narrowest_limit().unwrap();
        assert_eq!((path, mib), (top.path().join("pod").as_path(), 256), "the root has no limit of its own");
        std::fs::write(top.path().join("pod/memory.max"), "max\n").unwrap();
        assert_eq!(group.narrowest_limit().unwrap().1, 480);
        assert!(!group.ran_out_of_memory());
        std::fs::write(group.path().join("memory.events"), "oom 1\noom_kill 2\n").unwrap();
        assert!(group.ran_out_of_memory());
        std::fs::write(group.path().join("memory.events"), "oom 1\noom_kill 0\n").unwrap();
        assert!(!group.ran_out_of_memory());
    }

    #[tokio::test]
    async fn groups_that_others_made_stay() {
        let Some(root) = mounted() else { return };
        let top = root.join(format!("kata-cc-test-theirs-{}", std::process::id()));
        std::fs::create_dir(&top).unwrap();
        let prepared = Cgroup { root: root.to_owned(), path: top.clone(), unmarked: Vec::new() };
        let group = Cgroup { root: root.to_owned(), path: top.join("one"), unmarked: Vec::new() };
        group.make(256).unwrap();
        assert!(group.remove().await);
        assert!(!group.path().exists() && top.exists());
        // One that an administrator has prepared, with limits of its own.
        let before = std::fs::metadata(&top).unwrap().created().ok();
        prepared.make(256).unwrap();
        assert!(prepared.remove().await && top.exists());
        assert_eq!(std::fs::metadata(&top).unwrap().created().ok(), before);
        std::fs::remove_dir(&top).unwrap();
    }

    #[tokio::test]
    async fn a_group_whose_maker_died_before_the_mark_goes_when_it_was_noted() {
        let Some(root) = mounted() else { return };
        let top = root.join(format!("kata-cc-test-died-{}", std::process::id()));
        let path = top.join("pod/one");
        let mut group = Cgroup { root: root.to_owned(), path: path.clone(), unmarked: Vec::new() };
        let missing = group.missing();
        assert_eq!(missing, [path.as_path(), path.parent().unwrap(), top.as_path()]);
        // As far as it came: nothing bears the mark.
        std::fs::create_dir_all(&path).unwrap();
        assert!(group.missing().is_empty());
        assert!(group.remove().await && path.exists(), "it looks like another's");
        group.unmarked = missing;
        assert!(group.remove().await);
        assert!(!top.exists());
    }
}
