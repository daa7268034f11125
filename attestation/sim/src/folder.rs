//! The folder of a platform: written whole or not at all, its key readable by its owner alone.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::{SimError, fill_random};

/// A folder whose files are written or read.
pub(crate) struct Folder(PathBuf);

/// Makes the folder `dir`, which must not exist or be empty, with the files that `fill` writes.
///
/// # Errors
/// [`SimError`]; nothing is left behind then.
pub(crate) fn create(dir: &Path, fill: impl FnOnce(&Folder) -> Result<(), SimError>) -> Result<(), SimError> {
    if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(SimError::Exists { path: dir.to_owned() });
    }
    // Written beside and renamed: whoever finds the folder finds it whole.
    let mut suffix = [0; 8];
    fill_random(&mut suffix)?;
    let staged = Folder(dir.with_extension(format!("new-{:016x}", u64::from_le_bytes(suffix))));
    let result = staged.make().and_then(|()| fill(&staged)).and_then(|()| staged.rename(dir));
    if result.is_err() {
        // Best effort: the first error is the one to report.
        std::fs::remove_dir_all(&staged.0).ok();
    }
    result
}

impl Folder {
    /// One that is there.
    pub(crate) fn at(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// Path of a file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn make(&self) -> Result<(), SimError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.0);
        made.map_err(|source| SimError::Io { action: "make the folder", path: self.0.clone(), source })
    }

    fn rename(&self, to: &Path) -> Result<(), SimError> {
        std::fs::rename(&self.0, to).map_err(|source| match source.kind() {
            std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists => {
                SimError::Exists { path: to.to_owned() }
            }
            _ => SimError::Io { action: "move the platform to", path: to.to_owned(), source },
        })
    }

    /// Writes a new file.
    pub(crate) fn write(&self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), SimError> {
        let path = self.path(name);
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .map_err(|source| SimError::Io { action: "write", path, source })
    }

    /// Reads a file.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, SimError> {
        let path = self.path(name);
        std::fs::read(&path).map_err(|source| SimError::Io { action: "read", path, source })
    }

    /// Reads a private key, which nobody else may have read.
    pub(crate) fn read_key(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, SimError> {
        let path = self.path(name);
        let metadata = std::fs::metadata(&path).map_err(|source| SimError::Io {
            action: "open",
            path: path.clone(),
            source,
        })?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SimError::KeyMode { path, mode });
        }
        self.read(name).map(Zeroizing::new)
    }
}
