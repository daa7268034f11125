//! Why a certificate cannot be used.

use x509_cert::der::{self, asn1::ObjectIdentifier};

use crate::certificate::{MAX_CERT, MAX_CHAIN};

/// A signature whose algorithm or key is not the one that the verifier asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AlgorithmError {
    /// Signed by another algorithm.
    #[error("signature algorithm is {seen}, expected {expected}")]
    Signature {
        /// Object identifier seen.
        seen: ObjectIdentifier,
        /// What is needed.
        expected: &'static str,
    },
    /// The two places that name the signature algorithm differ.
    #[error("two different signature algorithms are named")]
    Differ,
    /// The key is not of the kind needed.
    #[error("key is {seen}, expected {expected}")]
    Key {
        /// Object identifier seen.
        seen: ObjectIdentifier,
        /// What is needed.
        expected: &'static str,
    },
    /// The algorithm's parameters cannot be read.
    #[error("parameters of the signature algorithm are malformed: {0}")]
    Der(#[from] der::Error),
}

/// A certificate that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// Longer than any certificate a TEE's maker issues.
    #[error("certificate has {seen} bytes, at most {MAX_CERT} are taken")]
    TooLong {
        /// Bytes seen.
        seen: usize,
    },
    /// Not DER or not a certificate.
    #[error("certificate is malformed: {0}")]
    Der(#[from] der::Error),
    /// Not PEM.
    #[error("PEM text of the certificate is broken: {why}")]
    Pem {
        /// What is wrong.
        why: String,
    },
    /// No or too many certificates in a PEM bundle.
    #[error("PEM bundle has {seen} certificates, expected 1 to {MAX_CHAIN}")]
    Bundle {
        /// Certificates seen.
        seen: usize,
    },
    /// Signed by an algorithm that its maker does not use.
    #[error("certificate's signature algorithm is {seen}, expected {expected}")]
    SignatureAlgorithm {
        /// Object identifier seen.
        seen: ObjectIdentifier,
        /// What is needed.
        expected: &'static str,
    },
    /// The two places that name the signature algorithm differ.
    #[error("certificate names two different signature algorithms")]
    AlgorithmsDiffer,
    /// The key is not of the kind needed.
    #[error("certificate's key is {seen}, expected {expected}")]
    KeyAlgorithm {
        /// Object identifier seen.
        seen: ObjectIdentifier,
        /// What is needed.
        expected: &'static str,
    },
    /// An intermediate or root that may not sign certificates.
    #[error("certificate of {subject} may not sign certificates")]
    NotAuthority {
        /// Common name.
        subject: String,
    },
    /// An authority where a key that signs evidence is expected.
    #[error("certificate of {subject} is that of an authority, expected one that signs data")]
    NotEndEntity {
        /// Common name.
        subject: String,
    },
    /// A critical extension this software does not know.
    #[error("certificate has an unknown critical extension {oid}")]
    CriticalExtension {
        /// Which.
        oid: ObjectIdentifier,
    },
    /// Not yet or no longer valid.
    #[error("certificate is valid from {not_before} to {not_after}, the time is {now}")]
    Validity {
        /// Start.
        not_before: String,
        /// End.
        not_after: String,
        /// Time of the check.
        now: String,
    },
    /// A certificate without an extension that its kind always has.
    #[error("certificate lacks the extension {name} ({oid})")]
    MissingExtension {
        /// Its maker's name of it.
        name: &'static str,
        /// Its identifier.
        oid: ObjectIdentifier,
    },
    /// An extension with a value out of form.
    #[error("extension {name} of the certificate has a malformed value")]
    BadExtension {
        /// Its maker's name of it.
        name: &'static str,
    },
}

impl From<AlgorithmError> for CertError {
    fn from(error: AlgorithmError) -> Self {
        match error {
            AlgorithmError::Signature { seen, expected } => Self::SignatureAlgorithm { seen, expected },
            AlgorithmError::Differ => Self::AlgorithmsDiffer,
            AlgorithmError::Key { seen, expected } => Self::KeyAlgorithm { seen, expected },
            AlgorithmError::Der(error) => Self::Der(error),
        }
    }
}
