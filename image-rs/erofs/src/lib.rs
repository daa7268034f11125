//! A tree of files as one EROFS file system whose every block a root hash vouches for: images that are sealed, and the guest's own root.
//!
//! The file holds superblock, contents, metadata and then the hash tree of dm-verity. The same tree and contents give the same bytes. No
//! compression of EROFS is used: the page cache is shared between guests as it is.
//!
//! Sources: Linux 6.12, `fs/erofs/erofs_fs.h` (format), `drivers/md/dm-verity-target.c` and
//! `Documentation/admin-guide/device-mapper/verity.rst` (hash tree, version 1).
#![forbid(unsafe_code)]

mod contents;
mod directory;
mod inode;
mod metadata;
pub mod tree;
pub mod verity;
mod xattr;

use std::io::{self, BufWriter, Seek, SeekFrom, Write};

pub use contents::{Contents, FileWriter};

use crate::metadata::BLOCK;
use crate::tree::Tree;
use crate::verity::Leaves;

/// Why a file system cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The file cannot be written.
    #[error("writing the file system failed: {0}")]
    Write(#[from] io::Error),
    /// Something that the format cannot hold.
    #[error("EROFS has no room for that: {what} ({seen}), at most {most}")]
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

/// A file system and what vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Blocks of 4 KiB of the file system; the hash tree follows them.
    pub data_blocks: u64,
    /// Blocks of the hash tree.
    pub tree_blocks: u64,
    /// What vouches for all of them.
    pub root_hash: [u8; verity::DIGEST],
}

/// Where the contents of a file system in `F` go.
pub type Output<'a, F> = Contents<Leaves<BufWriter<&'a mut F>>>;

/// Writes a file system into an empty file: `fill` is given a place for the contents of files, and gives it back with the tree that they
/// belong to.
///
/// # Errors
/// Those of `fill`, and [`ErofsError`]; what is in the file then is worth nothing.
pub fn seal<F: Write + Seek, E: From<ErofsError>>(
    file: &mut F,
    fill: impl FnOnce(Output<'_, F>) -> Result<(Tree, Output<'_, F>), E>,
) -> Result<Seal, E> {
    let mut output = Leaves::new(BufWriter::with_capacity(1 << 20, &mut *file));
    output.write_all(&[0; BLOCK]).map_err(ErofsError::Write)?;
    let (tree, contents) = fill(Contents::new(output, 1))?;
    let (leaves, superblock) = metadata::write_metadata(&tree, contents)?;
    let seal = finish(leaves, &superblock)?;
    file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&superblock)).map_err(ErofsError::Write)?;
    Ok(seal)
}

/// Writes the hash tree; the superblock, which is the first block, is still to be written.
fn finish<W: Write>(mut leaves: Leaves<W>, superblock: &verity::TreeBlock) -> Result<Seal, ErofsError> {
    leaves.replace_first(superblock);
    let data_blocks = leaves.blocks();
    let tree = leaves.tree();
    let mut output = leaves.into_inner();
    for block in &tree.blocks {
        output.write_all(block)?;
    }
    output.flush()?;
    Ok(Seal { data_blocks, tree_blocks: tree.blocks.len() as u64, root_hash: tree.root })
}
