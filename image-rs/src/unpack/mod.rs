//! Applies layer archives to a root folder.
//!
//! Source: OCI image-spec `layer.md`, and GNU tar's and POSIX' description of the format. The `tar` crate reads single
//! header blocks; the stream is walked here (see `docs/decisions/0004-image-layers.md` for why).
//!
//! Every path is resolved by the kernel with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`, so an absolute or climbing
//! symbolic link left by an earlier entry leads back into the root, never out of it; `..` in a name is refused.
//! What an archive may cost is bounded by [`crate::Limits`], counted over all layers of an image in a [`Budget`].

mod acl;
mod apply;
mod entry;
mod pax;
mod root;
pub mod rules;
mod sparse;

use std::io;

pub use apply::{LayerStats, Owner, apply};
pub use entry::{Entry, Kind, TarStream};
pub use rules::components;

use crate::Limits;

/// Why an archive is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is not well-formed.
    #[error("the layer's archive is broken at byte {at}: {why}")]
    Malformed {
        /// Offset in the unpacked archive.
        at: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// A name has `..` in it, or leads nowhere a name may lead.
    #[error("path {path:?} in the layer is refused: {why}")]
    Path {
        /// The path, cut to 200 characters.
        path: String,
        /// Why it is refused.
        why: &'static str,
    },
    /// An entry of a kind that has no place in a layer.
    #[error("entry {path:?} has type {kind:?}, which layers do not have")]
    EntryType {
        /// The path.
        path: String,
        /// The type byte as a character.
        kind: char,
    },
    /// A hard link whose target is not there, or may not be linked.
    #[error("hard link {path:?} to {target:?} is refused: {why}")]
    HardLink {
        /// The link.
        path: String,
        /// Its target.
        target: String,
        /// Why.
        why: String,
    },
    /// A bound of [`Limits`] is exceeded.
    #[error("the image exceeds the limit {limit} of {max}; if it is trusted, raise the limit")]
    Limit {
        /// Its name.
        limit: &'static str,
        /// Its value.
        max: u64,
    },
    /// An extended attribute that would act on the guest's own mounts.
    #[error("entry {path:?} carries the extended attribute {name:?}, which layers may not set")]
    Attribute {
        /// The path.
        path: String,
        /// The attribute.
        name: String,
    },
    /// The stream below failed: decompression, decryption, or a read error.
    #[error("reading the layer failed: {0}")]
    Read(#[source] io::Error),
    /// The file system refused.
    #[error("{doing} {path:?} failed: {source}")]
    Write {
        /// What was done.
        doing: &'static str,
        /// On which path.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// Stands for a name out of an encrypted layer.
const WITHHELD: &str = "(a name in an encrypted layer)";

impl UnpackError {
    /// The same without names of the archive: errors go to the host's log, what an encrypted layer holds must not.
    #[must_use]
    pub fn without_names(mut self) -> Self {
        let withheld = || WITHHELD.to_owned();
        match &mut self {
            Self::Path { path, .. } | Self::EntryType { path, .. } | Self::Write { path, .. } => {
                *path = withheld()
            }
            Self::HardLink { path, target, why } => {
                (*path, *target, *why) = (withheld(), withheld(), "it cannot be made".to_owned());
            }
            Self::Attribute { path, name } => (*path, *name) = (withheld(), withheld()),
            Self::Malformed { .. } | Self::Limit { .. } | Self::Read(_) => {}
        }
        self
    }
}

/// A path for messages, cut to 200 characters.
#[must_use]
pub fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

/// What is left of the limits of one image.
#[derive(Debug, Clone)]
pub struct Budget {
    limits: Limits,
    /// Bytes written or stood for so far.
    pub bytes: u64,
    /// Entries so far.
    pub files: u64,
}

impl Budget {
    /// A fresh budget.
    pub fn new(limits: Limits) -> Self {
        Self { limits, bytes: 0, files: 0 }
    }

    /// The limits it counts against.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Counts bytes.
    ///
    /// # Errors
    /// When they are too many.
    pub fn take_bytes(&mut self, count: u64) -> Result<(), UnpackError> {
        self.bytes = self.bytes.saturating_add(count);
        if self.bytes > self.limits.max_unpacked_bytes {
            return Err(UnpackError::Limit {
                limit: "max_unpacked_bytes",
                max: self.limits.max_unpacked_bytes,
            });
        }
        Ok(())
    }

    /// Counts an entry.
    ///
    /// # Errors
    /// When it is one too many.
    pub fn take_file(&mut self) -> Result<(), UnpackError> {
        self.files += 1;
        if self.files > self.limits.max_files {
            return Err(UnpackError::Limit { limit: "max_files", max: self.limits.max_files });
        }
        Ok(())
    }
}
