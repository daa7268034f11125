//! virtio-blk: a hostile driver over a small disk. See `kata_cc_devices::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kata_cc_devices::fuzzing::block(data));
