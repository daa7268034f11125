//! A policy bundle, packed or as a text of its files: whatever the bytes, it is read or refused; what is read packs to the same bytes again.
#![no_main]

use kata_cc_policy_bundle::folder::Files;
use kata_cc_policy_bundle::{Bundle, archive};

/// Files behind lines `=== PATH`. A changed byte of an archive nearly always meets a checksum; one of such a text meets what reads the files.
fn files(bytes: &[u8]) -> Option<Files> {
    let text = std::str::from_utf8(bytes).ok()?.strip_prefix("=== ")?;
    let file = |part: &str| {
        let (path, contents) = part.split_once('\n')?;
        Some((path.to_owned(), contents.as_bytes().to_vec()))
    };
    text.split("\n=== ").map(file).collect()
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(bundle) = files(bytes).and_then(|files| Bundle::from_files(files).ok()) {
        let again = Bundle::from_archive(bundle.archive()).expect("it was packed");
        assert_eq!(again, bundle);
    }
    let Ok(bundle) = Bundle::from_archive(bytes) else { return };
    assert_eq!(archive::pack(bundle.files()).expect("it was read"), bytes);
    let again = Bundle::from_files(bundle.files().clone()).expect("it was read");
    assert_eq!(again.digest(), bundle.digest());
});
