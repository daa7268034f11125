//! Chunk lists that the measured init-data pins: which list an image has, so that nobody has to sign one.
//!
//! A list is too long for the init-data (67 bytes for each MiB), so its digest stands there beside the digest of the image's manifest. The list
//! itself is a blob of the image's repository, or of the node's copy, and is asked for by that digest.
//!
//! ```json
//! {"version": 1, "manifest": "sha256:…", "list": "sha256:…"}
//! ```

use serde::{Deserialize, Serialize};

use super::{ChunkList, ChunkListError, QUOTED, digest_text};
use crate::digest::Digest;

/// Form of the document.
const VERSION: u32 = 1;
/// Most pins of one init-data.
const MOST: usize = 64;

/// Why a pin is refused.
#[derive(Debug, thiserror::Error)]
pub enum ChunkPinError {
    /// It is no such document.
    #[error("this pins no chunk list of an image: {0}")]
    Json(#[from] serde_json::Error),
    /// Something that is not known here, or contradicts the rest.
    #[error("pins of chunk lists: the {member} is {seen}, expected {expected}")]
    Member {
        /// Which.
        member: &'static str,
        /// What it says.
        seen: String,
        /// What it may say.
        expected: String,
    },
}

/// Which chunk list an image has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkPin {
    version: u32,
    #[serde(with = "digest_text")]
    manifest: Digest,
    #[serde(with = "digest_text")]
    list: Digest,
}

impl ChunkPin {
    /// The pin of `list`.
    ///
    /// # Errors
    /// Never: everything in a list is text or a number.
    pub fn of(list: &ChunkList) -> Result<Self, ChunkListError> {
        let digest = Digest::sha256(&list.to_json()?);
        Ok(Self { version: VERSION, manifest: list.manifest.clone(), list: digest })
    }

    /// Reads a document.
    ///
    /// # Errors
    /// When it is none, or of another version.
    pub fn parse(text: &str) -> Result<Self, ChunkPinError> {
        let read: Self = serde_json::from_str(text)?;
        if read.version == VERSION {
            return Ok(read);
        }
        refused("version", &read.version.to_string(), "1")
    }

    /// The document.
    ///
    /// # Errors
    /// Never: everything in it is text or a number.
    pub fn to_json(&self) -> Result<Vec<u8>, ChunkPinError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Digest of the list's document.
    #[must_use]
    pub fn list(&self) -> &Digest {
        &self.list
    }
}

/// The pins of an init-data.
#[derive(Clone, Debug, Default)]
pub struct ChunkPins(Vec<ChunkPin>);

impl ChunkPins {
    /// Reads them.
    ///
    /// # Errors
    /// When one is none, an image has two, or there are too many.
    pub fn parse(texts: &[String]) -> Result<Self, ChunkPinError> {
        if texts.len() > MOST {
            return refused("number", &texts.len().to_string(), &format!("at most {MOST}"));
        }
        let mut pins: Vec<ChunkPin> = Vec::new();
        for text in texts {
            let pin = ChunkPin::parse(text)?;
            if let Some(other) = pins.iter().find(|other| other.manifest == pin.manifest && **other != pin) {
                let expected = format!("{}, as another pin of image {} says", other.list, pin.manifest);
                return refused("list", pin.list.as_str(), &expected);
            }
            pins.push(pin);
        }
        Ok(Self(pins))
    }

    /// Digest of the list of the image with this manifest.
    pub(crate) fn of(&self, manifest: &Digest) -> Option<&Digest> {
        self.0.iter().find(|pin| pin.manifest == *manifest).map(|pin| &pin.list)
    }
}

fn refused<T>(member: &'static str, seen: &str, expected: &str) -> Result<T, ChunkPinError> {
    let seen = seen.chars().take(QUOTED).collect();
    Err(ChunkPinError::Member { member, seen, expected: expected.to_owned() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::list;
    use super::*;

    #[test]
    fn a_pin_names_the_lists_document_and_the_image() {
        let list = list(&[&[1; 200_000]], 64 << 10);
        let pin = ChunkPin::of(&list).unwrap();
        assert_eq!(*pin.list(), Digest::sha256(&list.to_json().unwrap()));
        let text = String::from_utf8(pin.to_json().unwrap()).unwrap();
        assert_eq!(ChunkPin::parse(&text).unwrap(), pin);
        let pins = ChunkPins::parse(&[text.clone(), text]).unwrap();
        assert_eq!(pins.of(list.manifest()), Some(pin.list()));
        assert_eq!(pins.of(&Digest::sha256(b"other")), None);
    }

    #[test]
    fn what_contradicts_itself_or_is_not_known_is_refused_by_name() {
        let good = json!({"version": 1, "manifest": Digest::sha256(b"m").as_str(), "list": Digest::sha256(b"l").as_str()});
        let parse = |texts: &[&Value]| {
            let texts: Vec<String> = texts.iter().map(|text| text.to_string()).collect();
            ChunkPins::parse(&texts).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(parse(&[&good]), Ok(()));
        for (member, wrong, words) in [
            ("version", json!(2), "the version is 2, expected 1"),
            ("list", json!("sha256:abc"), "not a digest"),
            ("manifest", json!(5), "pins no chunk list"),
            ("more", json!(1), "unknown field"),
        ] {
            let mut bad = good.clone();
            bad[member] = wrong;
            let error = parse(&[&bad]).unwrap_err();
            assert!(error.contains(words), "{member}: {error}");
        }
        let mut other = good.clone();
        other["list"] = json!(Digest::sha256(b"other").as_str());
        let error = parse(&[&good, &other]).unwrap_err();
        assert!(error.contains(Digest::sha256(b"l").as_str()) && error.contains("another pin"), "{error}");
        assert!(parse(&vec![&good; MOST + 1]).unwrap_err().contains("number is 65, expected at most 64"));
    }
}
