//! Why there is no bundle.

use std::path::PathBuf;

use thiserror::Error;

use crate::layout::{MANIFEST, MAX_FILE, MAX_FILES, MAX_TOTAL};

/// Why a folder, an archive or an artifact is no bundle, or is not the one that was meant.
#[derive(Debug, Error)]
pub enum BundleError {
    /// Something of the folder cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A symbolic link out of the folder: what it leads to is not what was reviewed.
    #[error("{0} leads out of the folder: put the file itself there")]
    LeadsOut(String),
    /// Neither a file nor a folder.
    #[error("{0} is neither a file nor a folder")]
    Kind(String),
    /// A file that has no place in the layout.
    #[error("{path} has no place in a policy bundle: {expected}")]
    Unknown {
        /// Which.
        path: String,
        /// What could be there.
        expected: &'static str,
    },
    /// Too large.
    #[error("{path} has more than {MAX_FILE} bytes")]
    FileTooLarge {
        /// Which.
        path: String,
    },
    /// All of it is too large.
    #[error("the bundle has more than {MAX_TOTAL} bytes or {MAX_FILES} files")]
    TooLarge,
    /// Not UTF-8.
    #[error("{0} is not UTF-8 text")]
    NotText(String),
    /// There is no manifest.
    #[error("there is no {MANIFEST}: this is no policy bundle")]
    NoManifest,
    /// The manifest, or another file that must be read to know what the bundle is, is not understood.
    #[error("{path}: {why}")]
    Syntax {
        /// Which file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The archive is not the one form that a bundle has.
    #[error("the archive is no policy bundle: {0}")]
    Archive(String),
    /// Checks did not pass.
    #[error("the bundle does not pass its checks: {}{}", .first, more(*.others))]
    Refused {
        /// The first that is wrong.
        first: String,
        /// How many more there are.
        others: usize,
    },
    /// There is no signature, and there must be one.
    #[error("{0} is not signed: no signature was found at {1}")]
    Unsigned(String, String),
    /// The signature is not by the key.
    #[error("the signature of {what} is not good: {why}")]
    Signature {
        /// What was to be signed.
        what: String,
        /// Why not.
        why: String,
    },
    /// A key that cannot be used.
    #[error("{0}")]
    Key(String),
    /// The registry, or what it holds under that name.
    #[error("{reference}: {why}")]
    Artifact {
        /// Which.
        reference: String,
        /// Why.
        why: String,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] kata_cc_image::RegistryError),
}

fn more(others: usize) -> String {
    if others == 0 { String::new() } else { format!(" (and {others} more)") }
}
