//! The sentry's view of one context: memory that it shares with a stub.
//!
//! The other side may write any byte at any time, so every access is of a word by an atomic, or of bytes by a copy that nothing is assumed of.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::time::TimeSpec;

use super::layout::{CONTEXT_SIZE, at};
use crate::error::Errno;
use crate::platform::Regs;

/// One context, mapped.
pub(in crate::platform) struct Context {
    base: NonNull<u8>,
}

// SAFETY: the memory is shared with another process anyhow; all access is by atomics and raw copies.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Maps the context at `slot` of the file with an address space's contexts.
    pub(in crate::platform) fn map(file: BorrowedFd<'_>, slot: usize) -> Result<Self, Errno> {
        let size = std::num::NonZeroUsize::new(CONTEXT_SIZE).ok_or(Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let offset = i64::try_from(slot * CONTEXT_SIZE).map_err(|_| Errno::EINVAL)?;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let base = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, file, offset) }?;
        Ok(Self { base: base.cast() })
    }

    fn word32(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset + 4 <= CONTEXT_SIZE && offset.is_multiple_of(4));
        // SAFETY: inside the mapping, aligned; the mapping lives as long as `self`, and others write it as a whole word or not at all for us.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// A 32-bit word.
    pub(in crate::platform) fn u32_at(&self, offset: usize) -> &AtomicU32 {
        self.word32(offset)
    }

    fn word64(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset + 8 <= CONTEXT_SIZE && offset.is_multiple_of(8));
        // SAFETY: as `word32`.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// A 64-bit word.
    pub(in crate::platform) fn load(&self, offset: usize) -> u64 {
        self.word64(offset).load(Ordering::Relaxed)
    }

    /// Sets a 64-bit word.
    pub(in crate::platform) fn store(&self, offset: usize, value: u64) {
        self.word64(offset).store(value, Ordering::Relaxed);
    }

    /// Sets a 64-bit word to 0: what was there.
    pub(super) fn take(&self, offset: usize) -> u64 {
        self.word64(offset).swap(0, Ordering::SeqCst)
    }

    /// Registers.
    pub(in crate::platform) fn regs(&self) -> Regs {
        Regs::from_array(std::array::from_fn(|n| self.load(at::REGS + 8 * n)))
    }

    /// Sets registers.
    pub(in crate::platform) fn set_regs(&self, regs: &Regs) {
        for (n, value) in regs.to_array().iter().enumerate() {
            self.store(at::REGS + 8 * n, *value);
        }
    }

    /// Copies bytes out. The range must lie inside.
    pub(in crate::platform) fn read(&self, offset: usize, to: &mut [u8]) {
        assert!(offset + to.len() <= CONTEXT_SIZE);
        // SAFETY: inside the mapping by the assertion; the two do not overlap. Bytes may change meanwhile: any bytes are valid.
        unsafe { std::ptr::copy_nonoverlapping(self.base.as_ptr().add(offset), to.as_mut_ptr(), to.len()) }
    }

    /// Has the processor fetch so many lines that will be written soon.
    pub(super) fn prefetch(&self, offset: usize, lines: usize) {
        for line in 0..lines {
            // SAFETY: it reads and writes nothing, whatever the address.
            unsafe {
                core::arch::asm!("prefetchw [{}]", in(reg) self.base.as_ptr().wrapping_add(offset + 64 * line));
            }
        }
    }

    /// Copies bytes in. The range must lie inside.
    pub(in crate::platform) fn write(&self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= CONTEXT_SIZE);
        // SAFETY: as `read`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.base.as_ptr().add(offset), from.len()) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: this mapping was made by `map`, and nothing refers to it any more.
        let _ = unsafe { munmap(self.base.cast(), CONTEXT_SIZE) };
    }
}

/// Sleeps as long as `word` is `expected`, or until woken, or for that time.
pub(super) fn futex_wait(word: &AtomicU32, expected: u32, most: Option<Duration>) {
    let most = most.map(TimeSpec::from_duration);
    let most = most.as_ref().map_or(std::ptr::null(), |time| std::ptr::from_ref(time.as_ref()));
    // SAFETY: the addresses are of a word and a time that live through the call. What comes back does not matter: the caller looks again.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, most);
    }
}

/// Wakes all who sleep on `word`.
pub(super) fn futex_wake(word: &AtomicU32) {
    // SAFETY: as `futex_wait`.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
    }
}
