//! Which guest memory is private and which is shared, and the guest's requests to change that.
//!
//! The book is the VMM's own: what it may write is decided here, under the simulated TEEs too, where no
//! hardware does. Requests come from the guest and are untrusted: alignment, overflow and RAM limits are
//! checked before the kernel is asked.

use std::ops::Range;

use super::abi::{HC_MAP_GPA_RANGE, MAP_GPA_ENCRYPTED, MAP_GPA_SIZE_MASK};
use super::ioctls::Side;

const PAGE: u64 = 4096;
/// Most separate private ranges: a guest that alternates page by page is stopped before its book fills the
/// host's memory.
const MAX_RANGES: usize = 1 << 16;

/// Why memory cannot be used as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Not whole pages, none, or beyond the address space.
    #[error("range at {gpa:#x} of {size:#x} bytes is not whole pages within the address space")]
    NotPages {
        /// Start.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// Not RAM of this guest.
    #[error("range at {gpa:#x} of {size:#x} bytes is not within the guest's RAM")]
    NotRam {
        /// Start.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// Private, where only the guest may write.
    #[error("memory at {gpa:#x} is private to the guest: the host must not write it")]
    Private {
        /// First private page.
        gpa: u64,
    },
    /// A page that the launch gives twice.
    #[error("page at {gpa:#x} is in the launch twice")]
    Twice {
        /// Its address.
        gpa: u64,
    },
    /// A request with attributes that are not defined.
    #[error("request to change pages has unknown attributes {0:#x}")]
    Attributes(u64),
    /// Another hypercall.
    #[error("hypercall {0} is not served")]
    Hypercall(u64),
    /// Too many small pieces.
    #[error("the guest has cut its memory into more than {MAX_RANGES} private pieces")]
    Pieces,
}

/// A change of pages that the guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// First byte.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Whether it becomes private.
    pub private: bool,
}

impl Conversion {
    /// Reads `KVM_EXIT_HYPERCALL`: number and arguments (address, pages, attributes).
    ///
    /// # Errors
    /// When it is another hypercall or its arguments make no sense.
    pub fn from_hypercall(number: u64, arguments: [u64; 6]) -> Result<Self, MapError> {
        if number != HC_MAP_GPA_RANGE {
            return Err(MapError::Hypercall(number));
        }
        let [gpa, pages, attributes, ..] = arguments;
        if attributes & !(MAP_GPA_ENCRYPTED | MAP_GPA_SIZE_MASK) != 0 {
            return Err(MapError::Attributes(attributes));
        }
        let size = pages.checked_mul(PAGE).ok_or(MapError::NotPages { gpa, size: u64::MAX })?;
        whole_pages(gpa, size)?;
        Ok(Self { gpa, size, private: attributes & MAP_GPA_ENCRYPTED != 0 })
    }

    /// The side that loses its pages by this change.
    #[must_use]
    pub const fn stale_side(&self) -> Side {
        if self.private { Side::Shared } else { Side::Private }
    }
}

fn whole_pages(gpa: u64, size: u64) -> Result<u64, MapError> {
    let wrong = MapError::NotPages { gpa, size };
    if size == 0 || !gpa.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) {
        return Err(wrong);
    }
    gpa.checked_add(size).ok_or(wrong)
}

/// RAM of a guest and which of it is private.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryBook {
    ram: Vec<Range<u64>>,
    /// Sorted, disjoint, not touching.
    private: Vec<Range<u64>>,
}

impl MemoryBook {
    /// A book of RAM ranges (start, bytes), all shared.
    #[must_use]
    pub fn new(ram: &[(u64, u64)]) -> Self {
        let ram = ram.iter().map(|&(start, bytes)| start..start.saturating_add(bytes)).collect();
        Self { ram, private: Vec::new() }
    }

    /// RAM ranges.
    #[must_use]
    pub fn ram(&self) -> &[Range<u64>] {
        &self.ram
    }

    /// Private ranges in ascending order.
    #[must_use]
    pub fn private(&self) -> &[Range<u64>] {
        &self.private
    }

    fn in_ram(&self, gpa: u64, size: u64) -> Result<Range<u64>, MapError> {
        let end = whole_pages(gpa, size)?;
        if self.ram.iter().any(|ram| ram.start <= gpa && end <= ram.end) {
            return Ok(gpa..end);
        }
        Err(MapError::NotRam { gpa, size })
    }

    /// Enters a change.
    ///
    /// # Errors
    /// When the range is not RAM; nothing is entered then.
    pub fn convert(&mut self, change: &Conversion) -> Result<(), MapError> {
        let range = self.in_ram(change.gpa, change.size)?;
        let mut pieces = Vec::with_capacity(self.private.len() + 1);
        let mut whole = range.clone();
        for old in &self.private {
            if old.end < range.start || range.end < old.start {
                pieces.push(old.clone());
            } else if change.private {
                whole = whole.start.min(old.start)..whole.end.max(old.end);
            } else {
                let kept = [old.start..range.start.min(old.end), range.end.max(old.start)..old.end];
                pieces.extend(kept.into_iter().filter(|kept| kept.start < kept.end));
            }
        }
        if change.private {
            pieces.push(whole);
            pieces.sort_by_key(|piece| piece.start);
        }
        if pieces.len() > MAX_RANGES {
            return Err(MapError::Pieces);
        }
        self.private = pieces;
        Ok(())
    }

    /// Whether the host may write a range: all of it shared RAM. Bytes, not pages.
    ///
    /// # Errors
    /// Names the first private page, or says that it is no RAM.
    pub fn check_shared(&self, gpa: u64, bytes: u64) -> Result<(), MapError> {
        let not_ram = MapError::NotRam { gpa, size: bytes };
        let end = gpa.checked_add(bytes).ok_or(not_ram)?;
        if !self.ram.iter().any(|ram| ram.start <= gpa && end <= ram.end) {
            return Err(not_ram);
        }
        match self.private.iter().find(|range| range.start < end && gpa < range.end) {
            Some(range) => Err(MapError::Private { gpa: range.start.max(gpa) & !(PAGE - 1) }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(gpa: u64, pages: u64, private: bool) -> Conversion {
        Conversion { gpa, size: pages * PAGE, private }
    }

    #[test]
    fn a_hypercall_is_read_and_nonsense_is_refused() {
        let read = |number, gpa, pages, attributes| {
            Conversion::from_hypercall(number, [gpa, pages, attributes, 0, 0, 0])
        };
        assert_eq!(read(12, 0x1000, 2, 0x10), Ok(change(0x1000, 2, true)));
        assert_eq!(read(12, 0x20_0000, 512, 0x01), Ok(change(0x20_0000, 512, false)));
        assert_eq!(read(11, 0x1000, 2, 0x10), Err(MapError::Hypercall(11)));
        assert_eq!(read(12, 0x1000, 2, 0x20), Err(MapError::Attributes(0x20)));
        assert!(matches!(read(12, 0x1001, 2, 0), Err(MapError::NotPages { .. })));
        assert!(matches!(read(12, 0x1000, 0, 0), Err(MapError::NotPages { .. })));
        assert!(matches!(read(12, 0x1000, u64::MAX / 2, 0), Err(MapError::NotPages { .. })));
        assert!(matches!(read(12, u64::MAX - 0xFFF, 2, 0), Err(MapError::NotPages { .. })));
    }

    #[test]
    fn the_book_is_that_of_a_page_by_page_one() {
        let mut book = MemoryBook::new(&[(0, 64 * PAGE), (128 * PAGE, 64 * PAGE)]);
        let mut naive = [false; 192];
        let mut seed = 12_345_u32;
        let mut random = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u64::from((seed >> 8) % below)
        };
        for _ in 0..2000 {
            let (start, pages, private) = (random(192), random(20), random(2) == 1);
            let fits = pages > 0 && (start + pages <= 64 || (start >= 128 && start + pages <= 192));
            assert_eq!(book.convert(&change(start * PAGE, pages, private)).is_ok(), fits);
            if fits {
                naive[start as usize..(start + pages) as usize].fill(private);
            }
            for (page, private) in (0..).zip(naive) {
                let ram = !(64..128).contains(&page);
                let seen = book.check_shared(page * PAGE + 5, 1);
                let expected = match (ram, private) {
                    (false, _) => Err(MapError::NotRam { gpa: page * PAGE + 5, size: 1 }),
                    (true, true) => Err(MapError::Private { gpa: page * PAGE }),
                    (true, false) => Ok(()),
                };
                assert_eq!(seen, expected);
            }
            assert!(book.private().windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }

    #[test]
    fn a_guest_cannot_fill_the_host_with_its_book() {
        let mut book = MemoryBook::new(&[(0, 1 << 40)]);
        book.private = (0..MAX_RANGES as u64).map(|n| n * 2 * PAGE..(n * 2 + 1) * PAGE).collect();
        let before = book.clone();
        assert_eq!(book.convert(&change(1 << 39, 1, true)), Err(MapError::Pieces));
        assert_eq!(book, before);
    }
}
