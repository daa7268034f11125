//! The packed form: a plain tar (ustar) of the files in the order of their paths, mode 0644, owner 0, time 0. One set of files has one archive,
//! byte for byte, and whatever is not exactly that archive is refused: there is no room for anything that one reader sees and
//! another does not.

use std::io::Read as _;

use crate::BundleError;
use crate::folder::Files;
use crate::layout::{self, MANIFEST, MAX_FILE, MAX_FILES, MAX_TOTAL};

/// Most bytes of an archive: all files, and for each a header and padding.
pub const MAX_ARCHIVE: u64 = MAX_TOTAL + 1024 * (MAX_FILES as u64 + 1);

/// Packs files.
///
/// # Errors
/// When a path has no place in a bundle.
pub fn pack(files: &Files) -> Result<Vec<u8>, BundleError> {
    let broken = |error: std::io::Error| BundleError::Archive(error.to_string());
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        layout::check_path(path)?;
        let mut header = tar::Header::new_ustar();
        header.set_path(path).map_err(broken)?;
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        tar.append(&header, bytes.as_slice()).map_err(broken)?;
    }
    tar.into_inner().map_err(broken)
}

/// Unpacks an archive.
///
/// # Errors
/// When it is not what [`pack`] makes of its own files.
pub fn unpack(archive: &[u8]) -> Result<Files, BundleError> {
    if archive.len() as u64 > MAX_ARCHIVE {
        return Err(BundleError::TooLarge);
    }
    let broken = |error: std::io::Error| BundleError::Archive(error.to_string());
    let mut files = Files::new();
    let mut total = 0;
    for entry in tar::Archive::new(archive).entries().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let path = String::from_utf8(entry.path_bytes().into_owned());
        let path = path.map_err(|_| BundleError::Archive("a path is not UTF-8".to_owned()))?;
        layout::check_path(&path)?;
        let mut bytes = Vec::new();
        entry.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(BundleError::FileTooLarge { path });
        }
        total += bytes.len() as u64;
        files.insert(path, bytes);
        if files.len() > MAX_FILES || total > MAX_TOTAL {
            return Err(BundleError::TooLarge);
        }
    }
    if !files.contains_key(MANIFEST) {
        return Err(BundleError::NoManifest);
    }
    if pack(&files)? != archive {
        let why = "it is not byte for byte what packing its files gives; make it with `kata-cc policy bundle build`";
        return Err(BundleError::Archive(why.to_owned()));
    }
    Ok(files)
}
