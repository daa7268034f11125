//! Azure's vTPM forms: recorded evidence, its bindings, and every bit of it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use kata_cc_kbs_protocol::Tee;
use kata_cc_verifier::{Evidence, ExpectedInitData, Reason, Refusal, Verdict, VerifierConfig, verify};
use serde_json::{Value, json};

/// 2025-09-01: within the validity of the certificates.
const THEN: u64 = 1_756_684_800;

const SNP_V0: &str = "snp/evidence/az-snp-vtpm-evidence-v0.json";
const SNP_V1: &str = "snp/evidence/az-snp-vtpm-evidence-v1.json";

fn evidence(name: &str) -> Option<Value> {
    Some(serde_json::from_slice(&kata_cc_test_vectors::read(name)?).unwrap())
}

/// One for all, as in a service: it keeps the chains that it verified.
static CONFIG: LazyLock<VerifierConfig> = LazyLock::new(VerifierConfig::default);

fn check(
    evidence: &Value,
    nonce: &[u8],
    init_data: Option<ExpectedInitData<'_>>,
) -> Result<Verdict, Refusal> {
    let input = Evidence { tee: Tee::AzSnpVtpm, evidence, report_data: Some(nonce), init_data };
    verify(&CONFIG, &input, THEN)
}

#[test]
fn recorded_evidence_is_verified_and_claims_are_trustees() {
    for (name, version) in [(SNP_V0, 0), (SNP_V1, 1)] {
        let Some(evidence) = evidence(name) else { return };
        let verdict = check(&evidence, b"challenge", None).unwrap();
        assert_eq!(verdict.tee, Tee::AzSnpVtpm);
        assert_eq!(verdict.claims["report_data"], "6368616c6c656e6765");
        let claims = verdict.tee_claims();
        assert_eq!(verdict.claims["init_data"], claims["tpm"]["pcr08"]);
        assert_eq!(
            (&claims["policy_debug_allowed"], &claims["policy_abi_minor"]),
            (&json!("false"), &json!("31"))
        );
        assert_eq!(claims["reported_tcb_microcode"], "219");
        assert_eq!(claims["measurement"].as_str().unwrap().len(), 64, "base64");
        assert_eq!(claims["tpm"].as_object().unwrap().len(), 24);
        assert_eq!(claims["hcl"]["evidence_version"], version);
        assert_eq!(claims["hcl"]["secure_boot"], true);
        assert!(verdict.claims.get("snp").is_none(), "never called snp");
    }
}

#[test]
fn the_nonce_is_the_digest_itself() {
    let Some(evidence) = evidence(SNP_V1) else { return };
    for wrong in [&b"challenge\0"[..], b"challeng", b"", b"other"] {
        let refused = check(&evidence, wrong, None).unwrap_err();
        assert_eq!((refused.reason(), refused.claim()), (Reason::ReportData, "report_data"), "{refused}");
    }
    // Of version 2, user-data has to hold it too: here it is zeros.
    let mut newer = evidence;
    newer["version"] = json!(2);
    let refused = check(&newer, b"challenge", None).unwrap_err();
    assert_eq!(refused.reason(), Reason::ReportData);
    assert!(refused.seen().unwrap().starts_with("0000"), "{refused}");
}

#[test]
fn init_data_is_pcr_8() {
    let Some(evidence) = evidence(SNP_V1) else { return };
    let document = |algorithm: &str| format!("algorithm = \"{algorithm}\"\nversion = \"0.1.0\"\n[data]\n");
    let text = document("sha256");
    let refused = check(&evidence, b"challenge", Some(ExpectedInitData::Toml(&text))).unwrap_err();
    assert_eq!((refused.reason(), refused.claim()), (Reason::InitData, "init_data"));
    let mut extended = vec![0; 32];
    extended.extend(digest(&SHA256, text.as_bytes()).as_ref());
    assert_eq!(refused.expected(), Some(hex::encode(digest(&SHA256, &extended))));
    assert!(refused.to_string().starts_with("PCR 8 is "), "{refused}");
    let text = document("sha384");
    let refused = check(&evidence, b"challenge", Some(ExpectedInitData::Toml(&text))).unwrap_err();
    assert!(
        refused.to_string().contains("digest of 48 bytes") && refused.to_string().contains("sha256"),
        "{refused}"
    );
}

#[test]
fn a_report_of_another_chip_or_hardware_is_refused() {
    let Some(evidence) = evidence(SNP_V1) else { return };
    let Some(other) = kata_cc_test_vectors::read("snp/reports/milan-v3-a/vcek.der") else { return };
    let mut changed = evidence.clone();
    changed["vcek"] = base64_url(&other).into();
    assert_eq!(check(&changed, b"challenge", None).unwrap_err().reason(), Reason::Signature);
    changed["vcek"] = "MAA".into();
    assert_eq!(check(&changed, b"challenge", None).unwrap_err().reason(), Reason::Signature);
    changed["vcek"] = Value::Null;
    assert_eq!(check(&changed, b"challenge", None).unwrap_err().reason(), Reason::Malformed);
    let input = Evidence { tee: Tee::AzSnpVtpm, evidence: &evidence, report_data: None, init_data: None };
    let expired = verify(&VerifierConfig::default(), &input, 4_000_000_000).unwrap_err();
    assert!(expired.to_string().contains("valid from"), "{expired}");
}

fn base64_url(bytes: &[u8]) -> String {
    kata_cc_kbs_protocol::base64_url(bytes)
}

/// Flips bits one at a time in the bytes of a member, and wants every one refused.
fn every_bit_is_refused(evidence: &Value, pointer: &str, bytes: &[u8], write: fn(&[u8]) -> String) {
    let mut evidence = evidence.clone();
    let mut bytes = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        *evidence.pointer_mut(pointer).unwrap() = write(&bytes).into();
        assert!(check(&evidence, b"challenge", None).is_err(), "{pointer}: bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    *evidence.pointer_mut(pointer).unwrap() = write(&bytes).into();
    check(&evidence, b"challenge", None).unwrap();
}

/// All of the HCL report, the SNP report inside it included: there is no bit that anybody could change.
#[test]
fn every_bit_of_the_hcl_report_is_bound() {
    let Some(evidence) = evidence(SNP_V1) else { return };
    let text = evidence["hcl_report"].as_str().unwrap();
    let bytes = kata_cc_kbs_protocol::from_base64_url(text.trim_end_matches('=')).unwrap();
    every_bit_is_refused(&evidence, "/hcl_report", &bytes, base64_url);
}

#[test]
fn every_bit_of_the_quote_and_the_certificate_is_bound() {
    let Some(evidence) = evidence(SNP_V1) else { return };
    let quote = &evidence["tpm_quote"];
    for (pointer, text) in [
        ("/tpm_quote/message", &quote["message"]),
        ("/tpm_quote/signature", &quote["signature"]),
        ("/tpm_quote/pcrs/0", &quote["pcrs"][0]),
        ("/tpm_quote/pcrs/8", &quote["pcrs"][8]),
        ("/tpm_quote/pcrs/23", &quote["pcrs"][23]),
    ] {
        let bytes = hex::decode(text.as_str().unwrap()).unwrap();
        every_bit_is_refused(&evidence, pointer, &bytes, |bytes| hex::encode(bytes));
    }
    let bytes =
        kata_cc_kbs_protocol::from_base64_url(evidence["vcek"].as_str().unwrap().trim_end_matches('='))
            .unwrap();
    every_bit_is_refused(&evidence, "/vcek", &bytes, base64_url);
}

/// No collateral of its platform was recorded, so a quote gets as far as that; the vTPM's own links come first.
#[test]
fn tdx_behind_a_vtpm_needs_the_collateral_of_its_platform() {
    let Some(evidence) = evidence("tdx/evidence/az-tdx-vtpm-evidence-v1.json") else { return };
    let check = |evidence: &Value| {
        let input =
            Evidence { tee: Tee::AzTdxVtpm, evidence, report_data: Some(b"challenge"), init_data: None };
        verify(&VerifierConfig::default(), &input, THEN).unwrap_err()
    };
    let refused = check(&evidence);
    assert_eq!((refused.reason(), refused.claim()), (Reason::Collateral, "collateral"), "{refused}");
    assert!(refused.to_string().contains("00806F050000"), "{refused}");
    let mut changed = evidence.clone();
    changed["tpm_quote"]["pcrs"][0] = "00".repeat(32).into();
    assert_eq!(check(&changed).claim(), "tpm");
    changed["hcl_report"] = base64_url(b"HCLA").into();
    assert_eq!(check(&changed).claim(), "hcl_report");
    // Of the other hardware.
    let input = Evidence { tee: Tee::AzSnpVtpm, evidence: &evidence, report_data: None, init_data: None };
    let refused = verify(&VerifierConfig::default(), &input, THEN).unwrap_err();
    assert_eq!(refused.reason(), Reason::Malformed, "{refused}");
}
