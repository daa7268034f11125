//! Reading a folder: a Git checkout, or a volume that Kubernetes made of a ConfigMap (where every file is a symbolic link into `..data`).
//!
//! Names that begin with a dot are passed over (`.git`, `.github`, `..data`). Other files at the top that are no part are
//! told, and left out; inside of a part's folder they are refused, since whoever put them there meant something.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::BundleError;
use crate::layout::{self, MANIFEST, MAX_FILE, MAX_FILES, MAX_TOTAL, Part, SIGNATURE};

/// Files by path.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What a folder holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folder {
    /// The bundle's files.
    pub files: Files,
    /// Names at the top that are no part of it.
    pub others: Vec<String>,
    /// [`SIGNATURE`], if it is there.
    pub signature: Option<Vec<u8>>,
}

/// Reads a folder.
///
/// # Errors
/// See [`BundleError`]: what cannot be read, leads out, has no place, or is too large.
pub fn read(root: &Path) -> Result<Folder, BundleError> {
    let real = std::fs::canonicalize(root).map_err(|source| failed(root, source))?;
    let mut folder = Folder::default();
    let mut reader = Reader { root: real.clone(), total: 0, files: 0 };
    for name in names(&real)? {
        if name == MANIFEST {
            folder.files.insert(name.clone(), reader.file(&name)?);
        } else if name == SIGNATURE {
            folder.signature = Some(reader.file(&name)?);
        } else if Part::of(&name).is_some() {
            let (_, is_folder) = reader.resolve(&name)?;
            if !is_folder {
                layout::check_path(&name)?;
            }
            for inner in names(&real.join(&name))? {
                let path = format!("{name}/{inner}");
                layout::check_path(&path)?;
                let bytes = reader.file(&path)?;
                folder.files.insert(path, bytes);
            }
        } else {
            folder.others.push(name);
        }
    }
    if !folder.files.contains_key(MANIFEST) {
        return Err(BundleError::NoManifest);
    }
    Ok(folder)
}

fn failed(path: &Path, source: std::io::Error) -> BundleError {
    BundleError::Read { path: path.to_owned(), source }
}

/// Names in a folder in order, but for those that begin with a dot.
fn names(folder: &Path) -> Result<Vec<String>, BundleError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|source| failed(folder, source))? {
        let entry = entry.map_err(|source| failed(folder, source))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
        if names.len() > MAX_FILES {
            return Err(BundleError::TooLarge);
        }
    }
    names.sort();
    Ok(names)
}

struct Reader {
    root: PathBuf,
    total: u64,
    files: usize,
}

impl Reader {
    /// Where a path leads, and whether that is a folder.
    fn resolve(&self, path: &str) -> Result<(PathBuf, bool), BundleError> {
        let joined = self.root.join(path);
        let real = std::fs::canonicalize(&joined).map_err(|source| failed(&joined, source))?;
        if !real.starts_with(&self.root) {
            return Err(BundleError::LeadsOut(path.to_owned()));
        }
        let about = std::fs::metadata(&real).map_err(|source| failed(&joined, source))?;
        // A pipe would be waited for.
        if !about.is_file() && !about.is_dir() {
            return Err(BundleError::Kind(path.to_owned()));
        }
        Ok((real, about.is_dir()))
    }

    fn file(&mut self, path: &str) -> Result<Vec<u8>, BundleError> {
        let (real, is_folder) = self.resolve(path)?;
        if is_folder {
            return Err(BundleError::Kind(path.to_owned()));
        }
        let file = std::fs::File::open(&real).map_err(|source| failed(&real, source))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|source| failed(&real, source))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(BundleError::FileTooLarge { path: path.to_owned() });
        }
        self.total += bytes.len() as u64;
        self.files += 1;
        if self.total > MAX_TOTAL || self.files > MAX_FILES {
            return Err(BundleError::TooLarge);
        }
        Ok(bytes)
    }
}
