//! A manifest of Contrast: read or refused; what is read gives values in hex or of a flag, and nothing else.
#![no_main]

use kata_cc_policy::contrast::import;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(imported) = import(bytes) else { return };
    for value in imported.values.values().flatten() {
        let flag = value == "true" || value == "false";
        assert!(flag || value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{value}");
    }
});
