//! A token of anybody: its parts, its key, its certificates. Nobody can make one that is trusted.
#![no_main]

use std::sync::LazyLock;

use kata_cc_attestation_service::chain::ParsedCertificate;
use kata_cc_attestation_service::jws::{SigningKey, Unverified, VerifyingKey};
use kata_cc_attestation_service::token::TokenVerifier;
use libfuzzer_sys::fuzz_target;

/// Trusts a key that nobody has.
static TRUSTED: LazyLock<TokenVerifier> = LazyLock::new(|| {
    let mut verifier = TokenVerifier::default();
    let pem = SigningKey::generate_pem("ES256").expect("a key");
    let key = SigningKey::from_pem(pem.as_bytes()).expect("the key just made");
    verifier.trust(VerifyingKey::from_jwk(&key.jwk()).expect("its public half"));
    verifier
});

fuzz_target!(|bytes: &[u8]| {
    let _ = ParsedCertificate::from_der(bytes);
    let _ = ParsedCertificate::all_from_pem(bytes);
    let _ = VerifyingKey::from_spki(bytes);
    if let Ok(jwk) = serde_json::from_slice(bytes) {
        let _ = VerifyingKey::from_jwk(&jwk);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = Unverified::parse(text);
    assert!(TRUSTED.verify(text, 1_800_000_000).is_err());
});
