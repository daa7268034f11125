//! How much may be on its way: CUBIC (RFC 9438) with slow start and the initial window of RFC 6928.

use std::time::{Duration, Instant};

/// Segments at the start.
const INITIAL: usize = 10;
const BETA: f64 = 0.7;
const C: f64 = 0.4;
/// Segments that the window may be at most: more than any buffer has.
const MOST: f64 = 1_000_000.0;

/// The congestion window of one connection, in segments.
#[derive(Debug)]
pub(crate) struct Congestion {
    window: f64,
    threshold: f64,
    /// Window before the last loss, and when the time since then began.
    most: f64,
    since: Option<Instant>,
    /// Seconds until the window is again as it was.
    until: f64,
    /// What Reno's would be.
    reno: f64,
}

impl Congestion {
    pub(crate) fn new() -> Self {
        Self {
            window: INITIAL as f64,
            threshold: f64::INFINITY,
            most: 0.0,
            since: None,
            until: 0.0,
            reno: 0.0,
        }
    }

    /// Bytes, for segments of this size.
    pub(crate) fn bytes(&self, mss: usize) -> usize {
        (self.window.max(1.0) as usize).saturating_mul(mss)
    }

    /// Segments.
    pub(crate) fn segments(&self) -> u32 {
        self.window as u32
    }

    /// Segments up to which the window doubles each round, as `tcp_info` tells it.
    pub(crate) fn threshold(&self) -> u32 {
        if self.threshold.is_finite() { self.threshold as u32 } else { i32::MAX.unsigned_abs() }
    }

    /// So many bytes were acknowledged while the window was what limited.
    pub(crate) fn acknowledged(&mut self, bytes: usize, mss: usize, round: Duration, now: Instant) {
        let mut segments = bytes as f64 / mss.max(1) as f64;
        if self.window < self.threshold {
            let grown = (self.window + segments).min(self.threshold);
            segments -= grown - self.window;
            self.window = grown.min(MOST);
            if segments <= 0.0 {
                return;
            }
        }
        let since = *self.since.get_or_insert_with(|| {
            self.reno = self.window;
            self.until = if self.most > self.window { ((self.most - self.window) / C).cbrt() } else { 0.0 };
            self.most = self.most.max(self.window);
            now
        });
        let time = now.saturating_duration_since(since).saturating_add(round).as_secs_f64() - self.until;
        let target = (C * time.powi(3) + self.most).clamp(self.window, self.window * 1.5);
        self.reno += 3.0 * (1.0 - BETA) / (1.0 + BETA) * segments / self.window;
        self.window += (target - self.window) / self.window * segments;
        self.window = self.window.max(self.reno).min(MOST);
    }

    /// Something was lost (`fast`: and what came after it arrived; else nothing came back for long).
    pub(crate) fn lost(&mut self, fast: bool) {
        // Fast convergence: who is pushed back leaves more to others.
        self.most = if self.window < self.most { self.window * (1.0 + BETA) / 2.0 } else { self.window };
        self.threshold = (self.window * BETA).max(2.0);
        self.window = if fast { self.threshold } else { 1.0 };
        self.since = None;
    }

    /// Nothing was sent for long (RFC 2861): what the path bears is to be found anew.
    pub(crate) fn idle(&mut self) {
        self.threshold = self.threshold.max(self.window * 0.75);
        self.window = self.window.min(INITIAL as f64);
        self.since = None;
    }
}

/// Time of a round trip and when an answer is overdue (RFC 6298), with the bounds of Linux (`TCP_RTO_MIN`, `TCP_RTO_MAX`).
#[derive(Debug)]
pub(crate) struct Rounds {
    smooth: Option<Duration>,
    deviation: Duration,
    timeout: Duration,
}

/// `TCP_RTO_MIN`.
pub(crate) const LEAST: Duration = Duration::from_millis(200);
/// `TCP_RTO_MAX`.
pub(crate) const LONGEST: Duration = Duration::from_secs(120);

impl Rounds {
    pub(crate) fn new() -> Self {
        Self { smooth: None, deviation: Duration::ZERO, timeout: Duration::from_secs(1) }
    }

    pub(crate) fn measured(&mut self, time: Duration) {
        let smooth = match self.smooth {
            None => {
                self.deviation = time / 2;
                time
            }
            Some(smooth) => {
                self.deviation = (self.deviation * 3 + smooth.abs_diff(time)) / 4;
                (smooth * 7 + time) / 8
            }
        };
        self.smooth = Some(smooth);
        self.timeout = smooth.saturating_add((self.deviation * 4).max(LEAST)).min(LONGEST);
    }

    /// Of one trip, as far as it is known.
    pub(crate) fn smooth(&self) -> Duration {
        self.smooth.unwrap_or(Duration::from_millis(100))
    }

    pub(crate) fn deviation(&self) -> Duration {
        self.deviation
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_then_grows_slowly_and_shrinks_at_a_loss() {
        let mut congestion = Congestion::new();
        let now = Instant::now();
        let round = Duration::from_millis(10);
        congestion.acknowledged(10_000, 1000, round, now);
        assert_eq!(congestion.bytes(1000), 20_000);
        congestion.lost(true);
        assert_eq!(congestion.bytes(1000), 14_000);
        congestion.acknowledged(14_000, 1000, round, now);
        let after = congestion.bytes(1000);
        assert!((14_000..=16_000).contains(&after), "{after}");
        congestion.acknowledged(140_000, 1000, round, now + Duration::from_secs(5));
        assert!(congestion.bytes(1000) > 20_000);
        congestion.lost(false);
        assert_eq!(congestion.bytes(1000), 1000);
    }

    #[test]
    fn overdue_is_never_less_than_linux_has_it() {
        let mut rounds = Rounds::new();
        assert_eq!(rounds.timeout(), Duration::from_secs(1));
        rounds.measured(Duration::from_micros(50));
        assert!(rounds.timeout() >= LEAST && rounds.timeout() < Duration::from_millis(210));
        rounds.measured(Duration::from_secs(500));
        assert!(rounds.timeout() <= LONGEST);
    }
}
