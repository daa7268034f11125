//! Versions of the protocol: which are spoken, and how a client's version is read.
//!
//! Trustee's server takes exactly one version, so its clients break with every upgrade of the server (trustee#758,
//! trustee#1613). Three have been released, and they differ in two bodies only:
//!
//! | version | Trustee | body of `/attest` | hashed into the report data | answer of a resource |
//! |---|---|---|---|---|
//! | 0.1.1 | v0.10, v0.11 | `tee-pubkey`, `tee-evidence` (text) | nonce and key | header in clear, tag behind the ciphertext, nothing authenticated besides |
//! | 0.2.0 | v0.12, v0.13 | the same (`tee-evidence` text or JSON) | nonce and key | flattened JWE of RFC 7516 |
//! | 0.4.0 | since v0.14 | `runtime-data`, `init-data`, composite `tee-evidence` | those, and the text of the additional evidence | the same |

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A released version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProtocolVersion {
    /// Trustee v0.10 and v0.11.
    #[serde(rename = "0.1.1")]
    V0_1_1,
    /// Trustee v0.12 and v0.13.
    #[serde(rename = "0.2.0")]
    V0_2_0,
    /// Trustee since v0.14.
    #[serde(rename = "0.4.0")]
    V0_4_0,
}

/// Why a client's version was refused. The texts begin as Trustee's do: guest-components' own test looks for them.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum VersionError {
    /// Not a version at all.
    #[error("failed to parse KBS version: {seen:?} is not MAJOR.MINOR.PATCH; supported are {supported}")]
    NotSemver {
        /// What was said, cut.
        seen: String,
        /// Versions that are spoken.
        supported: String,
    },
    /// A version that is not spoken.
    #[error(
        "KBS Client Protocol Version Mismatch: expect ={newest} while the request is {seen}; supported are {supported}"
    )]
    Unsupported {
        /// What was said, cut.
        seen: String,
        /// The newest version that is spoken.
        newest: &'static str,
        /// Versions that are spoken.
        supported: String,
    },
}

impl ProtocolVersion {
    /// All of them, the oldest first.
    pub const ALL: [Self; 3] = [Self::V0_1_1, Self::V0_2_0, Self::V0_4_0];

    /// As it is written on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V0_1_1 => "0.1.1",
            Self::V0_2_0 => "0.2.0",
            Self::V0_4_0 => crate::PROTOCOL_VERSION,
        }
    }

    /// Whether nonce and key travel in `runtime-data` and the evidence is composite.
    #[must_use]
    pub const fn has_runtime_data(self) -> bool {
        matches!(self, Self::V0_4_0)
    }

    /// Reads a client's version, which must be one of `spoken`. Pre-releases and build metadata match nothing, as in Trustee.
    ///
    /// # Errors
    /// [`VersionError`] with what is spoken.
    pub fn negotiate(text: &str, spoken: &[Self]) -> Result<Self, VersionError> {
        if let Some(version) = spoken.iter().find(|version| version.name() == text) {
            return Ok(*version);
        }
        let seen: String = text.chars().take(32).collect();
        let names: Vec<&str> = spoken.iter().map(|version| version.name()).collect();
        let supported = names.join(", ");
        if !is_semver(text) {
            return Err(VersionError::NotSemver { seen, supported });
        }
        let newest = spoken.iter().max().map_or("none", |version| version.name());
        Err(VersionError::Unsupported { seen, newest, supported })
    }
}

impl std::fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether `text` is a version by semver.org, item 2, 9 and 10.
fn is_semver(text: &str) -> bool {
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
    let number = |part: &str| {
        part.len() <= 19 && part.parse::<u64>().is_ok() && (part == "0" || !part.starts_with(['0', '+']))
    };
    let identifiers = |part: &str| {
        part.split('.').all(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
    };
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(identifiers)
        && build.is_none_or(identifiers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn released_versions_are_read_and_others_told_what_there_is() {
        for version in ProtocolVersion::ALL {
            assert_eq!(ProtocolVersion::negotiate(version.name(), &ProtocolVersion::ALL), Ok(version));
            let json = serde_json::to_value(version).unwrap();
            assert_eq!(json, version.name());
        }
        let why =
            |text: &str| ProtocolVersion::negotiate(text, &ProtocolVersion::ALL).unwrap_err().to_string();
        for other in ["0.3.0", "0.4.1", "0.4.0-rc.1", "0.4.0+x", "1.0.0"] {
            assert_eq!(
                why(other),
                format!(
                    "KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is {other}; \
                     supported are 0.1.1, 0.2.0, 0.4.0"
                )
            );
        }
        for other in ["", "0.4", "v0.4.0", "00.4.0", "0.4.0.1", "+0.4.0", "0.4.0-", "a.b.c", " 0.4.0"] {
            assert!(why(other).starts_with("failed to parse KBS version"), "{other}: {}", why(other));
        }
        assert!(why(&"9".repeat(1 << 20)).len() < 200);
    }

    #[test]
    fn an_operator_may_speak_fewer() {
        let spoken = [ProtocolVersion::V0_4_0];
        let error = ProtocolVersion::negotiate("0.1.1", &spoken).unwrap_err().to_string();
        assert!(error.ends_with("while the request is 0.1.1; supported are 0.4.0"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".{0,64}") {
            let _ = ProtocolVersion::negotiate(&text, &ProtocolVersion::ALL);
        }
    }
}
