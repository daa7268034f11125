//! What refers to an image: small documents beside it in its repository.
//!
//! Source: OCI distribution-spec, "Listing Referrers" and "Referrers Tag Schema"; image-spec `manifest.md`, `subject` and `artifactType`.
//! Whoever may push to a repository may refer to what is in it. So a document counts only when a signature that the policy
//! demands of the image is on the referrer itself.

use std::sync::Arc;

use oci_client::Reference;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::digest::Digest;
use crate::error::PullError;
use crate::manifest::{Descriptor, Document};
use crate::media;
use crate::pull::{ClientConfig, ExaminedImage, ImageClient};
use crate::registry::{RawManifest, Registry, RegistryError};
use crate::signature::SignaturePolicy;

/// OCI's type of an empty configuration, and its bytes.
const EMPTY: (&str, &[u8]) = ("application/vnd.oci.empty.v1+json", b"{}");

/// An entry in the list of referrers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Referrer {
    #[serde(default = "manifest_type")]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) artifact_type: String,
}

fn manifest_type() -> String {
    media::OCI_MANIFEST.to_owned()
}

/// The list of referrers: an index, read as far as it matters.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Referrers {
    #[serde(default)]
    pub(crate) manifests: Vec<Referrer>,
}

/// The tag that stands for a digest, with something behind it.
pub(crate) fn tag(digest: &Digest, end: &str) -> String {
    format!("{}-{}{end}", digest.algorithm(), digest.hex())
}

/// The repository of `reference`, at a tag.
pub(crate) fn at_tag(reference: &Reference, tag: String) -> Reference {
    Reference::with_tag(reference.registry().to_owned(), reference.repository().to_owned(), tag)
}

/// The list of referrers of `digest`, from the registry or under the tag that stands for it; `None` when there is neither.
pub(crate) async fn list(
    registry: &Registry,
    reference: &Reference,
    digest: &Digest,
    max: u64,
) -> Result<Option<Vec<u8>>, RegistryError> {
    if let Some(bytes) = registry.referrers(reference, digest, max).await? {
        return Ok(Some(bytes));
    }
    match registry.manifest(&at_tag(reference, tag(digest, "")), max).await {
        Ok(raw) => Ok(Some(raw.bytes)),
        Err(RegistryError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The members of a referrer's manifest that an image's does not have.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Artifact {
    #[serde(default)]
    artifact_type: String,
    subject: Option<Descriptor>,
}

impl ImageClient {
    /// The documents of type `artifact_type` that refer to the image and have a signature that the policy demands; each is at most
    /// `max_config_bytes` long. Without a policy, or where it accepts images that nobody signed, none counts.
    ///
    /// # Errors
    /// See [`PullError`]: the registry. What is not signed, or not what it says, is passed over and told in the log.
    pub async fn signed_documents(
        &self,
        image: &ExaminedImage,
        artifact_type: &str,
    ) -> Result<Vec<Vec<u8>>, PullError> {
        let mut documents = Vec::new();
        let all = |document| {
            documents.push(document);
            None::<()>
        };
        self.find_signed(image, artifact_type, all).await?;
        Ok(documents)
    }

    /// What `read` makes of the first such document that it wants. One of them is in memory at a time.
    ///
    /// # Errors
    /// As [`ImageClient::signed_documents`].
    pub(crate) async fn find_signed<T>(
        &self,
        image: &ExaminedImage,
        artifact_type: &str,
        mut read: impl FnMut(Vec<u8>) -> Option<T>,
    ) -> Result<Option<T>, PullError> {
        let ClientConfig { limits, signatures, .. } = self.config();
        let Some(policy) = signatures else { return Ok(None) };
        let max = limits.max_manifest_bytes;
        let Some(listed) = list(self.registry(), &image.reference, &image.manifest_digest, max).await? else {
            return Ok(None);
        };
        let list: Referrers = serde_json::from_slice(&listed).unwrap_or_default();
        let fits = |one: &&Referrer| one.artifact_type == artifact_type;
        for referrer in list.manifests.iter().filter(fits).take(limits.max_signatures) {
            match self.signed_document(policy, image, referrer, artifact_type).await {
                Ok(document) => {
                    if let Some(found) = read(document) {
                        return Ok(Some(found));
                    }
                }
                Err(error) => tracing::warn!(%error, referrer = referrer.digest, "a referrer does not count"),
            }
        }
        Ok(None)
    }

    /// Digests of the documents of type `artifact_type` that refer to the image, whoever put them there; those that cannot be had are left out.
    pub(crate) async fn referring_blobs(&self, image: &ExaminedImage, artifact_type: &str) -> Vec<Digest> {
        let limits = &self.config().limits;
        let (at, subject) = (&image.reference, &image.manifest_digest);
        let listed = list(self.registry(), at, subject, limits.max_manifest_bytes).await.ok().flatten();
        let list: Referrers =
            listed.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let fits = |one: &&Referrer| one.artifact_type == artifact_type;
        let mut found = Vec::new();
        for referrer in list.manifests.iter().filter(fits).take(limits.max_signatures) {
            let Ok(digest) = referrer.digest.parse() else { continue };
            let document = self.referrer_manifest(at, &digest).await;
            found.extend(document.ok().and_then(|(_, layer)| layer.digest().ok()));
        }
        found
    }

    async fn signed_document(
        &self,
        policy: &Arc<SignaturePolicy>,
        image: &ExaminedImage,
        referrer: &Referrer,
        artifact_type: &str,
    ) -> Result<Vec<u8>, PullError> {
        let limits = &self.config().limits;
        let (raw, layer) = self.referrer_manifest(&image.reference, &referrer.digest.parse()?).await?;
        let other = |why: &str| PullError::Referrer { digest: raw.digest.to_string(), why: why.to_owned() };
        let artifact: Artifact = serde_json::from_slice(&raw.bytes).map_err(|e| other(&e.to_string()))?;
        let subject = artifact.subject.ok_or_else(|| other("it names no subject"))?;
        if artifact.artifact_type != artifact_type || subject.digest()? != image.manifest_digest {
            return Err(other("it is of another type, or refers to another image"));
        }
        let (registry, at) = (self.registry(), &image.reference);
        let checked = policy.verify_artifact(registry, limits, at, &raw.digest, &raw.bytes).await?;
        if checked.signatures.is_empty() {
            return Err(other("the policy demands no signature, so anybody could have put it there"));
        }
        self.small_blob(&image.reference, &layer).await
    }

    /// The manifest of a referrer, and where its document is.
    async fn referrer_manifest(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<(RawManifest, Descriptor), PullError> {
        let at = reference.clone_with_digest(digest.to_string());
        let raw = self.registry().manifest(&at, self.config().limits.max_manifest_bytes).await?;
        let other = |why: &str| PullError::Referrer { digest: digest.to_string(), why: why.to_owned() };
        let Document::Image(manifest) = Document::parse(&raw.bytes)? else {
            return Err(other("it is an index"));
        };
        let [layer] = manifest.layers.as_slice() else {
            return Err(other("it has not one layer, the document"));
        };
        let layer = layer.clone();
        Ok((raw, layer))
    }

    /// The document of a referrer, whoever put it there.
    pub(crate) async fn referring_document(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Vec<u8>, PullError> {
        let (_, layer) = self.referrer_manifest(reference, digest).await?;
        self.small_blob(reference, &layer).await
    }
}

/// Puts a document beside the image `subject`; gives the digest of the referrer, which is what is to be signed.
///
/// # Errors
/// When the registry or a file fails.
pub async fn attach(
    registry: &Registry,
    reference: &Reference,
    subject: &Descriptor,
    artifact_type: &str,
    document: &[u8],
) -> Result<Digest, RegistryError> {
    let config = put(registry, reference, EMPTY.1, EMPTY.0).await?;
    let layer = put(registry, reference, document, artifact_type).await?;
    let subject = json!({"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size});
    let manifest = json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": artifact_type,
        "config": config, "layers": [layer], "subject": subject});
    let bytes = manifest.to_string().into_bytes();
    let (digest, size) = (Digest::sha256(&bytes), bytes.len() as u64);
    let at = reference.clone_with_digest(digest.to_string());
    registry.push_manifest(&at, bytes, media::OCI_MANIFEST).await?;
    let of: Digest = subject["digest"].as_str().unwrap_or_default().parse().map_err(|error| {
        RegistryError::Reference { reference: reference.to_string(), why: format!("{error}") }
    })?;
    if registry.referrers(reference, &of, MAX_LIST).await?.is_none() {
        let entry = Referrer {
            media_type: manifest_type(),
            digest: digest.to_string(),
            size,
            artifact_type: artifact_type.to_owned(),
        };
        add_to_tag(registry, &at_tag(reference, tag(&of, "")), &entry).await?;
    }
    Ok(digest)
}

/// Longest list of referrers that is added to.
const MAX_LIST: u64 = 4 << 20;

/// Registries before OCI 1.1 keep no list: it is an index under a tag, which who pushes keeps.
async fn add_to_tag(registry: &Registry, at: &Reference, entry: &Referrer) -> Result<(), RegistryError> {
    let empty = || json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": []});
    let mut index = match registry.manifest(at, MAX_LIST).await {
        Ok(raw) => serde_json::from_slice(&raw.bytes).unwrap_or_else(|_| empty()),
        Err(RegistryError::NotFound { .. }) => empty(),
        Err(error) => return Err(error),
    };
    let entry = json!(entry);
    if let Some(manifests) = index["manifests"].as_array_mut() {
        manifests.retain(|one| one["digest"] != entry["digest"]);
        manifests.push(entry);
    }
    registry.push_manifest(at, index.to_string().into_bytes(), media::OCI_INDEX).await
}

async fn put(
    registry: &Registry,
    reference: &Reference,
    bytes: &[u8],
    kind: &str,
) -> Result<serde_json::Value, RegistryError> {
    let digest = registry.push_bytes(reference, bytes).await?;
    Ok(json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()}))
}
