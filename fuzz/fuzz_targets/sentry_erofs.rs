//! EROFS images in the sentry: an error or files, never a panic, never a file without end.
#![no_main]

use std::io::Write;

use kata_cc_sentry::vfs::erofs::{Erofs, look_at_all};
use libfuzzer_sys::fuzz_target;

/// What a seed leaves out: images are mostly zeros.
const SIZE: usize = 64 << 10;

fuzz_target!(|data: &[u8]| {
    let Ok(mut file) = tempfile::tempfile() else { return };
    let padded = SIZE.max(data.len());
    if file.write_all(data).is_err() || file.set_len(padded as u64).is_err() {
        return;
    }
    if let Ok(fs) = Erofs::new(file.into()) {
        look_at_all(&fs);
    }
});
