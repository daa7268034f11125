//! From a report and its endorsements to a verified report, or a refusal that says why.
//!
//! Steps (snp: firmware ABI chapter 7, AMD 57230 chapter 3): parse the report; root of the chain is
//! the anchor's, by key; ARK → ASK or ASVK → VCEK or VLEK by name and signature, each valid at
//! `now`; the report's signature; its signing-key bits against the kind of certificate; its
//! reported TCB and chip id against the certificate's extensions.
//!
//! What a policy decides (measurement, debug bit, minimum TCB, VMPL, report data) is not decided
//! here. The simulated platform differs in nothing but [`TrustAnchor`].
//!
//! Limits: revocation lists are not consulted.

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};

use crate::certs::{AMD_SIGNATURE, CertError, Certificate, VekExtensions};
use crate::policy::SigningKey;
use crate::report::{Report, ReportError, Reserved, SIGNATURE_ALGO_ECDSA_P384, SIGNED_LEN};
use crate::roots;

/// Processor lines that have a root of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// Third generation EPYC.
    Milan,
    /// Fourth generation EPYC: Genoa, Bergamo, Siena.
    Genoa,
    /// Fifth generation EPYC.
    Turin,
}

impl Product {
    /// All products known.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// From a processor's family and model (AMD 57230, CPUID to product).
    #[must_use]
    pub const fn from_cpuid(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0F) => Some(Self::Milan),
            (0x19, 0x10..=0x1F | 0xA0..=0xAF) => Some(Self::Genoa),
            (0x1A, 0x00..=0x1F) => Some(Self::Turin),
            _ => None,
        }
    }

    /// From the name in an endorsement key's certificate (`Milan-B0`, `Genoa`).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let line = name.split('-').next().unwrap_or(name);
        Self::ALL.into_iter().find(|product| product.name() == line)
    }

    /// The product of a report: from its processor identification, in version 2 (which has none)
    /// from the endorsement key's certificate.
    #[must_use]
    pub fn of(report: &Report, vek: Option<&Certificate>) -> Option<Self> {
        match report.cpuid {
            Some(cpu) => Self::from_cpuid(cpu.family, cpu.model),
            None => Self::from_name(&VekExtensions::of(vek?).ok()?.product_name),
        }
    }

    /// Name as AMD's services write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }
}

/// The root that a chain has to end in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustAnchor {
    /// AMD's root of a product, built in.
    Amd(Product),
    /// The root of a simulated platform; has to be configured.
    Simulated(Box<Certificate>),
}

/// Which kind of anchor a report was verified under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnchorKind {
    /// AMD's hardware.
    Amd(Product),
    /// A simulated platform.
    Simulated,
}

impl TrustAnchor {
    /// The kind, without the certificate.
    #[must_use]
    pub const fn kind(&self) -> AnchorKind {
        match self {
            Self::Amd(product) => AnchorKind::Amd(*product),
            Self::Simulated(_) => AnchorKind::Simulated,
        }
    }

    fn ark(&self) -> Result<Certificate, CertError> {
        match self {
            Self::Amd(product) => roots::ark(*product),
            Self::Simulated(ark) => Ok(ark.as_ref().clone()),
        }
    }
}

/// Certificates that came with a report, each DER (or PEM). What is missing and public is built in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endorsements {
    /// VCEK or VLEK.
    pub vek: Vec<u8>,
    /// ASK or ASVK.
    pub ask: Option<Vec<u8>>,
    /// Root; compared with the anchor, never trusted.
    pub ark: Option<Vec<u8>>,
}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// A certificate cannot be used.
    #[error("{role} certificate: {source}")]
    Certificate {
        /// Which.
        role: Role,
        /// Why.
        source: CertError,
    },
    /// A certificate is neither in the evidence nor built in.
    #[error("{role} certificate is missing from the evidence")]
    MissingCertificate {
        /// Which.
        role: Role,
    },
    /// The evidence brings another root.
    #[error("root of the evidence is {seen}, expected {expected}")]
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
        role: Role,
        /// Issuer named.
        seen: String,
        /// Subject of the next in the chain.
        expected: String,
    },
    /// A certificate's signature does not verify.
    #[error("{role} certificate is not signed by the key of '{issuer}'")]
    ChainSignature {
        /// Which.
        role: Role,
        /// Whose key was tried.
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
            Self::Report(_) | Self::Unsigned | Self::SignatureAlgorithm { .. } => Blame::Report,
            Self::Certificate { .. }
            | Self::MissingCertificate { .. }
            | Self::Root { .. }
            | Self::Issuer { .. }
            | Self::ChainSignature { .. }
            | Self::VekForm { .. } => Blame::Endorsements,
            Self::Signature { .. }
            | Self::SigningKey { .. }
            | Self::Product { .. }
            | Self::Tcb { .. }
            | Self::ChipId { .. } => Blame::Binding,
        }
    }
}

/// A report that its platform vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The report.
    pub report: Report,
    /// What the chain ends in; says whether this is hardware.
    pub anchor: AnchorKind,
    /// Kind of the key that signed.
    pub vek: VekKind,
    /// What its certificate says.
    pub extensions: VekExtensions,
}

/// Verifies a report under one anchor. `now` in seconds since 1970.
///
/// # Errors
/// [`VerifyError`] names the step that failed, what was seen and what was expected.
pub fn verify(
    report: &[u8],
    endorsements: &Endorsements,
    anchor: &TrustAnchor,
    now: u64,
) -> Result<Verified, VerifyError> {
    let parsed = Report::parse_with(report, Reserved::MustBeZero)?;
    if parsed.signature_algo != SIGNATURE_ALGO_ECDSA_P384 {
        return Err(VerifyError::SignatureAlgorithm { seen: parsed.signature_algo });
    }
    if parsed.key_info.signing_key() == SigningKey::None {
        return Err(VerifyError::Unsigned);
    }
    let vek = load(Role::Vek, &endorsements.vek)?;
    let extensions =
        VekExtensions::of(&vek).map_err(|source| VerifyError::Certificate { role: Role::Vek, source })?;
    let kind = vek_kind(&extensions)?;
    if let TrustAnchor::Amd(product) = anchor {
        check_product(&parsed, &vek, *product)?;
    }
    verify_chain(&vek, kind, endorsements, anchor, now)?;
    verify_signature(report, &parsed, &vek, kind)?;
    verify_binding(&parsed, kind, &extensions)?;
    Ok(Verified { report: parsed, anchor: anchor.kind(), vek: kind, extensions })
}

fn load(role: Role, bytes: &[u8]) -> Result<Certificate, VerifyError> {
    if bytes.is_empty() {
        return Err(VerifyError::MissingCertificate { role });
    }
    Certificate::from_der_or_pem(bytes).map_err(|source| VerifyError::Certificate { role, source })
}

fn vek_kind(extensions: &VekExtensions) -> Result<VekKind, VerifyError> {
    match (&extensions.hw_id, &extensions.csp_id) {
        (Some(_), None) => Ok(VekKind::Vcek),
        (None, Some(_)) => Ok(VekKind::Vlek),
        (Some(_), Some(_)) => Err(VerifyError::VekForm { seen: "both" }),
        (None, None) => Err(VerifyError::VekForm { seen: "neither" }),
    }
}

fn check_product(report: &Report, vek: &Certificate, expected: Product) -> Result<(), VerifyError> {
    let seen = Product::of(report, Some(vek));
    if seen == Some(expected) {
        return Ok(());
    }
    let seen = match (seen, report.cpuid) {
        (Some(product), _) => product.name().to_owned(),
        (None, Some(cpu)) => format!("processor family {:#x} model {:#x}", cpu.family, cpu.model),
        (None, None) => "an unnamed product".to_owned(),
    };
    Err(VerifyError::Product { seen, expected: expected.name() })
}

/// ARK → ASK → VEK, the root being the anchor's.
fn verify_chain(
    vek: &Certificate,
    kind: VekKind,
    endorsements: &Endorsements,
    anchor: &TrustAnchor,
    now: u64,
) -> Result<(), VerifyError> {
    let ark = anchor.ark().map_err(|source| VerifyError::Certificate { role: Role::Ark, source })?;
    if let Some(bytes) = &endorsements.ark {
        check_root(&load(Role::Ark, bytes)?, &ark)?;
    }
    let ask = match (&endorsements.ask, anchor) {
        (Some(bytes), _) => load(Role::Ask, bytes)?,
        (None, TrustAnchor::Amd(product)) => {
            let certs = roots::product_certs(*product);
            load(Role::Ask, if kind == VekKind::Vcek { certs.ask } else { certs.asvk })?
        }
        (None, TrustAnchor::Simulated(_)) => return Err(VerifyError::MissingCertificate { role: Role::Ask }),
    };
    let in_role = |role| move |source| VerifyError::Certificate { role, source };
    ark.check_authority().map_err(in_role(Role::Ark))?;
    ask.check_authority().map_err(in_role(Role::Ask))?;
    verify_link(Role::Ark, &ark, &ark, now)?;
    verify_link(Role::Ask, &ask, &ark, now)?;
    verify_link(Role::Vek, vek, &ask, now)
}

fn check_root(seen: &Certificate, expected: &Certificate) -> Result<(), VerifyError> {
    let describe = |cert: &Certificate| {
        cert.key_fingerprint()
            .map(|key| format!("'{}' with key sha256:{key}", cert.subject_cn()))
            .map_err(|source| VerifyError::Certificate { role: Role::Ark, source })
    };
    let (seen, expected) = (describe(seen)?, describe(expected)?);
    if seen == expected { Ok(()) } else { Err(VerifyError::Root { seen, expected }) }
}

fn verify_link(role: Role, cert: &Certificate, issuer: &Certificate, now: u64) -> Result<(), VerifyError> {
    if !cert.names_issuer(issuer) {
        return Err(VerifyError::Issuer { role, seen: cert.issuer_cn(), expected: issuer.subject_cn() });
    }
    if !cert.signed_by(issuer, AMD_SIGNATURE).map_err(|source| VerifyError::Certificate { role, source })? {
        return Err(VerifyError::ChainSignature { role, issuer: issuer.subject_cn() });
    }
    cert.check_validity(now).map_err(|source| VerifyError::Certificate { role, source })
}

fn verify_signature(
    bytes: &[u8],
    report: &Report,
    vek: &Certificate,
    kind: VekKind,
) -> Result<(), VerifyError> {
    let point =
        vek.p384_public_key().map_err(|source| VerifyError::Certificate { role: Role::Vek, source })?;
    let refused = VerifyError::Signature { kind };
    let (Some(signature), Some(signed)) = (report.signature.to_fixed(), bytes.get(..SIGNED_LEN)) else {
        return Err(refused);
    };
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(signed, &signature).map_err(|_| refused)
}

/// Report and certificate belong together.
fn verify_binding(report: &Report, kind: VekKind, extensions: &VekExtensions) -> Result<(), VerifyError> {
    let signing_key = report.key_info.signing_key();
    let expected = match kind {
        VekKind::Vcek => SigningKey::Vcek,
        VekKind::Vlek => SigningKey::Vlek,
    };
    if signing_key != expected {
        return Err(VerifyError::SigningKey { seen: signing_key, expected: kind });
    }
    if report.reported_tcb != extensions.tcb {
        return Err(VerifyError::Tcb { seen: report.reported_tcb, expected: extensions.tcb });
    }
    match &extensions.hw_id {
        // A platform may mask its chip id; the certificate then speaks alone.
        Some(id) if report.chip_id != [0; 64] => check_chip_id(&report.chip_id, id),
        _ => Ok(()),
    }
}

/// From Turin on the id has 8 bytes and the rest of the field is zero.
fn check_chip_id(seen: &[u8; 64], expected: &[u8]) -> Result<(), VerifyError> {
    let (head, tail) = seen.split_at_checked(expected.len()).unwrap_or((seen, &[]));
    if head == expected && tail.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    Err(VerifyError::ChipId { seen: hex::encode(seen), expected: hex::encode(expected) })
}
