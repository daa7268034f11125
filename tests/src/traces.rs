//! What a pod leaves on a machine: processes, mounts, interfaces, network namespaces, sockets, control groups, folders.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where a test's sandboxes keep their run-time files, below the test's folder.
pub const RUN: &str = "run";

/// Where they keep disks and records.
pub const STATE: &str = "records";

/// What a pod may leave on a machine. Taken before and after, the difference must be nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// Look at the machine now.
    #[must_use]
    pub fn take(folder: &Path) -> Self {
        let mut found = BTreeSet::new();
        processes(&mut found);
        mounts(folder, &mut found);
        for (kind, path) in
            [("interface", "/sys/class/net"), ("netns", "/run/netns"), ("shim socket", "/run/containerd/s")]
        {
            found.extend(names(Path::new(path)).map(|name| format!("{kind} {name}")));
        }
        found.extend(names(&folder.join(RUN)).map(|name| format!("run-time folder {name}")));
        found.extend(names(&folder.join(STATE).join("disks")).map(|name| format!("disks of {name}")));
        found.extend(names(Path::new("/sys/fs/cgroup")).map(|name| format!("cgroup {name}")));
        Self(found)
    }

    /// What is there now and was not before.
    #[must_use]
    pub fn new_since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }

    /// What has come since `self` and stays for a minute; empty as soon as nothing is left.
    #[must_use]
    pub fn left_after_a_minute(&self, folder: &Path) -> Vec<String> {
        let start = Instant::now();
        loop {
            let left = Self::take(folder).new_since(self);
            if left.is_empty() || start.elapsed() > Duration::from_secs(60) {
                return left;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn processes(found: &mut BTreeSet<String>) {
    for pid in names(Path::new("/proc")).filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("shim-kata-cc") || line.contains("kata-cc-vmm") {
            found.insert(format!("process {pid} {line}"));
        }
    }
}

fn mounts(folder: &Path, found: &mut BTreeSet<String>) {
    let folder = folder.to_string_lossy().into_owned();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    found.extend(
        points
            .filter(|point| point.starts_with(&folder) || point.contains("kata-cc"))
            .map(|point| format!("mount {point}")),
    );
}

/// Names of what lies in `folder`; none when it is not there.
pub(crate) fn names(folder: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}
