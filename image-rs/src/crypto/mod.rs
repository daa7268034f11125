//! Encrypted layers as ocicrypt makes them.
//!
//! Sources: OCI image-spec draft on encryption, `containers/ocicrypt` `docs/`. A layer is AES-256-CTR over the
//! (compressed) archive; the 16-byte nonce is the first counter block. HMAC-SHA256 with the same key covers the
//! ciphertext and stands in the public options. Key, nonce and the digest of the source blob are the
//! private options, wrapped for every recipient: [`packet`] for the key broker, [`jwe`] for a key pair, [`pkcs7`] for
//! certificates.
//! The `digest` in the private options is not enforced: skopeo fills in that of the blob before compression. A layer of ours
//! also names, among its private options, the digest of the image configuration that it belongs to (`crate::pins`).
//!
//! CTR alone lets anyone flip plaintext bits, so nothing is decrypted before the HMAC of the whole layer is known to be right, or the hash
//! of its chunk by a signed list (`crate::chunks`); [`DecryptReader`] checks the HMAC again as it reads.

mod der;
pub mod jwe;
pub mod packet;
pub mod pkcs7;
mod rsa;

use std::fmt;
use std::io::{self, Read};

use aws_lc_rs::cipher::{
    AES_256, DecryptionContext, EncryptionContext, StreamingDecryptingKey, StreamingEncryptingKey,
    UnboundCipherKey,
};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::digest::Digest;

/// Annotation with the public options.
pub const PUBOPTS: &str = "org.opencontainers.image.enc.pubopts";
/// Annotation with packets for the key broker.
pub const KEYS_PROVIDER: &str = "org.opencontainers.image.enc.keys.provider.attestation-agent";
/// Annotation with JWE-wrapped keys.
pub const KEYS_JWE: &str = "org.opencontainers.image.enc.keys.jwe";
/// Annotation with keys wrapped for certificates.
pub const KEYS_PKCS7: &str = "org.opencontainers.image.enc.keys.pkcs7";
/// What the annotations of all key providers begin with; the provider's name follows.
pub const KEYS_PROVIDERS: &str = "org.opencontainers.image.enc.keys.provider.";
/// What all annotations of an encrypted layer begin with.
pub const ENCRYPTION: &str = "org.opencontainers.image.enc.";
/// What all key annotations begin with.
pub const KEYS_PREFIX: &str = "org.opencontainers.image.enc.keys.";
const CIPHER: &str = "AES_256_CTR_HMAC_SHA256";
const PIECE: usize = 64 << 10;

/// What can be wrong with the encryption of a layer.
#[derive(Debug, thiserror::Error)]
pub enum CryptoError {
    /// An annotation or packet cannot be read.
    #[error("{what} cannot be read: {why}")]
    Malformed {
        /// Which one.
        what: &'static str,
        /// What is wrong with it; never a secret.
        why: String,
    },
    /// A cipher, wrapping or curve that is not supported.
    #[error("{what} {seen:?} is not supported; supported: {known}")]
    Unsupported {
        /// What it is about.
        what: &'static str,
        /// The name seen.
        seen: String,
        /// The names known.
        known: &'static str,
    },
    /// The wrapped key does not open with the key given: another key, or a changed packet.
    #[error("{what} does not open with this key: the key is another one or the packet was changed")]
    Unwrap {
        /// Which packet.
        what: &'static str,
    },
    /// The layer's bytes do not have the HMAC of the public options.
    #[error("the layer's hmac is wrong: the layer was changed, or its key is another one")]
    Hmac,
    /// The crypto library refused; a bug or a broken machine.
    #[error("the cryptographic library failed at {0}")]
    Library(&'static str),
}

pub(crate) fn malformed(what: &'static str, why: impl fmt::Display) -> CryptoError {
    CryptoError::Malformed { what, why: why.to_string() }
}

/// Public options of an encrypted layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicOptions {
    /// HMAC-SHA256 of the ciphertext.
    pub hmac: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct WireOptions {
    cipher: String,
    #[serde(default)]
    hmac: String,
    #[serde(default)]
    cipheroptions: serde_json::Map<String, serde_json::Value>,
}

impl PublicOptions {
    /// Reads the annotation [`PUBOPTS`].
    ///
    /// # Errors
    /// When it is no base64 JSON, names another cipher, or the HMAC has not 32 bytes.
    pub fn from_annotation(text: &str) -> Result<Self, CryptoError> {
        const WHAT: &str = "annotation enc.pubopts";
        let json = STANDARD.decode(text).map_err(|e| malformed(WHAT, e))?;
        let wire: WireOptions = serde_json::from_slice(&json).map_err(|e| malformed(WHAT, e))?;
        if wire.cipher != CIPHER {
            return Err(CryptoError::Unsupported { what: "layer cipher", seen: wire.cipher, known: CIPHER });
        }
        let hmac = STANDARD.decode(&wire.hmac).map_err(|e| malformed(WHAT, e))?;
        let hmac = <[u8; 32]>::try_from(hmac).map_err(|_| malformed(WHAT, "hmac has not 32 bytes"))?;
        Ok(Self { hmac })
    }

    /// The annotation's text.
    pub fn to_annotation(&self) -> String {
        let json = format!(
            "{{\"cipher\":\"{CIPHER}\",\"hmac\":\"{}\",\"cipheroptions\":{{}}}}",
            STANDARD.encode(self.hmac)
        );
        STANDARD.encode(json)
    }
}

/// Key and nonce of one layer.
#[derive(Clone)]
pub struct LayerKey {
    key: Zeroizing<[u8; 32]>,
    nonce: [u8; 16],
}

impl fmt::Debug for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LayerKey(redacted)")
    }
}

/// What is wrapped for each recipient of a layer.
#[derive(Debug, Clone)]
pub struct PrivateOptions {
    /// Key and nonce.
    pub key: LayerKey,
    /// Digest of the image configuration that the layer was encrypted for; ocicrypt's own tools give none.
    pub config: Option<Digest>,
}

/// Cipher option with the digest of the image configuration. ocicrypt reads only the options that it knows.
const CONFIG_OPTION: &str = "kata-cc.config-digest";

#[derive(Deserialize)]
struct WirePrivateOptions<'a> {
    #[serde(borrow)]
    symkey: &'a str,
    #[serde(borrow)]
    cipheroptions: PrivateCipherOptions<'a>,
}

#[derive(Deserialize)]
struct PrivateCipherOptions<'a> {
    #[serde(borrow)]
    nonce: &'a str,
    #[serde(borrow, default, rename = "kata-cc.config-digest")]
    config: Option<&'a str>,
}

impl PrivateOptions {
    /// Reads the private options, the JSON that is wrapped for each recipient.
    ///
    /// # Errors
    /// When it is not that JSON, key and nonce have other lengths, or the configuration's digest is none.
    pub fn read(json: &[u8]) -> Result<Self, CryptoError> {
        const WHAT: &str = "private options of the layer";
        // The parser's own message could quote the key: only its position is passed on.
        let wire: WirePrivateOptions<'_> = serde_json::from_slice(json)
            .map_err(|e| malformed(WHAT, format!("no JSON of that form at {}", e.column())))?;
        let bytes =
            Zeroizing::new(STANDARD.decode(wire.symkey).map_err(|_| malformed(WHAT, "symkey is no base64"))?);
        let mut key = Zeroizing::new([0; 32]);
        if bytes.len() != key.len() {
            return Err(malformed(WHAT, "symkey has not 32 bytes"));
        }
        key.copy_from_slice(&bytes);
        let nonce =
            STANDARD.decode(wire.cipheroptions.nonce).map_err(|_| malformed(WHAT, "nonce is no base64"))?;
        let nonce = <[u8; 16]>::try_from(nonce).map_err(|_| malformed(WHAT, "nonce has not 16 bytes"))?;
        let config = wire.cipheroptions.config.map(config_digest).transpose()?;
        Ok(Self { key: LayerKey { key, nonce }, config })
    }

    /// The JSON to be wrapped; `source` is the digest of the blob before encryption.
    pub fn write(&self, source: &str) -> Zeroizing<Vec<u8>> {
        let key = Zeroizing::new(STANDARD.encode(self.key.key.as_ref()));
        let mut options = format!("\"nonce\":\"{}\"", STANDARD.encode(self.key.nonce));
        if let Some(config) = &self.config {
            // All values of this map are base64 in ocicrypt.
            options.push_str(&format!(",\"{CONFIG_OPTION}\":\"{}\"", STANDARD.encode(config.as_str())));
        }
        let mut json = Zeroizing::new(Vec::with_capacity(512 + source.len()));
        for part in [
            "{\"symkey\":\"",
            key.as_str(),
            "\",\"digest\":\"",
            source,
            "\",\"cipheroptions\":{",
            options.as_str(),
            "}}",
        ] {
            json.extend_from_slice(part.as_bytes());
        }
        json
    }
}

fn config_digest(text: &str) -> Result<Digest, CryptoError> {
    const WHAT: &str = "configuration digest of the layer";
    let bytes = STANDARD.decode(text).map_err(|e| malformed(WHAT, e))?;
    String::from_utf8(bytes).map_err(|e| malformed(WHAT, e))?.parse().map_err(|e| malformed(WHAT, e))
}

impl LayerKey {
    /// Makes a random key and nonce.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, CryptoError> {
        let mut key = Zeroizing::new([0; 32]);
        let mut nonce = [0; 16];
        aws_lc_rs::rand::fill(key.as_mut()).map_err(|_| CryptoError::Library("random"))?;
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| CryptoError::Library("random"))?;
        Ok(Self { key, nonce })
    }

    /// The HMAC to feed the ciphertext to.
    pub fn mac(&self) -> hmac::Context {
        hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, self.key.as_ref()))
    }

    fn cipher_key(&self) -> Result<UnboundCipherKey, CryptoError> {
        UnboundCipherKey::new(&AES_256, self.key.as_ref()).map_err(|_| CryptoError::Library("cipher key"))
    }

    fn decryptor(&self) -> Result<StreamingDecryptingKey, CryptoError> {
        let context = DecryptionContext::Iv128(FixedLength::from(self.nonce));
        StreamingDecryptingKey::ctr(self.cipher_key()?, context).map_err(|_| CryptoError::Library("AES-CTR"))
    }

    fn encryptor(&self) -> Result<StreamingEncryptingKey, CryptoError> {
        let context = EncryptionContext::Iv128(FixedLength::from(self.nonce));
        StreamingEncryptingKey::less_safe_ctr(self.cipher_key()?, context)
            .map_err(|_| CryptoError::Library("AES-CTR"))
    }
}

/// Whether `tag` is the right HMAC, compared in constant time.
///
/// # Errors
/// [`CryptoError::Hmac`] when it is not.
pub fn verify_mac(context: hmac::Context, tag: &[u8; 32]) -> Result<(), CryptoError> {
    let seen = context.sign();
    aws_lc_rs::constant_time::verify_slices_are_equal(seen.as_ref(), tag).map_err(|_| CryptoError::Hmac)
}

/// Decrypts while reading, and fails at the end when the HMAC is wrong.
pub struct DecryptReader<R> {
    inner: R,
    cipher: StreamingDecryptingKey,
    mac: Option<hmac::Context>,
    tag: [u8; 32],
    sealed: Vec<u8>,
    open: Vec<u8>,
    from: usize,
    to: usize,
}

impl<R: Read> DecryptReader<R> {
    /// Reads ciphertext from `inner`.
    ///
    /// # Errors
    /// When the cipher cannot be set up.
    pub fn new(inner: R, key: &LayerKey, options: &PublicOptions) -> Result<Self, CryptoError> {
        Ok(Self {
            inner,
            cipher: key.decryptor()?,
            mac: Some(key.mac()),
            tag: options.hmac,
            sealed: vec![0; PIECE],
            open: vec![0; PIECE + 16],
            from: 0,
            to: 0,
        })
    }
}

impl<R: Read> Read for DecryptReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.from == self.to {
            let count = self.inner.read(&mut self.sealed)?;
            if count == 0 {
                if let Some(mac) = self.mac.take() {
                    verify_mac(mac, &self.tag).map_err(io::Error::other)?;
                }
                return Ok(0);
            }
            let sealed = &self.sealed[..count];
            if let Some(mac) = self.mac.as_mut() {
                mac.update(sealed);
            }
            let update = self
                .cipher
                .update(sealed, &mut self.open)
                .map_err(|_| io::Error::other(CryptoError::Library("AES-CTR")))?;
            self.from = 0;
            self.to = update.written().len();
        }
        let count = out.len().min(self.to - self.from);
        out[..count].copy_from_slice(&self.open[self.from..self.from + count]);
        self.from += count;
        Ok(count)
    }
}

impl<R> Drop for DecryptReader<R> {
    fn drop(&mut self) {
        self.open.zeroize();
    }
}

/// Encrypts while copying; gives the public options.
pub struct Encryptor {
    cipher: StreamingEncryptingKey,
    mac: hmac::Context,
    sealed: Vec<u8>,
}

impl Encryptor {
    /// Begins a layer.
    ///
    /// # Errors
    /// When the cipher cannot be set up.
    pub fn new(key: &LayerKey) -> Result<Self, CryptoError> {
        Ok(Self { cipher: key.encryptor()?, mac: key.mac(), sealed: Vec::new() })
    }

    /// Encrypts the next piece.
    ///
    /// # Errors
    /// When the library fails.
    pub fn update(&mut self, plain: &[u8]) -> Result<&[u8], CryptoError> {
        self.sealed.resize(plain.len() + 16, 0);
        let count = self
            .cipher
            .update(plain, &mut self.sealed)
            .map_err(|_| CryptoError::Library("AES-CTR"))?
            .written()
            .len();
        let sealed = &self.sealed[..count];
        self.mac.update(sealed);
        Ok(sealed)
    }

    /// Ends the layer.
    pub fn finish(self) -> PublicOptions {
        let mut hmac = [0; 32];
        hmac.copy_from_slice(self.mac.sign().as_ref());
        PublicOptions { hmac }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn private_options_keep_the_configuration_in_ocicrypts_form() {
        let config = Digest::sha256(b"config");
        for config in [None, Some(config)] {
            let options = PrivateOptions { key: LayerKey::generate().unwrap(), config };
            let json = options.write("sha256:source");
            let read = PrivateOptions::read(&json).unwrap();
            assert_eq!(read.config, options.config);
            assert_eq!((read.key.key, read.key.nonce), (options.key.key, options.key.nonce));
            // ocicrypt: map[string][]byte, so every value is base64.
            let wire: serde_json::Value = serde_json::from_slice(&json).unwrap();
            for (name, value) in wire["cipheroptions"].as_object().unwrap() {
                assert!(STANDARD.decode(value.as_str().unwrap()).is_ok(), "{name}");
            }
        }
    }

    #[test]
    fn a_configuration_that_is_no_digest_is_refused() {
        let key = STANDARD.encode([1; 32]);
        let nonce = STANDARD.encode([2; 16]);
        for text in ["sha256:00".to_owned(), STANDARD.encode("sha256:00"), String::new()] {
            let json = format!(
                "{{\"symkey\":\"{key}\",\"digest\":\"\",\"cipheroptions\":{{\"nonce\":\"{nonce}\",\"{CONFIG_OPTION}\":\"{text}\"}}}}"
            );
            assert!(
                matches!(PrivateOptions::read(json.as_bytes()), Err(CryptoError::Malformed { .. })),
                "{text}"
            );
        }
    }
}
