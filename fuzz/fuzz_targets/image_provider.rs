//! What others' key providers answer, how they are configured, and envelopes of PKCS#7: read or refused, never opened by luck.
#![no_main]

use kata_cc_image::crypto::pkcs7;
use kata_cc_image::provider::{Operation, read_answer, read_config};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = read_config(bytes);
    for operation in [Operation::Wrap, Operation::Unwrap] {
        if let Ok(answer) = read_answer(operation, bytes) {
            assert!(!answer.is_empty() && answer.len() <= bytes.len());
        }
    }
    // No key was ever made that opens these.
    assert!(pkcs7::open(bytes, b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n").is_err());
});
