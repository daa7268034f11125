//! Clocks and timers.

use std::time::Instant;

/// The sandbox's clocks. Monotonic time and boot time begin when the sandbox does.
pub struct Clocks {
    started: Instant,
}

impl Clocks {
    /// The sandbox begins now.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "a clock begins at a moment")]
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }

    /// Since the sandbox began.
    #[must_use]
    pub fn monotonic(&self) -> std::time::Duration {
        self.started.elapsed()
    }
}
