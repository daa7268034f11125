//! The book of pages that are private: what the launch made so, and what stage0 accepted since.
//!
//! A page that is validated or accepted a second time lost its content in between, or stands for two pages at once:
//! the host can then exchange what stage0 has checked (replay). The boot keeps a plan of what it accepts; this book
//! is what refuses when plan and host between them would get it wrong.

use crate::platform::PhysRange;
use crate::ranges::{Full, RangeSet};

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

impl From<Full> for BookError {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

/// The private pages.
#[derive(Debug, Default)]
pub struct PrivatePages(RangeSet);

impl PrivatePages {
    /// Enters a range that becomes private. Called before the processor is asked, so that a failure half-way
    /// leaves pages entered that are not private rather than the other way round.
    ///
    /// # Errors
    /// When a page of it is private already, or there is no room.
    pub fn enter(&mut self, range: PhysRange) -> Result<(), BookError> {
        if self.0.overlaps(range) {
            return Err(BookError::AlreadyPrivate);
        }
        Ok(self.0.insert(range)?)
    }

    /// Takes out a range that becomes shared.
    ///
    /// # Errors
    /// When a page of it is not private, or there is no room.
    pub fn remove(&mut self, range: PhysRange) -> Result<(), BookError> {
        if !self.0.contains(range) {
            return Err(BookError::NotPrivate);
        }
        Ok(self.0.remove(range)?)
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
        book.remove(range(2, 5)).expect("neighbours are one range");
    }

    #[test]
    fn only_private_pages_become_shared() {
        let mut book = PrivatePages::default();
        book.enter(range(2, 8)).expect("first");
        assert_eq!(book.remove(range(7, 9)), Err(BookError::NotPrivate));
        book.remove(range(4, 5)).expect("hole");
        assert_eq!(book.remove(range(4, 5)), Err(BookError::NotPrivate));
        book.enter(range(4, 5)).expect("back again");
        book.remove(range(2, 8)).expect("all of it");
    }

    #[test]
    fn is_full_at_some_point() {
        let mut book = PrivatePages::default();
        let room = (0..1000).take_while(|index| book.enter(range(index * 2, index * 2 + 1)).is_ok()).count();
        assert!((16..100).contains(&room));
        assert_eq!(book.enter(range(3000, 3001)), Err(BookError::Full));
        book.remove(range(0, 1)).expect("what is there can go");
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
                    assert_eq!(book.0.contains(range(page, page + 1)), pages.contains(&page));
                }
            }
        }
    }
}
