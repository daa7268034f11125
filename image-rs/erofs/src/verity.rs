//! The hash tree of dm-verity, version 1: SHA-256, blocks of 4 KiB, no salt.
//!
//! A block of the tree holds 128 digests, the rest zeros. Levels lie from the top down; the root hash is that of the top block, or of the
//! only data block. The salt is left out: it would make the same image another one at each sealing.

use std::io::{self, Write};

use aws_lc_rs::digest::{SHA256, digest};

/// Bytes of a data block and of a block of the tree.
pub const BLOCK: usize = 4096;
/// Bytes of a digest.
pub const DIGEST: usize = 32;

/// A block of the tree.
pub type TreeBlock = [u8; BLOCK];

/// A hash tree.
#[derive(Clone, Debug)]
pub struct HashTree {
    /// Its blocks, the top level first.
    pub blocks: Vec<TreeBlock>,
    /// Root hash.
    pub root: [u8; DIGEST],
}

fn sha256(bytes: &[u8]) -> [u8; DIGEST] {
    let mut out = [0; DIGEST];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// Number of blocks of the tree over `data_blocks` blocks (`verity_ctr` of dm-verity-target.c); none over one.
#[must_use]
pub const fn tree_blocks(data_blocks: u64) -> u64 {
    let per_block = (BLOCK / DIGEST) as u64;
    let (mut level, mut all) = (data_blocks, 0);
    while level > 1 {
        level = level.div_ceil(per_block);
        all += level;
    }
    all
}

/// Where in the file the tree has the digest of data block `block`; none where there is no such block, or no tree over one.
#[must_use]
pub const fn leaf_offset(data_blocks: u64, block: u64) -> Option<u64> {
    if block >= data_blocks || data_blocks < 2 {
        return None;
    }
    // the lowest level is the last one
    let lowest = data_blocks.div_ceil((BLOCK / DIGEST) as u64);
    Some((data_blocks + tree_blocks(data_blocks) - lowest) * BLOCK as u64 + block * DIGEST as u64)
}

/// The tree over the digests of all data blocks.
#[must_use]
pub fn tree(leaves: &[[u8; DIGEST]]) -> HashTree {
    let mut levels: Vec<Vec<TreeBlock>> = Vec::new();
    let mut digests = leaves.to_vec();
    while digests.len() > 1 {
        let level: Vec<TreeBlock> = digests
            .chunks(BLOCK / DIGEST)
            .map(|chunk| {
                let mut block = [0; BLOCK];
                for (place, digest) in block.chunks_exact_mut(DIGEST).zip(chunk) {
                    place.copy_from_slice(digest);
                }
                block
            })
            .collect();
        digests = level.iter().map(|block| sha256(block)).collect();
        levels.push(level);
    }
    let root = digests.first().copied().unwrap_or([0; DIGEST]);
    HashTree { blocks: levels.into_iter().rev().flatten().collect(), root }
}

/// The tree over whole blocks.
#[must_use]
pub fn tree_of(blocks: &[u8]) -> HashTree {
    tree(&blocks.chunks(BLOCK).map(sha256).collect::<Vec<_>>())
}

/// Writes blocks on and keeps their digests.
#[derive(Debug)]
pub struct Leaves<W> {
    inner: W,
    digests: Vec<[u8; DIGEST]>,
    partial: Vec<u8>,
}

impl<W: Write> Leaves<W> {
    /// Begins at a block's start.
    pub fn new(inner: W) -> Self {
        Self { inner, digests: Vec::new(), partial: Vec::with_capacity(BLOCK) }
    }

    /// Whole blocks so far.
    pub fn blocks(&self) -> u64 {
        self.digests.len() as u64
    }

    /// The first block will be another one.
    pub fn replace_first(&mut self, block: &TreeBlock) {
        if let Some(first) = self.digests.first_mut() {
            *first = sha256(block);
        }
    }

    /// The tree over all whole blocks.
    pub fn tree(&self) -> HashTree {
        tree(&self.digests)
    }

    /// The writer below.
    pub fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: Write> Write for Leaves<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        let mut written = bytes.get(..count).unwrap_or_default();
        while !written.is_empty() {
            if self.partial.is_empty()
                && let Some((block, rest)) = written.split_at_checked(BLOCK)
            {
                self.digests.push(sha256(block));
                written = rest;
                continue;
            }
            let room = (BLOCK - self.partial.len()).min(written.len());
            let (now, rest) = written.split_at(room);
            self.partial.extend_from_slice(now);
            if self.partial.len() == BLOCK {
                self.digests.push(sha256(&self.partial));
                self.partial.clear();
            }
            written = rest;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_lie_from_the_top_down() {
        let leaves: Vec<[u8; DIGEST]> = (0..300_u32).map(|n| sha256(&n.to_le_bytes())).collect();
        let tree = tree(&leaves);
        // 300 digests in 3 blocks, these in one
        assert_eq!((tree.blocks.len(), tree_blocks(300)), (4, 4));
        assert_eq!(tree.root, sha256(&tree.blocks[0]));
        assert_eq!(tree.blocks[0][..DIGEST], sha256(&tree.blocks[1]));
        assert_eq!(tree.blocks[1][..DIGEST], leaves[0]);
        assert_eq!(tree.blocks[3][43 * DIGEST..44 * DIGEST], leaves[299]);
        assert!(tree.blocks[3][44 * DIGEST..].iter().all(|byte| *byte == 0));
        let one = super::tree(&leaves[..1]);
        assert_eq!((one.blocks.len(), one.root, tree_blocks(1)), (0, leaves[0], 0));
        assert_eq!(tree_blocks(128 * 128 + 1), 129 + 2 + 1);
    }

    #[test]
    fn however_it_is_cut_the_leaves_are_the_same() {
        let bytes: Vec<u8> = (0..5 * BLOCK as u32).map(|n| (n / 7) as u8).collect();
        let expected: Vec<_> = bytes.chunks(BLOCK).map(sha256).collect();
        for cut in [1, 100, 4095, 4096, 4097, 9000] {
            let mut leaves = Leaves::new(Vec::new());
            for piece in bytes.chunks(cut) {
                leaves.write_all(piece).expect("memory");
            }
            assert_eq!(leaves.digests, expected, "cut {cut}");
            assert_eq!(leaves.into_inner(), bytes);
        }
    }
}
