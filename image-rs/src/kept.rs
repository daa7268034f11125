//! Encrypted layers that a node keeps for its guests: as the registry has them, one after another in one file, each from a whole block on.
//!
//! The node can read none of them, and a guest believes nothing of them that it would not believe of the registry: size, digest, HMAC and, where
//! the image's signer made one, the chunk list decide. Which layer lies where stands in the documents of the image ([`Documents`]), which are
//! kept behind them. A file that cannot be read is as none: the registry is asked for the rest.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncSeekExt as _;
use tokio_util::bytes::Bytes;

use crate::Limits;
use crate::digest::Digest;
use crate::documents::Documents;
use crate::error::PullError;
use crate::layers::LayersError;
use crate::manifest::Descriptor;
use crate::pull::{ClientConfig, layer_types};
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

/// Fetches the layers of the encrypted image `name` (registry reference, `oci:`, `oci-archive:`) into an empty file, digests checked, to the
/// end of a whole block. No key is asked for.
///
/// # Errors
/// See [`LayersError`]: also when they have more than `most` bytes, or none is encrypted. What is in the file then is worth nothing.
pub async fn keep_layers(
    name: &str,
    config: &ClientConfig,
    most: u64,
    file: &mut File,
) -> Result<KeptLayers, LayersError> {
    let work = WorkDir::create()?;
    let store = Store::open(name, config, work.path()).await?;
    let (manifest, manifest_digest) = store.manifest(config).await?;
    check(&manifest.layers, &config.limits, most)?;
    let path = Path::new("the node's copy");
    let failed = |error| Box::new(PullError::work("writing", path)(error));
    let mut output = tokio::fs::File::from_std(file.try_clone().map_err(failed)?);
    let mut kept = KeptLayers { manifest_digest, bytes: 0, places: Vec::new() };
    let mut offset = 0;
    for descriptor in &manifest.layers {
        let digest = descriptor.digest().map_err(StoreError::from)?;
        if kept.places.iter().any(|(one, _)| *one == digest) {
            continue;
        }
        store.copy_blob(descriptor, &mut output, path).await?;
        let end = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let place = Place { offset, size: end - offset };
        offset = end.next_multiple_of(BLOCK);
        file.set_len(offset).map_err(failed)?;
        output.seek(SeekFrom::Start(offset)).await.map_err(failed)?;
        kept.bytes += place.size;
        kept.places.push((digest, place));
    }
    Ok(kept)
}

/// Whether layers are such as a guest takes, some of them encrypted, and fit.
fn check(layers: &[Descriptor], limits: &Limits, most: u64) -> Result<(), LayersError> {
    if !layer_types(layers).map_err(Box::new)?.iter().any(|kind| kind.encrypted) {
        return Err(LayersError::NotEncrypted);
    }
    let (count, most_layers, most) = (layers.len(), limits.max_layers, most.min(limits.max_blob_bytes));
    let bytes = layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.size));
    if count > most_layers || bytes > most {
        return Err(LayersError::TooLarge { layers: count, bytes, most_layers, most });
    }
    Ok(())
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
        let layers = [vec![1; 5000], vec![2; (PIECE + 10) as usize], Vec::new()];
        let mut contents = Vec::new();
        let places = layers.iter().map(|bytes| {
            contents.resize(contents.len().next_multiple_of(BLOCK as usize), 0);
            let place = Place { offset: contents.len() as u64, size: bytes.len() as u64 };
            contents.extend_from_slice(bytes);
            place
        });
        let places: Vec<Place> = places.collect();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &contents).unwrap();
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

    #[test]
    fn only_encrypted_layers_that_fit_are_kept() {
        let layer = |encrypted: &str, size| Descriptor {
            media_type: format!("application/vnd.oci.image.layer.v1.tar+gzip{encrypted}"),
            digest: Digest::sha256(b"x").to_string(),
            size,
            annotations: Default::default(),
            platform: None,
        };
        let limits = Limits { max_layers: 2, ..Limits::default() };
        let check = |layers: &[Descriptor]| check(layers, &limits, 100).map_err(|error| error.to_string());
        let (plain, encrypted) = (layer("", 50), layer("+encrypted", 50));
        assert_eq!(check(&[plain.clone(), encrypted.clone()]), Ok(()));
        assert!(check(std::slice::from_ref(&plain)).unwrap_err().contains("none of its layers is encrypted"));
        for more in [vec![layer("+encrypted", 51), plain.clone()], vec![layer("+encrypted", u64::MAX), plain]]
        {
            assert!(check(&more).unwrap_err().contains("at most 2 of 100"));
        }
        assert!(check(&vec![encrypted; 3]).unwrap_err().contains("3 layers of 150 bytes"));
    }
}
