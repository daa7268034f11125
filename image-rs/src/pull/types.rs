//! What a pull is told, what it tells on its way, and what it gives.

use std::path::PathBuf;
use std::sync::Arc;

use oci_client::Reference;
use oci_spec::image::ImageConfiguration;

use crate::Limits;
use crate::chunks::ChunkPins;
use crate::digest::Digest;
use crate::documents::Companions;
use crate::manifest::{Manifest, Platform};
use crate::media::LayerType;
use crate::registry::{DockerAuthConfig, Registries, RegistryConfig, Retry};
use crate::signature::SignaturePolicy;
use crate::tier::{RequiredTier, RunningTier};

/// How images are pulled.
#[derive(Debug, Clone, Default)]
pub struct ClientConfig {
    /// HTTP proxy for everything.
    pub proxy: Option<String>,
    /// Hosts that are reached without the proxy, as in the variable `no_proxy`.
    pub no_proxy: Option<String>,
    /// Certificates (PEM) trusted beside the system's.
    pub extra_roots_pem: Vec<Vec<u8>>,
    /// Registries (`host:port`) spoken to in plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Mirrors, other locations, blocked registries.
    pub registries: Registries,
    /// How often a registry is asked again.
    pub retry: Retry,
    /// Credentials.
    pub auth: Option<DockerAuthConfig>,
    /// Bounds.
    pub limits: Limits,
    /// Which image of an index.
    pub platform: Platform,
    /// Where the image is to run; checked against what it demands before any key or layer is fetched. `None` leaves the
    /// check to the caller.
    pub running_tier: Option<RunningTier>,
    /// The only images that are pulled, `host/repository@sha256:…` (digest of the manifest or of the index); any without.
    pub allowed: Option<Vec<String>>,
    /// Which signatures an image must have; checked before its configuration, any key or layer is asked for. Any image without.
    pub signatures: Option<Arc<SignaturePolicy>>,
    /// Chunk lists that count although nobody signed them.
    pub chunk_pins: ChunkPins,
    /// Small documents that came with an image: they are looked at before its registry is asked.
    pub companions: Companions,
}

impl ClientConfig {
    /// The part of it that is about registries.
    #[must_use]
    pub fn registry(&self) -> RegistryConfig {
        RegistryConfig {
            proxy: self.proxy.clone(),
            no_proxy: self.no_proxy.clone(),
            extra_roots_pem: self.extra_roots_pem.clone(),
            insecure_registries: self.insecure_registries.clone(),
            registries: self.registries.clone(),
            auth: self.auth.clone(),
            retry: self.retry.clone(),
            companions: self.companions.clone(),
        }
    }
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

/// An image whose manifest and configuration are there and checked, and of which no key was asked for yet.
#[derive(Debug, Clone)]
pub struct ExaminedImage {
    /// Digest of the image's manifest.
    pub manifest_digest: Digest,
    /// The image configuration.
    pub config: ImageConfiguration,
    pub(crate) reference: Reference,
    pub(super) manifest: Manifest,
    pub(crate) index_digest: Option<Digest>,
    pub(super) kinds: Vec<LayerType>,
    pub(super) diff_ids: Vec<Digest>,
    pub(super) required_tier: Option<RequiredTier>,
    pub(super) bytes: u64,
}

impl ExaminedImage {
    /// Whether any layer is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.kinds.iter().any(|kind| kind.encrypted)
    }

    /// What was asked for.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Bytes of all layers in the registry.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Digest of the configuration, as the manifest names it.
    #[must_use]
    pub fn config_digest(&self) -> &str {
        &self.manifest.config.digest
    }
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
