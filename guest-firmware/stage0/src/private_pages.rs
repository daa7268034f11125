//! The book of pages that are private: what the launch made so, and what stage0 accepted since.
//!
//! A page that is validated or accepted a second time lost its content in between, or stands for two pages at once:
//! the host can then exchange what stage0 has checked (replay). The boot keeps a plan of what it accepts; this book
//! is what refuses when plan and host between them would get it wrong.

use crate::platform::PhysRange;

/// Separate ranges that the book can hold. The boot accepts a handful; neighbours are joined.
const MAX_RANGES: usize = 48;

/// Why a range cannot be entered or taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BookError {
    /// a page of the range is private already
    AlreadyPrivate,
    /// a page of the range is not private
    NotPrivate,
    /// too many separate ranges
    Full,
}

/// Ranges of private memory: ascending, disjoint, not touching.
#[derive(Debug)]
pub struct PrivatePages {
    ranges: [Option<PhysRange>; MAX_RANGES],
}

impl Default for PrivatePages {
    fn default() -> Self {
        Self { ranges: [None; MAX_RANGES] }
    }
}

impl PrivatePages {
    fn iter(&self) -> impl Iterator<Item = PhysRange> {
        self.ranges.iter().copied().flatten()
    }

    /// Whether all of the range is private.
    #[must_use]
    pub fn contains(&self, range: PhysRange) -> bool {
        self.iter().any(|known| known.contains(range))
    }

    /// Whether a page of the range is private.
    #[must_use]
    pub fn overlaps(&self, range: PhysRange) -> bool {
        self.iter().any(|known| known.overlaps(range))
    }

    /// Enters a range that becomes private. Called before the processor is asked, so that a failure half-way
    /// leaves pages entered that are not private rather than the other way round.
    ///
    /// # Errors
    /// When a page of it is private already, or there is no room.
    pub fn enter(&mut self, range: PhysRange) -> Result<(), BookError> {
        if self.overlaps(range) {
            return Err(BookError::AlreadyPrivate);
        }
        let before = self.take(|known| known.end() == range.start());
        let behind = self.take(|known| known.start() == range.end());
        let start = before.map_or(range.start(), PhysRange::start);
        let end = behind.map_or(range.end(), PhysRange::end);
        self.put(PhysRange::new(start, end))
    }

    /// Takes out a range that becomes shared.
    ///
    /// # Errors
    /// When a page of it is not private, or there is no room.
    pub fn remove(&mut self, range: PhysRange) -> Result<(), BookError> {
        let known = self.take(|known| known.contains(range)).ok_or(BookError::NotPrivate)?;
        self.put(PhysRange::new(known.start(), range.start()))?;
        self.put(PhysRange::new(range.end(), known.end()))
    }

    fn take(&mut self, which: impl Fn(PhysRange) -> bool) -> Option<PhysRange> {
        self.ranges.iter_mut().find(|slot| slot.is_some_and(&which)).and_then(Option::take)
    }

    /// An empty range needs no slot.
    fn put(&mut self, range: Option<PhysRange>) -> Result<(), BookError> {
        if range.is_some() {
            *self.ranges.iter_mut().find(|slot| slot.is_none()).ok_or(BookError::Full)? = range;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::test_random::Random;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(start * 4096, end * 4096).expect("range")
    }

    #[test]
    fn a_page_is_entered_once() {
        let mut book = PrivatePages::default();
        book.enter(range(2, 4)).expect("first");
        assert_eq!(book.enter(range(3, 5)), Err(BookError::AlreadyPrivate));
        assert_eq!(book.enter(range(1, 3)), Err(BookError::AlreadyPrivate));
        book.enter(range(4, 5)).expect("neighbour");
        assert!(book.contains(range(2, 5)), "neighbours are one range");
    }

    #[test]
    fn only_private_pages_become_shared() {
        let mut book = PrivatePages::default();
        book.enter(range(2, 8)).expect("first");
        assert_eq!(book.remove(range(7, 9)), Err(BookError::NotPrivate));
        book.remove(range(4, 5)).expect("hole");
        assert!(book.contains(range(2, 4)) && book.contains(range(5, 8)) && !book.overlaps(range(4, 5)));
        assert_eq!(book.remove(range(4, 5)), Err(BookError::NotPrivate));
        book.enter(range(4, 5)).expect("back again");
        assert!(book.contains(range(2, 8)));
    }

    #[test]
    fn is_full_at_some_point() {
        let mut book = PrivatePages::default();
        for index in 0..MAX_RANGES as u64 {
            book.enter(range(index * 2, index * 2 + 1)).expect("room");
        }
        assert_eq!(book.enter(range(1000, 1001)), Err(BookError::Full));
    }

    #[test]
    fn agrees_with_a_set_of_pages() {
        let mut random = Random::new(1);
        for _ in 0..200 {
            let (mut book, mut pages) = (PrivatePages::default(), BTreeSet::new());
            for _ in 0..60 {
                let start = random.below(60);
                let end = start + 1 + random.below(6);
                let entered = (start..end).filter(|page| pages.contains(page)).count() as u64;
                if random.below(2) == 0 {
                    let result = book.enter(range(start, end));
                    assert_eq!(result.is_ok(), entered == 0);
                    if result.is_ok() {
                        pages.extend(start..end);
                    }
                } else {
                    let result = book.remove(range(start, end));
                    assert_eq!(result.is_ok(), entered == end - start);
                    if result.is_ok() {
                        pages.retain(|page| !(start..end).contains(page));
                    }
                }
                for page in 0..70 {
                    assert_eq!(book.contains(range(page, page + 1)), pages.contains(&page));
                }
            }
        }
    }
}
