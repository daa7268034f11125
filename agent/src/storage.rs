//! Storages: what the host asks to be mounted, by driver (`docs` of Kata: `Storage.driver`).
//!
//! Here are `blk`/`mmioblk` (a block device), `overlayfs`, `ephemeral` (memory), `local` (as large as what the pod may use) and, through
//! [`crate::image`], `image_guest_pull`. A block device with a read-only file system (EROFS, squashfs) that is a
//! container's root becomes the lower layer of an overlay whose upper layer is in memory: [`mount_rootfs`].
//!
//! A disk with the driver option `encryption_key=ephemeral` becomes an encrypted volume ([`crate::volume`]).
//!
//! A storage of a container is mounted in that container's bundle or below `sandbox/`, one of the sandbox below
//! `sandbox/` only, and no symbolic link is followed on the way: nothing that the host names can hide or alias the guest's
//! own folders, copied files, or another container's. What may lie there is the policy's business.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_cc_agent_protocol::agent::Storage;
use kata_cc_guest_api::volume::{Device, FLAGS, Volume};
use nix::mount::{MntFlags, umount2};
use thiserror::Error;

use crate::memory;
use crate::mounts;
use crate::paths;
use crate::volume::Volumes;

/// Kata's mark for "make upper and work folders yourself".
const OVERLAY_RW: &str = "io.katacontainers.fs-opt.overlay-rw";
/// Kata's driver option that names a folder to make before an overlay is mounted.
const OVERLAY_CREATE: &str = "io.katacontainers.volume.overlayfs.create_directory=";
/// Kata's driver option for a disk that is encrypted under a key of the guest's own.
const EPHEMERAL: &str = "encryption_key=ephemeral";
/// How long a block device may take to show a capacity (`agent.hotplug_timeout` is 3 s; emulation is slower).
const DEVICE_PATIENCE: Duration = Duration::from_secs(20);
/// Drivers of this module, for GetGuestDetails.
pub(crate) const DRIVERS: [&str; 6] =
    ["blk", "mmioblk", "overlayfs", "ephemeral", "local", "image_guest_pull"];

/// Why a storage was refused or failed.
#[derive(Debug, Error)]
pub(crate) enum StorageError {
    /// No such driver.
    #[error("storage driver {0:?} is not supported: use one of {DRIVERS:?}")]
    Driver(String),
    /// A mount point outside of where mounts may be.
    #[error("mount point {0:?} must be absolute, below {base}, and have no `..`", base = paths::BASE)]
    MountPoint(String),
    /// A mount point that is another's.
    #[error(
        "mount point {point:?} is not this storage's: a container's storages go to {base}/<container>/… or {base}/sandbox/…, the sandbox's to {base}/sandbox/…, an image to {base}/<container>/rootfs",
        base = paths::BASE
    )]
    NotOwn {
        /// What was given.
        point: String,
    },
    /// Two images for one container.
    #[error("a container has one image: {0:?} is the second")]
    SecondImage(String),
    /// An option that a policy would read otherwise.
    #[error("storage {driver}: {error}")]
    Option {
        /// The driver.
        driver: String,
        /// What is wrong.
        error: mounts::OptionError,
    },
    /// A source that is not what the driver takes.
    #[error("storage source {source_name:?} is not usable by driver {driver}: {why}")]
    Source {
        /// The driver.
        driver: String,
        /// The source.
        source_name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The device never showed up or stayed empty.
    #[error("block device {device} has no capacity after {seconds} s: {seen}")]
    Device {
        /// The device.
        device: String,
        /// How long it was awaited.
        seconds: u64,
        /// What was found instead.
        seen: String,
    },
    /// An encrypted volume failed.
    #[error("storage {driver} at {mount_point}: {reason}")]
    Volume {
        /// The driver.
        driver: String,
        /// Where.
        mount_point: String,
        /// What the volume says.
        reason: String,
    },
    /// A system call failed.
    #[error("{what} for storage {driver} at {mount_point}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The driver.
        driver: String,
        /// Where.
        mount_point: String,
        /// The system's reason.
        source: io::Error,
    },
}

impl StorageError {
    fn io(storage: &Storage, what: &'static str) -> impl Fn(io::Error) -> Self {
        let (driver, mount_point) = (storage.driver.clone(), storage.mount_point.clone());
        move |source| Self::Io { what, driver: driver.clone(), mount_point: mount_point.clone(), source }
    }
}

/// Checks where a storage is to be mounted.
pub(crate) fn check_mount_point(path: &str) -> Result<PathBuf, StorageError> {
    let below = Path::new(path).strip_prefix(paths::BASE);
    let inside = below.is_ok_and(|rest| {
        rest.components().count() > 0
            && rest.components().all(|c| matches!(c, std::path::Component::Normal(_)))
            // One spelling a path: users of a mount point are counted by it.
            && Path::new(paths::BASE).join(rest).components().as_path().as_os_str() == path
    });
    if inside && !path.contains('\0') {
        return Ok(PathBuf::from(path));
    }
    Err(StorageError::MountPoint(path.to_owned()))
}

/// Checks that a mount point is one of `container`'s own, or of the sandbox's.
pub(crate) fn check_owner(path: &str, container: Option<&str>) -> Result<PathBuf, StorageError> {
    let target = check_mount_point(path)?;
    let refuse = || StorageError::NotOwn { point: path.to_owned() };
    let rest = target.strip_prefix(paths::BASE).map_err(|_| refuse())?;
    let mut parts = rest.components().map(|c| c.as_os_str().to_string_lossy());
    let (first, second) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let own = container.is_some_and(|id| first == id && id != "sandbox");
    // Names with a dot in front and the sandbox's files are the agent's.
    let taken = second.is_empty() || second.starts_with('.') || target == Path::new(paths::RESOLV_CONF);
    if (own || first == "sandbox") && !taken {
        return Ok(target);
    }
    Err(refuse())
}

/// Checks the place of a container's image: its bundle's root, and only one.
pub(crate) fn check_image(storage: &Storage, bundle: &Path, earlier: bool) -> Result<PathBuf, StorageError> {
    let target = check_mount_point(&storage.mount_point)?;
    if target != bundle.join("rootfs") {
        return Err(StorageError::NotOwn { point: storage.mount_point.clone() });
    }
    if earlier {
        return Err(StorageError::SecondImage(storage.source.clone()));
    }
    Ok(target)
}

/// Mounts on `target`, which is made, without following a link on the way to it.
pub(crate) fn mount_on<S: AsRef<str>>(
    source: &str,
    target: &Path,
    fstype: &str,
    options: &[S],
) -> io::Result<()> {
    let point = mounts::make_point(Path::new(paths::BASE), target)?;
    mounts::mount_at(source, &mounts::by_descriptor(&point), fstype, options)
}

/// Mounts one storage; `rootfs` is the container's root path and `container` its name, when it is a container's storage.
pub(crate) async fn mount(
    storage: &Storage,
    rootfs: Option<&str>,
    container: Option<&str>,
    volumes: &Volumes,
) -> Result<(), StorageError> {
    let target = check_owner(&storage.mount_point, container)?;
    mounts::check_options(&storage.driver, &storage.options)
        .map_err(|error| StorageError::Option { driver: storage.driver.clone(), error })?;
    match storage.driver.as_str() {
        "blk" | "mmioblk" => {
            let encrypted = is_encrypted(storage)?;
            let device = block_device(&storage.driver, &storage.source).await?;
            if encrypted {
                encrypt(storage, &device, container, volumes).await?;
                let owned = own_by_group(storage, &target);
                if owned.is_err() {
                    // Nobody counts its users yet.
                    volumes.release(&storage.mount_point).await;
                }
                return owned;
            }
            let is_root = rootfs == Some(storage.mount_point.as_str());
            let marked = storage.options.iter().any(|o| o == OVERLAY_RW);
            let readonly = matches!(storage.fstype.as_str(), "erofs" | "squashfs");
            if marked || is_root && readonly {
                return mount_rootfs(storage, &device, &target);
            }
            mount_on(&device, &target, &storage.fstype, &storage.options)
                .map_err(StorageError::io(storage, "mount the block device"))?;
        }
        "overlayfs" => overlay(storage, &target)?,
        "ephemeral" => {
            let fstype = if storage.fstype.is_empty() { "tmpfs" } else { &storage.fstype };
            if !matches!(fstype, "tmpfs" | "hugetlbfs") {
                return Err(StorageError::Source {
                    driver: storage.driver.clone(),
                    source_name: storage.fstype.clone(),
                    why: "ephemeral storage is tmpfs or hugetlbfs",
                });
            }
            let options = storage.options.iter().filter(|option| !option.starts_with("fsgid="));
            let options = match fstype {
                "tmpfs" => memory::bounded(options, memory::with_swap()),
                _ => options.cloned().collect(),
            };
            mount_on("tmpfs", &target, fstype, &options)
                .map_err(StorageError::io(storage, "mount memory"))?;
        }
        "local" => {
            let mode = storage.options.iter().filter(|option| option.starts_with("mode="));
            let mut options = vec!["mode=0777".to_owned()];
            options.extend(memory::bounded(mode, memory::with_swap()));
            mount_on("tmpfs", &target, "tmpfs", &options)
                .map_err(StorageError::io(storage, "make the folder"))?;
        }
        other => return Err(StorageError::Driver(other.to_owned())),
    }
    own_by_group(storage, &target)
}

/// Whether the host asks for a disk to be encrypted by the guest. What it asks for and is not known must not end in plain text.
fn is_encrypted(storage: &Storage) -> Result<bool, StorageError> {
    let asked: Vec<&String> =
        storage.driver_options.iter().filter(|option| option.starts_with("encryption_key=")).collect();
    let refuse = |source_name: &str, why| {
        let (driver, source_name) = (storage.driver.clone(), source_name.to_owned());
        Err(StorageError::Source { driver, source_name, why })
    };
    if let Some(other) = asked.iter().find(|option| **option != EPHEMERAL) {
        return refuse(other, "encryption_key=ephemeral is what there is");
    }
    if !asked.is_empty() && storage.fstype != "ext4" {
        return refuse(&storage.fstype, "an encrypted disk gets ext4");
    }
    Ok(!asked.is_empty())
}

/// Makes a disk into a volume whose key nobody keeps.
async fn encrypt(
    storage: &Storage,
    device: &str,
    container: Option<&str>,
    volumes: &Volumes,
) -> Result<(), StorageError> {
    let failed = |reason: String| {
        let (driver, mount_point) = (storage.driver.clone(), storage.mount_point.clone());
        StorageError::Volume { driver, mount_point, reason }
    };
    let flags: Vec<String> = storage.options.iter().filter(|o| !o.starts_with("fsgid=")).cloned().collect();
    if let Some(other) = flags.iter().find(|flag| !FLAGS.contains(&flag.as_str())) {
        return Err(failed(format!("mount flag {other:?} is not taken: known are {FLAGS:?}")));
    }
    let volume = Volume {
        device: Device::Path(device.into()),
        empty: true,
        as_device: false,
        mapper_name: None,
        key: None,
        flags,
        mount_point: storage.mount_point.clone(),
    };
    volumes.mount(volume, None, container).await.map_err(|error| failed(error.to_string()))
}

/// `fs_group` and the option `fsgid=`: the folder belongs to the group and passes it on.
fn own_by_group(storage: &Storage, target: &Path) -> Result<(), StorageError> {
    let option = storage.options.iter().find_map(|o| o.strip_prefix("fsgid=")?.parse().ok());
    let Some(gid) = storage.fs_group.as_ref().map(|g| g.group_id).or(option) else {
        return Ok(());
    };
    let set = || {
        // Opened anew: what was mounted on it is meant.
        let opened = mounts::make_point(Path::new(paths::BASE), target)?;
        let target = mounts::by_descriptor(&opened);
        chown(&target, None, Some(gid))?;
        let mode = fs::metadata(&target)?.permissions().mode();
        fs::set_permissions(&target, fs::Permissions::from_mode(mode | 0o2770))
    };
    set().map_err(StorageError::io(storage, "give it to the group"))
}

/// Waits for the device to have a capacity: a spare slot is empty until the host attaches a file.
pub(crate) async fn block_device(driver: &str, device: &str) -> Result<String, StorageError> {
    let refuse =
        |why| StorageError::Source { driver: driver.to_owned(), source_name: device.to_owned(), why };
    let name =
        device.strip_prefix("/dev/").ok_or_else(|| refuse("only /dev/… is taken: this VM has no PCI"))?;
    let plain = name.starts_with("vd")
        && (3..=8).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if !plain {
        return Err(refuse("only virtio disks (/dev/vdX) are taken"));
    }
    let start = std::time::Instant::now();
    loop {
        let node = fs::metadata(device).is_ok_and(|m| m.file_type().is_block_device());
        let size = fs::read_to_string(format!("/sys/class/block/{name}/size")).unwrap_or_default();
        let sectors: u64 = size.trim().parse().unwrap_or(0);
        if node && sectors > 0 {
            return Ok(device.to_owned());
        }
        if start.elapsed() > DEVICE_PATIENCE {
            return Err(StorageError::Device {
                device: device.to_owned(),
                seconds: DEVICE_PATIENCE.as_secs(),
                seen: format!("node present: {node}, sectors: {sectors}"),
            });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A container's root from a read-only device: the device below, memory above.
fn mount_rootfs(storage: &Storage, device: &str, target: &Path) -> Result<(), StorageError> {
    let base = target.parent().unwrap_or(target).join(".rootfs");
    let [lower, upper, work] = ["lower", "upper", "work"].map(|n| base.join(n));
    let mut options: Vec<String> = storage.options.iter().filter(|o| *o != OVERLAY_RW).cloned().collect();
    options.push("ro".to_owned());
    let all = || -> io::Result<()> {
        fs::create_dir_all(&base)?;
        // Its own mount: the upper layer of one container must not be seen by, nor fill /run for, another.
        mounts::mount_at("tmpfs", &base, "tmpfs", &["mode=0755", "size=90%"])?;
        mounts::mount_at(device, &lower, &storage.fstype, &options)?;
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let layers =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount_on("overlay", target, "overlay", &[layers])
    };
    all().map_err(StorageError::io(storage, "mount the root file system"))
}

fn overlay(storage: &Storage, target: &Path) -> Result<(), StorageError> {
    let make = |path: &str| -> Result<(), StorageError> {
        fs::create_dir_all(check_mount_point(path)?).map_err(StorageError::io(storage, "make a layer folder"))
    };
    for option in &storage.driver_options {
        if let Some(path) = option.strip_prefix(OVERLAY_CREATE) {
            make(path)?;
        }
    }
    let mut options = storage.options.clone();
    for option in &options {
        let Some((name, folders)) = option.split_once('=') else { continue };
        if !matches!(name, "lowerdir" | "lowerdir+" | "datadir+" | "upperdir" | "workdir") {
            continue;
        }
        for folder in folders.split(':').filter(|f| !f.is_empty()) {
            check_mount_point(folder)?;
        }
    }
    if options.iter().any(|o| o == OVERLAY_RW) {
        let base = target.parent().unwrap_or(target);
        let [upper, work] = ["upper", "work"].map(|n| base.join(n).display().to_string());
        make(&upper)?;
        make(&work)?;
        options.push(format!("upperdir={upper},workdir={work}"));
    }
    mount_on("overlay", target, "overlay", &options).map_err(StorageError::io(storage, "mount the overlay"))
}

/// Unmounts what [`mount`] made. What cannot be unmounted now goes when its last user does.
pub(crate) fn unmount(mount_point: &str) {
    let target = Path::new(mount_point);
    let detach = |path: &Path| {
        if let Err(e) = umount2(path, MntFlags::MNT_DETACH)
            && e != nix::errno::Errno::EINVAL
            && e != nix::errno::Errno::ENOENT
        {
            tracing::warn!(path = %path.display(), error = %e, "unmount failed");
        }
    };
    detach(target);
    let base = target.parent().unwrap_or(target).join(".rootfs");
    if base.is_dir() {
        detach(&base.join("lower"));
        detach(&base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_stay_below_the_base() {
        for bad in [
            "",
            "/etc",
            "/run/kata-containers",
            "/run/kata-containers/../x",
            "/run/kata-containers/a/../../x",
            "run/kata-containers/a",
            "/run/kata-containersx/a",
            "/run/kata-containers//a",
            "/run/kata-containers/a/",
            "/run/kata-containers/./a",
        ] {
            assert!(check_mount_point(bad).is_err(), "{bad}");
        }
        check_mount_point("/run/kata-containers/c1/rootfs").unwrap();
    }

    #[test]
    fn a_storage_goes_to_a_place_of_its_own() {
        let base = "/run/kata-containers";
        for (point, container) in [
            ("shared/containers/p", Some("c1")),
            ("image/c1", Some("c1")),
            ("c2/rootfs", Some("c1")),
            ("c2/.pause", Some("c1")),
            ("c1/.pause", Some("c1")),
            ("c1", Some("c1")),
            ("sandbox", Some("c1")),
            ("sandbox/resolv.conf", Some("c1")),
            ("c1/rootfs", None),
            ("shared/containers/p", None),
        ] {
            let point = format!("{base}/{point}");
            let seen = check_owner(&point, container);
            assert!(matches!(seen, Err(StorageError::NotOwn { .. })), "{point} {seen:?}");
        }
        check_owner("/run/kata-containers/c1/rootfs", Some("c1")).unwrap();
        check_owner("/run/kata-containers/sandbox/shm", None).unwrap();
    }

    #[test]
    fn an_image_goes_to_the_bundles_root_once() {
        let bundle = Path::new("/run/kata-containers/c1");
        let mut storage = Storage::new();
        for bad in
            ["/proc", "/etc", "/run/kata-containers/c2/rootfs", "/run/kata-containers/c1/rootfs/bin", ""]
        {
            storage.mount_point = bad.to_owned();
            assert!(check_image(&storage, bundle, false).is_err(), "{bad}");
        }
        storage.mount_point = "/run/kata-containers/c1/rootfs".to_owned();
        check_image(&storage, bundle, false).unwrap();
        assert!(matches!(check_image(&storage, bundle, true), Err(StorageError::SecondImage(_))));
    }

    #[tokio::test]
    async fn odd_sources_and_drivers_are_refused() {
        let volumes = Volumes::default();
        let mut storage = Storage::new();
        storage.mount_point = "/run/kata-containers/c1/rootfs".to_owned();
        storage.driver = "nfs".to_owned();
        let c1 = Some("c1");
        assert!(matches!(mount(&storage, None, c1, &volumes).await, Err(StorageError::Driver(_))));
        storage.driver = "mmioblk".to_owned();
        for source in ["/dev/../etc/passwd", "/dev/mem", "/dev/vd", "02/00/01", "/dev/vda/../x"] {
            storage.source = source.to_owned();
            let error = mount(&storage, None, c1, &volumes).await.unwrap_err();
            assert!(matches!(error, StorageError::Source { .. }), "{source}: {error}");
        }
        // Never in plain text, and before the device is looked for.
        for (option, fstype) in [("encryption_key=kbs:///a/b/c", "ext4"), (EPHEMERAL, "xfs")] {
            storage.driver_options = vec![option.to_owned()];
            storage.fstype = fstype.to_owned();
            let error = mount(&storage, None, c1, &volumes).await.unwrap_err();
            assert!(error.to_string().contains("encrypt"), "{error}");
        }
        storage.driver_options.clear();
        storage.driver = "ephemeral".to_owned();
        storage.fstype = "proc".to_owned();
        assert!(mount(&storage, None, c1, &volumes).await.is_err());
        (storage.driver, storage.fstype) = ("ephemeral".to_owned(), "tmpfs".to_owned());
        storage.options = vec!["ro,bind".to_owned()];
        assert!(matches!(mount(&storage, None, c1, &volumes).await, Err(StorageError::Option { .. })));
        storage.driver = "overlayfs".to_owned();
        storage.options = vec!["lowerdir=/etc:/run/kata-containers/c1/l".to_owned()];
        assert!(matches!(mount(&storage, None, c1, &volumes).await, Err(StorageError::MountPoint(_))));
    }
}
