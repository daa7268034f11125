//! Guest memory as the entry code maps it: private at its own address, shared at [`SHARED_WINDOW`] above
//! it. The only place where an address becomes a reference.

use crate::memory::GuestMemory;
use crate::platform::{SHARED_WINDOW, layout};
use crate::string;

/// End of the low memory that the boot uses.
const LOW_END: u64 = 0xA_0000;
/// The page that the MP table is in.
const MP_PAGE: u64 = 0xF_0000;

/// All of guest memory. There is one, and it is never used beside another reference to the memory that
/// it gives out, which [`IdentityMemory::check`] sees to.
#[derive(Debug)]
pub struct IdentityMemory(());

impl IdentityMemory {
    /// Takes hold of guest memory.
    ///
    /// # Safety
    /// At most once, in the firmware, with the page tables of the entry code, on one vCPU.
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self(())
    }

    /// Panics unless the range lies apart from what Rust or the compiler already uses: image, stack,
    /// statics, page tables. A range that was checked against the boot info always does.
    fn check(start: u64, length: u64) {
        let end = start.checked_add(length);
        let within = |from: u64, to: u64| start >= from && end.is_some_and(|end| end <= to);
        let apart = within(layout::PAGE_SIZE, LOW_END)
            || within(MP_PAGE, layout::IMAGE)
            || within(layout::UNACCEPTED, layout::RESERVED_END)
            || within(layout::RESERVED_END, layout::MMIO_HOLE);
        assert!(apart, "address");
    }
}

/// Copies by [`string::copy`]: each byte is read once.
fn string_move(from: u64, to: u64, length: u64) {
    // SAFETY: both ranges were checked by the caller and do not overlap.
    unsafe { string::copy(from as *const u8, to as *mut u8, length as usize) }
}

fn string_wipe(start: u64, length: u64) {
    // SAFETY: the range was checked by the caller.
    unsafe { string::fill(start as *mut u8, 0, length as usize) }
}

impl GuestMemory for IdentityMemory {
    fn read_shared(&mut self, from: u64, into: &mut [u8]) {
        Self::check(from, into.len() as u64);
        string_move(SHARED_WINDOW + from, into.as_mut_ptr() as u64, into.len() as u64);
    }

    fn copy_in(&mut self, shared: u64, private: u64, length: u64) {
        Self::check(shared, length);
        Self::check(private, length);
        string_move(SHARED_WINDOW + shared, private, length);
    }

    fn wipe_shared(&mut self, from: u64, length: u64) {
        Self::check(from, length);
        string_wipe(SHARED_WINDOW + from, length);
    }

    fn private(&mut self, start: u64, length: u64) -> &mut [u8] {
        Self::check(start, length);
        // SAFETY: mapped, initialised as far as the machine is concerned, below 3 GiB, not null, apart
        // from all other Rust memory by the check, and borrowed as long as `self` is.
        unsafe { core::slice::from_raw_parts_mut(start as *mut u8, length as usize) }
    }

    fn copy_private(&mut self, from: u64, to: u64, length: u64) {
        Self::check(from, length);
        Self::check(to, length);
        string_move(from, to, length);
    }

    fn wipe(&mut self, start: u64, length: u64) {
        // The first page too, which as a slice would begin at a null pointer.
        let in_page = if start == 0 { layout::PAGE_SIZE.min(length) } else { 0 };
        Self::check(start + in_page, length - in_page);
        string_wipe(start, length);
    }
}
