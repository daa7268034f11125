//! The guest's root image: an EROFS file system with the agent in it, which the guest reads as it needs it, and what vouches for it.

use std::path::PathBuf;

use kata_cc_vmm_api::RootSeal;
use thiserror::Error;

use crate::config::NodeConfig;
use crate::paths;

/// Name of the image among the files of a guest image.
const FILE: &str = "root.erofs";

/// Why there is no root image.
#[derive(Debug, Error)]
pub enum RootImageError {
    /// The seal cannot be read.
    #[error(
        "cannot read {path}, the seal of the guest's root image, which stands beside it: {source}; ./x image builds both, \
         KATA_CC_SHARE_DIR names their folder"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is no seal.
    #[error("{path} is no seal of a root image: {why}")]
    Seal {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// The guest's root image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootImage {
    /// The file.
    pub image: PathBuf,
    /// What vouches for its blocks.
    pub seal: RootSeal,
}

impl RootImage {
    /// The one that a node's guests have. None when an initramfs is named in its stead.
    ///
    /// # Errors
    /// When its seal, in the file of the same name that ends in `.json`, cannot be read or is none.
    pub fn of(config: &NodeConfig) -> Result<Option<Self>, RootImageError> {
        let image = match (&config.root, &config.initramfs) {
            (Some(named), _) => named.clone(),
            (None, Some(_)) => return Ok(None),
            (None, None) => paths::share_dir().join(FILE),
        };
        let path = image.with_extension("json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(RootImageError::Read { path, source }),
        };
        match serde_json::from_str::<RootSeal>(&text) {
            Ok(seal) if seal.is_sound() => Ok(Some(Self { image, seal })),
            Ok(seal) => {
                let why = format!("it has {} blocks and root hash {:?}", seal.data_blocks, seal.root_hash);
                Err(RootImageError::Seal { path, why })
            }
            Err(error) => Err(RootImageError::Seal { path, why: error.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seal_stands_beside_the_image_and_holds_nothing_but_a_seal() {
        let folder = tempfile::tempdir().unwrap();
        let config = NodeConfig { root: Some(folder.path().join("mine.erofs")), ..NodeConfig::default() };
        let of = |text: &str| {
            std::fs::write(folder.path().join("mine.json"), text).unwrap();
            RootImage::of(&config)
        };
        let hash = "0a".repeat(32);
        let root = of(&format!(r#"{{"data_blocks": 7, "root_hash": "{hash}"}}"#)).unwrap().unwrap();
        assert_eq!((root.seal.data_blocks, root.seal.root_hash), (7, hash.clone()));
        for wrong in [
            String::new(),
            format!(r#"{{"data_blocks": 0, "root_hash": "{hash}"}}"#),
            format!(r#"{{"data_blocks": {}, "root_hash": "{hash}"}}"#, u64::MAX),
            r#"{"data_blocks": 7, "root_hash": "ab\" init=/bin/sh"}"#.to_owned(),
            format!(r#"{{"data_blocks": 7, "root_hash": "{}"}}"#, "0A".repeat(32)),
            format!(r#"{{"data_blocks": 7, "root_hash": "{hash}", "salt": ""}}"#),
        ] {
            assert!(matches!(of(&wrong), Err(RootImageError::Seal { .. })), "{wrong}");
        }
    }

    #[test]
    fn an_initramfs_stands_in_for_the_image_unless_both_are_named() {
        let initramfs = Some("/i".into());
        let config = NodeConfig { initramfs, ..NodeConfig::default() };
        assert_eq!(RootImage::of(&config).unwrap(), None);
        let both = NodeConfig { root: Some("/nonexistent/r.erofs".into()), ..config };
        let error = RootImage::of(&both).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/r.json"), "{error}");
    }
}
