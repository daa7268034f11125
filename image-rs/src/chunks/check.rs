//! The chunks of a layer, hashed and compared as they come.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};

use super::{ChunkHash, ChunkList};

/// A chunk that is not what the list says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WrongChunk {
    /// Which.
    pub(crate) chunk: ListedChunk,
    /// Hash of what came.
    pub(crate) seen: ChunkHash,
}

/// A chunk, and what the list says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedChunk {
    /// Number of the chunk in its layer, from 0.
    pub number: u64,
    /// Offset of its first byte in the layer.
    pub first: u64,
    /// Offset of its last byte.
    pub last: u64,
    /// What the list says.
    pub expected: ChunkHash,
}

impl ListedChunk {
    /// Whether byte `at` of the layer lies in it.
    pub(crate) fn has(&self, at: u64) -> bool {
        (self.first..=self.last).contains(&at)
    }
}

/// A piece of a layer, cut where a chunk ends.
pub(super) struct Step<'b> {
    /// What belongs to the chunk that is coming.
    pub(super) part: &'b [u8],
    /// What comes after it.
    pub(super) rest: &'b [u8],
    /// The chunk's hash, when `part` ends it.
    pub(super) ended: Option<ChunkHash>,
}

/// Cuts a stream into chunks and hashes them.
pub(super) struct ChunkHasher {
    size: u64,
    chunk_bytes: u64,
    at: u64,
    context: Context,
}

impl ChunkHasher {
    /// For a layer of `size` bytes.
    pub(super) fn new(size: u64, chunk_bytes: u64) -> Self {
        Self { size, chunk_bytes: chunk_bytes.max(1), at: 0, context: Context::new(&SHA256) }
    }

    /// Takes in what of `bytes` belongs to the chunk that is coming. Bytes beyond the size belong to none.
    pub(super) fn update<'b>(&mut self, bytes: &'b [u8]) -> Step<'b> {
        if self.at >= self.size {
            return Step { part: bytes, rest: &[], ended: None };
        }
        let end = (self.at / self.chunk_bytes + 1).saturating_mul(self.chunk_bytes).min(self.size);
        let room = usize::try_from(end - self.at).unwrap_or(usize::MAX);
        let (part, rest) = bytes.split_at(room.min(bytes.len()));
        self.context.update(part);
        self.at += part.len() as u64;
        let mut ended = None;
        if self.at == end {
            let hash = std::mem::replace(&mut self.context, Context::new(&SHA256)).finish();
            ended = hash.as_ref().try_into().ok().map(ChunkHash);
        }
        Step { part, rest, ended }
    }
}

/// A layer's place in a list.
#[derive(Debug, Clone)]
pub(crate) struct ListedLayer {
    pub(super) list: Arc<ChunkList>,
    pub(super) at: usize,
}

impl ListedLayer {
    /// Begins to check it.
    pub(crate) fn check(&self) -> ChunkCheck {
        let size = self.list.layers.get(self.at).map_or(0, |layer| layer.size);
        ChunkCheck { hasher: ChunkHasher::new(size, self.list.chunk_bytes), listed: self.clone() }
    }

    /// The chunk in which byte `at` of the layer lies.
    pub(crate) fn chunk_at(&self, at: u64) -> Option<ListedChunk> {
        let layer = self.list.layers.get(self.at)?;
        let chunk_bytes = self.list.chunk_bytes.max(1);
        let number = at / chunk_bytes;
        let expected = *layer.chunks.get(usize::try_from(number).ok()?)?;
        let first = number * chunk_bytes;
        let last = first.saturating_add(chunk_bytes).min(layer.size).saturating_sub(1);
        Some(ListedChunk { number, first, last, expected })
    }
}

/// Compares the chunks of a layer with the list.
pub(crate) struct ChunkCheck {
    listed: ListedLayer,
    hasher: ChunkHasher,
}

impl ChunkCheck {
    /// Takes in what of `bytes` belongs to the chunk that is coming; gives that, the rest, and whether the chunk is whole now, and so right.
    ///
    /// # Errors
    /// When the chunk is whole and is not what the list says. Then the same chunk is expected once more, from its beginning.
    pub(crate) fn update<'b>(&mut self, bytes: &'b [u8]) -> Result<(&'b [u8], &'b [u8], bool), WrongChunk> {
        let coming = self.listed.chunk_at(self.hasher.at);
        let Step { part, rest, ended } = self.hasher.update(bytes);
        match (ended, coming) {
            (Some(seen), Some(chunk)) if chunk.expected != seen => {
                self.hasher.at = chunk.first;
                Err(WrongChunk { chunk, seen })
            }
            // The list has a hash for each chunk of the size.
            (ended, coming) => Ok((part, rest, ended.is_some() && coming.is_some())),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::list;
    use super::*;

    /// Bytes that were let through, and what ended it.
    fn through(listed: &ListedLayer, blob: &[u8], cuts: &[usize]) -> (u64, Option<WrongChunk>) {
        let mut check = listed.check();
        let (mut let_through, mut have, mut at) = (0, 0, 0);
        for cut in cuts.iter().copied().chain([blob.len()]) {
            let mut rest = &blob[at.min(cut)..cut];
            at = at.max(cut);
            while !rest.is_empty() {
                match check.update(rest) {
                    Ok((part, next, whole)) => {
                        have += part.len() as u64;
                        let_through = if whole { have } else { let_through };
                        rest = next;
                    }
                    Err(wrong) => return (let_through, Some(wrong)),
                }
            }
        }
        (let_through, None)
    }

    proptest! {
        #[test]
        fn a_flipped_bit_stops_its_chunk_and_lets_those_before_through(
            length in 1usize..300_000,
            mut cuts in prop::collection::vec(0usize..300_000, 0..12),
            flip in any::<prop::sample::Index>(),
        ) {
            let blob: Vec<u8> = (0..length).map(|n| (n * 7 / 3) as u8).collect();
            cuts.iter_mut().for_each(|cut| *cut %= length);
            cuts.sort_unstable();
            let size = 64 << 10;
            let listed = ListedLayer { list: Arc::new(list(&[b"other", &blob], size)), at: 1 };
            let (all, wrong) = through(&listed, &blob, &cuts);
            prop_assert!(wrong.is_none());
            prop_assert_eq!(all, length as u64);
            let (mut bad, at) = (blob, flip.index(length));
            bad[at] ^= 1;
            let (before, wrong) = through(&listed, &bad, &cuts);
            let (WrongChunk { chunk: wrong, seen }, chunk) = (wrong.unwrap(), at as u64 / size);
            prop_assert_eq!(before, chunk * size);
            prop_assert_eq!((wrong.number, wrong.first), (chunk, chunk * size));
            prop_assert_eq!(wrong.last, ((chunk + 1) * size).min(length as u64) - 1);
            prop_assert_ne!(wrong.expected, seen);
        }
    }

    #[test]
    fn what_comes_after_the_last_chunk_is_not_let_through() {
        let blob = [5; 100_000];
        let listed = ListedLayer { list: Arc::new(list(&[&blob], 64 << 10)), at: 0 };
        let longer = [&blob[..], &[5; 90_000]].concat();
        let (let_through, wrong) = through(&listed, &longer, &[]);
        assert!(let_through == 100_000 && wrong.is_none());
        // a shorter one: its last chunk is not whole
        assert_eq!(through(&listed, &blob[..99_999], &[]).0, 64 << 10);
    }
}
