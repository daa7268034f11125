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

/// Operations of `futex` that a stub makes, for its own turn and for its guest.
pub(super) const OPERATIONS: &[u32] = &[
    libc::FUTEX_WAIT as u32,
    libc::FUTEX_WAKE as u32,
    (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u32,
    (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u32,
    REQUEUE as u32,
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
    /// Counts one more or less who waits in the sentry. Where the count cannot be reached the process ends, rather than have somebody wait for ever.
    pub(super) fn count_sleeper(&self, address: u64, more: bool) {
        let Some(first) = self.stub.first_context() else {
            self.stub.kill();
            return;
        };
        let count = first.u32_at(place(address));
        if more {
            count.fetch_add(1, Ordering::SeqCst);
        } else {
            count.fetch_sub(1, Ordering::SeqCst);
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

    /// Wakes some, and has others wait for another word.
    pub(super) fn move_here(&self, (from, to): (u64, u64), wake: usize, count: usize) -> usize {
        if wake == 0 && count == 0 {
            return 0;
        }
        let arguments = [from, REQUEUE, int(wake), int(count), to, 0];
        moved(self.call(libc::SYS_futex, arguments), wake.saturating_add(count))
    }

    /// Ticks that its guest slept so since it was last asked.
    pub(super) fn take_slept(&self) -> u64 {
        let slept = self.context.load(at::WAITED);
        if slept != 0 {
            self.context.store(at::WAITED, 0);
        }
        slept
    }
}

/// What a stub says that it moved: no more than it was asked to.
fn moved(said: Result<u64, Errno>, most: usize) -> usize {
    said.ok().and_then(|said| usize::try_from(said).ok()).unwrap_or(0).min(most)
}

/// Ticks that a guest sleeps so since it went on at last, as it says, and whether it does so now.
pub(super) fn slept(context: &Context) -> (u64, bool) {
    let slept = context.load(at::WAITED);
    match context.load(at::WAITS_SINCE) {
        0 => (slept, false),
        since => (slept.saturating_add(crate::ticks::now().saturating_sub(since)), true),
    }
}
