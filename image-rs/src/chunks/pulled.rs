//! The chunk list of an image that is pulled: the one that the init-data pins, else one that is signed as the image must be.

use std::sync::Arc;

use super::{CHUNKS_TYPE, ChunkList, ChunkListError, ListedLayer};
use crate::digest::Digest;
use crate::error::PullError;
use crate::layer::LayerPlan;
use crate::pull::{ExaminedImage, ImageClient};
use crate::registry::RegistryError;

/// What there is in place of a chunk list that the init-data pins.
#[derive(Debug, thiserror::Error)]
pub enum PinnedListError {
    /// The bytes under its digest are others.
    #[error("registry {registry} serves {seen} in its place")]
    Changed {
        /// The registry's host.
        registry: String,
        /// Digest of what came.
        seen: Digest,
    },
    /// It is gone, and there are others.
    #[error(
        "its registry has no such blob, and offers {offered}; pin that (`kata-cc image chunks --pin`), or push the pinned one again"
    )]
    Other {
        /// Digests of the lists that lie beside the image.
        offered: String,
    },
    /// It is no list of this image.
    #[error("it does not fit the image: {0}")]
    Unfit(#[from] ChunkListError),
}

impl ImageClient {
    /// Looks for a chunk list of the image, and notes in the plans which layers it lists: the one that is pinned, or a signed one when a layer
    /// would have to wait without one. No list, or none to be had, is no error: layers then wait until all of them is there.
    ///
    /// # Errors
    /// [`PullError::PinnedChunks`] when one is pinned and another one is offered.
    pub(crate) async fn add_chunks(
        &self,
        image: &ExaminedImage,
        plans: &mut [LayerPlan],
    ) -> Result<(), PullError> {
        let layers: Vec<(Digest, u64)> = plans.iter().map(|plan| (plan.digest.clone(), plan.size)).collect();
        let fitting = |document: &[u8]| {
            let layers: Vec<_> = layers.iter().map(|(digest, size)| (digest, *size)).collect();
            let list = ChunkList::parse(document, &self.config().limits)?;
            list.fits(&image.manifest_digest, &layers).map(|()| list)
        };
        let list = match self.config().chunk_pins.of(&image.manifest_digest) {
            Some(pinned) => self.pinned_list(image, pinned, fitting).await.map_err(|why| {
                let (manifest, pinned) = (image.manifest_digest.clone(), pinned.clone());
                PullError::PinnedChunks { manifest, pinned, why }
            })?,
            None if plans.iter().all(LayerPlan::streams) => None,
            None => self.signed_list(image, fitting).await,
        };
        let Some(list) = list.map(Arc::new) else { return Ok(()) };
        for plan in plans {
            let at = list.layers.iter().position(|layer| layer.digest == plan.digest);
            plan.chunks = at.map(|at| ListedLayer { list: Arc::clone(&list), at });
        }
        Ok(())
    }

    async fn signed_list(
        &self,
        image: &ExaminedImage,
        fitting: impl Fn(&[u8]) -> Result<ChunkList, ChunkListError>,
    ) -> Option<ChunkList> {
        let read = |document: Vec<u8>| {
            let list = fitting(&document);
            list.inspect_err(|error| tracing::warn!(%error, "a signed chunk list does not count")).ok()
        };
        let found = self.find_signed(image, CHUNKS_TYPE, read).await;
        found.unwrap_or_else(|error| {
            tracing::warn!(%error, "chunk lists beside the image were not had: layers wait until all of them is there");
            None
        })
    }

    /// The list with the digest `pinned`; `None` when it is not to be had and nothing else is offered in its place.
    async fn pinned_list(
        &self,
        image: &ExaminedImage,
        pinned: &Digest,
        fitting: impl Fn(&[u8]) -> Result<ChunkList, ChunkListError>,
    ) -> Result<Option<ChunkList>, PinnedListError> {
        let max = self.config().limits.max_config_bytes;
        match self.registry().checked_blob(&image.reference, pinned, max).await {
            Ok(document) => return Ok(Some(fitting(&document)?)),
            Err(RegistryError::BlobDigest { registry, seen, .. }) => {
                return Err(PinnedListError::Changed { registry, seen });
            }
            Err(RegistryError::NotFound { .. }) => {
                let offered = self.referring_blobs(image, CHUNKS_TYPE).await;
                let offered: Vec<_> =
                    offered.iter().filter(|one| *one != pinned).map(Digest::as_str).collect();
                if !offered.is_empty() {
                    return Err(PinnedListError::Other { offered: offered.join(", ") });
                }
                tracing::warn!(%pinned, "the registry does not have the pinned chunk list: layers wait");
            }
            Err(error) => {
                tracing::warn!(%error, %pinned, "the pinned chunk list was not had: layers wait");
            }
        }
        Ok(None)
    }
}
