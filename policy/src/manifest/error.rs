//! What is wrong with a manifest: what stops its reading, and what is only told.

use serde::Serialize;
use thiserror::Error;

use super::yaml::{MAX_BYTES, MAX_DOCUMENTS};

/// Why a manifest was not read.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ManifestError {
    /// Larger than [`MAX_BYTES`].
    #[error("the manifest has {0} bytes, at most {MAX_BYTES} are read")]
    TooLarge(usize),
    /// More than [`MAX_DOCUMENTS`].
    #[error("the manifest has {0} documents, at most {MAX_DOCUMENTS} are read")]
    TooMany(usize),
    /// No YAML, or YAML that is too deep or grows too much (aliases).
    #[error("the manifest is not YAML that is read here: {0}")]
    Yaml(String),
    /// A value of another type than Kubernetes defines.
    #[error("{path}: expected {expected}, seen {seen}")]
    Type {
        /// Where, e.g. `Pod/web: spec.containers[0].env`.
        path: String,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        seen: String,
    },
    /// A field without which there is no pod.
    #[error("{path} is missing")]
    Missing {
        /// Which.
        path: String,
    },
    /// A value that Kubernetes would not take either.
    #[error("{path}: {reason}")]
    Invalid {
        /// Where.
        path: String,
        /// Why.
        reason: String,
    },
}

/// Something that does not stop the work and that somebody should know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Warning {
    /// Where in the manifest.
    pub path: String,
    /// What.
    pub message: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}
