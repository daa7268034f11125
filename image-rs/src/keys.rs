//! Where the keys of encrypted layers come from.
//!
//! A layer carries one packet per recipient. The guest opens the key broker's packet with a resource it fetches
//! after attestation ([`BrokerKeys`] over a [`SecretSource`]); tools and tests open packets with keys they hold
//! ([`HeldKeys`]). Nothing here keeps a key longer than the call that needs it.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use crate::crypto::packet::Packet;
use crate::crypto::{CryptoError, KEYS_JWE, KEYS_PKCS7, KEYS_PREFIX, KEYS_PROVIDER, malformed};
use crate::crypto::{jwe, pkcs7};
use crate::provider::ProviderError;

/// Why no layer key was had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// This provider cannot open packets of that kind.
    #[error("packets of kind {scheme:?} cannot be opened here")]
    Scheme {
        /// The annotation's name after `enc.keys.`.
        scheme: String,
    },
    /// The key that wraps the layer key is not at hand.
    #[error("no key {kid:?} is at hand")]
    Missing {
        /// Its name.
        kid: String,
    },
    /// The key broker did not release the key: denied, unknown, or not reachable.
    #[error("key {kid} was not released: {source}")]
    Refused {
        /// Its resource URI.
        kid: String,
        /// What the broker, or the way to it, said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A key provider did not open the packet.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The packet is broken or does not open.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl KeyError {
    /// Whether there was somebody to ask: with the others, the packet is simply not for this provider.
    pub(crate) const fn was_asked_for(&self) -> bool {
        !matches!(self, Self::Scheme { .. } | Self::Missing { .. })
    }
}

/// Why no packet of a layer was opened: what each provider said of each packet it has to do with.
#[derive(Debug, thiserror::Error)]
#[error("none of its {packets} wrapped keys opens with the keys at hand{}", said(.reasons))]
pub struct OpenError {
    /// How many packets the layer carries.
    pub packets: usize,
    /// What was said, by the name of the packet's kind.
    pub reasons: Vec<(String, KeyError)>,
}

fn said(reasons: &[(String, KeyError)]) -> String {
    reasons.iter().map(|(scheme, why)| format!("; {scheme}: {why}")).collect()
}

/// The private options of the first packet that any of the providers opens: for tools, where one key that is not to be had must not
/// keep another from opening.
///
/// # Errors
/// When none does.
pub async fn open_any(
    packets: &[KeyPacket],
    providers: &[Box<dyn KeyProvider>],
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let mut reasons = Vec::new();
    for packet in packets {
        for provider in providers {
            match provider.unwrap_key(packet).await {
                Ok(options) => return Ok(options),
                Err(KeyError::Scheme { .. }) => {}
                Err(error) => reasons.push((packet.scheme().to_owned(), error)),
            }
        }
    }
    Err(OpenError { packets: packets.len(), reasons })
}

/// Gets a resource of the key broker, for instance `kbs:///default/image-key/1`.
#[async_trait]
pub trait SecretSource: Send + Sync {
    /// The resource's bytes.
    async fn get(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>>;
}

/// One wrapped layer key.
#[derive(Clone)]
pub struct KeyPacket {
    /// The annotation it stood in.
    pub annotation: String,
    /// Its bytes, base64 taken off.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for KeyPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPacket({}, {} bytes)", self.annotation, self.bytes.len())
    }
}

impl KeyPacket {
    /// The kind of packet: the annotation's name after `enc.keys.`.
    pub fn scheme(&self) -> &str {
        self.annotation.strip_prefix(KEYS_PREFIX).unwrap_or(&self.annotation)
    }

    /// The key id the packet names, where its kind has one.
    pub fn key_id(&self) -> Option<String> {
        if self.annotation != KEYS_PROVIDER {
            return None;
        }
        Packet::parse(&self.bytes).ok().map(|packet| packet.kid)
    }
}

/// Opens packets.
#[async_trait]
pub trait KeyProvider: Send + Sync {
    /// The private options wrapped in `packet`.
    ///
    /// # Errors
    /// [`KeyError`]; another packet of the layer may do all the same.
    async fn unwrap_key(&self, packet: &KeyPacket) -> Result<Zeroizing<Vec<u8>>, KeyError>;
}

/// No keys: encrypted images are refused.
pub struct NoKeys;

#[async_trait]
impl KeyProvider for NoKeys {
    async fn unwrap_key(&self, packet: &KeyPacket) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        Err(KeyError::Scheme { scheme: packet.scheme().to_owned() })
    }
}

/// Keys held by the key broker.
pub struct BrokerKeys<S>(pub S);

#[async_trait]
impl<S: SecretSource> KeyProvider for BrokerKeys<S> {
    async fn unwrap_key(&self, packet: &KeyPacket) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        if packet.annotation != KEYS_PROVIDER {
            return Err(KeyError::Scheme { scheme: packet.scheme().to_owned() });
        }
        let packet = Packet::parse(&packet.bytes)?;
        let key = self
            .0
            .get(&packet.kid)
            .await
            .map_err(|source| KeyError::Refused { kid: packet.kid.clone(), source })?;
        Ok(packet.unwrap(&key)?)
    }
}

/// Keys at hand: wrapping keys by their id, and private keys for JWE and PKCS#7.
#[derive(Default)]
pub struct HeldKeys {
    /// 32-byte wrapping keys by resource URI.
    pub by_id: BTreeMap<String, Zeroizing<Vec<u8>>>,
    /// Private keys (PEM) for packets made for a key pair.
    pub private_pem: Vec<Zeroizing<Vec<u8>>>,
}

#[async_trait]
impl KeyProvider for HeldKeys {
    async fn unwrap_key(&self, packet: &KeyPacket) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        match packet.annotation.as_str() {
            KEYS_PROVIDER => {
                let packet = Packet::parse(&packet.bytes)?;
                match self.by_id.get(&packet.kid) {
                    Some(key) => Ok(packet.unwrap(key)?),
                    None => Err(KeyError::Missing { kid: packet.kid }),
                }
            }
            KEYS_JWE => self.by_private_key(&packet.bytes, jwe::open),
            KEYS_PKCS7 => self.by_private_key(&packet.bytes, pkcs7::open),
            _ => Err(KeyError::Scheme { scheme: packet.scheme().to_owned() }),
        }
    }
}

/// Opens a packet with a private key (PEM).
type Open = fn(&[u8], &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError>;

impl HeldKeys {
    /// Takes a private key (PEM, not encrypted).
    ///
    /// # Errors
    /// When it is none.
    pub fn add_private_pem(&mut self, pem: Zeroizing<Vec<u8>>) -> Result<(), CryptoError> {
        PrivateKeyDer::from_pem_slice(&pem).map_err(|error| malformed("private key", error))?;
        self.private_pem.push(pem);
        Ok(())
    }

    fn by_private_key(&self, packet: &[u8], open: Open) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        for pem in &self.private_pem {
            match open(packet, pem) {
                // A packet of a kind that is not read is no matter of keys.
                Err(error @ CryptoError::Unsupported { .. }) => return Err(error.into()),
                Err(_) => {}
                Ok(options) => return Ok(options),
            }
        }
        Err(KeyError::Missing { kid: "private key of one of the recipients".to_owned() })
    }
}
