//! `[policy_source]`: where bundles come from. Both daemons have it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kata_cc_image::{DockerAuthConfig, Registry, RegistryConfig, RegistryError, parse_reference};
use kata_cc_policy_bundle::source::signed_by;
use kata_cc_policy_bundle::{BundleError, Source};
use serde::Deserialize;
use thiserror::Error;

/// `[policy_source]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicySourceConfig {
    /// Folder with a bundle: a Git checkout, a mounted ConfigMap.
    pub directory: Option<PathBuf>,
    /// Bundle in a registry.
    pub reference: Option<String>,
    /// Public key (PEM) that bundles must be signed by. A reference needs one.
    pub public_key: Option<PathBuf>,
    /// Seconds between two looks.
    pub poll_seconds: u32,
    /// PEM of roots that the registry is trusted by, beside the system's.
    pub registry_ca: Vec<PathBuf>,
    /// Registries (`host:port`) spoken to without TLS.
    pub insecure_registries: Vec<String>,
    /// Credentials, as Docker's `config.json` has them.
    pub registry_auth: Option<PathBuf>,
}

impl Default for PolicySourceConfig {
    fn default() -> Self {
        Self {
            directory: None,
            reference: None,
            public_key: None,
            poll_seconds: 60,
            registry_ca: Vec::new(),
            insecure_registries: Vec::new(),
            registry_auth: None,
        }
    }
}

/// Why a source cannot be followed.
#[derive(Debug, Error)]
pub enum PolicySourceError {
    /// Neither a folder nor a reference, or both.
    #[error("policy_source needs one of directory and reference")]
    Which,
    /// A reference whose signer is not named.
    #[error(
        "policy_source.reference needs public_key: whoever can write to the registry would else decide who gets secrets"
    )]
    NoKey,
    /// The time between looks.
    #[error("policy_source.poll_seconds is {0}, expected 5 to 86400")]
    Poll(u32),
    /// A file that is named cannot be read.
    #[error("policy_source.{member} {path} cannot be read: {source}")]
    Read {
        /// Which member.
        member: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The credentials are none.
    #[error("policy_source.registry_auth is no config.json of Docker")]
    Auth,
    /// The key cannot be used.
    #[error("policy_source.public_key: {0}")]
    Key(BundleError),
    /// The registry's client cannot be made, or the reference is none.
    #[error("policy_source: {0}")]
    Registry(#[from] RegistryError),
}

impl PolicySourceConfig {
    /// Checks what a type does not say.
    ///
    /// # Errors
    /// See [`PolicySourceError`].
    pub fn check(&self) -> Result<(), PolicySourceError> {
        if self.directory.is_some() == self.reference.is_some() {
            return Err(PolicySourceError::Which);
        }
        if !(5..=86_400).contains(&self.poll_seconds) {
            return Err(PolicySourceError::Poll(self.poll_seconds));
        }
        match &self.reference {
            Some(_) if self.public_key.is_none() => Err(PolicySourceError::NoKey),
            Some(reference) => Ok(parse_reference(reference).map(drop)?),
            None => Ok(()),
        }
    }

    /// Time between two looks.
    #[must_use]
    pub fn every(&self) -> Duration {
        Duration::from_secs(u64::from(self.poll_seconds))
    }

    /// The source; relative paths start from `base`.
    ///
    /// # Errors
    /// See [`PolicySourceError`].
    pub fn source(&self, base: &Path) -> Result<Source, PolicySourceError> {
        self.check()?;
        let read = |member, path: &Path| {
            let path = base.join(path);
            std::fs::read(&path).map_err(|source| PolicySourceError::Read { member, path, source })
        };
        let key = self.public_key.as_deref().map(|path| read("public_key", path)).transpose()?;
        // Also of a folder: a key that is none is told at the start, not at each look.
        let signed = key.as_deref().map(signed_by).transpose().map_err(PolicySourceError::Key)?;
        match (&self.directory, &self.reference, signed) {
            (Some(directory), None, _) => Ok(Source::Folder { path: base.join(directory), key }),
            (None, Some(reference), Some(signed)) => {
                let roots = self.registry_ca.iter().map(|path| read("registry_ca", path));
                let auth =
                    self.registry_auth.as_deref().map(|path| read("registry_auth", path)).transpose()?;
                let auth = auth.map(|bytes| DockerAuthConfig::parse(&bytes).ok_or(PolicySourceError::Auth));
                let registry = Registry::new(RegistryConfig {
                    extra_roots_pem: roots.collect::<Result<_, _>>()?,
                    insecure_registries: self.insecure_registries.clone(),
                    auth: auth.transpose()?,
                    ..RegistryConfig::default()
                })?;
                Ok(Source::Reference {
                    reference: reference.clone(),
                    signed: Arc::new(signed),
                    registry: Arc::new(registry),
                })
            }
            (None, Some(_), None) => Err(PolicySourceError::NoKey),
            _ => Err(PolicySourceError::Which),
        }
    }
}
