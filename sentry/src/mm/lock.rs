//! `mlock` and its kin (`mm/mlock.c`). Memory is populated and counted; it is not pinned, as the host's limit for that is not the guest's.

use std::ops::Range;

use super::area::{Area, AreaFlags, Backing, Protection};
use super::{AddressSpace, Layout, Limits, MAX_AREAS, page_down, page_up};
use crate::error::Errno;
use crate::platform::{MemoryCall, Thread};

impl AddressSpace {
    /// `mlock`, `mlock2`; `on_fault` leaves pages to come when they are touched.
    ///
    /// # Errors
    /// EPERM (no right and a limit of 0), ENOMEM (the limit, or a gap), EINVAL.
    pub fn lock(
        &self,
        thread: &mut dyn Thread,
        address: u64,
        length: u64,
        on_fault: bool,
        limits: &Limits,
    ) -> Result<(), Errno> {
        let mut layout = self.layout();
        if !limits.may_lock && limits.locked == 0 {
            return Err(Errno::EPERM);
        }
        let range = whole_pages(address, length)?;
        if range.is_empty() {
            return Ok(());
        }
        let already: u64 = layout
            .areas
            .touching(&range)
            .filter(|area| area.flags.contains(AreaFlags::LOCKED))
            .map(|area| area.part(&range).length())
            .sum();
        let more = (range.end - range.start) - already;
        if layout.check_lock(more, false, limits).is_err() {
            return Err(Errno::ENOMEM);
        }
        let end = layout.mark(&range, true)?;
        if !on_fault {
            layout.populate(thread, &(range.start..end));
        }
        if end < range.end { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// `munlock`.
    ///
    /// # Errors
    /// ENOMEM (a gap), EINVAL.
    pub fn unlock(&self, address: u64, length: u64) -> Result<(), Errno> {
        let range = whole_pages(address, length)?;
        if range.is_empty() {
            return Ok(());
        }
        let end = self.layout().mark(&range, false)?;
        if end < range.end { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// `mlockall`.
    ///
    /// # Errors
    /// EINVAL, EPERM, ENOMEM.
    pub fn lock_all(&self, thread: &mut dyn Thread, flags: i32, limits: &Limits) -> Result<(), Errno> {
        let mut layout = self.layout();
        let known = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
        if flags == 0 || flags & !known != 0 || flags == libc::MCL_ONFAULT {
            return Err(Errno::EINVAL);
        }
        if !limits.may_lock && limits.locked == 0 {
            return Err(Errno::EPERM);
        }
        let current = flags & libc::MCL_CURRENT != 0;
        // Of the first stack Linux would have mapped as much as was used, which nobody knows here: it does not count.
        let stack: u64 = layout.areas.iter().filter(|area| main_stack(area)).map(Area::length).sum();
        if current && !limits.may_lock && layout.areas.total() - stack > limits.locked {
            return Err(Errno::ENOMEM);
        }
        layout.lock_future = flags & libc::MCL_FUTURE != 0;
        if current {
            let range = layout.range.clone();
            layout.areas.update(&range, |area| area.flags.set(AreaFlags::LOCKED, !main_stack(area)));
            if flags & libc::MCL_ONFAULT == 0 {
                layout.populate(thread, &range);
            }
        }
        Ok(())
    }

    /// `munlockall`.
    pub fn unlock_all(&self) {
        let mut layout = self.layout();
        layout.lock_future = false;
        let range = layout.range.clone();
        layout.areas.update(&range, |area| area.flags.remove(AreaFlags::LOCKED));
    }
}

fn main_stack(area: &Area) -> bool {
    area.flags.contains(AreaFlags::MAIN_STACK)
}

/// All pages that a byte of the range is in. As in Linux a length that is rounded up past the last is none (`do_mlock`).
pub(super) fn whole_pages(address: u64, length: u64) -> Result<Range<u64>, Errno> {
    let start = page_down(address);
    let length = page_up(length.wrapping_add(address - start)).unwrap_or(0);
    Ok(start..start.checked_add(length).ok_or(Errno::EINVAL)?)
}

impl Layout {
    /// Marks what lies in `range` up to the first gap, whose address it gives.
    fn mark(&mut self, range: &Range<u64>, locked: bool) -> Result<u64, Errno> {
        if self.areas.count() + self.areas.splits(range) > MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        let end = self.areas.covered_until(range);
        self.areas.update(&(range.start..end), |area| area.flags.set(AreaFlags::LOCKED, locked));
        Ok(end)
    }

    /// Brings pages in, as far as the host does it: nobody is told when it does not (`mm_populate`).
    pub(super) fn populate(&self, thread: &mut dyn Thread, range: &Range<u64>) {
        let parts: Vec<_> = self.areas.touching(range).map(|area| area.part(range)).collect();
        for part in parts {
            let advice = if part.protection.contains(Protection::WRITE) {
                libc::MADV_POPULATE_WRITE
            } else {
                libc::MADV_POPULATE_READ
            };
            let untouchable = part.protection.is_empty() || matches!(part.backing, Backing::Special(_));
            if untouchable || part.flags.contains(AreaFlags::MAIN_STACK) {
                continue;
            }
            let call = MemoryCall::Advise { address: part.start, length: part.length(), advice };
            let _ = thread.change_memory(&call);
        }
    }
}
