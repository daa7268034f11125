//! A set of ranges of memory, in a fixed amount of space.

use crate::platform::PhysRange;

/// Most ranges that are apart.
const MAX: usize = 24;

/// Ranges in ascending order that neither overlap nor touch.
#[derive(Clone, Debug, Default)]
pub struct RangeSet {
    ranges: [Option<PhysRange>; MAX],
    count: usize,
}

/// More ranges than the set has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: [None; MAX], count: 0 }
    }

    /// Its ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = PhysRange> {
        self.ranges.iter().flatten().copied()
    }

    /// Whether it has a byte of `range`.
    #[must_use]
    pub fn overlaps(&self, range: PhysRange) -> bool {
        self.iter().any(|one| one.overlaps(range))
    }

    /// Whether it has all bytes of `range`.
    #[must_use]
    pub fn contains(&self, range: PhysRange) -> bool {
        self.iter().any(|one| one.contains(range))
    }

    /// Adds a range; what it overlaps or touches becomes one with it.
    ///
    /// # Errors
    /// When there is no room; the set is unchanged then.
    pub fn insert(&mut self, range: PhysRange) -> Result<(), Full> {
        let touches = |one: PhysRange| one.start() <= range.end() && range.start() <= one.end();
        let joined = self.iter().filter(|one| touches(*one)).fold(range, |all, one| {
            let (start, end) = (all.start().min(one.start()), all.end().max(one.end()));
            PhysRange::new(start, end).unwrap_or(all)
        });
        let others = || self.iter().filter(|one| !touches(*one));
        let mut result = Self::new();
        let before = others().filter(|one| one.start() < joined.start());
        let after = others().filter(|one| one.start() > joined.start());
        for one in before.chain([joined]).chain(after) {
            result.push(one)?;
        }
        *self = result;
        Ok(())
    }

    /// Takes away all bytes of `range`.
    ///
    /// # Errors
    /// When a range falls apart in two and there is no room.
    pub fn remove(&mut self, range: PhysRange) -> Result<(), Full> {
        let mut result = Self::new();
        for one in self.iter() {
            let below = PhysRange::new(one.start(), one.end().min(range.start()));
            let above = PhysRange::new(one.start().max(range.end()), one.end());
            for part in below.into_iter().chain(above) {
                result.push(part)?;
            }
        }
        *self = result;
        Ok(())
    }

    fn push(&mut self, range: PhysRange) -> Result<(), Full> {
        *self.ranges.get_mut(self.count).ok_or(Full)? = Some(range);
        self.count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(start * 4096, end * 4096).expect("range")
    }

    fn list(set: &RangeSet) -> Vec<(u64, u64)> {
        set.iter().map(|range| (range.start() / 4096, range.end() / 4096)).collect()
    }

    #[test]
    fn joins_what_overlaps_or_touches() {
        let mut set = RangeSet::new();
        for (start, end) in [(10, 12), (1, 3), (5, 6), (3, 5)] {
            set.insert(range(start, end)).expect("room");
        }
        assert_eq!(list(&set), [(1, 6), (10, 12)]);
        set.insert(range(0, 20)).expect("room");
        assert_eq!(list(&set), [(0, 20)]);
    }

    #[test]
    fn takes_apart() {
        let mut set = RangeSet::new();
        set.insert(range(0, 20)).expect("room");
        set.remove(range(5, 6)).expect("room");
        set.remove(range(0, 1)).expect("room");
        set.remove(range(18, 30)).expect("room");
        assert_eq!(list(&set), [(1, 5), (6, 18)]);
        assert!(set.contains(range(6, 18)) && !set.contains(range(4, 7)));
        assert!(set.overlaps(range(4, 6)) && !set.overlaps(range(5, 6)));
    }

    #[test]
    fn is_not_changed_when_full() {
        let mut set = RangeSet::new();
        for n in 0..MAX as u64 {
            set.insert(range(n * 2, n * 2 + 1)).expect("room");
        }
        let before = list(&set);
        assert_eq!(set.insert(range(1000, 1001)), Err(Full));
        assert_eq!(list(&set), before);
        set.insert(range(1, 2)).expect("joins two");
        assert_eq!(set.iter().count(), MAX - 1);
    }

    /// Against a set of pages kept in the simplest way.
    #[test]
    fn does_as_a_list_of_pages_does() {
        let mut seed = 88_172_645_463_325_252_u64;
        let mut next = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let (mut set, mut pages) = (RangeSet::new(), [false; 40]);
        for _ in 0..5000 {
            let start = next(39);
            let end = start + 1 + next(40 - start);
            let insert = next(2) == 0;
            let done = if insert { set.insert(range(start, end)) } else { set.remove(range(start, end)) };
            done.expect("room for 40 pages");
            pages[start as usize..end as usize].fill(insert);
            for (page, there) in pages.iter().enumerate() {
                let page = page as u64;
                assert_eq!(set.contains(range(page, page + 1)), *there);
            }
        }
    }
}
