//! The sentry: a hostile stub, which answers with garbage and out of turn. See `kata_cc_sentry::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kata_cc_sentry::fuzzing::stub(data));
