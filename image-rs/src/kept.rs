//! Encrypted layers that a node keeps for its guests: as the registry has them, one after another in one file, each from a whole block on.
//!
//! The node can read none of them, and a guest believes nothing of them that it would not believe of the registry: size, digest, HMAC and, where
//! the image's signer made one, the chunk list decide. Which layer lies where stands in the documents of the image ([`Documents`]), which are
//! kept behind them. A file that cannot be read is as none: the registry is asked for the rest.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio_util::bytes::Bytes;

use crate::digest::Digest;
use crate::documents::Documents;
use crate::error::PullError;
use crate::layers::LayersError;
use crate::media::LayerType;
use crate::pull::ClientConfig;
use crate::store::{Store, StoreError, WorkDir};

/// What a layer's beginning in the file is a multiple of, in bytes: a block of the device that the file becomes.
const BLOCK: u64 = 4096;
/// Most bytes that are read at once.
const PIECE: u64 = 256 << 10;

/// Where a layer lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Place {
    offset: u64,
    size: u64,
}

/// The layers of an image in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLayers {
    /// Digest of the image's manifest.
    pub manifest_digest: Digest,
    /// Bytes of the layers.
    pub bytes: u64,
    places: Vec<(Digest, Place)>,
}

impl KeptLayers {
    /// Notes in the image's documents where its layers lie.
    pub fn note(&self, documents: &mut Documents) {
        documents.places = self.places.iter().map(|(digest, place)| (digest.to_string(), *place)).collect();
    }

    /// How many they are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.places.len()
    }
}

/// Fetches the layers of the image `name` (registry reference, `oci:`, `oci-archive:`) into an empty file, digests checked, to the end of a
/// whole block. No key is asked for.
///
/// # Errors
/// See [`LayersError`]; what is in the file then is worth nothing.
pub async fn keep_layers(
    name: &str,
    config: &ClientConfig,
    file: &mut File,
) -> Result<KeptLayers, LayersError> {
    let work = WorkDir::create()?;
    let store = Store::open(name, config, work.path()).await?;
    let (manifest, manifest_digest) = store.manifest(config).await?;
    let mut kept = KeptLayers { manifest_digest, bytes: 0, places: Vec::new() };
    for (layer, descriptor) in manifest.layers.iter().enumerate() {
        LayerType::parse(&descriptor.media_type)
            .map_err(|source| Box::new(PullError::Media { layer, source }))?;
        let digest = descriptor.digest().map_err(StoreError::from)?;
        if kept.places.iter().any(|(one, _)| *one == digest) {
            continue;
        }
        let fetched = store.blob(descriptor, work.path()).await?;
        let place = append(file, &fetched).map_err(PullError::work("keeping", &fetched)).map_err(Box::new)?;
        kept.bytes += place.size;
        kept.places.push((digest, place));
    }
    Ok(kept)
}

/// Moves the file `from` to the end of `file`, filled up to a whole block.
fn append(file: &mut File, from: &std::path::Path) -> io::Result<Place> {
    let offset = file.seek(SeekFrom::End(0))?;
    let size = io::copy(&mut File::open(from)?, file)?;
    std::fs::remove_file(from)?;
    let filling = size.next_multiple_of(BLOCK) - size;
    file.write_all(&vec![0; usize::try_from(filling).unwrap_or_default()])?;
    Ok(Place { offset, size })
}

/// A layer in the node's file.
#[derive(Debug, Clone)]
pub(crate) struct KeptLayer {
    file: Arc<File>,
    place: Place,
}

impl KeptLayer {
    /// The one at `place` of `file`.
    pub(crate) fn new(file: Arc<File>, place: Place) -> Self {
        Self { file, place }
    }

    /// The next bytes from `have` on; `None` at the end.
    pub(crate) async fn piece(&self, have: u64) -> io::Result<Option<Bytes>> {
        let length = self.place.size.saturating_sub(have).min(PIECE);
        if length == 0 {
            return Ok(None);
        }
        let at = self.place.offset.checked_add(have).ok_or(io::ErrorKind::InvalidData)?;
        let file = Arc::clone(&self.file);
        let reading = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; usize::try_from(length).unwrap_or_default()];
            file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
        });
        reading.await.map_err(io::Error::other)?.map(Some)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_layer_is_read_to_its_end_and_not_beyond() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        let mut file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        let layers = [vec![1; 5000], vec![2; (PIECE + 10) as usize], Vec::new()];
        let places = layers.iter().map(|bytes| {
            let from = dir.path().join("layer");
            std::fs::write(&from, bytes).unwrap();
            append(&mut file, &from).unwrap()
        });
        let places: Vec<Place> = places.collect();
        assert!(places.iter().all(|place| place.offset % BLOCK == 0));
        assert_eq!(file.metadata().unwrap().len() % BLOCK, 0);
        let file = Arc::new(file);
        for (place, bytes) in places.iter().zip(&layers) {
            let kept = KeptLayer::new(Arc::clone(&file), *place);
            let mut read = Vec::new();
            while let Some(piece) = kept.piece(read.len() as u64).await.unwrap() {
                read.extend_from_slice(&piece);
            }
            assert_eq!(read, *bytes);
        }
        for wrong in [
            Place { offset: 1 << 20, size: 10 },
            Place { offset: u64::MAX, size: 10 },
            Place { offset: u64::MAX - 5, size: 10 },
        ] {
            assert!(KeptLayer::new(Arc::clone(&file), wrong).piece(1).await.is_err(), "{wrong:?}");
        }
    }
}
