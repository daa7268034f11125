//! SEV-SNP: `snp` under AMD's built-in roots, `sim-snp` under a configured one, by the same code.
//!
//! Certificates of the evidence go before those of [`SnpConfig::endorsements`], revocation lists the other way round:
//! the host may keep an old list. A chain that was verified is not verified again ([`SnpConfig::chains`]).
//!
//! Source: Trustee `deps/verifier/src/snp`.

use std::sync::Arc;

use kata_cc_kbs_protocol::Tee;
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::verify::{Anchor, AnchorKind, Product};
use kata_cc_snp::{
    ChainCache, EndorsementSource, Endorsements, Report, Requirements, Revocation, Supply, VerifyError,
    verify_with,
};
use kata_cc_x509::Certificate;
use serde::Deserialize;

use crate::{Evidence, Reason, Refusal, Verdict, VerifierConfig, binding, claims, runtime};

/// What the verifier of SNP demands and where it looks endorsements up.
#[derive(Clone, Debug, Default)]
pub struct SnpConfig {
    /// What an owner demands.
    pub settings: SnpSettings,
    /// Where endorsements are looked up that evidence does not bring. Without it, evidence has to bring its VCEK or VLEK.
    pub endorsements: Option<Arc<dyn EndorsementSource>>,
    /// Verified chains; clones of the configuration share them.
    pub chains: Arc<ChainCache>,
}

/// The part of [`SnpConfig`] that stands in a configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnpSettings {
    /// Processor line of version 2 reports, which do not name it. Without it they are refused, as Trustee does.
    pub v2_product: Option<Product>,
    /// Refuse evidence for which no revocation list of AMD's root is at hand.
    pub crl_required: bool,
    /// Refuse a revocation list that has ended.
    pub refuse_expired_crl: bool,
    /// Demands on the report; all that are not met are told.
    pub requirements: Requirements,
}

pub(crate) fn verify(config: &VerifierConfig, input: &Evidence<'_>, now: u64) -> Result<Verdict, Refusal> {
    if input.tee == Tee::SimSnp && config.simulated_roots.is_empty() {
        return Err(Refusal::SimulatedNotConfigured { tee: input.tee });
    }
    let evidence = SnpEvidence::deserialize(input.evidence)
        .map_err(|error| Refusal::Malformed { what: error.to_string() })?;
    let report = evidence.attestation_report.to_report().map_err(VerifyError::Report)?;
    let settings = &config.snp.settings;
    if report.version < 3 && settings.v2_product.is_none() {
        return Err(Refusal::ReportVersion { seen: report.version });
    }
    let bytes = report.to_bytes();
    let verified = match input.tee {
        Tee::SimSnp => verify_simulated(config, &bytes, &evidence, now)?,
        _ => verify_hardware(config, &report, &bytes, &evidence, now)?,
    };
    let report = &verified.report;
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
    let differences = settings.requirements.check(&verified);
    if !differences.is_empty() {
        return Err(Refusal::Requirements { differences });
    }
    let mut snp_claims = claims::snp_verified(&verified);
    if let (Some(measured), Some(members)) = (runtime::claim(input.evidence)?, snp_claims.as_object_mut()) {
        members.insert(runtime::MEMBER.to_owned(), measured);
    }
    // The label follows the anchor, not what the guest called itself.
    let tee = match verified.anchor {
        AnchorKind::Amd(_) => Tee::Snp,
        AnchorKind::Simulated => Tee::SimSnp,
    };
    Ok(Verdict {
        tee,
        claims: claims::annotated(tee, snp_claims, &report.report_data, &report.host_data, init_data_claims),
        measurement: report.measurement.to_vec(),
        report_data: report.report_data.to_vec(),
        init_data: report.host_data.to_vec(),
    })
}

fn verify_hardware(
    config: &VerifierConfig,
    report: &Report,
    bytes: &[u8],
    evidence: &SnpEvidence,
    now: u64,
) -> Result<kata_cc_snp::Verified, Refusal> {
    verify_report(config, report, bytes, evidence.endorsements(), evidence.crl(), now)
}

/// Verifies a report of hardware with the certificates and the revocation list that came with it.
pub(crate) fn verify_report(
    config: &VerifierConfig,
    report: &Report,
    bytes: &[u8],
    given: Endorsements,
    own_list: Option<&[u8]>,
    now: u64,
) -> Result<kata_cc_snp::Verified, Refusal> {
    let product = match (report.cpuid, config.snp.settings.v2_product) {
        (None, Some(product)) => product,
        _ => product_of(report, &given)?,
    };
    let source = config.snp.endorsements.as_ref();
    let supply = source.map(|source| source.find(report, product)).unwrap_or_default();
    let given = filled(given, &supply);
    let list = supply.crl.as_deref().or(own_list);
    verify_under(config, Anchor::Amd(product), bytes, &given, list, now).map_err(Refusal::from)
}

/// The report's processor line, of version 2 that of the certificate beside it.
fn product_of(report: &Report, given: &Endorsements) -> Result<Product, Refusal> {
    // Later versions name their processor, so the certificate need not be read for that.
    let vek = report.cpuid.is_none().then(|| Certificate::from_der_or_pem(&given.vek).ok()).flatten();
    Product::of(report, vek.as_ref()).ok_or_else(|| {
        let cpu = report
            .cpuid
            .map_or_else(|| "none".to_owned(), |cpu| format!("{:#x}/{:#x}", cpu.family, cpu.model));
        Refusal::UnknownProduct { seen: cpu }
    })
}

/// The evidence's certificates, and the supply's where it has none.
fn filled(mut given: Endorsements, supply: &Supply) -> Endorsements {
    if let (true, Some(vek)) = (given.vek.is_empty(), &supply.vek) {
        given.vek = vek.to_vec();
    }
    if given.ask.is_none() {
        given.ask = supply.ask.as_ref().map(|ask| ask.to_vec());
    }
    given
}

fn verify_under(
    config: &VerifierConfig,
    anchor: Anchor<'_>,
    report: &[u8],
    given: &Endorsements,
    list: Option<&[u8]>,
    now: u64,
) -> Result<kata_cc_snp::Verified, VerifyError> {
    let settings = &config.snp.settings;
    let revocation = Revocation {
        lists: list.as_slice(),
        required: settings.crl_required,
        refuse_expired: settings.refuse_expired_crl,
    };
    verify_with(report, anchor, || config.snp.chains.chain(given, anchor, &revocation, now))
}

/// Tries each configured root. The refusal reported is that of the root that came furthest: any but a
/// wrong root, if there is one, as it is the one that helps.
fn verify_simulated(
    config: &VerifierConfig,
    report: &[u8],
    evidence: &SnpEvidence,
    now: u64,
) -> Result<kata_cc_snp::Verified, Refusal> {
    let given = evidence.endorsements();
    let mut refused = Refusal::SimulatedNotConfigured { tee: Tee::SimSnp };
    for root in &config.simulated_roots {
        match verify_under(config, Anchor::Simulated(root), report, &given, evidence.crl(), now) {
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
