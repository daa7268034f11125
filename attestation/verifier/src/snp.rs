//! SEV-SNP: `snp` under AMD's built-in roots, `sim-snp` under a configured one, by the same code.
//!
//! Source: Trustee `deps/verifier/src/snp`.

use kata_cc_kbs_protocol::Tee;
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::verify::{AnchorKind, Product};
use kata_cc_snp::{Endorsements, Report, TrustAnchor, VerifyError};
use kata_cc_x509::Certificate;
use serde::Deserialize as _;

use crate::{Evidence, Reason, Refusal, Verdict, VerifierConfig, binding, claims};

pub(crate) fn verify(config: &VerifierConfig, input: &Evidence<'_>, now: u64) -> Result<Verdict, Refusal> {
    if input.tee == Tee::SimSnp && config.simulated_roots.is_empty() {
        return Err(Refusal::SimulatedNotConfigured { tee: input.tee });
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
        Some(expected) => expected.check("host data", &report.host_data)?,
        None => None,
    };
    // The label follows the anchor, not what the guest called itself.
    let tee = match verified.anchor {
        AnchorKind::Amd(_) => Tee::Snp,
        AnchorKind::Simulated => Tee::SimSnp,
    };
    Ok(Verdict {
        tee,
        claims: claims::annotated(
            tee,
            claims::snp(&report),
            &report.report_data,
            &report.host_data,
            init_data_claims,
        ),
        measurement: report.measurement.to_vec(),
        report_data: report.report_data.to_vec(),
        init_data: report.host_data.to_vec(),
    })
}

pub(crate) fn product_of(report: &Report, given: &Endorsements) -> Result<Product, Refusal> {
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
    let mut refused = Refusal::SimulatedNotConfigured { tee: Tee::SimSnp };
    for root in &config.simulated_roots {
        let anchor = TrustAnchor::Simulated(Box::new(root.clone()));
        match kata_cc_snp::verify(report, given, &anchor, now) {
            Ok(verified) => return Ok(verified),
            Err(error) => {
                let error = Refusal::from(error);
                if !matches!(refused.reason(), Reason::UntrustedRoot | Reason::SimulatedNotConfigured) {
                    continue;
                }
                refused = error;
            }
        }
    }
    Err(refused)
}
