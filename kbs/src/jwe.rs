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
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, Pkcs1PublicEncryptingKey, PublicEncryptingKey,
};
use kata_cc_kbs_protocol::jwe::concat_kdf;
use kata_cc_kbs_protocol::{JweResponse, ProtocolVersion, TeePubKey, base64_url, from_base64_url};
use thiserror::Error;
use zeroize::Zeroizing;

/// Why nothing was encrypted.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub(crate) enum JweError {
    /// A key of a kind that is not answered to.
    #[error("tee-pubkey must be EC P-256 or P-521 with ECDH-ES+A256KW, or RSA with RSA-OAEP-256, seen {0:?}")]
    Algorithm(String),
    /// A key for RSA1_5, which is switched off.
    #[error(
        "tee-pubkey is for RSA1_5, which is not answered ([protocol] allow_rsa1_5 of the key broker): its decryption in the guest \
         can be made an oracle; clients since protocol 0.2.0 have other keys"
    )]
    Rsa15,
    /// A key with damaged members.
    #[error("tee-pubkey is damaged")]
    Key,
    /// The cryptographic library failed.
    #[error("encryption failed")]
    Failed,
}

/// How an answer is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// What the client speaks.
    pub(crate) version: ProtocolVersion,
    /// Whether keys for RSA1_5 are answered.
    pub(crate) allow_rsa1_5: bool,
}

/// Encrypts `plain` to `key`.
pub(crate) fn encrypt(key: &TeePubKey, plain: &[u8], form: Form) -> Result<JweResponse, JweError> {
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
        TeePubKey::RSA { alg, n, e } if alg == "RSA1_5" && form.allow_rsa1_5 => {
            let header = r#"{"alg":"RSA1_5","enc":"A256GCM"}"#.to_owned();
            (header, wrap_rsa1_5(n, e, &content_key)?)
        }
        TeePubKey::RSA { alg, .. } if alg == "RSA1_5" => return Err(JweError::Rsa15),
        TeePubKey::EC { alg, .. } | TeePubKey::RSA { alg, .. } => {
            return Err(JweError::Algorithm(alg.chars().take(32).collect()));
        }
    };
    let cipher = UnboundKey::new(&AES_256_GCM, content_key.as_ref()).map_err(|_| JweError::Failed)?;
    let cipher = LessSafeKey::new(cipher);
    let mut body = Zeroizing::new(plain.to_vec());
    let encrypted_key = base64_url(&encrypted_key);
    let nonce = Nonce::from(&iv);
    if form.version == ProtocolVersion::V0_1_1 {
        cipher.seal_in_place_append_tag(nonce, Aad::empty(), &mut *body).map_err(|_| JweError::Failed)?;
        let (protected, tag) = (header, String::new());
        let (iv, ciphertext) = (base64_url(&iv), base64_url(&body));
        return Ok(JweResponse { protected, encrypted_key, aad: None, iv, ciphertext, tag });
    }
    let protected = base64_url(header.as_bytes());
    let tag = cipher
        .seal_in_place_separate_tag(nonce, Aad::from(protected.as_bytes()), &mut body)
        .map_err(|_| JweError::Failed)?;
    let (iv, ciphertext, tag) = (base64_url(&iv), base64_url(&body), base64_url(tag.as_ref()));
    Ok(JweResponse { protected, encrypted_key, aad: None, iv, ciphertext, tag })
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

fn rsa_key(n: &str, e: &str) -> Result<PublicEncryptingKey, JweError> {
    let (n, e) = (from_base64_url(n).ok_or(JweError::Key)?, from_base64_url(e).ok_or(JweError::Key)?);
    PublicEncryptingKey::from_der(&rsa_spki(&n, &e)).map_err(|_| JweError::Key)
}

fn wrap_rsa1_5(n: &str, e: &str, content_key: &[u8; 32]) -> Result<Vec<u8>, JweError> {
    let public = Pkcs1PublicEncryptingKey::new(rsa_key(n, e)?).map_err(|_| JweError::Key)?;
    let mut wrapped = vec![0; public.ciphertext_size()];
    public.encrypt(content_key, &mut wrapped).map_err(|_| JweError::Failed)?;
    Ok(wrapped)
}

fn wrap_rsa(n: &str, e: &str, content_key: &[u8; 32]) -> Result<Vec<u8>, JweError> {
    let public = OaepPublicEncryptingKey::new(rsa_key(n, e)?).map_err(|_| JweError::Key)?;
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
    use aws_lc_rs::rsa::{KeySize, Pkcs1PrivateDecryptingKey, PrivateDecryptingKey};
    use kata_cc_kbs_client::{KeyAlgorithm, TeeKey, jwe::decrypt};
    use serde_json::Value;

    const STRICT: Form = Form { version: ProtocolVersion::V0_4_0, allow_rsa1_5: false };
    const OLD: Form = Form { version: ProtocolVersion::V0_1_1, allow_rsa1_5: true };

    #[test]
    fn the_client_decrypts_what_was_encrypted() {
        for algorithm in [KeyAlgorithm::EcdhP256, KeyAlgorithm::EcdhP521, KeyAlgorithm::RsaOaep256] {
            let key = TeeKey::generate(algorithm).unwrap();
            for version in [ProtocolVersion::V0_2_0, ProtocolVersion::V0_4_0] {
                for plain in [&b""[..], b"x", &[7; 5000]] {
                    let form = Form { version, allow_rsa1_5: false };
                    let jwe = encrypt(key.public(), plain, form).unwrap();
                    assert_eq!(decrypt(&key, &jwe).unwrap().as_slice(), plain);
                }
            }
        }
    }

    /// As guest-components did in v0.10: the header is JSON in clear, the tag is behind the ciphertext.
    #[test]
    fn clients_of_0_1_1_decrypt_their_form() {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let TeePubKey::RSA { n, e, .. } = public(&private) else { panic!() };
        let key = TeePubKey::RSA { alg: "RSA1_5".to_owned(), n, e };
        let strict = Form { allow_rsa1_5: false, ..OLD };
        let error = encrypt(&key, b"secret", strict).unwrap_err();
        assert!(error == JweError::Rsa15 && error.to_string().contains("allow_rsa1_5"), "{error}");
        let jwe = encrypt(&key, b"secret", OLD).unwrap();
        assert_eq!((jwe.protected.as_str(), jwe.tag.as_str()), (r#"{"alg":"RSA1_5","enc":"A256GCM"}"#, ""));
        let private = Pkcs1PrivateDecryptingKey::new(private).unwrap();
        let mut content_key = vec![0; private.min_output_size()];
        let wrapped = from_base64_url(&jwe.encrypted_key).unwrap();
        let content_key = private.decrypt(&wrapped, &mut content_key).unwrap();
        let iv: [u8; 12] = from_base64_url(&jwe.iv).unwrap().try_into().unwrap();
        let mut body = from_base64_url(&jwe.ciphertext).unwrap();
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, content_key).unwrap());
        let plain = cipher.open_in_place(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut body).unwrap();
        assert_eq!(plain, b"secret");
    }

    fn public(private: &PrivateDecryptingKey) -> TeePubKey {
        use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
        let der: Pkcs8V1Der<'_> = private.as_der().unwrap();
        let text = kata_cc_kbs_protocol::base64_standard(der.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
        TeeKey::from_pem(pem.as_bytes()).unwrap().public().clone()
    }

    /// What we write has the members, header and lengths of the recorded answers, for the same key of each kind.
    #[test]
    fn vectors() {
        let Some(text) = kata_cc_test_vectors::read("coco/jwe/cases.json") else { return };
        let cases: Vec<Value> = serde_json::from_slice(&text).unwrap();
        let mut compared = 0;
        for case in cases.iter().filter(|case| case["strict_jose_valid"] == true) {
            let name = &case["name"];
            let key = TeeKey::from_pem(case["private_key_pem"].as_str().unwrap().as_bytes()).unwrap();
            let plain =
                kata_cc_kbs_protocol::from_base64_standard(case["plaintext_b64"].as_str().unwrap()).unwrap();
            let ours = encrypt(key.public(), &plain, STRICT).unwrap();
            assert_eq!(decrypt(&key, &ours).unwrap().as_slice(), plain, "{name}");
            let ours = serde_json::to_value(&ours).unwrap();
            let recorded = &case["jwe"];
            let members = |jwe: &Value| jwe.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(members(&ours), members(recorded), "{name}");
            for member in ["encrypted_key", "iv", "ciphertext", "tag"] {
                let length = |jwe: &Value| jwe[member].as_str().unwrap().len();
                assert_eq!(length(&ours), length(recorded), "{name} {member}");
            }
            if case["why"] == "" {
                let header = |jwe: &Value| {
                    let text = from_base64_url(jwe["protected"].as_str().unwrap()).unwrap();
                    let text = String::from_utf8(text).unwrap();
                    // But for the fresh point, byte for byte.
                    text.split("\"x\":").next().unwrap().to_owned()
                };
                assert_eq!(header(&ours), header(recorded), "{name}");
            }
            compared += 1;
        }
        assert!(compared >= 5);
    }

    #[test]
    fn the_header_survives_being_serialised_anew() {
        let key = TeeKey::generate(KeyAlgorithm::EcdhP256).unwrap();
        let jwe = encrypt(key.public(), b"x", STRICT).unwrap();
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
        let encrypt = |key: &TeePubKey| encrypt(key, b"", OLD);
        let zero = base64_url(&[0; 32]);
        assert!(matches!(encrypt(&key("P-384", "ECDH-ES+A256KW", &zero)), Err(JweError::Algorithm(_))));
        assert!(matches!(encrypt(&key("P-256", "none", &zero)), Err(JweError::Algorithm(_))));
        // Not on the curve.
        assert_eq!(encrypt(&key("P-256", "ECDH-ES+A256KW", &zero)), Err(JweError::Key));
        for alg in ["RSA-OAEP-256", "RSA1_5"] {
            let rsa = TeePubKey::RSA { alg: alg.to_owned(), n: "AA".to_owned(), e: "AQAB".to_owned() };
            assert_eq!(encrypt(&rsa), Err(JweError::Key));
        }
    }
}
