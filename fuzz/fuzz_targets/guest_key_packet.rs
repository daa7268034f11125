//! Requests to the key provider: a packet is taken out or the request refused.
#![no_main]

use kata_cc_guest_api::keyprovider::{asks_to_wrap, packet_of, parameters_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = (asks_to_wrap(data), parameters_of(data));
    if let Ok(packet) = packet_of(data) {
        let _ = packet.unwrap(&[7; 32]);
    }
});
