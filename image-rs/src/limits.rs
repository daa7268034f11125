//! How much of anything an image may ask for.
//!
//! A registry, and whoever stands between it and the guest, chooses every byte until a digest is checked, and the
//! author of a public image chooses what those bytes unpack to. Each number here bounds one thing they could
//! otherwise grow without end. The defaults let every image of the usual registries pass.

use serde::{Deserialize, Serialize};

/// Upper bounds for one pull.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Layers of one image.
    pub max_layers: usize,
    /// Bytes of a manifest or an index.
    pub max_manifest_bytes: u64,
    /// Bytes of the image configuration.
    pub max_config_bytes: u64,
    /// Bytes of all layers as they are in the registry.
    pub max_blob_bytes: u64,
    /// Bytes of all layers unpacked, holes of sparse files included.
    pub max_unpacked_bytes: u64,
    /// Archive entries of all layers.
    pub max_files: u64,
    /// Bytes of one path.
    pub max_path: usize,
    /// Components of one path.
    pub max_depth: usize,
    /// Bytes of the extended header of one archive entry (long names, extended attributes).
    pub max_entry_header: u64,
    /// Times a layer may grow when decompressed, once it is above `ratio_from_bytes`.
    pub max_ratio: u64,
    /// Unpacked bytes of a layer below which the ratio is not looked at: small files of zeros are common.
    pub ratio_from_bytes: u64,
    /// Signatures of one image that are looked at, and referrers of one manifest.
    pub max_signatures: usize,
    /// Bytes of a signature's payload or bundle.
    pub max_signature_bytes: u64,
    /// Layers downloaded at the same time.
    pub max_parallel: usize,
    /// Bytes of a layer that are fetched ahead of its unpacking, where that may begin before all of it is there.
    pub max_ahead_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_layers: 128,
            max_manifest_bytes: 4 << 20,
            max_config_bytes: 8 << 20,
            max_blob_bytes: 32 << 30,
            max_unpacked_bytes: 64 << 30,
            max_files: 2_000_000,
            max_path: 4096,
            max_depth: 256,
            max_entry_header: 1 << 20,
            max_ratio: 200,
            ratio_from_bytes: 256 << 20,
            max_signatures: 64,
            max_signature_bytes: 256 << 10,
            max_parallel: 3,
            max_ahead_bytes: 64 << 20,
        }
    }
}
