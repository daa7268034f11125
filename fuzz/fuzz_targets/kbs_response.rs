//! What a key broker, or whoever stands in its place, can send to a guest before and after it is known.
#![no_main]

use kata_cc_kbs_client::{KeyAlgorithm, TeeKey, jwe};
use kata_cc_kbs_protocol::{Challenge, ErrorInformation, JweResponse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = serde_json::from_slice::<ErrorInformation>(bytes);
    if let Ok(challenge) = serde_json::from_slice::<Challenge>(bytes) {
        let _ = challenge.hash_algorithm();
    }
    if let Ok(answer) = serde_json::from_slice::<JweResponse>(bytes) {
        let Ok(key) = TeeKey::generate(KeyAlgorithm::EcdhP256) else { return };
        // The key is new: nobody can have wrapped anything for it.
        assert!(jwe::decrypt(&key, &answer).is_err());
    }
});
