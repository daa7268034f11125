//! Tells what an image is, without its layers.

use serde::Serialize;

use crate::manifest::Manifest;
use crate::media::LayerType;
use crate::pull::{ClientConfig, packets};
use crate::store::{Store, StoreError, WorkDir};
use crate::tier::{REQUIRED_TIER, required_tier};

/// Summary of an image.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Digest of its manifest.
    pub manifest_digest: String,
    /// Media type of its manifest.
    pub media_type: String,
    /// Whether any layer is encrypted.
    pub encrypted: bool,
    /// The tier it demands: `confidential`, `snp`, `tdx`, or what the annotation says when that is unknown.
    pub required_tier: Option<String>,
    /// Its layers.
    pub layers: Vec<LayerSummary>,
}

/// Summary of a layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerSummary {
    /// Its digest.
    pub digest: String,
    /// Its size in the registry.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Who can open it.
    pub recipients: Vec<Recipient>,
}

/// One wrapped key.
#[derive(Debug, Clone, Serialize)]
pub struct Recipient {
    /// Kind of packet: `provider.attestation-agent`, `jwe`, …
    pub scheme: String,
    /// The key's name, where the packet has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
}

/// Looks at the image `name` (registry reference, `oci:`, `oci-archive:`).
///
/// # Errors
/// When it cannot be read.
pub async fn inspect(name: &str, config: &ClientConfig) -> Result<Summary, StoreError> {
    let work = WorkDir::create()?;
    let store = Store::open(name, config, work.path()).await?;
    let (manifest, digest) = store.manifest(config).await?;
    Ok(summarise(&manifest, digest.to_string()))
}

fn summarise(manifest: &Manifest, manifest_digest: String) -> Summary {
    let layers: Vec<_> = manifest
        .layers
        .iter()
        .map(|layer| LayerSummary {
            digest: layer.digest.clone(),
            size: layer.size,
            media_type: layer.media_type.clone(),
            encrypted: LayerType::parse(&layer.media_type).is_ok_and(|kind| kind.encrypted),
            recipients: packets(layer)
                .iter()
                .map(|packet| Recipient { scheme: packet.scheme().to_owned(), key_id: packet.key_id() })
                .collect(),
        })
        .collect();
    let encrypted = layers.iter().any(|layer| layer.encrypted);
    let annotation = manifest.annotations.get(REQUIRED_TIER);
    let required_tier = match required_tier(annotation.map(String::as_str), encrypted) {
        Ok(tier) => tier.map(|tier| tier.to_string()),
        Err(_) => annotation.cloned(),
    };
    Summary {
        manifest_digest,
        media_type: manifest.media_type.clone().unwrap_or_default(),
        encrypted,
        required_tier,
        layers,
    }
}
