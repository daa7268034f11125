//! A kernel file that proved to be the measured one, taken apart: what goes where, and where to enter.
//!
//! The file is what the owner measured, so its fields are no attack of the host's; they are checked
//! nevertheless, since a kernel that asks for the impossible must be refused by name.

mod bzimage;
mod elf;

use kata_cc_stage0_abi::{KernelKind, Termination};

use crate::platform::layout::{COMMAND_LINE_MAX, MMIO_HOLE, RESERVED_END};

/// End of where a kernel may lie, as for a direct boot.
const KERNEL_END: u64 = 1 << 30;
/// Most parts; Linux has five.
const MAX_SEGMENTS: usize = 32;
/// Most bytes of a setup header: from 0x1f1 to 0x290 of the boot parameters.
pub const SETUP_HEADER_MAX: usize = 0x290 - 0x1f1;

/// A part of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub offset: u64,
    /// Physical address.
    pub address: u64,
    /// Bytes in the file.
    pub content: u64,
    /// Bytes in memory; what the file does not fill is zero.
    pub memory: u64,
}

/// What the boot must know of a kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    segments: [Segment; MAX_SEGMENTS],
    count: usize,
    /// Physical address of the 64-bit entry.
    pub entry: u64,
    /// First byte of all that it uses before it looks at the memory map.
    pub start: u64,
    /// First byte after that.
    pub end: u64,
    /// Setup header for the boot parameters from 0x1f1 on; empty for a `vmlinux`.
    setup_header: [u8; SETUP_HEADER_MAX],
    setup_header_length: usize,
    /// Most bytes of a command line, without its final zero.
    pub command_line_max: u64,
    /// First byte after where an initramfs may lie.
    pub initramfs_end: u64,
}

impl Kernel {
    /// Takes the file apart.
    ///
    /// # Errors
    /// When it is not of that kind, is malformed, or its parts lie where they must not.
    pub fn parse(file: &[u8], kind: KernelKind) -> Result<Self, Termination> {
        match kind {
            KernelKind::BzImage => bzimage::parse(file),
            KernelKind::Vmlinux => elf::parse(file),
        }
    }

    /// Its parts, ascending by address.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        self.segments.get(..self.count).unwrap_or_default()
    }

    /// Setup header for the boot parameters, from 0x1f1 on; `None` for a `vmlinux`.
    #[must_use]
    pub fn setup_header(&self) -> Option<&[u8]> {
        self.setup_header.get(..self.setup_header_length).filter(|header| !header.is_empty())
    }

    fn empty() -> Self {
        Self {
            segments: [Segment::default(); MAX_SEGMENTS],
            count: 0,
            entry: 0,
            start: u64::MAX,
            end: 0,
            setup_header: [0; SETUP_HEADER_MAX],
            setup_header_length: 0,
            command_line_max: COMMAND_LINE_MAX,
            initramfs_end: MMIO_HOLE,
        }
    }

    /// Adds a part, in its order, after checking that it may lie there.
    fn add(&mut self, segment: Segment, file: &[u8]) -> Result<(), Termination> {
        let end = segment.address.checked_add(segment.memory).filter(|end| *end <= KERNEL_END);
        let end = end.ok_or(Termination::KernelSegments)?;
        let in_file = segment.offset.checked_add(segment.content).is_some_and(|end| end <= file.len() as u64);
        if !in_file || segment.content > segment.memory {
            return Err(Termination::KernelHeader);
        }
        // in ascending order they cannot overlap
        if segment.address < RESERVED_END || segment.address < self.end {
            return Err(Termination::KernelSegments);
        }
        *self.segments.get_mut(self.count).ok_or(Termination::KernelHeader)? = segment;
        self.count += 1;
        self.start = self.start.min(segment.address);
        self.end = end;
        Ok(())
    }
}

/// Little-endian fields of a file, never beyond its end.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(self, offset: u64) -> Result<[u8; N], Termination> {
        let start = usize::try_from(offset).map_err(|_| Termination::KernelHeader)?;
        self.0.get(start..).and_then(<[u8]>::first_chunk).copied().ok_or(Termination::KernelHeader)
    }

    fn u8(self, offset: u64) -> Result<u8, Termination> {
        self.array::<1>(offset).map(|[byte]| byte)
    }

    fn u16(self, offset: u64) -> Result<u16, Termination> {
        self.array(offset).map(u16::from_le_bytes)
    }

    fn u32(self, offset: u64) -> Result<u32, Termination> {
        self.array(offset).map(u32::from_le_bytes)
    }

    fn u64(self, offset: u64) -> Result<u64, Termination> {
        self.array(offset).map(u64::from_le_bytes)
    }
}

fn require(holds: bool, otherwise: Termination) -> Result<(), Termination> {
    if holds { Ok(()) } else { Err(otherwise) }
}
