//! The small documents of an image, kept beside a copy of its layers: manifest, configuration, signatures, what refers to it.
//!
//! Whoever keeps them need not be trusted. A manifest or a blob counts by its digest alone. A tag is looked up here only when it is
//! derived from a digest (cosign's and the referrers' tag schema), and what it leads to, as the lists of referrers, says nothing that
//! a signature does not say again. That there is no such tag or list is believed too: a signature that is not found makes an image
//! count for less, never for more. What the keeper cannot do, then, is more than keep something back, as it could before.
//! The tag of the image itself is not here: which image it names is for its registry to say.
//! Of encrypted images the node may keep the layers too ([`crate::kept`]); the documents say where in its file they lie.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use oci_client::Reference;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::PullError;
use crate::kept::{KeptLayer, Place};
use crate::pull::{ClientConfig, ImageClient};
use crate::referrers::{self, Referrers};
use crate::registry::{RawManifest, RegistryError, parse_reference};
use crate::signature::fetch_signatures;

/// Form of the document that holds them.
const VERSION: u32 = 1;
/// Most of each kind.
const MOST: usize = 512;
/// Largest single one.
const MOST_BYTES: usize = 4 << 20;
/// Largest document with all of them.
pub const MAX_DOCUMENTS: usize = 16 << 20;

/// Why documents are refused.
#[derive(Debug, thiserror::Error)]
pub enum DocumentsError {
    /// No JSON, or not of that form.
    #[error("these are no documents of an image: {0}")]
    Json(#[from] serde_json::Error),
    /// A bound or the version.
    #[error("documents of an image are refused: {what} is {seen}, expected {expected}")]
    Member {
        /// Which.
        what: &'static str,
        /// What it is.
        seen: u64,
        /// What it may be.
        expected: String,
    },
}

/// Bytes, and their type where they are a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    media_type: String,
    #[serde(with = "base64_text")]
    bytes: Vec<u8>,
}

/// Small documents of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Documents {
    version: u32,
    /// Manifests and small blobs by digest.
    contents: BTreeMap<String, Kept>,
    /// Digest of the manifest under a derived tag; `None` when there is no such tag.
    tags: BTreeMap<String, Option<String>>,
    /// Lists of referrers by the digest that they refer to; `None` when the registry keeps none.
    referrers: BTreeMap<String, Option<Kept>>,
    /// Where layers lie in the file in front of the documents, by digest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) places: BTreeMap<String, Place>,
}

impl Default for Documents {
    fn default() -> Self {
        Self {
            version: VERSION,
            contents: BTreeMap::new(),
            tags: BTreeMap::new(),
            referrers: BTreeMap::new(),
            places: BTreeMap::new(),
        }
    }
}

impl Documents {
    /// Reads them.
    ///
    /// # Errors
    /// When they are none, or more or larger than allowed.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentsError> {
        let at_most = |what, seen: usize, most: usize| {
            let expected = format!("at most {most}");
            if seen > most {
                Err(DocumentsError::Member { what, seen: seen as u64, expected })
            } else {
                Ok(())
            }
        };
        at_most("length", bytes.len(), MAX_DOCUMENTS)?;
        let read: Self = serde_json::from_slice(bytes)?;
        if read.version != VERSION {
            let (seen, expected) = (u64::from(read.version), VERSION.to_string());
            return Err(DocumentsError::Member { what: "version", seen, expected });
        }
        at_most("number of contents", read.contents.len(), MOST)?;
        at_most("number of tags", read.tags.len(), MOST)?;
        at_most("number of lists of referrers", read.referrers.len(), MOST)?;
        at_most("number of layers", read.places.len(), MOST)?;
        for kept in read.contents.values().chain(read.referrers.values().flatten()) {
            at_most("length of a document", kept.bytes.len(), MOST_BYTES)?;
        }
        Ok(read)
    }

    /// As bytes, for [`Self::parse`].
    ///
    /// # Errors
    /// Never: everything in it is text.
    pub fn to_json(&self) -> Result<Vec<u8>, DocumentsError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// The bytes with this digest, checked.
    pub(crate) fn content(&self, digest: &Digest) -> Option<&[u8]> {
        self.kept(digest).map(|kept| kept.bytes.as_slice())
    }

    fn kept(&self, digest: &Digest) -> Option<&Kept> {
        let kept = self.contents.get(digest.as_str())?;
        if digest.of_same_kind(&kept.bytes) == *digest {
            return Some(kept);
        }
        tracing::warn!(%digest, "a document that was offered with an image has another digest: it does not count");
        None
    }

    /// What there is of a manifest: `None` when it is not here, and the registry is to be asked.
    fn manifest(&self, reference: &Reference) -> Option<Option<RawManifest>> {
        let digest = match reference.digest() {
            Some(digest) => digest,
            None => match self.tags.get(derived(reference)?)? {
                Some(digest) => digest,
                None => return Some(None),
            },
        };
        let digest: Digest = digest.parse().ok()?;
        let Kept { media_type, bytes } = self.kept(&digest)?.clone();
        Some(Some(RawManifest { bytes, digest, media_type }))
    }
}

/// The tag of a reference without a digest, when it is derived from one: `sha256-…`.
fn derived(reference: &Reference) -> Option<&str> {
    let tag = reference.tag().filter(|_| reference.digest().is_none())?;
    ["sha256-", "sha512-"].iter().any(|start| tag.starts_with(start)).then_some(tag)
}

mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

/// What a client of registries does with such documents.
#[derive(Debug, Clone, Default)]
pub enum Companions {
    /// Nothing.
    #[default]
    None,
    /// It looks there first.
    Offered {
        /// Small documents.
        documents: Arc<Documents>,
        /// The file with the layers that they name the place of.
        layers: Option<Arc<File>>,
    },
    /// It notes all that it is given.
    Noted(Arc<Mutex<Documents>>),
}

impl Companions {
    /// Documents, and the file that they lie in, behind layers.
    #[must_use]
    pub fn offered(documents: Documents, file: Option<File>) -> Self {
        Self::Offered { documents: Arc::new(documents), layers: file.map(Arc::new) }
    }

    fn documents(&self) -> Option<&Documents> {
        match self {
            Self::Offered { documents, .. } => Some(documents),
            _ => None,
        }
    }

    /// A layer that the node keeps.
    pub(crate) fn kept(&self, digest: &Digest) -> Option<KeptLayer> {
        let Self::Offered { documents, layers: Some(file) } = self else { return None };
        let place = *documents.places.get(digest.as_str())?;
        Some(KeptLayer::new(Arc::clone(file), place))
    }

    fn note(&self, write: impl FnOnce(&mut Documents)) {
        if let Self::Noted(documents) = self {
            write(&mut documents.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    pub(crate) const fn are_noted(&self) -> bool {
        matches!(self, Self::Noted(_))
    }

    /// A manifest that is here, or of which it is known here that there is none.
    pub(crate) fn manifest(&self, reference: &Reference) -> Option<Result<RawManifest, RegistryError>> {
        let documents = self.documents()?;
        let none = || RegistryError::NotFound {
            registry: reference.registry().to_owned(),
            what: format!(
                "manifest {} (says what was offered with the image)",
                reference.tag().unwrap_or_default()
            ),
        };
        Some(documents.manifest(reference)?.ok_or_else(none))
    }

    pub(crate) fn note_manifest(&self, reference: &Reference, answer: &Result<RawManifest, RegistryError>) {
        self.note(|documents| match answer {
            Ok(RawManifest { bytes, digest, media_type }) => {
                let kept = Kept { media_type: media_type.clone(), bytes: bytes.clone() };
                documents.contents.insert(digest.to_string(), kept);
                if let Some(tag) = derived(reference) {
                    documents.tags.insert(tag.to_owned(), Some(digest.to_string()));
                }
            }
            Err(RegistryError::NotFound { .. }) => {
                if let Some(tag) = derived(reference) {
                    documents.tags.insert(tag.to_owned(), None);
                }
            }
            Err(_) => {}
        });
    }

    /// A list of referrers that is here; `Some(None)` when the registry keeps none.
    pub(crate) fn referrers(&self, digest: &Digest) -> Option<Option<Vec<u8>>> {
        Some(self.documents()?.referrers.get(digest.as_str())?.as_ref().map(|kept| kept.bytes.clone()))
    }

    pub(crate) fn note_referrers(&self, digest: &Digest, list: Option<&[u8]>) {
        self.note(|documents| {
            let kept = list.map(|bytes| Kept { media_type: String::new(), bytes: bytes.to_vec() });
            documents.referrers.insert(digest.to_string(), kept);
        });
    }

    /// A blob that is here.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.documents()?.content(digest).map(<[u8]>::to_vec)
    }

    pub(crate) fn note_blob(&self, digest: &Digest, bytes: Vec<u8>) {
        self.note(|documents| {
            documents.contents.insert(digest.to_string(), Kept { media_type: String::new(), bytes });
        });
    }
}

/// Longest blob that is noted; what is longer is no small document.
pub(crate) const NOTED: usize = MOST_BYTES;

/// Collects the small documents of the image `reference`: index and manifest, configuration, its signatures, the documents of
/// `artifact_types` that refer to it and their signatures.
///
/// # Errors
/// See [`PullError`].
pub async fn collect_documents(
    reference: &str,
    config: &ClientConfig,
    artifact_types: &[&str],
) -> Result<Documents, PullError> {
    let noted = Arc::new(Mutex::new(Documents::default()));
    // Whether the image may run where it is to run is not asked here.
    let config = ClientConfig {
        companions: Companions::Noted(Arc::clone(&noted)),
        running_tier: None,
        allowed: None,
        signatures: None,
        ..config.clone()
    };
    let limits = config.limits.clone();
    let client = ImageClient::new(config)?;
    let image = client.examine(reference, &|_| ()).await?;
    let (registry, at) = (client.registry(), parse_reference(reference)?);
    let digests = [Some(&image.manifest_digest), image.index_digest.as_ref()];
    fetch_signatures(registry, &limits, &at, digests.into_iter().flatten()).await?;
    let max = limits.max_manifest_bytes;
    let listed = referrers::list(registry, &at, &image.manifest_digest, max).await?;
    let list: Referrers = listed.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let fits = |artifact_type: &str| artifact_types.contains(&artifact_type);
    for referrer in list.manifests.iter().filter(|one| fits(&one.artifact_type)).take(limits.max_signatures) {
        let Ok(digest) = referrer.digest.parse::<Digest>() else { continue };
        client.referring_document(&at, &digest).await?;
        fetch_signatures(registry, &limits, &at, [&digest]).await?;
    }
    let noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(noted.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Reference {
        parse_reference(text).unwrap()
    }

    fn raw(bytes: &[u8]) -> RawManifest {
        RawManifest { bytes: bytes.to_vec(), digest: Digest::sha256(bytes), media_type: "t".to_owned() }
    }

    fn not_found() -> RegistryError {
        RegistryError::NotFound { registry: "r".to_owned(), what: "x".to_owned() }
    }

    /// What a client noted, written and read again, as another is offered it.
    fn offered(write: impl FnOnce(&Companions)) -> Companions {
        let noted = Arc::new(Mutex::new(Documents::default()));
        write(&Companions::Noted(Arc::clone(&noted)));
        let json = noted.lock().unwrap().to_json().unwrap();
        let read = Documents::parse(&json).unwrap();
        assert_eq!(read, *noted.lock().unwrap());
        Companions::offered(read, None)
    }

    #[test]
    fn digests_and_derived_tags_are_answered_and_no_other_tag() {
        let digest = Digest::sha256(b"image");
        let signature = referrers::at_tag(&reference("r.example/i"), referrers::tag(&digest, ".sig"));
        let absent = referrers::at_tag(&reference("r.example/i"), referrers::tag(&digest, ".att"));
        let companions = offered(|noted| {
            noted.note_manifest(&reference("r.example/i:latest"), &Ok(raw(b"image")));
            noted.note_manifest(&signature, &Ok(raw(b"signature")));
            noted.note_manifest(&absent, &Err(not_found()));
            noted.note_blob(&Digest::sha256(b"blob"), b"blob".to_vec());
            noted.note_referrers(&digest, Some(b"list"));
            noted.note_referrers(&Digest::sha256(b"other"), None);
        });
        let by_digest = reference(&format!("r.example/i@{digest}"));
        assert_eq!(companions.manifest(&by_digest).unwrap().unwrap().bytes, b"image");
        assert_eq!(companions.manifest(&signature).unwrap().unwrap().bytes, b"signature");
        assert!(matches!(companions.manifest(&absent), Some(Err(RegistryError::NotFound { .. }))));
        assert!(companions.manifest(&reference("r.example/i:latest")).is_none());
        assert!(companions.manifest(&reference(&format!("r.example/i@{}", Digest::sha256(b"x")))).is_none());
        assert_eq!(companions.blob(&Digest::sha256(b"blob")).unwrap(), b"blob");
        assert_eq!(companions.referrers(&digest), Some(Some(b"list".to_vec())));
        assert_eq!(companions.referrers(&Digest::sha256(b"other")), Some(None));
        assert_eq!(companions.referrers(&Digest::sha256(b"third")), None);
    }

    #[test]
    fn what_was_changed_does_not_count() {
        let digest = Digest::sha256(b"image");
        let mut documents = Documents::default();
        let kept = Kept { media_type: String::new(), bytes: b"another".to_vec() };
        documents.contents.insert(digest.to_string(), kept);
        let tag = referrers::tag(&digest, ".sig");
        documents.tags.insert(tag.clone(), Some(digest.to_string()));
        let companions = Companions::offered(documents, None);
        assert!(companions.manifest(&reference(&format!("r.example/i@{digest}"))).is_none());
        assert!(companions.manifest(&referrers::at_tag(&reference("r.example/i"), tag)).is_none());
        assert!(companions.blob(&digest).is_none());
    }

    #[test]
    fn bounds_and_form_are_kept() {
        let json = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = serde_json::to_value(Documents::default()).unwrap();
            change(&mut value);
            Documents::parse(value.to_string().as_bytes()).map_err(|error| error.to_string())
        };
        assert!(json(&|_| ()).is_ok());
        assert!(json(&|value| value["version"] = 2.into()).unwrap_err().contains("version is 2"));
        assert!(json(&|value| value["more"] = 1.into()).unwrap_err().contains("unknown field"));
        let many = |value: &mut serde_json::Value| {
            for number in 0..=MOST {
                value["tags"][number.to_string()] = serde_json::Value::Null;
            }
        };
        assert!(json(&many).unwrap_err().contains("number of tags is 513"));
        assert!(Documents::parse(&vec![b' '; MAX_DOCUMENTS + 1]).unwrap_err().to_string().contains("length"));
    }
}
