//! Why a quote is not to be believed.

use kata_cc_x509::{ChainError, CrlError};

use crate::collateral::CollateralError;
use crate::quote::QuoteError;
use crate::tcb::Timestamp;

/// Place of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Root.
    Root,
    /// Authority that issues PCK certificates.
    PckCa,
    /// The platform's certification key.
    Pck,
    /// Signer of TCB info and QE identity.
    TcbSigning,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::PckCa => "PCK authority",
            Self::Pck => "PCK",
            Self::TcbSigning => "TCB signing",
        })
    }
}

/// A signed piece of collateral.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// TCB info.
    TcbInfo,
    /// Identity of the quoting enclave.
    QeIdentity,
    /// Revocation list of the root.
    RootCrl,
    /// Revocation list of the PCK authority.
    PckCrl,
    /// Certificate of the signer of TCB info and QE identity.
    TcbSigningCertificate,
    /// Certificate of the PCK authority, beside its list.
    PckCaCertificate,
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TcbInfo => "TCB info",
            Self::QeIdentity => "QE identity",
            Self::RootCrl => "root CRL",
            Self::PckCrl => "PCK CRL",
            Self::TcbSigningCertificate => "TCB signing certificate",
            Self::PckCaCertificate => "certificate of the PCK authority",
        })
    }
}

/// A part of the platform that has levels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Processor, firmware and what loads the module.
    Platform,
    /// TDX module.
    Module,
    /// Quoting enclave.
    Qe,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Platform => "platform",
            Self::Module => "TDX module",
            Self::Qe => "quoting enclave",
        })
    }
}

/// Whom a refusal points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The quote cannot be read.
    Quote,
    /// A chain ends in another root.
    Root,
    /// A certificate or signature of the quote.
    Signature,
    /// The collateral: whoever runs the verifier has to look.
    Collateral,
    /// The platform: revoked, or of a level that nobody vouches for.
    Platform,
}

/// A quote that is not to be believed, or collateral that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Not a TDX quote.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// Collateral that cannot be read.
    #[error(transparent)]
    Collateral(#[from] CollateralError),
    /// A certificate that does not lead to the root.
    #[error(transparent)]
    Chain(#[from] ChainError<Role>),
    /// A chain is longer or shorter than Intel's.
    #[error("certificate chain of {role} has {seen} certificates, expected {expected}")]
    ChainLength {
        /// Whose.
        role: Role,
        /// Certificates seen.
        seen: usize,
        /// Certificates needed.
        expected: usize,
    },
    /// A revocation list cannot be used.
    #[error("{item}: {source}")]
    Crl {
        /// Which.
        item: Item,
        /// Why.
        source: CrlError,
    },
    /// A revocation list of another authority.
    #[error("{item} is of '{seen}', expected one of '{expected}'")]
    CrlIssuer {
        /// Which.
        item: Item,
        /// Issuer named.
        seen: String,
        /// Issuer needed.
        expected: String,
    },
    /// A signature over collateral does not verify.
    #[error("signature of the {item} does not verify with the key of '{signer}'")]
    CollateralSignature {
        /// Which.
        item: Item,
        /// Whose key was tried.
        signer: String,
    },
    /// A document of another kind or version.
    #[error("{item} says its {field} is {seen}, expected {expected}")]
    CollateralKind {
        /// Which.
        item: Item,
        /// Member.
        field: &'static str,
        /// Value seen.
        seen: String,
        /// Value needed.
        expected: &'static str,
    },
    /// Collateral issued later than now: the clock is wrong.
    #[error("{item} was issued at {issued}, the time is {now}: check the clock")]
    NotYetValid {
        /// Which.
        item: Item,
        /// Its date.
        issued: Timestamp,
        /// Time of the check.
        now: Timestamp,
    },
    /// Collateral is too old.
    #[error("{item} expired at {until}, the time is {now}: fetch the platform's collateral again")]
    Expired {
        /// Which.
        item: Item,
        /// Its end.
        until: Timestamp,
        /// Time of the check.
        now: Timestamp,
    },
    /// The QE's report is not signed by the PCK.
    #[error("report of the quoting enclave does not verify with the key of the PCK certificate")]
    QeReportSignature,
    /// The QE vouches for another attestation key.
    #[error("quoting enclave vouches for {seen}, expected the attestation key's {expected}")]
    QeBinding {
        /// Hex of its report data.
        seen: String,
        /// Hex of the hash over attestation key and authentication data.
        expected: String,
    },
    /// The quote is not signed by the attestation key, or was changed after it.
    #[error("quote's signature does not verify with its attestation key")]
    QuoteSignature,
    /// Collateral of another kind of platform.
    #[error("{field} of the platform is {seen}, the TCB info is for {expected}")]
    OtherPlatform {
        /// FMSPC or PCE-ID.
        field: &'static str,
        /// Hex of the PCK certificate's.
        seen: String,
        /// Hex of the TCB info's.
        expected: String,
    },
    /// Module or quoting enclave are not Intel's.
    #[error("{field} of the {part} is {seen}, expected {expected}")]
    Identity {
        /// Which.
        part: Part,
        /// Field of its identity.
        field: &'static str,
        /// Hex or number seen.
        seen: String,
        /// Hex or number needed.
        expected: String,
    },
    /// Nobody vouches for these versions.
    #[error("no TCB level fits the {part}: it has {seen}, lower than any that is supported")]
    NoTcbLevel {
        /// Which.
        part: Part,
        /// Its versions.
        seen: String,
    },
    /// Its level is revoked.
    #[error("TCB level of the {part} is revoked ({advisories})")]
    TcbRevoked {
        /// Which.
        part: Part,
        /// Advisories, or a word that there are none.
        advisories: String,
    },
}

impl VerifyError {
    /// Whom the refusal points at.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Quote(_) => Blame::Quote,
            Self::Chain(error) => chain_blame(error),
            Self::Collateral(_)
            | Self::Crl { .. }
            | Self::CrlIssuer { .. }
            | Self::CollateralSignature { .. }
            | Self::CollateralKind { .. }
            | Self::NotYetValid { .. }
            | Self::Expired { .. }
            | Self::OtherPlatform { .. }
            | Self::ChainLength { role: Role::TcbSigning, .. } => Blame::Collateral,
            Self::Identity { .. } | Self::NoTcbLevel { .. } | Self::TcbRevoked { .. } => Blame::Platform,
            Self::ChainLength { .. }
            | Self::QeReportSignature
            | Self::QeBinding { .. }
            | Self::QuoteSignature => Blame::Signature,
        }
    }

    /// Seen and expected, where values were compared.
    #[must_use]
    pub fn compared(&self) -> Option<(String, String)> {
        let of = |seen: &str, expected: &str| Some((seen.to_owned(), expected.to_owned()));
        match self {
            Self::Chain(error) => error.compared(),
            Self::CrlIssuer { seen, expected, .. }
            | Self::QeBinding { seen, expected }
            | Self::OtherPlatform { seen, expected, .. }
            | Self::Identity { seen, expected, .. } => of(seen, expected),
            Self::CollateralKind { seen, expected, .. } => of(seen, expected),
            Self::ChainLength { seen, expected, .. } => Some((seen.to_string(), expected.to_string())),
            Self::NotYetValid { issued, now, .. } => Some((now.to_string(), format!("from {issued}"))),
            Self::Expired { until, now, .. } => Some((now.to_string(), format!("until {until}"))),
            _ => None,
        }
    }
}

const fn chain_blame(error: &ChainError<Role>) -> Blame {
    match error {
        ChainError::Revoked { .. } => Blame::Platform,
        ChainError::Root { .. }
        | ChainError::Issuer { role: Role::Root | Role::PckCa, .. }
        | ChainError::Signature { role: Role::Root | Role::PckCa, .. } => Blame::Root,
        ChainError::Certificate { role: Role::TcbSigning, .. }
        | ChainError::Issuer { role: Role::TcbSigning, .. }
        | ChainError::Signature { role: Role::TcbSigning, .. } => Blame::Collateral,
        ChainError::Certificate { .. } | ChainError::Issuer { .. } | ChainError::Signature { .. } => {
            Blame::Signature
        }
    }
}
