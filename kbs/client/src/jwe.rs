//! Decrypting the key broker's answer: a flattened JWE (RFC 7516, 7518).
//!
//! `RSA-OAEP-256`, `RSA1_5` (still sent by old servers to clients that asked for it) and `ECDH-ES+A256KW` on P-256 and P-521;
//! contents always `A256GCM`. The authenticated data is the protected header exactly as received (RFC 7516, 5.1
//! step 14): it is not serialised anew. Why decryption failed is not told apart beyond what the header shows.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, ECDH_P256, UnparsedPublicKey};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, Pkcs1PrivateDecryptingKey};
use kata_cc_kbs_protocol::jwe::concat_kdf;
use kata_cc_kbs_protocol::{JweResponse, from_base64_url};
use serde_json::Value;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::key::{Private, TeeKey};

/// Why a JWE was not decrypted.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum JweError {
    /// A member is no base64url, or has a wrong length.
    #[error("member {0} of the answer is damaged")]
    Member(&'static str),
    /// An algorithm that is not known or does not fit the key.
    #[error("answer uses {0:?}, which is not known or does not fit the key")]
    Algorithm(String),
    /// Wrong key or changed contents.
    #[error("wrong key, or the answer was changed on its way")]
    Authentication,
}

/// Decrypts `jwe` with `key`.
pub fn decrypt(key: &TeeKey, jwe: &JweResponse) -> Result<Zeroizing<Vec<u8>>, JweError> {
    let member = |name: &'static str, text: &str| from_base64_url(text).ok_or(JweError::Member(name));
    let header: Value = serde_json::from_slice(&member("protected", &jwe.protected)?)
        .map_err(|_| JweError::Member("protected"))?;
    let text = |name: &str| header.get(name).and_then(Value::as_str).unwrap_or("");
    if text("enc") != "A256GCM" || header.get("crit").is_some() || header.get("zip").is_some() {
        return Err(JweError::Algorithm(text("enc").chars().take(32).collect()));
    }
    let encrypted_key = member("encrypted_key", &jwe.encrypted_key)?;
    let content_key = match (&key.private, text("alg")) {
        (Private::Rsa(private), "RSA-OAEP-256") => {
            let private =
                OaepPrivateDecryptingKey::new(private.clone()).map_err(|_| JweError::Authentication)?;
            let mut out = Zeroizing::new(vec![0; private.min_output_size()]);
            let length = private
                .decrypt(&OAEP_SHA256_MGF1SHA256, &encrypted_key, &mut out, None)
                .map_err(|_| JweError::Authentication)?
                .len();
            out.truncate(length);
            out
        }
        (Private::Rsa(private), "RSA1_5") => {
            let private =
                Pkcs1PrivateDecryptingKey::new(private.clone()).map_err(|_| JweError::Authentication)?;
            let mut out = Zeroizing::new(vec![0; private.min_output_size()]);
            let length =
                private.decrypt(&encrypted_key, &mut out).map_err(|_| JweError::Authentication)?.len();
            out.truncate(length);
            out
        }
        (Private::Ec(private), "ECDH-ES+A256KW") => unwrap_ecdh(private, &header, &encrypted_key)?,
        (_, other) => return Err(JweError::Algorithm(other.chars().take(32).collect())),
    };
    let iv: [u8; 12] = member("iv", &jwe.iv)?.try_into().map_err(|_| JweError::Member("iv"))?;
    let tag = member("tag", &jwe.tag)?;
    if tag.len() != 16 {
        return Err(JweError::Member("tag"));
    }
    let mut body = Zeroizing::new(member("ciphertext", &jwe.ciphertext)?);
    body.extend_from_slice(&tag);
    let aad = match &jwe.aad {
        None => jwe.protected.clone(),
        Some(aad) => format!("{}.{aad}", jwe.protected),
    };
    let cipher = UnboundKey::new(&AES_256_GCM, &content_key).map_err(|_| JweError::Authentication)?;
    let length = LessSafeKey::new(cipher)
        .open_in_place(Nonce::assume_unique_for_key(iv), Aad::from(aad.as_bytes()), &mut body)
        .map_err(|_| JweError::Authentication)?
        .len();
    body.truncate(length);
    Ok(body)
}

fn unwrap_ecdh(
    private: &agreement::PrivateKey,
    header: &Value,
    encrypted_key: &[u8],
) -> Result<Zeroizing<Vec<u8>>, JweError> {
    let algorithm = private.algorithm();
    let (curve, length) = if algorithm == &ECDH_P256 { ("P-256", 32) } else { ("P-521", 66) };
    let epk = header.get("epk").ok_or(JweError::Member("epk"))?;
    let text = |name: &str| epk.get(name).and_then(Value::as_str).unwrap_or("");
    if text("kty") != "EC" || text("crv") != curve {
        return Err(JweError::Algorithm(text("crv").chars().take(32).collect()));
    }
    let coordinate =
        |name: &str| from_base64_url(text(name)).filter(|c| c.len() == length).ok_or(JweError::Member("epk"));
    let point = [&[4][..], &coordinate("x")?, &coordinate("y")?].concat();
    let peer = UnparsedPublicKey::new(algorithm, point);
    let kek = agreement::agree(private, peer, JweError::Authentication, |z| Ok(concat_kdf(z)))?;
    let kek = AesKek::new(&AES_256, kek.as_ref()).map_err(|_| JweError::Authentication)?;
    let mut out = Zeroizing::new(vec![0; 32]);
    let length = kek.unwrap(encrypted_key, &mut out).map_err(|_| JweError::Authentication)?.len();
    out.truncate(length);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_kbs_protocol::from_base64_standard;

    #[test]
    fn vectors() {
        let Some(text) = kata_cc_test_vectors::read("coco/jwe/cases.json") else { return };
        let cases: Vec<Value> = serde_json::from_slice(&text).unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let key = TeeKey::from_pem(case["private_key_pem"].as_str().unwrap().as_bytes()).unwrap();
            let public: kata_cc_kbs_protocol::TeePubKey =
                serde_json::from_value(case["public_jwk"].clone()).unwrap();
            assert_eq!(key.public(), &public, "{}", case["name"]);
            let jwe: JweResponse = serde_json::from_value(case["jwe"].clone()).unwrap();
            let result = decrypt(&key, &jwe);
            if case["strict_jose_valid"] == true {
                let expected = from_base64_standard(case["plaintext_b64"].as_str().unwrap()).unwrap();
                assert_eq!(*result.unwrap(), expected, "{}", case["name"]);
            } else {
                assert_eq!(result.unwrap_err(), JweError::Authentication, "{}", case["name"]);
            }
        }
    }
}
