//! Open regular files of the host: nothing that is done to their contents concerns the gofer.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, fdatasync, lseek};

use super::node::Node;
use crate::error::Errno;
use crate::events;
use crate::vfs::File;
use crate::vfs::sync::lock;

/// An open regular file.
pub(super) struct Opened {
    node: Arc<Node>,
    fd: Arc<OwnedFd>,
    writes: bool,
    /// What is in it, if it is small and never changes.
    small: OnceLock<Option<Arc<Vec<u8>>>>,
}

impl Opened {
    pub(super) fn new(node: &Arc<Node>, fd: Arc<OwnedFd>, writes: bool) -> Self {
        Self { node: Arc::clone(node), fd, writes, small: OnceLock::new() }
    }

    fn small(&self) -> Option<&Arc<Vec<u8>>> {
        self.small.get_or_init(|| self.node.small_contents(&self.fd)).as_ref()
    }
}

fn position(offset: u64) -> Result<i64, Errno> {
    i64::try_from(offset).map_err(|_| Errno::EINVAL)
}

impl File for Opened {
    fn read(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let offset = position(offset)?;
        if let Some(contents) = self.small() {
            let left =
                usize::try_from(offset).ok().and_then(|offset| contents.get(offset..)).unwrap_or_default();
            let count = left.len().min(to.len());
            to[..count].copy_from_slice(&left[..count]);
            return Ok(count);
        }
        events::wake_put_off();
        pread(&self.fd, to, offset)
    }

    fn write(&self, from: &[u8], offset: u64) -> Result<usize, Errno> {
        events::wake_put_off();
        pwrite(&self.fd, from, position(offset)?)
    }

    /// One at a time in this sandbox. Somebody else who appends to the same file of a shared tree may be overwritten: a descriptor that
    /// appends could not be written elsewhere, and its flag could not be taken back.
    fn append(&self, from: &[u8]) -> Result<(usize, u64), Errno> {
        events::wake_put_off();
        let _one_at_a_time = lock(&self.node.append);
        let end = self.node.see_open(&self.fd)?.size;
        let count = pwrite(&self.fd, from, position(end)?)?;
        Ok((count, end.saturating_add(count as u64)))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek_data(&self, offset: u64, hole: bool, _size: u64) -> Result<u64, Errno> {
        let whence = if hole { Whence::SeekHole } else { Whence::SeekData };
        let offset = i64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        u64::try_from(lseek(self.fd.as_fd(), offset, whence)?).map_err(|_| Errno::EOVERFLOW)
    }

    fn host_file(&self) -> Result<(Arc<OwnedFd>, u64), Errno> {
        Ok((Arc::clone(&self.fd), 0))
    }

    fn readable_file(&self) -> Option<Arc<OwnedFd>> {
        (!self.writes).then(|| Arc::clone(&self.fd))
    }

    fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<(), Errno> {
        let (offset, length) = (position(offset)?, position(length)?);
        fallocate(&self.fd, FallocateFlags::from_bits_retain(mode), offset, length)
    }

    fn sync(&self) -> Result<(), Errno> {
        if self.node.shared.writable { fdatasync(&self.fd) } else { Ok(()) }
    }
}

impl Drop for Opened {
    /// What is known of the file from now on is what it was at last.
    fn drop(&mut self) {
        if self.writes {
            let _ = self.node.see_open(&self.fd);
        }
    }
}
