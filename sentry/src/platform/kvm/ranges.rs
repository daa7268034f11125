//! What of an address space may be read, written and run: what the sentry had the stub map. The host knows it, too, but tells nobody when it
//! could spare a page fault.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges of addresses with their protection (`PROT_*`), without overlap.
#[derive(Debug, Clone, Default)]
pub(super) struct Ranges {
    by_start: BTreeMap<u64, (u64, i32)>,
}

impl Ranges {
    /// The protection at an address.
    pub(super) fn at(&self, address: u64) -> Option<i32> {
        let (_, &(end, protection)) = self.by_start.range(..=address).next_back()?;
        (address < end).then_some(protection)
    }

    /// What lies in a range, cut at its ends, lowest first.
    pub(super) fn within(&self, range: &Range<u64>) -> Vec<(Range<u64>, i32)> {
        let before = self.by_start.range(..range.start).next_back();
        let inside = self.by_start.range(range.start..range.end.max(range.start));
        before
            .into_iter()
            .chain(inside)
            .map(|(&start, &(end, protection))| (start.max(range.start)..end.min(range.end), protection))
            .filter(|(part, _)| !part.is_empty())
            .collect()
    }

    /// Nothing is there any more. Whether something of it could be run.
    pub(super) fn clear(&mut self, range: &Range<u64>) -> bool {
        let parts = self.within(range);
        let mut ran = false;
        for (part, protection) in parts {
            ran |= protection & libc::PROT_EXEC != 0;
            let found = self.by_start.range(..=part.start).next_back().map(|(start, whole)| (*start, *whole));
            let Some((start, (end, _))) = found else { continue };
            self.by_start.remove(&start);
            if start < part.start {
                self.by_start.insert(start, (part.start, protection));
            }
            if part.end < end {
                self.by_start.insert(part.end, (end, protection));
            }
        }
        ran
    }

    /// All of a range is there, with this protection. Whether something could be run that cannot now.
    pub(super) fn set(&mut self, range: &Range<u64>, protection: i32) -> bool {
        let ran = self.clear(range);
        if range.is_empty() {
            return false;
        }
        let mut whole = range.clone();
        if let Some((&start, &(end, with))) = self.by_start.range(..range.start).next_back()
            && end == range.start
            && with == protection
        {
            self.by_start.remove(&start);
            whole.start = start;
        }
        if let Some(&(end, with)) = self.by_start.get(&range.end)
            && with == protection
        {
            self.by_start.remove(&range.end);
            whole.end = end;
        }
        self.by_start.insert(whole.start, (whole.end, protection));
        ran && protection & libc::PROT_EXEC == 0
    }

    /// What is there of a range has this protection now. Whether something could be run that cannot now.
    pub(super) fn protect(&mut self, range: &Range<u64>, protection: i32) -> bool {
        let parts = self.within(range);
        parts.into_iter().fold(false, |ran, (part, _)| self.set(&part, protection) || ran)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: i32 = libc::PROT_READ;
    const RUN: i32 = libc::PROT_READ | libc::PROT_EXEC;

    #[test]
    fn ranges_are_cut_and_joined() {
        let mut ranges = Ranges::default();
        assert!(!ranges.set(&(0x1000..0x9000), READ));
        assert!(!ranges.set(&(0x3000..0x5000), RUN));
        assert_eq!((ranges.at(0xfff), ranges.at(0x1000), ranges.at(0x9000)), (None, Some(READ), None));
        assert_eq!((ranges.at(0x4fff), ranges.at(0x5000)), (Some(RUN), Some(READ)));
        assert_eq!(ranges.within(&(0x2000..0x4000)), [(0x2000..0x3000, READ), (0x3000..0x4000, RUN)]);
        // What could be run and cannot any more is told.
        assert!(ranges.set(&(0x4000..0x6000), READ));
        assert!(ranges.protect(&(0..0x10000), READ));
        assert_eq!(ranges.by_start.len(), 1);
        assert!(!ranges.clear(&(0x2000..0x3000)));
        assert_eq!((ranges.at(0x1fff), ranges.at(0x2000), ranges.at(0x3000)), (Some(READ), None, Some(READ)));
        assert!(!ranges.set(&(0x2000..0x2000), RUN));
        assert_eq!(ranges.at(0x2000), None);
    }

    #[test]
    fn protection_is_of_what_is_there() {
        let mut ranges = Ranges::default();
        ranges.set(&(0x1000..0x2000), READ);
        ranges.protect(&(0..0x5000), RUN);
        assert_eq!((ranges.at(0), ranges.at(0x1000), ranges.at(0x3000)), (None, Some(RUN), None));
        assert!(ranges.clear(&(0..0x5000)));
        assert!(ranges.within(&(0..u64::MAX)).is_empty());
    }
}
