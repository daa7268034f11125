//! Makes encrypted images.
//!
//! Source and destination are named as skopeo names them: a registry reference (also `docker://…`), `oci:DIR[:TAG]`, or
//! `oci-archive:FILE[:TAG]`. Layers keep their compression; key and nonce are fresh for each layer, and wrapped for every
//! [`Recipient`]: a key of the key broker (CoCo's `attestation-agent` form), public keys (JWE), certificates (PKCS#7), key providers. The image
//! configuration is copied unchanged, it is not secret; its digest is wrapped together with each key, so that the guest opens
//! a layer only as part of the image that it was encrypted for.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

use crate::crypto::packet::Packet;
use crate::crypto::{
    CryptoError, Encryptor, KEYS_JWE, KEYS_PKCS7, KEYS_PROVIDER, LayerKey, PUBOPTS, PrivateOptions, jwe,
    pkcs7,
};
use crate::digest::{Digest, DigestError, Hasher};
use crate::manifest::{Descriptor, Manifest, ManifestError};
use crate::media::{self, LayerType, MediaError};
use crate::provider::{NamedProvider, ProviderError};
use crate::pull::ClientConfig;
use crate::store::{Store, StoreError};
use crate::tier::{REQUIRED_TIER, RequiredTier};

/// Which layers are encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LayerSelection {
    /// All of them.
    #[default]
    All,
    /// Those of the numbers given, from 0; negative ones count from the top, as in skopeo.
    Only(Vec<i64>),
}

impl LayerSelection {
    /// The numbers meant, of `count` layers.
    pub(crate) fn chosen(&self, count: usize) -> Result<Vec<usize>, String> {
        let Self::Only(numbers) = self else { return Ok((0..count).collect()) };
        let place = |number: &i64| {
            let total = i64::try_from(count).unwrap_or(i64::MAX);
            let at = if *number < 0 { total.saturating_add(*number) } else { *number };
            usize::try_from(at)
                .ok()
                .filter(|at| *at < count)
                .ok_or_else(|| format!("it has {count} layers, there is no layer {number}"))
        };
        numbers.iter().map(place).collect()
    }
}

/// Who shall open the layers.
pub enum Recipient {
    /// Guests to which the key broker releases a key.
    Broker {
        /// Resource URI of the key, `kbs:///repo/type/tag`.
        key_id: String,
        /// The key: 32 bytes.
        key: Zeroizing<Vec<u8>>,
    },
    /// The owner of a key pair, by his public key (PEM).
    Jwe(Vec<u8>),
    /// The owner of a certificate (PEM or DER) of an RSA key.
    Pkcs7(Vec<u8>),
    /// Whom a key provider of others wraps for.
    Provider(NamedProvider),
}

/// How an image is encrypted.
pub struct EncryptOptions {
    /// Who shall open the layers: one or more, of any kinds.
    pub recipients: Vec<Recipient>,
    /// Tier the image demands; an encrypted one demands `confidential` without it.
    pub required_tier: Option<RequiredTier>,
    /// Which layers.
    pub layers: LayerSelection,
    /// How registries are reached.
    pub client: ClientConfig,
}

impl EncryptOptions {
    /// All layers, for one key of the key broker.
    pub fn new(key_id: impl Into<String>, key: Zeroizing<Vec<u8>>) -> Self {
        Self::for_recipients(vec![Recipient::Broker { key_id: key_id.into(), key }])
    }

    /// All layers, for these recipients.
    pub fn for_recipients(recipients: Vec<Recipient>) -> Self {
        Self { recipients, required_tier: None, layers: LayerSelection::All, client: ClientConfig::default() }
    }

    fn check(&self) -> Result<(), EncryptError> {
        if self.recipients.is_empty() {
            return Err(EncryptError::Options("nobody is named who shall open it".to_owned()));
        }
        for recipient in &self.recipients {
            let Recipient::Broker { key_id, key } = recipient else { continue };
            check_key_id(key_id)?;
            if key.len() != 32 {
                let seen = key.len();
                return Err(EncryptError::Options(format!("its key has {seen} bytes, 32 are needed")));
            }
        }
        Ok(())
    }
}

/// What was made.
#[derive(Debug, Clone)]
pub struct EncryptedImage {
    /// Digest of the new manifest.
    pub manifest_digest: Digest,
    /// How many layers were encrypted.
    pub encrypted_layers: usize,
    /// How many layers there are.
    pub layers: usize,
}

/// Why no encrypted image was made.
#[derive(Debug, thiserror::Error)]
pub enum EncryptError {
    /// Source or destination.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source's manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A digest in it.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A layer that cannot be encrypted.
    #[error("layer {layer}: {source}")]
    Media {
        /// Its number.
        layer: usize,
        /// Its type.
        source: MediaError,
    },
    /// Key id, key, or layer numbers that make no sense.
    #[error("the image cannot be encrypted: {0}")]
    Options(String),
    /// The cryptographic part.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// A key provider.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The temporary folder.
    #[error("writing the encrypted layer failed: {0}")]
    Io(#[from] std::io::Error),
}

/// Checks a key id: `kbs:///a/b/c`, host allowed.
fn check_key_id(text: &str) -> Result<(), EncryptError> {
    let wrong =
        || EncryptError::Options(format!("key id {text:?} is not of the form kbs:///repository/type/tag"));
    let rest = text.strip_prefix("kbs://").ok_or_else(wrong)?;
    let (_, path) = rest.split_once('/').ok_or_else(wrong)?;
    let parts: Vec<_> = path.split('/').collect();
    let clean = |part: &&str| {
        !part.is_empty()
            && *part != "."
            && *part != ".."
            && part.bytes().all(|b| b.is_ascii_graphic() && b != b'?')
    };
    if parts.len() == 3 && parts.iter().all(clean) { Ok(()) } else { Err(wrong()) }
}

/// Copies the image `src` to `dst`, its layers encrypted.
///
/// # Errors
/// See [`EncryptError`].
pub async fn encrypt_image(
    src: &str,
    dst: &str,
    options: &EncryptOptions,
) -> Result<EncryptedImage, EncryptError> {
    options.check()?;
    let work = crate::store::WorkDir::new()?;
    let source = Store::open(src, &options.client, work.path()).await?;
    let target = Store::create(dst, &options.client, work.path())?;
    let (mut manifest, _) = source.manifest(&options.client).await?;
    let chosen = options.layers.chosen(manifest.layers.len()).map_err(EncryptError::Options)?;
    let config_digest = manifest.config.digest()?;
    let config = source.blob(&manifest.config, work.path()).await?;
    target.put_blob(&config_digest, &config, manifest.config.size).await?;
    let mut encrypted_layers = 0;
    for (number, layer) in manifest.layers.iter_mut().enumerate() {
        let kind = LayerType::parse(&layer.media_type)
            .map_err(|source| EncryptError::Media { layer: number, source })?;
        let path = source.blob(layer, work.path()).await?;
        let put = if chosen.contains(&number) {
            if kind.encrypted {
                return Err(EncryptError::Options(format!("layer {number} is encrypted already")));
            }
            encrypted_layers += 1;
            let sealed = work.path().join("sealed");
            *layer = seal_layer(layer, kind, (&path, &sealed), &config_digest, options).await?;
            sealed
        } else {
            layer.media_type = kind.oci_name();
            path.clone()
        };
        target.put_blob(&layer.digest()?, &put, layer.size).await?;
        tokio::fs::remove_file(&path).await?;
        let _ = tokio::fs::remove_file(&work.path().join("sealed")).await;
    }
    as_oci(&mut manifest, options.required_tier);
    let bytes = serde_json::to_vec(&manifest).map_err(ManifestError::from)?;
    let manifest_digest = target.finish(bytes).await?;
    Ok(EncryptedImage { manifest_digest, encrypted_layers, layers: manifest.layers.len() })
}

fn as_oci(manifest: &mut Manifest, tier: Option<RequiredTier>) {
    manifest.media_type = Some(media::OCI_MANIFEST.to_owned());
    media::OCI_CONFIG.clone_into(&mut manifest.config.media_type);
    if let Some(tier) = tier {
        manifest.annotations.insert(REQUIRED_TIER.to_owned(), tier.to_string());
    }
}

async fn seal_layer(
    layer: &Descriptor,
    kind: LayerType,
    (from, to): (&Path, &Path),
    config: &Digest,
    options: &EncryptOptions,
) -> Result<Descriptor, EncryptError> {
    let key = LayerKey::generate()?;
    let mut encryptor = Encryptor::new(&key)?;
    let mut hasher = Hasher::sha256();
    let mut input = tokio::fs::File::open(from).await?;
    let mut output = tokio::io::BufWriter::new(tokio::fs::File::create(to).await?);
    let mut buffer = Zeroizing::new(vec![0; 256 << 10]);
    let mut size = 0;
    loop {
        let count = input.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        let sealed = encryptor.update(&buffer[..count])?;
        hasher.update(sealed);
        output.write_all(sealed).await?;
        size += count as u64;
    }
    output.flush().await?;
    let private = PrivateOptions { key, config: Some(config.clone()) }.write(&layer.digest);
    let mut sealed = layer.clone();
    sealed.annotations.insert(PUBOPTS.to_owned(), encryptor.finish().to_annotation());
    sealed.annotations.extend(wrap(&private, &options.recipients).await?);
    sealed.media_type = LayerType { encrypted: true, ..kind }.oci_name();
    sealed.digest = hasher.finish().to_string();
    sealed.size = size;
    Ok(sealed)
}

/// The annotations with the packets for all recipients: those of one kind stand in one, separated by commas. An envelope of PKCS#7
/// serves all its certificates.
async fn wrap(private: &[u8], recipients: &[Recipient]) -> Result<BTreeMap<String, String>, EncryptError> {
    let mut packets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut put = |name: &str, packet: &[u8]| {
        packets.entry(name.to_owned()).or_default().push(STANDARD.encode(packet));
    };
    let mut certificates = Vec::new();
    for recipient in recipients {
        match recipient {
            Recipient::Broker { key_id, key } => {
                put(KEYS_PROVIDER, Packet::wrap(key_id, key, private)?.to_json().as_bytes());
            }
            Recipient::Jwe(public) => put(KEYS_JWE, &jwe::seal(private, public)?),
            Recipient::Pkcs7(certificate) => certificates.push(certificate.as_slice()),
            Recipient::Provider(provider) => put(&provider.annotation(), &provider.wrap(private).await?),
        }
    }
    if !certificates.is_empty() {
        put(KEYS_PKCS7, &pkcs7::seal(private, &certificates)?);
    }
    Ok(packets.into_iter().map(|(name, packets)| (name, packets.join(","))).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn key_ids() {
        for good in ["kbs:///default/image-key/1", "kbs://host:8080/a/b/c"] {
            assert!(check_key_id(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "default/image-key/1",
            "kbs:///a/b",
            "kbs:///a/b/c/d",
            "kbs:///a//c",
            "kbs:///a/../c",
            "kbs:///a/b/c?x",
        ] {
            assert!(check_key_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn layer_numbers() {
        assert_eq!(LayerSelection::All.chosen(3).unwrap(), [0, 1, 2]);
        assert_eq!(LayerSelection::Only(vec![-1, 0]).chosen(3).unwrap(), [2, 0]);
        for none in [3, -4, i64::MIN] {
            assert!(LayerSelection::Only(vec![none]).chosen(3).unwrap_err().contains("no layer"));
        }
    }
}
