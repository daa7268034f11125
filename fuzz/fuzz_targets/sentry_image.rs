//! Images of checkpoints: an error or a state, never a panic, never more memory than the image is long.
#![no_main]

use kata_cc_sentry::checkpoint::{examine, examine_state};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The digest of the whole is never right: what is behind it is tried by itself.
    let _ = examine(data);
    let _ = examine_state(data);
});
