//! EROFS images, read by the sentry itself: a root that needs no gofer and that nobody has to unpack.
//!
//! Known are plain and inline files and those in chunks, compact and extended inodes, extended attributes beside an inode and shared ones,
//! blocks of 512 to 4096 bytes. Compressed files are refused by name (EOPNOTSUPP), images of several devices are not mounted. Whoever made
//! the image is not believed: what does not fit is EUCLEAN. That it is the image that was meant is not looked at here: dm-verity or
//! fs-verity below it does that.
//!
//! **Mappings.** A file whose bytes lie in whole pages of the image is mapped from the image, and its pages are the host's page cache, the same
//! for all sandboxes. But a stub could map more of a descriptor than it was told to (decision 0024), and the image is all files in one. So
//! the image is mapped only where the file was opened by somebody who may read all files (CAP_DAC_READ_SEARCH or CAP_DAC_OVERRIDE); others get
//! a copy in memory of that file alone, and so does everybody of a file that ends beside its inode.

mod image;
mod layout;
mod node;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use image::Image;
pub use layout::ImageError;
use node::Node;

use super::{FileKind, FileSystem, FsStatus, Inode};
use crate::error::Errno;

/// `EROFS_SUPER_MAGIC_V1`.
const MAGIC: u64 = 0xE0F5_E1E2;

/// What all files of one image share.
struct Shared {
    image: Image,
    device: u64,
    nodes: Mutex<HashMap<u64, Weak<Node>>>,
}

/// An image as a file system.
pub struct Erofs {
    shared: Arc<Shared>,
    root: Arc<Node>,
}

impl Erofs {
    /// The image behind a descriptor that can be read.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn new(image: OwnedFd) -> Result<Self, ImageError> {
        let image = Image::open(image)?;
        let number = image.superblock.root;
        let shared = Arc::new(Shared { image, device: super::tmpfs::next_device(), nodes: Mutex::default() });
        let root = Node::of(&shared, number).map_err(ImageError::Read)?;
        if root.kind() != FileKind::Folder {
            return Err(ImageError::Read(Errno::ENOTDIR));
        }
        Ok(Self { shared, root })
    }
}

impl FileSystem for Erofs {
    fn name(&self) -> &'static str {
        "erofs"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::clone(&self.root) as Arc<dyn Inode>
    }

    fn status(&self) -> Result<FsStatus, Errno> {
        let superblock = &self.shared.image.superblock;
        Ok(FsStatus {
            magic: MAGIC,
            block_size: superblock.block_size(),
            blocks: superblock.blocks.into(),
            blocks_free: 0,
            files: superblock.inodes,
            files_free: 0,
        })
    }

    fn read_only(&self) -> bool {
        true
    }
}

/// Looks at all that is in an image, as far as that goes, for tests and fuzzing: so many files, some of each.
pub fn look_at_all(fs: &Erofs) {
    const FILES: usize = 2000;
    let caller = super::Caller::root();
    let mut waiting = vec![fs.root()];
    let mut seen = 0;
    let mut room = vec![0; 9000];
    while let Some(inode) = waiting.pop() {
        seen += 1;
        if seen > FILES {
            return;
        }
        let size = inode.attributes().map_or(0, |attributes| attributes.size);
        let _ = inode.readlink(&caller);
        for name in inode.xattrs().unwrap_or_default() {
            let _ = inode.xattr(&name);
        }
        for entry in inode.list().unwrap_or_default().iter().take(FILES) {
            waiting.extend(inode.lookup(&entry.name));
        }
        if let Ok(file) = Arc::clone(&inode).open(super::Flags::READ, &caller) {
            for at in [0, 4095, size / 2, size.saturating_sub(1), size] {
                let _ = file.read(&mut room, at);
                let _ = file.seek_data(at.min(size.saturating_sub(1)), true, size);
            }
            if size < 1 << 20 {
                let _ = file.host_file();
            }
        }
    }
}
