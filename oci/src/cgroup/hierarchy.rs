//! The trees of control groups of a host: one (version 2), or one for each controller (version 1, also beside a version 2 without controllers).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{CgroupError, UNIFIED, below_the_root};

/// Controllers of version 2 that a parent is asked to pass on.
const CONTROLLERS: [&str; 6] = ["+cpu", "+cpuset", "+io", "+memory", "+pids", "+hugetlb"];

/// A tree.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tree {
    controllers: Vec<String>,
    /// Where it is mounted.
    mount: PathBuf,
    /// What of it is mounted there.
    root: String,
}

impl Tree {
    /// A path from the tree's root as one from what is mounted.
    fn within<'a>(&self, path: &'a Path) -> &'a Path {
        let path = path.strip_prefix(&self.root).unwrap_or(path);
        path.strip_prefix("/").unwrap_or(path)
    }
}

/// The trees of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    unified: bool,
    trees: Vec<Tree>,
    /// Where this process is, by controller.
    own: BTreeMap<String, String>,
}

impl Hierarchies {
    /// Those of this host.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn of_host() -> Result<Self, CgroupError> {
        let read = |path: &str| {
            std::fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.into(), source })
        };
        Ok(Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?))
    }

    /// Of `mountinfo` (proc(5)) and `cgroup` (cgroups(7)).
    fn parse(mounts: &str, own: &str) -> Self {
        let mut trees = Vec::new();
        let mut unified = Vec::new();
        for line in mounts.lines() {
            let Some((front, back)) = line.split_once(" - ") else { continue };
            let (front, back): (Vec<&str>, Vec<&str>) =
                (front.split(' ').collect(), back.split(' ').collect());
            let (Some(root), Some(mount), Some(kind)) = (front.get(3), front.get(4), back.first()) else {
                continue;
            };
            let tree = |controllers| Tree { controllers, mount: mount.into(), root: (*root).to_owned() };
            match *kind {
                "cgroup2" => unified.push(tree(vec![UNIFIED.to_owned()])),
                "cgroup" => {
                    let options = back.get(2).unwrap_or(&"").split(',');
                    let controllers = options.filter(|option| !matches!(*option, "rw" | "ro" | "xattr"));
                    let controllers = controllers.filter(|option| !option.contains("_agent="));
                    trees.push(tree(controllers.map(str::to_owned).collect()));
                }
                _ => {}
            }
        }
        let mut places = BTreeMap::new();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            if let (Some(controllers), Some(path)) = (fields.next(), fields.next()) {
                for controller in controllers.split(',') {
                    places.insert(controller.to_owned(), path.to_owned());
                }
            }
        }
        // With controllers of version 1 the tree of version 2 has none.
        let only_unified =
            trees.iter().all(|tree| tree.controllers.iter().all(|name| name.starts_with("name=")));
        if only_unified {
            unified.truncate(1);
            return Self { unified: true, trees: unified, own: places };
        }
        let mut seen = Vec::new();
        trees.retain(|tree| {
            let new = !seen.contains(&tree.controllers);
            seen.push(tree.controllers.clone());
            new
        });
        Self { unified: false, trees, own: places }
    }

    /// Whether there is one tree.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.unified
    }

    /// Controller, top of its tree and folder of a path below the tops.
    pub(super) fn below(&self, path: &Path) -> Vec<(String, PathBuf, PathBuf)> {
        self.each(|_, tree| Some(tree.mount.join(path)))
    }

    /// The same for a path as `/proc/PID/cgroup` has it: from the root of the tree, of which a part may be mounted.
    pub(super) fn at_top(&self, path: &Path) -> Vec<(String, PathBuf, PathBuf)> {
        self.each(|_, tree| Some(tree.mount.join(tree.within(path))))
    }

    fn each(&self, folder: impl Fn(&str, &Tree) -> Option<PathBuf>) -> Vec<(String, PathBuf, PathBuf)> {
        let mut all = Vec::new();
        for tree in &self.trees {
            for controller in &tree.controllers {
                if let Some(folder) = folder(controller, tree) {
                    all.push((controller.clone(), tree.mount.clone(), folder));
                }
            }
        }
        all
    }

    /// The same for what an engine names: a path from the top, or one from where this process is (version 1) or beside it (version 2: a group with
    /// processes passes no controllers on).
    pub(super) fn named(
        &self,
        cgroups_path: Option<&str>,
        id: &str,
    ) -> Result<Vec<(String, PathBuf, PathBuf)>, CgroupError> {
        let text = cgroups_path.filter(|path| !path.is_empty()).unwrap_or(id);
        let refused = |_| CgroupError::Name(text.to_owned());
        let Some(path) = below_the_root(text).map_err(refused)? else {
            return Err(CgroupError::Name(text.to_owned()));
        };
        if text.starts_with('/') || text.contains(':') {
            return Ok(self.below(&path));
        }
        Ok(self.each(|controller, tree| {
            let own = tree.within(Path::new(self.own.get(controller)?));
            let beside = if self.unified { own.parent().unwrap_or(own) } else { own };
            Some(tree.mount.join(beside).join(&path))
        }))
    }
}

/// Lets a group of version 2 pass its controllers on, each by itself: what it does not have must not keep the others away.
pub(super) fn pass_on(folder: &Path) {
    for controller in CONTROLLERS {
        let _ = super::write(&folder.join("cgroup.subtree_control"), controller);
    }
}

/// A new group of version 1's cpuset has no processor and no memory: it gets its parent's (cpuset(7)).
pub(super) fn inherit_cpuset(folder: &Path) {
    let Some(parent) = folder.parent() else { return };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let empty = std::fs::read_to_string(folder.join(file)).is_ok_and(|text| text.trim().is_empty());
        if let (true, Ok(value)) = (empty, std::fs::read_to_string(parent.join(file))) {
            let _ = super::write(&folder.join(file), value.trim());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "22 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        23 22 0:21 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        24 22 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        25 22 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
        26 22 0:24 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw\n";

    fn folders(found: &[(String, PathBuf, PathBuf)]) -> Vec<String> {
        found.iter().map(|(name, _, path)| format!("{name} {}", path.display())).collect()
    }

    #[test]
    fn version_1_has_a_folder_for_each_controller() {
        let own = "4:memory:/a\n3:cpu,cpuacct:/b/c\n1:name=systemd:/\n0::/\n";
        let all = Hierarchies::parse(HYBRID, own);
        assert!(!all.is_unified());
        let expected = [
            "cpu /sys/fs/cgroup/cpu,cpuacct/x/y",
            "cpuacct /sys/fs/cgroup/cpu,cpuacct/x/y",
            "memory /sys/fs/cgroup/memory/x/y",
            "name=systemd /sys/fs/cgroup/systemd/x/y",
        ];
        assert_eq!(folders(&all.named(Some("/x/y"), "id").unwrap()), expected);
        let own = folders(&all.named(None, "id").unwrap());
        assert_eq!(own[0], "cpu /sys/fs/cgroup/cpu,cpuacct/b/c/id");
        assert_eq!(own[2], "memory /sys/fs/cgroup/memory/a/id");
    }

    #[test]
    fn version_2_has_one() {
        let mounts = "26 22 0:24 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let all = Hierarchies::parse(mounts, "0::/user.slice/s.scope\n");
        assert!(all.is_unified());
        assert_eq!(folders(&all.named(Some("/x"), "id").unwrap()), [" /sys/fs/cgroup/x"]);
        assert_eq!(folders(&all.named(None, "id").unwrap()), [" /sys/fs/cgroup/user.slice/id"]);
    }

    #[test]
    fn a_part_of_a_tree_is_not_named_twice() {
        let mounts = "24 22 0:22 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let all = Hierarchies::parse(mounts, "4:memory:/docker/1/own\n");
        assert_eq!(folders(&all.named(None, "id").unwrap()), ["memory /sys/fs/cgroup/memory/own/id"]);
    }

    #[test]
    fn names_do_not_leave_the_top() {
        let all = Hierarchies::parse(HYBRID, "");
        for bad in ["../x", "/a/../../x", "a/./../.."] {
            assert!(matches!(all.named(Some(bad), "id"), Err(CgroupError::Name(_))), "{bad}");
        }
        assert!(all.named(Some("/"), "id").is_err());
    }

    #[test]
    fn garbage_is_no_tree() {
        let all = Hierarchies::parse("x\n - \n1 2 3 - cgroup\n", "x\n:\n");
        assert!(all.below(Path::new("x")).is_empty());
    }
}
