//! Where everything lies: groups of 32768 blocks of 4096 bytes, each with its bitmaps and inode table in itself.

use super::Ext4Error;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 4096;
/// Blocks of a group: as many as a block has bits.
pub(super) const GROUP: u64 = 8 * BLOCK;
pub(super) const INODE: u64 = 256;
/// Bytes of a group's descriptor, of the feature `64bit`.
pub(super) const DESCRIPTOR: u64 = 64;
/// Bytes of the volume for each inode, as `mkfs` has it.
const BYTES_PER_INODE: u64 = 16 << 10;
/// Inodes that the format keeps for itself, and `lost+found`.
pub(super) const USED_INODES: u64 = 11;
/// Blocks of root and `lost+found`.
pub(super) const DIRECTORIES: u64 = 2;
/// A last group with less room than this is left off.
const LEAST_ROOM: u64 = 50;

/// Sizes and numbers of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) blocks: u64,
    pub(super) groups: u64,
    pub(super) inodes_per_group: u64,
    /// Blocks of the journal; none in a file system that is too small for one.
    pub(super) journal: u64,
}

impl Layout {
    /// Of a device of `size` bytes.
    pub(super) fn of(size: u64) -> Result<Self, Ext4Error> {
        let mut blocks = size / BLOCK;
        if blocks > u64::from(u32::MAX) {
            return Err(Ext4Error::TooLarge { seen: size, most: u64::from(u32::MAX) * BLOCK });
        }
        if blocks < super::SMALLEST / BLOCK {
            return Err(Ext4Error::TooSmall { seen: size, wanted: super::SMALLEST });
        }
        let per_group = blocks.min(GROUP) * BLOCK / BYTES_PER_INODE;
        let inodes_per_group = per_group.next_multiple_of(BLOCK / INODE);
        let journal = match blocks {
            0..2048 => 0,
            2048..32_768 => 1024,
            32_768..262_144 => 4096,
            262_144..524_288 => 8192,
            _ => 16_384,
        };
        let whole = |blocks: u64| Self { blocks, groups: blocks.div_ceil(GROUP), inodes_per_group, journal };
        let layout = whole(blocks);
        let last = layout.groups - 1;
        if last > 0 && layout.blocks_in(last) < layout.overhead(last) + LEAST_ROOM {
            blocks = last * GROUP;
        }
        Ok(whole(blocks))
    }

    /// Blocks of the table of inodes of a group.
    pub(super) fn inode_table_blocks(&self) -> u64 {
        self.inodes_per_group * INODE / BLOCK
    }

    /// Blocks of the table of groups.
    pub(super) fn group_table_blocks(&self) -> u64 {
        (self.groups * DESCRIPTOR).div_ceil(BLOCK)
    }

    /// Blocks of a group: the last one may have fewer.
    pub(super) fn blocks_in(&self, group: u64) -> u64 {
        GROUP.min(self.blocks - group * GROUP)
    }

    /// First block after superblock and group table, where the group has them.
    pub(super) fn block_bitmap(&self, group: u64) -> u64 {
        let copies = if has_super(group) { 1 + self.group_table_blocks() } else { 0 };
        group * GROUP + copies
    }

    pub(super) fn inode_bitmap(&self, group: u64) -> u64 {
        self.block_bitmap(group) + 1
    }

    pub(super) fn inode_table(&self, group: u64) -> u64 {
        self.block_bitmap(group) + 2
    }

    /// Blocks of a group that hold no data.
    pub(super) fn overhead(&self, group: u64) -> u64 {
        self.inode_table(group) + self.inode_table_blocks() - group * GROUP
    }

    /// Blocks of a group in use: in the first one the directories and the journal follow the table of inodes.
    pub(super) fn used(&self, group: u64) -> u64 {
        self.overhead(group) + if group == 0 { DIRECTORIES + self.journal } else { 0 }
    }

    pub(super) fn free(&self, group: u64) -> u64 {
        self.blocks_in(group) - self.used(group)
    }

    /// Blocks of root, `lost+found` and journal, in this order.
    pub(super) fn first_data(&self) -> u64 {
        self.overhead(0)
    }
}

/// Whether a group has copies of superblock and group table (`sparse_super`): 0, 1 and the powers of 3, 5 and 7.
pub(super) fn has_super(group: u64) -> bool {
    let power = |base: u64| {
        let mut value = base;
        while value < group {
            value *= base;
        }
        value == group
    };
    group < 2 || [3, 5, 7].into_iter().any(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_superblock_are_where_mkfs_puts_them() {
        let seen: Vec<u64> = (0..130).filter(|group| has_super(*group)).collect();
        assert_eq!(seen, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn everything_fits_whatever_the_size() {
        let sizes = (0..400u64)
            .map(|n| super::super::SMALLEST + n * 977 * 4096)
            .chain((24..44).map(|n| (1 << n) + 4097));
        for size in sizes {
            let layout = Layout::of(size).unwrap();
            assert!(layout.blocks * BLOCK <= size);
            for group in [0, 1, 3, layout.groups - 1].into_iter().filter(|g| *g < layout.groups) {
                assert!(layout.used(group) < layout.blocks_in(group), "{size}: {layout:?}, group {group}");
            }
            assert!(layout.inodes_per_group <= GROUP);
        }
        assert!(matches!(Layout::of(super::super::SMALLEST - 1), Err(Ext4Error::TooSmall { .. })));
        assert!(matches!(Layout::of(1 << 44), Err(Ext4Error::TooLarge { .. })));
    }
}
