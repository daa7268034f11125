//! Folders: blocks of entries, each with the names it needs.
//!
//! Names, with `.` and `..` among them, ascend by their bytes over the whole folder: the kernel looks them up by halving. A block holds its
//! entries first, then their names without anything between them; zeros fill all but the last.

use crate::metadata::{BLOCK, Plan, file_type};
use crate::tree::{NodeId, Tree};

/// Bytes of `struct erofs_dirent`: u64 inode number, u16 offset of the name, u8 type, u8 zero.
const ENTRY: usize = 12;

/// All names of a folder, in their order, and what they name.
fn names(tree: &Tree, id: NodeId, parent: NodeId) -> Vec<(&[u8], NodeId)> {
    let mut all: Vec<(&[u8], NodeId)> = vec![(b".", id), (b"..", parent)];
    all.extend(tree.names(id).into_iter().flatten().map(|(name, child)| (name.as_slice(), *child)));
    // some names are less than `.`
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

/// Cuts names into blocks: the number of names of each, and the bytes that it uses.
fn cut<'n>(names: impl Iterator<Item = &'n [u8]>) -> Vec<(usize, usize)> {
    let mut blocks = Vec::new();
    let (mut count, mut used) = (0, 0);
    for name in names {
        let more = ENTRY + name.len();
        if used + more > BLOCK {
            blocks.push((count, used));
            (count, used) = (0, 0);
        }
        (count, used) = (count + 1, used + more);
    }
    blocks.push((count, used));
    blocks
}

/// Bytes of a folder.
pub(crate) fn size(tree: &Tree, id: NodeId) -> usize {
    let all = names(tree, id, id);
    let blocks = cut(all.iter().map(|(name, _)| *name));
    let last = blocks.last().map_or(0, |(_, used)| *used);
    (blocks.len() - 1) * BLOCK + last
}

/// The folder's bytes.
pub(crate) fn bytes(tree: &Tree, plan: &Plan, id: NodeId) -> Vec<u8> {
    let all = names(tree, id, plan.parent(id));
    let blocks = cut(all.iter().map(|(name, _)| *name));
    let mut out = Vec::new();
    let mut rest = all.as_slice();
    for (index, (count, _)) in blocks.iter().enumerate() {
        let (these, later) = rest.split_at(*count);
        rest = later;
        let mut offset = these.len() * ENTRY;
        for (name, child) in these {
            out.extend(plan.nid(*child).to_le_bytes());
            out.extend((offset as u16).to_le_bytes());
            out.extend([file_type(tree.node(*child)), 0]);
            offset += name.len();
        }
        these.iter().for_each(|(name, _)| out.extend_from_slice(name));
        if index + 1 < blocks.len() {
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
    }
    out
}
