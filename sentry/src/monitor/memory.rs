//! What the host does for want of memory. It ends processes of the control group that the sandbox is charged to, mostly stubs, which have guests'
//! memory; which container that concerned the sentry tells, and that it was for memory the group's own count
//! (`Documentation/admin-guide/cgroup-v2.rst`, "memory.events"; `cgroup-v1/memory.rst`, "oom_control").
//!
//! Nothing is looked at while nothing is lost.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

/// Events that are kept for who asks for them.
const EVENTS: usize = 100;
/// A file of a control group is not longer.
const FILE: usize = 4096;

/// The count of the host, and those who ask for what became of it.
pub(crate) struct Memory {
    counted: Option<File>,
    known: AtomicU64,
    tell: mpsc::Sender<String>,
    told: tokio::sync::Mutex<mpsc::Receiver<String>>,
}

/// The file that counts, of the group that `groups` (`/proc/self/cgroup`) names, by the mounts of `mounts` (`/proc/self/mountinfo`): of version 1
/// where memory is a controller of it, else of version 2.
fn file(groups: &str, mounts: &str) -> Option<PathBuf> {
    let group = |wanted: &dyn Fn(&str) -> bool| {
        let mut lines = groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        lines.find(|(controllers, _)| wanted(controllers)).map(|(_, path)| path)
    };
    let first = |controllers: &str| controllers.split(',').any(|one| one == "memory");
    let (path, kind, name) = match group(&first) {
        Some(path) => (path, "cgroup", "memory.oom_control"),
        None => (group(&str::is_empty)?, "cgroup2", "memory.events"),
    };
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let of_kind = after.next() == Some(kind) && (kind == "cgroup2" || after.nth(1).is_some_and(first));
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let below = Path::new(path).strip_prefix(root).ok().filter(|_| of_kind)?;
        Some(Path::new(point).join(below).join(name))
    })
}

/// How often the kernel has killed for want of memory.
fn kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

impl Memory {
    /// Of this process' control group.
    pub(crate) fn of_host() -> Self {
        let read = |name: &str| fs::read_to_string(Path::new("/proc/self").join(name)).unwrap_or_default();
        let path = file(&read("cgroup"), &read("mountinfo"));
        let counted = path.and_then(|path| File::open(path).ok());
        if counted.is_none() {
            tracing::debug!("no control group counts who is killed for want of memory");
        }
        Self::new(counted)
    }

    fn new(counted: Option<File>) -> Self {
        let (tell, told) = mpsc::channel(EVENTS);
        let memory = Self { counted, known: AtomicU64::new(0), tell, told: told.into() };
        memory.known.store(memory.count(), Ordering::Relaxed);
        memory
    }

    fn count(&self) -> u64 {
        let mut text = vec![0; FILE];
        let read = self.counted.as_ref().and_then(|file| file.read_at(&mut text, 0).ok());
        let text = text.get(..read.unwrap_or(0)).unwrap_or_default();
        kills(&String::from_utf8_lossy(text)).unwrap_or(0)
    }

    /// Whether the host has killed for want of memory once more than it is known.
    pub(crate) fn ran_out(&self) -> bool {
        let (now, known) = (self.count(), self.known.load(Ordering::Relaxed));
        if now > known {
            self.known.store(known.saturating_add(1), Ordering::Relaxed);
        }
        now > known
    }

    /// A container ran out of memory.
    pub(crate) fn tell(&self, container: String) {
        tracing::warn!(container, "the host has killed a process of the container: its memory is used up");
        // Where nobody asks for so many, the rest says nothing new.
        let _ = self.tell.try_send(container);
    }

    /// The next container that did.
    pub(crate) async fn next(&self) -> Option<String> {
        self.told.lock().await.recv().await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const V1: &str = "30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      31 25 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";
    const V2: &str = "40 25 0:30 /pods /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate\n";

    #[test]
    fn the_file_is_that_of_the_own_group() {
        let of = |groups: &str, mounts: &str| file(groups, mounts).map(|path| path.display().to_string());
        let v1 = "5:cpu:/other\n4:cpuacct,memory:/pod/a\n0::/\n";
        assert_eq!(of(v1, V1).as_deref(), Some("/sys/fs/cgroup/memory/pod/a/memory.oom_control"));
        assert_eq!(of("0::/pods/a\n", V2).as_deref(), Some("/sys/fs/cgroup/a/memory.events"));
        assert_eq!(of("0::/elsewhere/a\n", V2), None);
        assert_eq!(of("0::/pods/a\n", V1), None);
        assert_eq!(of("", ""), None);
        assert_eq!(of("::\nx", "- - -\n a - cgroup2"), None);
    }

    #[tokio::test]
    async fn each_that_is_counted_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.events");
        fs::write(&path, "low 0\noom 7\noom_kill 2\n").unwrap();
        let memory = Memory::new(Some(File::open(&path).unwrap()));
        assert!(!memory.ran_out(), "what was before is no news");
        fs::write(&path, "low 0\noom 9\noom_kill 4\n").unwrap();
        assert_eq!([(); 3].map(|()| memory.ran_out()), [true, true, false]);
        assert!(!Memory::new(None).ran_out());
        memory.tell("one".to_owned());
        assert_eq!(memory.next().await.as_deref(), Some("one"));
        for _ in 0..=EVENTS {
            memory.tell("two".to_owned());
        }
    }
}
