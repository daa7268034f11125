//! The chunk list of an image that is pulled.

use std::sync::Arc;

use super::{CHUNKS_TYPE, ChunkList, ListedLayer};
use crate::digest::Digest;
use crate::layer::LayerPlan;
use crate::pull::{ExaminedImage, ImageClient};

impl ImageClient {
    /// Looks for a signed chunk list of the image, when a layer would have to wait without one, and notes in the plans which layers it lists.
    /// No list, or none to be had, is no error: layers then wait until all of them is there.
    pub(crate) async fn add_chunks(&self, image: &ExaminedImage, plans: &mut [LayerPlan]) {
        if plans.iter().all(LayerPlan::streams) {
            return;
        }
        let layers: Vec<(&Digest, u64)> = plans.iter().map(|plan| (&plan.digest, plan.size)).collect();
        let limits = &self.config().limits;
        let read = |document: Vec<u8>| {
            let list = ChunkList::parse(&document, limits);
            let fitting = list.and_then(|list| list.fits(&image.manifest_digest, &layers).map(|()| list));
            match fitting {
                Ok(list) => Some(list),
                Err(error) => {
                    tracing::warn!(%error, "a signed chunk list does not count");
                    None
                }
            }
        };
        let list = match self.find_signed(image, CHUNKS_TYPE, read).await {
            Ok(Some(list)) => Arc::new(list),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "chunk lists beside the image were not had: layers wait until all of them is there");
                return;
            }
        };
        for plan in plans {
            let at = list.layers.iter().position(|layer| layer.digest == plan.digest);
            plan.chunks = at.map(|at| ListedLayer { list: Arc::clone(&list), at });
        }
    }
}
