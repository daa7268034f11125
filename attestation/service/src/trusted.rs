//! Settings of reference values: when they end, and whose signed messages are taken. Both daemons have them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::jws::{JwsError, VerifyingKey};
use crate::sources::{Sources, TrustedSource};

/// `[reference_values]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReferenceValuesConfig {
    /// Days after which a value ends when nobody says otherwise; never without it. Trustee writes 365 and does not look at it.
    pub default_days: Option<u32>,
    /// Keys that may sign reference values.
    pub trusted: Vec<Trusted>,
}

/// `[[reference_values.trusted]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trusted {
    /// What the key is called in records and logs.
    pub name: String,
    /// Public key (PEM).
    pub public_key: PathBuf,
    /// Names that it may set; all without them.
    #[serde(default)]
    pub names: Vec<String>,
    /// Subject of an in-toto statement to the name of the reference value that its digest becomes.
    #[serde(default)]
    pub subjects: BTreeMap<String, String>,
    /// `builder.id` that a provenance must name.
    #[serde(default)]
    pub builder: Option<String>,
}

/// Why a key of a configuration is not trusted.
#[derive(Debug, Error)]
pub enum TrustedError {
    /// It has no name.
    #[error("a key of reference_values.trusted has no name")]
    Nameless,
    /// Its file cannot be read.
    #[error("key {path} of {name:?} (reference_values.trusted) cannot be read: {source}")]
    Read {
        /// Of the key.
        name: String,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no key.
    #[error("key {path} of {name:?} (reference_values.trusted): {source}")]
    Key {
        /// Of the key.
        name: String,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: JwsError,
    },
}

impl ReferenceValuesConfig {
    /// Reads the keys; relative paths start from `base`.
    ///
    /// # Errors
    /// Which key is no good, and why.
    pub fn sources(&self, base: &Path) -> Result<Sources, TrustedError> {
        Ok(Sources { trusted: self.trusted.iter().map(|one| one.source(base)).collect::<Result<_, _>>()? })
    }
}

impl Trusted {
    fn source(&self, base: &Path) -> Result<TrustedSource, TrustedError> {
        if self.name.is_empty() {
            return Err(TrustedError::Nameless);
        }
        let (name, path) = (self.name.clone(), base.join(&self.public_key));
        let pem = std::fs::read(&path).map_err(|source| TrustedError::Read {
            name: name.clone(),
            path: path.clone(),
            source,
        })?;
        let key = VerifyingKey::from_pem(&pem).map_err(|source| TrustedError::Key {
            name: name.clone(),
            path,
            source,
        })?;
        Ok(TrustedSource {
            name,
            key,
            names: self.names.clone(),
            subjects: self.subjects.clone(),
            builder: self.builder.clone(),
        })
    }
}
