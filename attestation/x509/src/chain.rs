//! One step of a chain to a known root, as every maker's verifier takes it, and why it fails.
//!
//! Which certificates there are and what each is for is the maker's: `R` names a certificate's place in its chain.

use std::fmt::{Debug, Display};

use crate::{CertError, Certificate, SignatureAlgorithm};

/// A certificate that does not lead to the root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError<R: Debug + Display> {
    /// A certificate cannot be used.
    #[error("{role} certificate: {source}")]
    Certificate {
        /// Which.
        role: R,
        /// Why.
        source: CertError,
    },
    /// The chain ends in another root.
    #[error("root of the chain is {seen}, expected {expected}")]
    Root {
        /// Common name and key fingerprint seen.
        seen: String,
        /// Common name and key fingerprint of the anchor.
        expected: String,
    },
    /// A certificate names another issuer than the next in the chain.
    #[error("{role} certificate was issued by '{seen}', expected '{expected}'")]
    Issuer {
        /// Which.
        role: R,
        /// Issuer named.
        seen: String,
        /// Subject of the next in the chain.
        expected: String,
    },
    /// A certificate's signature does not verify.
    #[error("{role} certificate is not signed by the key of '{issuer}'")]
    Signature {
        /// Which.
        role: R,
        /// Whose key was tried.
        issuer: String,
    },
    /// A certificate was revoked.
    #[error("{role} certificate with serial number {serial} was revoked by '{issuer}'")]
    Revoked {
        /// Which.
        role: R,
        /// Its serial number in hex.
        serial: String,
        /// Whose list says so.
        issuer: String,
    },
}

impl<R: Debug + Display> ChainError<R> {
    /// Says which certificate it is that cannot be used.
    pub fn of(role: R) -> impl FnOnce(CertError) -> Self {
        move |source| Self::Certificate { role, source }
    }

    /// Seen and expected, where values were compared.
    #[must_use]
    pub fn compared(&self) -> Option<(String, String)> {
        match self {
            Self::Root { seen, expected } | Self::Issuer { seen, expected, .. } => {
                Some((seen.clone(), expected.clone()))
            }
            Self::Certificate { .. } | Self::Signature { .. } | Self::Revoked { .. } => None,
        }
    }
}

/// Checks that `issuer` is named by a certificate and signed it. Dates are not compared.
///
/// # Errors
/// [`ChainError::Issuer`], [`ChainError::Signature`], [`ChainError::Certificate`] for another algorithm.
pub fn check_link<R: Copy + Debug + Display>(
    role: R,
    certificate: &Certificate,
    issuer: &Certificate,
    algorithm: SignatureAlgorithm,
) -> Result<(), ChainError<R>> {
    if !certificate.names_issuer(issuer) {
        let (seen, expected) = (certificate.issuer_cn(), issuer.subject_cn());
        return Err(ChainError::Issuer { role, seen, expected });
    }
    if !certificate.signed_by(issuer, algorithm).map_err(ChainError::of(role))? {
        return Err(ChainError::Signature { role, issuer: issuer.subject_cn() });
    }
    Ok(())
}

/// Compares a root that came with a chain with the anchor, and never trusts it: it is the same certificate, or another one of the same
/// name and key that this key signed.
///
/// # Errors
/// [`ChainError::Root`] for another root; as [`check_link`] when the key did not sign it.
pub fn check_root<R: Copy + Debug + Display>(
    role: R,
    seen: &Certificate,
    anchor: &Certificate,
    algorithm: SignatureAlgorithm,
) -> Result<(), ChainError<R>> {
    if seen == anchor {
        return Ok(());
    }
    let describe = |certificate: &Certificate| {
        let key = certificate.key_fingerprint().map_err(ChainError::of(role))?;
        Ok(format!("'{}' with key sha256:{key}", certificate.subject_cn()))
    };
    let (named, expected) = (describe(seen)?, describe(anchor)?);
    if named != expected {
        return Err(ChainError::Root { seen: named, expected });
    }
    check_link(role, seen, anchor, algorithm)
}
