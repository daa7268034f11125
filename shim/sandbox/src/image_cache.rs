//! Sealed images of this node: one copy of each, which every guest gets read-only.
//!
//! Below the state folder, `images/`: `HEX.sealed` (the file), `HEX.json` (its seal) by the digest of the image's manifest, and
//! `names/HASH`, by the SHA-256 of a reference, with the digest that it was resolved to when the image was sealed. Nothing here
//! is trusted by a confidential guest: it takes the file only for an image whose seal is in its own init-data.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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
        let opened = fs::File::open(&file).ok()?;
        // What was wanted last is kept longest; where that cannot be noted, nothing else is lost.
        let _ = opened.set_modified(SystemTime::now());
        Some(file)
    }

    /// Removes sealed images until all of them take at most `most` bytes, those that were wanted longest ago first; gives the digests of
    /// the removed. `spare` stays. Guests that use one keep theirs.
    ///
    /// # Errors
    /// As the file system says.
    pub fn trim(&self, most: u64, spare: &Path) -> io::Result<Vec<String>> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "sealed") {
                let data = path.metadata()?;
                images.push((data.modified()?, data.blocks() * 512, path));
            }
        }
        images.sort();
        let mut all: u64 = images.iter().map(|(_, bytes, _)| bytes).sum();
        let mut removed = Vec::new();
        for (_, bytes, path) in images.iter().filter(|(_, _, path)| path != spare) {
            if all <= most {
                break;
            }
            fs::remove_file(path)?;
            let _ = fs::remove_file(path.with_extension("json"));
            all -= bytes;
            let hex = path.file_stem().unwrap_or_default().to_string_lossy();
            removed.push(format!("sha256:{hex}"));
        }
        self.forget(&removed)?;
        Ok(removed)
    }

    /// Removes the names of images that are gone.
    fn forget(&self, removed: &[String]) -> io::Result<()> {
        if removed.is_empty() {
            return Ok(());
        }
        for entry in fs::read_dir(self.dir.join("names"))? {
            let path = entry?.path();
            if fs::read_to_string(&path).is_ok_and(|digest| removed.iter().any(|gone| gone == digest.trim()))
            {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// The right to make a copy of what `reference` names, until the file is closed; `None` while another process has it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn claim(&self, reference: &str) -> io::Result<Option<fs::File>> {
        let claims = self.dir.join("claims");
        DirBuilder::new().recursive(true).mode(0o700).create(&claims)?;
        let name = hex::encode(digest(&SHA256, reference.as_bytes()).as_ref());
        // One of a few files, so that none need be removed: two references may wait for one another, which harms nobody.
        let file = fs::File::create(claims.join(name.get(..2).unwrap_or_default()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_image_that_was_wanted_longest_ago_goes_first_and_never_the_new_one() {
        let state = tempfile::tempdir().unwrap();
        let cache = ImageCache::below(state.path());
        let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32));
        let keep = |n: u8| {
            let mut staged = cache.stage().unwrap();
            staged.write_all(&[n; 40960]).unwrap();
            let kept = cache.keep(staged, &digest(n), &format!("r/i:{n}"), b"{}").unwrap();
            let long_ago = SystemTime::now() - Duration::from_secs(1000 - u64::from(n));
            fs::File::open(&kept).unwrap().set_modified(long_ago).unwrap();
            kept
        };
        let kept: Vec<_> = (1..=4).map(keep).collect();
        assert!(cache.trim(4 * 40960, &kept[3]).unwrap().is_empty());
        // the first is wanted once more
        cache.offer("r/i:1").unwrap();
        assert_eq!(cache.trim(2 * 40960, &kept[3]).unwrap(), [digest(2), digest(3)]);
        assert!(cache.offer("r/i:2").is_none() && cache.offer("r/i:1").is_some());
        assert_eq!(fs::read_dir(state.path().join("images/names")).unwrap().count(), 2);
        // nothing else may go
        assert_eq!(cache.trim(0, &kept[3]).unwrap(), [digest(1)]);
        assert!(cache.offer("r/i:4").is_some());
    }

    #[test]
    fn one_process_at_a_time_makes_a_copy() {
        let state = tempfile::tempdir().unwrap();
        let cache = ImageCache::below(state.path());
        let claim = cache.claim("r/i:1").unwrap();
        assert!(claim.is_some() && cache.claim("r/i:1").unwrap().is_none());
        drop(claim);
        assert!(cache.claim("r/i:1").unwrap().is_some());
    }

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
