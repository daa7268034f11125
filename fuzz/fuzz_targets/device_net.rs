//! virtio-net: a hostile driver, with a frame on the wire. See `kata_cc_devices::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kata_cc_devices::fuzzing::net(data));
