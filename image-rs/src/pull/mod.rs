//! Pulls an image: reference in, root folder out.
//!
//! Order: manifest (digest checked against the reference), list of allowed images, signatures, tier, configuration, keys of all
//! encrypted layers and whether each belongs to this configuration (see [`crate::pins`]), then the layers, downloaded several
//! at a time and unpacked one after another, each while it still comes where that is safe (`transfer`). What can be refused is refused before anything large is fetched. The root folder
//! appears under its name only when all of it is there and checked; after an error nothing is left of it.
//!
//! [`ImageClient::examine`] goes as far as the configuration, [`ImageClient::fetch`] from there: whoever has a say about what
//! may run has it in between, when no key was asked for yet.

mod source;
pub(crate) mod spool;
mod staging;
mod transfer;
mod types;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::Reference;
use oci_spec::image::ImageConfiguration;

use self::transfer::Transfer;
pub use self::types::{ClientConfig, ExaminedImage, LayerInfo, Progress, PullTarget, PulledImage};
use crate::crypto::{KEYS_PREFIX, PUBOPTS, PrivateOptions, PublicOptions};
use crate::digest::Digest;
use crate::documents::Companions;
use crate::error::PullError;
use crate::keys::{KeyPacket, KeyProvider};
use crate::layer::{LayerPlan, Sealed};
use crate::manifest::{Descriptor, Document, Manifest, ManifestError};
use crate::media::LayerType;
use crate::pins::{Allowed, Resolved};
use crate::registry::{RawManifest, Registry, RegistryError, parse_reference};
use crate::signature::{Subject, Verified};
use crate::tier::{REQUIRED_TIER, check_tier, required_tier};

/// Pulls images.
pub struct ImageClient {
    registry: Registry,
    config: ClientConfig,
    allowed: Option<Allowed>,
}

/// A progress callback.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

impl ImageClient {
    /// Sets up a client.
    ///
    /// # Errors
    /// When a certificate or the proxy cannot be used, or an allowed image is not named by its digest.
    pub fn new(config: ClientConfig) -> Result<Self, RegistryError> {
        let allowed = config.allowed.as_deref().map(Allowed::parse).transpose()?;
        let registry = Registry::new(config.registry())?;
        Ok(Self { registry, config, allowed })
    }

    /// The settings it was made with.
    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// Whether it looks at documents that came with the image before it asks the registry.
    pub fn has_companions(&self) -> bool {
        matches!(self.config.companions, Companions::Offered { .. })
    }

    /// Bytes of layers that were read of the node's copy so far.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.registry.kept_bytes()
    }

    /// The registry client below.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Fetches the manifest of the image `reference` names, chosen from an index where it is one; gives that too.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn resolve(
        &self,
        reference: &Reference,
    ) -> Result<(Manifest, RawManifest, Option<RawManifest>), PullError> {
        let max = self.config.limits.max_manifest_bytes;
        let raw = self.registry.manifest(reference, max).await?;
        match Document::parse(&raw.bytes)? {
            Document::Image(manifest) => Ok((manifest, raw, None)),
            Document::Index(index) => {
                let entry = index.select(&self.config.platform)?;
                let digest = entry.digest()?;
                let child = reference.clone_with_digest(digest.to_string());
                let inner = self.registry.manifest(&child, max).await?;
                match Document::parse(&inner.bytes)? {
                    Document::Image(manifest) => Ok((manifest, inner, Some(raw))),
                    Document::Index(_) => Err(ManifestError::Form("an index within an index").into()),
                }
            }
        }
    }

    /// Pulls `reference` to `target`.
    ///
    /// # Errors
    /// See [`PullError`]. Nothing is left behind.
    pub async fn pull(
        &self,
        reference: &str,
        target: &PullTarget,
        keys: &dyn KeyProvider,
        progress: OnProgress<'_>,
    ) -> Result<PulledImage, PullError> {
        let examined = self.examine(reference, progress).await?;
        self.fetch(examined, target, keys, progress).await
    }

    /// The first half of a pull: manifest and configuration, checked as far as they can be without keys and layers. No key is
    /// asked for.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn examine(
        &self,
        reference: &str,
        progress: OnProgress<'_>,
    ) -> Result<ExaminedImage, PullError> {
        let reference = parse_reference(reference)?;
        let (manifest, raw, index) = self.resolve(&reference).await?;
        let (manifest_digest, index_digest) =
            (raw.digest.clone(), index.as_ref().map(|raw| raw.digest.clone()));
        if let Some(allowed) = &self.allowed {
            let index = index_digest.as_ref();
            allowed.check(&Resolved { reference: &reference, manifest: &manifest_digest, index })?;
        }
        self.check_signatures(&reference, raw, index).await?;
        let bytes = self.check_sizes(&manifest)?;
        progress(Progress::Resolved {
            digest: manifest_digest.to_string(),
            layers: manifest.layers.len(),
            bytes,
        });
        let kinds = layer_types(&manifest.layers)?;
        let encrypted = kinds.iter().any(|kind| kind.encrypted);
        let required_tier =
            required_tier(manifest.annotations.get(REQUIRED_TIER).map(String::as_str), encrypted)?;
        if let Some(actual) = self.config.running_tier {
            check_tier(required_tier, actual)?;
        }
        let config = self.configuration(&reference, &manifest.config).await?;
        let diff_ids = diff_ids(&config, manifest.layers.len())?;
        Ok(ExaminedImage {
            manifest_digest,
            config,
            reference,
            manifest,
            index_digest,
            kinds,
            diff_ids,
            required_tier,
            bytes,
        })
    }

    /// Checks the signatures of the image `reference` names by the policy of the configuration; `None` when there is none. Gives the
    /// digest of its manifest too.
    ///
    /// # Errors
    /// See [`PullError`]; [`PullError::Signature`] when the policy refuses it.
    pub async fn verify(&self, reference: &str) -> Result<(Digest, Option<Verified>), PullError> {
        let reference = parse_reference(reference)?;
        let (_, raw, index) = self.resolve(&reference).await?;
        let digest = raw.digest.clone();
        Ok((digest, self.check_signatures(&reference, raw, index).await?))
    }

    async fn check_signatures(
        &self,
        reference: &Reference,
        manifest: RawManifest,
        index: Option<RawManifest>,
    ) -> Result<Option<Verified>, PullError> {
        let Some(policy) = &self.config.signatures else { return Ok(None) };
        let subject = |raw: RawManifest| Subject { digest: raw.digest, bytes: raw.bytes };
        let subjects: Vec<_> = [Some(manifest), index].into_iter().flatten().map(subject).collect();
        Ok(Some(policy.check(&self.registry, &self.config.limits, reference, &subjects).await?))
    }

    /// The second half of a pull: keys, then layers.
    ///
    /// # Errors
    /// See [`PullError`]. Nothing is left behind.
    pub async fn fetch(
        &self,
        image: ExaminedImage,
        target: &PullTarget,
        keys: &dyn KeyProvider,
        progress: OnProgress<'_>,
    ) -> Result<PulledImage, PullError> {
        let (mut plans, layers) = self.plan(&image, keys, progress).await?;
        self.add_chunks(&image, &mut plans).await?;
        let transfer = Transfer {
            registry: &self.registry,
            reference: &image.reference,
            limits: &self.config.limits,
            progress,
        };
        let unpacked_bytes = transfer.run(plans, target).await?;
        Ok(PulledImage {
            encrypted: image.is_encrypted(),
            manifest_digest: image.manifest_digest,
            index_digest: image.index_digest,
            config: image.config,
            rootfs: target.rootfs_dir.clone(),
            layers,
            required_tier: image.required_tier,
            bytes: image.bytes,
            unpacked_bytes,
        })
    }

    /// What is to be done with each layer; asks for the keys of those that are encrypted.
    async fn plan(
        &self,
        image: &ExaminedImage,
        keys: &dyn KeyProvider,
        progress: OnProgress<'_>,
    ) -> Result<(Vec<LayerPlan>, Vec<LayerInfo>), PullError> {
        let resolved = Resolved {
            reference: &image.reference,
            manifest: &image.manifest_digest,
            index: image.index_digest.as_ref(),
        };
        let config_digest = image.manifest.config.digest()?;
        let (mut plans, mut layers) = (Vec::new(), Vec::new());
        let parts = image.manifest.layers.iter().zip(&image.kinds).zip(&image.diff_ids);
        for (number, ((descriptor, kind), diff_id)) in parts.enumerate() {
            let digest = descriptor.digest()?;
            let (sealed, key_id) = if kind.encrypted {
                let (bound, sealed, key_id) = unwrap(number, descriptor, keys, progress).await?;
                // An image on the list is what its owner chose, layer by layer; any other must prove that this layer was
                // meant for this configuration.
                if self.allowed.is_none() {
                    resolved.check_bound(number, bound.as_ref(), &config_digest)?;
                }
                (Some(sealed), key_id)
            } else {
                (None, None)
            };
            layers.push(LayerInfo {
                digest: digest.to_string(),
                size: descriptor.size,
                encrypted: kind.encrypted,
                key_id,
            });
            let (size, kind, diff_id) = (descriptor.size, *kind, diff_id.clone());
            plans.push(LayerPlan { number, digest, size, kind, diff_id, sealed, chunks: None });
        }
        Ok((plans, layers))
    }

    pub(crate) fn check_sizes(&self, manifest: &Manifest) -> Result<u64, PullError> {
        let limits = &self.config.limits;
        if manifest.layers.len() > limits.max_layers {
            return Err(PullError::Limit {
                limit: "max_layers",
                max: limits.max_layers as u64,
                seen: manifest.layers.len() as u64,
            });
        }
        let bytes = manifest.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size));
        if bytes > limits.max_blob_bytes {
            return Err(PullError::Limit {
                limit: "max_blob_bytes",
                max: limits.max_blob_bytes,
                seen: bytes,
            });
        }
        Ok(bytes)
    }

    /// Fetches and checks an image configuration.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn configuration(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<ImageConfiguration, PullError> {
        let bytes = self.small_blob(reference, descriptor).await?;
        serde_json::from_slice(&bytes).map_err(|error| PullError::Config(error.to_string()))
    }

    /// Fetches a blob of at most `max_config_bytes` into memory, and checks it.
    pub(crate) async fn small_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, PullError> {
        let max = self.config.limits.max_config_bytes;
        if descriptor.size > max {
            return Err(PullError::Limit { limit: "max_config_bytes", max, seen: descriptor.size });
        }
        let digest = descriptor.digest()?;
        let mut bytes = Vec::new();
        self.registry
            .blob::<PullError>(reference, &digest, async |piece| {
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > max {
                    return Err(PullError::Limit {
                        limit: "max_config_bytes",
                        max,
                        seen: bytes.len() as u64,
                    });
                }
                Ok(())
            })
            .await?;
        let seen = digest.of_same_kind(&bytes);
        if seen != digest {
            return Err(PullError::ConfigDigest { expected: digest, seen });
        }
        Ok(bytes)
    }
}

/// What the layers are; of a kind that is not known none is.
pub(crate) fn layer_types(layers: &[Descriptor]) -> Result<Vec<LayerType>, PullError> {
    let parse = |(layer, descriptor): (usize, &Descriptor)| {
        LayerType::parse(&descriptor.media_type).map_err(|source| PullError::Media { layer, source })
    };
    layers.iter().enumerate().map(parse).collect()
}

pub(crate) fn diff_ids(config: &ImageConfiguration, layers: usize) -> Result<Vec<Digest>, PullError> {
    let texts = config.rootfs().diff_ids();
    if texts.len() != layers {
        return Err(PullError::Config(format!("it names {} layers, the manifest {layers}", texts.len())));
    }
    Ok(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}

/// All packets of a layer, in the order of the annotations' names.
pub(crate) fn packets(descriptor: &Descriptor) -> Vec<KeyPacket> {
    let annotations = descriptor.annotations.iter().filter(|(name, _)| name.starts_with(KEYS_PREFIX));
    annotations
        .flat_map(|(name, value)| {
            value.split(',').take(32).filter_map(|text| {
                Some(KeyPacket { annotation: name.clone(), bytes: STANDARD.decode(text.trim()).ok()? })
            })
        })
        .collect()
}

/// Most keys of a layer that are asked for in vain: whoever wrote the image chooses how many it names, and a key broker that does not
/// answer takes its time for each.
const MAX_REFUSED: usize = 4;

async fn unwrap(
    layer: usize,
    descriptor: &Descriptor,
    keys: &dyn KeyProvider,
    progress: OnProgress<'_>,
) -> Result<(Option<Digest>, Sealed, Option<String>), PullError> {
    let options = descriptor
        .annotations
        .get(PUBOPTS)
        .ok_or_else(|| PullError::Encrypted { layer, why: format!("annotation {PUBOPTS} is missing") })?;
    let options =
        PublicOptions::from_annotation(options).map_err(|source| PullError::Decrypt { layer, source })?;
    let (mut reasons, mut refused) = (Vec::new(), Vec::new());
    let mut left = packets(descriptor).into_iter();
    for packet in left.by_ref() {
        let key_id = packet.key_id();
        progress(Progress::Unwrapping { layer, key_id: key_id.clone() });
        match keys.unwrap_key(&packet).await {
            Ok(json) => {
                let private =
                    PrivateOptions::read(&json).map_err(|source| PullError::Decrypt { layer, source })?;
                progress(Progress::Unwrapped { layer, key_id: key_id.clone() });
                return Ok((private.config, Sealed { key: private.key, options }, key_id));
            }
            // Another packet may be of a key that this guest may have.
            Err(error) if error.was_asked_for() => refused.push(error),
            Err(error) => reasons.push(error.to_string()),
        }
        if refused.len() >= MAX_REFUSED {
            break;
        }
    }
    let mut refused = refused.into_iter();
    if let Some(source) = refused.next() {
        let not_asked = Some(left.count()).filter(|count| *count > 0);
        let not_asked = not_asked.map(|count| format!("{count} more were not asked for"));
        let others = refused.map(|error| error.to_string()).chain(reasons).chain(not_asked);
        return Err(PullError::Key { layer, source, also: others.map(|why| format!("; {why}")).collect() });
    }
    if reasons.is_empty() {
        reasons.push("it carries no wrapped key".to_owned());
    }
    Err(PullError::Encrypted { layer, why: reasons.join("; ") })
}
