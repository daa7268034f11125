//! Bundles as OCI artifacts (image-spec 1.1, "Guidelines for Artifact Usage"): an empty configuration, one layer that is the packed bundle, and an
//! `artifactType`. Nothing in it depends on time, so one bundle has one manifest digest per repository and revision. Signatures lie under
//! cosign's tag `sha256-<hex>.sig`.

use std::collections::BTreeMap;
use std::path::Path;

use kata_cc_image::digest::Digest;
use kata_cc_image::registry::RawManifest;
use kata_cc_image::signature::SignaturePolicy;
use kata_cc_image::{Limits, Registry, RegistryError, SignatureError, parse_reference};
use oci_client::Reference;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::archive::MAX_ARCHIVE;
use crate::sign::{Signer, payload};
use crate::{Bundle, BundleError};

/// Type of the artifact.
pub const ARTIFACT_TYPE: &str = "application/vnd.kata-cc.policy.bundle.v1";
/// Type of its one layer.
pub const LAYER: &str = "application/vnd.kata-cc.policy.bundle.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const REVISION: &str = "org.opencontainers.image.revision";
/// Most bytes of a manifest.
const MAX_MANIFEST: u64 = 1 << 20;
/// Most signatures under one tag.
const MAX_SIGNATURES: usize = 64;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Descriptor {
    fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::sha256(bytes).to_string(),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Manifest {
    fn bytes(&self) -> Result<Vec<u8>, BundleError> {
        serde_json::to_vec(self).map_err(|error| BundleError::Archive(error.to_string()))
    }
}

/// The manifest of a bundle; `revision` (a Git commit) is told in an annotation.
fn manifest(bundle: &Bundle, revision: Option<&str>) -> Result<Vec<u8>, BundleError> {
    let about = bundle.manifest();
    let mut annotations = BTreeMap::from([("org.opencontainers.image.title".to_owned(), about.name.clone())]);
    if let Some(version) = &about.version {
        annotations.insert("org.opencontainers.image.version".to_owned(), version.clone());
    }
    if let Some(revision) = revision {
        annotations.insert(REVISION.to_owned(), revision.to_owned());
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST.to_owned(),
        artifact_type: Some(ARTIFACT_TYPE.to_owned()),
        config: Descriptor::of(EMPTY, b"{}"),
        layers: vec![Descriptor::of(LAYER, bundle.archive())],
        annotations,
    };
    manifest.bytes()
}

/// Writes a bundle as an OCI layout (image-spec, `image-layout.md`) into a new or empty folder; gives the manifest's digest.
///
/// # Errors
/// When the folder holds something, or cannot be written.
pub fn write_layout(bundle: &Bundle, folder: &Path, revision: Option<&str>) -> Result<String, BundleError> {
    let failed = |source| BundleError::Read { path: folder.to_owned(), source };
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(folder).map_err(failed)?;
    if std::fs::read_dir(folder).map_err(failed)?.next().is_some() {
        let why = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "the folder is not empty");
        return Err(failed(why));
    }
    std::fs::create_dir_all(&blobs).map_err(failed)?;
    let manifest = manifest(bundle, revision)?;
    for bytes in [b"{}".as_slice(), bundle.archive(), &manifest] {
        std::fs::write(blobs.join(Digest::sha256(bytes).hex()), bytes).map_err(failed)?;
    }
    let mut entry = Descriptor::of(MANIFEST, &manifest);
    let tag = bundle.manifest().version.clone().unwrap_or_else(|| "latest".to_owned());
    // `+` is of versions, not of tags.
    entry.annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag.replace('+', "_"));
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]});
    std::fs::write(folder.join("index.json"), index.to_string()).map_err(failed)?;
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).map_err(failed)?;
    Ok(entry.digest)
}

/// Puts a bundle into a registry; gives the digest of its manifest.
///
/// # Errors
/// When the registry fails.
pub async fn push(
    registry: &Registry,
    reference: &str,
    bundle: &Bundle,
    revision: Option<&str>,
) -> Result<String, BundleError> {
    let at = parse_reference(reference)?;
    registry.push_bytes(&at, b"{}").await?;
    registry.push_bytes(&at, bundle.archive()).await?;
    let manifest = manifest(bundle, revision)?;
    let digest = Digest::sha256(&manifest).to_string();
    registry.push_manifest(&at, manifest, MANIFEST).await?;
    Ok(digest)
}

/// Signs what `reference` names, as cosign does; gives the digest that was signed.
///
/// # Errors
/// When the registry or the key fails.
pub async fn sign(registry: &Registry, reference: &str, signer: &Signer) -> Result<String, BundleError> {
    let at = parse_reference(reference)?;
    let signed = registry.manifest(&at, MAX_MANIFEST).await?;
    let name = format!("{}/{}", at.registry(), at.repository());
    let payload = payload(&name, signed.digest.as_str());
    let mut layer = Descriptor::of(PAYLOAD, &payload);
    layer.annotations.insert(SIGNATURE.to_owned(), signer.sign(&payload)?);
    let tag = signature_tag(&at, &signed.digest);
    // Others' signatures stay; the same payload may be signed by several keys.
    let mut layers: Vec<Descriptor> = match registry.manifest(&tag, MAX_MANIFEST).await {
        Ok(raw) => {
            serde_json::from_slice::<Manifest>(&raw.bytes)
                .map_err(|error| artifact_error(&tag.to_string(), &error))?
                .layers
        }
        Err(RegistryError::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    if layers.len() >= MAX_SIGNATURES {
        return Err(artifact_error(&tag.to_string(), &"there are too many signatures"));
    }
    layers.push(layer);
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
    let config = json!({"architecture": "", "os": "", "config": {}, "created": "0001-01-01T00:00:00Z",
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string()
    .into_bytes();
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST.to_owned(),
        artifact_type: None,
        config: Descriptor::of(IMAGE_CONFIG, &config),
        layers,
        annotations: BTreeMap::new(),
    };
    registry.push_bytes(&tag, &payload).await?;
    registry.push_bytes(&tag, &config).await?;
    registry.push_manifest(&tag, manifest.bytes()?, MANIFEST).await?;
    Ok(signed.digest.to_string())
}

fn signature_tag(at: &Reference, digest: &Digest) -> Reference {
    let tag = format!("sha256-{}.sig", digest.hex());
    Reference::with_tag(at.registry().to_owned(), at.repository().to_owned(), tag)
}

fn artifact_error(reference: &str, why: &dyn std::fmt::Display) -> BundleError {
    BundleError::Artifact { reference: reference.to_owned(), why: why.to_string() }
}

/// A bundle that a registry had.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The bundle.
    pub bundle: Bundle,
    /// Digest of its manifest.
    pub manifest_digest: String,
    /// Revision that whoever pushed it told.
    pub revision: Option<String>,
}

/// Fetches a bundle. With a policy nothing of it is read before its signature is found good.
///
/// # Errors
/// When the registry fails, the signature is not good, or it is no bundle.
pub async fn pull(
    registry: &Registry,
    reference: &str,
    signed: Option<&SignaturePolicy>,
) -> Result<Pulled, BundleError> {
    let at = parse_reference(reference)?;
    let raw = registry.manifest(&at, MAX_MANIFEST).await?;
    let digest = raw.digest.clone();
    if let Some(policy) = signed {
        let RawManifest { bytes, digest, .. } = &raw;
        let checked = policy.verify_artifact(registry, &Limits::default(), &at, digest, bytes).await;
        checked.map_err(|error| match error {
            SignatureError::Registry { source, .. } => source.into(),
            error => BundleError::Signature { what: reference.to_owned(), why: error.to_string() },
        })?;
    }
    let manifest: Manifest =
        serde_json::from_slice(&raw.bytes).map_err(|error| artifact_error(reference, &error))?;
    if manifest.artifact_type.as_deref() != Some(ARTIFACT_TYPE) {
        let why = format!("it is no policy bundle: its artifactType is {:?}", manifest.artifact_type);
        return Err(artifact_error(reference, &why));
    }
    let [layer] = manifest.layers.as_slice() else {
        return Err(artifact_error(reference, &"a policy bundle has one layer"));
    };
    if layer.media_type != LAYER || layer.size > MAX_ARCHIVE {
        return Err(artifact_error(
            reference,
            &format!("its layer is no {LAYER} of at most {MAX_ARCHIVE} bytes"),
        ));
    }
    let bundle = Bundle::from_archive(&blob(registry, &at, layer).await?)?;
    let revision = manifest.annotations.get(REVISION).map(|text| text.chars().take(128).collect());
    Ok(Pulled { bundle, manifest_digest: digest.to_string(), revision })
}

/// Why the stream of a blob was left.
enum Stop {
    Registry(RegistryError),
    TooLong,
}

impl From<RegistryError> for Stop {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

async fn blob(registry: &Registry, at: &Reference, layer: &Descriptor) -> Result<Vec<u8>, BundleError> {
    let named = at.to_string();
    let digest: Digest = layer.digest.parse().map_err(|error| artifact_error(&named, &error))?;
    let mut bytes = Vec::new();
    let read = registry.blob::<Stop>(at, &digest, async |piece| {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > layer.size { Err(Stop::TooLong) } else { Ok(()) }
    });
    match read.await {
        Ok(()) => {}
        Err(Stop::Registry(error)) => return Err(error.into()),
        Err(Stop::TooLong) => {
            return Err(artifact_error(&named, &"the registry sends more than its manifest says"));
        }
    }
    let seen = digest.of_same_kind(&bytes);
    if seen != digest {
        return Err(artifact_error(&named, &format!("the layer was changed: expected {digest}, got {seen}")));
    }
    Ok(bytes)
}
