//! Packets with wrapped layer keys: whoever made the image wrote them, and no key here opens them.
#![no_main]

use kata_cc_image::KeyPacket;
use kata_cc_image::crypto::packet::Packet;
use kata_cc_image::crypto::{KEYS_PROVIDER, PrivateOptions, PublicOptions, jwe};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let packet = KeyPacket { annotation: KEYS_PROVIDER.to_owned(), bytes: bytes.to_vec() };
    let _ = (packet.scheme(), packet.key_id());
    if let Ok(packet) = Packet::parse(bytes) {
        // A256CTR has no tag: with it every key "opens" a packet, and the layer's own HMAC tells.
        let authenticated = !packet.to_json().contains("A256CTR");
        assert!(!authenticated || packet.unwrap(&[7; 32]).is_err());
        assert!(Packet::parse(packet.to_json().as_bytes()).is_ok());
    }
    if let Ok(options) = PrivateOptions::read(bytes) {
        let again = PrivateOptions::read(&options.write("")).expect("what was written can be read");
        assert_eq!(again.config, options.config);
    }
    let _ = jwe::open(bytes, b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n");
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(options) = PublicOptions::from_annotation(text)
    {
        assert!(PublicOptions::from_annotation(&options.to_annotation()).is_ok());
    }
});
