//! The processor's own clock, for measuring what happens at every call: reading it takes less than half of what the host's clock takes.

use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

/// Ticks since the processor began. Never 0.
pub(crate) fn now() -> u64 {
    // SAFETY: RDTSC is there on every x86-64 processor, and reads only. Where the host forbids it to programs (PR_SET_TSC), nobody did so for us.
    unsafe { core::arch::x86_64::_rdtsc() }.max(1)
}

/// Both clocks at one moment, early.
static START: LazyLock<(Instant, u64)> = LazyLock::new(|| (Instant::now(), now()));

/// Has the clocks compared from now on.
pub(crate) fn begin() {
    LazyLock::force(&START);
}

/// Nanoseconds, and the ticks that took as long. Compared once: so many ticks are always as long, and no sum of them ever becomes less.
static RATE: OnceLock<(u128, u128)> = OnceLock::new();

/// How long to compare for: to read both clocks takes some 50 ns, one part in 20,000 of it.
const COMPARED: Duration = Duration::from_millis(1);

/// How long so many ticks take, by what the clocks have shown from [`begin`] until this was first asked.
pub(crate) fn duration(ticks: u64) -> Duration {
    let (passed, counted) = *RATE.get_or_init(|| {
        let (start, first) = *START;
        while start.elapsed() < COMPARED {
            std::hint::spin_loop();
        }
        (start.elapsed().as_nanos(), u128::from(now().saturating_sub(first).max(1)))
    });
    Duration::from_nanos(u64::try_from(u128::from(ticks) * passed / counted).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_as_long_as_the_hosts_clock_says() {
        begin();
        let (start, first) = (Instant::now(), now());
        std::thread::sleep(Duration::from_millis(20));
        let (passed, counted) = (start.elapsed(), duration(now() - first));
        assert!(counted > passed / 2 && counted < passed * 2, "{passed:?} {counted:?}");
        assert!((0..1000).all(|_| duration(1 << 40) == duration(1 << 40)));
    }
}
