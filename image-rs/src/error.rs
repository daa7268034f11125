//! Why a pull fails.

use std::io;
use std::path::{Path, PathBuf};

use crate::chunks::{ChunkListError, PinnedListError, UnhadChunk};
use crate::crypto::CryptoError;
use crate::digest::{Digest, DigestError};
use crate::keys::KeyError;
use crate::manifest::ManifestError;
use crate::media::MediaError;
use crate::registry::RegistryError;
use crate::signature::SignatureError;
use crate::tier::TierError;
use crate::unpack::UnpackError;

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
    /// A chunk of a layer is at no place what the image's chunk list says. Nothing of it was decrypted.
    #[error("layer {layer} was changed: {source}")]
    Chunk {
        /// Number of the layer.
        layer: usize,
        /// Which chunk, and what each place had.
        source: UnhadChunk,
    },
    /// A chunk list that cannot be made, or is refused.
    #[error(transparent)]
    ChunkList(#[from] ChunkListError),
    /// The measured init-data pins the image's chunk list, and there is another one in its place.
    #[error("the init-data pins chunk list {pinned} of image {manifest}: {why}")]
    PinnedChunks {
        /// Digest of the image's manifest.
        manifest: Digest,
        /// Digest of the list.
        pinned: Digest,
        /// What there is in its place.
        why: PinnedListError,
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
    /// The keys of a layer were asked for and none was had.
    #[error("the key of layer {layer} was not had: {source}{also}")]
    Key {
        /// Number of the layer.
        layer: usize,
        /// Why, of the first that was asked for.
        source: KeyError,
        /// What was said of the others, and how many were not asked for, each after a semicolon.
        also: String,
    },
    /// Encrypted bytes or options of a layer are wrong.
    #[error("layer {layer} cannot be decrypted: {source}")]
    Decrypt {
        /// Number of the layer.
        layer: usize,
        /// Why.
        source: CryptoError,
    },
    /// The measured init-data lists the images of this guest, and this one is not among them.
    #[error(
        "image {image} is not among those that the init-data allows ({allowed}); list it as {suggestion} in [image] allowed of cdh.toml, or run one that is listed"
    )]
    NotAllowed {
        /// The reference asked for.
        image: String,
        /// What is listed.
        allowed: String,
        /// The entry that would allow it.
        suggestion: String,
    },
    /// The signatures of the image are not those that the policy demands, or could not be checked.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A document beside the image is not what its type says.
    #[error("referrer {digest} does not count: {why}")]
    Referrer {
        /// Digest of its manifest.
        digest: String,
        /// What is wrong with it.
        why: String,
    },
    /// An encrypted layer does not say which image it belongs to, and the init-data does not pin the image.
    #[error(
        "encrypted layer {layer} is not bound to an image configuration, so anyone could put other layers beside it: encrypt the image with `kata-cc image encrypt`, or list it as {suggestion} in [image] allowed of cdh.toml"
    )]
    Unbound {
        /// Number of the layer.
        layer: usize,
        /// The entry that would pin the image.
        suggestion: String,
    },
    /// An encrypted layer was made for an image of another configuration: layers, their order, program or environment differ.
    #[error(
        "encrypted layer {layer} belongs to another image: it was encrypted for configuration {expected}, the manifest names {seen}; someone changed layers or configuration after the image was encrypted"
    )]
    OtherImage {
        /// Number of the layer.
        layer: usize,
        /// The configuration it was encrypted for.
        expected: Digest,
        /// The manifest's.
        seen: Digest,
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
    /// The file that a layer goes through on its way.
    #[error("keeping layer {layer} in the work folder failed: {source}; is there space?")]
    Spool {
        /// Number of the layer.
        layer: usize,
        /// The system's answer.
        source: io::Error,
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
