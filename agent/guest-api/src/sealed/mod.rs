//! Sealed secrets (CoCo, `docs/SEALED_SECRET.md`): a secret's name, or the secret itself encrypted, signed by its owner.
//!
//! Text: `sealed.` and a JWS in compact form, `b64url(header).b64url(payload).b64url(signature)`. The header is
//! `{"alg":"ES256","kid":…}`; the payload a [`Payload`]. The text travels through the host (an ordinary Kubernetes secret), so
//! the signature decides: it is checked with the key that `kid` names, a resource of the key broker (`kbs:///…`) or a file of
//! the guest's image ([`Settings::credentials`]), before the payload is read at all. Without that, a host
//! could put any other secret of the guest, or a value of its own, in a secret's place.
//!
//! Two kinds: `vault` names a resource of the key broker. `envelope` carries the secret, encrypted with a key that is wrapped by
//! another: with the provider `kbs` (ours; CoCo's providers are cloud services) that is a resource of 32 bytes, and
//! the wrapping is AES key wrap (RFC 3394).

mod envelope;
mod jwk;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use kata_cc_kbs_protocol::{ResourcePath, base64_url, from_base64_url};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;
use zeroize::Zeroizing;

pub use envelope::Envelope;
pub use jwk::{SigningKey, VerifyingKey};

/// What every sealed secret begins with.
pub const PREFIX: &str = "sealed.";

/// Most bytes of a sealed secret: what a Kubernetes secret can hold.
pub const MAX_SEALED: usize = 1 << 20;

/// Most bytes of a header.
const MAX_HEADER: usize = 4096;

/// Most bytes of a signer's key.
const MAX_KEY: u64 = 16 << 10;

/// Header of the form from before secrets were signed.
const FAKE_HEADER: &str = "fakejwsheader";

/// Version of the payload.
const VERSION: &str = "0.1.0";

/// The only provider.
pub const PROVIDER: &str = "kbs";

/// Why a sealed secret is not opened. No text of it is in here but names.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum SealedError {
    /// Too large.
    #[error("sealed secret has {0} bytes, at most {MAX_SEALED} are read")]
    TooLong(usize),
    /// Not of the form.
    #[error("sealed secret is out of form: {0}")]
    Form(&'static str),
    /// A signature algorithm that is not known.
    #[error("sealed secret is signed with {0:?}, expected ES256")]
    Algorithm(String),
    /// Not signed, and that is not allowed.
    #[error(
        "sealed secret is not signed (fakejwsheader): sign it, or allow it by skip_sealed_secret_verification"
    )]
    Unsigned,
    /// The signer's key was not had.
    #[error("key {kid:?} of the sealed secret's signer: {why}")]
    Key {
        /// Its name.
        kid: String,
        /// What is wrong.
        why: String,
    },
    /// The signature is of another key or of other bytes.
    #[error(
        "sealed secret's signature does not verify with the key {kid:?}: it was changed, or signed by somebody else"
    )]
    Signature {
        /// Name of the key.
        kid: String,
    },
    /// A version that is not known.
    #[error("sealed secret has version {0:?}, expected {VERSION}")]
    Version(String),
    /// A provider that is not known.
    #[error("sealed secret needs the provider {0:?}, which this guest does not have: it has {PROVIDER}")]
    Provider(String),
    /// The name in it is none of the key broker.
    #[error("sealed secret names {name:?}, which is no resource of the key broker: {why}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The key broker did not give the resource.
    #[error("resource {name} of the sealed secret: {why}")]
    Resource {
        /// Its URI.
        name: String,
        /// What the key broker says.
        why: String,
    },
    /// An encryption that is not known.
    #[error("sealed secret is encrypted with {0:?}, expected A256GCM")]
    Cipher(String),
    /// Wrong key or changed contents.
    #[error("sealed secret does not open with the key {0}: it is another key, or the secret was changed")]
    Open(String),
    /// The library failed.
    #[error("{0} failed in the cryptographic library")]
    Library(&'static str),
}

pub(crate) fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}

/// What sealed secrets must be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder with keys of signers, by file name.
    pub credentials: PathBuf,
    /// Open secrets whatever their signature (`skip_sealed_secret_verification`). The host can then change them.
    pub allow_unsigned: bool,
}

/// Where resources of the key broker come from.
#[async_trait]
pub trait ResourceSource: Send + Sync {
    /// The resource. The error is a sentence.
    async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, String>;
}

/// A reference to a secret of the key broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vault {
    /// Resource URI.
    pub name: String,
    /// Who keeps it.
    pub provider: String,
    /// For that provider.
    pub provider_settings: Map<String, Value>,
    /// For that provider.
    pub annotations: Map<String, Value>,
}

/// Kinds of sealed secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Content {
    /// A reference.
    Vault(Vault),
    /// The secret itself, encrypted.
    Envelope(Envelope),
}

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// `0.1.0`.
    pub version: String,
    /// Which kind.
    #[serde(flatten)]
    pub content: Content,
}

impl Payload {
    /// A reference to a resource of the key broker.
    #[must_use]
    pub fn vault(path: &ResourcePath) -> Self {
        let vault = Vault {
            name: path.uri(),
            provider: PROVIDER.to_owned(),
            provider_settings: Map::new(),
            annotations: Map::new(),
        };
        Self { version: VERSION.to_owned(), content: Content::Vault(vault) }
    }

    /// A secret encrypted under `key`, the resource `path`.
    ///
    /// # Errors
    /// When the key has not 32 bytes, or the library fails.
    pub fn envelope(path: &ResourcePath, key: &[u8], secret: &[u8]) -> Result<Self, SealedError> {
        let content = Content::Envelope(Envelope::seal(path, key, secret)?);
        Ok(Self { version: VERSION.to_owned(), content })
    }

    /// Signs it: the sealed secret.
    ///
    /// # Errors
    /// When the library fails.
    pub fn seal(&self, kid: &str, key: &SigningKey) -> Result<String, SealedError> {
        let written = |_| SealedError::Form("payload cannot be written");
        let header = Header { alg: "ES256".to_owned(), kid: Some(kid.to_owned()), crit: None };
        let header = base64_url(&serde_json::to_vec(&header).map_err(written)?);
        let payload = base64_url(&serde_json::to_vec(self).map_err(written)?);
        let signed = format!("{header}.{payload}");
        let signature = base64_url(&key.sign(signed.as_bytes())?);
        Ok(format!("{PREFIX}{signed}.{signature}"))
    }

    /// Opens it with resources of the key broker.
    ///
    /// # Errors
    /// When version or provider are not known, or the key broker does not give the resource.
    pub async fn open<S: ResourceSource + ?Sized>(
        &self,
        source: &S,
    ) -> Result<Zeroizing<Vec<u8>>, SealedError> {
        if self.version != VERSION {
            return Err(SealedError::Version(cut(&self.version)));
        }
        let (provider, name) = match &self.content {
            Content::Vault(vault) => (&vault.provider, &vault.name),
            Content::Envelope(envelope) => (&envelope.provider, &envelope.key_id),
        };
        if provider != PROVIDER {
            return Err(SealedError::Provider(cut(provider)));
        }
        let path = name
            .parse::<ResourcePath>()
            .map_err(|error| SealedError::Name { name: cut(name), why: error.to_string() })?;
        let resource =
            source.resource(&path).await.map_err(|why| SealedError::Resource { name: path.uri(), why })?;
        match &self.content {
            Content::Vault(_) => Ok(resource),
            Content::Envelope(envelope) => envelope.open(&resource),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crit: Option<Value>,
}

/// A sealed secret taken apart. What it says is not believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Name of the signer's key; `None` of the old form, which is not signed.
    kid: Option<String>,
    /// `header.payload` as it came: what the signature is over.
    signed: String,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl Sealed {
    /// Takes the text apart. A line break at its end is passed over, for files.
    ///
    /// # Errors
    /// [`SealedError`] when it is not of the form.
    pub fn parse(text: &[u8]) -> Result<Self, SealedError> {
        if text.len() > MAX_SEALED {
            return Err(SealedError::TooLong(text.len()));
        }
        let text = std::str::from_utf8(text).map_err(|_| SealedError::Form("it is not UTF-8"))?;
        let rest = text
            .trim_end_matches(['\n', '\r'])
            .strip_prefix(PREFIX)
            .ok_or(SealedError::Form("it does not begin with `sealed.`"))?;
        let parts: Vec<&str> = rest.split('.').collect();
        let [header, payload, signature] = parts.as_slice() else {
            return Err(SealedError::Form("it has not three parts after `sealed.`"));
        };
        let decoded = from_base64_url(payload).ok_or(SealedError::Form("its payload is no base64url"))?;
        let signed = format!("{header}.{payload}");
        if *header == FAKE_HEADER {
            return Ok(Self { kid: None, signed, payload: decoded, signature: Vec::new() });
        }
        if header.len() > MAX_HEADER {
            return Err(SealedError::Form("its header is too long"));
        }
        let header = from_base64_url(header).ok_or(SealedError::Form("its header is no base64url"))?;
        let header: Header = serde_json::from_slice(&header)
            .map_err(|_| SealedError::Form("its header is not the JSON of a JWS"))?;
        if header.alg != "ES256" {
            return Err(SealedError::Algorithm(cut(&header.alg)));
        }
        if header.crit.is_some() {
            return Err(SealedError::Form("its header has critical members"));
        }
        let kid = header.kid.ok_or(SealedError::Form("its header names no key"))?;
        let signature =
            from_base64_url(signature).ok_or(SealedError::Form("its signature is no base64url"))?;
        Ok(Self { kid: Some(kid), signed, payload: decoded, signature })
    }

    /// Name of the signer's key; `None` of the old form, which is not signed.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The payload, when the signature is of `key`.
    ///
    /// # Errors
    /// When it is not, or the payload is not of the form.
    pub fn verified(&self, key: &VerifyingKey) -> Result<Payload, SealedError> {
        let kid = self.kid.as_deref().ok_or(SealedError::Unsigned)?;
        if !key.verifies(self.signed.as_bytes(), &self.signature) {
            return Err(SealedError::Signature { kid: cut(kid) });
        }
        self.unverified()
    }

    /// The payload, whoever wrote it.
    ///
    /// # Errors
    /// When it is not of the form.
    pub fn unverified(&self) -> Result<Payload, SealedError> {
        // The parser's own words could repeat contents.
        serde_json::from_slice(&self.payload)
            .map_err(|_| SealedError::Form("its payload is not the JSON of one"))
    }
}

/// Opens a sealed secret.
///
/// # Errors
/// [`SealedError`] says why not.
pub async fn unseal<S: ResourceSource + ?Sized>(
    text: &[u8],
    settings: &Settings,
    source: &S,
) -> Result<Zeroizing<Vec<u8>>, SealedError> {
    let sealed = Sealed::parse(text)?;
    let payload = match (settings.allow_unsigned, &sealed.kid) {
        (true, _) => {
            tracing::warn!("a sealed secret is opened without looking at its signature, as configured");
            sealed.unverified()?
        }
        (false, None) => return Err(SealedError::Unsigned),
        (false, Some(kid)) => sealed.verified(&signer(kid, settings, source).await?)?,
    };
    payload.open(source).await
}

/// The signer's key by its name.
async fn signer<S: ResourceSource + ?Sized>(
    kid: &str,
    settings: &Settings,
    source: &S,
) -> Result<VerifyingKey, SealedError> {
    let failed = |why: String| SealedError::Key { kid: cut(kid), why };
    let jwk = if kid.contains("://") {
        let path: ResourcePath =
            kid.parse::<kata_cc_kbs_protocol::ResourceUri>().map_err(|error| failed(error.to_string()))?.path;
        source.resource(&path).await.map_err(failed)?
    } else {
        read_credential(&settings.credentials, kid).map_err(failed)?
    };
    VerifyingKey::from_jwk(&jwk).map_err(|why| failed(why.to_owned()))
}

/// A file of the folder itself: the name comes from outside.
fn read_credential(folder: &Path, name: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    use std::io::Read as _;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > 255 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err("it is neither a kbs:/// URI nor the name of a file".to_owned());
    }
    let path = folder.join(name);
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut bytes = Zeroizing::new(Vec::new());
    let read = std::fs::File::open(&path).map_err(failed)?.take(MAX_KEY + 1).read_to_end(&mut bytes);
    match read.map_err(failed)? as u64 {
        0..=MAX_KEY => Ok(bytes),
        _ => Err(format!("{} has more than {MAX_KEY} bytes", path.display())),
    }
}
