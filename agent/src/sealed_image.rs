//! Sealed images: the host offers an image that it keeps for the whole node as a block device; a root hash that the guest has from its
//! measured init-data, or from who its signature policy believes, vouches for every block of it.
//!
//! `[image] seals` of `cdh.toml` are seals (`kata_cc_sealed_image::SealManifest`, JSON); one may also lie beside the image in its registry,
//! with a signature that the measured policy demands. Where there is one of the image that a
//! container names, by the digests of manifest and configuration that were examined, and the host offers a device, the device is
//! mapped by dm-verity and mounted below a layer in the guest's own space; no layer is pulled. The host chooses nothing but whether
//! it offers a device: without one the guest pulls the image itself, and one that is not what the seal says fails the container. Blocks are
//! checked when they are read, so a block that was changed fails the read (EIO), also much later.
//!
//! Of an encrypted image the device has the layers as the registry has them (`kata_cc_image::keep_layers`): they are pulled from there, and
//! held to all that layers from the registry are held to.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kata_cc_agent_protocol::agent::Storage;
use kata_cc_causes::causes;
use kata_cc_image::{Companions, Documents, ExaminedImage, ImageClient, MAX_DOCUMENTS};
use kata_cc_sealed_image::{ManifestError, SEAL_TYPE, SealManifest, documents};
use kata_cc_volumes::device::{BlockDevice, DeviceError};
use nix::mount::{MntFlags, umount2};
use thiserror::Error;
use tracing::{info, warn};

use crate::mounts;
use crate::storage::{self, StorageError};

/// Driver option of a storage `image_guest_pull` that names the device with the sealed image.
const OPTION: &str = "kata-cc.sealed=";
/// Most seals of one init-data.
const MOST: usize = 64;

/// Why a sealed image is not used.
#[derive(Debug, Error)]
pub(crate) enum SealedError {
    /// The device is none, or did not come.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The device is shorter than what the seal says.
    #[error("device {device} has {seen} bytes, the sealed image has {expected}")]
    Size {
        /// Which.
        device: String,
        /// What it has.
        seen: u64,
        /// What it should have.
        expected: u64,
    },
    /// It cannot be mapped.
    #[error("device {device}: {source}")]
    Device {
        /// Which.
        device: String,
        /// Why.
        source: DeviceError,
    },
    /// Its first blocks are not what the root hash vouches for, or the space above it cannot be made.
    #[error(
        "sealed image on {device} cannot be mounted: {source}; root hash {root_hash} does not vouch for what the host offers, \
         or the guest has no room: see the guest's log for the block"
    )]
    Mount {
        /// Which.
        device: String,
        /// What vouches for it.
        root_hash: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// The seals of this guest's init-data.
#[derive(Debug, Default)]
pub(crate) struct Seals(Vec<SealManifest>);

impl Seals {
    /// Reads them.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, ManifestError> {
        if texts.len() > MOST {
            let (seen, expected) = (texts.len().to_string(), format!("at most {MOST} seals"));
            return Err(ManifestError::Member { member: "number", seen, expected });
        }
        texts.iter().map(|text| SealManifest::parse(text.as_bytes())).collect::<Result<_, _>>().map(Self)
    }

    /// The seal of an image that was examined.
    pub(crate) fn of_image(&self, image: &ExaminedImage) -> Option<&SealManifest> {
        self.of(&image.manifest_digest.to_string(), image.config_digest())
    }

    /// The seal of the image with these digests.
    pub(crate) fn of(&self, manifest: &str, config: &str) -> Option<&SealManifest> {
        self.0.iter().find(|seal| seal.manifest == manifest && seal.config == config)
    }
}

/// The seal that lies beside the image in its registry, signed as the signature policy of this guest demands of the image itself. None is no
/// error: the guest then pulls the layers.
pub(crate) async fn signed_seal(client: Arc<ImageClient>, image: ExaminedImage) -> Option<SealManifest> {
    let runtime = tokio::runtime::Handle::current();
    // On a thread of its own, as all that asks registries.
    let asking = tokio::task::spawn_blocking(move || {
        let documents = runtime.block_on(client.signed_documents(&image, SEAL_TYPE));
        documents.map(|documents| (image, documents)).map_err(|error| causes(&error))
    });
    let (image, documents) = match asking.await.map_err(|error| causes(&error)).and_then(|asked| asked) {
        Ok(asked) => asked,
        Err(error) => {
            warn!(error, "seals beside the image were not had: it is pulled");
            return None;
        }
    };
    let seals: Result<Vec<_>, _> = documents.iter().map(|text| SealManifest::parse(text)).collect();
    match seals {
        Ok(seals) => Seals(seals).of_image(&image).cloned(),
        Err(error) => {
            warn!(%error, "a signed seal is none: the image is pulled");
            None
        }
    }
}

/// The device that the host offers with an image, when it does.
pub(crate) async fn offered(storage: &Storage) -> Result<Option<String>, StorageError> {
    let named = storage.driver_options.iter().find_map(|option| option.strip_prefix(OPTION));
    match named {
        Some(device) => storage::block_device(&storage.driver, device).await.map(Some),
        None => Ok(None),
    }
}

/// What lies on `device` beside a file system: the image's small documents, and layers that they name the place of. None is no error, the
/// registry has them too.
pub(crate) async fn companions(device: &str) -> Option<Companions> {
    let path = device.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        let mut file = File::open(path).map_err(|error| causes(&error))?;
        let read = documents::read(&mut file, MAX_DOCUMENTS).map_err(|error| causes(&error))?;
        let read = read.map(|bytes| Documents::parse(&bytes)).transpose().map_err(|error| causes(&error))?;
        Ok(read.map(|documents| Companions::offered(documents, Some(file))))
    });
    match reading.await.map_err(|error| causes(&error)).and_then(|read| read) {
        Ok(companions) => companions,
        Err(error) => {
            warn!(device, error, "documents behind the host's copy were not read: the registry is asked");
            None
        }
    }
}

/// Maps the device and mounts it below a layer of the guest's own, in `base`; gives the root.
pub(crate) fn mount(seal: &SealManifest, device: &str, base: &Path) -> Result<PathBuf, SealedError> {
    let failed = |source| SealedError::Device { device: device.to_owned(), source };
    let below = BlockDevice::at(Path::new(device)).map_err(failed)?;
    let (seen, expected) = (below.size().map_err(failed)?, seal.file_bytes());
    if seen < expected {
        return Err(SealedError::Size { device: device.to_owned(), seen, expected });
    }
    let mapped = below.map_verified(seal.data_blocks, &seal.root()).map_err(failed)?;
    let [lower, upper, work, root] = ["lower", "upper", "work", "root"].map(|name| base.join(name));
    let mounted = (|| {
        for folder in [&lower, &upper, &work, &root] {
            fs::create_dir_all(folder)?;
        }
        mounts::mount_at(&mapped.node().display().to_string(), &lower, "erofs", &["ro"])?;
        let layers =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mounts::mount_at("overlay", &root, "overlay", &[layers])
    })();
    // Mounted, it is removed when its last user goes; the same when it was not.
    drop(mapped);
    if let Err(source) = mounted {
        unmount(base);
        let (device, root_hash) = (device.to_owned(), seal.root_hash.clone());
        return Err(SealedError::Mount { device, root_hash, source });
    }
    info!(
        device,
        root_hash = seal.root_hash,
        "sealed image mounted: its blocks are checked when they are read"
    );
    Ok(root)
}

/// Takes down what [`mount`] mounted in `base`, so that nothing is removed through it.
pub(crate) fn unmount(base: &Path) {
    for name in ["root", "lower"] {
        let _ = umount2(&base.join(name), MntFlags::MNT_DETACH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(manifest: &str) -> String {
        let digest = |byte: &str| format!("sha256:{}", byte.repeat(32));
        serde_json::json!({
            "version": 1, "format": "erofs-plain-1", "manifest": digest(manifest), "config": digest("cc"),
            "data_blocks": 10, "root_hash": "ab".repeat(32),
        })
        .to_string()
    }

    #[test]
    fn a_seal_counts_for_the_image_with_both_its_digests() {
        let seals = Seals::parse(&[seal("aa"), seal("bb")]).unwrap();
        let of = |manifest: &str, config: &str| {
            let digest = |byte: &str| format!("sha256:{}", byte.repeat(32));
            seals.of(&digest(manifest), &digest(config)).is_some()
        };
        assert!(of("aa", "cc") && of("bb", "cc"));
        assert!(!of("dd", "cc") && !of("aa", "aa"));
        assert!(Seals::parse(&["{}".to_owned()]).is_err());
        assert!(Seals::parse(&vec![seal("aa"); MOST + 1]).is_err());
    }

    #[tokio::test]
    async fn the_host_names_a_disk_and_nothing_else() {
        let storage = |option: &str| Storage {
            driver: "image_guest_pull".to_owned(),
            driver_options: vec!["image_guest_pull={}".to_owned(), option.to_owned()],
            ..Default::default()
        };
        assert!(offered(&storage("other=1")).await.unwrap().is_none());
        for device in ["/dev/sda", "/dev/../x", "/run/file", "/dev/vd", "/dev/vdc/x"] {
            let refused = offered(&storage(&format!("{OPTION}{device}"))).await;
            assert!(refused.is_err(), "{device}");
        }
    }
}
