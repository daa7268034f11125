//! Why a policy is none, and why an image does not meet one.

use std::fmt;

use crate::registry::RegistryError;

/// Why a signature policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Longer than any policy is.
    #[error("the signature policy has {seen} bytes, at most {max} are read")]
    TooLong {
        /// Bytes seen.
        seen: usize,
        /// The bound.
        max: usize,
    },
    /// No JSON, or a field is there twice.
    #[error("the signature policy is malformed: {source}; it has the form of containers-policy.json(5)")]
    Json {
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field is unknown, missing, or of another kind.
    #[error("the signature policy is malformed at {path}: seen {seen}, expected {expected}")]
    Field {
        /// Where, for instance `transports.docker["host/repo"][0].keyPath`.
        path: String,
        /// What is there.
        seen: String,
        /// What should be.
        expected: String,
    },
}

impl PolicyError {
    pub(super) fn at(path: &str, seen: &str, expected: &str) -> Self {
        Self::Field { path: path.to_owned(), seen: seen.to_owned(), expected: expected.to_owned() }
    }
}

/// Why the signatures of an image were not found good.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A key or certificate that the policy names is not to be had, or is none.
    #[error(
        "image {image} cannot be verified: {name}, which the signature policy names for scope {scope}, cannot be used: {why}; {what_to_do}"
    )]
    Material {
        /// The image asked for.
        image: String,
        /// The scope of the policy.
        scope: String,
        /// Path or field that names the key.
        name: String,
        /// Why.
        why: String,
        /// How to mend it.
        what_to_do: &'static str,
    },
    /// The registry, while it was asked for signatures.
    #[error("image {image} cannot be verified: its signatures were not had: {source}")]
    Registry {
        /// The image asked for.
        image: String,
        /// Why.
        source: RegistryError,
    },
    /// The policy refuses the image.
    #[error(transparent)]
    Refused(#[from] Box<Refusal>),
}

/// An image that a requirement of its scope refuses.
#[derive(Debug)]
pub struct Refusal {
    /// The image asked for.
    pub image: String,
    /// Digest of its manifest.
    pub digest: String,
    /// The scope of the policy that holds for it.
    pub scope: String,
    /// Number of the requirement within its scope, from 0.
    pub requirement: usize,
    /// Its type.
    pub kind: &'static str,
    /// What is wrong with each signature; one entry for the image where there is none.
    pub reasons: Vec<Rejected>,
}

/// A signature that does not satisfy a requirement.
#[derive(Debug)]
pub struct Rejected {
    /// Which: where it was found; empty when the reason is of the whole image.
    pub signature: String,
    /// Why.
    pub reason: Reason,
}

/// Most reasons that one message lists.
const TOLD: usize = 8;

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, digest, scope, requirement, kind, reasons } = self;
        write!(f, "image {image} ({digest}) is refused by the signature policy, scope {scope}, ")?;
        write!(f, "requirement {requirement} ({kind}): ")?;
        for (number, rejected) in reasons.iter().take(TOLD).enumerate() {
            let gap = if number == 0 { "" } else { "; " };
            write!(f, "{gap}{rejected}")?;
        }
        if reasons.len() > TOLD {
            write!(f, "; and {} more", reasons.len() - TOLD)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.signature.is_empty() {
            write!(f, "{}: ", self.signature)?;
        }
        write!(f, "{} ({})", self.reason, self.reason.what_to_do())
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// There is no signature.
    #[error("unsigned: no signature was found at {looked_at}")]
    Unsigned {
        /// Where it would be.
        looked_at: String,
    },
    /// The scope has the requirement `reject`.
    #[error("the scope rejects every image")]
    ScopeRejects,
    /// A requirement that is known and not built.
    #[error("requirement {name} is not supported: {why}")]
    Unsupported {
        /// Its name.
        name: &'static str,
        /// Why it is not.
        why: &'static str,
    },
    /// No key of the policy made the signature; or what was signed was changed afterwards, which looks the same.
    #[error("wrong key, or what was signed was changed: the signature does not verify with {expected}")]
    WrongKey {
        /// The keys tried.
        expected: String,
    },
    /// The signature is for another repository or tag.
    #[error("wrong identity: it was signed as {seen}, expected {expected}")]
    WrongIdentity {
        /// What the signature says.
        seen: String,
        /// What the policy wants.
        expected: String,
    },
    /// The signature is for another image: one that was mirrored by another tool, pushed over, or moved.
    #[error("the payload names another digest: it was made for {seen}, this image is {expected}")]
    OtherDigest {
        /// What the signature says.
        seen: String,
        /// The digests of the image.
        expected: String,
    },
    /// The certificate was made for another person or workflow, or by another login service.
    #[error("wrong signer: {field} of the certificate is {seen}, expected {expected}")]
    WrongSigner {
        /// Which field.
        field: &'static str,
        /// What the certificate says.
        seen: String,
        /// What the policy wants.
        expected: String,
    },
    /// The certificate does not lead to a root of the policy, or may not sign code.
    #[error("untrusted certificate: {seen}, expected one that {expected}")]
    UntrustedCertificate {
        /// What is wrong with it.
        seen: String,
        /// The roots.
        expected: String,
    },
    /// The certificate was not valid when the log took the signature in.
    #[error("expired certificate: it was logged at {seen}, expected a time {expected} (seconds since 1970)")]
    ExpiredCertificate {
        /// The log's time, in seconds since 1970.
        seen: u64,
        /// `before …` or `after …`, in seconds since 1970.
        expected: String,
    },
    /// No log entry that the policy's Rekor keys signed is for this very signature.
    #[error("not logged: {seen}, expected {expected}")]
    NotLogged {
        /// What there is.
        seen: String,
        /// What should be.
        expected: &'static str,
    },
    /// A part of the signature cannot be read.
    #[error("the signature's {part} cannot be read: {why}")]
    Malformed {
        /// Which part.
        part: &'static str,
        /// Why.
        why: String,
    },
    /// Beyond a bound.
    #[error("the signatures exceed the limit {limit} of {max}: seen {seen}")]
    Limit {
        /// Its name.
        limit: &'static str,
        /// Its value.
        max: u64,
        /// What there is.
        seen: u64,
    },
}

impl Reason {
    pub(super) fn malformed(part: &'static str, why: impl fmt::Display) -> Self {
        Self::Malformed { part, why: super::json::cut(&why.to_string()) }
    }

    /// A word that programs tell the reasons by; these stay as they are.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Unsigned { .. } => "unsigned",
            Self::ScopeRejects => "scope-rejects",
            Self::Unsupported { .. } => "unsupported",
            Self::WrongKey { .. } => "wrong-key",
            Self::WrongIdentity { .. } => "wrong-identity",
            Self::OtherDigest { .. } => "other-digest",
            Self::WrongSigner { .. } => "wrong-signer",
            Self::UntrustedCertificate { .. } => "untrusted-certificate",
            Self::ExpiredCertificate { .. } => "expired-certificate",
            Self::NotLogged { .. } => "not-logged",
            Self::Malformed { .. } => "malformed",
            Self::Limit { .. } => "limit",
        }
    }

    /// How to mend it.
    #[must_use]
    pub const fn what_to_do(&self) -> &'static str {
        match self {
            Self::Unsigned { .. } => {
                "sign the image where it is pulled from; a copy between registries needs its signatures copied too"
            }
            Self::ScopeRejects => "give the image's repository a scope of its own in the policy",
            Self::Unsupported { .. } => "use sigstoreSigned with keyPath, keyData or fulcio",
            Self::WrongKey { .. } => "sign with a key of the policy, or add the signer's key to it",
            Self::WrongIdentity { .. } => {
                "signatures by cosign name the repository alone and need signedIdentity matchRepository; for a mirror see exactRepository and remapIdentity"
            }
            Self::OtherDigest { .. } => "sign this very image: copying it in another form changes its digest",
            Self::WrongSigner { .. } => {
                "sign as the identity of the policy, or change subjectEmail or oidcIssuer"
            }
            Self::UntrustedCertificate { .. } => {
                "put the root of the signer's Fulcio into caPath or caData of the policy"
            }
            Self::ExpiredCertificate { .. } => {
                "sign again: the log must take the signature in while the certificate is valid"
            }
            Self::NotLogged { .. } => {
                "sign with upload to the transparency log, or pin the key of the log that was used"
            }
            Self::Malformed { .. } => "sign again with cosign or skopeo",
            Self::Limit { .. } => "remove old signatures from the repository",
        }
    }
}
