//! virtio-vsock: a hostile driver, with a client and a service on the host. See `kata_cc_devices::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kata_cc_devices::fuzzing::vsock(data));
