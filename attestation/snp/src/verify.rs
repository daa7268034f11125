//! From a report and its endorsements to a verified report, or a refusal that says why.
//!
//! Steps (snp: firmware ABI chapter 7, AMD 57230 chapter 3): parse the report; the chain ([`crate::chain`]); the
//! report's signature; its signing-key bits against the kind of certificate; its reported TCB and chip id against the
//! certificate's extensions; its current versions against the committed ones.
//!
//! What an owner decides (measurement, debug bit, minimum TCB, VMPL, report data) is not decided here, but by
//! [`crate::Requirements`] or a policy. The simulated platform differs in nothing but its [`TrustAnchor`].

pub use crate::chain::{
    Anchor, AnchorKind, CrlStatus, Endorsements, MAX_CRLS, Revocation, TrustAnchor, VerifiedChain,
};
pub use crate::error::{Blame, Role, VekKind, VerifyError};
pub use crate::product::Product;

use crate::certs::VekExtensions;
use crate::policy::SigningKey;
use crate::report::{Report, Reserved, SIGNATURE_ALGO_ECDSA_P384, SIGNED_LEN};

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
    /// What is known about revocation.
    pub crl: CrlStatus,
}

/// Verifies a report under one anchor, without revocation lists. `now` in seconds since 1970.
///
/// # Errors
/// [`VerifyError`] names the step that failed, what was seen and what was expected.
pub fn verify(
    report: &[u8],
    endorsements: &Endorsements,
    anchor: &TrustAnchor,
    now: u64,
) -> Result<Verified, VerifyError> {
    verify_with(report, anchor.into(), || {
        VerifiedChain::verify(endorsements, anchor.into(), &Revocation::default(), now).map(Box::new)
    })
}

/// Verifies a report under one anchor and a chain that `chain` gives: by verifying it, or from a
/// [`crate::ChainCache`]. It is not called for a report that cannot be believed under any chain.
///
/// # Errors
/// [`VerifyError`] names the step that failed, what was seen and what was expected.
pub fn verify_with<C: std::ops::Deref<Target = VerifiedChain>>(
    report: &[u8],
    anchor: Anchor<'_>,
    chain: impl FnOnce() -> Result<C, VerifyError>,
) -> Result<Verified, VerifyError> {
    let parsed = Report::parse_with(report, Reserved::MustBeZero)?;
    if parsed.signature_algo != SIGNATURE_ALGO_ECDSA_P384 {
        return Err(VerifyError::SignatureAlgorithm { seen: parsed.signature_algo });
    }
    if parsed.key_info.signing_key() == SigningKey::None {
        return Err(VerifyError::Unsigned);
    }
    if let Anchor::Amd(expected) = anchor {
        check_processor(&parsed, expected)?;
    }
    let chain = chain()?;
    if let Anchor::Amd(expected) = anchor {
        check_product_name(&chain.extensions().product_name, expected)?;
    }
    verify_signature(report, &parsed, &chain)?;
    verify_binding(&parsed, chain.kind(), chain.extensions())?;
    check_committed(&parsed)?;
    Ok(Verified {
        report: parsed,
        anchor: chain.anchor(),
        vek: chain.kind(),
        extensions: chain.extensions().clone(),
        crl: chain.crl(),
    })
}

/// From version 3 on the report names its processor.
fn check_processor(report: &Report, expected: Product) -> Result<(), VerifyError> {
    let Some(cpu) = report.cpuid else { return Ok(()) };
    let seen = Product::from_cpuid(cpu.family, cpu.model);
    if seen == Some(expected) {
        return Ok(());
    }
    let seen = seen.map_or_else(
        || format!("processor family {:#x} model {:#x}", cpu.family, cpu.model),
        |product| product.name().to_owned(),
    );
    Err(VerifyError::Product { seen, expected: expected.name() })
}

/// The chain already ends in the product's root; a certificate that names another contradicts itself.
fn check_product_name(seen: &str, expected: Product) -> Result<(), VerifyError> {
    if Product::from_name(seen) == Some(expected) {
        return Ok(());
    }
    Err(VerifyError::Product { seen: seen.to_owned(), expected: expected.name() })
}

fn verify_signature(bytes: &[u8], report: &Report, chain: &VerifiedChain) -> Result<(), VerifyError> {
    let signed = match (report.signature.to_fixed(), bytes.get(..SIGNED_LEN)) {
        (Some(signature), Some(message)) => chain.signed(message, &signature),
        _ => false,
    };
    if signed { Ok(()) } else { Err(VerifyError::Signature { kind: chain.kind() }) }
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

/// Firmware cannot be rolled back below what was committed (firmware ABI, SNP_COMMIT). Whether it was rolled back since
/// the launch is the owner's question ([`crate::Requirements::deny_rollback_since_launch`]): firmware allows that.
fn check_committed(report: &Report) -> Result<(), VerifyError> {
    let (current, committed) = (&report.current_tcb, &report.committed_tcb);
    if !current.at_least(committed) {
        let (current, committed) = (current.to_string(), committed.to_string());
        return Err(VerifyError::NotCommitted { what: "TCB", current, committed });
    }
    if report.current_version < report.committed_version {
        return Err(VerifyError::NotCommitted {
            what: "firmware",
            current: report.current_version.to_string(),
            committed: report.committed_version.to_string(),
        });
    }
    Ok(())
}
