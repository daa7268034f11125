//! Media types of manifests and layers.
//!
//! Sources: OCI image-spec `media-types.md`, the OCI draft on encrypted layers (suffix `+encrypted`), and Docker's
//! schema 2. Anything not listed is refused by name: a layer of unknown meaning cannot be skipped, the
//! image would not be what its author made.

/// Why a layer's media type is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MediaError {
    /// The layer lives at a place of its own (Windows base layers).
    #[error("layer type {0:?} is foreign (not distributable); only layers kept in the registry are pulled")]
    Foreign(String),
    /// The type has no meaning here.
    #[error("layer type {0:?} is unknown; known are tar, tar+gzip, tar+zstd, each also +encrypted")]
    Unknown(String),
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Plain tar.
    None,
    /// gzip, several members allowed.
    Gzip,
    /// zstd, several frames allowed.
    Zstd,
}

/// What a layer's media type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerType {
    /// Compression of the tar archive.
    pub codec: Codec,
    /// Whether it is encrypted as ocicrypt does.
    pub encrypted: bool,
}

/// OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker schema 2 list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.";
const SUFFIX: &str = "+encrypted";

impl LayerType {
    /// Reads a media type.
    ///
    /// # Errors
    /// Foreign and unknown types, see [`MediaError`].
    pub fn parse(text: &str) -> Result<Self, MediaError> {
        let unknown = || MediaError::Unknown(text.chars().take(160).collect());
        if text.contains("nondistributable") || text.contains(".foreign.") {
            return Err(MediaError::Foreign(text.chars().take(160).collect()));
        }
        let (plain, encrypted) = match text.strip_suffix(SUFFIX) {
            Some(plain) => (plain, true),
            None => (text, false),
        };
        let codec = if let Some(rest) = plain.strip_prefix(OCI_LAYER) {
            match rest {
                "tar" => Codec::None,
                "tar+gzip" => Codec::Gzip,
                "tar+zstd" => Codec::Zstd,
                _ => return Err(unknown()),
            }
        } else if let Some(rest) = plain.strip_prefix(DOCKER_LAYER) {
            match rest {
                "tar" => Codec::None,
                "tar.gzip" => Codec::Gzip,
                "tar.zstd" => Codec::Zstd,
                _ => return Err(unknown()),
            }
        } else {
            return Err(unknown());
        };
        Ok(Self { codec, encrypted })
    }

    /// The OCI media type that says the same.
    pub fn oci_name(self) -> String {
        let codec = match self.codec {
            Codec::None => "tar",
            Codec::Gzip => "tar+gzip",
            Codec::Zstd => "tar+zstd",
        };
        let suffix = if self.encrypted { SUFFIX } else { "" };
        format!("{OCI_LAYER}{codec}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_type_and_back() {
        for codec in [Codec::None, Codec::Gzip, Codec::Zstd] {
            for encrypted in [false, true] {
                let kind = LayerType { codec, encrypted };
                assert_eq!(LayerType::parse(&kind.oci_name()), Ok(kind));
            }
        }
        let docker = LayerType::parse("application/vnd.docker.image.rootfs.diff.tar.gzip");
        assert_eq!(docker, Ok(LayerType { codec: Codec::Gzip, encrypted: false }));
    }

    #[test]
    fn refuses_foreign_layers() {
        for text in [
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            assert_eq!(LayerType::parse(text), Err(MediaError::Foreign(text.to_owned())));
        }
    }

    #[test]
    fn refuses_unknown_types() {
        for text in ["", "text/plain", "application/vnd.oci.image.layer.v1.tar+lz4"] {
            assert_eq!(LayerType::parse(text), Err(MediaError::Unknown(text.to_owned())));
        }
    }
}
