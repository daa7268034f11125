//! Devices that the sentry has itself. A device file of whatever file system is one of these or nothing: the host's are never opened.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Content, Dentry, File, FileKind, Flags, Inode, NewNode, device, device_parts};
use crate::error::Errno;

/// Bytes of `/dev/zero` that can be mapped.
const ZERO_SIZE: i64 = 1 << 46;

#[derive(Clone, Copy)]
enum Device {
    Null,
    Zero,
    Full,
    Random,
}

impl File for Device {
    fn read(&self, to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        match self {
            Self::Null => return Ok(0),
            Self::Zero | Self::Full => to.fill(0),
            Self::Random => crate::random::fill(to)?,
        }
        Ok(to.len())
    }

    fn write(&self, from: &[u8], _offset: u64) -> Result<usize, Errno> {
        match self {
            Self::Full => Err(Errno::ENOSPC),
            _ => Ok(from.len()),
        }
    }

    fn append(&self, from: &[u8]) -> Result<(usize, u64), Errno> {
        self.write(from, 0).map(|count| (count, 0))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn ignores_seek(&self) -> bool {
        true
    }

    fn host_file(&self) -> Result<(Arc<OwnedFd>, u64), Errno> {
        match self {
            Self::Zero => {
                let file = memfd_create(c"sentry-zero", MFdFlags::MFD_CLOEXEC)?;
                nix::unistd::ftruncate(&file, ZERO_SIZE)?;
                Ok((Arc::new(file), 0))
            }
            _ => Err(Errno::ENODEV),
        }
    }
}

/// Opens a character device.
///
/// # Errors
/// ENXIO where there is none of this number.
pub fn open(rdev: u64, flags: Flags) -> Result<Box<dyn File>, Errno> {
    Ok(Box::new(match device_parts(rdev) {
        (1, 3) => Device::Null,
        (1, 5) => Device::Zero,
        (1, 7) => Device::Full,
        (1, 8 | 9) => Device::Random,
        (5, 0) => return super::tty::open_controlling(flags),
        _ => return Err(Errno::ENXIO),
    }))
}

/// Fills bytes with randomness of the host.
///
/// # Errors
/// Of the host.
pub fn random(to: &mut [u8]) -> Result<(), Errno> {
    crate::random::fill(to)
}

/// Makes in a folder what a container finds in `/dev` (`config-linux.md` of the OCI runtime specification, "Default Devices").
///
/// # Errors
/// What the file system says.
pub fn populate(folder: &Arc<Dentry>) -> Result<(), Errno> {
    // What is there already stays.
    let make =
        |name: &[u8], content, mode| match folder.create(name, &NewNode { content, mode, uid: 0, gid: 0 }) {
            Ok(_) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno),
        };
    let devices: [(&[u8], u32, u32); 6] = [
        (b"null", 1, 3),
        (b"zero", 1, 5),
        (b"full", 1, 7),
        (b"random", 1, 8),
        (b"urandom", 1, 9),
        (b"tty", 5, 0),
    ];
    for (name, major, minor) in devices {
        make(name, Content::CharDevice(device(major, minor)), 0o666)?;
    }
    let links: [(&[u8], &[u8]); 5] = [
        (b"fd", b"/proc/self/fd"),
        (b"stdin", b"/proc/self/fd/0"),
        (b"stdout", b"/proc/self/fd/1"),
        (b"stderr", b"/proc/self/fd/2"),
        (b"ptmx", b"pts/ptmx"),
    ];
    for (name, target) in links {
        make(name, Content::Symlink(target), 0o777)?;
    }
    make(b"pts", Content::Folder, 0o755)?;
    make(b"shm", Content::Folder, 0o1777)
}

/// Whether a file is what an overlay takes for "not there": a character device of number 0.
pub(crate) fn is_whiteout(inode: &Arc<dyn Inode>) -> bool {
    inode.kind() == FileKind::CharDevice && inode.attributes().is_ok_and(|attributes| attributes.rdev == 0)
}
