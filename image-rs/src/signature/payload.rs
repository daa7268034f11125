//! What a signature says: the "simple signing" payload of cosign and containers-image.
//!
//! Source: containers-signature(5), with cosign's type; cosign's `specs/SIGNATURE_SPEC.md`. Read strictly, since a payload that two readers
//! understand in two ways could be signed as one and used as the other.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::Reason;
use crate::digest::Digest;

/// The one type of payload.
pub(super) const TYPE: &str = "cosign container image signature";

/// What a signature says about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimpleSigning {
    /// Digest of the manifest or index that was signed.
    pub digest: Digest,
    /// The name it was signed as.
    pub reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    critical: Critical,
    /// Whatever the signer added; nothing here is decided by it.
    #[serde(default, rename = "optional")]
    _optional: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

impl SimpleSigning {
    /// Reads a payload.
    ///
    /// # Errors
    /// [`Reason::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Reason> {
        let malformed = |why: &dyn std::fmt::Display| Reason::malformed("payload", why);
        let document: Document = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
        let Critical { identity, image, kind } = document.critical;
        if kind != TYPE {
            return Err(malformed(&format!("its type is {kind:?}, expected {TYPE:?}")));
        }
        let digest = image.digest.parse().map_err(|error| malformed(&error))?;
        Ok(Self { digest, reference: identity.reference })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(kind: &str, digest: &str, more: &str) -> String {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"host/app"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"{kind}"}}{more}}}"#
        )
    }

    #[test]
    fn reads_what_cosign_and_skopeo_write() {
        let digest = Digest::sha256(b"x");
        for more in [r#","optional":null"#, r#","optional":{"creator":"c","timestamp":1}"#, ""] {
            let read = SimpleSigning::parse(text(TYPE, digest.as_str(), more).as_bytes()).unwrap();
            assert_eq!((read.digest, read.reference), (digest.clone(), "host/app".to_owned()));
        }
    }

    #[test]
    fn refuses_what_could_be_read_in_two_ways() {
        let digest = Digest::sha256(b"x");
        let digest = digest.as_str();
        for bad in [
            text("atomic container signature", digest, ""),
            text(TYPE, "sha256:00", ""),
            text(TYPE, digest, r#","more":1"#),
            text(TYPE, digest, r#","critical":{}"#),
            text(TYPE, digest, "} {"),
            String::new(),
        ] {
            assert!(matches!(SimpleSigning::parse(bad.as_bytes()), Err(Reason::Malformed { .. })), "{bad}");
        }
    }
}
