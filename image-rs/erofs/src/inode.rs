//! Inodes: `struct erofs_inode_extended`, its extended attributes, and what lies beside it.

use std::io::Write;

use crate::metadata::{BLOCK, MAX_INLINE, Plan, block_number};
use crate::tree::{Kind, Node, NodeId, Tree};
use crate::{ErofsError, directory, xattr};

/// Bytes of an extended inode.
pub(crate) const INODE: usize = 64;
/// `i_format`: extended, contents in blocks (EROFS_INODE_FLAT_PLAIN).
const PLAIN: u16 = 1;
/// `i_format`: extended, the end beside the inode (EROFS_INODE_FLAT_INLINE).
const INLINE: u16 = 1 | 2 << 1;

/// Where an inode goes, and how much goes with it.
pub(crate) struct Placed {
    pub(crate) id: NodeId,
    /// First byte, from the start of the metadata.
    pub(crate) at: u64,
    /// Bytes of inode and extended attributes.
    pub(crate) head: usize,
    /// Bytes of contents beside it.
    pub(crate) inline: usize,
    /// Blocks of its own after the metadata: of folders and link targets.
    pub(crate) blocks: u64,
    first_block: u32,
    /// Bytes of a folder or link target.
    own: usize,
}

impl Placed {
    /// Sizes of a node's parts; without a place yet.
    pub(crate) fn new(id: NodeId, node: &Node, tree: &Tree) -> Result<Self, ErofsError> {
        let head = INODE + xattr::bytes(&node.attributes.xattrs)?.len();
        let mut placed = Self { id, at: 0, head, inline: 0, blocks: 0, first_block: 0, own: 0 };
        match &node.kind {
            Kind::File(content) => {
                placed.first_block = content.first_block;
                placed.inline = content.inline.map_or(0, |_| (content.size % BLOCK as u64) as usize);
            }
            Kind::Folder(_) => placed.own = directory::size(tree, id),
            Kind::Symlink(target) => placed.own = target.len(),
            Kind::Char(..) | Kind::Block(..) | Kind::Fifo => {}
        }
        match placed.own {
            own if own <= MAX_INLINE && head + own <= BLOCK => placed.inline += own,
            own => placed.blocks = own.div_ceil(BLOCK) as u64,
        }
        Ok(placed)
    }

    /// Takes blocks from `next` on; the next ones after them.
    pub(crate) fn place_blocks(&mut self, next: u64) -> Result<u64, ErofsError> {
        if self.blocks > 0 {
            self.first_block = block_number(next)?;
        }
        Ok(next + self.blocks)
    }

    /// A folder's entries, a link's target.
    pub(crate) fn own_bytes(&self, tree: &Tree, plan: &Plan) -> Vec<u8> {
        match &tree.node(self.id).kind {
            Kind::Folder(_) => directory::bytes(tree, plan, self.id),
            Kind::Symlink(target) => target.clone(),
            _ => Vec::new(),
        }
    }
}

/// An inode that is written.
pub(crate) struct Inode<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) plan: &'a Plan,
    pub(crate) placed: &'a Placed,
    /// Number for 32-bit programs, from 1.
    pub(crate) number: u32,
}

impl Inode<'_> {
    /// Writes inode, attributes and what lies beside it; the bytes that took.
    pub(crate) fn write(&self, output: &mut impl Write, tails: &[u8]) -> Result<u64, ErofsError> {
        let node = self.tree.node(self.placed.id);
        let xattrs = xattr::bytes(&node.attributes.xattrs)?;
        output.write_all(&self.bytes(node, xattrs.len()))?;
        output.write_all(&xattrs)?;
        let (own, length) = match &node.kind {
            Kind::File(content) => {
                let start = content.inline.unwrap_or(0);
                (Vec::new(), tails.get(start..start + self.placed.inline).unwrap_or_default())
            }
            _ if self.placed.inline > 0 => (self.placed.own_bytes(self.tree, self.plan), &[][..]),
            _ => (Vec::new(), &[][..]),
        };
        output.write_all(&own)?;
        output.write_all(length)?;
        Ok((self.placed.head + own.len() + length.len()) as u64)
    }

    fn bytes(&self, node: &Node, xattrs: usize) -> [u8; INODE] {
        let (kind, size) = match &node.kind {
            Kind::File(content) => (0o100_000, content.size),
            Kind::Folder(_) => (0o040_000, self.placed.own as u64),
            Kind::Symlink(_) => (0o120_000, self.placed.own as u64),
            Kind::Char(..) => (0o020_000, 0),
            Kind::Block(..) => (0o060_000, 0),
            Kind::Fifo => (0o010_000, 0),
        };
        let place = match node.kind {
            Kind::Char(major, minor) | Kind::Block(major, minor) => device(major, minor),
            _ => self.placed.first_block,
        };
        let attributes = &node.attributes;
        let mut inode = [0; INODE];
        let mut put = |at: usize, bytes: &[u8]| inode[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(if self.placed.inline > 0 { INLINE } else { PLAIN }).to_le_bytes());
        put(2, &xattr::count(xattrs).to_le_bytes());
        put(4, &(kind | attributes.mode).to_le_bytes());
        put(8, &size.to_le_bytes());
        put(16, &place.to_le_bytes());
        put(20, &self.number.to_le_bytes());
        put(24, &attributes.uid.to_le_bytes());
        put(28, &attributes.gid.to_le_bytes());
        put(32, &attributes.mtime.0.to_le_bytes());
        put(40, &attributes.mtime.1.to_le_bytes());
        put(44, &self.plan.links(self.placed.id).to_le_bytes());
        inode
    }
}

/// `new_encode_dev` of Linux: twelve bits of the major number, twenty of the minor.
const fn device(major: u32, minor: u32) -> u32 {
    minor & 0xFF | (major & 0xFFF) << 8 | (minor & !0xFF) << 12
}
