//! The layers of an image as files, for tools that make something of all of them.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::digest::{Digest, Hasher};
use crate::error::PullError;
use crate::layer::decompress;
use crate::media::Codec;
use crate::pull::{ClientConfig, diff_ids, layer_types};
use crate::read_ahead::ReadAhead;
use crate::store::{Store, StoreError, WorkDir};

/// Why the layers are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// Where the image lies.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image.
    #[error(transparent)]
    Image(#[from] Box<PullError>),
    /// The host must not see what is in it.
    #[error("layer {layer} is encrypted: only who has its key can read it")]
    Encrypted {
        /// Its number.
        layer: usize,
    },
    /// Only layers that are are kept as they are.
    #[error(
        "none of its layers is encrypted: of a plain image there is a sealed copy, and a node's only when anybody may pull it"
    )]
    NotEncrypted,
    /// More than whoever asked has room for.
    #[error("it has {layers} layers of {bytes} bytes, at most {most_layers} of {most} are kept")]
    TooLarge {
        /// Layers.
        layers: usize,
        /// Bytes of all of them.
        bytes: u64,
        /// How many layers may be.
        most_layers: usize,
        /// How many bytes.
        most: u64,
    },
}

/// An image whose layers lie in a temporary folder, which goes with it.
pub struct FetchedImage {
    /// Digest of its manifest.
    pub manifest_digest: Digest,
    /// Digest of its configuration.
    pub config_digest: Digest,
    layers: Vec<FetchedLayer>,
    _work: WorkDir,
}

struct FetchedLayer {
    file: PathBuf,
    codec: Codec,
    diff_id: Digest,
}

/// Fetches the image `name` (registry reference, `oci:`, `oci-archive:`), all digests checked.
///
/// # Errors
/// See [`LayersError`].
pub async fn fetch_layers(name: &str, config: &ClientConfig) -> Result<FetchedImage, LayersError> {
    let work = WorkDir::create()?;
    let store = Store::open(name, config, work.path()).await?;
    let (manifest, manifest_digest) = store.manifest(config).await?;
    let kinds = layer_types(&manifest.layers).map_err(Box::new)?;
    if let Some(layer) = kinds.iter().position(|kind| kind.encrypted) {
        return Err(LayersError::Encrypted { layer });
    }
    let config_digest = manifest.config.digest().map_err(StoreError::from)?;
    let diff_ids = read_config(&store.blob(&manifest.config, work.path()).await?, manifest.layers.len())?;
    let mut layers = Vec::new();
    for ((descriptor, kind), diff_id) in manifest.layers.iter().zip(kinds).zip(diff_ids) {
        let file = store.blob(descriptor, work.path()).await?;
        layers.push(FetchedLayer { file, codec: kind.codec, diff_id });
    }
    Ok(FetchedImage { manifest_digest, config_digest, layers, _work: work })
}

fn read_config(file: &Path, layers: usize) -> Result<Vec<Digest>, Box<PullError>> {
    let bytes = std::fs::read(file).map_err(PullError::work("reading", file)).map_err(Box::new)?;
    let config = serde_json::from_slice(&bytes).map_err(|error| PullError::Config(error.to_string()));
    config.and_then(|config| diff_ids(&config, layers)).map_err(Box::new)
}

impl FetchedImage {
    /// Its layers' archives, the lowest first: decompressed, and with an error at the end when the digest is not the
    /// configuration's.
    pub fn archives(&self) -> impl Iterator<Item = io::Result<impl Read + use<>>> {
        self.layers.iter().map(|layer| {
            let file = BufReader::with_capacity(256 << 10, File::open(&layer.file)?);
            let inner = ReadAhead::new(decompress(layer.codec, Box::new(file))?)?;
            Ok(Checked { inner, hasher: Some(layer.diff_id.hasher()), expected: layer.diff_id.clone() })
        })
    }
}

/// Reads on, and compares the digest at the end.
struct Checked {
    inner: ReadAhead,
    hasher: Option<Hasher>,
    expected: Digest,
}

impl Read for Checked {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        if count > 0 || out.is_empty() {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(out.get(..count).unwrap_or_default());
            }
            return Ok(count);
        }
        match self.hasher.take().map(Hasher::finish) {
            Some(seen) if seen != self.expected => Err(io::Error::other(format!(
                "the layer unpacks to {seen}, the image's configuration says {}",
                self.expected
            ))),
            _ => Ok(0),
        }
    }
}
