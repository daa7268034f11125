//! A container's root file system for a plain microVM: the snapshot that containerd mounted becomes an EROFS image
//! behind a spare block device, read-only; the guest lays a writable layer over it. Decision 0002 says why.

use std::path::Path;
use std::process::Stdio;

use thiserror::Error;
use tokio::process::Command;

/// Why there is no image.
#[derive(Debug, Error)]
pub enum RootfsError {
    /// `mkfs.erofs` is not there.
    #[error("mkfs.erofs cannot be started ({0}): install erofs-utils")]
    Missing(std::io::Error),
    /// It failed.
    #[error("mkfs.erofs could not make an image of {source_dir}: {message}")]
    Failed {
        /// The folder.
        source_dir: String,
        /// What it printed.
        message: String,
    },
}

/// Make the image of a folder, with every file's own time. The same tree gives the same bytes: no random id.
///
/// # Errors
/// See [`RootfsError`].
pub async fn make_image(source_dir: &Path, image: &Path) -> Result<(), RootfsError> {
    let output = Command::new("mkfs.erofs")
        .args(["--quiet", "--preserve-mtime", "-U", "00000000-0000-0000-0000-000000000000"])
        .arg(image)
        .arg(source_dir)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(RootfsError::Missing)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(RootfsError::Failed { source_dir: source_dir.display().to_string(), message })
}
