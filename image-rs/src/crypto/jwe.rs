//! JWE: layer keys wrapped for a key pair, as skopeo's `--encryption-key jwe:public.pem` makes them.
//!
//! Sources: RFC 7516 (JSON serialisation, general and flattened), RFC 7518 (RSA-OAEP, ECDH-ES+A256KW, A256GCM), containers/ocicrypt
//! `keywrap/jwe`. Written: flattened form with A256GCM, RSA-OAEP for RSA and ECDH-ES+A256KW for EC keys, as ocicrypt does. Read:
//! those, general form, RSA-OAEP-256, ECDH-ES+A128KW. Compression (`zip`) and `crit` are refused.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{
    self, Algorithm, ECDH_P256, ECDH_P384, ECDH_P521, ParsedPublicKey, UnparsedPublicKey,
};
use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::key_wrap::{AES_128, AES_256, AesKek, KeyWrap as _};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PublicEncryptingKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{CryptoError, malformed, rsa};

const WHAT: &str = "jwe packet";
const MAX: usize = 64 << 10;
const KEY_ALGORITHMS: &str = "RSA-OAEP, RSA-OAEP-256, ECDH-ES+A256KW, ECDH-ES+A128KW";
static CURVES: [(&str, &Algorithm, usize); 3] =
    [("P-256", &ECDH_P256, 32), ("P-384", &ECDH_P384, 48), ("P-521", &ECDH_P521, 66)];

#[derive(Deserialize)]
struct Message {
    protected: String,
    #[serde(default)]
    unprotected: Map<String, Value>,
    #[serde(default)]
    recipients: Vec<Recipient>,
    #[serde(default)]
    header: Map<String, Value>,
    #[serde(default)]
    encrypted_key: String,
    iv: String,
    ciphertext: String,
    tag: String,
}

#[derive(Deserialize)]
struct Recipient {
    #[serde(default)]
    header: Map<String, Value>,
    #[serde(default)]
    encrypted_key: String,
}

fn decode(text: &str) -> Result<Vec<u8>, CryptoError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|e| malformed(WHAT, e))
}

fn text<'v>(header: &'v Map<String, Value>, name: &str) -> Option<&'v str> {
    header.get(name).and_then(Value::as_str)
}

/// Opens a JWE with the private key `pem`.
///
/// # Errors
/// When it is malformed, or made for other keys only.
pub fn open(jwe: &[u8], pem: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    if jwe.len() > MAX {
        return Err(malformed(WHAT, "longer than 64 KiB"));
    }
    let mut message: Message = serde_json::from_slice(jwe).map_err(|e| malformed(WHAT, e))?;
    if message.recipients.is_empty() {
        message.recipients.push(Recipient {
            header: std::mem::take(&mut message.header),
            encrypted_key: std::mem::take(&mut message.encrypted_key),
        });
    }
    let mut shared: Map<String, Value> =
        serde_json::from_slice(&decode(&message.protected)?).map_err(|e| malformed(WHAT, e))?;
    shared.extend(message.unprotected.clone());
    for name in ["zip", "crit"] {
        if shared.contains_key(name) {
            return Err(CryptoError::Unsupported {
                what: "jwe header member",
                seen: name.to_owned(),
                known: "alg, enc, epk, apu, apv, kid",
            });
        }
    }
    if text(&shared, "enc") != Some("A256GCM") {
        return Err(CryptoError::Unsupported {
            what: "jwe content encryption",
            seen: text(&shared, "enc").unwrap_or("none").to_owned(),
            known: "A256GCM",
        });
    }
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|e| malformed("private key", e))?;
    let mut last = CryptoError::Unwrap { what: WHAT };
    for recipient in message.recipients.iter().take(32) {
        let mut header = shared.clone();
        header.extend(recipient.header.clone());
        match content_key(&header, &decode(&recipient.encrypted_key)?, &key) {
            Ok(key) => return open_content(&message, &key),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn open_content(message: &Message, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let iv = <[u8; NONCE_LEN]>::try_from(decode(&message.iv)?)
        .map_err(|_| malformed(WHAT, "iv has not 12 bytes"))?;
    let mut data = Zeroizing::new(decode(&message.ciphertext)?);
    data.extend_from_slice(&decode(&message.tag)?);
    let length = content_cipher(key)?
        .open_in_place(Nonce::assume_unique_for_key(iv), Aad::from(message.protected.as_bytes()), &mut data)
        .map_err(|_| CryptoError::Unwrap { what: WHAT })?
        .len();
    data.truncate(length);
    Ok(data)
}

fn content_cipher(key: &[u8]) -> Result<LessSafeKey, CryptoError> {
    let key =
        UnboundKey::new(&AES_256_GCM, key).map_err(|_| malformed(WHAT, "content key has not 32 bytes"))?;
    Ok(LessSafeKey::new(key))
}

fn content_key(
    header: &Map<String, Value>,
    wrapped: &[u8],
    key: &PrivateKeyDer<'_>,
) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let name = text(header, "alg").unwrap_or("none");
    match name {
        "RSA-OAEP" | "RSA-OAEP-256" => {
            let algorithm = if name == "RSA-OAEP" { &OAEP_SHA1_MGF1SHA1 } else { &OAEP_SHA256_MGF1SHA256 };
            let key = rsa_private(key)?;
            let mut out = Zeroizing::new(vec![0; key.min_output_size()]);
            let length = key
                .decrypt(algorithm, wrapped, &mut out, None)
                .map_err(|_| CryptoError::Unwrap { what: WHAT })?
                .len();
            out.truncate(length);
            Ok(out)
        }
        "ECDH-ES+A256KW" | "ECDH-ES+A128KW" => {
            let size = if name == "ECDH-ES+A256KW" { 32 } else { 16 };
            let kek = agreed_key(header, name, size, key)?;
            let cipher = if size == 32 { &AES_256 } else { &AES_128 };
            let kek = AesKek::new(cipher, &kek).map_err(|_| CryptoError::Library("key wrap"))?;
            let mut out = Zeroizing::new(vec![0; wrapped.len()]);
            let length = kek.unwrap(wrapped, &mut out).map_err(|_| CryptoError::Unwrap { what: WHAT })?.len();
            out.truncate(length);
            Ok(out)
        }
        other => Err(CryptoError::Unsupported {
            what: "jwe key algorithm",
            seen: other.chars().take(64).collect(),
            known: KEY_ALGORITHMS,
        }),
    }
}

fn rsa_private(key: &PrivateKeyDer<'_>) -> Result<OaepPrivateDecryptingKey, CryptoError> {
    let key = rsa::private_key(key).ok_or(CryptoError::Unwrap { what: WHAT })?;
    OaepPrivateDecryptingKey::new(key).map_err(|_| CryptoError::Library("RSA"))
}

fn agreed_key(
    header: &Map<String, Value>,
    name: &str,
    size: usize,
    key: &PrivateKeyDer<'_>,
) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let der = match key {
        PrivateKeyDer::Pkcs8(der) => der.secret_pkcs8_der(),
        PrivateKeyDer::Sec1(der) => der.secret_sec1_der(),
        _ => return Err(CryptoError::Unwrap { what: WHAT }),
    };
    let epk =
        header.get("epk").and_then(Value::as_object).ok_or_else(|| malformed(WHAT, "epk is missing"))?;
    let curve = text(epk, "crv").unwrap_or("none");
    let (_, algorithm, length) =
        CURVES.iter().find(|(name, _, _)| *name == curve).ok_or_else(|| CryptoError::Unsupported {
            what: "curve",
            seen: curve.chars().take(32).collect(),
            known: "P-256, P-384, P-521",
        })?;
    let mut point = vec![4];
    for name in ["x", "y"] {
        let number = decode(text(epk, name).unwrap_or_default())?;
        if number.len() != *length {
            return Err(malformed(WHAT, "epk has a coordinate of another length"));
        }
        point.extend_from_slice(&number);
    }
    let private = agreement::PrivateKey::from_private_key_der(algorithm, der)
        .map_err(|_| CryptoError::Unwrap { what: WHAT })?;
    let party = |name: &str| decode(text(header, name).unwrap_or_default());
    let (apu, apv) = (party("apu")?, party("apv")?);
    agreement::agree(
        &private,
        UnparsedPublicKey::new(algorithm, &point),
        CryptoError::Unwrap { what: WHAT },
        |secret| Ok(concat_kdf(secret, name, &apu, &apv, size)),
    )
}

/// One round of the Concat KDF (RFC 7518, section 4.6.2): enough for keys of up to 32 bytes.
fn concat_kdf(secret: &[u8], name: &str, apu: &[u8], apv: &[u8], size: usize) -> Zeroizing<Vec<u8>> {
    let mut context = Context::new(&SHA256);
    context.update(&1u32.to_be_bytes());
    context.update(secret);
    for part in [name.as_bytes(), apu, apv] {
        context.update(&u32::try_from(part.len()).unwrap_or(0).to_be_bytes());
        context.update(part);
    }
    context.update(&u32::try_from(size * 8).unwrap_or(0).to_be_bytes());
    let mut key = Zeroizing::new(context.finish().as_ref().to_vec());
    key.truncate(size);
    key
}

/// Wraps `options` for the public key `pem`.
///
/// # Errors
/// When the key is neither RSA nor EC of a known curve.
pub fn seal(options: &[u8], pem: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let spki = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|e| malformed("public key", e))?;
    let mut content = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(content.as_mut()).map_err(|_| CryptoError::Library("random"))?;
    let (header, wrapped) = match PublicEncryptingKey::from_der(&spki) {
        Ok(key) => {
            let key = OaepPublicEncryptingKey::new(key).map_err(|_| CryptoError::Library("RSA"))?;
            let mut out = vec![0; key.ciphertext_size()];
            let length = key
                .encrypt(&OAEP_SHA1_MGF1SHA1, content.as_ref(), &mut out, None)
                .map_err(|_| CryptoError::Library("RSA-OAEP"))?
                .len();
            out.truncate(length);
            (json!({"alg": "RSA-OAEP", "enc": "A256GCM"}), out)
        }
        Err(_) => wrap_for_curve(&spki, content.as_ref())?,
    };
    let protected = URL_SAFE_NO_PAD.encode(header.to_string());
    let mut iv = [0; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut iv).map_err(|_| CryptoError::Library("random"))?;
    let mut data = Zeroizing::new(options.to_vec());
    let tag = content_cipher(content.as_ref())?
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(iv),
            Aad::from(protected.as_bytes()),
            &mut data,
        )
        .map_err(|_| CryptoError::Library("AES-GCM"))?;
    let message = json!({
        "protected": protected,
        "encrypted_key": URL_SAFE_NO_PAD.encode(wrapped),
        "iv": URL_SAFE_NO_PAD.encode(iv),
        "ciphertext": URL_SAFE_NO_PAD.encode(data.as_slice()),
        "tag": URL_SAFE_NO_PAD.encode(tag.as_ref()),
    });
    Ok(message.to_string().into_bytes())
}

fn wrap_for_curve(spki: &[u8], content: &[u8]) -> Result<(Value, Vec<u8>), CryptoError> {
    const NAME: &str = "ECDH-ES+A256KW";
    let unknown = || malformed("public key", "it is neither RSA nor EC on P-256, P-384, P-521");
    let parse = |algorithm| ParsedPublicKey::try_from(&UnparsedPublicKey::new(algorithm, spki)).ok();
    let (peer, (curve, algorithm, length)) =
        CURVES.iter().find_map(|entry| Some((parse(entry.1)?, entry))).ok_or_else(unknown)?;
    let private = agreement::PrivateKey::generate(algorithm).map_err(|_| CryptoError::Library("EC key"))?;
    let public = private.compute_public_key().map_err(|_| CryptoError::Library("EC key"))?;
    let (x, y) = public
        .as_ref()
        .get(1..)
        .and_then(|point| point.split_at_checked(*length))
        .ok_or(CryptoError::Library("EC key"))?;
    let kek = agreement::agree(&private, peer, CryptoError::Library("ECDH"), |secret| {
        Ok(concat_kdf(secret, NAME, &[], &[], 32))
    })?;
    let kek = AesKek::new(&AES_256, &kek).map_err(|_| CryptoError::Library("key wrap"))?;
    let mut wrapped = vec![0; content.len() + 8];
    let length = kek.wrap(content, &mut wrapped).map_err(|_| CryptoError::Library("key wrap"))?.len();
    wrapped.truncate(length);
    let epk =
        json!({"kty": "EC", "crv": curve, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)});
    Ok((json!({"alg": NAME, "enc": "A256GCM", "epk": epk}), wrapped))
}
