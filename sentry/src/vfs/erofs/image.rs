//! Reading an image by one descriptor.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::uio::pread;

use super::layout::{
    EXTENDED, ImageError, Inode, Run, SUPERBLOCK, SUPERBLOCK_SIZE, Superblock, XATTR_ENTRY, Xattr, chunk,
    entries, inode, inode_size, superblock, xattr, xattr_length, xattrs,
};
use crate::error::Errno;
use crate::vfs::{DirEntry, FileKind};

/// Largest folder: more names than anybody lists.
const FOLDER_MAX: u64 = 32 << 20;
/// Longest target of a link.
const TARGET_MAX: u64 = 4095;

/// An image that is open.
pub(super) struct Image {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) superblock: Superblock,
    size: u64,
}

impl Image {
    pub(super) fn open(fd: OwnedFd) -> Result<Self, ImageError> {
        let size = nix::sys::stat::fstat(&fd).map_err(ImageError::Read)?.st_size;
        let size = u64::try_from(size).unwrap_or(0);
        let mut bytes = [0; SUPERBLOCK_SIZE];
        read_exact(&fd, &mut bytes, SUPERBLOCK).map_err(ImageError::Read)?;
        let superblock = superblock(&bytes)?;
        let told = u64::from(superblock.blocks) << superblock.block_bits;
        if told > size {
            return Err(ImageError::Short { seen: size, told });
        }
        Ok(Self { fd: Arc::new(fd), superblock, size })
    }

    fn read_exact(&self, to: &mut [u8], at: u64) -> Result<(), Errno> {
        let end = at.checked_add(to.len() as u64).filter(|end| *end <= self.size);
        if end.is_none() { Err(Errno::EUCLEAN) } else { read_exact(&self.fd, to, at) }
    }

    pub(super) fn inode(&self, number: u64) -> Result<Inode, Errno> {
        let at = self.superblock.inode_at(number)?;
        let mut bytes = [0; EXTENDED];
        let (first, rest) = bytes.split_at_mut(EXTENDED / 2);
        self.read_exact(first, at)?;
        let format = u16::from_le_bytes([first[0], first[1]]);
        if inode_size(format) == EXTENDED {
            self.read_exact(rest, at.saturating_add(first.len() as u64))?;
        }
        inode(bytes.get(..inode_size(format)).unwrap_or(&bytes), at, &self.superblock)
    }

    /// Where a file's byte lies with those that follow it.
    pub(super) fn run(&self, of: &Inode, offset: u64) -> Result<Run, Errno> {
        let run = match of.run(offset, &self.superblock)? {
            Run::Entry { at, length, into } => {
                let mut bytes = [0; 8];
                let entry = bytes.get_mut(..of.entry_size()).ok_or(Errno::EUCLEAN)?;
                self.read_exact(entry, at)?;
                chunk(entry, length, into, &self.superblock)?
            }
            run => run,
        };
        match run {
            Run::At(_, 0) | Run::Hole(0) | Run::Entry { .. } => Err(Errno::EUCLEAN),
            run => Ok(run),
        }
    }

    /// Reads a file's bytes; less than `to` at its end.
    pub(super) fn read(&self, of: &Inode, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let left = usize::try_from(of.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = to.len().min(left);
        let to = to.get_mut(..count).unwrap_or_default();
        let mut done = 0;
        while done < count {
            let rest = to.get_mut(done..).unwrap_or_default();
            let now = match self.run(of, offset.saturating_add(done as u64))? {
                Run::At(at, length) => {
                    let now = rest.len().min(usize::try_from(length).unwrap_or(usize::MAX));
                    self.read_exact(rest.get_mut(..now).unwrap_or_default(), at)?;
                    now
                }
                Run::Hole(length) => {
                    let now = rest.len().min(usize::try_from(length).unwrap_or(usize::MAX));
                    rest.get_mut(..now).unwrap_or_default().fill(0);
                    now
                }
                Run::Entry { .. } => return Err(Errno::EUCLEAN),
            };
            done += now;
        }
        Ok(count)
    }

    fn blocks(&self, folder: &Inode) -> Result<u64, Errno> {
        if folder.kind != FileKind::Folder {
            return Err(Errno::ENOTDIR);
        }
        if folder.size > FOLDER_MAX {
            return Err(Errno::EUCLEAN);
        }
        Ok(folder.size.div_ceil(self.superblock.block_size()))
    }

    fn block(&self, folder: &Inode, number: u64) -> Result<Vec<DirEntry>, Errno> {
        let size = self.superblock.block_size();
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let count = self.read(folder, &mut bytes, number.saturating_mul(size))?;
        entries(bytes.get(..count).unwrap_or_default())
    }

    /// Number of the inode of a name. Names ascend over the whole folder.
    pub(super) fn lookup(&self, folder: &Inode, name: &[u8]) -> Result<u64, Errno> {
        let (mut low, mut high) = (0, self.blocks(folder)?);
        while low < high {
            let middle = low + (high - low) / 2;
            let block = self.block(folder, middle)?;
            let first = block.first().ok_or(Errno::EUCLEAN)?;
            if name < first.name.as_slice() {
                high = middle;
                continue;
            }
            if let Some(entry) = block.iter().find(|entry| entry.name == name) {
                return Ok(entry.inode);
            }
            if block.last().is_some_and(|last| name < last.name.as_slice()) {
                break;
            }
            low = middle + 1;
        }
        Err(Errno::ENOENT)
    }

    pub(super) fn list(&self, folder: &Inode) -> Result<Vec<DirEntry>, Errno> {
        let mut all = Vec::new();
        for number in 0..self.blocks(folder)? {
            all.extend(self.block(folder, number)?);
        }
        all.retain(|entry| entry.name != b"." && entry.name != b"..");
        Ok(all)
    }

    pub(super) fn target(&self, link: &Inode) -> Result<Vec<u8>, Errno> {
        if link.kind != FileKind::Symlink {
            return Err(Errno::EINVAL);
        }
        if link.size == 0 || link.size > TARGET_MAX {
            return Err(Errno::EUCLEAN);
        }
        let mut target = vec![0; usize::try_from(link.size).unwrap_or(0)];
        self.read(link, &mut target, 0)?;
        if target.contains(&0) { Err(Errno::EUCLEAN) } else { Ok(target) }
    }

    pub(super) fn xattrs(&self, of: &Inode) -> Result<Vec<Xattr>, Errno> {
        let (at, length) = of.xattrs;
        if length == 0 {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; length];
        self.read_exact(&mut bytes, at)?;
        let (mut all, shared) = xattrs(&bytes)?;
        for number in shared {
            let at = self.superblock.shared_xattr_at(number);
            let mut head = [0; XATTR_ENTRY];
            self.read_exact(&mut head, at)?;
            let (name, value) = xattr_length(head);
            let mut body = vec![0; name + value];
            self.read_exact(&mut body, at.saturating_add(XATTR_ENTRY as u64))?;
            all.extend(xattr(head, &body)?);
        }
        Ok(all)
    }
}

fn read_exact(fd: &OwnedFd, mut to: &mut [u8], mut at: u64) -> Result<(), Errno> {
    while !to.is_empty() {
        match pread(fd, to, i64::try_from(at).map_err(|_| Errno::EUCLEAN)?) {
            Ok(0) => return Err(Errno::EUCLEAN),
            Ok(count) => {
                at = at.saturating_add(count as u64);
                to = to.get_mut(count..).unwrap_or_default();
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
