//! The key derivation that both ends of an encrypted resource share: the broker encrypts, the guest decrypts.

use aws_lc_rs::digest::{SHA256, digest};
use zeroize::Zeroizing;

/// The key-encryption key of `ECDH-ES+A256KW` from the agreed secret (RFC 7518, 4.6.2): one round of SHA-256, both parties
/// unnamed.
#[must_use]
pub fn concat_kdf(shared: &[u8]) -> Zeroizing<[u8; 32]> {
    const ALGORITHM: &[u8] = b"ECDH-ES+A256KW";
    let mut input = Zeroizing::new(Vec::with_capacity(shared.len() + 64));
    input.extend_from_slice(&1u32.to_be_bytes());
    input.extend_from_slice(shared);
    input.extend_from_slice(&(ALGORITHM.len() as u32).to_be_bytes());
    input.extend_from_slice(ALGORITHM);
    input.extend_from_slice(&[0; 8]);
    input.extend_from_slice(&256u32.to_be_bytes());
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(digest(&SHA256, &input).as_ref());
    key
}
