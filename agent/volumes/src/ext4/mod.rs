//! An empty ext4 file system, as `mkfs.ext4` would make it, of the kernel's `Documentation/filesystems/ext4`.
//!
//! With a journal, since a guest can end at any time and has no `e2fsck`; with checksums of all metadata
//! (`metadata_csum`): what a host makes of a sector below the encryption comes up as noise, and noise in metadata has no
//! right checksum. That is a fence against accidents and noise, not against somebody who brings back old sectors.
//! On an error the kernel makes the file system read-only.
//!
//! Bitmaps and inode tables of groups in which nothing is are left to the kernel (`BLOCK_UNINIT`, `INODE_UNINIT`, lazy initialisation), so
//! that a large volume takes no longer than a small one.
#![forbid(unsafe_code)]

mod layout;
mod records;

use std::io::{self, Seek, SeekFrom, Write};

use layout::{BLOCK, DESCRIPTOR, DIRECTORIES, GROUP, INODE, Layout, USED_INODES, has_super};
use records::{Checksums, Extent, Inode};
use thiserror::Error;

/// Least bytes of a device on which a file system is made.
pub const SMALLEST: u64 = 1 << 20;

const ROOT: u32 = 2;
const JOURNAL: u32 = 8;
const LOST_FOUND: u32 = 11;

/// Why a file system is not made.
#[derive(Debug, Error)]
pub enum Ext4Error {
    /// The device failed.
    #[error("writing {what} failed: {source}")]
    Io {
        /// What was written.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The device is too small.
    #[error("the device has {seen} bytes, ext4 needs {wanted} at least")]
    TooSmall {
        /// Its size.
        seen: u64,
        /// What is needed.
        wanted: u64,
    },
    /// The device is too large.
    #[error("the device has {seen} bytes, a file system is made on {most} at most")]
    TooLarge {
        /// Its size.
        seen: u64,
        /// What is taken.
        most: u64,
    },
}

/// What tells one file system from another.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Name, random.
    pub uuid: [u8; 16],
    /// Seed of the hashes of names, random.
    pub hash_seed: [u8; 16],
    /// Seconds since 1970.
    pub now: u32,
}

struct Maker<'a, D> {
    device: &'a mut D,
    layout: Layout,
    identity: Identity,
    checksums: Checksums,
}

/// Makes an empty file system on a device of `size` bytes.
///
/// # Errors
/// [`Ext4Error`] says why not; what is on the device then is no file system.
pub fn make<D: Write + Seek>(device: &mut D, size: u64, identity: Identity) -> Result<(), Ext4Error> {
    let layout = Layout::of(size)?;
    let checksums = Checksums::new(&identity.uuid);
    let mut maker = Maker { device, layout, identity, checksums };
    maker.put(0, &[0; BLOCK as usize], "the first block")?;
    maker.first_inodes()?;
    let table = maker.group_table()?;
    maker.copies(&table)?;
    // Last: without it there is no file system.
    let first = records::superblock(&layout, &identity, 0, &maker.journal_inode());
    maker.put_at(1024, &first, "the superblock")?;
    maker.device.flush().map_err(|source| Ext4Error::Io { what: "the superblock", source })
}

impl<D: Write + Seek> Maker<'_, D> {
    fn put_at(&mut self, at: u64, bytes: &[u8], what: &'static str) -> Result<(), Ext4Error> {
        let mut write = || {
            self.device.seek(SeekFrom::Start(at))?;
            self.device.write_all(bytes)
        };
        write().map_err(|source| Ext4Error::Io { what, source })
    }

    fn put(&mut self, block: u64, bytes: &[u8], what: &'static str) -> Result<(), Ext4Error> {
        self.put_at(block * BLOCK, bytes, what)
    }

    fn journal_inode(&self) -> Inode {
        let extent = Extent { start: self.layout.first_data() + DIRECTORIES, blocks: self.layout.journal };
        Inode { mode: 0o100_600, links: 1, extent, now: self.identity.now }
    }

    /// Root, `lost+found` and journal, with what they hold.
    fn first_inodes(&mut self) -> Result<(), Ext4Error> {
        let (layout, now) = (self.layout, self.identity.now);
        let at = layout.first_data();
        let folder = |mode, links, start| Inode { mode, links, extent: Extent { start, blocks: 1 }, now };
        let mut inodes = vec![(ROOT, folder(0o40_755, 3, at)), (LOST_FOUND, folder(0o40_700, 2, at + 1))];
        if layout.journal > 0 {
            inodes.push((JOURNAL, self.journal_inode()));
            let journal = records::journal(layout.journal, &self.identity.uuid);
            self.put(at + DIRECTORIES, &journal, "the journal")?;
        }
        // The rest of the table is said to be unused.
        let mut table = vec![0; BLOCK as usize];
        for (number, inode) in inodes {
            let place = (number as usize - 1) * INODE as usize;
            table[place..place + INODE as usize].copy_from_slice(&inode.bytes(number, &self.checksums));
        }
        self.put(layout.inode_table(0), &table, "the inodes")?;
        let root = [(ROOT, "."), (ROOT, ".."), (LOST_FOUND, "lost+found")];
        self.put(at, &records::folder(ROOT, &root, &self.checksums), "the root folder")?;
        let lost = [(LOST_FOUND, "."), (ROOT, "..")];
        self.put(at + 1, &records::folder(LOST_FOUND, &lost, &self.checksums), "lost+found")
    }

    /// Writes the bitmaps that are not left to the kernel; gives the table of groups.
    fn group_table(&mut self) -> Result<Vec<u8>, Ext4Error> {
        let layout = self.layout;
        let mut table = Vec::new();
        for group in 0..layout.groups {
            let (first, last) = (group == 0, group == layout.groups - 1);
            let bitmaps = (first || last).then(|| {
                let used_inodes = if first { USED_INODES } else { 0 };
                let room = layout.blocks_in(group);
                [bitmap(layout.used(group), room), bitmap(used_inodes, layout.inodes_per_group)]
            });
            if let Some([blocks, inodes]) = &bitmaps {
                self.put(layout.block_bitmap(group), blocks, "a bitmap")?;
                self.put(layout.inode_bitmap(group), inodes, "a bitmap")?;
            }
            let bitmaps = bitmaps.as_ref().map(|[blocks, inodes]| (&blocks[..], &inodes[..]));
            table.extend_from_slice(&records::descriptor(&layout, group, bitmaps, &self.checksums));
        }
        debug_assert_eq!(table.len() as u64, layout.groups * DESCRIPTOR);
        table.resize((layout.group_table_blocks() * BLOCK) as usize, 0);
        Ok(table)
    }

    /// The table of groups and, behind the first group, the copies of the superblock.
    fn copies(&mut self, table: &[u8]) -> Result<(), Ext4Error> {
        for group in (0..self.layout.groups).filter(|group| has_super(*group)) {
            let at = group * GROUP;
            self.put(at + 1, table, "the table of groups")?;
            if group > 0 {
                let copy = records::superblock(&self.layout, &self.identity, group, &self.journal_inode());
                self.put(at, &copy, "a copy of the superblock")?;
            }
        }
        Ok(())
    }
}

/// A bitmap whose first `used` of `all` bits are set; what is beyond them is not to be had.
fn bitmap(used: u64, all: u64) -> Vec<u8> {
    let mut bits = vec![0u8; BLOCK as usize];
    for bit in (0..used).chain(all..8 * BLOCK) {
        bits[(bit / 8) as usize] |= 1 << (bit % 8);
    }
    bits
}
