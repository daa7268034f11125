//! The heap: `brk` (`mm/mmap.c`), and what a loader sets.

use super::area::{Area, AreaFlags, Backing, Protection};
use super::{AddressSpace, Layout, Limits, MAX_AREAS, PAGE, page_up};
use crate::error::Errno;
use crate::platform::{MemoryCall, Thread};

impl AddressSpace {
    /// `brk`: the end of the heap as it is then, which is the old one where the change cannot be made.
    pub fn set_break(&self, thread: &mut dyn Thread, address: u64, limits: &Limits) -> u64 {
        let mut layout = self.layout();
        // Failures have no number: the caller compares.
        let _ = layout.move_break(thread, address, limits);
        layout.heap.end
    }

    /// Says where the heap begins, and how much data the program has of its own. A loader does it once.
    pub fn start_heap(&self, address: u64, program_data: u64) {
        let mut layout = self.layout();
        layout.heap = address..address;
        layout.program_data = program_data;
    }

    /// Maps the stack of the first thread, of at most `limits.stack` bytes. Its end. See the room's documentation for why it is
    /// mapped whole.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn map_stack(
        &self,
        thread: &mut dyn Thread,
        executable: bool,
        limits: &Limits,
    ) -> Result<u64, Errno> {
        let mut layout = self.layout();
        let end = layout.stack_top;
        let room = end.saturating_sub(layout.mmap_base);
        let length = page_up(limits.stack.clamp(PAGE * 32, super::MAX_STACK)).ok_or(Errno::ENOMEM)?.min(room);
        if length == 0 {
            return Err(Errno::ENOMEM);
        }
        let mut protection = Protection::READ | Protection::WRITE;
        protection.set(Protection::EXEC, executable);
        let area = Area {
            start: end - length,
            end,
            protection,
            flags: AreaFlags::MAIN_STACK | AreaFlags::NO_RESERVE,
            backing: Backing::Anonymous,
        };
        layout.map_area(thread, area)?;
        Ok(end)
    }
}

impl Layout {
    fn move_break(&mut self, thread: &mut dyn Thread, address: u64, limits: &Limits) -> Result<(), Errno> {
        let (start, old) = (self.heap.start, self.heap.end);
        if start == 0 || address < start {
            return Err(Errno::EINVAL);
        }
        let data = (address - start).saturating_add(self.program_data);
        if data > limits.data {
            return Err(Errno::ENOMEM);
        }
        let new_end = page_up(address).ok_or(Errno::ENOMEM)?;
        let old_end = page_up(old).ok_or(Errno::ENOMEM)?;
        if new_end < old_end {
            thread.change_memory(&MemoryCall::Unmap { address: new_end, length: old_end - new_end })?;
            self.areas.remove(&(new_end..old_end));
        } else if new_end > old_end {
            self.grow_heap(thread, old_end..new_end, limits)?;
        }
        self.heap.end = address;
        Ok(())
    }

    fn grow_heap(
        &mut self,
        thread: &mut dyn Thread,
        range: std::ops::Range<u64>,
        limits: &Limits,
    ) -> Result<(), Errno> {
        if range.end > self.range.end
            || !self.areas.is_free_and_unguarded(&range)
            || self.areas.count() > MAX_AREAS
        {
            return Err(Errno::ENOMEM);
        }
        let mut area = Area {
            start: range.start,
            end: range.end,
            protection: Protection::READ | Protection::WRITE,
            flags: AreaFlags::empty(),
            backing: Backing::Anonymous,
        };
        if self.lock_future {
            self.check_lock(area.length(), false, limits)?;
            area.flags |= AreaFlags::LOCKED;
        }
        self.check_growth(&area, limits)?;
        self.map_area(thread, area)?;
        if self.lock_future {
            self.populate(thread, &range);
        }
        Ok(())
    }
}
