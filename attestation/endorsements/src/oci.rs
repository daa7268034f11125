//! Bundles as OCI image layouts (OCI image specification 1.1): an artifact that registries and `oras`, `skopeo` carry.
//!
//! One manifest of [`ARTIFACT_TYPE`], one layer for each document with its path as title. Digests and sizes are
//! checked; other manifests of the layout are left alone.

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::bundle::{Bundle, BundleError, MAX_BUNDLE_BYTES, MAX_BUNDLE_FILES, read_bounded, write_file};
use crate::document::MAX_DOCUMENT;

/// Type of the artifact.
pub const ARTIFACT_TYPE: &str = "application/vnd.kata-cc.endorsements.v1";

/// Type of a layer: the contents of a file of the folder layout.
const LAYER_TYPE: &str = "application/vnd.kata-cc.endorsement.v1";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const TITLE: &str = "org.opencontainers.image.title";

/// Most bytes of an index or manifest: some 250 for each of the most layers.
const MAX_JSON: usize = 16 * 1024 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    artifact_type: Option<String>,
    layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: std::collections::BTreeMap<String, String>,
}

impl Descriptor {
    fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: format!("sha256:{}", hex::encode(digest(&SHA256, bytes))),
            size: bytes.len() as u64,
            artifact_type: None,
            annotations: std::collections::BTreeMap::new(),
        }
    }

    /// Path of the blob below the layout.
    fn blob(&self) -> Result<String, BundleError> {
        let hex = self.digest.strip_prefix("sha256:").filter(|hex| {
            hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        });
        hex.map(|hex| format!("blobs/sha256/{hex}")).ok_or_else(|| BundleError::Oci {
            why: format!("digest is {:?}, expected sha256: and 64 hex digits", self.digest),
        })
    }

    fn read(&self, layout: &Path, most: usize) -> Result<Vec<u8>, BundleError> {
        let path = self.blob()?;
        let bytes = read_bounded(&layout.join(&path), most)?;
        let seen = Self::of(&self.media_type, &bytes);
        if seen.digest != self.digest || seen.size != self.size {
            let why =
                format!("{path} has digest {} and {} bytes, expected {}", seen.digest, seen.size, self.size);
            return Err(BundleError::Oci { why });
        }
        Ok(bytes)
    }
}

/// Reads the bundles of a layout.
pub(crate) fn read(layout: &Path) -> Result<Bundle, BundleError> {
    let index: Index = parse("index.json", &read_bounded(&layout.join("index.json"), MAX_JSON)?)?;
    let mut bundle = Bundle::default();
    let (mut total, mut found) = (0, false);
    for descriptor in index.manifests.iter().filter(|one| one.media_type == MANIFEST_TYPE) {
        if descriptor.artifact_type.as_deref().is_some_and(|kind| kind != ARTIFACT_TYPE) {
            continue;
        }
        let Some(layers) = layers(&descriptor.read(layout, MAX_JSON)?)? else { continue };
        found = true;
        for (path, layer) in layers {
            total += layer.size;
            if total > MAX_BUNDLE_BYTES {
                return Err(BundleError::TooLarge);
            }
            bundle.add_file(&path, layer.read(layout, 2 * MAX_DOCUMENT)?)?;
        }
    }
    bundle.finish();
    if found {
        return Ok(bundle);
    }
    Err(BundleError::Oci { why: format!("index.json names no artifact of type {ARTIFACT_TYPE}") })
}

/// Paths and layers of a manifest; `None` when it is one of another kind.
fn layers(manifest: &[u8]) -> Result<Option<Vec<(String, Descriptor)>>, BundleError> {
    let manifest: Manifest = parse("manifest", manifest)?;
    if manifest.artifact_type.as_deref() != Some(ARTIFACT_TYPE) {
        return Ok(None);
    }
    if manifest.layers.len() > MAX_BUNDLE_FILES {
        return Err(BundleError::TooLarge);
    }
    let titled = manifest.layers.into_iter().filter(|layer| layer.media_type == LAYER_TYPE).map(|layer| {
        let title = layer.annotations.get(TITLE).cloned();
        title
            .map(|title| (title, layer))
            .ok_or_else(|| BundleError::Oci { why: "a layer has no title".to_owned() })
    });
    titled.collect::<Result<Vec<_>, _>>().map(Some)
}

/// Checks the bytes of a manifest, as [`Bundle::load`] does before it reads what the manifest names.
///
/// # Errors
/// [`BundleError::Oci`].
pub fn check_manifest(bytes: &[u8]) -> Result<usize, BundleError> {
    let layers = layers(bytes)?.unwrap_or_default();
    for (_, layer) in &layers {
        layer.blob()?;
    }
    Ok(layers.len())
}

/// Writes a bundle.
pub(crate) fn write(bundle: &Bundle, layout: &Path) -> Result<String, BundleError> {
    if layout.join("index.json").exists() {
        return Err(BundleError::Oci {
            why: format!("{} holds a layout already: name another folder", layout.display()),
        });
    }
    let put = |media_type: &str, bytes: &[u8]| -> Result<Descriptor, BundleError> {
        let descriptor = Descriptor::of(media_type, bytes);
        write_file(&layout.join(descriptor.blob()?), bytes)?;
        Ok(descriptor)
    };
    let config = put(EMPTY_TYPE, b"{}")?;
    let mut layers = Vec::new();
    for (item, document) in bundle.iter() {
        let mut layer = put(LAYER_TYPE, &document.to_file())?;
        layer.annotations.insert(TITLE.to_owned(), item.path());
        layers.push(layer);
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": ARTIFACT_TYPE,
        "config": config, "layers": layers,
    });
    let mut manifest = put(MANIFEST_TYPE, manifest.to_string().as_bytes())?;
    manifest.artifact_type = Some(ARTIFACT_TYPE.to_owned());
    let digest = manifest.digest.clone();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [manifest]});
    write_file(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    // Last: with it the layout is whole.
    write_file(&layout.join("index.json"), index.to_string().as_bytes())?;
    Ok(digest)
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, BundleError> {
    serde_json::from_slice(bytes)
        .map_err(|error| BundleError::Oci { why: format!("{what} is not understood: {error}") })
}
