//! RSA private keys in the forms that PEM files have.

use aws_lc_rs::rsa::PrivateDecryptingKey;
use rustls_pki_types::PrivateKeyDer;
use zeroize::Zeroizing;

use super::der::{element, tag};

/// The key, when it is an RSA key that the library takes (2048 bits or more).
pub(super) fn private_key(key: &PrivateKeyDer<'_>) -> Option<PrivateDecryptingKey> {
    match key {
        PrivateKeyDer::Pkcs8(der) => PrivateDecryptingKey::from_pkcs8(der.secret_pkcs8_der()).ok(),
        PrivateKeyDer::Pkcs1(der) => {
            PrivateDecryptingKey::from_pkcs8(&pkcs1_in_pkcs8(der.secret_pkcs1_der())).ok()
        }
        _ => None,
    }
}

/// Wraps a PKCS#1 key (`BEGIN RSA PRIVATE KEY`) as PKCS#8, the only form the library reads.
fn pkcs1_in_pkcs8(key: &[u8]) -> Zeroizing<Vec<u8>> {
    const VERSION_AND_RSA: [u8; 18] =
        [2, 1, 0, 0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
    element(tag::SEQUENCE, &[&VERSION_AND_RSA, &element(tag::OCTETS, &[key])])
}
