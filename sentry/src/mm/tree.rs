//! The tree of areas: which lie where, without overlap, neighbours that are alike made one.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;

use super::area::{Area, AreaFlags};

/// Free room that stays below an area that grows down (`stack_guard_gap` of Linux: 256 pages).
pub(super) const GUARD_GAP: u64 = 256 * super::PAGE;

/// Areas by their first address.
#[derive(Debug, Clone, Default)]
pub struct Areas {
    by_start: BTreeMap<u64, Area>,
    total: u64,
    locked: u64,
    data: u64,
    full: Cell<Option<Full>>,
}

/// What a search has found out: from `from` to `top` there is no room for `length` bytes. Without it each `mmap` would go through all
/// areas from the top down.
#[derive(Debug, Clone, Copy)]
struct Full {
    from: u64,
    top: u64,
    length: u64,
}

impl Areas {
    /// How many areas.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_start.len()
    }

    /// Bytes of all areas.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that are locked.
    #[must_use]
    pub fn locked(&self) -> u64 {
        self.locked
    }

    /// Bytes that count as data.
    #[must_use]
    pub fn data(&self) -> u64 {
        self.data
    }

    /// All, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Area> {
        self.by_start.values()
    }

    /// The area that holds `address`.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<&Area> {
        self.by_start.range(..=address).next_back().map(|(_, area)| area).filter(|area| address < area.end)
    }

    /// The first area that ends behind `address`.
    #[must_use]
    pub fn find_or_next(&self, address: u64) -> Option<&Area> {
        self.find(address).or_else(|| self.by_start.range(address..).next().map(|(_, area)| area))
    }

    /// The areas that touch `range`, lowest first.
    pub fn touching(&self, range: &Range<u64>) -> impl DoubleEndedIterator<Item = &Area> {
        // What is empty touches nothing, also within an area.
        let holder = if range.is_empty() { None } else { self.find(range.start) };
        let first = holder.map_or(range.start, |area| area.start);
        let end = range.end.max(first);
        self.by_start.range(first..end).map(|(_, area)| area)
    }

    /// Whether nothing lies in `range`.
    #[must_use]
    pub fn is_free(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.touching(range).next().is_none()
    }

    /// Bytes of `range` that are taken.
    #[must_use]
    pub fn taken(&self, range: &Range<u64>) -> u64 {
        self.touching(range).map(|area| area.part(range).length()).sum()
    }

    /// The end of the run of areas without gap from `range.start` on, at most `range.end`; `range.start` where it is free.
    #[must_use]
    pub fn covered_until(&self, range: &Range<u64>) -> u64 {
        let mut end = range.start;
        for area in self.touching(range) {
            if area.start > end {
                break;
            }
            end = area.end.min(range.end);
        }
        end
    }

    /// Whether taking `range` out cuts an area in two.
    #[must_use]
    pub fn cuts(&self, range: &Range<u64>) -> bool {
        self.find(range.start).is_some_and(|area| area.start < range.start && range.end < area.end)
    }

    /// How many areas more there may be once `range` is set apart from its neighbours.
    #[must_use]
    pub fn splits(&self, range: &Range<u64>) -> usize {
        let inside = |address: u64| self.find(address).is_some_and(|area| area.start < address);
        usize::from(inside(range.start)) + usize::from(inside(range.end))
    }

    /// Puts an area where nothing is, and makes it one with neighbours that are alike.
    pub fn insert(&mut self, mut area: Area) {
        debug_assert!(area.start < area.end && self.is_free(&area.range()));
        if let Some(before) = self.by_start.range(..area.start).next_back().map(|(_, before)| before)
            && before.merges_with(&area)
        {
            let start = before.start;
            if let Some(before) = self.take(start) {
                area = Area { end: area.end, ..before };
            }
        }
        if let Some(after) = self.by_start.get(&area.end)
            && area.merges_with(after)
        {
            let start = after.start;
            if let Some(after) = self.take(start) {
                area.end = after.end;
            }
        }
        self.put(area);
    }

    /// Takes out what lies in `range`, and gives it back in pieces, lowest first.
    pub fn remove(&mut self, range: &Range<u64>) -> Vec<Area> {
        let starts: Vec<u64> = self.touching(range).map(|area| area.start).collect();
        if !starts.is_empty() {
            self.becomes_free(range);
        }
        let mut removed = Vec::with_capacity(starts.len());
        for start in starts {
            let Some(area) = self.take(start) else { continue };
            if area.start < range.start {
                self.put(area.part(&(area.start..range.start)));
            }
            if range.end < area.end {
                self.put(area.part(&(range.end..area.end)));
            }
            removed.push(area.part(range));
        }
        removed
    }

    /// Changes what lies in `range`.
    pub fn update(&mut self, range: &Range<u64>, mut change: impl FnMut(&mut Area)) {
        for mut area in self.remove(range) {
            change(&mut area);
            self.insert(area);
        }
    }

    /// The highest free place of `length` bytes within `range`.
    ///
    /// It goes from area to area downwards, from where the last search ended if nothing above became free since.
    #[must_use]
    pub fn highest_gap(&self, range: &Range<u64>, length: u64) -> Option<u64> {
        let known = self.full.get().filter(|full| full.top == range.end && full.length <= length);
        let begin = known.map_or(range.end, |full| full.from.min(range.end));
        // What lies above may keep room below itself, too.
        let above = self.by_start.range(begin..).next().map_or(begin, |(_, area)| guarded(area));
        let mut top = begin.min(above);
        for (_, area) in self.by_start.range(..begin).rev() {
            if area.end <= top && top.saturating_sub(length) >= area.end.max(range.start) {
                break;
            }
            top = top.min(guarded(area));
            if top <= range.start {
                break;
            }
        }
        if known.is_none() {
            self.full.set(Some(Full { from: top, top: range.end, length }));
        }
        top.checked_sub(length).filter(|start| *start >= range.start)
    }

    /// The lowest free place of `length` bytes within `range`.
    #[must_use]
    pub fn lowest_gap(&self, range: &Range<u64>, length: u64) -> Option<u64> {
        let mut bottom = self.find(range.start).map_or(range.start, |area| area.end);
        for (_, area) in self.by_start.range(bottom..) {
            if bottom.checked_add(length)? <= guarded(area).min(range.end) {
                return Some(bottom);
            }
            bottom = area.end;
        }
        bottom.checked_add(length).filter(|end| *end <= range.end).map(|_| bottom)
    }

    /// Whether `range` is free, and not the room that an area above keeps below itself.
    #[must_use]
    pub fn is_free_and_unguarded(&self, range: &Range<u64>) -> bool {
        self.is_free(range)
            && self.by_start.range(range.end..).next().is_none_or(|(_, area)| range.end <= guarded(area))
    }

    /// What is known to be full is so from the next area above `range` on.
    fn becomes_free(&self, range: &Range<u64>) {
        if let Some(full) = self.full.get()
            && range.end > full.from
        {
            let next = self.by_start.range(range.end..).next().map_or(u64::MAX, |(_, area)| area.start);
            // An area that reaches over the end of the range is cut there.
            let next = if self.find(range.end).is_some() { range.end } else { next };
            self.full.set((next < full.top).then_some(Full { from: next, ..full }));
        }
    }

    fn put(&mut self, area: Area) {
        self.count_in(&area, u64::wrapping_add);
        self.by_start.insert(area.start, area);
    }

    fn take(&mut self, start: u64) -> Option<Area> {
        let area = self.by_start.remove(&start)?;
        self.count_in(&area, u64::wrapping_sub);
        Some(area)
    }

    fn count_in(&mut self, area: &Area, change: fn(u64, u64) -> u64) {
        self.total = change(self.total, area.length());
        if area.flags.contains(AreaFlags::LOCKED) {
            self.locked = change(self.locked, area.length());
        }
        if area.is_data() {
            self.data = change(self.data, area.length());
        }
    }
}

/// Where the room begins that an area keeps for itself.
fn guarded(area: &Area) -> u64 {
    if area.flags.contains(AreaFlags::GROWS_DOWN) { area.start.saturating_sub(GUARD_GAP) } else { area.start }
}
