//! What says that a sealed image is that of a manifest: a small JSON document, which is signed as an OCI referrer or pinned by policy.

use serde::{Deserialize, Serialize};

use crate::Seal;
use kata_cc_erofs::verity::{BLOCK, DIGEST, tree_blocks};

/// Form of the document.
const VERSION: u32 = 1;
/// How the file is made, for when it changes: other bytes of the same layers have another name.
const FORMAT: &str = "erofs-plain-1";
/// Type of the document as a referrer of its image (OCI image-spec, `artifactType`).
pub const SEAL_TYPE: &str = "application/vnd.kata-cc.image.seal.v1+json";
/// Largest document.
const MAX_BYTES: usize = 64 << 10;

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is no such document.
    #[error("this is no seal of an image: {0}")]
    Json(#[from] serde_json::Error),
    /// A member that does not fit the others, or is not known here.
    #[error("seal's {member} is {seen}, expected {expected}")]
    Member {
        /// Which.
        member: &'static str,
        /// What it says.
        seen: String,
        /// What it may say.
        expected: String,
    },
}

/// The seal of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealManifest {
    /// Form of this document.
    version: u32,
    /// Form of the file.
    format: String,
    /// Digest of the image's manifest, `sha256:…`.
    pub manifest: String,
    /// Digest of its configuration.
    pub config: String,
    /// Blocks of 4 KiB of the file system. The hash tree follows them.
    pub data_blocks: u64,
    /// Root hash, in hex.
    pub root_hash: String,
}

impl SealManifest {
    /// The seal of an image with these digests.
    #[must_use]
    pub fn new(manifest: &str, config: &str, seal: &Seal) -> Self {
        Self {
            version: VERSION,
            format: FORMAT.to_owned(),
            manifest: manifest.to_owned(),
            config: config.to_owned(),
            data_blocks: seal.data_blocks,
            root_hash: hex::encode(seal.root_hash),
        }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// When it is none, or says what this version does not know.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let refused = |member, seen: String, expected: &str| {
            let expected = expected.to_owned();
            Err(ManifestError::Member { member, seen, expected })
        };
        if bytes.len() > MAX_BYTES {
            return refused("length", bytes.len().to_string(), "at most 65536 bytes");
        }
        let read: Self = serde_json::from_slice(bytes)?;
        if read.version != VERSION {
            return refused("version", read.version.to_string(), "1");
        }
        if read.format != FORMAT {
            return refused("format", read.format.chars().take(100).collect(), FORMAT);
        }
        for (member, digest) in [("manifest", &read.manifest), ("config", &read.config)] {
            if !digest.strip_prefix("sha256:").is_some_and(is_sha256) {
                return refused(
                    member,
                    digest.chars().take(100).collect(),
                    "sha256: and 64 hexadecimal digits",
                );
            }
        }
        if !is_sha256(&read.root_hash) {
            return refused("root_hash", read.root_hash.chars().take(100).collect(), "64 hexadecimal digits");
        }
        if read.data_blocks == 0 || read.data_blocks > u64::from(u32::MAX) {
            return refused("data_blocks", read.data_blocks.to_string(), "1 to 4294967295");
        }
        Ok(read)
    }

    /// The document.
    ///
    /// # Errors
    /// Never: everything in it is text or a number.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// The root hash as bytes; zeros, which vouch for nothing, when it is out of form.
    #[must_use]
    pub fn root(&self) -> [u8; DIGEST] {
        let mut root = [0; DIGEST];
        match hex::decode_to_slice(&self.root_hash, &mut root) {
            Ok(()) => root,
            Err(_) => [0; DIGEST],
        }
    }

    /// Bytes of the file, the hash tree included.
    #[must_use]
    pub const fn file_bytes(&self) -> u64 {
        (self.data_blocks + tree_blocks(self.data_blocks)) * BLOCK as u64
    }
}

fn is_sha256(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_seal_is_read_as_written_and_every_member_counts() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let seal = Seal { data_blocks: 300, tree_blocks: 4, root_hash: [7; 32] };
        let manifest = SealManifest::new(&digest, &digest, &seal);
        assert_eq!((manifest.file_bytes(), manifest.root()), (304 * 4096, [7; 32]));
        let bytes = manifest.to_json().expect("text");
        assert_eq!(SealManifest::parse(&bytes).expect("read"), manifest);
        let good: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        for (member, wrong) in [
            ("version", json!(2)),
            ("format", json!("erofs-lz4-1")),
            ("manifest", json!("sha256:abc")),
            ("config", json!(format!("sha512:{}", "ab".repeat(32)))),
            ("root_hash", json!("AB".repeat(32))),
            ("data_blocks", json!(0)),
            ("data_blocks", json!(1_u64 << 32)),
        ] {
            let mut bad = good.clone();
            bad[member] = wrong;
            let error = SealManifest::parse(bad.to_string().as_bytes()).expect_err("refused").to_string();
            assert!(error.contains(member), "{member}: {error}");
        }
        let mut more = good;
        more["key"] = json!("x");
        assert!(SealManifest::parse(more.to_string().as_bytes()).is_err());
        assert!(SealManifest::parse(&vec![b' '; MAX_BYTES + 1]).is_err());
    }
}
