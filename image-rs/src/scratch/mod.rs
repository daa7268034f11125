//! Encrypted scratch space of the guest.
//!
//! `docs/design.md`, "Scratch space": a tmpfs whose pages go out to swap on a dm-crypt device over the scratch disk. The host
//! sees ciphertext of swapped pages only; file names, sizes and metadata never leave memory in any form, and no file system
//! driver parses what the host wrote. The key is made here, handed to the kernel, and wiped; nothing can mount
//! the disk again. Without a disk the tmpfs lives in memory alone.
//!
//! aes-xts-plain64 with 4096-byte sectors hides content but does not detect a host that changes or replays sectors: swapped pages
//! then come back as noise or as what they once were. AEAD with dm-integrity would detect changes at about twice the
//! writes; it is left for later.

#[allow(unsafe_code)]
mod sys;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use kata_cc_volumes::dm::{MapError, MappedDevice, Target};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};
use zeroize::{Zeroize as _, Zeroizing};

const PAGE: usize = 4096;
/// A disk smaller than this is the empty slot of a guest without scratch disk.
const SMALLEST: u64 = 1 << 20;
// Not below /run: the guest mounts that without device files.
const NODE: &str = "/dev/kata-cc-scratch";
const NAME: &str = "kata-cc-scratch";

/// Why there is no scratch space.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// A step failed.
    #[error("scratch space: {doing} failed: {source}")]
    Step {
        /// Which.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk is not mapped.
    #[error("scratch space: {0}")]
    Map(#[from] MapError),
    /// The disk is no block device.
    #[error("scratch space: {0} is no block device")]
    NoDisk(PathBuf),
}

fn step(doing: &'static str) -> impl Fn(io::Error) -> ScratchError {
    move |source| ScratchError::Step { doing, source }
}

fn errno(doing: &'static str) -> impl Fn(nix::errno::Errno) -> ScratchError {
    move |errno| ScratchError::Step { doing, source: errno.into() }
}

/// Scratch space in use.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    swap: Option<Swap>,
}

#[derive(Debug)]
struct Swap {
    // Removed when this is dropped; while swap is on, the kernel refuses, and the space lives as long as the guest.
    crypt: MappedDevice,
    node: PathBuf,
    active: bool,
}

impl Scratch {
    /// Mounts a tmpfs of `size` bytes on `tmpfs_dir` (made where missing), with encrypted swap on `disk` where there is one.
    ///
    /// # Errors
    /// When a step fails; what was set up before it is taken down again.
    pub fn setup(disk: Option<&Path>, tmpfs_dir: &Path, size: u64) -> Result<Self, ScratchError> {
        let swap = match disk {
            Some(disk) => Swap::setup(disk)?,
            None => None,
        };
        match mount_tmpfs(tmpfs_dir, size) {
            Ok(()) => Ok(Self { dir: tmpfs_dir.to_owned(), swap }),
            Err(error) => {
                // The first failure is the one to tell.
                let _ = swap.map_or(Ok(()), Swap::teardown);
                Err(error)
            }
        }
    }

    /// Whether pages can go out to the encrypted disk.
    pub fn has_disk(&self) -> bool {
        self.swap.is_some()
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes everything down.
    ///
    /// # Errors
    /// When the tmpfs is still in use, or there is not the memory to take its pages back.
    pub fn teardown(mut self) -> Result<(), ScratchError> {
        umount2(&self.dir, MntFlags::empty()).map_err(errno("unmounting the tmpfs"))?;
        match self.swap.take() {
            Some(swap) => swap.teardown(),
            None => Ok(()),
        }
    }
}

fn mount_tmpfs(dir: &Path, size: u64) -> Result<(), ScratchError> {
    std::fs::create_dir_all(dir).map_err(step("making the mount point"))?;
    let options = format!("size={size},mode=0755");
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .map_err(errno("mounting the tmpfs"))
}

impl Swap {
    fn setup(disk: &Path) -> Result<Option<Self>, ScratchError> {
        let size = match File::open(disk) {
            Ok(mut file) => {
                let kind = file.metadata().map_err(step("looking at the disk"))?.file_type();
                if !kind.is_block_device() {
                    return Err(ScratchError::NoDisk(disk.to_owned()));
                }
                file.seek(SeekFrom::End(0)).map_err(step("reading the disk's size"))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(step("opening the disk")(error)),
        };
        if size < SMALLEST {
            return Ok(None);
        }
        let device = std::fs::metadata(disk).map_err(step("looking at the disk"))?.rdev();
        let pages = size / PAGE as u64;
        let crypt = MappedDevice::new(
            Target::Crypt,
            NAME,
            pages * 8,
            &table(pages * 8, (major(device), minor(device)))?,
        )?;
        let mut swap = Self { crypt, node: NODE.into(), active: false };
        let (major, minor) = swap.crypt.device();
        let _ = std::fs::remove_file(&swap.node);
        mknod(&swap.node, SFlag::S_IFBLK, Mode::from_bits_truncate(0o600), makedev(major, minor))
            .map_err(errno("making the crypt device's node"))?;
        let mut file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(&swap.node)
            .map_err(step("opening the crypt device"))?;
        file.write_all(&header(pages)?).map_err(step("writing the swap header"))?;
        file.sync_all().map_err(step("writing the swap header"))?;
        drop(file);
        sys::swap_on(&swap.node).map_err(step("starting the swap"))?;
        swap.active = true;
        Ok(Some(swap))
    }

    fn teardown(mut self) -> Result<(), ScratchError> {
        sys::swap_off(&self.node).map_err(step("stopping the swap"))?;
        self.active = false;
        Ok(())
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if !self.active {
            let _ = std::fs::remove_file(&self.node);
        }
    }
}

/// The crypt target's parameters, with a fresh key.
fn table(sectors: u64, (major, minor): (u64, u64)) -> Result<Zeroizing<Vec<u8>>, ScratchError> {
    let mut key = Zeroizing::new([0u8; 64]);
    let random = |_| step("making a key")(io::Error::other("no random bytes"));
    aws_lc_rs::rand::fill(key.as_mut()).map_err(random)?;
    debug_assert!(sectors > 0);
    let mut hex_key = Zeroizing::new([0u8; 128]);
    hex::encode_to_slice(key.as_ref(), hex_key.as_mut())
        .map_err(|e| step("making a key")(io::Error::other(e)))?;
    key.zeroize();
    let tail = format!(" 0 {major}:{minor} 0 1 sector_size:4096");
    let mut text = Zeroizing::new(Vec::with_capacity(256));
    text.extend_from_slice(b"aes-xts-plain64 ");
    text.extend_from_slice(hex_key.as_ref());
    text.extend_from_slice(tail.as_bytes());
    Ok(text)
}

/// First page of a swap area (`union swap_header` in the kernel's `include/linux/swap.h`).
fn header(pages: u64) -> Result<[u8; PAGE], ScratchError> {
    let last = u32::try_from(pages.saturating_sub(1))
        .map_err(|e| step("writing the swap header")(io::Error::other(e)))?;
    let mut page = [0; PAGE];
    page[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
    page[1028..1032].copy_from_slice(&last.to_ne_bytes());
    page[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    Ok(page)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn swap_header_has_version_size_and_signature() {
        let page = header(256).unwrap();
        assert_eq!(page[1024..1036], [1, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&page[4086..], b"SWAPSPACE2");
        assert!(header(1 << 33).is_err());
    }

    #[test]
    fn every_table_has_a_key_of_its_own() {
        let (a, b) = (table(2048, (254, 16)).unwrap(), table(2048, (254, 16)).unwrap());
        let text = String::from_utf8(a.to_vec()).unwrap();
        assert!(
            text.starts_with("aes-xts-plain64 ") && text.ends_with(" 0 254:16 0 1 sector_size:4096"),
            "{text}"
        );
        assert_eq!(text.split(' ').nth(1).unwrap().len(), 128);
        assert_ne!(*a, *b);
    }

    #[test]
    fn refuses_what_is_no_disk() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Swap::setup(file.path()).unwrap_err(), ScratchError::NoDisk(_)));
        assert!(Swap::setup(Path::new("/nonexistent")).unwrap().is_none());
    }
}
