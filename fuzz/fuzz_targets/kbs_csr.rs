//! Certificate signing requests that a guest sends to the key broker.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, unreachable_pub)]
#[path = "../../kbs/src/plugins/ca/csr.rs"]
mod csr;

use csr::{Csr, MAX_NAMES};

fuzz_target!(|bytes: &[u8]| {
    let Ok(request) = Csr::read(bytes) else { return };
    assert!(request.names.len() <= MAX_NAMES);
    // The key is copied from the request as it stands, and nothing may follow a request in DER.
    if !bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
        assert!(bytes.windows(request.spki.len()).any(|window| window == request.spki));
        assert!(Csr::read(&[bytes, &[0]].concat()).is_err());
    }
});
