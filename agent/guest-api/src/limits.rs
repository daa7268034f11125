//! How often calls may be made.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A bucket that fills with time: so many calls at once, so many a second after that.
#[derive(Debug)]
pub struct RateLimit {
    burst: u32,
    /// Time in which one call's worth flows in.
    refill: Duration,
    /// When the bucket will be, or was, full.
    full_at: Mutex<Instant>,
}

impl RateLimit {
    /// `burst` calls at once and `per_second` after that; both at least 1.
    #[must_use]
    pub fn new(burst: u32, per_second: u32) -> Self {
        let refill = Duration::from_secs(1) / per_second.max(1);
        Self { burst: burst.max(1), refill, full_at: Mutex::new(Instant::now()) }
    }

    /// Takes a call out of the bucket; false when there is none.
    #[must_use]
    pub fn take(&self, now: Instant) -> bool {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let after = (*full_at).max(now) + self.refill;
        let fits = after <= now + self.refill * self.burst;
        if fits {
            *full_at = after;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_so_many_a_second() {
        let limit = RateLimit::new(3, 2);
        let start = Instant::now() + Duration::from_secs(10);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!([0; 4].map(|ms| limit.take(at(ms))), [true, true, true, false]);
        assert!(!limit.take(at(499)));
        assert!(limit.take(at(500)) && !limit.take(at(501)));
        assert_eq!([60_000; 4].map(|ms| limit.take(at(ms))), [true, true, true, false]);
    }
}
