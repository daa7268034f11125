//! Pulls an image: reference in, root folder out.
//!
//! Order: manifest (digest checked against the reference), tier, configuration, keys of all encrypted layers, then the
//! layers, downloaded several at a time and unpacked one after another. What can be refused is refused before
//! anything large is fetched. The root folder appears under its name only when all of it is there and checked;
//! after an error nothing is left of it.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use oci_client::Reference;
use oci_spec::image::ImageConfiguration;

use crate::Limits;
use crate::crypto::{CryptoError, KEYS_PREFIX, LayerKey, PUBOPTS, PublicOptions};
use crate::digest::{Digest, DigestError};
use crate::keys::{KeyError, KeyPacket, KeyProvider};
use crate::layer::{self, LayerPlan, Sealed};
use crate::manifest::{Descriptor, Document, Manifest, ManifestError, Platform};
use crate::media::{LayerType, MediaError};
use crate::registry::{
    DockerAuthConfig, RawManifest, Registry, RegistryConfig, RegistryError, parse_reference,
};
use crate::tier::{REQUIRED_TIER, RequiredTier, RunningTier, TierError, check_tier, required_tier};
use crate::unpack::{Budget, Owner, UnpackError};

/// Why an image is not had.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry, or the way to it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The manifest or index.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A digest in the manifest or configuration is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// More layers, or larger ones, than allowed.
    #[error("the image exceeds the limit {limit} of {max}: it has {seen}")]
    Limit {
        /// Its name.
        limit: &'static str,
        /// Its value.
        max: u64,
        /// What the image has.
        seen: u64,
    },
    /// A layer of a type that is not pulled.
    #[error("layer {layer}: {source}")]
    Media {
        /// Number of the layer, from 0.
        layer: usize,
        /// Which type.
        source: MediaError,
    },
    /// The tier is weaker than the image demands.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// The image configuration cannot be read or does not fit the manifest.
    #[error("the image configuration is refused: {0}")]
    Config(String),
    /// The configuration's bytes have another digest.
    #[error("the image configuration was changed: expected {expected}, got {seen}")]
    ConfigDigest {
        /// From the manifest.
        expected: Digest,
        /// Of what came.
        seen: Digest,
    },
    /// A layer's bytes have another digest.
    #[error("layer {layer} was changed: expected {expected}, got {seen}")]
    LayerDigest {
        /// Number of the layer.
        layer: usize,
        /// From the manifest.
        expected: Digest,
        /// Of what came.
        seen: Digest,
    },
    /// A layer has more or fewer bytes than the manifest says.
    #[error("layer {layer} has another size: expected {expected} bytes, got {seen}")]
    LayerSize {
        /// Number of the layer.
        layer: usize,
        /// From the manifest.
        expected: u64,
        /// How many came (at least).
        seen: u64,
    },
    /// The layer is encrypted and nobody here opens its key.
    #[error("layer {layer} is encrypted and no key opens it: {why}")]
    Encrypted {
        /// Number of the layer.
        layer: usize,
        /// What each recipient's packet gave.
        why: String,
    },
    /// The key of a layer was asked for and not had.
    #[error("the key of layer {layer} was not had: {source}")]
    Key {
        /// Number of the layer.
        layer: usize,
        /// Why.
        source: KeyError,
    },
    /// Encrypted bytes or options of a layer are wrong.
    #[error("layer {layer} cannot be decrypted: {source}")]
    Decrypt {
        /// Number of the layer.
        layer: usize,
        /// Why.
        source: CryptoError,
    },
    /// A layer grows beyond the ratio allowed.
    #[error(
        "layer {layer} of {packed} bytes grows beyond {unpacked} when decompressed; if it is trusted, raise max_ratio"
    )]
    Bomb {
        /// Number of the layer.
        layer: usize,
        /// Its bytes in the registry.
        packed: u64,
        /// Bytes it had grown to when it was stopped.
        unpacked: u64,
    },
    /// The layer's archive.
    #[error("layer {layer}: {source}")]
    Unpack {
        /// Number of the layer.
        layer: usize,
        /// Why.
        source: UnpackError,
    },
    /// The unpacked layer is not the one the configuration names.
    #[error("layer {layer} unpacks to another archive: expected {expected}, got {seen}")]
    DiffId {
        /// Number of the layer.
        layer: usize,
        /// From the configuration.
        expected: Digest,
        /// Of the unpacked archive.
        seen: Digest,
    },
    /// The work folder or the root folder.
    #[error("{doing} {path} failed: {source}")]
    Work {
        /// What was done.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl PullError {
    pub(crate) fn work(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Work { doing, path: path.clone(), source }
    }
}

/// How images are pulled.
#[derive(Debug, Clone, Default)]
pub struct ClientConfig {
    /// HTTP proxy for everything.
    pub proxy: Option<String>,
    /// Certificates (PEM) trusted beside the system's.
    pub extra_roots_pem: Vec<Vec<u8>>,
    /// Registries (`host:port`) spoken to in plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Credentials.
    pub auth: Option<DockerAuthConfig>,
    /// Bounds.
    pub limits: Limits,
    /// Which image of an index.
    pub platform: Platform,
    /// Where the image is to run; checked against what it demands before any key or layer is fetched. `None` leaves the
    /// check to the caller.
    pub running_tier: Option<RunningTier>,
}

/// Where an image goes.
#[derive(Debug, Clone)]
pub struct PullTarget {
    /// Folder for blobs on their way; a subfolder is made there and removed.
    pub work_dir: PathBuf,
    /// The root folder to be made: absent or empty before, and no mount point.
    pub rootfs_dir: PathBuf,
}

/// What a pull is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The manifest is there.
    Resolved {
        /// Its digest.
        digest: String,
        /// How many layers.
        layers: usize,
        /// Their bytes in the registry.
        bytes: u64,
    },
    /// A layer key is about to be asked for.
    Unwrapping {
        /// Number of the layer.
        layer: usize,
        /// The key's name, where it has one.
        key_id: Option<String>,
    },
    /// A layer key was had.
    Unwrapped {
        /// Number of the layer.
        layer: usize,
        /// The key's name, where it has one.
        key_id: Option<String>,
    },
    /// Bytes of a layer have come.
    Downloaded {
        /// Number of the layer.
        layer: usize,
        /// Bytes so far.
        bytes: u64,
        /// Of how many.
        of: u64,
    },
    /// A layer was unpacked.
    Unpacked {
        /// Number of the layer.
        layer: usize,
    },
}

/// One layer of a pulled image.
#[derive(Debug, Clone)]
pub struct LayerInfo {
    /// Digest in the registry.
    pub digest: String,
    /// Bytes in the registry.
    pub size: u64,
    /// Whether it was encrypted.
    pub encrypted: bool,
    /// Name of the key broker's key that wraps its key.
    pub key_id: Option<String>,
}

/// An image that is there.
#[derive(Debug, Clone)]
pub struct PulledImage {
    /// Digest of the image's manifest.
    pub manifest_digest: Digest,
    /// Digest of the index it was chosen from.
    pub index_digest: Option<Digest>,
    /// The image configuration.
    pub config: ImageConfiguration,
    /// The root folder.
    pub rootfs: PathBuf,
    /// Its layers.
    pub layers: Vec<LayerInfo>,
    /// Whether any layer was encrypted.
    pub encrypted: bool,
    /// The tier it demands.
    pub required_tier: Option<RequiredTier>,
    /// Bytes fetched for layers.
    pub bytes: u64,
    /// Bytes unpacked.
    pub unpacked_bytes: u64,
}

/// Pulls images.
pub struct ImageClient {
    registry: Registry,
    config: ClientConfig,
}

/// A progress callback.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

impl ImageClient {
    /// Sets up a client.
    ///
    /// # Errors
    /// When a certificate or the proxy cannot be used.
    pub fn new(config: ClientConfig) -> Result<Self, RegistryError> {
        let registry = Registry::new(RegistryConfig {
            proxy: config.proxy.clone(),
            extra_roots_pem: config.extra_roots_pem.clone(),
            insecure_registries: config.insecure_registries.clone(),
            auth: config.auth.clone(),
        })?;
        Ok(Self { registry, config })
    }

    /// The registry client below.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Fetches the manifest of the image `reference` names, chosen from an index where it is one.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn resolve(
        &self,
        reference: &Reference,
    ) -> Result<(Manifest, RawManifest, Option<Digest>), PullError> {
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
                    Document::Image(manifest) => Ok((manifest, inner, Some(raw.digest))),
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
        let reference = parse_reference(reference)?;
        let (manifest, raw, index_digest) = self.resolve(&reference).await?;
        let bytes = self.check_sizes(&manifest)?;
        progress(Progress::Resolved { digest: raw.digest.to_string(), layers: manifest.layers.len(), bytes });
        let kinds = layer_types(&manifest)?;
        let encrypted = kinds.iter().any(|kind| kind.encrypted);
        let required = required_tier(manifest.annotations.get(REQUIRED_TIER).map(String::as_str), encrypted)?;
        if let Some(actual) = self.config.running_tier {
            check_tier(required, actual)?;
        }
        let config = self.configuration(&reference, &manifest.config).await?;
        let mut plans = Vec::new();
        let mut layers = Vec::new();
        let diff_ids = diff_ids(&config, manifest.layers.len())?;
        for (number, ((descriptor, kind), diff_id)) in
            manifest.layers.iter().zip(kinds).zip(diff_ids).enumerate()
        {
            let digest = descriptor.digest()?;
            let (sealed, key_id) = if kind.encrypted {
                let (sealed, key_id) = unwrap(number, descriptor, keys, progress).await?;
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
            plans.push(LayerPlan { number, digest, size: descriptor.size, kind, diff_id, sealed });
        }
        let unpacked_bytes = self.layers(&reference, plans, target, progress).await?;
        Ok(PulledImage {
            manifest_digest: raw.digest,
            index_digest,
            config,
            rootfs: target.rootfs_dir.clone(),
            layers,
            encrypted,
            required_tier: required,
            bytes,
            unpacked_bytes,
        })
    }

    fn check_sizes(&self, manifest: &Manifest) -> Result<u64, PullError> {
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

    async fn layers(
        &self,
        reference: &Reference,
        plans: Vec<LayerPlan>,
        target: &PullTarget,
        progress: OnProgress<'_>,
    ) -> Result<u64, PullError> {
        let staging = Staging::new(target)?;
        let blobs = staging.blobs.clone();
        let (send, mut receive) =
            tokio::sync::mpsc::channel::<(LayerPlan, PathBuf)>(self.config.limits.max_parallel.max(1));
        let downloads = async {
            let blobs = &blobs;
            let mut stream = futures::stream::iter(plans)
                .map(|plan| async move {
                    let tell = |bytes| {
                        progress(Progress::Downloaded { layer: plan.number, bytes, of: plan.size });
                    };
                    let path = layer::download(&self.registry, reference, &plan, blobs, &tell).await?;
                    Ok::<_, PullError>((plan, path))
                })
                .buffered(self.config.limits.max_parallel.max(1));
            while let Some(result) = stream.next().await {
                // The receiver goes away only with an error of its own, which is the one to report.
                if send.send(result?).await.is_err() {
                    break;
                }
            }
            drop(send);
            Ok::<_, PullError>(())
        };
        let root = staging.root.clone();
        let mut budget = Budget::new(self.config.limits.clone());
        let owner = if nix::unistd::geteuid().is_root() { Owner::Preserve } else { Owner::Caller };
        let unpacks = async {
            while let Some((plan, path)) = receive.recv().await {
                let number = plan.number;
                let root = root.clone();
                let mut taken = budget.clone();
                let work = tokio::task::spawn_blocking(move || {
                    let result = layer::unpack(&plan, &path, &root, owner, &mut taken);
                    let _ = std::fs::remove_file(&path);
                    result.map(|_| taken)
                });
                budget = match work.await {
                    Ok(result) => result?,
                    Err(error) => {
                        return Err(PullError::work("unpacking to", &staging.root)(io::Error::other(error)));
                    }
                };
                progress(Progress::Unpacked { layer: number });
            }
            Ok(())
        };
        futures::try_join!(downloads, unpacks)?;
        staging.finish(&target.rootfs_dir)?;
        Ok(budget.bytes)
    }
}

fn layer_types(manifest: &Manifest) -> Result<Vec<LayerType>, PullError> {
    let parse = |(layer, descriptor): (usize, &Descriptor)| {
        LayerType::parse(&descriptor.media_type).map_err(|source| PullError::Media { layer, source })
    };
    manifest.layers.iter().enumerate().map(parse).collect()
}

fn diff_ids(config: &ImageConfiguration, layers: usize) -> Result<Vec<Digest>, PullError> {
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

async fn unwrap(
    layer: usize,
    descriptor: &Descriptor,
    keys: &dyn KeyProvider,
    progress: OnProgress<'_>,
) -> Result<(Sealed, Option<String>), PullError> {
    let options = descriptor
        .annotations
        .get(PUBOPTS)
        .ok_or_else(|| PullError::Encrypted { layer, why: format!("annotation {PUBOPTS} is missing") })?;
    let options =
        PublicOptions::from_annotation(options).map_err(|source| PullError::Decrypt { layer, source })?;
    let mut reasons = Vec::new();
    for packet in packets(descriptor) {
        let key_id = packet.key_id();
        progress(Progress::Unwrapping { layer, key_id: key_id.clone() });
        match keys.unwrap_key(&packet).await {
            Ok(json) => {
                let key = LayerKey::from_private_options(&json)
                    .map_err(|source| PullError::Decrypt { layer, source })?;
                progress(Progress::Unwrapped { layer, key_id: key_id.clone() });
                return Ok((Sealed { key, options }, key_id));
            }
            Err(error @ (KeyError::Scheme { .. } | KeyError::Missing { .. })) => {
                reasons.push(error.to_string())
            }
            Err(source) => return Err(PullError::Key { layer, source }),
        }
    }
    if reasons.is_empty() {
        reasons.push("it carries no wrapped key".to_owned());
    }
    Err(PullError::Encrypted { layer, why: reasons.join("; ") })
}

/// Folders in which an image grows, removed unless it is finished.
struct Staging {
    blobs: PathBuf,
    root: PathBuf,
    done: bool,
}

impl Staging {
    fn new(target: &PullTarget) -> Result<Self, PullError> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| {
            PullError::work("naming a folder in", &target.work_dir)(io::Error::other("no random bytes"))
        })?;
        let id = hex::encode(random);
        let blobs = target.work_dir.join(format!("pull-{id}"));
        // Beside its final place, so that it can be renamed there.
        let mut name = target.rootfs_dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{id}"));
        let root = target.rootfs_dir.with_file_name(name);
        std::fs::create_dir_all(&blobs).map_err(PullError::work("creating", &blobs))?;
        let staging = Self { blobs, root, done: false };
        std::fs::create_dir_all(&staging.root).map_err(PullError::work("creating", &staging.root))?;
        Ok(staging)
    }

    fn finish(mut self, rootfs: &Path) -> Result<(), PullError> {
        std::fs::rename(&self.root, rootfs)
            .map_err(PullError::work("moving the finished root to", rootfs))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.blobs);
        if !self.done {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}
