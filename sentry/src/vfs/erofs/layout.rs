//! What lies in an EROFS image (Linux 6.12, `fs/erofs/erofs_fs.h`): bytes in, structures out. Nothing here reads a file.

use kata_cc_bytes::Cursor;

use crate::error::Errno;
use crate::vfs::{DirEntry, FileKind, NAME_MAX, Timestamp};

/// Where the superblock lies, and what is looked at of it.
pub(super) const SUPERBLOCK: u64 = 1024;
pub(super) const SUPERBLOCK_SIZE: usize = 128;
const MAGIC: u32 = 0xE0F5_E1E2;
/// Unit of inode numbers.
const SLOT: u64 = 32;
/// Bytes of an entry of a folder.
const ENTRY: usize = 12;
/// Bytes before extended attributes beside an inode.
const XATTR_HEADER: usize = 12;
/// Stands for a block that is not there.
const NO_BLOCK: u32 = u32::MAX;

/// What an image needs whoever reads it to know (`EROFS_FEATURE_INCOMPAT_*`), and whether it is known here. What only concerns
/// compressed files is no obstacle: those are refused one by one.
const FEATURES: [(u32, &str, bool); 8] = [
    (0x01, "zero padding", true),
    (0x02, "big clusters", true),
    (0x04, "chunks", true),
    (0x08, "several devices", false),
    (0x10, "compressed tails", true),
    (0x20, "fragments", true),
    (0x40, "long prefixes of attributes", false),
    (0x80, "48-bit blocks", false),
];

/// Why an image is none that can be mounted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It begins with something else.
    #[error("no EROFS image: its superblock begins with {0:#010x}")]
    Magic(u32),
    /// Blocks of a size that no page holds.
    #[error("blocks of 2^{0} bytes; known are 512 to 4096 bytes")]
    BlockSize(u8),
    /// It uses what is not known here.
    #[error("the image uses what is not known here: {0}")]
    Feature(String),
    /// It is shorter than what it says of itself.
    #[error("the image has {seen} bytes and should have {told}")]
    Short {
        /// As the file is.
        seen: u64,
        /// As its superblock says.
        told: u64,
    },
    /// The host does not let it be read, or its root is no folder.
    #[error("the image cannot be read: {0}")]
    Read(Errno),
}

/// `struct erofs_super_block`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) block_bits: u8,
    pub(super) root: u64,
    pub(super) inodes: u64,
    pub(super) built: Timestamp,
    pub(super) blocks: u32,
    meta: u32,
    shared_xattrs: u32,
}

pub(super) fn superblock(bytes: &[u8; SUPERBLOCK_SIZE]) -> Result<Superblock, ImageError> {
    let read = |_| ImageError::Read(Errno::EUCLEAN);
    let mut from = Cursor::new(bytes);
    let magic = from.u32().map_err(read)?;
    if magic != MAGIC {
        return Err(ImageError::Magic(magic));
    }
    let mut parse = || {
        from.slice(8)?;
        let (block_bits, _) = (from.u8()?, from.u8()?);
        let (root, inodes, seconds, nanoseconds) = (from.u16()?, from.u64()?, from.u64()?, from.u32()?);
        let (blocks, meta, shared_xattrs) = (from.u32()?, from.u32()?, from.u32()?);
        from.slice(32)?;
        let features = from.u32()?;
        let built = Timestamp { seconds: seconds.cast_signed(), nanoseconds: nanoseconds.min(999_999_999) };
        let root = u64::from(root);
        Ok((Superblock { block_bits, root, inodes, built, blocks, meta, shared_xattrs }, features))
    };
    let (superblock, features) = parse().map_err(read)?;
    if !(9..=12).contains(&superblock.block_bits) {
        return Err(ImageError::BlockSize(superblock.block_bits));
    }
    let known = FEATURES.iter().fold(0, |all, (bit, ..)| all | bit);
    let refused = FEATURES.iter().filter(|(bit, _, fine)| features & bit != 0 && !fine);
    let mut names: Vec<String> = refused.map(|(_, name, _)| (*name).to_owned()).collect();
    if features & !known != 0 {
        names.push(format!("feature {:#x}", features & !known));
    }
    if names.is_empty() { Ok(superblock) } else { Err(ImageError::Feature(names.join(", "))) }
}

impl Superblock {
    pub(super) fn block_size(&self) -> u64 {
        1 << self.block_bits
    }

    /// Where an inode lies.
    pub(super) fn inode_at(&self, number: u64) -> Result<u64, Errno> {
        let start = u64::from(self.meta) << self.block_bits;
        number.checked_mul(SLOT).and_then(|at| at.checked_add(start)).ok_or(Errno::EUCLEAN)
    }

    /// Where a shared extended attribute lies.
    pub(super) fn shared_xattr_at(&self, number: u32) -> u64 {
        (u64::from(self.shared_xattrs) << self.block_bits) + u64::from(number) * 4
    }
}

/// Where a file's bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// In blocks one after the other, from this one on.
    Plain(u32),
    /// The same, but for the last ones, which lie beside the inode.
    Inline(u32),
    /// In chunks of 2^`bits` bytes, of which a table beside the inode tells where they are, in entries of so many bytes.
    Chunks { bits: u32, entry: u64 },
    /// Nobody reads it here.
    Compressed,
}

/// An inode, compact or extended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) kind: FileKind,
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) modified: Timestamp,
    pub(super) rdev: u64,
    pub(super) layout: Layout,
    /// Where its extended attributes lie, and how much they are.
    pub(super) xattrs: (u64, usize),
    /// Where what lies beside it begins.
    beside: u64,
}

/// Bytes of the two forms.
const COMPACT: usize = 32;
pub(super) const EXTENDED: usize = 64;

/// How many bytes an inode takes whose first ones these are.
pub(super) fn inode_size(format: u16) -> usize {
    if format & 1 == 0 { COMPACT } else { EXTENDED }
}

/// The inode whose bytes these are, at `at` in the image.
pub(super) fn inode(bytes: &[u8], at: u64, superblock: &Superblock) -> Result<Inode, Errno> {
    let parse = || {
        let mut from = Cursor::new(bytes);
        let (format, xattr_count, mode) = (from.u16()?, from.u16()?, from.u16()?);
        let compact = format & 1 == 0;
        let (links, size) = if compact {
            let (links, size) = (from.u16()?, from.u32()?);
            from.slice(4)?;
            (u32::from(links), u64::from(size))
        } else {
            from.slice(2)?;
            (0, from.u64()?)
        };
        let (place, _number) = (from.u32()?, from.u32()?);
        if compact {
            let (uid, gid) = (from.u16()?, from.u16()?);
            let owner = (u32::from(uid), u32::from(gid));
            return Ok((format, xattr_count, mode, links, size, place, owner, superblock.built));
        }
        let owner = (from.u32()?, from.u32()?);
        let (seconds, nanoseconds, links) = (from.u64()?, from.u32()?, from.u32()?);
        let modified =
            Timestamp { seconds: seconds.cast_signed(), nanoseconds: nanoseconds.min(999_999_999) };
        Ok((format, xattr_count, mode, links, size, place, owner, modified))
    };
    let parsed = parse().map_err(|_: kata_cc_bytes::Truncated| Errno::EUCLEAN)?;
    let (format, xattr_count, mode, links, size, place, (uid, gid), modified) = parsed;
    let kind = FileKind::from_mode(u32::from(mode)).ok_or(Errno::EUCLEAN)?;
    if format & !0xf != 0 || i64::try_from(size).is_err() {
        return Err(Errno::EUCLEAN);
    }
    let layout = match format >> 1 & 7 {
        0 => Layout::Plain(place),
        2 => Layout::Inline(place),
        1 | 3 => Layout::Compressed,
        4 => chunks(place, superblock)?,
        _ => return Err(Errno::EUCLEAN),
    };
    let head = at.checked_add(inode_size(format) as u64).ok_or(Errno::EUCLEAN)?;
    let xattr_bytes = match xattr_count {
        0 => 0,
        count => XATTR_HEADER + 4 * (usize::from(count) - 1),
    };
    let beside = head.checked_add(xattr_bytes as u64).ok_or(Errno::EUCLEAN)?;
    let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
    Ok(Inode {
        kind,
        mode: u32::from(mode) & 0o7777,
        links,
        uid,
        gid,
        size: if device { 0 } else { size },
        modified,
        rdev: if device { device_number(place) } else { 0 },
        layout,
        xattrs: (head, xattr_bytes),
        beside,
    })
}

/// `new_decode_dev` of Linux.
fn device_number(place: u32) -> u64 {
    crate::vfs::device((place & 0xf_ff00) >> 8, (place & 0xff) | (place >> 12 & 0xf_ff00))
}

fn chunks(format: u32, superblock: &Superblock) -> Result<Layout, Errno> {
    const INDEXES: u32 = 0x20;
    // The upper half is reserved, and so are the bits beyond.
    if format & !0x3f != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let bits = u32::from(superblock.block_bits) + (format & 0x1f);
    let entry = if format & INDEXES != 0 { 8 } else { 4 };
    Ok(Layout::Chunks { bits, entry })
}

/// A run of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    /// They lie there in the image, so many of them.
    At(u64, u64),
    /// So many zeros.
    Hole(u64),
    /// The table has the answer, in an entry there; the run has so many bytes, and begins so far into its chunk.
    Entry { at: u64, length: u64, into: u64 },
}

impl Inode {
    /// Where the byte at `offset`, which is below the size, lies with what follows it.
    pub(super) fn run(&self, offset: u64, superblock: &Superblock) -> Result<Run, Errno> {
        let (bits, left) = (superblock.block_bits, self.size.saturating_sub(offset));
        let block = |number: u32| u64::from(number) << bits;
        let plain = |first: u32, length: u64| {
            let at = block(first).checked_add(offset).ok_or(Errno::EUCLEAN)?;
            Ok(Run::At(at, length))
        };
        match self.layout {
            Layout::Plain(first) => plain(first, left),
            Layout::Inline(first) => {
                // All but the last block lie elsewhere.
                let beside = self.size.saturating_sub(1) >> bits << bits;
                if offset < beside {
                    return plain(first, beside - offset);
                }
                let within = self.beside & (superblock.block_size() - 1);
                if within + (self.size - beside) > superblock.block_size() {
                    return Err(Errno::EUCLEAN);
                }
                Ok(Run::At(self.beside.checked_add(offset - beside).ok_or(Errno::EUCLEAN)?, left))
            }
            Layout::Chunks { bits, entry } => {
                let number = offset.checked_shr(bits).unwrap_or(0);
                let size = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
                let into = offset - number.saturating_mul(size);
                let table = self.beside.checked_next_multiple_of(entry);
                let at = number.checked_mul(entry).zip(table).and_then(|(far, table)| table.checked_add(far));
                let length = left.min(size - into);
                Ok(Run::Entry { at: at.ok_or(Errno::EUCLEAN)?, length, into })
            }
            Layout::Compressed => Err(Errno::EOPNOTSUPP),
        }
    }

    /// How many bytes an entry of its table has.
    pub(super) fn entry_size(&self) -> usize {
        match self.layout {
            Layout::Chunks { entry: 8, .. } => 8,
            _ => 4,
        }
    }
}

/// What an entry of a table of chunks says.
pub(super) fn chunk(bytes: &[u8], length: u64, into: u64, superblock: &Superblock) -> Result<Run, Errno> {
    let mut from = Cursor::new(bytes);
    let mut parse = || {
        if bytes.len() == 8 {
            let (high, device) = (from.u16()?, from.u16()?);
            return Ok((high, device, from.u32()?));
        }
        Ok((0, 0, from.u32()?))
    };
    let (high, device, block) = parse().map_err(|_: kata_cc_bytes::Truncated| Errno::EUCLEAN)?;
    if block == NO_BLOCK {
        return Ok(Run::Hole(length));
    }
    if high != 0 || device != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let at = (u64::from(block) << superblock.block_bits).checked_add(into).ok_or(Errno::EUCLEAN)?;
    Ok(Run::At(at, length))
}

/// Names of one block of a folder.
pub(super) fn entries(block: &[u8]) -> Result<Vec<DirEntry>, Errno> {
    let read = |_: kata_cc_bytes::Truncated| Errno::EUCLEAN;
    let name_start = |index: usize| -> Result<usize, Errno> {
        let mut from = Cursor::new(block);
        from.slice(index * ENTRY + 8).map_err(read)?;
        Ok(usize::from(from.u16().map_err(read)?))
    };
    let first = name_start(0)?;
    let count = first / ENTRY;
    if count == 0 || !first.is_multiple_of(ENTRY) || first > block.len() {
        return Err(Errno::EUCLEAN);
    }
    let mut all = Vec::with_capacity(count);
    for index in 0..count {
        let mut from = Cursor::new(block);
        from.slice(index * ENTRY).map_err(read)?;
        let (inode, start, kind) =
            (from.u64().map_err(read)?, from.u16().map_err(read)?, from.u8().map_err(read)?);
        let end = if index + 1 < count { name_start(index + 1)? } else { block.len() };
        let name = block.get(usize::from(start)..end).ok_or(Errno::EUCLEAN)?;
        // Zeros fill a block behind the last name.
        let length = name.iter().position(|byte| *byte == 0);
        let name = match length {
            Some(length) if index + 1 == count => name.get(..length).unwrap_or_default(),
            Some(_) => return Err(Errno::EUCLEAN),
            None => name,
        };
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&b'/') || usize::from(start) < first {
            return Err(Errno::EUCLEAN);
        }
        let kind = match kind {
            1 => FileKind::Regular,
            2 => FileKind::Folder,
            3 => FileKind::CharDevice,
            4 => FileKind::BlockDevice,
            5 => FileKind::Fifo,
            6 => FileKind::Socket,
            7 => FileKind::Symlink,
            _ => return Err(Errno::EUCLEAN),
        };
        all.push(DirEntry { name: name.to_vec(), inode, kind });
    }
    Ok(all)
}

/// Kinds of names of extended attributes (`EROFS_XATTR_INDEX_*`).
fn prefix(index: u8) -> Option<&'static [u8]> {
    Some(match index {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        _ => return None,
    })
}

/// Name and value.
pub(super) type Xattr = (Vec<u8>, Vec<u8>);

/// Bytes of an extended attribute before its name.
pub(super) const XATTR_ENTRY: usize = 4;

/// How many bytes of name and value follow such a beginning.
pub(super) fn xattr_length(head: [u8; XATTR_ENTRY]) -> (usize, usize) {
    let [name, _, low, high] = head;
    (usize::from(name), usize::from(u16::from_le_bytes([low, high])))
}

/// One whose beginning is this; `None` where its kind is not known.
pub(super) fn xattr(head: [u8; XATTR_ENTRY], body: &[u8]) -> Result<Option<Xattr>, Errno> {
    let (name, value) = xattr_length(head);
    let (name, rest) = body.split_at_checked(name).ok_or(Errno::EUCLEAN)?;
    let value = rest.get(..value).ok_or(Errno::EUCLEAN)?;
    if name.contains(&0) {
        return Err(Errno::EUCLEAN);
    }
    Ok(prefix(head[1]).map(|prefix| ([prefix, name].concat(), value.to_vec())))
}

/// Those that lie beside an inode, and the numbers of those that lie elsewhere.
pub(super) fn xattrs(bytes: &[u8]) -> Result<(Vec<Xattr>, Vec<u32>), Errno> {
    let read = |_: kata_cc_bytes::Truncated| Errno::EUCLEAN;
    let mut from = Cursor::new(bytes);
    from.slice(4).map_err(read)?;
    let shared = from.u8().map_err(read)?;
    from.slice(7).map_err(read)?;
    let shared = (0..shared).map(|_| from.u32().map_err(read)).collect::<Result<Vec<_>, _>>()?;
    let mut own = Vec::new();
    while !from.rest().is_empty() {
        let head = from.array::<XATTR_ENTRY>().map_err(read)?;
        let (name, value) = xattr_length(head);
        let length = (XATTR_ENTRY + name + value).next_multiple_of(4) - XATTR_ENTRY;
        own.extend(xattr(head, from.slice(length).map_err(read)?)?);
    }
    Ok((own, shared))
}
