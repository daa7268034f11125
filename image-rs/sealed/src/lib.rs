//! Sealed images: the layers of an image as one EROFS file system whose every block a root hash vouches for.
//!
//! The host makes such a file once per image and node, and hands it to guests as a read-only block device. A guest trusts nothing of
//! it but the root hash, which it has from a signed or pinned [`SealManifest`]; its kernel checks each block by dm-verity when
//! it is read. The same layers give the same bytes, so anybody can make the file and compare.
//!
//! [`seal`] reads layers and writes the file ([`kata_cc_erofs`]). Nothing is unpacked onto the host's file system.
#![forbid(unsafe_code)]

pub mod documents;
mod layers;
mod manifest;

use std::fs::File;
use std::io::{self, Read};

use kata_cc_erofs::ErofsError;
use kata_cc_image::unpack::UnpackError;
use kata_cc_image::{FetchedImage, Limits};

pub use kata_cc_erofs::{Seal, verity};
pub use manifest::{ManifestError, SEAL_TYPE, SealManifest};

use crate::layers::Layers;

/// Why an image cannot be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A layer's archive is refused.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A layer cannot be opened.
    #[error("a layer cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The file system cannot be written.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
}

/// Seals an image that was fetched, into an empty file.
///
/// # Errors
/// See [`SealError`]; what is in the file then is worth nothing.
pub fn seal_image(image: &FetchedImage, file: &mut File, limits: Limits) -> Result<SealManifest, SealError> {
    let seal = seal(image.archives(), file, limits)?;
    let (manifest, config) = (image.manifest_digest.to_string(), image.config_digest.to_string());
    Ok(SealManifest::new(&manifest, &config, &seal))
}

/// Seals the layers (plain tar archives, the lowest first) into an empty file.
///
/// # Errors
/// See [`SealError`]; what is in the file then is worth nothing.
pub fn seal<R: Read>(
    layers: impl IntoIterator<Item = io::Result<R>>,
    file: &mut File,
    limits: Limits,
) -> Result<Seal, SealError> {
    kata_cc_erofs::seal(file, |contents| {
        let mut applied = Layers::new(contents, limits);
        for layer in layers {
            applied.apply(layer?)?;
        }
        Ok(applied.finish())
    })
}
