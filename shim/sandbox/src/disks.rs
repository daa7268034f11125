//! The disks of sandboxes: scratch disks and images of root file systems, a folder for each sandbox below the state folder.
//!
//! Not in the run-time folder, which is memory: what a guest writes to its scratch disk would come on top of the memory
//! that its pod may use.

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// File that a sandbox holds locked in its folder as long as it lives; the kernel lets go of it whatever the end.
const LOCK: &str = "lock";

/// The disks of a sandbox that lives.
#[derive(Debug)]
pub(crate) struct Disks {
    folder: PathBuf,
    /// Held, not read.
    _lock: File,
}

impl Disks {
    /// Makes the folder of a sandbox whose id is claimed, and takes away what sandboxes that are no more have left, as after
    /// a crash of the node.
    ///
    /// # Errors
    /// When the folder cannot be made, or its disks are in use by a sandbox of that name.
    pub(crate) fn make(disks: &Path, id: &str) -> io::Result<Self> {
        for entry in std::fs::read_dir(disks).into_iter().flatten().flatten() {
            // One without a lock is just being made.
            if File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        let folder = disks.join(id);
        if folder.join(LOCK).exists() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "in use by another sandbox of that name",
            ));
        }
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        // Locked before it has its name: nobody may find it free.
        let new = folder.join(format!("{LOCK}.new"));
        let lock = File::create(&new)?;
        lock.try_lock().map_err(io::Error::from)?;
        std::fs::rename(new, folder.join(LOCK))?;
        Ok(Self { folder, _lock: lock })
    }

    /// A file in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Removes them.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Removes what a sandbox that is no more has left; nothing happens when there is nothing, or it lives.
pub(crate) fn remove_leftovers(disks: &Path, id: &str) {
    let folder = disks.join(id);
    if File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_err()) {
        return;
    }
    let _ = std::fs::remove_dir_all(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_nobody_are_removed_and_those_of_the_living_stay() {
        let root = tempfile::tempdir().unwrap();
        let made = |id: &str| {
            let disks = Disks::make(root.path(), id).unwrap();
            std::fs::write(disks.file("scratch.img"), "x").unwrap();
            disks
        };
        let (alive, dead) = (made("alive"), made("dead"));
        let left = dead.file("scratch.img");
        drop(dead);
        assert!(left.exists(), "its sandbox died and could remove nothing");
        let unlocked = root.path().join("being-made");
        std::fs::create_dir(&unlocked).unwrap();
        let new = made("new");
        assert!(!left.exists() && !root.path().join("dead").exists());
        assert!(alive.file("scratch.img").exists() && unlocked.exists());
        let again = Disks::make(root.path(), "alive").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        remove_leftovers(root.path(), "alive");
        assert!(alive.file("scratch.img").exists(), "it lives");
        alive.remove();
        drop(new);
        remove_leftovers(root.path(), "new");
        remove_leftovers(root.path(), "being-made");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
