//! Seals arbitrary bytes as a layer, twice over: nothing may panic, and what is sealed has a seal that reads back. The same bytes as a seal.
#![no_main]

use kata_cc_image::Limits;
use kata_cc_sealed_image::{SealManifest, seal};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = SealManifest::parse(data);
    let Ok(mut file) = tempfile::tempfile() else { return };
    let limits = Limits { max_unpacked_bytes: 1 << 20, max_files: 200, ..Limits::default() };
    // The second layer is put over the first: whiteouts and links meet what they name.
    let Ok(made) = seal([Ok(data), Ok(data)], &mut file, limits) else { return };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    assert_eq!(length, (made.data_blocks + made.tree_blocks) * 4096);
    let digest = format!("sha256:{}", "ab".repeat(32));
    let manifest = SealManifest::new(&digest, &digest, &made);
    let text = manifest.to_json().expect("text and numbers");
    assert_eq!(SealManifest::parse(&text).expect("as written"), manifest);
});
