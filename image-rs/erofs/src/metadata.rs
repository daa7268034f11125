//! Writes EROFS, uncompressed: contents first, as they come, then all metadata, the superblock (the first block) last.
//!
//! Layout: block 0 superblock (at byte 1024); contents; inodes with extended attributes, short tails, folders and link targets;
//! folders and targets too large to lie beside their inode. Inodes are in the order of a walk by name, so the same tree
//! gives the same bytes.
//!
//! Source: Linux 6.12, `fs/erofs/erofs_fs.h`, `inode.c`, `data.c` (what the kernel refuses), `dir.c`, `xattr.c`.

use std::io::Write;

use crate::ErofsError;
use crate::contents::Contents;
use crate::inode::{Inode, Placed};
use crate::tree::{Kind, Node, NodeId, Tree};
use crate::verity::TreeBlock;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;

/// Most bytes that lie beside an inode in place of a block of their own.
pub(crate) const MAX_INLINE: usize = 2048;

const SUPERBLOCK: usize = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// Times of inodes are of modification (EROFS_FEATURE_COMPAT_MTIME).
const COMPAT_MTIME: u32 = 2;
/// log2 of a block.
const BLOCK_BITS: u8 = 12;
/// Unit of inode numbers: bytes from the start of the metadata.
const SLOT: u64 = 32;
/// First byte of the first inode. It keeps inode numbers above 0, which programs take for "no file".
const FIRST_INODE: u64 = 64;

/// Writes the metadata after the contents; gives the writer below and the superblock's block.
pub(crate) fn write_metadata<W: Write>(
    tree: &Tree,
    contents: Contents<W>,
) -> Result<(W, TreeBlock), ErofsError> {
    let (mut output, meta_start, tails) = contents.finish()?;
    let mut plan = Plan::new(tree)?;
    let meta_blocks = plan.end.div_ceil(BLOCK as u64);
    let mut next = u64::from(meta_start) + meta_blocks;
    for placed in &mut plan.placed {
        next = placed.place_blocks(next)?;
    }
    let blocks = block_number(next)?;
    let mut at = 0;
    for (number, placed) in plan.placed.iter().enumerate() {
        pad(&mut output, &mut at, placed.at)?;
        let inode = Inode { tree, plan: &plan, placed, number: number as u32 + 1 };
        at += inode.write(&mut output, &tails)?;
    }
    pad(&mut output, &mut at, meta_blocks * BLOCK as u64)?;
    for placed in plan.placed.iter().filter(|placed| placed.blocks > 0) {
        let mut bytes = placed.own_bytes(tree, &plan);
        bytes.resize(placed.blocks as usize * BLOCK, 0);
        output.write_all(&bytes)?;
    }
    let root = plan.nid(NodeId::ROOT);
    Ok((output, superblock(root, plan.placed.len() as u64, blocks, meta_start)))
}

/// Where every inode goes.
pub(crate) struct Plan {
    placed: Vec<Placed>,
    /// By node: its place among `placed`.
    by_node: Vec<Option<usize>>,
    /// Names and folders in it of each node.
    links: Vec<u32>,
    parents: Vec<NodeId>,
    /// Bytes of the metadata.
    end: u64,
}

impl Plan {
    fn new(tree: &Tree) -> Result<Self, ErofsError> {
        let mut plan = Self {
            placed: Vec::new(),
            by_node: vec![None; tree.len()],
            links: vec![0; tree.len()],
            parents: vec![NodeId::ROOT; tree.len()],
            end: FIRST_INODE,
        };
        // by a stack, in the order of names: folders may be in one another deeply
        let mut waiting = vec![NodeId::ROOT];
        while let Some(id) = waiting.pop() {
            if plan.by_node[id.index()].is_some() {
                continue;
            }
            plan.place(tree, id)?;
            let Some(names) = tree.names(id) else { continue };
            for child in names.values().rev().copied() {
                if tree.names(child).is_some() {
                    plan.links[id.index()] += 1;
                    plan.parents[child.index()] = id;
                } else {
                    plan.links[child.index()] += 1;
                }
                waiting.push(child);
            }
            plan.links[id.index()] += 2;
        }
        Ok(plan)
    }

    fn place(&mut self, tree: &Tree, id: NodeId) -> Result<(), ErofsError> {
        let mut placed = Placed::new(id, tree.node(id), tree)?;
        let (head, all) = (placed.head as u64, (placed.head + placed.inline) as u64);
        let mut at = self.end.next_multiple_of(SLOT);
        let left = BLOCK as u64 - at % BLOCK as u64;
        // what lies beside an inode must not cross a block
        if left < all.min(BLOCK as u64) || (head > BLOCK as u64 && left < BLOCK as u64) {
            at = at.next_multiple_of(BLOCK as u64);
        }
        placed.at = at;
        self.end = at + all;
        self.by_node[id.index()] = Some(self.placed.len());
        self.placed.push(placed);
        Ok(())
    }

    /// The inode number of a node that is written.
    pub(crate) fn nid(&self, id: NodeId) -> u64 {
        let placed = self.by_node.get(id.index()).copied().flatten().and_then(|place| self.placed.get(place));
        placed.map_or(0, |placed| placed.at / SLOT)
    }

    pub(crate) fn links(&self, id: NodeId) -> u32 {
        self.links.get(id.index()).copied().unwrap_or(1)
    }

    pub(crate) fn parent(&self, id: NodeId) -> NodeId {
        self.parents.get(id.index()).copied().unwrap_or(NodeId::ROOT)
    }
}

/// The number of a block, which the format keeps in 32 bits.
pub(crate) fn block_number(number: u64) -> Result<u32, ErofsError> {
    let most = u64::from(u32::MAX);
    u32::try_from(number).map_err(|_| ErofsError::TooLarge { what: "blocks of 4 KiB", seen: number, most })
}

pub(crate) fn pad(output: &mut impl Write, at: &mut u64, to: u64) -> Result<(), ErofsError> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    while *at < to {
        let count = (to - *at).min(BLOCK as u64);
        output.write_all(&ZEROS[..count as usize])?;
        *at += count;
    }
    Ok(())
}

/// `struct erofs_super_block`. No checksum: the hash tree vouches for it. No identity: the same image is the same bytes.
fn superblock(root: u64, inodes: u64, blocks: u32, meta_start: u32) -> TreeBlock {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        let at = SUPERBLOCK + at;
        block[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &MAGIC.to_le_bytes());
    put(8, &COMPAT_MTIME.to_le_bytes());
    put(12, &[BLOCK_BITS]);
    // the root is the first inode, so its number is small
    put(14, &(root as u16).to_le_bytes());
    put(16, &inodes.to_le_bytes());
    put(36, &blocks.to_le_bytes());
    put(40, &meta_start.to_le_bytes());
    block
}

/// Type of a name in a folder (`EROFS_FT_*`).
pub(crate) const fn file_type(node: &Node) -> u8 {
    match node.kind {
        Kind::File(_) => 1,
        Kind::Folder(_) => 2,
        Kind::Char(..) => 3,
        Kind::Block(..) => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}
