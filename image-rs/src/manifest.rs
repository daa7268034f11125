//! Manifests and indexes, the little of them that is needed.
//!
//! Source: OCI image-spec `manifest.md`, `image-index.md`; Docker schema 2 has the same members. A document that is
//! both (CVE-2021-41190) is refused, since two readers of the same digest could see two images.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// No JSON, or not of that form.
    #[error("the manifest cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Neither a manifest nor an index, or both at once.
    #[error("the manifest is refused: {0}")]
    Form(&'static str),
    /// A digest in it is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The index has no image for the platform.
    #[error("the index has no image for platform {wanted}; it has: {has}")]
    Platform {
        /// The platform looked for.
        wanted: String,
        /// What there is.
        has: String,
    },
}

/// Points to a blob or a manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type.
    pub media_type: String,
    /// Digest as written.
    pub digest: String,
    /// Size in bytes.
    pub size: u64,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Platform, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// The checked digest.
    ///
    /// # Errors
    /// When it is none.
    pub fn digest(&self) -> Result<Digest, DigestError> {
        self.digest.parse()
    }
}

/// Operating system and processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// As Go names it.
    pub os: String,
    /// As Go names it.
    pub architecture: String,
}

impl Default for Platform {
    fn default() -> Self {
        Self { os: "linux".to_owned(), architecture: "amd64".to_owned() }
    }
}

/// An image manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Media type of the manifest itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Configuration.
    pub config: Descriptor,
    /// Layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An index (manifest list).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Media type of the index itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Images.
    pub manifests: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Either of them.
#[derive(Debug, Clone)]
pub enum Document {
    /// One image.
    Image(Manifest),
    /// Several.
    Index(Index),
}

#[derive(Deserialize)]
struct Shape {
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a manifest or an index.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let shape: Shape = serde_json::from_slice(bytes)?;
        let image = shape.layers.is_some() || shape.config.is_some();
        match (shape.manifests.is_some(), image) {
            (true, true) => Err(ManifestError::Form("it is an image and an index at once")),
            (false, false) => Err(ManifestError::Form("it is neither an image nor an index")),
            (true, false) => Ok(Self::Index(serde_json::from_slice(bytes)?)),
            (false, true) => {
                let manifest: Manifest = serde_json::from_slice(bytes)?;
                if manifest.schema_version != 2 {
                    return Err(ManifestError::Form("its schema version is not 2"));
                }
                Ok(Self::Image(manifest))
            }
        }
    }
}

impl Index {
    /// The entry for `platform`; an index of one entry without platform is that entry.
    ///
    /// # Errors
    /// When there is none.
    pub fn select(&self, platform: &Platform) -> Result<&Descriptor, ManifestError> {
        if let [only] = self.manifests.as_slice()
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let found = self.manifests.iter().find(|entry| entry.platform.as_ref() == Some(platform));
        found.ok_or_else(|| {
            let names = self.manifests.iter().take(20).filter_map(|entry| entry.platform.as_ref());
            ManifestError::Platform {
                wanted: format!("{}/{}", platform.os, platform.architecture),
                has: names.map(|p| format!("{}/{}", p.os, p.architecture)).collect::<Vec<_>>().join(", "),
            }
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_document_that_is_both() {
        let text = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(matches!(Document::parse(text).unwrap_err(), ManifestError::Form(_)));
        assert!(matches!(Document::parse(b"{}").unwrap_err(), ManifestError::Form(_)));
        assert!(Document::parse(b"[]").is_err());
    }

    #[test]
    fn selects_the_platform() {
        let text = br#"{"schemaVersion":2,"manifests":[
            {"mediaType":"m","digest":"a","size":1,"platform":{"os":"linux","architecture":"arm64"}},
            {"mediaType":"m","digest":"b","size":1,"platform":{"os":"linux","architecture":"amd64"}}]}"#;
        let Document::Index(index) = Document::parse(text).unwrap() else {
            panic!("no index");
        };
        assert_eq!(index.select(&Platform::default()).unwrap().digest, "b");
        let other = Platform { os: "plan9".to_owned(), architecture: "mips".to_owned() };
        assert!(index.select(&other).unwrap_err().to_string().contains("linux/arm64"));
    }
}
