//! Bodies that anybody can send to the key broker.
#![no_main]

use kata_cc_kbs_protocol::admin::ReferenceValueMessage;
use kata_cc_kbs_protocol::service::EvaluateRequest;
use kata_cc_kbs_protocol::{Attestation, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = serde_json::from_slice::<Request>(bytes);
    let _ = serde_json::from_slice::<EvaluateRequest>(bytes);
    if let Ok(attestation) = serde_json::from_slice::<Attestation>(bytes) {
        let canonical =
            attestation.runtime_data.canonical_primary(&attestation.tee_evidence.additional_evidence);
        assert!(!canonical.is_empty());
    }
    if let Ok(message) = serde_json::from_slice::<ReferenceValueMessage>(bytes) {
        let _ = message.values();
    }
});
