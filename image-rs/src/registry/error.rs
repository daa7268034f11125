//! What can go wrong between here and a registry.

use kata_cc_causes::causes;
use oci_client::Reference;
use oci_client::errors::OciDistributionError;

use crate::digest::Digest;

/// What can go wrong between here and the registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The reference is none.
    #[error(
        "{reference:?} is no image reference: {why}; write [HOST[:PORT]/]NAME[:TAG][@DIGEST] in lower case"
    )]
    Reference {
        /// As given.
        reference: String,
        /// What is wrong.
        why: String,
    },
    /// Certificates, proxy or the like cannot be used.
    #[error("the registry client cannot be set up: {0}")]
    Setup(String),
    /// Wrong or missing credentials.
    #[error("registry {registry} refuses access to {what}: {why}; give credentials for it")]
    Unauthorized {
        /// The registry's host.
        registry: String,
        /// What was asked for.
        what: String,
        /// Its words.
        why: String,
    },
    /// The registry does not have it.
    #[error("registry {registry} has no {what}")]
    NotFound {
        /// The registry's host.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// Any other failure of the exchange.
    #[error("asking registry {registry} for {what} failed: {why}")]
    Transport {
        /// The registry's host.
        registry: String,
        /// What was asked for.
        what: String,
        /// What happened.
        why: String,
    },
    /// The settings block it.
    #[error("{reference} is not pulled: its registry is blocked by the settings (registries.conf)")]
    Blocked {
        /// As asked for.
        reference: String,
    },
    /// The body is longer than allowed.
    #[error("registry {registry} sends more than {max} bytes for {what}")]
    TooLarge {
        /// The registry's host.
        registry: String,
        /// What was asked for.
        what: String,
        /// The bound.
        max: u64,
    },
    /// The manifest's bytes do not have the digest asked for.
    #[error("the registry serves another manifest: asked for {expected}, got {seen}")]
    ManifestDigest {
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        seen: Digest,
    },
    /// A blob's bytes do not have the digest asked for.
    #[error("registry {registry} serves another blob: asked for {expected}, got {seen}")]
    BlobDigest {
        /// The registry's host.
        registry: String,
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        seen: Digest,
    },
    /// A blob ends too soon.
    #[error("{place} ends blob {digest} after {seen} of {expected} bytes")]
    Short {
        /// The registry, or the node's copy.
        place: String,
        /// Which blob.
        digest: Digest,
        /// Bytes that the manifest names.
        expected: u64,
        /// Bytes that there are.
        seen: u64,
    },
    /// The settings give the image no place.
    #[error("the settings give the image no location of the form host/repository to ask for blob {digest}")]
    NoPlace {
        /// Which blob.
        digest: Digest,
    },
    /// What the node keeps of an image cannot be read.
    #[error("the node's copy of {what} cannot be read: {why}")]
    Copy {
        /// What was read.
        what: String,
        /// The system's words.
        why: String,
    },
}

/// Judges the status of an answer.
pub(super) fn check_status(status: u16, registry: &str, what: &str) -> Result<(), RegistryError> {
    let (registry, what) = (registry.to_owned(), what.to_owned());
    match status {
        200..=299 => Ok(()),
        401 | 403 => Err(RegistryError::Unauthorized { registry, what, why: format!("status {status}") }),
        404 => Err(RegistryError::NotFound { registry, what }),
        _ => Err(RegistryError::Transport { registry, what, why: format!("status {status}") }),
    }
}

/// The error of the client below in our words.
pub(super) fn explain(reference: &Reference, what: &str, error: &OciDistributionError) -> RegistryError {
    let registry = reference.registry().to_owned();
    let what = format!("{what} ({})", reference.repository());
    let why: String = causes(error).chars().take(500).collect();
    match error {
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            RegistryError::Unauthorized { registry, what, why }
        }
        OciDistributionError::ServerError { code: 404, .. } => RegistryError::NotFound { registry, what },
        OciDistributionError::RegistryError { envelope, .. }
            if envelope.errors.iter().any(|e| is_absent(&e.code)) =>
        {
            RegistryError::NotFound { registry, what }
        }
        _ => RegistryError::Transport { registry, what, why },
    }
}

fn is_absent(code: &oci_client::errors::OciErrorCode) -> bool {
    use oci_client::errors::OciErrorCode as Code;
    matches!(code, Code::BlobUnknown | Code::ManifestUnknown | Code::NameUnknown)
}
