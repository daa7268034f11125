//! The records of the format as bytes, little endian, with their checksums.
//!
//! Source: the kernel's `fs/ext4/ext4.h` and `Documentation/filesystems/ext4`. All checksums are CRC-32C without the
//! final inversion; but for the superblock's they begin with one over the file system's UUID.

use super::layout::{BLOCK, DESCRIPTOR, GROUP, INODE, Layout, USED_INODES};
use super::{Identity, JOURNAL};

/// `has_journal`, `ext_attr`, `dir_index`.
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x20;
const HAS_JOURNAL: u32 = 0x4;
/// `filetype`, `extents`, `64bit`.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80;
/// `sparse_super`, `large_file`, `huge_file`, `dir_nlink`, `extra_isize`, `metadata_csum`.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;
const EXTENTS_FLAG: u32 = 0x8_0000;
const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;
/// Bytes of an inode beyond the 128 of ext2 that are in use.
const EXTRA: u16 = 32;

/// The seed of all checksums but the superblock's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checksums(u32);

impl Checksums {
    pub(super) fn new(uuid: &[u8; 16]) -> Self {
        Self(crc32c(!0, uuid))
    }

    /// Seed of what belongs to an inode (of generation 0).
    fn of_inode(self, number: u32) -> u32 {
        crc32c(crc32c(self.0, &number.to_le_bytes()), &[0; 4])
    }
}

fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8)
            .fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (0u32.wrapping_sub(crc & 1))))
    })
}

/// Bytes that are filled in field by field.
struct Record(Vec<u8>);

impl Record {
    fn new(length: u64) -> Self {
        Self(vec![0; length as usize])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    /// A number in two fields of 16 bits.
    fn halves(&mut self, low: usize, high: usize, value: u32) {
        self.u16(low, value as u16);
        self.u16(high, (value >> 16) as u16);
    }

    /// A number in two fields of 32 bits.
    fn words(&mut self, low: usize, high: usize, value: u64) {
        self.u32(low, value as u32);
        self.u32(high, (value >> 32) as u32);
    }
}

/// Blocks in a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) start: u64,
    /// At most 32768.
    pub(super) blocks: u64,
}

impl Extent {
    /// `i_block`: the head of a tree without nodes, and this.
    fn bytes(self) -> Vec<u8> {
        let mut record = Record::new(60);
        record.u16(0, 0xf30a);
        record.u16(2, 1);
        record.u16(4, 4);
        record.u16(16, self.blocks as u16);
        record.u16(18, (self.start >> 32) as u16);
        record.u32(20, self.start as u32);
        record.0
    }
}

/// A file or folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inode {
    pub(super) mode: u16,
    pub(super) links: u16,
    pub(super) extent: Extent,
    pub(super) now: u32,
}

impl Inode {
    pub(super) fn bytes(&self, number: u32, checksums: &Checksums) -> Vec<u8> {
        let mut record = Record::new(INODE);
        record.u16(0, self.mode);
        record.words(4, 108, self.extent.blocks * BLOCK);
        // atime, ctime, mtime; crtime
        [8, 12, 16, 144].into_iter().for_each(|at| record.u32(at, self.now));
        record.u16(26, self.links);
        record.u32(28, (self.extent.blocks * BLOCK / 512) as u32);
        record.u32(32, EXTENTS_FLAG);
        record.put(40, &self.extent.bytes());
        record.u16(128, EXTRA);
        let checksum = crc32c(checksums.of_inode(number), &record.0);
        record.halves(124, 130, checksum);
        record.0
    }
}

/// A block of a folder: entries, then one that holds the checksum.
pub(super) fn folder(number: u32, entries: &[(u32, &str)], checksums: &Checksums) -> Vec<u8> {
    const TAIL: usize = 12;
    let end = BLOCK as usize - TAIL;
    let mut record = Record::new(BLOCK);
    let mut at = 0;
    for (index, (inode, name)) in entries.iter().enumerate() {
        let last = index + 1 == entries.len();
        let length = if last { end - at } else { (8 + name.len()).next_multiple_of(4) };
        record.u32(at, *inode);
        record.u16(at + 4, length as u16);
        // A name's length, and "folder".
        record.put(at + 6, &[name.len() as u8, 2]);
        record.put(at + 8, name.as_bytes());
        at += length;
    }
    let checksum = crc32c(checksums.of_inode(number), &record.0[..end]);
    record.u16(end + 4, TAIL as u16);
    record.put(end + 7, &[0xde]);
    record.u32(end + 8, checksum);
    record.0
}

/// First block of an empty journal (big endian, `struct journal_superblock_s`).
pub(super) fn journal(blocks: u64, uuid: &[u8; 16]) -> Vec<u8> {
    let mut record = Record::new(BLOCK);
    let fields =
        [(0, 0xc03b_3998), (4, 4), (12, BLOCK as u32), (16, blocks as u32), (20, 1), (24, 1), (64, 1)];
    for (at, value) in fields {
        record.put(at, &value.to_be_bytes());
    }
    record.put(48, uuid);
    record.0
}

/// A group's descriptor; without bitmaps the group has nothing in it and leaves them to the kernel.
pub(super) fn descriptor(
    layout: &Layout,
    group: u64,
    bitmaps: Option<(&[u8], &[u8])>,
    checksums: &Checksums,
) -> Vec<u8> {
    let used_inodes = if group == 0 { USED_INODES } else { 0 };
    let free_inodes = (layout.inodes_per_group - used_inodes) as u32;
    let mut record = Record::new(DESCRIPTOR);
    record.words(0, 32, layout.block_bitmap(group));
    record.words(4, 36, layout.inode_bitmap(group));
    record.words(8, 40, layout.inode_table(group));
    record.halves(12, 44, layout.free(group) as u32);
    record.halves(14, 46, free_inodes);
    // root and lost+found
    record.halves(16, 48, if group == 0 { 2 } else { 0 });
    record.halves(28, 50, free_inodes);
    let flags = match bitmaps {
        Some(_) if group == 0 => 0,
        Some(_) => INODE_UNINIT,
        None => INODE_UNINIT | BLOCK_UNINIT,
    };
    record.u16(18, flags);
    if let Some((blocks, inodes)) = bitmaps {
        record.halves(24, 56, crc32c(checksums.0, &blocks[..(GROUP / 8) as usize]));
        record.halves(26, 58, crc32c(checksums.0, &inodes[..(layout.inodes_per_group / 8) as usize]));
    }
    let numbered = crc32c(checksums.0, &(group as u32).to_le_bytes());
    record.u16(30, crc32c(numbered, &record.0) as u16);
    record.0
}

/// The superblock, or the copy of it in `group`.
pub(super) fn superblock(layout: &Layout, identity: &Identity, group: u64, journal: &Inode) -> Vec<u8> {
    let inodes = layout.inodes_per_group * layout.groups;
    let free = (0..layout.groups).map(|group| layout.free(group)).sum();
    let mut record = Record::new(1024);
    record.u32(0x00, inodes as u32);
    record.words(0x04, 0x150, layout.blocks);
    record.words(0x0c, 0x158, free);
    record.u32(0x10, (inodes - USED_INODES) as u32);
    // Blocks and clusters of 1024 << 2 bytes.
    record.u32(0x18, 2);
    record.u32(0x1c, 2);
    record.u32(0x20, GROUP as u32);
    record.u32(0x24, GROUP as u32);
    record.u32(0x28, layout.inodes_per_group as u32);
    // Written, checked, made.
    [0x30, 0x40, 0x108].into_iter().for_each(|at| record.u32(at, identity.now));
    // Never due for a check by count; clean; read-only on errors.
    record.u16(0x36, 0xffff);
    record.u16(0x38, 0xef53);
    record.u16(0x3a, 1);
    record.u16(0x3c, 2);
    record.u32(0x4c, 1);
    record.u32(0x54, USED_INODES as u32);
    record.u16(0x58, INODE as u16);
    record.u16(0x5a, group as u16);
    let compatible = if layout.journal > 0 { COMPATIBLE } else { COMPATIBLE & !HAS_JOURNAL };
    record.u32(0x5c, compatible);
    record.u32(0x60, INCOMPATIBLE);
    record.u32(0x64, READ_ONLY_COMPATIBLE);
    record.put(0x68, &identity.uuid);
    record.put(0xec, &identity.hash_seed);
    // Names are hashed by half MD4, their bytes taken as signed; extended attributes and ACLs are on.
    record.put(0xfc, &[1]);
    record.u16(0xfe, DESCRIPTOR as u16);
    record.u32(0x100, 0x4 | 0x8);
    record.u32(0x160, 1);
    record.u16(0x15c, EXTRA);
    record.u16(0x15e, EXTRA);
    if layout.journal > 0 {
        record.u32(0xe0, JOURNAL);
        // A copy of where the journal lies.
        record.put(0xfd, &[1]);
        record.put(0x10c, &journal.extent.bytes());
        let size = journal.extent.blocks * BLOCK;
        record.words(0x14c, 0x148, size);
    }
    // CRC-32C
    record.put(0x175, &[1]);
    let checksum = crc32c(!0, &record.0[..0x3fc]);
    record.u32(0x3fc, checksum);
    record.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_its_check_value() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_folders_entries_fill_its_block() {
        let block = folder(2, &[(2, "."), (2, ".."), (11, "lost+found")], &Checksums::new(&[1; 16]));
        assert_eq!(block.len(), 4096);
        assert_eq!(block[..9], [2, 0, 0, 0, 12, 0, 1, 2, b'.']);
        assert_eq!(u16::from_le_bytes([block[28], block[29]]), 4096 - 12 - 24);
        assert_eq!(block[4088..4092], [12, 0, 0, 0xde]);
    }
}
