//! What the PKCS#11 helper and the key broker say to each other, and the blobs that the token's keys wrap.
#![no_main]

use kata_cc_kbs_pkcs11::{Reply, Request, decode, encode, read_line};
use libfuzzer_sys::fuzz_target;

#[allow(dead_code, unreachable_pub)]
#[path = "../../kbs/src/plugins/pkcs11/blob.rs"]
mod blob;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(line)) = read_line(&mut &*bytes) {
        if let Ok(request) = decode::<Request>(&line) {
            let again = encode(&request).unwrap();
            assert_eq!(decode::<Request>(again.trim_ascii_end()).unwrap(), request);
        }
        if let Ok(reply) = decode::<Reply>(&line) {
            let again = encode(&reply).unwrap();
            assert_eq!(decode::<Reply>(again.trim_ascii_end()).unwrap(), reply);
        }
    }
    if let Ok(sealed) = blob::Sealed::read(bytes, "wrap", "db") {
        // Nobody can seal under a key that the fuzzer does not know.
        assert!(sealed.open(&[7; 32]).is_err());
    }
});
