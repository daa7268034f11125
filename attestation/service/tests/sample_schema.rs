//! Claims of sample evidence are as the published schemas say.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../verifier/tests/schema/mod.rs"]
mod schema;

use kata_cc_attestation_service::devices::{DeviceVerifier as _, SampleDevice};
use kata_cc_attestation_service::verify::{Evidence, EvidenceVerifier as _, SampleVerifier};
use kata_cc_kbs_protocol::Tee;
use schema::{Seen, check, properties};
use serde_json::json;

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
