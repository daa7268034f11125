//! Where images lie: a registry, an OCI layout folder, or an archive of one.
//!
//! Source: OCI image-spec `image-layout.md`. Blobs are copied through a work folder and their digests checked on the way. Used by the
//! host's tools; the guest pulls from registries only.

use std::io;
use std::path::{Path, PathBuf};

use oci_client::Reference;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::digest::{Digest, DigestError};
use crate::error::PullError;
use crate::manifest::{Descriptor, Document, Index, Manifest, ManifestError};
use crate::media;
use crate::pull::{ClientConfig, ImageClient};
use crate::registry::{RegistryError, parse_reference};
use crate::unpack::{Budget, Owner, UnpackError};

const TAG: &str = "org.opencontainers.image.ref.name";

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Resolving the image in the registry.
    #[error(transparent)]
    Pull(#[from] Box<PullError>),
    /// A manifest or index.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The kind of name is not known.
    #[error(
        "{0:?} names no image: known are a registry reference, docker://, oci:DIR[:TAG], oci-archive:FILE[:TAG]"
    )]
    Name(String),
    /// The layout has no such image.
    #[error("{place} has no image {tag:?}; it has: {has}")]
    NoImage {
        /// The folder or archive.
        place: String,
        /// The tag asked for.
        tag: String,
        /// Tags there are.
        has: String,
    },
    /// A blob's bytes have another digest.
    #[error("blob {expected} was changed: its bytes have the digest {seen}")]
    Changed {
        /// Its name.
        expected: Digest,
        /// Of its bytes.
        seen: Digest,
    },
    /// The archive.
    #[error("the archive cannot be read: {0}")]
    Archive(#[from] UnpackError),
    /// Files.
    #[error("{doing} {path} failed: {source}")]
    File {
        /// What was done.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

fn file_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { doing, path: path.clone(), source }
}

/// A temporary folder, removed at the end.
pub(crate) struct WorkDir(PathBuf);

impl WorkDir {
    pub(crate) fn new() -> io::Result<Self> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("no random bytes"))?;
        let path = std::env::temp_dir().join(format!("kata-cc-image-{}", hex::encode(random)));
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&path)?;
        Ok(Self(path))
    }

    /// The same, for those whose errors are of a store.
    pub(crate) fn create() -> Result<Self, StoreError> {
        Self::new().map_err(file_error("creating a temporary folder in", &std::env::temp_dir()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A place for one image.
pub(crate) enum Store {
    Registry { client: Box<ImageClient>, reference: Reference },
    Layout { folder: PathBuf, tag: Option<String>, archive: Option<PathBuf> },
}

enum Name {
    Registry(Reference),
    Layout(PathBuf, Option<String>),
    Archive(PathBuf, Option<String>),
}

fn parse_name(text: &str) -> Result<Name, StoreError> {
    let split = |rest: &str| match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (PathBuf::from(path), Some(tag.to_owned())),
        _ => (PathBuf::from(rest), None),
    };
    if let Some(rest) = text.strip_prefix("oci-archive:") {
        let (path, tag) = split(rest);
        return Ok(Name::Archive(path, tag));
    }
    if let Some(rest) = text.strip_prefix("oci:") {
        let (path, tag) = split(rest);
        return Ok(Name::Layout(path, tag));
    }
    let known = ["docker-archive:", "docker-daemon:", "dir:", "containers-storage:", "ostree:"];
    if known.iter().any(|kind| text.starts_with(kind)) {
        return Err(StoreError::Name(text.chars().take(200).collect()));
    }
    Ok(Name::Registry(parse_reference(text)?))
}

impl Store {
    /// Opens the image `name` for reading.
    pub(crate) async fn open(name: &str, config: &ClientConfig, work: &Path) -> Result<Self, StoreError> {
        match parse_name(name)? {
            Name::Registry(reference) => {
                Ok(Self::Registry { client: Box::new(ImageClient::new(config.clone())?), reference })
            }
            Name::Layout(folder, tag) => Ok(Self::Layout { folder, tag, archive: None }),
            Name::Archive(file, tag) => {
                let folder = work.join("source");
                std::fs::create_dir(&folder).map_err(file_error("creating", &folder))?;
                let input = std::fs::File::open(&file).map_err(file_error("opening", &file))?;
                let mut budget = Budget::new(config.limits.clone());
                crate::unpack::apply(io::BufReader::new(input), &folder, Owner::Caller, &mut budget)?;
                Ok(Self::Layout { folder, tag, archive: None })
            }
        }
    }

    /// Opens the place `name` for writing.
    pub(crate) fn create(name: &str, config: &ClientConfig, work: &Path) -> Result<Self, StoreError> {
        let (folder, tag, archive) = match parse_name(name)? {
            Name::Registry(reference) => {
                return Ok(Self::Registry { client: Box::new(ImageClient::new(config.clone())?), reference });
            }
            Name::Layout(folder, tag) => (folder, tag, None),
            Name::Archive(file, tag) => (work.join("target"), tag, Some(file)),
        };
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(file_error("creating", &blobs))?;
        Ok(Self::Layout { folder, tag, archive })
    }

    /// The image's manifest and its digest.
    pub(crate) async fn manifest(&self, config: &ClientConfig) -> Result<(Manifest, Digest), StoreError> {
        match self {
            Self::Registry { client, reference } => {
                let (manifest, raw, _) = client.resolve(reference).await.map_err(Box::new)?;
                Ok((manifest, raw.digest))
            }
            Self::Layout { folder, tag, .. } => layout_manifest(folder, tag.as_deref(), config),
        }
    }

    /// Copies a blob to a file in `work`, digest checked.
    pub(crate) async fn blob(&self, descriptor: &Descriptor, work: &Path) -> Result<PathBuf, StoreError> {
        let path = work.join(descriptor.digest()?.hex());
        let mut output = tokio::fs::File::create(&path).await.map_err(file_error("creating", &path))?;
        self.copy_blob(descriptor, &mut output, &path).await?;
        Ok(path)
    }

    /// Copies a blob to where a file stands, digest checked; `path` is the file's name for errors.
    pub(crate) async fn copy_blob(
        &self,
        descriptor: &Descriptor,
        output: &mut tokio::fs::File,
        path: &Path,
    ) -> Result<(), StoreError> {
        let digest = descriptor.digest()?;
        let mut hasher = digest.hasher();
        match self {
            Self::Registry { client, reference } => {
                let mut have = 0;
                client
                    .registry()
                    .blob::<StoreError>(reference, &digest, async |piece| {
                        have += piece.len() as u64;
                        if have > descriptor.size {
                            return Err(file_error("receiving", path)(io::Error::other(
                                "it is longer than its descriptor says",
                            )));
                        }
                        hasher.update(&piece);
                        output.write_all(&piece).await.map_err(file_error("writing", path))
                    })
                    .await?;
            }
            Self::Layout { folder, .. } => {
                let from = blob_path(folder, &digest);
                let mut input = tokio::fs::File::open(&from).await.map_err(file_error("opening", &from))?;
                let mut buffer = vec![0; 256 << 10];
                loop {
                    let count = input.read(&mut buffer).await.map_err(file_error("reading", &from))?;
                    if count == 0 {
                        break;
                    }
                    hasher.update(&buffer[..count]);
                    output.write_all(&buffer[..count]).await.map_err(file_error("writing", path))?;
                }
            }
        }
        output.flush().await.map_err(file_error("writing", path))?;
        let seen = hasher.finish();
        if seen == digest { Ok(()) } else { Err(StoreError::Changed { expected: digest, seen }) }
    }

    /// Stores the file `path` as a blob.
    pub(crate) async fn put_blob(&self, digest: &Digest, path: &Path, size: u64) -> Result<(), StoreError> {
        match self {
            Self::Registry { client, reference } => {
                if !client.registry().has_blob(reference, digest).await.unwrap_or(false) {
                    client.registry().push_blob(reference, digest, path, size).await?;
                }
            }
            Self::Layout { folder, .. } => {
                let to = blob_path(folder, digest);
                tokio::fs::copy(path, &to).await.map_err(file_error("writing", &to))?;
            }
        }
        Ok(())
    }

    /// Stores the manifest, which makes the image visible.
    pub(crate) async fn finish(&self, bytes: Vec<u8>) -> Result<Digest, StoreError> {
        let digest = Digest::sha256(&bytes);
        match self {
            Self::Registry { client, reference } => {
                client.registry().push_manifest(reference, bytes, media::OCI_MANIFEST).await?;
            }
            Self::Layout { folder, tag, archive } => {
                finish_layout(folder, tag.as_deref(), &bytes, &digest)?;
                if let Some(archive) = archive {
                    pack(folder, archive)?;
                }
            }
        }
        Ok(digest)
    }
}

fn blob_path(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join("blobs").join(digest.algorithm()).join(digest.hex())
}

fn read_limited(path: &Path, max: u64) -> Result<Vec<u8>, StoreError> {
    let size = std::fs::metadata(path).map_err(file_error("reading", path))?.len();
    if size > max {
        return Err(file_error("reading", path)(io::Error::other(format!("it is longer than {max} bytes"))));
    }
    std::fs::read(path).map_err(file_error("reading", path))
}

fn layout_manifest(
    folder: &Path,
    tag: Option<&str>,
    config: &ClientConfig,
) -> Result<(Manifest, Digest), StoreError> {
    let max = config.limits.max_manifest_bytes;
    let index = read_limited(&folder.join("index.json"), max)?;
    let index: Index = serde_json::from_slice(&index).map_err(ManifestError::from)?;
    let name = |entry: &Descriptor| entry.annotations.get(TAG).cloned();
    let entry = match (tag, index.manifests.as_slice()) {
        (None, [only]) => Some(only),
        (None, _) => index.select(&config.platform).ok(),
        (Some(tag), all) => all.iter().find(|entry| name(entry).as_deref() == Some(tag)),
    };
    let mut descriptor = entry
        .ok_or_else(|| StoreError::NoImage {
            place: folder.display().to_string(),
            tag: tag.unwrap_or_default().to_owned(),
            has: index.manifests.iter().take(20).filter_map(name).collect::<Vec<_>>().join(", "),
        })?
        .clone();
    for _ in 0..2 {
        let digest = descriptor.digest()?;
        let bytes = read_limited(&blob_path(folder, &digest), max)?;
        let seen = digest.of_same_kind(&bytes);
        if seen != digest {
            return Err(StoreError::Changed { expected: digest, seen });
        }
        match Document::parse(&bytes)? {
            Document::Image(manifest) => return Ok((manifest, digest)),
            Document::Index(inner) => descriptor = inner.select(&config.platform)?.clone(),
        }
    }
    Err(ManifestError::Form("an index within an index").into())
}

fn finish_layout(folder: &Path, tag: Option<&str>, bytes: &[u8], digest: &Digest) -> Result<(), StoreError> {
    let write =
        |path: PathBuf, bytes: &[u8]| std::fs::write(&path, bytes).map_err(file_error("writing", &path));
    write(blob_path(folder, digest), bytes)?;
    write(folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut entry = Descriptor {
        media_type: media::OCI_MANIFEST.to_owned(),
        digest: digest.to_string(),
        size: bytes.len() as u64,
        annotations: Default::default(),
        platform: None,
    };
    if let Some(tag) = tag {
        entry.annotations.insert(TAG.to_owned(), tag.to_owned());
    }
    // Other images of an existing layout stay.
    let path = folder.join("index.json");
    let mut index = match std::fs::read(&path) {
        Ok(old) => serde_json::from_slice::<Index>(&old).map_err(ManifestError::from)?,
        Err(_) => Index {
            schema_version: 2,
            media_type: None,
            manifests: Vec::new(),
            annotations: Default::default(),
        },
    };
    index.manifests.retain(|old| old.annotations.get(TAG) != entry.annotations.get(TAG));
    index.manifests.push(entry);
    let text = serde_json::to_vec(&index).map_err(ManifestError::from)?;
    write(path, &text)
}

fn pack(folder: &Path, archive: &Path) -> Result<(), StoreError> {
    let fail = file_error("writing", archive);
    let output = std::fs::File::create(archive).map_err(&fail)?;
    let mut builder = tar::Builder::new(io::BufWriter::new(output));
    builder.mode(tar::HeaderMode::Deterministic);
    for name in ["oci-layout", "index.json"] {
        builder.append_path_with_name(folder.join(name), name).map_err(&fail)?;
    }
    builder.append_dir_all("blobs", folder.join("blobs")).map_err(&fail)?;
    let mut output = builder.into_inner().map_err(&fail)?;
    io::Write::flush(&mut output).map_err(&fail)
}
