//! The boot info: what the host tells stage0 about where memory and payloads are. Not measured, in shared
//! memory, so the host's word at any moment: stage0 copies the page once, and what the copy says is only
//! ever a claim about places. A false one makes the boot fail; it cannot change what is booted.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `KCCINFO\0` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | number of ranges, 1 … 32 |
//! | 16 | 8 | address of the kernel file |
//! | 24 | 8 | address of the initramfs; 0: none |
//! | 32 | 32 | zero |
//! | 64 | 16 each | ranges of RAM: start, length |
//! | … | | zero |
//!
//! Kernel and initramfs begin at a multiple of 2 MiB and have the rest of their last 2 MiB to themselves,
//! so that what was shared is given back in whole large pages.

use core::fmt;

use crate::cursor::{Page, put};
use crate::layout::{LARGE_PAGE, MMIO_HOLE, MMIO_HOLE_END, PAGE_SIZE, RAM_END, RESERVED_END};

const MAGIC: [u8; 8] = *b"KCCINFO\0";
const VERSION: u32 = 1;
const RANGES: usize = 64;
const RANGE_BYTES: usize = 16;
/// Most ranges of RAM.
pub const MAX_RANGES: usize = 32;

/// A range of RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryRange {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

impl MemoryRange {
    /// First byte after it; saturates, which no range that passed [`BootInfo::parse`] does.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }

    /// Whether the two have a byte in common.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }
}

/// Where memory and payloads are, as the host says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// Address of the kernel file in shared memory.
    pub kernel: u64,
    /// Address of the initramfs in shared memory; 0 when there is none.
    pub initramfs: u64,
    ranges: [MemoryRange; MAX_RANGES],
    count: usize,
}

/// Why a boot info was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootInfoError {
    /// The page does not begin with the magic.
    Magic,
    /// Another version.
    Version,
    /// No range of RAM or more than [`MAX_RANGES`].
    RangeCount,
    /// A range is not made of whole pages, is empty, or ends beyond what an address can be.
    RangeBounds,
    /// Ranges are not in order or overlap.
    RangeOrder,
    /// A range has addresses of the hole below 4 GiB, where devices are.
    RangeInHole,
    /// The first range does not have the first 2 MiB, where stage0 itself is.
    FirstRange,
    /// A payload does not begin at a multiple of 2 MiB.
    PayloadAlignment,
    /// A reserved byte is not zero.
    Reserved,
}

impl fmt::Display for BootInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Magic => "boot info does not begin with its magic",
            Self::Version => "boot info has another version",
            Self::RangeCount => "boot info has no range of memory or too many",
            Self::RangeBounds => "boot info has a range of memory with impossible bounds",
            Self::RangeOrder => "boot info has ranges of memory that overlap or are out of order",
            Self::RangeInHole => "boot info has a range of memory where devices are",
            Self::FirstRange => "boot info does not have the first 2 MiB of memory",
            Self::PayloadAlignment => "boot info has a payload that is not aligned to 2 MiB",
            Self::Reserved => "boot info has a reserved byte that is not zero",
        })
    }
}

impl core::error::Error for BootInfoError {}

impl BootInfo {
    /// Puts it together.
    ///
    /// # Errors
    /// When stage0 would refuse it.
    pub fn new(kernel: u64, initramfs: u64, ranges: &[MemoryRange]) -> Result<Self, BootInfoError> {
        let mut own = [MemoryRange::default(); MAX_RANGES];
        own.get_mut(..ranges.len()).ok_or(BootInfoError::RangeCount)?.copy_from_slice(ranges);
        let info = Self { kernel, initramfs, ranges: own, count: ranges.len() };
        info.check()?;
        Ok(info)
    }

    /// RAM, in ascending order.
    #[must_use]
    pub fn ranges(&self) -> &[MemoryRange] {
        self.ranges.get(..self.count).unwrap_or_default()
    }

    /// The page as the guest finds it.
    #[must_use]
    pub fn to_page(&self) -> [u8; 4096] {
        let mut page = [0; 4096];
        put(&mut page, 0, &MAGIC);
        put(&mut page, 8, &VERSION.to_le_bytes());
        put(&mut page, 12, &(self.count as u32).to_le_bytes());
        put(&mut page, 16, &self.kernel.to_le_bytes());
        put(&mut page, 24, &self.initramfs.to_le_bytes());
        for (index, range) in self.ranges().iter().enumerate() {
            let at = RANGES + index * RANGE_BYTES;
            put(&mut page, at, &range.start.to_le_bytes());
            put(&mut page, at + 8, &range.length.to_le_bytes());
        }
        page
    }

    /// Reads a private copy of the page.
    ///
    /// # Errors
    /// When a field has a value it cannot have, or the ranges contradict one another.
    pub fn parse(page: &[u8; 4096]) -> Result<Self, BootInfoError> {
        let page = Page(page);
        if page.array(0) != MAGIC {
            return Err(BootInfoError::Magic);
        }
        if page.u32(8) != VERSION {
            return Err(BootInfoError::Version);
        }
        let count = page.u32(12) as usize;
        if !(1..=MAX_RANGES).contains(&count) {
            return Err(BootInfoError::RangeCount);
        }
        if page.array(32) != [0; 32] || page.first_nonzero(RANGES + count * RANGE_BYTES).is_some() {
            return Err(BootInfoError::Reserved);
        }
        let mut ranges = [MemoryRange::default(); MAX_RANGES];
        for (index, range) in ranges.iter_mut().take(count).enumerate() {
            let at = RANGES + index * RANGE_BYTES;
            *range = MemoryRange { start: page.u64(at), length: page.u64(at + 8) };
        }
        let info = Self { kernel: page.u64(16), initramfs: page.u64(24), ranges, count };
        info.check()?;
        Ok(info)
    }

    fn check(&self) -> Result<(), BootInfoError> {
        let mut last_end = 0;
        for range in self.ranges() {
            check_bounds(range)?;
            if range.start < last_end {
                return Err(BootInfoError::RangeOrder);
            }
            last_end = range.end();
        }
        match self.ranges().first() {
            None => return Err(BootInfoError::RangeCount),
            Some(first) if first.start != 0 || first.length < RESERVED_END => {
                return Err(BootInfoError::FirstRange);
            }
            Some(_) => {}
        }
        let aligned = |address: u64| address.is_multiple_of(LARGE_PAGE);
        if !aligned(self.kernel) || !aligned(self.initramfs) {
            return Err(BootInfoError::PayloadAlignment);
        }
        Ok(())
    }
}

fn check_bounds(range: &MemoryRange) -> Result<(), BootInfoError> {
    let aligned = range.start.is_multiple_of(PAGE_SIZE) && range.length.is_multiple_of(PAGE_SIZE);
    let end = range.start.checked_add(range.length).filter(|end| *end <= RAM_END);
    if !aligned || range.length == 0 || end.is_none() {
        return Err(BootInfoError::RangeBounds);
    }
    if range.overlaps(&MemoryRange { start: MMIO_HOLE, length: MMIO_HOLE_END - MMIO_HOLE }) {
        return Err(BootInfoError::RangeInHole);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn range(start: u64, length: u64) -> MemoryRange {
        MemoryRange { start, length }
    }

    fn info() -> BootInfo {
        let ranges = [range(0, MMIO_HOLE), range(MMIO_HOLE_END, 64 * MIB)];
        BootInfo::new(64 * MIB, 96 * MIB, &ranges).expect("valid")
    }

    fn with_ranges(ranges: &[MemoryRange]) -> Result<BootInfo, BootInfoError> {
        BootInfo::new(64 * MIB, 0, ranges)
    }

    fn changed(change: impl FnOnce(&mut [u8; 4096])) -> Result<BootInfo, BootInfoError> {
        let mut page = info().to_page();
        change(&mut page);
        BootInfo::parse(&page)
    }

    #[test]
    fn is_read_as_it_was_written() {
        assert_eq!(BootInfo::parse(&info().to_page()), Ok(info()));
        assert_eq!(info().ranges().len(), 2);
        let many: [MemoryRange; MAX_RANGES] = core::array::from_fn(|n| range(n as u64 * 4 * MIB, 2 * MIB));
        let many = with_ranges(&many).expect("valid");
        assert_eq!(BootInfo::parse(&many.to_page()), Ok(many));
    }

    #[test]
    fn refuses_another_magic_version_or_count() {
        assert_eq!(changed(|page| page[0] = 0), Err(BootInfoError::Magic));
        assert_eq!(changed(|page| page[8] = 0), Err(BootInfoError::Version));
        assert_eq!(changed(|page| page[12] = 0), Err(BootInfoError::RangeCount));
        assert_eq!(changed(|page| page[12] = 33), Err(BootInfoError::RangeCount));
        assert_eq!(changed(|page| page[12..16].fill(0xff)), Err(BootInfoError::RangeCount));
        assert_eq!(with_ranges(&[]), Err(BootInfoError::RangeCount));
        assert_eq!(with_ranges(&[range(0, 2 * MIB); 33]), Err(BootInfoError::RangeCount));
    }

    #[test]
    fn refuses_reserved_bytes_that_are_not_zero() {
        for offset in (32..64).chain([96, 97, 4095]) {
            assert_eq!(changed(|page| page[offset] = 1), Err(BootInfoError::Reserved), "{offset}");
        }
        // a count that hides a range leaves its bytes behind
        assert_eq!(changed(|page| page[12] = 1), Err(BootInfoError::Reserved));
    }

    #[test]
    fn refuses_forged_ranges() {
        let first = range(0, 64 * MIB);
        let second = |start, length| with_ranges(&[first, range(start, length)]);
        assert_eq!(second(65 * MIB + 1, MIB), Err(BootInfoError::RangeBounds));
        assert_eq!(second(65 * MIB, MIB + 1), Err(BootInfoError::RangeBounds));
        assert_eq!(second(65 * MIB, 0), Err(BootInfoError::RangeBounds));
        assert_eq!(second(5 << 30, u64::MAX - 4095), Err(BootInfoError::RangeBounds));
        assert_eq!(second(RAM_END - MIB, 2 * MIB), Err(BootInfoError::RangeBounds));
        assert_eq!(second(63 * MIB, 2 * MIB), Err(BootInfoError::RangeOrder));
        assert_eq!(second(0, MIB), Err(BootInfoError::RangeOrder));
        assert_eq!(second(MMIO_HOLE - MIB, 2 * MIB), Err(BootInfoError::RangeInHole));
        assert_eq!(second(2 << 30, 4 << 30), Err(BootInfoError::RangeInHole));
        assert_eq!(with_ranges(&[range(0, MIB)]), Err(BootInfoError::FirstRange));
        assert_eq!(with_ranges(&[range(4096, 64 * MIB)]), Err(BootInfoError::FirstRange));
    }

    #[test]
    fn refuses_payloads_out_of_step() {
        let ranges = [range(0, 64 * MIB)];
        assert_eq!(BootInfo::new(3 * MIB, 0, &ranges), Err(BootInfoError::PayloadAlignment));
        assert_eq!(BootInfo::new(4 * MIB, 8 * MIB + 4096, &ranges), Err(BootInfoError::PayloadAlignment));
    }
}
