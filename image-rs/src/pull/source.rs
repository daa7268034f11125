//! The network's half of a layer's download: the layer's places, asked one after another.
//!
//! A place that breaks off is followed by the next one, from where it broke off. Where chunks are listed, the writer's half tells of one that is
//! wrong, and the next place is asked from the beginning of that chunk on; that place then stays the one that is asked. Only when no place has the
//! right bytes the layer is not to be had. So a chunk is asked for once at each place, and a place for no more of the layer once
//! [`MOST_WRONG`] of its chunks were wrong: places that lie by turns cannot keep a guest busy.

use tokio::sync::mpsc;

use crate::chunks::{Had, ListedChunk, TriedPlace, TriedPlaces, UnhadChunk, WrongChunk};
use crate::layer::{Arrived, LayerPlan};
use crate::registry::{BlobPlace, Ended, Registry, RegistryError};

/// Wrong chunks of a layer after which a place is asked for no more of it.
const MOST_WRONG: usize = 8;

/// Why the network's half stopped.
pub(super) enum Stopped {
    /// No place has the layer, or the rest of it.
    Registry(RegistryError),
    /// No place has this chunk right.
    Chunk(UnhadChunk),
    /// The other half is gone, with the error to report.
    Writer,
}

/// What ended one place's turn.
enum Turn {
    /// The place failed.
    Failed(RegistryError),
    /// The writer's half tells of a chunk.
    Wrong(WrongChunk),
    /// The writer's half is gone.
    Writer,
}

/// A place of the layer, and what it did.
struct Place {
    blob: BlobPlace,
    /// Chunks that were wrong.
    wrong: usize,
    /// The last of them.
    last_wrong: Option<WrongChunk>,
    /// Why it is not asked again.
    failed: Option<RegistryError>,
}

impl Place {
    /// Whether it may be asked for the layer from byte `from` on.
    fn may_have(&self, from: u64) -> bool {
        let lied = self.last_wrong.as_ref().is_some_and(|wrong| wrong.chunk.has(from));
        self.failed.is_none() && self.wrong < MOST_WRONG && !lied
    }

    /// What it had instead of `chunk`.
    fn had(self, chunk: ListedChunk) -> TriedPlace {
        let had = match (self.last_wrong, self.failed) {
            (Some(wrong), _) if wrong.chunk == chunk => Had::Other(wrong.seen),
            (_, Some(error)) => Had::Nothing(error),
            _ => Had::NotAsked { wrong: self.wrong },
        };
        TriedPlace { place: self.blob.to_string(), had }
    }
}

/// A layer, and where it can be had.
pub(super) struct LayerSource<'s> {
    registry: &'s Registry,
    plan: &'s LayerPlan,
    places: Vec<Place>,
}

impl<'s> LayerSource<'s> {
    /// The layer of `plan` at `places`.
    pub(super) fn new(registry: &'s Registry, plan: &'s LayerPlan, places: Vec<BlobPlace>) -> Self {
        let place = |blob| Place { blob, wrong: 0, last_wrong: None, failed: None };
        Self { registry, plan, places: places.into_iter().map(place).collect() }
    }

    /// Sends the layer to the writer's half, which tells of wrong chunks by `wrong` until it has all of them.
    ///
    /// # Errors
    /// See [`Stopped`].
    pub(super) async fn send(
        mut self,
        writer: mpsc::Sender<Arrived>,
        mut wrong: mpsc::Receiver<WrongChunk>,
    ) -> Result<(), Stopped> {
        let mut have = 0;
        loop {
            let began = have;
            let Some(at) = self.places.iter().position(|place| place.may_have(have)) else {
                return Err(self.nowhere(have));
            };
            let place = &mut self.places[at];
            let turn = turn(self.registry, self.plan, &place.blob, &mut have, &writer, &mut wrong);
            match turn.await {
                Ok(()) => return Ok(()),
                Err(Turn::Writer) => return Err(Stopped::Writer),
                Err(Turn::Failed(error)) => {
                    tracing::warn!(%error, layer = self.plan.number, have, "a place of the layer is asked no more");
                    place.failed = Some(error);
                }
                Err(Turn::Wrong(WrongChunk { chunk, seen })) => {
                    have = chunk.first;
                    // The beginning of a chunk in which another place broke off came from there: all of it is asked for here first.
                    if began <= chunk.first {
                        let ListedChunk { number, first, last, expected } = chunk;
                        tracing::warn!(
                            layer = self.plan.number, place = %place.blob, chunk = number, first, last, %expected, %seen,
                            "a chunk came wrong, and nothing of it was decrypted: the other places are asked for it"
                        );
                        place.wrong += 1;
                        place.last_wrong = Some(WrongChunk { chunk, seen });
                    }
                    if writer.send(Arrived::Again).await.is_err() {
                        return Err(Stopped::Writer);
                    }
                }
            }
        }
    }

    /// The reason to tell when no place is left that could have byte `have` of the layer.
    fn nowhere(self, have: u64) -> Stopped {
        let lied = self.places.iter().any(|place| place.last_wrong.is_some());
        let chunk = self.plan.chunks.as_ref().filter(|_| lied).and_then(|listed| listed.chunk_at(have));
        if let Some(chunk) = chunk {
            let tried = self.places.into_iter().map(|place| place.had(chunk)).collect();
            return Stopped::Chunk(UnhadChunk { chunk, tried: TriedPlaces(tried) });
        }
        let last = self.places.into_iter().filter_map(|place| place.failed).next_back();
        Stopped::Registry(last.unwrap_or_else(|| RegistryError::NoPlace { digest: self.plan.digest.clone() }))
    }
}

/// Sends what `place` has of the layer from byte `have` on, which is kept up to date, and waits for the writer's word on it.
async fn turn(
    registry: &Registry,
    plan: &LayerPlan,
    place: &BlobPlace,
    have: &mut u64,
    writer: &mpsc::Sender<Arrived>,
    wrong: &mut mpsc::Receiver<WrongChunk>,
) -> Result<(), Turn> {
    let mut sink = async |piece| writer.send(Arrived::Piece(piece)).await;
    // A place that stops sending must not keep the other half from being heard.
    let sent = tokio::select! {
        Some(chunk) = wrong.recv() => return Err(Turn::Wrong(chunk)),
        () = writer.closed() => return Err(Turn::Writer),
        sent = registry.blob_from(place, &plan.digest, have, &mut sink) => sent,
    };
    match sent {
        Err(Ended::Sink(_)) => return Err(Turn::Writer),
        Err(Ended::Place(error)) => return Err(Turn::Failed(error)),
        // Without a list the writer tells what is wrong with it.
        Ok(()) if plan.chunks.is_some() && *have < plan.size => {
            let (digest, expected, seen) = (plan.digest.clone(), plan.size, *have);
            let place = place.to_string();
            return Err(Turn::Failed(RegistryError::Short { place, digest, expected, seen }));
        }
        Ok(()) => {}
    }
    writer.send(Arrived::All).await.map_err(|_| Turn::Writer)?;
    // The last chunks may be wrong.
    match wrong.recv().await {
        Some(chunk) => Err(Turn::Wrong(chunk)),
        None => Ok(()),
    }
}
