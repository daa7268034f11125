//! The disks of sandboxes: scratch disks and images of root file systems, a folder for each sandbox below the state folder.
//!
//! Not in the run-time folder, which is memory: what a guest writes to its scratch disk would come on top of the memory
//! that its pod may use.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Folder of one sandbox's disks.
pub(crate) fn folder(disks: &Path, id: &str) -> PathBuf {
    disks.join(id)
}

/// Makes the folder of a sandbox whose run-time folder is claimed already.
///
/// Takes away what sandboxes that are `alive` no more have left, as after a crash of the node: a sandbox's disks are made
/// after its run-time folder and removed before it, so disks without one belong to nobody.
pub(crate) fn make(disks: &Path, id: &str, alive: impl Fn(&str) -> bool) -> std::io::Result<PathBuf> {
    for entry in std::fs::read_dir(disks).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|id| !alive(id)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let folder = folder(disks, id);
    remove(disks, id);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    Ok(folder)
}

/// Removes a sandbox's disks; nothing happens when there are none.
pub(crate) fn remove(disks: &Path, id: &str) {
    let _ = std::fs::remove_dir_all(folder(disks, id));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_nobody_are_removed_and_those_of_the_living_stay() {
        let disks = tempfile::tempdir().unwrap();
        for id in ["alive", "dead"] {
            let folder = make(disks.path(), id, |_| true).unwrap();
            std::fs::write(folder.join("scratch.img"), "x").unwrap();
        }
        let new = make(disks.path(), "new", |id| id == "alive").unwrap();
        assert!(new.exists() && !folder(disks.path(), "dead").exists());
        assert!(folder(disks.path(), "alive").join("scratch.img").exists());
        // A claimed id starts with no disks of another.
        let again = make(disks.path(), "alive", |_| true).unwrap();
        assert_eq!(std::fs::read_dir(again).unwrap().count(), 0);
        remove(disks.path(), "alive");
        assert!(!folder(disks.path(), "alive").exists());
    }
}
