//! Verifies attestation evidence: evidence, what it has to bind, trust anchors and the time go in; a verdict
//! with claims, or a refusal that names claim, seen and expected, comes out. Pure: no files, no network.
//!
//! Covered: `snp` (hardware, AMD's built-in roots) and `sim-snp` (a simulated platform), through the same
//! code. A simulated root is never built in: without one in [`VerifierConfig`], simulated evidence is
//! refused, and its claims stand under `sim-snp`, never under `snp`.
//!
//! What is checked here: chain and signature, report version (3 to 5, as Trustee does), VMPL, report data
//! ([`binding`]), init-data against `HOST_DATA` ([`initdata`]). What is not: whether measurement, policy
//! bits and TCB are *good*. That is for the attestation policy, which sees them as claims ([`claims`]).
//!
//! Sources: Trustee `deps/verifier/src/snp`, its evidence and claims by name; SNP firmware ABI.
#![forbid(unsafe_code)]

pub mod binding;
pub mod claims;
pub mod initdata;
mod refusal;

use kata_cc_kbs_protocol::Tee;
use kata_cc_snp::certs::{CertError, Certificate};
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::verify::{AnchorKind, Product};
use kata_cc_snp::{Endorsements, Report, TrustAnchor, VerifyError};
use serde::Deserialize as _;
use serde_json::Value;

pub use initdata::ExpectedInitData;
pub use refusal::{Reason, Refusal};

/// Most simulated roots that can be configured.
pub const MAX_SIMULATED_ROOTS: usize = 16;

/// What the verifier trusts and demands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifierConfig {
    /// Roots of simulated platforms. Empty unless somebody put one there by hand.
    pub simulated_roots: Vec<Certificate>,
    /// Highest VMPL that a report may come from; 0 unless an SVSM is expected.
    pub max_vmpl: u32,
}

impl VerifierConfig {
    /// Adds the root of a simulated platform (PEM or DER), at most [`MAX_SIMULATED_ROOTS`].
    ///
    /// # Errors
    /// [`CertError`] when it is no certificate, may not sign others, or is one too many.
    pub fn add_simulated_root(&mut self, bytes: &[u8]) -> Result<(), CertError> {
        let root = Certificate::from_der_or_pem(bytes)?;
        root.check_authority()?;
        if self.simulated_roots.len() >= MAX_SIMULATED_ROOTS {
            return Err(CertError::Bundle { seen: self.simulated_roots.len() + 1 });
        }
        self.simulated_roots.push(root);
        Ok(())
    }
}

/// One piece of evidence and what it has to bind.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// TEE that it claims to be from.
    pub tee: Tee,
    /// Trustee's JSON form.
    pub evidence: &'a Value,
    /// Digest that the report data has to hold, before padding to 64 bytes. `None`: not checked.
    pub report_data: Option<&'a [u8]>,
    /// Init-data that the guest has to be launched with. `None`: not checked.
    pub init_data: Option<ExpectedInitData<'a>>,
}

/// Verified evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// TEE that vouches for it; `SimSnp` exactly when the anchor was a simulated root.
    pub tee: Tee,
    /// Claims as a policy sees them: a member named after the TEE, `report_data`, `init_data`, and
    /// `init_data_claims` when the document was given.
    pub claims: Value,
    /// Launch digest.
    pub measurement: [u8; 48],
    /// Report data.
    pub report_data: [u8; 64],
    /// `HOST_DATA`, where the init-data's digest is.
    pub init_data: [u8; 32],
    /// The whole report.
    pub report: Report,
}

impl Verdict {
    /// The claims under the TEE's name.
    #[must_use]
    pub fn tee_claims(&self) -> &Value {
        self.claims.get(self.tee.name()).unwrap_or(&Value::Null)
    }
}

/// Verifies evidence at `now` (seconds since 1970).
///
/// # Errors
/// [`Refusal`] says what was seen and what was expected.
pub fn verify(config: &VerifierConfig, input: &Evidence<'_>, now: u64) -> Result<Verdict, Refusal> {
    match input.tee {
        Tee::Snp | Tee::SimSnp => verify_snp(config, input, now),
        tee => Err(Refusal::TeeNotSupported { tee }),
    }
}

fn verify_snp(config: &VerifierConfig, input: &Evidence<'_>, now: u64) -> Result<Verdict, Refusal> {
    if input.tee == Tee::SimSnp && config.simulated_roots.is_empty() {
        return Err(Refusal::SimulatedNotConfigured);
    }
    let evidence = SnpEvidence::deserialize(input.evidence)
        .map_err(|error| Refusal::Malformed { what: error.to_string() })?;
    let report = evidence.attestation_report.to_report().map_err(VerifyError::Report)?;
    if report.version < 3 {
        return Err(Refusal::ReportVersion { seen: report.version });
    }
    let given = evidence.endorsements();
    let bytes = report.to_bytes();
    let verified = match input.tee {
        Tee::SimSnp => verify_simulated(config, &bytes, &given, now)?,
        _ => {
            let anchor = TrustAnchor::Amd(product_of(&report, &given)?);
            kata_cc_snp::verify(&bytes, &given, &anchor, now)?
        }
    };
    let report = verified.report;
    if report.vmpl > config.max_vmpl {
        return Err(Refusal::Vmpl { seen: report.vmpl, expected: config.max_vmpl });
    }
    if let Some(expected) = input.report_data {
        binding::check_report_data(&report.report_data, expected)?;
    }
    let init_data_claims = match &input.init_data {
        Some(expected) => expected.check(&report.host_data)?,
        None => None,
    };
    // The label follows the anchor, not what the guest called itself.
    let tee = match verified.anchor {
        AnchorKind::Amd(_) => Tee::Snp,
        AnchorKind::Simulated => Tee::SimSnp,
    };
    Ok(Verdict {
        tee,
        claims: claims::annotated(tee, &report, init_data_claims),
        measurement: report.measurement,
        report_data: report.report_data,
        init_data: report.host_data,
        report,
    })
}

fn product_of(report: &Report, given: &Endorsements) -> Result<Product, Refusal> {
    let vek = Certificate::from_der_or_pem(&given.vek).ok();
    Product::of(report, vek.as_ref()).ok_or_else(|| {
        let cpu = report
            .cpuid
            .map_or_else(|| "none".to_owned(), |cpu| format!("{:#x}/{:#x}", cpu.family, cpu.model));
        Refusal::UnknownProduct { seen: cpu }
    })
}

/// Tries each configured root. The refusal reported is that of the root that came furthest: any but a
/// wrong root, if there is one, as it is the one that helps.
fn verify_simulated(
    config: &VerifierConfig,
    report: &[u8],
    given: &Endorsements,
    now: u64,
) -> Result<kata_cc_snp::Verified, Refusal> {
    let mut refused = Refusal::SimulatedNotConfigured;
    for root in &config.simulated_roots {
        let anchor = TrustAnchor::Simulated(Box::new(root.clone()));
        match kata_cc_snp::verify(report, given, &anchor, now) {
            Ok(verified) => return Ok(verified),
            Err(error) => {
                let error = Refusal::from(error);
                if refused.reason() != Reason::UntrustedRoot && refused != Refusal::SimulatedNotConfigured {
                    continue;
                }
                refused = error;
            }
        }
    }
    Err(refused)
}
