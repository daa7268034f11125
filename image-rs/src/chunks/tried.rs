//! What the places of an image had instead of a chunk.

use std::fmt;

use super::{ChunkHash, ListedChunk};
use crate::registry::RegistryError;

/// A chunk that no place of the image has as the list says. Nothing that came instead was decrypted.
#[derive(Debug, thiserror::Error)]
#[error(
    "chunk {} (bytes {} to {}) is had from nowhere: the chunk list says {}; {tried}",
    chunk.number, chunk.first, chunk.last, chunk.expected
)]
pub struct UnhadChunk {
    /// Which, and what the list says.
    pub chunk: ListedChunk,
    /// What each place had.
    pub tried: TriedPlaces,
}

/// Places and what they had, in their order.
#[derive(Debug)]
pub struct TriedPlaces(pub Vec<TriedPlace>);

/// A place, and what it had.
#[derive(Debug)]
pub struct TriedPlace {
    /// The node's copy, or a registry.
    pub place: String,
    /// What it had.
    pub had: Had,
}

/// What a place had instead of a chunk.
#[derive(Debug)]
pub enum Had {
    /// Other bytes, with this hash.
    Other(ChunkHash),
    /// Nothing.
    Nothing(RegistryError),
    /// So many other chunks of the layer were wrong that it was not asked.
    NotAsked {
        /// How many.
        wrong: usize,
    },
}

impl fmt::Display for TriedPlaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, TriedPlace { place, had }) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("; ")?;
            }
            match had {
                Had::Other(seen) => write!(f, "{place} sent one with the hash {seen}")?,
                // It names the place.
                Had::Nothing(error) => error.fmt(f)?,
                Had::NotAsked { wrong } => {
                    write!(f, "{place} was not asked, {wrong} chunks of the layer came wrong from there")?;
                }
            }
        }
        Ok(())
    }
}
