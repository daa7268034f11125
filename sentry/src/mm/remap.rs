//! `mremap` (`mm/mremap.c`).

use std::ops::Range;

use super::area::{Area, AreaFlags, Backing};
use super::{AddressSpace, Layout, Limits, MAX_AREAS, PAGE, TASK_SIZE, page_up};
use crate::error::Errno;
use crate::platform::{MemoryCall, Thread};

/// Arguments of `mremap`.
#[derive(Debug, Clone, Copy)]
pub struct RemapRequest {
    /// First byte of what is there.
    pub address: u64,
    /// Bytes that are there.
    pub old_length: u64,
    /// Bytes that are to be there.
    pub new_length: u64,
    /// `MREMAP_*`.
    pub flags: i32,
    /// Where to, with `MREMAP_FIXED`.
    pub new_address: u64,
}

impl AddressSpace {
    /// `mremap`, of one area. The new address.
    ///
    /// # Errors
    /// As `man 2 mremap`: EINVAL, EFAULT (not one area), ENOMEM, EAGAIN (locked memory).
    pub fn remap(
        &self,
        thread: &mut dyn Thread,
        request: &RemapRequest,
        limits: &Limits,
    ) -> Result<u64, Errno> {
        let mut layout = self.layout();
        let has = |flag: i32| request.flags & flag != 0;
        let (fixed, may_move, keep) =
            (has(libc::MREMAP_FIXED), has(libc::MREMAP_MAYMOVE), has(libc::MREMAP_DONTUNMAP));
        let known = libc::MREMAP_FIXED | libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
        let old = page_up(request.old_length).ok_or(Errno::EINVAL)?;
        let new = page_up(request.new_length).ok_or(Errno::EINVAL)?;
        if request.flags & !known != 0
            || ((fixed || keep) && !may_move)
            || (keep && old != new)
            || !request.address.is_multiple_of(PAGE)
            || new == 0
            || new > TASK_SIZE
        {
            return Err(Errno::EINVAL);
        }
        let target = if fixed {
            let from = request.address..request.address.checked_add(old).ok_or(Errno::EINVAL)?;
            Some(layout.check_target(from, request.new_address, new)?)
        } else {
            None
        };
        let area = layout.areas.find(request.address).cloned().ok_or(Errno::EFAULT)?;
        // Shrinking where it is may go over several areas: it unmaps.
        if old >= new && !fixed && !keep {
            if old > new {
                let tail = request.address.checked_add(new).ok_or(Errno::EINVAL)?;
                layout.unmap(thread, tail, old - new)?;
            }
            return Ok(request.address);
        }
        layout.check_resize(&area, request.address, old, new, keep, limits)?;
        let from = request.address..request.address + old;
        if target.is_none() && !keep && old > 0 && from.end == area.end {
            let end = from.end + (new - old);
            if end <= layout.range.end && layout.areas.is_free_and_unguarded(&(from.end..end)) {
                return layout.grow_in_place(thread, &area, from, new);
            }
        }
        if !may_move {
            return Err(Errno::ENOMEM);
        }
        let to = match target {
            Some(to) => to,
            None => layout.find_place(if keep { request.new_address } else { 0 }, new, false)?,
        };
        layout.shift(thread, &area, &from, to..to + new, keep)
    }
}

impl Layout {
    /// The place that `MREMAP_FIXED` asks for (`mremap_to`).
    fn check_target(&self, from: Range<u64>, address: u64, length: u64) -> Result<u64, Errno> {
        let end = address.checked_add(length).filter(|end| *end <= TASK_SIZE).ok_or(Errno::EINVAL)?;
        if !address.is_multiple_of(PAGE) || (address < from.end && from.start < end) {
            return Err(Errno::EINVAL);
        }
        if address < self.range.start || end > self.range.end {
            return Err(Errno::ENOMEM);
        }
        // It may cut the target, cut the source, and be one more.
        if self.areas.count() + 6 >= MAX_AREAS { Err(Errno::ENOMEM) } else { Ok(address) }
    }

    /// `vma_to_resize`.
    fn check_resize(
        &self,
        area: &Area,
        address: u64,
        old: u64,
        new: u64,
        keep: bool,
        limits: &Limits,
    ) -> Result<(), Errno> {
        let anonymous = matches!(area.backing, Backing::Anonymous | Backing::Special(_));
        if (old == 0 && !area.flags.contains(AreaFlags::SHARED))
            || (keep && matches!(area.backing, Backing::Special(_)))
        {
            return Err(Errno::EINVAL);
        }
        if new.min(old) > area.end - address {
            return Err(Errno::EFAULT);
        }
        let more = if keep || old == 0 { new } else { new.saturating_sub(old) };
        if more == 0 {
            return Ok(());
        }
        // `VM_DONTEXPAND`
        if matches!(&area.backing, Backing::File { file, .. } if file.vdso_part().is_some()) {
            return Err(Errno::EFAULT);
        }
        let offset = area.backing.offset().saturating_add(address - area.start);
        if !anonymous && offset.checked_add(new).is_none_or(|end| end > i64::MAX.unsigned_abs()) {
            return Err(Errno::EINVAL);
        }
        if area.flags.contains(AreaFlags::LOCKED) {
            self.check_lock(more, false, limits)?;
        }
        if self.areas.total().saturating_add(more) > limits.address_space
            || (area.is_data() && self.areas.data().saturating_add(more) > limits.data)
        {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    fn grow_in_place(
        &mut self,
        thread: &mut dyn Thread,
        area: &Area,
        from: Range<u64>,
        new: u64,
    ) -> Result<u64, Errno> {
        let old = from.end - from.start;
        thread.change_memory(&MemoryCall::Move {
            address: from.start,
            length: old,
            new_address: from.start,
            new_length: new,
            keep: false,
        })?;
        let more = Area {
            start: from.end,
            end: from.start + new,
            backing: area.backing.advanced(area.length()),
            ..area.clone()
        };
        let range = more.range();
        let locked = more.flags.contains(AreaFlags::LOCKED);
        self.areas.insert(more);
        if locked {
            self.populate(thread, &range);
        }
        Ok(from.start)
    }

    /// Moves what lies in `from` to `to`, in place of what is there; with `keep` empty memory stays behind.
    fn shift(
        &mut self,
        thread: &mut dyn Thread,
        area: &Area,
        from: &Range<u64>,
        to: Range<u64>,
        keep: bool,
    ) -> Result<u64, Errno> {
        let (old, new) = (from.end - from.start, to.end - to.start);
        // What is too much is unmapped first, so that the host moves as much as there will be.
        let length = if old > new {
            self.unmap(thread, from.start + new, old - new)?;
            new
        } else {
            old
        };
        let moved = thread.change_memory(&MemoryCall::Move {
            address: from.start,
            length,
            new_address: to.start,
            new_length: new,
            keep,
        });
        if let Err(errno) = moved {
            self.give_up(thread, &to, errno);
            return Err(errno);
        }
        self.areas.remove(&to);
        if length > 0 && !keep {
            self.areas.remove(&(from.start..from.start + length));
        } else if keep {
            self.areas.update(from, |area| area.flags.remove(AreaFlags::LOCKED));
        }
        let locked = area.flags.contains(AreaFlags::LOCKED);
        self.areas.insert(Area {
            start: to.start,
            end: to.end,
            backing: area.backing.advanced(from.start - area.start),
            ..area.clone()
        });
        if locked {
            self.populate(thread, &to);
        }
        Ok(to.start)
    }
}
