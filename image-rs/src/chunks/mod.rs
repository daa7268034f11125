//! The chunk list of an image: hashes of the pieces of its layers, so that a piece can be checked before the rest has come.
//!
//! The digest of a layer, and the HMAC of an encrypted one, say something when all of it is there. A small JSON document beside the image names the SHA-256 of
//! each chunk of each layer's blob, as the blob lies in the registry (encrypted layers encrypted: who makes the list needs no key). It lies
//! there as an OCI referrer (image-spec `manifest.md`, `subject`) and counts when the measured init-data pins its digest ([`ChunkPin`]), or it is
//! signed as the signature policy demands of the image (`crate::referrers`). Then each chunk goes to decryption as soon as its hash is right, and no byte before that.
//!
//! A flat list under one signature, or one digest, is a hash tree of depth one: a hash stands for a chunk by its place in the list, so leaves and
//! inner nodes need not be told apart as in RFC 6962, section 2.1 (`docs/decisions/0020-chunk-lists.md`).
//!
//! ```json
//! {"version": 1, "manifest": "sha256:…", "chunk_bytes": 1048576,
//!  "layers": [{"digest": "sha256:…", "size": 2500000, "chunks": ["<64 hex>", "<64 hex>", "<64 hex>"]}]}
//! ```
//!
//! The last chunk of a layer is as long as what is left. Layers of the image that are not listed are pulled as without a list.

mod check;
mod make;
mod pin;
mod pulled;
mod tried;

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::check::ListedChunk;
pub(crate) use self::check::{ChunkCheck, ListedLayer, WrongChunk};
pub use self::pin::{ChunkPin, ChunkPinError, ChunkPins};
pub use self::pulled::PinnedListError;
pub use self::tried::{Had, TriedPlace, TriedPlaces, UnhadChunk};
use crate::Limits;
use crate::digest::Digest;

/// Type of the document as a referrer of its image (OCI image-spec, `artifactType`).
pub const CHUNKS_TYPE: &str = "application/vnd.kata-cc.image.chunks.v1+json";
/// Bytes of a chunk where nothing else is said.
pub const CHUNK_BYTES: u64 = 1 << 20;
/// Fewest bytes of a chunk: with less the list grows beyond what it saves.
pub const MIN_CHUNK_BYTES: u64 = 64 << 10;
/// Most bytes of a chunk: so many bytes of each layer lie in the guest before anything can be done with them.
pub const MAX_CHUNK_BYTES: u64 = 16 << 20;
/// Form of the document.
const VERSION: u32 = 1;
/// Longest text that an error repeats.
const QUOTED: usize = 160;

/// Why a chunk list is refused.
#[derive(Debug, thiserror::Error)]
pub enum ChunkListError {
    /// It is no such document.
    #[error("this is no chunk list of an image: {0}")]
    Json(#[from] serde_json::Error),
    /// A member that is not known here, or does not fit the image.
    #[error("the chunk list's {member} is {seen}, expected {expected}")]
    Member {
        /// Which.
        member: &'static str,
        /// What it says.
        seen: String,
        /// What it may say.
        expected: String,
    },
    /// A layer in it that does not fit itself or the image.
    #[error("the chunk list gives layer {digest} {what} {seen}, expected {expected}")]
    Layer {
        /// Which.
        digest: Digest,
        /// Its size or its chunks.
        what: &'static str,
        /// What the list says.
        seen: u64,
        /// What fits.
        expected: u64,
    },
}

fn refused<T>(member: &'static str, seen: &dyn fmt::Display, expected: &str) -> Result<T, ChunkListError> {
    let seen = seen.to_string().chars().take(QUOTED).collect();
    Err(ChunkListError::Member { member, seen, expected: expected.to_owned() })
}

/// SHA-256 of a chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChunkHash(pub(crate) [u8; 32]);

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ChunkHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for ChunkHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Hex;
        impl serde::de::Visitor<'_> for Hex {
            type Value = ChunkHash;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a chunk's SHA-256: 64 hexadecimal digits in lower case")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ChunkHash, E> {
                let mut hash = [0; 32];
                let good = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
                    && hex::decode_to_slice(text, &mut hash).is_ok();
                // The text is not repeated whole: whoever wrote it chose its length.
                let seen = text.chars().take(QUOTED).collect::<String>();
                if good {
                    Ok(ChunkHash(hash))
                } else {
                    Err(E::invalid_value(serde::de::Unexpected::Str(&seen), &self))
                }
            }
        }
        deserializer.deserialize_str(Hex)
    }
}

mod digest_text {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(digest.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The chunk list of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkList {
    version: u32,
    #[serde(with = "digest_text")]
    manifest: Digest,
    chunk_bytes: u64,
    layers: Vec<LayerChunks>,
}

/// The chunks of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerChunks {
    #[serde(with = "digest_text")]
    digest: Digest,
    size: u64,
    chunks: Vec<ChunkHash>,
}

impl LayerChunks {
    /// Digest of the layer, as the manifest names it.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Bytes of the layer in the registry.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Hashes of its chunks, in their order.
    #[must_use]
    pub fn chunks(&self) -> &[ChunkHash] {
        &self.chunks
    }
}

impl ChunkList {
    /// Reads a document, as long and of as many layers as `limits` let an image's configuration be.
    ///
    /// # Errors
    /// When it is none, or says what this version does not know or what contradicts itself.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, ChunkListError> {
        if bytes.len() as u64 > limits.max_config_bytes {
            return refused("length", &bytes.len(), &format!("at most {} bytes", limits.max_config_bytes));
        }
        let read: Self = serde_json::from_slice(bytes)?;
        if read.version != VERSION {
            return refused("version", &read.version, "1");
        }
        check_chunk_bytes(read.chunk_bytes)?;
        if read.layers.len() > limits.max_layers {
            return refused(
                "number of layers",
                &read.layers.len(),
                &format!("at most {}", limits.max_layers),
            );
        }
        let mut listed = HashSet::new();
        for layer in &read.layers {
            if !listed.insert(layer.digest.as_str()) {
                return refused("layer", &layer.digest, "each layer once");
            }
            let (seen, expected) = (layer.chunks.len() as u64, layer.size.div_ceil(read.chunk_bytes));
            if seen != expected {
                let digest = layer.digest.clone();
                return Err(ChunkListError::Layer { digest, what: "so many chunks:", seen, expected });
            }
        }
        Ok(read)
    }

    /// The document.
    ///
    /// # Errors
    /// Never: everything in it is text or a number.
    pub fn to_json(&self) -> Result<Vec<u8>, ChunkListError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Digest of the manifest of the image that it is for.
    #[must_use]
    pub fn manifest(&self) -> &Digest {
        &self.manifest
    }

    /// Bytes of a chunk, but for each layer's last.
    #[must_use]
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// Its layers.
    #[must_use]
    pub fn layers(&self) -> &[LayerChunks] {
        &self.layers
    }

    /// Whether it is for the image of this manifest, with these layers (digest and size).
    ///
    /// # Errors
    /// When it is for another manifest, names another layer, or a layer's size is another.
    pub fn fits(&self, manifest: &Digest, image: &[(&Digest, u64)]) -> Result<(), ChunkListError> {
        if self.manifest != *manifest {
            return refused("manifest", &self.manifest, manifest.as_str());
        }
        for layer in &self.layers {
            let mut same = image.iter().filter(|(digest, _)| **digest == layer.digest).peekable();
            if same.peek().is_none() {
                return refused("layer", &layer.digest, "a layer of the image");
            }
            if let Some((_, expected)) = same.find(|(_, size)| *size != layer.size) {
                let (digest, seen, expected) = (layer.digest.clone(), layer.size, *expected);
                return Err(ChunkListError::Layer { digest, what: "so many bytes:", seen, expected });
            }
        }
        Ok(())
    }
}

fn check_chunk_bytes(bytes: u64) -> Result<(), ChunkListError> {
    if (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&bytes) {
        return Ok(());
    }
    refused("chunk_bytes", &bytes, &format!("{MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}"))
}

/// A layer that lists its own chunks.
#[cfg(test)]
pub(crate) fn listed(blob: &[u8], chunk_bytes: u64) -> ListedLayer {
    ListedLayer { list: std::sync::Arc::new(tests::list(&[blob], chunk_bytes)), at: 0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::check::ChunkHasher;
    use super::*;

    /// The chunks of `blob`.
    fn chunks_of(blob: &[u8], chunk_bytes: u64) -> LayerChunks {
        let mut hasher = ChunkHasher::new(blob.len() as u64, chunk_bytes);
        let (mut rest, mut chunks) = (blob, Vec::new());
        while !rest.is_empty() {
            let step = hasher.update(rest);
            rest = step.rest;
            chunks.extend(step.ended);
        }
        LayerChunks { digest: Digest::sha256(blob), size: blob.len() as u64, chunks }
    }

    pub(super) fn list(blobs: &[&[u8]], chunk_bytes: u64) -> ChunkList {
        let layers = blobs.iter().map(|blob| chunks_of(blob, chunk_bytes)).collect();
        ChunkList { version: VERSION, manifest: Digest::sha256(b"manifest"), chunk_bytes, layers }
    }

    fn parse(document: &Value) -> Result<ChunkList, ChunkListError> {
        ChunkList::parse(document.to_string().as_bytes(), &Limits::default())
    }

    #[test]
    fn every_member_counts() {
        let list = list(&[&[1; 200_000], &[2; 10]], 64 << 10);
        let good: Value = serde_json::from_slice(&list.to_json().unwrap()).unwrap();
        assert_eq!(parse(&good).unwrap(), list);
        assert_eq!(list.layers[0].chunks.len(), 4);
        assert_eq!(
            good["layers"][1]["chunks"],
            json!([hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &[2; 10]))])
        );
        for (place, wrong, words) in [
            ("/version", json!(2), "version is 2, expected 1"),
            ("/manifest", json!("sha256:abc"), "not a digest"),
            ("/chunk_bytes", json!((64 << 10) - 1), "chunk_bytes is 65535, expected 65536 to 16777216"),
            ("/chunk_bytes", json!((16 << 20) + 1), "chunk_bytes is 16777217"),
            ("/chunk_bytes", json!(128 << 10), "so many chunks: 4, expected 2"),
            ("/layers/0/digest", json!(format!("sha256:{}", "AB".repeat(32))), "not a digest"),
            ("/layers/0/digest", good["layers"][1]["digest"].clone(), "each layer once"),
            ("/layers/0/size", json!(4 << 16 | 1), "so many chunks: 4, expected 5"),
            ("/layers/0/size", json!(3 << 16), "so many chunks: 4, expected 3"),
            ("/layers/0/size", json!(-1), "integer"),
            ("/layers/0/chunks/1", json!("AB".repeat(32)), "64 hexadecimal digits in lower case"),
            ("/layers/0/chunks/1", json!("ab".repeat(31)), "64 hexadecimal digits in lower case"),
            ("/layers/0/chunks/1", json!(7), "64 hexadecimal digits"),
            ("/layers/0", json!({"digest": "x"}), "no chunk list"),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(place).unwrap() = wrong;
            let error = parse(&bad).unwrap_err().to_string();
            assert!(error.contains(words), "{place}: {error}");
        }
        for place in ["", "/layers/0"] {
            let mut more = good.clone();
            more.pointer_mut(place).unwrap()["more"] = json!(1);
            assert!(parse(&more).unwrap_err().to_string().contains("unknown field"), "{place}");
        }
        let text = good.to_string();
        assert!(ChunkList::parse(format!("{text} x").as_bytes(), &Limits::default()).is_err());
    }

    #[test]
    fn it_is_bounded_as_a_configuration_is() {
        let text = list(&[&[1; 10], &[2; 10]], CHUNK_BYTES).to_json().unwrap();
        let parse = |limits: Limits| ChunkList::parse(&text, &limits).map(drop).map_err(|e| e.to_string());
        let length = text.len() as u64;
        let short = |max_config_bytes| Limits { max_config_bytes, ..Limits::default() };
        assert_eq!(parse(short(length)), Ok(()));
        assert!(parse(short(length - 1)).unwrap_err().contains("length"));
        let error = parse(Limits { max_layers: 1, ..Limits::default() }).unwrap_err();
        assert!(error.contains("number of layers is 2, expected at most 1"), "{error}");
    }

    #[test]
    fn it_is_of_one_image_alone() {
        let (manifest, other) = (Digest::sha256(b"manifest"), Digest::sha256(b"other"));
        let list = list(&[&[1; 10], &[2; 20]], CHUNK_BYTES);
        let (one, two) = (list.layers[0].digest.clone(), list.layers[1].digest.clone());
        let fits = |manifest: &Digest, image: &[(&Digest, u64)]| {
            list.fits(manifest, image).map_err(|error| error.to_string())
        };
        assert_eq!(fits(&manifest, &[(&two, 20), (&other, 5), (&one, 10), (&one, 10)]), Ok(()));
        assert!(fits(&other, &[(&one, 10), (&two, 20)]).unwrap_err().contains("manifest"));
        assert!(fits(&manifest, &[(&one, 10)]).unwrap_err().contains("a layer of the image"));
        for wrong in [[(&one, 11), (&two, 20), (&one, 10)], [(&one, 10), (&two, 20), (&one, 11)]] {
            let error = fits(&manifest, &wrong).unwrap_err();
            assert!(error.contains("so many bytes: 10, expected 11"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = ChunkList::parse(&text, &Limits::default());
        }

        #[test]
        fn is_read_as_written(
            chunk_bytes in MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES,
            layers in prop::collection::vec((any::<u64>(), 0u64..20, any::<[u8; 32]>()), 0..6),
        ) {
            let layer = |(number, (mark, count, hash)): (usize, (u64, u64, [u8; 32]))| {
                let cut = if count == 0 { 0 } else { mark % chunk_bytes };
                LayerChunks {
                    digest: Digest::sha256(&number.to_le_bytes()),
                    size: count * chunk_bytes - cut,
                    chunks: vec![ChunkHash(hash); usize::try_from(count).unwrap()],
                }
            };
            let layers = layers.into_iter().enumerate().map(layer).collect();
            let list = ChunkList { version: VERSION, manifest: Digest::sha256(b"m"), chunk_bytes, layers };
            let text = list.to_json().unwrap();
            prop_assert_eq!(ChunkList::parse(&text, &Limits::default()).unwrap(), list);
        }
    }
}
