//! A stored secret under a key of the token: an envelope in the members of a flattened JWE (RFC 7516).
//!
//! A fresh 256-bit key encrypts the secret (AES-256-GCM); the token wraps that key. Associated data is the protected header, which
//! names algorithm, key and blob, so that neither can be swapped for another. So the store holds nothing that can be read
//! without the token, whoever has the store's own key.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use kata_cc_kbs_pkcs11::WrapAlgorithm;
use kata_cc_kbs_protocol::{base64_url, from_base64_url};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes of the key that encrypts.
pub(crate) const KEY: usize = 32;
/// Bytes of the authentication tag.
const TAG: usize = 16;
/// Most bytes of an envelope that are read.
const MAX: usize = 96 << 20;

/// Why an envelope was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum BlobError {
    /// Not an envelope.
    #[error("it is no wrapped blob: {0}")]
    Form(&'static str),
    /// It is of another name.
    #[error("it was wrapped as {seen:?}, not as {expected:?}")]
    Name {
        /// What it says.
        seen: String,
        /// What was asked for.
        expected: String,
    },
    /// The unwrapped key does not open it.
    #[error("it cannot be opened with the key that the token unwrapped: it was changed")]
    Sealed,
    /// The cryptographic library failed.
    #[error("encryption failed")]
    Crypto,
}

/// The protected header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: WrapAlgorithm,
    enc: String,
    /// Name of the key, as in the configuration.
    kid: String,
    /// Name of the blob.
    blob: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    protected: String,
    encrypted_key: String,
    iv: String,
    ciphertext: String,
    tag: String,
}

/// What the token is needed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// How the key is wrapped.
    pub(crate) algorithm: WrapAlgorithm,
    /// The wrapped key.
    pub(crate) encrypted_key: Vec<u8>,
    protected: String,
    iv: [u8; NONCE_LEN],
    body: Vec<u8>,
}

/// A key that no other blob has.
pub(crate) fn fresh_key() -> Result<Zeroizing<Vec<u8>>, BlobError> {
    let mut key = Zeroizing::new(vec![0; KEY]);
    rand::fill(&mut key).map_err(|_| BlobError::Crypto)?;
    Ok(key)
}

fn cipher(key: &[u8]) -> Result<LessSafeKey, BlobError> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| BlobError::Crypto)
}

/// Seals `plain` under `key`, which the token has wrapped to `encrypted_key`.
pub(crate) fn seal(
    algorithm: WrapAlgorithm,
    kid: &str,
    blob: &str,
    key: &[u8],
    encrypted_key: &[u8],
    plain: &[u8],
) -> Result<Vec<u8>, BlobError> {
    let header =
        Header { alg: algorithm, enc: "A256GCM".to_owned(), kid: kid.to_owned(), blob: blob.to_owned() };
    let header = serde_json::to_vec(&header).map_err(|_| BlobError::Crypto)?;
    let protected = base64_url(&header);
    let mut iv = [0; NONCE_LEN];
    rand::fill(&mut iv).map_err(|_| BlobError::Crypto)?;
    let mut body = Zeroizing::new(plain.to_vec());
    let tag = cipher(key)?
        .seal_in_place_separate_tag(Nonce::from(&iv), Aad::from(protected.as_bytes()), &mut body)
        .map_err(|_| BlobError::Crypto)?;
    let envelope = Envelope {
        encrypted_key: base64_url(encrypted_key),
        iv: base64_url(&iv),
        ciphertext: base64_url(&body),
        tag: base64_url(tag.as_ref()),
        protected,
    };
    serde_json::to_vec(&envelope).map_err(|_| BlobError::Crypto)
}

impl Sealed {
    /// Reads an envelope that must be of this key and blob.
    pub(crate) fn read(bytes: &[u8], kid: &str, blob: &str) -> Result<Self, BlobError> {
        if bytes.len() > MAX {
            return Err(BlobError::Form("it is too large"));
        }
        let envelope: Envelope =
            serde_json::from_slice(bytes).map_err(|_| BlobError::Form("expected the members of a JWE"))?;
        let decode = |text: &str| from_base64_url(text).ok_or(BlobError::Form("a member is not base64url"));
        let header: Header = serde_json::from_slice(&decode(&envelope.protected)?)
            .map_err(|_| BlobError::Form("its header is not understood"))?;
        if header.enc != "A256GCM" {
            return Err(BlobError::Form("enc must be A256GCM"));
        }
        if header.kid != kid || header.blob != blob {
            return Err(BlobError::Name {
                seen: format!("{}/{}", header.kid, header.blob).chars().take(128).collect(),
                expected: format!("{kid}/{blob}"),
            });
        }
        let iv = decode(&envelope.iv)?;
        let iv = iv.try_into().map_err(|_| BlobError::Form("iv must be 12 bytes"))?;
        let tag = decode(&envelope.tag)?;
        if tag.len() != TAG {
            return Err(BlobError::Form("tag must be 16 bytes"));
        }
        let mut body = decode(&envelope.ciphertext)?;
        body.extend_from_slice(&tag);
        let encrypted_key = decode(&envelope.encrypted_key)?;
        Ok(Self { algorithm: header.alg, encrypted_key, protected: envelope.protected, iv, body })
    }

    /// Opens it with the key that the token unwrapped.
    pub(crate) fn open(self, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, BlobError> {
        let mut body = Zeroizing::new(self.body);
        let aad = Aad::from(self.protected.as_bytes());
        let nonce = Nonce::assume_unique_for_key(self.iv);
        let length = {
            let cipher = cipher(key).map_err(|_| BlobError::Sealed)?;
            cipher.open_in_place(nonce, aad, &mut body).map_err(|_| BlobError::Sealed)?.len()
        };
        body.truncate(length);
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_what_was_sealed_and_nothing_that_was_changed() {
        let key = fresh_key().unwrap();
        let bytes = seal(WrapAlgorithm::A256Kw, "k", "b", &key, b"wrapped", b"secret").unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"secret"));
        let sealed = Sealed::read(&bytes, "k", "b").unwrap();
        assert_eq!(
            (sealed.algorithm, sealed.encrypted_key.as_slice()),
            (WrapAlgorithm::A256Kw, &b"wrapped"[..])
        );
        assert_eq!(sealed.clone().open(&key).unwrap().as_slice(), b"secret");
        assert_eq!(sealed.clone().open(&fresh_key().unwrap()), Err(BlobError::Sealed));
        assert_eq!(sealed.open(b"short"), Err(BlobError::Sealed));
        let error = Sealed::read(&bytes, "k", "other").unwrap_err().to_string();
        assert!(error.contains("wrapped as \"k/b\", not as \"k/other\""), "{error}");
        assert!(matches!(Sealed::read(&bytes, "other", "b"), Err(BlobError::Name { .. })));
        // Each member is authenticated or checked, but for the wrapped key, which the token checks.
        let envelope: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        for member in ["iv", "ciphertext", "tag", "protected"] {
            let mut changed = envelope.clone();
            let text = changed[member].as_str().unwrap();
            let mut decoded = from_base64_url(text).unwrap();
            decoded[0] ^= 1;
            changed[member] = base64_url(&decoded).into();
            let read = Sealed::read(&serde_json::to_vec(&changed).unwrap(), "k", "b");
            assert!(read.and_then(|sealed| sealed.open(&key)).is_err(), "{member}");
        }
        for (member, text) in [("iv", "AA"), ("tag", "AA"), ("ciphertext", "%")] {
            let mut changed = envelope.clone();
            changed[member] = text.into();
            let error = Sealed::read(&serde_json::to_vec(&changed).unwrap(), "k", "b").unwrap_err();
            assert!(matches!(error, BlobError::Form(_)), "{error}");
        }
        assert!(Sealed::read(b"{}", "k", "b").is_err());
    }
}
