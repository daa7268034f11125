//! Encrypting a resource to the guest's key: a flattened JWE (RFC 7516, 7518).
//!
//! The header is written as `alg`, `enc`, then the rest in alphabetical order, compact: Trustee's client serialises what
//! it received anew before it checks the tag, and only this form survives that. See `kata-cc-kbs-client` `jwe` for the
//! other direction.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P521, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::encoding::{AsBigEndian as _, EcPublicKeyUncompressedBin};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use aws_lc_rs::rand;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use kata_cc_kbs_protocol::jwe::concat_kdf;
use kata_cc_kbs_protocol::{JweResponse, TeePubKey, base64_url, from_base64_url};
use thiserror::Error;
use zeroize::Zeroizing;

/// Why nothing was encrypted.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub(crate) enum JweError {
    /// A key of a kind that is not answered to.
    #[error("tee-pubkey must be EC P-256 or P-521 with ECDH-ES+A256KW, or RSA with RSA-OAEP-256, seen {0:?}")]
    Algorithm(String),
    /// A key with damaged members.
    #[error("tee-pubkey is damaged")]
    Key,
    /// The cryptographic library failed.
    #[error("encryption failed")]
    Failed,
}

/// Encrypts `plain` to `key`.
pub(crate) fn encrypt(key: &TeePubKey, plain: &[u8]) -> Result<JweResponse, JweError> {
    let mut content_key = Zeroizing::new([0; 32]);
    let mut iv = [0; 12];
    rand::fill(content_key.as_mut()).map_err(|_| JweError::Failed)?;
    rand::fill(&mut iv).map_err(|_| JweError::Failed)?;
    let (header, encrypted_key) = match key {
        TeePubKey::EC { crv, alg, x, y } if alg == "ECDH-ES+A256KW" => wrap_ecdh(crv, x, y, &content_key)?,
        TeePubKey::RSA { alg, n, e } if alg == "RSA-OAEP-256" => {
            let header = r#"{"alg":"RSA-OAEP-256","enc":"A256GCM"}"#.to_owned();
            (header, wrap_rsa(n, e, &content_key)?)
        }
        TeePubKey::EC { alg, .. } | TeePubKey::RSA { alg, .. } => {
            return Err(JweError::Algorithm(alg.chars().take(32).collect()));
        }
    };
    let protected = base64_url(header.as_bytes());
    let cipher = UnboundKey::new(&AES_256_GCM, content_key.as_ref()).map_err(|_| JweError::Failed)?;
    let mut body = Zeroizing::new(plain.to_vec());
    let tag = LessSafeKey::new(cipher)
        .seal_in_place_separate_tag(Nonce::from(&iv), Aad::from(protected.as_bytes()), &mut body)
        .map_err(|_| JweError::Failed)?;
    Ok(JweResponse {
        encrypted_key: base64_url(&encrypted_key),
        aad: None,
        iv: base64_url(&iv),
        ciphertext: base64_url(&body),
        tag: base64_url(tag.as_ref()),
        protected,
    })
}

fn wrap_ecdh(crv: &str, x: &str, y: &str, content_key: &[u8; 32]) -> Result<(String, Vec<u8>), JweError> {
    let (algorithm, length) = match crv {
        "P-256" => (&ECDH_P256, 32),
        "P-521" => (&ECDH_P521, 66),
        other => return Err(JweError::Algorithm(other.chars().take(32).collect())),
    };
    let coordinate = |text| from_base64_url(text).filter(|c| c.len() == length).ok_or(JweError::Key);
    let point = [&[4][..], &coordinate(x)?, &coordinate(y)?].concat();
    let ephemeral = PrivateKey::generate(algorithm).map_err(|_| JweError::Failed)?;
    let public = ephemeral.compute_public_key().map_err(|_| JweError::Failed)?;
    let public: EcPublicKeyUncompressedBin<'_> = public.as_be_bytes().map_err(|_| JweError::Failed)?;
    let peer = UnparsedPublicKey::new(algorithm, point);
    let kek = agreement::agree(&ephemeral, peer, JweError::Key, |z| Ok(concat_kdf(z)))?;
    let kek = AesKek::new(&AES_256, kek.as_ref()).map_err(|_| JweError::Failed)?;
    let mut wrapped = vec![0; 40];
    kek.wrap(content_key, &mut wrapped).map_err(|_| JweError::Failed)?;
    let coordinates = public.as_ref().get(1..).unwrap_or_default();
    let (x, y) = coordinates.split_at(coordinates.len() / 2);
    let header = format!(
        r#"{{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{{"crv":"{crv}","kty":"EC","x":"{}","y":"{}"}}}}"#,
        base64_url(x),
        base64_url(y)
    );
    Ok((header, wrapped))
}

fn wrap_rsa(n: &str, e: &str, content_key: &[u8; 32]) -> Result<Vec<u8>, JweError> {
    let (n, e) = (from_base64_url(n).ok_or(JweError::Key)?, from_base64_url(e).ok_or(JweError::Key)?);
    let public = PublicEncryptingKey::from_der(&rsa_spki(&n, &e)).map_err(|_| JweError::Key)?;
    let public = OaepPublicEncryptingKey::new(public).map_err(|_| JweError::Key)?;
    let mut wrapped = vec![0; public.ciphertext_size()];
    public.encrypt(&OAEP_SHA256_MGF1SHA256, content_key, &mut wrapped, None).map_err(|_| JweError::Failed)?;
    Ok(wrapped)
}

/// `SubjectPublicKeyInfo` of an RSA key (RFC 8017, A.1).
fn rsa_spki(n: &[u8], e: &[u8]) -> Vec<u8> {
    fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
        let length = contents.len().to_be_bytes();
        let significant = &length[length.iter().take_while(|b| **b == 0).count().min(7)..];
        let mut out = vec![tag];
        if contents.len() < 0x80 {
            out.push(significant[0]);
        } else {
            out.push(0x80 | significant.len() as u8);
            out.extend_from_slice(significant);
        }
        out.extend_from_slice(contents);
        out
    }
    let integer = |number: &[u8]| {
        let number: Vec<u8> = number.iter().copied().skip_while(|b| *b == 0).collect();
        let padded =
            if number.first().is_none_or(|b| *b >= 0x80) { [&[0][..], &number].concat() } else { number };
        element(2, &padded)
    };
    // rsaEncryption with NULL parameters.
    let algorithm =
        [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let key = element(0x30, &[integer(n), integer(e)].concat());
    let bits = element(3, &[&[0][..], &key].concat());
    element(0x30, &[&algorithm[..], &bits].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_kbs_client::{KeyAlgorithm, TeeKey, jwe::decrypt};

    #[test]
    fn the_client_decrypts_what_was_encrypted() {
        for algorithm in [KeyAlgorithm::EcdhP256, KeyAlgorithm::EcdhP521, KeyAlgorithm::RsaOaep256] {
            let key = TeeKey::generate(algorithm).unwrap();
            for plain in [&b""[..], b"x", &[7; 5000]] {
                let jwe = encrypt(key.public(), plain).unwrap();
                assert_eq!(decrypt(&key, &jwe).unwrap().as_slice(), plain);
            }
        }
    }

    #[test]
    fn the_header_survives_being_serialised_anew() {
        let key = TeeKey::generate(KeyAlgorithm::EcdhP256).unwrap();
        let jwe = encrypt(key.public(), b"x").unwrap();
        let header = String::from_utf8(from_base64_url(&jwe.protected).unwrap()).unwrap();
        assert!(
            header.starts_with(
                r#"{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":""#
            )
        );
    }

    #[test]
    fn other_keys_are_refused() {
        let key = |crv: &str, alg: &str, x: &str| TeePubKey::EC {
            crv: crv.to_owned(),
            alg: alg.to_owned(),
            x: x.to_owned(),
            y: x.to_owned(),
        };
        let zero = base64_url(&[0; 32]);
        assert!(matches!(encrypt(&key("P-384", "ECDH-ES+A256KW", &zero), b""), Err(JweError::Algorithm(_))));
        assert!(matches!(encrypt(&key("P-256", "none", &zero), b""), Err(JweError::Algorithm(_))));
        // Not on the curve.
        assert_eq!(encrypt(&key("P-256", "ECDH-ES+A256KW", &zero), b""), Err(JweError::Key));
        let rsa = TeePubKey::RSA { alg: "RSA-OAEP-256".to_owned(), n: "AA".to_owned(), e: "AQAB".to_owned() };
        assert_eq!(encrypt(&rsa, b""), Err(JweError::Key));
    }
}
