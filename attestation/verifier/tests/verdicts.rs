//! Verdicts and refusals over simulated evidence, real evidence and the vectors of the protocol.
#![allow(clippy::unwrap_used, missing_docs)]

mod runtime_log;

use std::sync::LazyLock;

use kata_cc_kbs_protocol::initdata::InitData;
use kata_cc_kbs_protocol::rcar::{HashAlgorithm, RuntimeData};
use kata_cc_kbs_protocol::{Tee, base64_standard};
use kata_cc_sim_tee::{ReportRequest, SimPlatform};
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::{CertTable, Report};
use kata_cc_verifier::{
    Evidence, ExpectedInitData, Reason, Refusal, Verdict, VerifierConfig, binding, verify,
};
use serde_json::{Value, json};

/// 2025-09-01: within the validity of the real certificates.
const THEN: u64 = 1_756_684_800;

const DOCUMENT: &str =
    "algorithm = \"sha384\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = \"x = 1\"\nother = \"text\"\n";

struct Platforms {
    _dir: tempfile::TempDir,
    ours: SimPlatform,
    other: SimPlatform,
}

static PLATFORMS: LazyLock<Platforms> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let ours = SimPlatform::create(&dir.path().join("ours")).unwrap();
    let other = SimPlatform::create(&dir.path().join("other")).unwrap();
    Platforms { _dir: dir, ours, other }
});

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn trusting(platforms: &[&SimPlatform]) -> VerifierConfig {
    let mut config = VerifierConfig::default();
    for platform in platforms {
        config.add_simulated_roots(platform.ark_pem().unwrap().as_bytes()).unwrap();
    }
    config
}

fn host_data() -> [u8; 32] {
    InitData::parse(DOCUMENT).unwrap().digest()[..32].try_into().unwrap()
}

fn evidence_of(platform: &SimPlatform, request: &ReportRequest) -> Value {
    let report = Report::parse(&platform.report(request).unwrap()).unwrap();
    let table = CertTable::parse(&platform.certificate_table()).unwrap();
    serde_json::to_value(SnpEvidence::new(&report, &table)).unwrap()
}

fn request() -> ReportRequest {
    let mut report_data = [0; 64];
    report_data[..48].fill(9);
    ReportRequest { report_data, measurement: [8; 48], host_data: host_data(), ..ReportRequest::default() }
}

fn check(config: &VerifierConfig, tee: Tee, evidence: &Value) -> Result<Verdict, Refusal> {
    let input = Evidence {
        tee,
        evidence,
        report_data: Some(&[9; 48]),
        init_data: Some(ExpectedInitData::Toml(DOCUMENT)),
    };
    verify(config, &input, now())
}

// One test for all that needs a platform: a process per test would make one each, and RSA keys are slow.
#[test]
fn simulated_evidence_is_accepted_only_as_what_it_is() {
    let (ours, other) = (&PLATFORMS.ours, &PLATFORMS.other);
    accepted_and_labelled(ours);
    roots_decide(ours, other);
    bindings_are_checked(ours);
    changed_or_malformed_evidence_is_refused(ours);
    a_log_kept_in_software_is_replayed_and_called_unbound(ours);
}

fn accepted_and_labelled(ours: &SimPlatform) {
    let verdict = check(&trusting(&[ours]), Tee::SimSnp, &evidence_of(ours, &request())).unwrap();
    assert_eq!(verdict.tee, Tee::SimSnp);
    assert!(verdict.claims.get("snp").is_none(), "never called snp");
    let claims = verdict.tee_claims();
    assert_eq!(claims["measurement"], hex::encode([8; 48]));
    assert_eq!(claims["policy_debug_allowed"], false);
    assert_eq!(claims["policy_smt_allowed"], true);
    assert_eq!(claims["reported_tcb_snp"], 24);
    assert_eq!(verdict.claims["init_data"], hex::encode(host_data()));
    assert_eq!(verdict.claims["init_data_claims"], json!({"aa.toml": {"x": 1}, "other": "text"}));
}

fn roots_decide(ours: &SimPlatform, other: &SimPlatform) {
    let evidence = evidence_of(ours, &request());
    let refused = check(&VerifierConfig::default(), Tee::SimSnp, &evidence).unwrap_err();
    assert_eq!(refused, Refusal::SimulatedNotConfigured { tee: Tee::SimSnp });
    assert!(
        refused.to_string().starts_with("simulated evidence but no simulated root configured"),
        "{refused}"
    );
    let refused = check(&trusting(&[other]), Tee::SimSnp, &evidence).unwrap_err();
    assert_eq!(refused.reason(), Reason::UntrustedRoot, "{refused}");
    assert!(check(&trusting(&[other, ours]), Tee::SimSnp, &evidence).is_ok(), "any of the roots");
    // Called by the hardware's name, it meets AMD's roots, whatever is configured.
    let refused = check(&trusting(&[ours]), Tee::Snp, &evidence).unwrap_err();
    assert_eq!(refused.reason(), Reason::UntrustedRoot, "{refused}");
    let mut bare = evidence;
    bare["cert_chain"].as_array_mut().unwrap().retain(|entry| entry["cert_type"] != "ARK");
    let refused = check(&trusting(&[ours]), Tee::Snp, &bare).unwrap_err();
    assert_eq!(refused.reason(), Reason::UntrustedRoot, "{refused}");
    let refused = check(&trusting(&[other]), Tee::SimSnp, &bare).unwrap_err();
    assert_eq!(refused.reason(), Reason::UntrustedRoot, "{refused}");
    let refused = check(&trusting(&[ours]), Tee::Cca, &bare).unwrap_err();
    assert_eq!(refused, Refusal::TeeNotSupported { tee: Tee::Cca });
}

fn bindings_are_checked(ours: &SimPlatform) {
    let config = trusting(&[ours]);
    let mut replayed = request();
    replayed.report_data[0] = 1;
    let refused = check(&config, Tee::SimSnp, &evidence_of(ours, &replayed)).unwrap_err();
    assert_eq!((refused.reason(), refused.claim()), (Reason::ReportData, "report_data"));
    assert!(refused.expected().unwrap().starts_with("0909") && refused.seen().unwrap().starts_with("0109"));
    let trailing = ReportRequest { report_data: [9; 64], ..request() };
    let refused = check(&config, Tee::SimSnp, &evidence_of(ours, &trailing)).unwrap_err();
    assert_eq!(refused.reason(), Reason::ReportData, "the padding is compared too");
    let other_init = ReportRequest { host_data: [1; 32], ..request() };
    let refused = check(&config, Tee::SimSnp, &evidence_of(ours, &other_init)).unwrap_err();
    assert_eq!((refused.reason(), refused.claim()), (Reason::InitData, "init_data"));
    assert_eq!(refused.seen(), Some(hex::encode([1; 32])));
    assert_eq!(refused.expected(), Some(hex::encode(host_data())));
    let user = ReportRequest { vmpl: 1, ..request() };
    let refused = check(&config, Tee::SimSnp, &evidence_of(ours, &user)).unwrap_err();
    assert_eq!(refused, Refusal::Vmpl { seen: 1, expected: 0 });
    let svsm = VerifierConfig { max_vmpl: 1, ..config };
    assert!(check(&svsm, Tee::SimSnp, &evidence_of(ours, &user)).is_ok());
}

fn changed_or_malformed_evidence_is_refused(ours: &SimPlatform) {
    let config = trusting(&[ours]);
    let evidence = evidence_of(ours, &request());
    let with = |path: &str, value: Value| {
        let mut changed = evidence.clone();
        *changed.pointer_mut(path).unwrap() = value;
        check(&config, Tee::SimSnp, &changed).unwrap_err()
    };
    let refused = with("/attestation_report/measurement/0", json!(1));
    assert_eq!((refused.reason(), refused.claim()), (Reason::Signature, "signature"), "{refused}");
    assert_eq!(with("/attestation_report/policy", json!(0xB_0000)).reason(), Reason::Signature);
    assert_eq!(with("/attestation_report/version", json!(2)), Refusal::ReportVersion { seen: 2 });
    assert_eq!(with("/attestation_report/version", json!(9)).reason(), Reason::Malformed);
    assert_eq!(with("/attestation_report/measurement", json!([1, 2])).reason(), Reason::Malformed);
    assert_eq!(with("/attestation_report/cpuid_fam_id", Value::Null).reason(), Reason::Malformed);
    assert_eq!(with("/attestation_report/reported_tcb/fmc", json!(1)).reason(), Reason::Malformed);
    assert_eq!(with("/attestation_report", json!("x")).reason(), Reason::Malformed);
    assert_eq!(with("/cert_chain", Value::Null).reason(), Reason::Signature, "no endorsement key");
    assert_eq!(with("/cert_chain/0/data", json!([0x30, 0x00])).reason(), Reason::Signature);
    assert_eq!(check(&config, Tee::SimSnp, &json!({})).unwrap_err().reason(), Reason::Malformed);
    let bad_document = Evidence {
        tee: Tee::SimSnp,
        evidence: &evidence,
        report_data: None,
        init_data: Some(ExpectedInitData::Toml("algorithm = 1")),
    };
    assert_eq!(verify(&config, &bad_document, now()).unwrap_err().reason(), Reason::InitData);
}

fn a_log_kept_in_software_is_replayed_and_called_unbound(ours: &SimPlatform) {
    let config = trusting(&[ours]);
    let evidence = evidence_of(ours, &request());
    let without = check(&config, Tee::SimSnp, &evidence).unwrap();
    assert!(without.tee_claims().get("runtime_measurements").is_none());
    let with = |pointer: &str, value: Value| {
        let mut evidence = evidence.clone();
        evidence["runtime_measurements"] = runtime_log::member();
        *evidence.pointer_mut(&format!("/runtime_measurements{pointer}")).unwrap() = value;
        check(&config, Tee::SimSnp, &evidence)
    };
    let verdict = with("/register", json!(4)).unwrap();
    let claim = &verdict.tee_claims()["runtime_measurements"];
    assert_eq!((&claim["bound"], &claim["kept_by"]), (&json!(false), &json!("agent")));
    assert_eq!(claim["value"], hex::encode(runtime_log::log().1));
    assert_eq!(claim["uefi_event_logs"][0]["details"]["data"]["content"], json!({"image": "shop"}));

    let refused = with("/value", json!("00".repeat(48))).unwrap_err();
    let expected = hex::encode(runtime_log::log().1);
    assert_eq!(refused, Refusal::RuntimeMeasurements { seen: "00".repeat(48), expected: expected.clone() });
    assert_eq!((refused.reason(), refused.claim()), (Reason::EventLog, "runtime_measurements"));
    assert_eq!(refused.expected(), Some(expected));
    let (log, _) = runtime_log::log();
    let cut = with("/cc_eventlog", base64_standard(&log[..65]).into()).unwrap_err();
    assert_eq!(cut.reason(), Reason::EventLog, "the event is missing: {cut}");
    // An event of another register would be in the claims and in no value.
    let mut other = log.clone();
    other.extend_from_slice(&log[65..]);
    other[log.len()] = 2;
    let refused = with("/cc_eventlog", base64_standard(&other).into()).unwrap_err();
    assert!(refused.to_string().contains("event of register 2"), "{refused}");
    for (pointer, value) in [
        ("", json!("x")),
        ("/kept_by", json!("processor")),
        ("/algorithm", json!("sha256")),
        ("/register", json!(3)),
        ("/cc_eventlog", json!("?")),
        ("/cc_eventlog", json!("AAAA")),
    ] {
        let refused = with(pointer, value).unwrap_err();
        assert_eq!(refused.reason(), Reason::Malformed, "{pointer}: {refused}");
    }
}

#[test]
fn real_evidence_is_snp() {
    let Some(dir) = kata_cc_test_vectors::path("snp") else { return };
    let evidence: Value =
        serde_json::from_slice(&std::fs::read(dir.join("evidence/coco-snp-evidence-v3.json")).unwrap())
            .unwrap();
    let report_data: Vec<u8> =
        serde_json::from_value(evidence["attestation_report"]["report_data"].clone()).unwrap();
    let input =
        Evidence { tee: Tee::Snp, evidence: &evidence, report_data: Some(&report_data), init_data: None };
    let verdict = verify(&VerifierConfig::default(), &input, THEN).unwrap();
    assert_eq!(verdict.tee, Tee::Snp);
    assert_eq!(verdict.tee_claims()["policy_smt_allowed"], true);
    assert_eq!(verdict.tee_claims()["reported_tcb_microcode"], 25);
    assert!(verdict.claims.get("sim-snp").is_none());
    let wrong = Evidence { report_data: Some(&[0; 48]), ..input };
    assert_eq!(verify(&VerifierConfig::default(), &wrong, THEN).unwrap_err().reason(), Reason::ReportData);
    let wrong = Evidence { init_data: Some(ExpectedInitData::Digest(&[1; 32])), ..input };
    assert_eq!(verify(&VerifierConfig::default(), &wrong, THEN).unwrap_err().reason(), Reason::InitData);
    let right = Evidence { init_data: Some(ExpectedInitData::Digest(&[0; 32])), ..input };
    assert!(verify(&VerifierConfig::default(), &right, THEN).is_ok());
}

#[test]
fn report_data_matches_the_vectors() {
    let Some(dir) = kata_cc_test_vectors::path("coco/runtime-data") else { return };
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(dir.join("cases.json")).unwrap()).unwrap();
    let mut read = 0;
    for case in cases {
        // The other cases are no runtime data of the handshake; `canonical` itself is tested with them, beside it.
        if case["wire_runtime_data"].get("tee-pubkey").is_none() {
            continue;
        }
        read += 1;
        let runtime: RuntimeData = serde_json::from_value(case["wire_runtime_data"].clone()).unwrap();
        let additional = case["additional_evidence"].as_str().unwrap();
        let have = binding::report_data(&runtime, additional, HashAlgorithm::Sha384);
        assert_eq!(hex::encode(have), case["report_data_64_sha384"].as_str().unwrap(), "{}", case["name"]);
        for (name, hash) in [("sha256", HashAlgorithm::Sha256), ("sha512", HashAlgorithm::Sha512)] {
            let have = hex::encode(binding::report_data(&runtime, additional, hash));
            assert!(have.starts_with(case["primary"][name].as_str().unwrap()), "{} {name}", case["name"]);
        }
    }
    assert_eq!(read, 4);
}

/// Real evidence of TEEs that have no verifier here is refused for that, by the TEE's name, whatever it says.
#[test]
fn evidence_of_other_tees_is_refused_by_name() {
    let Some(tpm) = kata_cc_test_vectors::read("coco/evidence/tpm_evidence.json") else { return };
    let tpm: Value = serde_json::from_slice(&tpm).unwrap();
    let occlum = kata_cc_test_vectors::read("sgx/occlum-quote-v3.bin").unwrap();
    let sgx = json!({"quote": base64_standard(&occlum)});
    for (tee, evidence) in [(Tee::Tpm, tpm), (Tee::Sgx, sgx)] {
        let input = Evidence { tee, evidence: &evidence, report_data: None, init_data: None };
        let refused = verify(&VerifierConfig::default(), &input, THEN).unwrap_err();
        assert_eq!(refused.reason(), Reason::TeeNotSupported, "{refused}");
        let text = refused.to_string();
        assert!(text.starts_with(&format!("no verifier for evidence of '{}'", tee.name())), "{text}");
    }
    // Called TDX it is no better.
    let evidence = json!({"quote": base64_standard(&occlum), "cc_eventlog": null});
    let input = Evidence { tee: Tee::Tdx, evidence: &evidence, report_data: None, init_data: None };
    let refused = verify(&VerifierConfig::default(), &input, THEN).unwrap_err();
    assert_eq!(refused.reason(), Reason::Malformed);
    assert!(refused.to_string().contains("SGX enclave"), "{refused}");
}

#[test]
fn init_data_matches_the_vectors() {
    let Some(dir) = kata_cc_test_vectors::path("coco/initdata") else { return };
    for name in ["full-sha384", "mini-sha256"] {
        let document =
            InitData::parse(&std::fs::read_to_string(dir.join(format!("{name}.toml"))).unwrap()).unwrap();
        let expected: Value =
            serde_json::from_slice(&std::fs::read(dir.join(format!("{name}.expected.json"))).unwrap())
                .unwrap();
        assert_eq!(hex::encode(document.digest()), expected["digest_hex"].as_str().unwrap());
        let field: [u8; 32] = kata_cc_kbs_protocol::initdata::fit(&document.digest());
        assert_eq!(hex::encode(field), expected["snp_host_data"].as_str().unwrap());
    }
    let document = InitData::parse(&std::fs::read_to_string(dir.join("full-sha384.toml")).unwrap()).unwrap();
    let expected: Value =
        serde_json::from_slice(&std::fs::read(dir.join("claims-full-sha384.json")).unwrap()).unwrap();
    assert_eq!(kata_cc_verifier::initdata::claims(&document), expected);
}
