//! Content digests as OCI writes them (`sha256:<hex>`), and a hasher that computes them while bytes stream by.
//!
//! Source: OCI image-spec, `descriptor.md`, "Digests". Only the two registered algorithms are known; an
//! unknown one is refused, since what cannot be checked must not be used. Hex is lower case only: the
//! same content must not have two names.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256, SHA512};

/// Why a text is not a digest.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// The text does not have the form `algorithm:hex` of a known algorithm.
    #[error("not a digest: {seen:?}; expected sha256:<64 hex> or sha512:<128 hex>, in lower case")]
    Malformed {
        /// What was given, cut to 160 characters.
        seen: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Algorithm {
    Sha256,
    Sha512,
}

/// A checked content digest.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    text: String,
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::sha256();
        hasher.update(bytes);
        hasher.finish()
    }

    /// `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The hexadecimal part.
    pub fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The algorithm's name as it stands before the colon.
    pub fn algorithm(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// A hasher of this digest's algorithm.
    pub fn hasher(&self) -> Hasher {
        let context = match self.algorithm {
            Algorithm::Sha256 => Context::new(&SHA256),
            Algorithm::Sha512 => Context::new(&SHA512),
        };
        Hasher { algorithm: self.algorithm, context }
    }

    /// The digest of `bytes` in this digest's algorithm.
    pub fn of_same_kind(&self, bytes: &[u8]) -> Self {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish()
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || DigestError::Malformed { seen: text.chars().take(160).collect() };
        let (name, hex) = text.split_once(':').ok_or_else(malformed)?;
        let (algorithm, length) = match name {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return Err(malformed()),
        };
        let clean = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() != length || !clean {
            return Err(malformed());
        }
        Ok(Self { algorithm, text: text.to_owned() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Computes a [`Digest`] piece by piece.
#[derive(Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    context: Context,
}

impl Hasher {
    /// A SHA-256 hasher.
    pub fn sha256() -> Self {
        Self { algorithm: Algorithm::Sha256, context: Context::new(&SHA256) }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// The digest of everything taken in.
    pub fn finish(self) -> Digest {
        let name = match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        };
        let hex = hex::encode(self.context.finish().as_ref());
        Digest { algorithm: self.algorithm, text: format!("{name}:{hex}") }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_two_registered_algorithms() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::sha256(b"").as_str(), empty);
        let parsed: Digest = empty.parse().unwrap();
        assert_eq!(parsed.of_same_kind(b""), parsed);
        let long: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert!(long.of_same_kind(b"").hex().starts_with("cf83e1357eef"));
    }

    #[test]
    fn refuses_other_forms() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
            "sha256:../../../../etc/passwd0000000000000000000000000000000000000000000",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
