//! The sentry: programs' files, of which only what is in order is mapped. See `kata_cc_sentry::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kata_cc_sentry::fuzzing::program(data));
