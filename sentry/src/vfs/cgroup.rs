//! A container's control group as its programs see it (`Documentation/admin-guide/cgroup-v2.rst`): one group without others below it, which tells
//! bounds and use, and cannot be changed. Runtimes of languages size themselves by it.
//!
//! Bounds are those that the container was given; what is in use is what its processes have. Swap there is none.

use std::fmt::Write as _;
use std::sync::{Arc, Weak};

use super::generated::{Branch, Node, Shared};
use super::{Dentry, FileSystem, FsStatus, Inode, Tree};
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::task::{ControlGroup, Tasks};

/// `CGROUP2_SUPER_MAGIC`.
const MAGIC: u64 = 0x6367_7270;

/// The file system.
pub struct CgroupFs {
    root: Arc<Node>,
}

impl CgroupFs {
    /// That of one group, ready to be mounted.
    #[must_use]
    pub fn tree(kernel: &Arc<Kernel>, group: &Arc<ControlGroup>) -> Arc<Dentry> {
        let seen = Seen { tasks: Arc::downgrade(&kernel.tasks), group: Arc::clone(group) };
        let branch = Arc::new(build(&seen));
        let root = Node { shared: Arc::new(Shared::new()), path: Vec::new(), branch };
        Tree::of(Box::new(Self { root: Arc::new(root) }))
    }
}

impl FileSystem for CgroupFs {
    fn name(&self) -> &'static str {
        "cgroup2"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::clone(&self.root) as Arc<dyn Inode>
    }

    fn status(&self) -> Result<FsStatus, Errno> {
        Ok(FsStatus { magic: MAGIC, block_size: 4096, ..FsStatus::default() })
    }

    fn read_only(&self) -> bool {
        true
    }
}

/// What is told of. Tasks hold mounts: they are not held from here.
#[derive(Clone)]
struct Seen {
    tasks: Weak<Tasks>,
    group: Arc<ControlGroup>,
}

/// Text of a file.
type Tell = fn(&ControlGroupOf<'_>) -> String;

/// A group and all tasks.
struct ControlGroupOf<'a> {
    group: &'a Arc<ControlGroup>,
    tasks: &'a Tasks,
}

fn bound(most: Option<u64>) -> String {
    most.map_or_else(|| "max\n".to_owned(), |most| format!("{most}\n"))
}

/// Whole pages, as `memory.max` tells them.
fn pages(bytes: u64) -> u64 {
    bytes & !0xfff
}

/// Numbers as whoever reads sees them; 0 for those of other namespaces.
fn numbers(internal: impl Iterator<Item = crate::task::Pid>) -> String {
    let reader = crate::task::current();
    internal.fold(String::new(), |mut text, pid| {
        let _ = writeln!(text, "{}", reader.as_ref().map_or(pid, |reader| reader.shown(pid)));
        text
    })
}

fn cpu_stat(of: &ControlGroupOf<'_>) -> String {
    let times = of.group.cpu_times(of.tasks);
    let all = times.total().as_micros();
    format!(
        "usage_usec {all}\nuser_usec {}\nsystem_usec {}\n",
        times.user.as_micros(),
        times.system.as_micros()
    )
}

/// Files that change, or depend on bounds.
const TOLD: &[(&str, Tell)] = &[
    ("cgroup.freeze", |of| format!("{}\n", u8::from(of.group.frozen()))),
    ("cgroup.procs", |of| numbers(of.group.processes(of.tasks).iter().map(|group| group.pid()))),
    ("cgroup.threads", |of| numbers(of.group.tasks(of.tasks).iter().map(|task| task.pid()))),
    ("cpu.max", |of| match of.group.cpu_quota() {
        Some((quota, period)) => format!("{quota} {period}\n"),
        None => "max 100000\n".to_owned(),
    }),
    ("cpu.stat", cpu_stat),
    ("memory.current", |of| format!("{}\n", of.group.memory_in_use(of.tasks))),
    ("memory.events", |of| {
        let killed = of.group.out_of_memory();
        format!("low 0\nhigh 0\nmax {killed}\noom {killed}\noom_kill {killed}\noom_group_kill 0\n")
    }),
    ("memory.max", |of| bound(of.group.most_memory().map(pages))),
    ("memory.stat", |of| format!("anon {}\nfile 0\n", of.group.memory_in_use(of.tasks))),
    ("pids.current", |of| format!("{}\n", of.group.tasks(of.tasks).len())),
    ("pids.max", |of| bound(of.group.most())),
];

/// Files that say the same always.
const FIXED: &[(&str, &str)] = &[
    ("cgroup.controllers", "cpu memory pids\n"),
    ("cgroup.events", "populated 1\nfrozen 0\n"),
    ("cgroup.max.depth", "max\n"),
    ("cgroup.max.descendants", "max\n"),
    ("cgroup.stat", "nr_descendants 0\nnr_dying_descendants 0\n"),
    ("cgroup.subtree_control", "\n"),
    ("cgroup.type", "domain\n"),
    ("cpu.weight", "100\n"),
    ("memory.high", "max\n"),
    ("memory.low", "0\n"),
    ("memory.min", "0\n"),
    ("memory.swap.current", "0\n"),
    ("memory.swap.max", "0\n"),
];

fn build(seen: &Seen) -> Branch {
    let mut root = Branch::folder();
    for (name, text) in FIXED {
        root.put(name, Branch::fixed(*text));
    }
    for (name, tell) in TOLD {
        let seen = seen.clone();
        let text = move || {
            let tasks = seen.tasks.upgrade().ok_or(Errno::ENODEV)?;
            Ok(tell(&ControlGroupOf { group: &seen.group, tasks: &tasks }).into_bytes())
        };
        root.put(name, Branch::text(text));
    }
    root
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::control::message::{Bound, Bounds};
    use crate::vfs::{Caller, Flags};

    #[test]
    fn a_group_tells_its_bounds() {
        let kernel = Kernel::for_test();
        let group = Arc::new(ControlGroup::default());
        let tree = CgroupFs::tree(&kernel, &group);
        let text = |name: &str| {
            let node = tree.tree().fs.root().lookup(name.as_bytes()).unwrap();
            let file = node.open(Flags(0), &Caller::root()).unwrap();
            let mut bytes = [0; 256];
            let count = file.read(&mut bytes, 0).unwrap();
            String::from_utf8(bytes[..count].to_vec()).unwrap()
        };
        assert_eq!(
            [text("memory.max"), text("pids.max"), text("cpu.max")],
            ["max\n", "max\n", "max 100000\n"]
        );
        let bounds = Bounds { tasks: Bound::To(7), memory: Bound::To(8195), cpu: Bound::To((5, 10)) };
        group.set_bounds(&bounds);
        assert_eq!([text("memory.max"), text("pids.max"), text("cpu.max")], ["8192\n", "7\n", "5 10\n"]);
        group.set_bounds(&Bounds { memory: Bound::Infinite, ..Bounds::default() });
        assert_eq!([text("memory.max"), text("pids.max")], ["max\n", "7\n"]);
        assert_eq!([text("pids.current"), text("memory.current"), text("cgroup.procs")], ["0\n", "0\n", ""]);
        assert!(text("cpu.stat").starts_with("usage_usec 0\n"));
        assert!(text("memory.events").ends_with("\noom 0\noom_kill 0\noom_group_kill 0\n"));
        group.count_out_of_memory();
        assert!(text("memory.events").ends_with("\noom 1\noom_kill 1\noom_group_kill 0\n"));
    }
}
