//! Bodies that anybody can send to the key broker.
#![no_main]

use kata_cc_kbs_protocol::admin::ReferenceValueMessage;
use kata_cc_kbs_protocol::bodies::{self, AttestBody};
use kata_cc_kbs_protocol::service::EvaluateRequest;
use kata_cc_kbs_protocol::{Attestation, ProtocolVersion, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = serde_json::from_slice::<Request>(bytes);
    let _ = serde_json::from_slice::<EvaluateRequest>(bytes);
    // What the key broker reads, it reads no laxer than the plain types.
    if let Ok(request) = bodies::request(bytes) {
        let _ = ProtocolVersion::negotiate(&request.version, &ProtocolVersion::ALL);
        assert!(serde_json::from_slice::<Request>(bytes).is_ok());
    }
    match bodies::attestation(bytes) {
        Ok(AttestBody::Legacy(legacy)) => assert!(!legacy.canonical("n").is_empty()),
        Ok(AttestBody::Current(_)) => assert!(serde_json::from_slice::<Attestation>(bytes).is_ok()),
        Err(error) => assert!(error.to_string().len() < 2048),
    }
    if let Ok(attestation) = serde_json::from_slice::<Attestation>(bytes) {
        let canonical =
            attestation.runtime_data.canonical_primary(&attestation.tee_evidence.additional_evidence);
        assert!(!canonical.is_empty());
    }
    if let Ok(message) = serde_json::from_slice::<ReferenceValueMessage>(bytes) {
        let _ = message.values();
    }
});
