//! Sealed images of this node: one copy of each, which every guest gets read-only.
//!
//! Below the state folder, `images/`: `HEX.sealed` (the file), `HEX.json` (its seal) by the digest of the image's manifest, and
//! `names/HASH`, by the SHA-256 of a reference, with the digest that it was resolved to when the image was sealed. Nothing here
//! is trusted by a confidential guest: it takes the file only for an image whose seal is in its own init-data.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};

/// The folder of a node's sealed images.
#[derive(Clone, Debug)]
pub struct ImageCache {
    dir: PathBuf,
}

/// 64 hexadecimal digits of a digest `sha256:…`.
fn hex_of(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))).then_some(hex)
}

impl ImageCache {
    /// In a state folder.
    #[must_use]
    pub fn below(state: &Path) -> Self {
        Self { dir: state.join("images") }
    }

    fn name(&self, reference: &str) -> PathBuf {
        self.dir.join("names").join(hex::encode(digest(&SHA256, reference.as_bytes()).as_ref()))
    }

    fn file(&self, hex: &str, ending: &str) -> PathBuf {
        self.dir.join(format!("{hex}.{ending}"))
    }

    /// The file of the image that a reference names, when there is one.
    #[must_use]
    pub fn offer(&self, reference: &str) -> Option<PathBuf> {
        let named = fs::read_to_string(self.name(reference)).ok();
        let by_digest = reference.rsplit_once('@').map(|(_, digest)| digest.to_owned());
        let digest = by_digest.or(named)?;
        let file = self.file(hex_of(digest.trim())?, "sealed");
        file.is_file().then_some(file)
    }

    /// A new file to seal an image into; it counts when it was [`Self::keep`]ed.
    ///
    /// # Errors
    /// As the file system says.
    pub fn stage(&self) -> io::Result<tempfile::NamedTempFile> {
        let make = |dir: &Path| DirBuilder::new().recursive(true).mode(0o700).create(dir);
        make(&self.dir.join("names"))?;
        tempfile::Builder::new().prefix(".sealing-").tempfile_in(&self.dir)
    }

    /// Keeps a sealed image under the digest of its manifest and, for guests, under `reference`. Another copy of the same image is
    /// replaced; guests that use it keep theirs.
    ///
    /// # Errors
    /// As the file system says; a digest that is not SHA-256 is invalid input.
    pub fn keep(
        &self,
        staged: tempfile::NamedTempFile,
        manifest: &str,
        reference: &str,
        seal: &[u8],
    ) -> io::Result<PathBuf> {
        let hex = hex_of(manifest).ok_or(io::ErrorKind::InvalidInput)?;
        staged.as_file().sync_all()?;
        let file = self.file(hex, "sealed");
        staged.persist(&file)?;
        replace(&self.file(hex, "json"), seal)?;
        replace(&self.name(reference), manifest.as_bytes())?;
        Ok(file)
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut staged = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
    staged.write_all(bytes)?;
    staged.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_offered_by_its_reference_and_its_digest() {
        let state = tempfile::tempdir().unwrap();
        let cache = ImageCache::below(state.path());
        let digest = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(cache.offer("r/i:1"), None);
        let mut staged = cache.stage().unwrap();
        staged.write_all(b"image").unwrap();
        let kept = cache.keep(staged, &digest, "r/i:1", b"{}").unwrap();
        assert_eq!(fs::read(&kept).unwrap(), b"image");
        for reference in ["r/i:1".to_owned(), format!("other/name@{digest}")] {
            assert_eq!(cache.offer(&reference).as_ref(), Some(&kept), "{reference}");
        }
        for reference in ["r/i:2", "r/i:1@sha256:abc", "r/i:1@sha256:../../x", "r/i@sha512:ab"] {
            assert_eq!(cache.offer(reference), None, "{reference}");
        }
        fs::remove_file(&kept).unwrap();
        assert_eq!(cache.offer("r/i:1"), None, "the file is gone");
        assert!(cache.keep(cache.stage().unwrap(), "sha256:../x", "r", b"").is_err());
        let left: Vec<_> =
            fs::read_dir(state.path().join("images")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
    }
}
