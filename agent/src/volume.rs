//! Encrypted volumes: LUKS2 on a block device, through dm-crypt, to a folder or a device node.
//!
//! The device and everything on it is the host's; format and limits are `kata_cc_volumes`'. What the volume's owner gets of it:
//! `docs/security-model.md`. A volume without a key is this guest's alone: its key is random, and nobody keeps it.
//!
//! Where a volume may go: a file system to `sandbox/…` of Kata's folder, as the host's storages of the sandbox, from where
//! the mounts of containers take it; a device to a new name in `/dev` (below `/run` device files do not work). Never over
//! anything that is there.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use kata_cc_guest_api::volume::{Device, Volume};
use kata_cc_volumes::device::{BlockDevice, DeviceError, Mapped};
use nix::mount::{MntFlags, umount2};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::mounts;
use crate::paths;
use crate::storage::{self, StorageError};

/// Where device nodes are made.
const DEV: &str = "/dev";
/// Always, whatever flags are asked for: what comes from a disk brings neither device files nor privileges, and metadata that turns
/// out to be noise stops all writing.
const OPTIONS: [&str; 4] = ["nosuid", "nodev", "noatime", "errors=remount-ro"];

/// Why a volume is not there.
#[derive(Debug, Error)]
pub(crate) enum VolumeError {
    /// The mount point is not one of a volume's.
    #[error("mount point of a volume: {0}")]
    Place(#[from] StorageError),
    /// A device goes elsewhere.
    #[error(
        "mount point {0:?} of a device: it goes to a name of its own in /dev (/dev/NAME: letters, digits, dots, dashes, underscores), which must not be there yet"
    )]
    Node(String),
    /// Something is there.
    #[error("mount point {0:?} is in use: something is mounted there already")]
    InUse(PathBuf),
    /// The device, what is on it, or its mapping.
    #[error("block device {device}: {source}")]
    Device {
        /// Which.
        device: String,
        /// What is wrong.
        source: DeviceError,
    },
    /// It was not mounted.
    #[error("block device {device}: mounting the volume at {target} failed: {source}")]
    Mount {
        /// Which.
        device: String,
        /// Where.
        target: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The work was broken off.
    #[error("block device {device}: {source}")]
    Broken {
        /// Which.
        device: String,
        /// Why.
        source: tokio::task::JoinError,
    },
}

/// Where a volume goes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Folder(PathBuf),
    Node(PathBuf),
}

impl Place {
    /// Checks where a volume is to go; `container` is who brings it as a storage.
    fn of(volume: &Volume, container: Option<&str>) -> Result<Self, VolumeError> {
        let point = volume.mount_point.as_str();
        if !volume.as_device {
            return Ok(Self::Folder(storage::check_owner(point, container)?));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let name = point.strip_prefix("/dev/").filter(|name| {
            (1..=64).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.')
        });
        let path =
            name.map(|name| Path::new(DEV).join(name)).filter(|path| fs::symlink_metadata(path).is_err());
        path.map(Self::Node).ok_or_else(|| VolumeError::Node(point.chars().take(128).collect()))
    }
}

/// A volume in use; dropped, it is taken down.
#[derive(Debug)]
struct Held {
    mount_point: String,
    mounted: Option<PathBuf>,
    node: Option<PathBuf>,
    /// After the others: it is in use by them.
    mapped: Mapped,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(point) = &self.mounted
            && umount2(point, MntFlags::empty()).is_err()
        {
            // It goes when its last user does.
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
        if let Some(node) = &self.node {
            let _ = fs::remove_file(node);
        }
        tracing::info!(volume = self.mapped.name(), mount_point = self.mount_point, "volume closed");
    }
}

/// The guest's volumes.
#[derive(Debug, Default)]
pub(crate) struct Volumes(tokio::sync::Mutex<Vec<Held>>);

impl Volumes {
    /// Opens or makes a volume, with `key` or a random one, and puts it where it is to go.
    pub(crate) async fn mount(
        &self,
        volume: Volume,
        key: Option<Zeroizing<Vec<u8>>>,
        container: Option<&str>,
    ) -> Result<(), VolumeError> {
        // One after the other: two must not format one device.
        let mut held = self.0.lock().await;
        let place = Place::of(&volume, container)?;
        let device = volume.device.to_string();
        let working = tokio::task::spawn_blocking(move || set_up(&volume, key, &place));
        let made =
            working.await.unwrap_or_else(|error| Err(VolumeError::Broken { device, source: error }))?;
        held.push(made);
        Ok(())
    }

    /// Takes down the volume of a mount point, if there is one.
    pub(crate) async fn release(&self, mount_point: &str) {
        self.0.lock().await.retain(|held| held.mount_point != mount_point);
    }

    /// Takes down all of them, the last one first.
    pub(crate) async fn close(&self) {
        let mut held = self.0.lock().await;
        while held.pop().is_some() {}
    }
}

fn set_up(volume: &Volume, key: Option<Zeroizing<Vec<u8>>>, place: &Place) -> Result<Held, VolumeError> {
    let device = volume.device.to_string();
    let of_device = |source| VolumeError::Device { device: device.clone(), source };
    let below = match &volume.device {
        Device::Path(path) => BlockDevice::at(path),
        Device::Number(major, minor) => BlockDevice::numbered(*major, *minor),
    };
    let mapped = below.and_then(|below| below.map(volume.empty, key, volume.mapper_name.as_deref()));
    let mapped = mapped.map_err(of_device)?;
    // From here on dropping it takes down what there is.
    let mount_point = volume.mount_point.clone();
    let mut held = Held { mount_point, mounted: None, node: None, mapped };
    match place {
        Place::Node(path) => {
            held.mapped.make_node(path).map_err(of_device)?;
            held.node = Some(path.clone());
        }
        Place::Folder(target) => {
            if volume.empty {
                held.mapped.make_file_system().map_err(of_device)?;
            }
            mount(held.mapped.node(), target, &volume.flags).map_err(|error| match error {
                Some(source) => VolumeError::Mount { device: device.clone(), target: target.clone(), source },
                None => VolumeError::InUse(target.clone()),
            })?;
            held.mounted = Some(target.clone());
        }
    }
    tracing::info!(
        stage = "volume",
        device,
        volume = held.mapped.name(),
        mount_point = held.mount_point,
        made = volume.empty,
        "encrypted volume is there"
    );
    Ok(held)
}

/// Mounts the node on a folder, which is made; `None` when something is mounted there.
fn mount(node: &Path, target: &Path, flags: &[String]) -> Result<(), Option<io::Error>> {
    let base = Path::new(paths::BASE);
    let point = mounts::make_point(base, target).map_err(Some)?;
    let path = mounts::by_descriptor(&point);
    let above = mounts::make_point(base, target.parent().unwrap_or(base)).map_err(Some)?;
    let device_of = |path: &Path| fs::metadata(path).map(|seen| seen.dev()).map_err(Some);
    if device_of(&path)? != device_of(&mounts::by_descriptor(&above))? {
        return Err(None);
    }
    let options: Vec<&str> = flags.iter().map(String::as_str).chain(OPTIONS).collect();
    mounts::mount_at(&node.display().to_string(), &path, "ext4", &options).map_err(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(device: Device, as_device: bool, point: &str) -> Volume {
        let (key, flags, mapper_name) = (None, Vec::new(), None);
        let mount_point = point.to_owned();
        Volume { device, empty: true, as_device, mapper_name, key, flags, mount_point }
    }

    fn at(as_device: bool, point: &str, container: Option<&str>) -> Result<Place, VolumeError> {
        Place::of(&volume(Device::Number(1, 1), as_device, point), container)
    }

    #[test]
    fn a_file_system_goes_to_the_sandboxs_volumes_only() {
        for bad in [
            "/",
            "/proc",
            "/etc",
            "/dev/data",
            "/run/kata-containers",
            "/run/kata-containers/sandbox",
            "/run/kata-containers/sandbox/../c1",
            "/run/kata-containers/sandbox/resolv.conf",
            "/run/kata-containers/shared/containers/x",
            "/run/kata-containers/c1/rootfs",
            "/run/confidential-containers/cdh",
            "",
        ] {
            assert!(matches!(at(false, bad, None), Err(VolumeError::Place(_))), "{bad}");
        }
        at(false, "/run/kata-containers/sandbox/storage/data", None).unwrap();
        at(false, "/run/kata-containers/c1/data", Some("c1")).unwrap();
        assert!(at(false, "/run/kata-containers/c1/data", Some("c2")).is_err());
    }

    #[test]
    fn a_device_goes_to_a_new_name_in_dev_only() {
        for bad in [
            "/dev/null",
            "/dev/",
            "/dev/a/b",
            "/dev/../x",
            "/dev/..",
            "/dev/.x",
            "/mnt/x",
            "x",
            "/dev/a b",
            "",
        ] {
            assert!(matches!(at(true, bad, None), Err(VolumeError::Node(_))), "{bad}");
        }
        let place = at(true, "/dev/kata-cc-test-volume", None).unwrap();
        assert_eq!(place, Place::Node("/dev/kata-cc-test-volume".into()));
    }

    #[tokio::test]
    async fn what_is_no_block_device_is_refused_by_name() {
        let volumes = Volumes::default();
        for (device, reason) in [
            (Device::Path("/dev/null".into()), "/dev/null: it is no block device"),
            (Device::Path("/dev/kata-cc-none".into()), "/dev/kata-cc-none: No such file"),
            (Device::Number(4_000_000, 1), "4000000:1: this guest has none"),
        ] {
            let asked = volume(device, false, "/run/kata-containers/sandbox/data");
            let error = volumes.mount(asked, None, None).await.unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
