//! Sealed secrets, which travel through the host: taken apart or refused, and nothing verifies that was not signed.
#![no_main]

use std::sync::LazyLock;

use kata_cc_guest_api::sealed::{Sealed, SigningKey, VerifyingKey};
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<VerifyingKey> = LazyLock::new(|| SigningKey::generate().expect("a key").verifying());

fuzz_target!(|data: &[u8]| {
    let _ = VerifyingKey::from_jwk(data);
    let Ok(sealed) = Sealed::parse(data) else { return };
    assert!(sealed.verified(&KEY).is_err(), "signed by nobody, and verified");
    if let Ok(payload) = sealed.unverified() {
        let written = serde_json::to_vec(&payload).expect("written");
        assert_eq!(
            serde_json::from_slice::<kata_cc_guest_api::sealed::Payload>(&written).expect("read"),
            payload
        );
    }
});
