//! The sentry: random sequences of system calls of one process. See `kata_cc_sentry::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kata_cc_sentry::fuzzing::calls(data));
