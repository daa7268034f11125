//! Secrets that travel encrypted: the secret under a key of its own, that key under one of the key broker.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use kata_cc_kbs_protocol::{ResourcePath, base64_standard, from_base64_standard};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{PROVIDER, SealedError, cut};

const CIPHER: &str = "A256GCM";
const KEY_LEN: usize = 32;

/// An encrypted secret. Members are CoCo's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Name of the key that wraps the secret's key.
    pub key_id: String,
    /// The secret's key, wrapped, b64.
    pub encrypted_key: String,
    /// The secret, encrypted, with its tag at the end, b64.
    pub encrypted_data: String,
    /// `A256GCM`.
    pub wrap_type: String,
    /// Initial value, b64.
    pub iv: String,
    /// Who keeps the key.
    pub provider: String,
    /// For that provider.
    pub provider_settings: Map<String, Value>,
    /// For that provider.
    pub annotations: Map<String, Value>,
}

fn wrapping(key: &[u8], name: &str) -> Result<AesKek, SealedError> {
    let wrong = || SealedError::Resource {
        name: cut(name),
        why: format!("it has {} bytes, a key has {KEY_LEN}", key.len()),
    };
    if key.len() != KEY_LEN {
        return Err(wrong());
    }
    AesKek::new(&AES_256, key).map_err(|_| wrong())
}

impl Envelope {
    /// Encrypts a secret under a fresh key, and that under `key`, the resource `path`.
    ///
    /// # Errors
    /// When the key has not 32 bytes, or the library fails.
    pub fn seal(path: &ResourcePath, key: &[u8], secret: &[u8]) -> Result<Self, SealedError> {
        let library = |what| move |_| SealedError::Library(what);
        let name = path.uri();
        let wrapping = wrapping(key, &name)?;
        let mut own = Zeroizing::new([0; KEY_LEN]);
        let mut iv = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(own.as_mut_slice()).map_err(library("random"))?;
        aws_lc_rs::rand::fill(&mut iv).map_err(library("random"))?;
        let cipher = UnboundKey::new(&AES_256_GCM, own.as_slice()).map_err(library("AES-GCM"))?;
        let mut data = Zeroizing::new(Vec::with_capacity(secret.len() + 16));
        data.extend_from_slice(secret);
        let tag = LessSafeKey::new(cipher)
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut data)
            .map_err(library("AES-GCM"))?;
        data.extend_from_slice(tag.as_ref());
        let mut wrapped = [0; KEY_LEN + 8];
        let wrapped = wrapping.wrap(own.as_slice(), &mut wrapped).map_err(library("AES key wrap"))?;
        Ok(Self {
            key_id: name,
            encrypted_key: base64_standard(wrapped),
            encrypted_data: base64_standard(&data),
            wrap_type: CIPHER.to_owned(),
            iv: base64_standard(&iv),
            provider: PROVIDER.to_owned(),
            provider_settings: Map::new(),
            annotations: Map::new(),
        })
    }

    /// Opens it with the key that it names.
    ///
    /// # Errors
    /// When a member is out of form, or the key is another.
    pub fn open(&self, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealedError> {
        if self.wrap_type != CIPHER {
            return Err(SealedError::Cipher(cut(&self.wrap_type)));
        }
        let member = |text: &str, what| from_base64_standard(text).ok_or(SealedError::Form(what));
        let encrypted_key = member(&self.encrypted_key, "its encrypted_key is no base64")?;
        let mut data = Zeroizing::new(member(&self.encrypted_data, "its encrypted_data is no base64")?);
        let iv: [u8; NONCE_LEN] = member(&self.iv, "its iv is no base64")?
            .try_into()
            .map_err(|_| SealedError::Form("its iv has not 12 bytes"))?;
        let closed = || SealedError::Open(cut(&self.key_id));
        if encrypted_key.len() != KEY_LEN + 8 {
            return Err(SealedError::Form("its encrypted_key has not 40 bytes"));
        }
        let mut own = Zeroizing::new([0; KEY_LEN]);
        wrapping(key, &self.key_id)?.unwrap(&encrypted_key, own.as_mut_slice()).map_err(|_| closed())?;
        let cipher = UnboundKey::new(&AES_256_GCM, own.as_slice()).map_err(|_| closed())?;
        let length = LessSafeKey::new(cipher)
            .open_in_place(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut data)
            .map_err(|_| closed())?
            .len();
        data.truncate(length);
        Ok(data)
    }
}
