//! Guest threads that wait for words of their memory, here or there: in the host's kernel by their own stub, or in the sentry
//! ([`super::stub_futex`] tells when).

use std::sync::atomic::Ordering;

use super::context::Context;
use super::layout::at;
use super::thread::StubThread;
use crate::error::Errno;

/// In [`at::ANSWERED`]: this thread's futexes may be the host's.
pub(super) const WAITS: u64 = 1 << 33;

const WAKE_BITSET: u64 = (libc::FUTEX_WAKE_BITSET | libc::FUTEX_PRIVATE_FLAG) as u64;
const REQUEUE: u64 = (libc::FUTEX_REQUEUE | libc::FUTEX_PRIVATE_FLAG) as u64;
const CMP_REQUEUE: u64 = (libc::FUTEX_CMP_REQUEUE | libc::FUTEX_PRIVATE_FLAG) as u64;

/// Operations of `futex` that a stub makes, for its own turn and for its guest.
pub(super) const OPERATIONS: &[u32] = &[
    libc::FUTEX_WAIT as u32,
    libc::FUTEX_WAKE as u32,
    (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u32,
    (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u32,
    REQUEUE as u32,
    CMP_REQUEUE as u32,
    (libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG) as u32,
    (libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as u32,
    WAKE_BITSET as u32,
];

/// Where those are counted who wait for a word in the sentry.
fn place(address: u64) -> usize {
    at::SLEEPERS + 4 * ((address as u32 >> 2) as usize % at::SLEEPERS_COUNT)
}

/// Numbers of a futex are `int`s.
fn int(count: usize) -> u64 {
    i32::try_from(count).unwrap_or(i32::MAX).unsigned_abs().into()
}

impl StubThread {
    /// Counts so many more or less who wait in the sentry. Where the count cannot be reached the process ends, rather than have somebody wait for ever.
    pub(super) fn count_here(&self, address: u64, more: i32) {
        match self.stub.first_context() {
            Some(first) => {
                first.u32_at(place(address)).fetch_add(more.cast_unsigned(), Ordering::SeqCst);
            }
            None => self.stub.kill(),
        }
    }

    /// Wakes who wait here. A guest whose memory is not there has nobody who does.
    pub(super) fn wake_here(&self, address: u64, count: usize, bitset: u32) -> usize {
        if count == 0 {
            return 0;
        }
        let woken = self.call(libc::SYS_futex, [address, WAKE_BITSET, int(count), 0, 0, bitset.into()]);
        moved(woken, count)
    }

    /// Wakes some, and has others wait for another word, if the first still has this value.
    pub(super) fn move_here(
        &self,
        (from, to): (u64, u64),
        (wake, count): (usize, usize),
        value: Option<u32>,
    ) -> usize {
        if wake == 0 && count == 0 {
            return 0;
        }
        let operation = if value.is_some() { CMP_REQUEUE } else { REQUEUE };
        let arguments = [from, operation, int(wake), int(count), to, value.unwrap_or(0).into()];
        moved(self.call(libc::SYS_futex, arguments), wake.saturating_add(count))
    }
}

/// What a stub says that it moved: no more than it was asked to.
fn moved(said: Result<u64, Errno>, most: usize) -> usize {
    said.ok().and_then(|said| usize::try_from(said).ok()).unwrap_or(0).min(most)
}

/// Ticks for which a guest slept so since that was cleared, as it says, and whether it does so now.
pub(super) fn slept(context: &Context) -> (u64, bool) {
    // A wait that ends meanwhile is added to what was slept before it is over: it is looked for again. Whoever changes that all the time is told
    // anything.
    for _ in 0..4 {
        let since = context.load(at::WAITS_SINCE);
        let slept = context.load(at::WAITED);
        if since == context.load(at::WAITS_SINCE) && slept == context.load(at::WAITED) {
            let now = if since == 0 { 0 } else { crate::ticks::now().saturating_sub(since) };
            return (slept.saturating_add(now), since != 0);
        }
    }
    (u64::MAX, false)
}

/// It has been counted, and the guest does not run.
pub(super) fn clear_slept(context: &Context) {
    if context.load(at::WAITED) != 0 {
        context.store(at::WAITED, 0);
    }
    if context.load(at::WAITS_SINCE) != 0 {
        context.store(at::WAITS_SINCE, 0);
    }
}
