//! A packed policy bundle: whatever the bytes, it is read or refused; what is read packs to the same bytes again.
#![no_main]

use kata_cc_policy_bundle::{Bundle, archive};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(bundle) = Bundle::from_archive(bytes) else { return };
    assert_eq!(archive::pack(bundle.files()).expect("it was read"), bytes);
    let again = Bundle::from_files(bundle.files().clone()).expect("it was read");
    assert_eq!(again.digest(), bundle.digest());
});
