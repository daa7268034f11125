//! The guest's root image: an EROFS file system with the agent in it, which the guest reads as it needs it, and what vouches for it.

use std::path::PathBuf;

use kata_cc_erofs::verity;
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
    /// The image cannot be read.
    #[error("cannot read the guest's root image {path}: {source}")]
    Image {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The image has another length than its seal says.
    #[error(
        "the guest's root image {path} has {seen} bytes, its seal beside it is of one with {expected}: both must be of one build"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes that it has.
        seen: u64,
        /// Bytes that the file system and its hash tree have.
        expected: u64,
    },
    /// The seal vouches for other blocks.
    #[error(
        "the guest's root image {path} has root hash {seen}, its seal beside it says {expected}: one of both was changed"
    )]
    RootHash {
        /// The file.
        path: PathBuf,
        /// That of its blocks; of its hash tree, when only that differs.
        seen: String,
        /// That of the seal.
        expected: String,
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
            Ok(seal) if seal.is_sound() => Self { image, seal }.of_its_length().map(Some),
            Ok(seal) => {
                let why = format!("it has {} blocks and root hash {:?}", seal.data_blocks, seal.root_hash);
                Err(RootImageError::Seal { path, why })
            }
            Err(error) => Err(RootImageError::Seal { path, why: error.to_string() }),
        }
    }

    /// A file that is cut off, or not of the seal, is told before anything is started with it.
    fn of_its_length(self) -> Result<Self, RootImageError> {
        let blocks = self.seal.data_blocks.saturating_add(verity::tree_blocks(self.seal.data_blocks));
        let expected = blocks.saturating_mul(verity::BLOCK as u64);
        match std::fs::metadata(&self.image) {
            Ok(data) if data.len() == expected => Ok(self),
            Ok(data) => Err(RootImageError::Length { path: self.image, seen: data.len(), expected }),
            Err(source) => Err(RootImageError::Image { path: self.image, source }),
        }
    }

    /// Reads all of the image and holds it to its seal: for who vouches for the image by the seal, as `kata-cc measure` does. A start
    /// leaves that to the guest's kernel.
    ///
    /// # Errors
    /// When it cannot be read, or is another one.
    pub fn verify(&self) -> Result<(), RootImageError> {
        let path = self.image.clone();
        let bytes =
            std::fs::read(&path).map_err(|source| RootImageError::Image { path: path.clone(), source })?;
        let data =
            usize::try_from(self.seal.data_blocks).ok().and_then(|blocks| blocks.checked_mul(verity::BLOCK));
        let (blocks, tree) = bytes.split_at(data.unwrap_or(usize::MAX).min(bytes.len()));
        let found = verity::tree_of(blocks);
        let (seen, expected) = (hex::encode(found.root), self.seal.root_hash.clone());
        if seen != expected {
            return Err(RootImageError::RootHash { path, seen, expected });
        }
        if found.blocks.concat() != tree {
            return Err(RootImageError::RootHash {
                path,
                seen: "another in its hash tree".to_owned(),
                expected,
            });
        }
        Ok(())
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
        std::fs::write(folder.path().join("mine.erofs"), vec![0; 8 * verity::BLOCK]).unwrap();
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
    fn an_image_of_another_length_or_with_other_blocks_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.erofs");
        let config = NodeConfig { root: Some(path.clone()), ..NodeConfig::default() };
        let mut bytes = vec![5; 3 * verity::BLOCK];
        let tree = verity::tree_of(&bytes);
        let seal = RootSeal { data_blocks: 3, root_hash: hex::encode(tree.root) };
        std::fs::write(path.with_extension("json"), serde_json::to_vec(&seal).unwrap()).unwrap();
        bytes.extend(tree.blocks.concat());
        std::fs::write(&path, &bytes).unwrap();
        let root = RootImage::of(&config).unwrap().unwrap();
        root.verify().unwrap();
        for changed in [0, verity::BLOCK * 2 + 7, verity::BLOCK * 3] {
            bytes[changed] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let error = root.verify().unwrap_err();
            assert!(matches!(error, RootImageError::RootHash { .. }), "{changed}: {error}");
            bytes[changed] ^= 1;
        }
        std::fs::write(&path, &bytes[1..]).unwrap();
        let error = RootImage::of(&config).unwrap_err().to_string();
        assert!(error.contains("has 16383 bytes") && error.contains("16384"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(RootImage::of(&config), Err(RootImageError::Image { .. })));
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
