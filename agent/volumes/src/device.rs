//! A volume on a block device: found, opened or made, mapped, and given a file system.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::dm::{MapError, MappedDevice, Target};
use crate::{ext4, luks2, random};

const DEV: &str = "/dev";
/// Where the nodes of mapped devices lie.
const MAPPER: &str = "/dev/mapper";

/// Why there is no volume; the device is told by whoever asked for it.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// There is no such device, or it is not to be had.
    #[error("{0}")]
    Device(String),
    /// A step failed.
    #[error("{what} failed: {source}")]
    Io {
        /// What was done.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The header, or the key.
    #[error(transparent)]
    Luks2(#[from] luks2::Luks2Error),
    /// The file system was not made.
    #[error("making a file system failed: {0}")]
    Ext4(#[from] ext4::Ext4Error),
    /// The device mapper.
    #[error(transparent)]
    Map(#[from] MapError),
}

fn step(what: &'static str) -> impl Fn(io::Error) -> DeviceError {
    move |source| DeviceError::Io { what, source }
}

fn refuse(why: impl ToString) -> DeviceError {
    DeviceError::Device(why.to_string())
}

/// A block device of this machine.
#[derive(Debug)]
pub struct BlockDevice {
    path: PathBuf,
    numbers: (u64, u64),
}

impl BlockDevice {
    /// By its path.
    ///
    /// # Errors
    /// When there is none.
    pub fn at(path: &Path) -> Result<Self, DeviceError> {
        let seen = fs::metadata(path).map_err(refuse)?;
        if !seen.file_type().is_block_device() {
            return Err(refuse("it is no block device"));
        }
        Ok(Self { path: path.to_owned(), numbers: (major(seen.rdev()), minor(seen.rdev())) })
    }

    /// By its numbers.
    ///
    /// # Errors
    /// When there is none.
    pub fn numbered(major: u32, minor: u32) -> Result<Self, DeviceError> {
        let uevent = format!("/sys/dev/block/{major}:{minor}/uevent");
        let text = fs::read_to_string(uevent).map_err(|_| refuse("this guest has none"))?;
        let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        let found =
            Self::at(&Path::new(DEV).join(name.ok_or_else(|| refuse("the kernel gives it no name"))?))?;
        if found.numbers != (u64::from(major), u64::from(minor)) {
            return Err(refuse(format!("{} is another device", found.path.display())));
        }
        Ok(found)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that it holds.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn size(&self) -> Result<u64, DeviceError> {
        let mut file = File::open(&self.path).map_err(refuse)?;
        file.seek(SeekFrom::End(0)).map_err(refuse)
    }

    /// Maps what is on it for reading: a tree of hashes, which `root_hash` vouches for, stands after its first `data_blocks` blocks
    /// of 4 KiB. A block that it does not vouch for cannot be read.
    ///
    /// Source: Linux, `Documentation/admin-guide/device-mapper/verity.rst`: version 1, SHA-256, no salt.
    ///
    /// # Errors
    /// When the device is in use or shorter, or a step fails.
    pub fn map_verified(&self, data_blocks: u64, root_hash: &[u8; 32]) -> Result<Mapped, DeviceError> {
        let name = format!("kata-cc-sealed-{}", hex::encode(*random::<8>()?));
        let (major, minor) = self.numbers;
        let device = format!("{major}:{minor}");
        let parameters = format!(
            "1 {device} {device} 4096 4096 {data_blocks} {data_blocks} sha256 {} -",
            hex::encode(root_hash)
        );
        Mapped::of(MappedDevice::new(Target::Verity, &name, data_blocks * 8, parameters.as_bytes())?)
    }

    /// Maps the volume that is on it by `key`, or, with `make`, a new one: what was on it is lost then, and without a key the new one is
    /// never opened again. The name of the mapped device is a random one where none is given.
    ///
    /// # Errors
    /// When the device is in use, or one of the steps fails; what was mapped is taken down again.
    pub fn map(
        &self,
        make: bool,
        key: Option<Zeroizing<Vec<u8>>>,
        name: Option<&str>,
    ) -> Result<Mapped, DeviceError> {
        // Exclusive: a disk that is mounted, or that the scratch space lies on, is not to be had.
        let opened = File::options().read(true).write(make).custom_flags(libc::O_EXCL).open(&self.path);
        let mut file = opened.map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => refuse("it is in use by the guest: mounted, or mapped"),
            _ => refuse(error),
        })?;
        let size = file.seek(SeekFrom::End(0)).map_err(refuse)?;
        if size == 0 {
            return Err(refuse("it has no capacity: nothing is attached to it"));
        }
        let limits = luks2::Limits::within(memory_available());
        let volume = if make {
            let key = key.map_or_else(|| random::<64>().map(|key| Zeroizing::new(key.to_vec())), Ok)?;
            let made = luks2::format(&mut file, size, &key, limits)?;
            file.sync_all().map_err(step("writing the header"))?;
            made
        } else {
            luks2::open(&mut file, size, &key.unwrap_or_default(), limits)?
        };
        // The kernel opens it again, for itself.
        drop(file);
        Mapped::new(&volume, self.numbers, name)
    }
}

/// Bytes of memory that a program may have without others being pushed out.
fn memory_available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// A mapped volume with a node of its own. Dropped, both are removed, if nobody uses them.
#[derive(Debug)]
pub struct Mapped {
    node: PathBuf,
    device: MappedDevice,
}

impl Mapped {
    fn new(volume: &luks2::Volume, below: (u64, u64), name: Option<&str>) -> Result<Self, DeviceError> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => format!("kata-cc-volume-{}", hex::encode(*random::<8>()?)),
        };
        let parameters = volume.crypt_parameters(below);
        Self::of(MappedDevice::new(Target::Crypt, &name, volume.sectors(), &parameters)?)
    }

    /// A device and its node.
    pub(crate) fn of(device: MappedDevice) -> Result<Self, DeviceError> {
        let mapped = Self { node: Path::new(MAPPER).join(device.name()), device };
        // The device is new: what is there under its name is of one that is gone.
        let _ = fs::remove_file(&mapped.node);
        mapped.make_node(&mapped.node)?;
        Ok(mapped)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// Makes another node of it, where nothing may be yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_node(&self, path: &Path) -> Result<(), DeviceError> {
        let (major, minor) = self.device.device();
        let made = mknod(path, SFlag::S_IFBLK, Mode::from_bits_truncate(0o600), makedev(major, minor));
        made.map_err(|errno| step("making the device's node")(errno.into()))
    }

    /// Makes an empty ext4 file system on it.
    ///
    /// # Errors
    /// When the device is too small or too large, in use, or fails.
    pub fn make_file_system(&self) -> Result<(), DeviceError> {
        let opened = File::options().read(true).write(true).custom_flags(libc::O_EXCL).open(&self.node);
        let mut file = opened.map_err(step("opening the mapped device"))?;
        let size = file.seek(SeekFrom::End(0)).map_err(step("opening the mapped device"))?;
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now = u32::try_from(since.as_secs()).unwrap_or(u32::MAX);
        ext4::make(&mut file, size, ext4::Identity { uuid: *random()?, hash_seed: *random()?, now })?;
        file.sync_all().map_err(step("writing the file system"))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_device_is_refused() {
        let reason = |seen: Result<BlockDevice, DeviceError>| seen.unwrap_err().to_string();
        assert!(reason(BlockDevice::at(Path::new("/dev/null"))).contains("no block device"));
        assert!(reason(BlockDevice::at(Path::new("/dev/kata-cc-none"))).contains("No such file"));
        assert!(reason(BlockDevice::numbered(4_000_000, 1)).contains("has none"));
    }

    #[test]
    fn a_guest_knows_its_memory() {
        assert!(memory_available() > 1 << 20);
    }
}
