//! A file of an offline bundle, its name in the first line: added, skipped or refused; what was added reads back the same.
#![no_main]

use kata_cc_endorsements::{Bundle, oci};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (Some(name), Some(contents)) = (parts.next(), parts.next()) else { return };
    let _ = oci::check_manifest(contents);
    let mut bundle = Bundle::default();
    if bundle.add_file(&String::from_utf8_lossy(name), contents.to_vec()).is_err() {
        return;
    }
    let mut again = Bundle::default();
    for (item, document) in bundle.iter() {
        again.add_file(&item.path(), document.to_file()).expect("what was taken is taken again");
    }
    assert!(bundle.iter().eq(again.iter()));
});
