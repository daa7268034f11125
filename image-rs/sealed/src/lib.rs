//! Sealed images: the layers of an image as one EROFS file system whose every block a root hash vouches for.
//!
//! The host makes such a file once per image and node, and hands it to guests as a read-only block device. A guest trusts nothing of
//! it but the root hash, which it has from a signed or pinned [`SealManifest`]; its kernel checks each block by dm-verity when
//! it is read. The same layers give the same bytes, so anybody can make the file and compare.
//!
//! [`seal`] reads layers and writes the file: superblock, contents, metadata, hash tree. Nothing is unpacked onto the host's file
//! system, and no compression of EROFS is used (the page cache is shared between guests as it is).
//!
//! Sources: Linux 6.12, `fs/erofs/erofs_fs.h` (format), `drivers/md/dm-verity-target.c` and
//! `Documentation/admin-guide/device-mapper/verity.rst` (hash tree, version 1).
#![forbid(unsafe_code)]

pub mod documents;
pub mod erofs;
mod layers;
mod manifest;
pub mod tree;
pub mod verity;

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use kata_cc_image::unpack::UnpackError;
use kata_cc_image::{FetchedImage, Limits};

pub use manifest::{ManifestError, SEAL_TYPE, SealManifest};

use crate::erofs::{BLOCK, Contents};
use crate::layers::Layers;
use crate::verity::Leaves;

/// Why an image cannot be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A layer's archive is refused.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The file cannot be written.
    #[error("writing the sealed image failed: {0}")]
    Write(#[from] io::Error),
    /// Something that the format cannot hold.
    #[error("the image cannot be sealed: {what} ({seen}), EROFS has room for {most}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How much there is.
        seen: u64,
        /// How much there may be.
        most: u64,
    },
    /// An extended attribute of a kind that EROFS does not know.
    #[error(
        "extended attribute {0:?} has no place in EROFS: known are user, trusted, security and the two of POSIX ACLs"
    )]
    Attribute(String),
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

/// A sealed image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Blocks of 4 KiB of the file system; the hash tree follows them.
    pub data_blocks: u64,
    /// Blocks of the hash tree.
    pub tree_blocks: u64,
    /// What vouches for all of them.
    pub root_hash: [u8; verity::DIGEST],
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
    let mut output = Leaves::new(BufWriter::with_capacity(1 << 20, &mut *file));
    output.write_all(&[0; BLOCK])?;
    let mut applied = Layers::new(Contents::new(output, 1), limits);
    for layer in layers {
        applied.apply(layer?)?;
    }
    let (tree, contents) = applied.finish();
    let (mut leaves, superblock) = erofs::write_metadata(&tree, contents)?;
    leaves.replace_first(&superblock);
    let data_blocks = leaves.blocks();
    let tree = leaves.tree();
    let mut output = leaves.into_inner();
    for block in &tree.blocks {
        output.write_all(block)?;
    }
    output.flush()?;
    drop(output);
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&superblock)?;
    Ok(Seal { data_blocks, tree_blocks: tree.blocks.len() as u64, root_hash: tree.root })
}
