//! Where an image grows before it is there: nothing of it has its name until all of it is checked.

use std::io;
use std::path::{Path, PathBuf};

use super::{PullError, PullTarget};

/// Folders in which an image grows, removed unless it is finished.
pub(super) struct Staging {
    /// For blobs on their way.
    pub(super) blobs: PathBuf,
    /// The root folder that is not yet at its place.
    pub(super) root: PathBuf,
    done: bool,
}

impl Staging {
    pub(super) fn new(target: &PullTarget) -> Result<Self, PullError> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| {
            PullError::work("naming a folder in", &target.work_dir)(io::Error::other("no random bytes"))
        })?;
        let id = hex::encode(random);
        let blobs = target.work_dir.join(format!("pull-{id}"));
        // Beside its final place, so that it can be renamed there.
        let mut name = target.rootfs_dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{id}"));
        let root = target.rootfs_dir.with_file_name(name);
        std::fs::create_dir_all(&blobs).map_err(PullError::work("creating", &blobs))?;
        let staging = Self { blobs, root, done: false };
        std::fs::create_dir_all(&staging.root).map_err(PullError::work("creating", &staging.root))?;
        Ok(staging)
    }

    /// Moves the root folder to its place.
    pub(super) fn finish(mut self, rootfs: &Path) -> Result<(), PullError> {
        std::fs::rename(&self.root, rootfs)
            .map_err(PullError::work("moving the finished root to", rootfs))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.blobs);
        if !self.done {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}
