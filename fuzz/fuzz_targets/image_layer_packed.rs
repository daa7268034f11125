//! A layer as it comes: the first byte chooses plain, gzip or zstd, the rest is the blob.
#![no_main]

use std::io::{Cursor, Read};

use kata_cc_image::media::Codec;
use kata_cc_image::unpack::{Budget, Owner, apply};
use kata_cc_image::{Limits, decompress};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, blob)) = data.split_first() else { return };
    let codec = [Codec::None, Codec::Gzip, Codec::Zstd][usize::from(first % 3)];
    let Ok(plain) = decompress(codec, Box::new(Cursor::new(blob.to_vec()))) else { return };
    let Ok(dir) = tempfile::tempdir() else { return };
    let root = dir.path().join("root");
    if std::fs::create_dir(&root).is_err() {
        return;
    }
    let limits = Limits { max_unpacked_bytes: 1 << 20, max_files: 200, ..Limits::default() };
    let _ = apply(plain.take(4 << 20), &root, Owner::Caller, &mut Budget::new(limits));
    let beside = std::fs::read_dir(dir.path()).map_or(0, Iterator::count);
    assert!(beside <= 1, "the archive wrote outside its root");
});
