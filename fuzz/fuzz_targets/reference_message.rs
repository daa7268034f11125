//! A message with reference values of anybody: nothing is taken without an administrator or a trusted key.
#![no_main]

use std::sync::LazyLock;

use kata_cc_attestation_service::jws::{SigningKey, VerifyingKey};
use kata_cc_attestation_service::sources::{Sources, TrustedSource};
use libfuzzer_sys::fuzz_target;

/// Trusts a key that nobody has.
static SOURCES: LazyLock<Sources> = LazyLock::new(|| {
    let pem = SigningKey::generate_pem("EdDSA").expect("a key");
    let key = SigningKey::from_pem(pem.as_bytes()).expect("the key just made");
    let key = VerifyingKey::from_jwk(&key.jwk()).expect("its public half");
    let subjects = [("vmlinux".to_owned(), "kernel".to_owned())].into();
    Sources {
        trusted: vec![TrustedSource {
            name: "x".to_owned(),
            key,
            names: Vec::new(),
            subjects,
            builder: None,
        }],
    }
});

fuzz_target!(|bytes: &[u8]| {
    assert!(SOURCES.read(bytes, None, None, 1_800_000_000).is_err());
    let _ = SOURCES.read(bytes, Some("me"), None, 1_800_000_000);
});
