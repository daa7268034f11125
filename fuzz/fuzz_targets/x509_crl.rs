//! Revocation lists from a service or a file: parsed or refused; their answers do not depend on each other.
#![no_main]

use kata_cc_x509::{Certificate, Crl, SignatureAlgorithm};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(certificate) = Certificate::from_der_or_pem(data) {
        for algorithm in [SignatureAlgorithm::EcdsaP256Sha256, SignatureAlgorithm::RsaPssSha384] {
            let _ = certificate.signed_by(&certificate, algorithm);
        }
        let _ =
            (certificate.check_authority(), certificate.check_end_entity(), certificate.key_fingerprint());
    }
    if let Ok(crl) = Crl::from_der_or_pem(data) {
        assert!(!(crl.is_empty() && crl.revokes(&[1])));
        let _ = (crl.issuer_cn(), crl.number(), crl.check_validity(1_756_684_800));
    }
});
