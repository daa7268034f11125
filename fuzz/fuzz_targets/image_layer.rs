//! Applies arbitrary bytes as a layer archive: nothing may panic, and nothing may appear beside the root.
#![no_main]

use kata_cc_image::Limits;
use kata_cc_image::unpack::{Budget, Owner, apply};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(dir) = tempfile::tempdir() else { return };
    let root = dir.path().join("root");
    if std::fs::create_dir(&root).is_err() {
        return;
    }
    let limits = Limits { max_unpacked_bytes: 1 << 20, max_files: 200, ..Limits::default() };
    let _ = apply(data, &root, Owner::Caller, &mut Budget::new(limits));
    let beside = std::fs::read_dir(dir.path()).map_or(0, Iterator::count);
    assert!(beside <= 1, "the archive wrote outside its root");
});
