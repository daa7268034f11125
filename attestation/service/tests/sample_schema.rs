//! Claims of sample evidence are as the published schemas say.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../verifier/tests/schema/mod.rs"]
mod schema;

use kata_cc_attestation_service::devices::{DeviceVerifier as _, SampleDevice};
use kata_cc_attestation_service::verify::{Evidence, EvidenceVerifier as _, SampleVerifier};
use kata_cc_kbs_protocol::Tee;
use schema::{Seen, check, properties};
use serde_json::{Value, json};

/// Evidence with and without padding behind its report data, of which the real verifier takes the first only.
#[test]
fn verdicts_over_samples_are_those_of_the_vectors() {
    let Some(bytes) = kata_cc_test_vectors::read("coco/evidence/sample.json") else { return };
    let cases: Vec<Value> = serde_json::from_slice(&bytes).unwrap();
    let mut accepted = Vec::new();
    for case in &cases {
        let digest = hex::decode(case["report_data_digest_hex"].as_str().unwrap()).unwrap();
        let evidence = &case["evidence"];
        let input = |report_data| Evidence {
            tee: Tee::Sample,
            evidence,
            report_data: Some(report_data),
            init_data: None,
        };
        let verdict = SampleVerifier { enabled: true }.verify(&input(&digest), 0).map(|_| ());
        accepted.push(verdict.is_ok());
        assert_eq!(verdict.is_ok(), case["verdict"] == "accept", "{}: {verdict:?}", case["verdict"]);
        assert!(SampleVerifier { enabled: true }.verify(&input(&[0; 48]), 0).is_err());
        assert!(SampleVerifier { enabled: false }.verify(&input(&digest), 0).is_err());
    }
    assert_eq!(accepted, [true, false]);
}

/// The claims of a token as Trustee's documentation shows them: our reader of the vector comes to the same status, and a token of
/// ours has its members.
#[test]
fn a_token_of_trustees_documentation_is_read() {
    use kata_cc_attestation_service::ear::{Appraisal, MEMBERS, PROFILE, Tier, TrustVector};
    let Some(bytes) = kata_cc_test_vectors::read("coco/ear/example.token.json") else { return };
    let token: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(token["eat_profile"], PROFILE);
    let submod = token["submods"]["cpu0"].as_object().unwrap();
    let mut vector = TrustVector::default();
    let members = submod["ear.trustworthiness-vector"].as_object().unwrap();
    for (name, value) in members {
        assert!(vector.set(name, i8::try_from(value.as_i64().unwrap()).unwrap()), "{name}");
    }
    assert_eq!(members.len(), MEMBERS.len());
    assert_eq!(vector.status(), Tier::Contraindicated);
    assert_eq!(submod["ear.status"], vector.status().name());
    assert_eq!(vector.to_json(), submod["ear.trustworthiness-vector"]);
    let id = submod["ear.appraisal-policy-id"].as_str().unwrap();
    let evidence = submod["ear.veraison.annotated-evidence"].clone();
    let ours = Appraisal { vector, ..Appraisal::default() }.submod(id, evidence);
    assert_eq!(ours, Value::Object(submod.clone()));
}

#[test]
fn samples_are_as_published() {
    let evidence = json!({"svn": "1", "report_data": "AA=="});
    let input = |tee| Evidence { tee, evidence: &evidence, report_data: Some(&[0]), init_data: Some(&[1]) };
    let sample = SampleVerifier { enabled: true }.verify(&input(Tee::Sample), 0).unwrap();
    let device = SampleDevice { enabled: true }.verify(&input(Tee::Sampledevice), 0).unwrap();
    let mut seen = Seen::default();
    let trees = [
        json!({"sample": sample.claims, "report_data": sample.report_data, "init_data": sample.init_data,
            "runtime_data_claims": {}}),
        json!({"sampledevice": device[0].verified.claims, "report_data": device[0].verified.report_data}),
    ];
    for tree in trees {
        let errors = check("evidence.json", &tree, &mut seen);
        assert!(errors.is_empty(), "{errors:#?}");
    }
    for file in ["sample.json", "sampledevice.json"] {
        for (path, required) in properties(file) {
            assert!(!required || seen.produced.contains(&path), "{path} is required and was never produced");
        }
    }
}
