//! A pod's `emptyDir` volumes, made in the guest instead of on the host.
//!
//! The kubelet makes a folder for each (`pkg/volume/emptydir` in kubernetes/kubernetes) and has it mounted into the containers. Nothing is in it
//! that the guest needs, and what containers write there is not for the host: the guest makes a folder of its own, which all containers of
//! the pod share and which lives as long as the pod. Kata's storages `local` (as large as what the pod may use) and `ephemeral` (memory).

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use kata_cc_agent_protocol::agent as wire;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// The kubelet's folder of such volumes, below a pod's `volumes`.
const PLUGIN: &str = "kubernetes.io~empty-dir";
/// Where they are in the guest.
const FOLDER: &str = "/run/kata-containers/sandbox/empty-dir";

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmptyDir {
    /// Its name in the pod.
    name: String,
    /// Permission bits of the kubelet's folder.
    mode: u32,
    /// The pod's `fsGroup`, which owns the folder.
    group: Option<u32>,
    /// Bytes of memory, for `medium: Memory`.
    memory: Option<u64>,
}

impl EmptyDir {
    /// The volume whose folder on the host `source` is; none for any other path, a part (`subPath`) of a volume too.
    #[must_use]
    pub fn of(source: &Path) -> Option<Self> {
        let mut parts = source.components().rev();
        let (Some(Component::Normal(name)), Some(Component::Normal(plugin))) = (parts.next(), parts.next())
        else {
            return None;
        };
        let volumes = matches!(parts.next(), Some(Component::Normal(folder)) if folder == "volumes");
        if plugin != PLUGIN || !volumes || parts.any(|part| part == Component::ParentDir) {
            return None;
        }
        let found = std::fs::symlink_metadata(source).ok().filter(Metadata::is_dir)?;
        Some(Self {
            name: name.to_str()?.to_owned(),
            mode: found.mode() & 0o7777,
            group: Some(found.gid()).filter(|gid| *gid != 0),
            memory: memory(source, &found),
        })
    }

    /// Its folder in the guest.
    #[must_use]
    pub fn guest_path(&self) -> String {
        format!("{FOLDER}/{}", self.name)
    }

    /// What the agent is told to make. The same for each container that has it: the first one makes it.
    #[must_use]
    pub fn storage(&self) -> wire::Storage {
        let mut storage = wire::Storage {
            driver: "local".to_owned(),
            source: "local".to_owned(),
            fstype: "local".to_owned(),
            options: vec![format!("mode={:04o}", self.mode)],
            mount_point: self.guest_path(),
            shared: true,
            ..Default::default()
        };
        if let Some(bytes) = self.memory {
            let tmpfs = ["ephemeral", "tmpfs", "tmpfs"].map(str::to_owned);
            [storage.driver, storage.source, storage.fstype] = tmpfs;
            storage.options.push(format!("size={bytes}"));
        }
        if let Some(group_id) = self.group {
            storage.fs_group = Some(wire::FSGroup { group_id, ..Default::default() }).into();
        }
        storage
    }
}

/// Size of the file system that was made for the folder alone, when it is one in memory.
fn memory(source: &Path, found: &Metadata) -> Option<u64> {
    let parent = std::fs::symlink_metadata(source.parent()?).ok()?;
    let system = statfs(source).ok().filter(|system| system.filesystem_type() == TMPFS_MAGIC)?;
    let bytes = system.blocks().checked_mul(u64::try_from(system.block_size()).ok()?)?;
    (parent.dev() != found.dev()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_volume_is_known_by_the_kubelets_path_alone() {
        let pod = tempfile::tempdir().unwrap();
        let folder = pod.path().join("volumes").join(PLUGIN).join("cache");
        assert_eq!(EmptyDir::of(&folder), None, "it must be there");
        std::fs::create_dir_all(folder.join("below")).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o2777)).unwrap();
        let volume = EmptyDir::of(&folder).unwrap();
        assert_eq!(volume.guest_path(), "/run/kata-containers/sandbox/empty-dir/cache");
        let storage = volume.storage();
        assert_eq!(
            (storage.driver.as_str(), storage.options.as_slice()),
            ("local", &["mode=2777".to_owned()][..])
        );
        assert!(storage.shared && storage.mount_point == volume.guest_path());

        let elsewhere = pod.path().join(PLUGIN).join("cache");
        std::fs::create_dir_all(&elsewhere).unwrap();
        let link = folder.with_file_name("link");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        let upwards = folder.join("..").join("..").join("..").join("volumes").join(PLUGIN).join("cache");
        for other in [folder.join("below"), elsewhere, link, upwards, folder.join("..")] {
            assert_eq!(EmptyDir::of(&other), None, "{}", other.display());
        }
    }

    #[test]
    fn memory_and_group_are_handed_on() {
        let volume = EmptyDir { name: "m".to_owned(), mode: 0o777, group: Some(2000), memory: Some(4096) };
        let storage = volume.storage();
        assert_eq!((storage.driver.as_str(), storage.fstype.as_str()), ("ephemeral", "tmpfs"));
        assert_eq!(storage.options, ["mode=0777", "size=4096"]);
        assert_eq!(storage.fs_group.group_id, 2000);
    }
}
