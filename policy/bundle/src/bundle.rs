//! A bundle, read: its files in their places, the manifest and the reference values understood. Whether its parts are good is [`crate::check`]'s.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::folder::Files;
use crate::layout::{IMAGE_POLICY, MANIFEST, Part, RESOURCE_POLICY};
use crate::manifest::Manifest;
use crate::{BundleError, archive, sha256};

/// `reference-values/<name>.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceFile {
    /// Name to a value or an array of those that are good.
    pub values: BTreeMap<String, Value>,
    /// When they end, RFC 3339; never without it.
    #[serde(default)]
    pub expires: Option<String>,
}

/// A bundle.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    manifest: Manifest,
    files: Files,
    references: BTreeMap<String, ReferenceFile>,
    archive: Vec<u8>,
    digest: String,
}

impl Bundle {
    /// Of files.
    ///
    /// # Errors
    /// When the manifest or a file of reference values is not understood, or a text is none.
    pub fn from_files(files: Files) -> Result<Self, BundleError> {
        let manifest = Manifest::parse(files.get(MANIFEST).ok_or(BundleError::NoManifest)?)?;
        let mut references: BTreeMap<String, ReferenceFile> = BTreeMap::new();
        let mut set_by: BTreeMap<String, String> = BTreeMap::new();
        for (path, bytes) in &files {
            if std::str::from_utf8(bytes).is_err() {
                return Err(BundleError::NotText(path.clone()));
            }
            if !path.starts_with("reference-values/") {
                continue;
            }
            let wrong = |why: String| BundleError::Syntax { path: path.clone(), why };
            let file: ReferenceFile =
                serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
            for name in file.values.keys() {
                if let Some(other) = set_by.insert(name.clone(), path.clone()) {
                    return Err(wrong(format!("{name:?} is set in {other} already")));
                }
            }
            references.insert(path.clone(), file);
        }
        let archive = archive::pack(&files)?;
        Ok(Self { manifest, references, digest: sha256(&archive), archive, files })
    }

    /// Of its packed form.
    ///
    /// # Errors
    /// When it is not exactly the packed form of a bundle.
    pub fn from_archive(bytes: &[u8]) -> Result<Self, BundleError> {
        Self::from_files(archive::unpack(bytes)?)
    }

    /// Its manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its packed form.
    #[must_use]
    pub fn archive(&self) -> &[u8] {
        &self.archive
    }

    /// SHA-256 of its packed form in hexadecimal: what it is known by, wherever it lies.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// All files by path.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// A file's text.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// Name and text of the Rego files of a part.
    pub fn policies(&self, part: Part) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(move |(path, bytes)| {
            let name = path.strip_prefix(part.folder())?.strip_prefix('/')?.strip_suffix(".rego")?;
            Some((name, std::str::from_utf8(bytes).ok()?))
        })
    }

    /// The resource policy.
    #[must_use]
    pub fn resource_policy(&self) -> Option<&str> {
        self.text(RESOURCE_POLICY)
    }

    /// The image policy.
    #[must_use]
    pub fn image_policy(&self) -> Option<&str> {
        self.text(IMAGE_POLICY)
    }

    /// Files of reference values by path. No name is in two of them.
    #[must_use]
    pub fn references(&self) -> &BTreeMap<String, ReferenceFile> {
        &self.references
    }

    /// All reference values.
    #[must_use]
    pub fn reference_values(&self) -> BTreeMap<String, Value> {
        self.references.values().flat_map(|file| file.values.clone()).collect()
    }
}
