//! Makes the chunk list of an image that lies in a registry.

use oci_client::Reference;

use super::check::ChunkHasher;
use super::{ChunkList, LayerChunks, VERSION, check_chunk_bytes};
use crate::error::PullError;
use crate::manifest::Descriptor;
use crate::pull::{ImageClient, OnProgress, Progress};
use crate::registry::parse_reference;

impl ImageClient {
    /// The chunk list of the image `reference` names, of all its layers as the registry sends them, digests and sizes checked. No key is
    /// needed, and nothing is kept: memory is bounded by the list.
    ///
    /// # Errors
    /// See [`PullError`]; [`PullError::ChunkList`] when `chunk_bytes` is out of bounds, or guests would refuse the list for its length.
    pub async fn chunk_list(
        &self,
        reference: &str,
        chunk_bytes: u64,
        progress: OnProgress<'_>,
    ) -> Result<ChunkList, PullError> {
        check_chunk_bytes(chunk_bytes)?;
        let reference = parse_reference(reference)?;
        let (manifest, raw, _) = self.resolve(&reference).await?;
        let bytes = self.check_sizes(&manifest)?;
        let digest = raw.digest.to_string();
        progress(Progress::Resolved { digest, layers: manifest.layers.len(), bytes });
        let mut list = ChunkList { version: VERSION, manifest: raw.digest, chunk_bytes, layers: Vec::new() };
        for (layer, descriptor) in manifest.layers.iter().enumerate() {
            let told = |bytes| progress(Progress::Downloaded { layer, bytes, of: descriptor.size });
            // The same layer may lie in an image twice.
            if list.layers.iter().any(|known| known.digest.as_str() == descriptor.digest) {
                told(descriptor.size);
                continue;
            }
            let chunks = self.layer_chunks(&reference, layer, descriptor, chunk_bytes, told).await?;
            list.layers.push(chunks);
        }
        Ok(ChunkList::parse(&list.to_json()?, &self.config().limits)?)
    }

    async fn layer_chunks(
        &self,
        reference: &Reference,
        layer: usize,
        descriptor: &Descriptor,
        chunk_bytes: u64,
        told: impl Fn(u64),
    ) -> Result<LayerChunks, PullError> {
        let (digest, size) = (descriptor.digest()?, descriptor.size);
        let (mut whole, mut hasher) = (digest.hasher(), ChunkHasher::new(size, chunk_bytes));
        let (mut have, mut chunks) = (0, Vec::new());
        let read = self.registry().blob::<PullError>(reference, &digest, async |piece| {
            have += piece.len() as u64;
            if have > size {
                return Err(PullError::LayerSize { layer, expected: size, seen: have });
            }
            whole.update(&piece);
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let step = hasher.update(rest);
                rest = step.rest;
                chunks.extend(step.ended);
            }
            told(have);
            Ok(())
        });
        read.await?;
        let seen = whole.finish();
        if seen != digest {
            return Err(PullError::LayerDigest { layer, expected: digest, seen });
        }
        if have != size {
            return Err(PullError::LayerSize { layer, expected: size, seen: have });
        }
        Ok(LayerChunks { digest, size, chunks })
    }
}
