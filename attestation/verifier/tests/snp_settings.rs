//! What a configuration adds to the verification of real SNP evidence: endorsements looked up, demands, version 2.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use kata_cc_kbs_protocol::Tee;
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::verify::{Product, Role};
use kata_cc_snp::{CertKind, CertTable, EndorsementSource, Report, Supply, VerifyError};
use kata_cc_verifier::{Evidence, Reason, Refusal, SnpSettings, Verdict, VerifierConfig, verify};
use kata_cc_x509::ChainError;
use serde_json::Value;

/// 2025-09-01: within the validity of the real certificates.
const THEN: u64 = 1_756_684_800;

/// One certificate for everybody who asks.
#[derive(Debug)]
struct Shelf(Vec<u8>);

impl EndorsementSource for Shelf {
    fn find(&self, _: &Report, _: Product) -> Supply {
        Supply { vek: Some(Arc::from(self.0.as_slice())), ..Supply::default() }
    }
}

struct Recorded {
    report: Report,
    vek: Vec<u8>,
}

impl Recorded {
    fn load(name: &str) -> Option<Self> {
        let dir = kata_cc_test_vectors::path("snp/reports")?.join(name);
        let vek = if name.ends_with("vlek") { "vlek.der" } else { "vcek.der" };
        let report = Report::parse(&std::fs::read(dir.join("report.bin")).unwrap()).unwrap();
        Some(Self { report, vek: std::fs::read(dir.join(vek)).unwrap() })
    }

    fn check(&self, config: &VerifierConfig, with_vek: bool) -> Result<Verdict, Refusal> {
        let kind = if self.report.key_info.0 & 4 == 0 { CertKind::Vcek } else { CertKind::Vlek };
        let entries = if with_vek { vec![(kind, self.vek.clone())] } else { Vec::new() };
        let evidence = serde_json::to_value(SnpEvidence::new(&self.report, &CertTable { entries })).unwrap();
        let input = Evidence { tee: Tee::Snp, evidence: &evidence, report_data: None, init_data: None };
        verify(config, &input, THEN)
    }
}

fn settings(text: &str) -> SnpSettings {
    toml::from_str(text).unwrap()
}

#[test]
fn certificates_that_evidence_lacks_are_looked_up() {
    let Some(recorded) = Recorded::load("turin-v5") else { return };
    let mut config = VerifierConfig::default();
    let refused = recorded.check(&config, false).unwrap_err();
    assert_eq!(refused, Refusal::Snp(VerifyError::MissingCertificate { role: Role::Vek }));
    config.snp.endorsements = Some(Arc::new(Shelf(recorded.vek.clone())));
    for _ in 0..2 {
        let claims = recorded.check(&config, false).unwrap().tee_claims().clone();
        assert_eq!((&claims["product"], &claims["vek_kind"]), (&"Turin".into(), &"vcek".into()));
        assert_eq!((&claims["crl_checked"], &claims["crl_status"]), (&false.into(), &"absent".into()));
        assert_eq!((&claims["reported_tcb_fmc"], &claims["cpuid_family"]), (&0.into(), &26.into()));
        assert_eq!(claims["launch_mit_vector"], Value::from("0x0"));
    }
    assert_eq!(config.snp.chains.len(), 1, "verified once");
    // A certificate of the evidence goes first; a wrong one on the shelf is only a refusal.
    config.snp.endorsements = Some(Arc::new(Shelf(Recorded::load("milan-v3-a").unwrap().vek)));
    recorded.check(&config, true).unwrap();
    assert!(matches!(
        recorded.check(&config, false),
        Err(Refusal::Snp(VerifyError::Chain(ChainError::Issuer { .. })))
    ));
}

#[test]
fn demands_are_told_all_at_once() {
    let Some(recorded) = Recorded::load("milan-v3-a") else { return };
    let mut config = VerifierConfig::default();
    config.snp.settings = settings(
        "requirements.policy = { debug_allowed = false, smt_allowed = false }\n\
         requirements.minimum_tcb.committed = { snp = 25 }",
    );
    let refused = recorded.check(&config, true).unwrap_err();
    assert_eq!((refused.reason(), refused.claim()), (Reason::Unacceptable, "policy_smt_allowed"));
    let text = refused.to_string();
    assert!(text.contains("policy_smt_allowed is true, expected false"), "{text}");
    assert!(text.contains("committed_tcb_snp is 24, expected at least 25"), "{text}");
    config.snp.settings = settings("requirements.policy.debug_allowed = false");
    recorded.check(&config, true).unwrap();
    config.snp.settings = settings("crl_required = true");
    let refused = recorded.check(&config, true).unwrap_err();
    assert_eq!(refused, Refusal::Snp(VerifyError::CrlMissing { issuer: "ARK-Milan".into() }));
}

#[test]
fn version_2_needs_a_processor_line_and_the_right_one() {
    let Some(recorded) = Recorded::load("milan-v2-a") else { return };
    let mut config = VerifierConfig::default();
    assert_eq!(recorded.check(&config, true).unwrap_err(), Refusal::ReportVersion { seen: 2 });
    config.snp.settings = settings("v2_product = \"Milan\"");
    let verdict = recorded.check(&config, true).unwrap();
    assert_eq!(verdict.tee_claims()["report_version"], 2);
    assert!(verdict.tee_claims().get("cpuid_family").is_none());
    config.snp.settings = settings("v2_product = \"Genoa\"");
    assert!(matches!(
        recorded.check(&config, true),
        Err(Refusal::Snp(VerifyError::Chain(ChainError::Issuer { .. })))
    ));
}

#[test]
fn a_vlek_names_its_provider() {
    let Some(recorded) = Recorded::load("milan-v3-vlek") else { return };
    let mut config = VerifierConfig { max_vmpl: 1, ..VerifierConfig::default() };
    let claims = recorded.check(&config, true).unwrap().tee_claims().clone();
    assert_eq!(
        (&claims["vek_kind"], &claims["csp_id"]),
        (&"vlek".into(), &"CN=cc-us-east-2.amazonaws.com".into())
    );
    config.snp.settings = settings("requirements.csp_ids = [\"CN=other\"]");
    assert_eq!(recorded.check(&config, true).unwrap_err().claim(), "csp_id");
}
