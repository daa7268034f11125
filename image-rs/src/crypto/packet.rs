//! The annotation packet: a layer key wrapped by a key of the key broker.
//!
//! Source: confidential-containers guest-components, `coco_keyprovider` and `confidential-data-hub/hub/src/image`. Base64 of
//! JSON `{"kid":"kbs:///repo/type/tag","wrapped_data":…,"iv":…,"wrap_type":"A256GCM"}`; version 2 adds members that do
//! not change the meaning. A256GCM: 12-byte iv, tag at the end, no associated data. A256CTR (old): 16-byte iv, no
//! authentication; it is read because old images have it, and never written.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_256, DecryptionContext, StreamingDecryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{CryptoError, malformed};

const WHAT: &str = "annotation packet of the key broker";
const MAX: usize = 64 << 10;

/// A wrapped layer key and the name of the key that wraps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Packet {
    /// Resource URI of the wrapping key, `kbs:///repo/type/tag`.
    pub kid: String,
    wrapped_data: String,
    iv: String,
    wrap_type: String,
}

impl Packet {
    /// Reads the JSON of a packet.
    ///
    /// # Errors
    /// When it is too long or not that JSON.
    pub fn parse(json: &[u8]) -> Result<Self, CryptoError> {
        if json.len() > MAX {
            return Err(malformed(WHAT, "longer than 64 KiB"));
        }
        serde_json::from_slice(json).map_err(|e| malformed(WHAT, e))
    }

    /// The packet's JSON.
    pub fn to_json(&self) -> String {
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        format!(
            "{{\"kid\":{},\"wrapped_data\":{},\"iv\":{},\"wrap_type\":{}}}",
            quote(&self.kid),
            quote(&self.wrapped_data),
            quote(&self.iv),
            quote(&self.wrap_type)
        )
    }

    /// Wraps private options under `key`, named `kid`.
    ///
    /// # Errors
    /// When the key has not 32 bytes or the library fails.
    pub fn wrap(kid: &str, key: &[u8], options: &[u8]) -> Result<Self, CryptoError> {
        let key = gcm_key(key)?;
        let mut iv = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut iv).map_err(|_| CryptoError::Library("random"))?;
        let mut data = Zeroizing::new(options.to_vec());
        let tag = key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut data)
            .map_err(|_| CryptoError::Library("AES-GCM"))?;
        data.extend_from_slice(tag.as_ref());
        Ok(Self {
            kid: kid.to_owned(),
            wrapped_data: STANDARD.encode(data.as_slice()),
            iv: STANDARD.encode(iv),
            wrap_type: "A256GCM".to_owned(),
        })
    }

    /// Opens the packet: the private options.
    ///
    /// # Errors
    /// When the packet is malformed, or does not open with `key`.
    pub fn unwrap(&self, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let mut data = Zeroizing::new(STANDARD.decode(&self.wrapped_data).map_err(|e| malformed(WHAT, e))?);
        let iv = STANDARD.decode(&self.iv).map_err(|e| malformed(WHAT, e))?;
        match self.wrap_type.as_str() {
            "A256GCM" => {
                let iv =
                    <[u8; NONCE_LEN]>::try_from(iv).map_err(|_| malformed(WHAT, "iv has not 12 bytes"))?;
                let length = gcm_key(key)?
                    .open_in_place(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut data)
                    .map_err(|_| CryptoError::Unwrap { what: WHAT })?
                    .len();
                data.truncate(length);
                Ok(data)
            }
            "A256CTR" => {
                let iv = <[u8; 16]>::try_from(iv).map_err(|_| malformed(WHAT, "iv has not 16 bytes"))?;
                let key = UnboundCipherKey::new(&AES_256, key)
                    .map_err(|_| malformed(WHAT, "its key has not 32 bytes"))?;
                let mut cipher =
                    StreamingDecryptingKey::ctr(key, DecryptionContext::Iv128(FixedLength::from(iv)))
                        .map_err(|_| CryptoError::Library("AES-CTR"))?;
                let mut open = Zeroizing::new(vec![0; data.len() + 16]);
                let length = cipher
                    .update(&data, &mut open)
                    .map_err(|_| CryptoError::Library("AES-CTR"))?
                    .written()
                    .len();
                open.truncate(length);
                Ok(open)
            }
            other => Err(CryptoError::Unsupported {
                what: "key wrapping",
                seen: other.chars().take(64).collect(),
                known: "A256GCM, A256CTR",
            }),
        }
    }
}

fn gcm_key(key: &[u8]) -> Result<LessSafeKey, CryptoError> {
    let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| malformed(WHAT, "its key has not 32 bytes"))?;
    Ok(LessSafeKey::new(key))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn wraps_and_opens() {
        let packet = Packet::wrap("kbs:///default/image-key/1", &[7; 32], b"options").unwrap();
        let again = Packet::parse(packet.to_json().as_bytes()).unwrap();
        assert_eq!(again.kid, "kbs:///default/image-key/1");
        assert_eq!(again.unwrap(&[7; 32]).unwrap().as_slice(), b"options");
    }

    #[test]
    fn refuses_another_key_and_changed_data() {
        let packet = Packet::wrap("kbs:///a/b/c", &[7; 32], b"options").unwrap();
        let error = packet.unwrap(&[8; 32]).unwrap_err();
        assert!(matches!(error, CryptoError::Unwrap { .. }));
        let mut changed = packet.clone();
        let mut data = STANDARD.decode(&changed.wrapped_data).unwrap();
        data[0] ^= 1;
        changed.wrapped_data = STANDARD.encode(data);
        assert!(matches!(changed.unwrap(&[7; 32]).unwrap_err(), CryptoError::Unwrap { .. }));
        assert!(matches!(packet.unwrap(&[7; 31]).unwrap_err(), CryptoError::Malformed { .. }));
    }

    #[test]
    fn refuses_unknown_wrapping() {
        let mut packet = Packet::wrap("kbs:///a/b/c", &[7; 32], b"options").unwrap();
        packet.wrap_type = "A128CBC".to_owned();
        assert!(matches!(packet.unwrap(&[7; 32]).unwrap_err(), CryptoError::Unsupported { .. }));
    }
}
