//! Why a report is not to be believed, and whom that points at.

use kata_cc_x509::{ChainError, CrlError};

use crate::policy::SigningKey;
use crate::report::ReportError;

/// Place of a certificate in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Root.
    Ark,
    /// Intermediate.
    Ask,
    /// Endorsement key.
    Vek,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ark => "root (ARK)",
            Self::Ask => "intermediate (ASK)",
            Self::Vek => "endorsement key (VCEK or VLEK)",
        })
    }
}

/// Kind of an endorsement key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VekKind {
    /// Of one chip.
    Vcek,
    /// Of a provider.
    Vlek,
}

impl std::fmt::Display for VekKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vcek => "VCEK",
            Self::Vlek => "VLEK",
        })
    }
}

/// Whom a refusal points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The report itself.
    Report,
    /// The certificates beside it.
    Endorsements,
    /// Report and certificates are each in order but do not belong together.
    Binding,
}

/// A report that is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Not a report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The platform masks its key: nothing vouches for the report.
    #[error("report is not signed (signing key selector is 'none'): the platform masks its chip key")]
    Unsigned,
    /// Another signature algorithm than the one defined.
    #[error("report's signature algorithm is {seen}, expected 1 (ECDSA P-384 with SHA-384)")]
    SignatureAlgorithm {
        /// Number seen.
        seen: u32,
    },
    /// The signature is not made by the endorsement key, or the report was changed after it.
    #[error("report's signature does not verify with the {kind} beside it")]
    Signature {
        /// Kind of that key.
        kind: VekKind,
    },
    /// A certificate that does not lead to the root.
    #[error(transparent)]
    Chain(#[from] ChainError<Role>),
    /// A certificate is neither in the evidence nor built in.
    #[error("{role} certificate is missing from the evidence")]
    MissingCertificate {
        /// Which.
        role: Role,
    },
    /// A revocation list cannot be used.
    #[error("revocation list: {0}")]
    Crl(#[from] CrlError),
    /// A revocation list of somebody who issued none of the certificates.
    #[error("revocation list was issued by '{seen}', expected '{expected}'")]
    CrlIssuer {
        /// Issuer named.
        seen: String,
        /// Those who could issue one.
        expected: String,
    },
    /// A revocation list's signature does not verify.
    #[error("revocation list is not signed by the key of '{issuer}'")]
    CrlSignature {
        /// Whose key was tried.
        issuer: String,
    },
    /// A revocation list is demanded and there is none.
    #[error(
        "no revocation list of '{issuer}' was given, and one is demanded: provide it with the endorsements"
    )]
    CrlMissing {
        /// Whose list.
        issuer: String,
    },
    /// The certificate is neither a VCEK's nor a VLEK's, or both.
    #[error(
        "endorsement key certificate names {seen}, expected either a chip id (VCEK) or a provider id (VLEK)"
    )]
    VekForm {
        /// What it names.
        seen: &'static str,
    },
    /// The report was signed by the other kind of key.
    #[error("report says it is signed by {seen:?}, the certificate is that of a {expected}")]
    SigningKey {
        /// What the report says.
        seen: SigningKey,
        /// Kind of the certificate.
        expected: VekKind,
    },
    /// The processor is not of the product whose root is the anchor.
    #[error("report comes from {seen}, expected {expected}")]
    Product {
        /// Product or identification seen.
        seen: String,
        /// Product of the anchor.
        expected: &'static str,
    },
    /// The endorsement key was derived for other firmware versions.
    #[error("report's reported TCB is ({seen}), the certificate is for ({expected})")]
    Tcb {
        /// Reported by the platform.
        seen: crate::Tcb,
        /// In the certificate.
        expected: crate::Tcb,
    },
    /// Firmware is older than what the report calls committed; firmware does not let that happen.
    #[error("report's current {what} is {current}, older than the committed one, {committed}")]
    NotCommitted {
        /// `TCB` or `firmware`.
        what: &'static str,
        /// Current one.
        current: String,
        /// Committed one.
        committed: String,
    },
    /// The endorsement key belongs to another chip.
    #[error("report's chip id is {seen}, the certificate is for {expected}")]
    ChipId {
        /// Hex of the report's.
        seen: String,
        /// Hex of the certificate's.
        expected: String,
    },
}

impl VerifyError {
    /// Whom the refusal points at.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Report(_)
            | Self::Unsigned
            | Self::SignatureAlgorithm { .. }
            | Self::NotCommitted { .. } => Blame::Report,
            Self::Chain(_)
            | Self::MissingCertificate { .. }
            | Self::Crl(_)
            | Self::CrlIssuer { .. }
            | Self::CrlSignature { .. }
            | Self::CrlMissing { .. }
            | Self::VekForm { .. } => Blame::Endorsements,
            Self::Signature { .. }
            | Self::SigningKey { .. }
            | Self::Product { .. }
            | Self::Tcb { .. }
            | Self::ChipId { .. } => Blame::Binding,
        }
    }
}
