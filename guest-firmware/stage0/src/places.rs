//! Which memory is used for what while the boot goes on, and which of it has been accepted.
//!
//! Everything beyond the first 2 MiB is taken in whole units of 2 MiB, so that what the guest has to
//! accept itself is made of whole units too, as its table of unaccepted memory wants it.

use kata_cc_stage0_abi::{BootBlock, BootInfo, MemoryRange};

use crate::platform::layout::{LARGE_PAGE, MMIO_HOLE, PAGE_SIZE, RESERVED_END, TABLES, TABLES_END};
use crate::platform::{PhysRange, Platform, Termination};
use crate::ranges::{Full, RangeSet};

/// Memory below the legacy hole, in whole pages.
pub const LOW_MEMORY_END: u64 = 0x9_F000;
/// The page for the MP table.
const MP_PAGE: u64 = 0xF_0000;

impl From<Full> for Termination {
    fn from(_: Full) -> Self {
        Self::OutOfMemory
    }
}

/// Where the host put the payloads: whole units of 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The kernel file.
    pub kernel: PhysRange,
    /// The initramfs.
    pub initramfs: Option<PhysRange>,
}

/// The book of memory.
#[derive(Debug)]
pub struct Places {
    info: BootInfo,
    used: RangeSet,
    accepted: RangeSet,
}

impl Places {
    /// Checks where the payloads are and begins the book with them.
    ///
    /// # Errors
    /// When a payload lies where it must not.
    pub fn new(info: BootInfo, block: &BootBlock) -> Result<(Self, Sources), Termination> {
        let kernel = source(&info, info.kernel, block.kernel.length)?;
        let initramfs = match (info.initramfs, &block.initramfs) {
            (0, None) => None,
            (address, Some(sealed)) if address != 0 => Some(source(&info, address, sealed.length)?),
            _ => return Err(Termination::InitramfsMismatch),
        };
        if initramfs.is_some_and(|initramfs| initramfs.overlaps(kernel)) {
            return Err(Termination::PayloadsOverlap);
        }
        let mut places = Self { info, used: RangeSet::new(), accepted: RangeSet::new() };
        for range in [Some(kernel), initramfs].into_iter().flatten() {
            places.used.insert(range)?;
        }
        Ok((places, Sources { kernel, initramfs }))
    }

    /// RAM as the host says.
    #[must_use]
    pub fn ram(&self) -> &[MemoryRange] {
        self.info.ranges()
    }

    /// Whether the unit of 2 MiB at `start` is accepted, so that the guest need not.
    #[must_use]
    pub fn is_accepted(&self, start: u64) -> bool {
        unit(start, 1).is_none_or(|unit| self.accepted.contains(unit))
    }

    /// Accepts what the boot uses of the first 2 MiB beside the launch pages.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn accept_low(&mut self, platform: &mut impl Platform) -> Result<(), Termination> {
        let parts = [(0, LOW_MEMORY_END), (MP_PAGE, MP_PAGE + PAGE_SIZE), (TABLES, TABLES_END)];
        for range in parts.into_iter().filter_map(|(start, end)| PhysRange::new(start, end)) {
            platform.accept(range)?;
        }
        if let Some(all) = PhysRange::new(0, RESERVED_END) {
            self.accepted.insert(all)?;
        }
        Ok(())
    }

    /// Takes the highest free place below `limit` for `length` bytes, and accepts it.
    ///
    /// # Errors
    /// When there is no such place, or the platform refuses.
    pub fn take_high(
        &mut self,
        platform: &mut impl Platform,
        length: u64,
        limit: u64,
    ) -> Result<PhysRange, Termination> {
        let place = self.highest(length, limit).ok_or(Termination::OutOfMemory)?;
        self.take(platform, place)?;
        Ok(place)
    }

    /// Takes the units that have at least one of `length` bytes from `start` on, and accepts them.
    ///
    /// # Errors
    /// When they are not all free RAM, or the platform refuses.
    pub fn take_at(
        &mut self,
        platform: &mut impl Platform,
        start: u64,
        length: u64,
    ) -> Result<PhysRange, Termination> {
        let place = unit(start, length).ok_or(Termination::KernelPlace)?;
        let free =
            place.start() >= RESERVED_END && in_low_ram(&self.info, place) && !self.used.overlaps(place);
        if !free {
            return Err(Termination::KernelPlace);
        }
        self.take(platform, place)?;
        Ok(place)
    }

    fn take(&mut self, platform: &mut impl Platform, place: PhysRange) -> Result<(), Termination> {
        let mut missing = RangeSet::new();
        missing.insert(place)?;
        for accepted in self.accepted.iter() {
            missing.remove(accepted)?;
        }
        for range in missing.iter() {
            platform.accept(range)?;
        }
        self.accepted.insert(place)?;
        self.used.insert(place)?;
        Ok(())
    }

    /// Ends the use of a place; it stays accepted.
    ///
    /// # Errors
    /// When the book is full.
    pub fn give_back(&mut self, place: PhysRange) -> Result<(), Termination> {
        Ok(self.used.remove(place)?)
    }

    /// Turns a payload's shared place, which was read, into free private memory.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn reclaim(&mut self, platform: &mut impl Platform, source: PhysRange) -> Result<(), Termination> {
        platform.unshare(source)?;
        self.accepted.insert(source)?;
        self.give_back(source)
    }

    fn highest(&self, length: u64, limit: u64) -> Option<PhysRange> {
        let length = length.checked_next_multiple_of(LARGE_PAGE).filter(|length| *length > 0)?;
        let limit = limit.min(MMIO_HOLE);
        let below = self.ram().iter().rev().filter(|range| range.start < limit);
        below.filter_map(|range| self.highest_in(range, length, limit)).next()
    }

    fn highest_in(&self, ram: &MemoryRange, length: u64, limit: u64) -> Option<PhysRange> {
        let floor = ram.start.max(RESERVED_END).next_multiple_of(LARGE_PAGE);
        let mut end = ram.end().min(limit) & !(LARGE_PAGE - 1);
        loop {
            let start = end.checked_sub(length).filter(|start| *start >= floor)?;
            let place = PhysRange::new(start, end)?;
            match self.used.iter().find(|used| used.overlaps(place)) {
                None => return Some(place),
                Some(used) => end = used.start(),
            }
        }
    }
}

/// The units of 2 MiB that have at least one of `length` bytes from `start` on.
fn unit(start: u64, length: u64) -> Option<PhysRange> {
    let end = start.checked_add(length)?.checked_next_multiple_of(LARGE_PAGE)?;
    PhysRange::new(start & !(LARGE_PAGE - 1), end)
}

fn in_low_ram(info: &BootInfo, place: PhysRange) -> bool {
    let place = MemoryRange { start: place.start(), length: place.length() };
    place.end() <= MMIO_HOLE && info.ranges().iter().any(|ram| ram.contains(&place))
}

/// A payload's place, if it may be there.
fn source(info: &BootInfo, address: u64, length: u64) -> Result<PhysRange, Termination> {
    let place = unit(address, length).ok_or(Termination::PayloadOutsideMemory)?;
    if place.start() < RESERVED_END {
        return Err(Termination::PayloadInReservedMemory);
    }
    if in_low_ram(info, place) { Ok(place) } else { Err(Termination::PayloadOutsideMemory) }
}
