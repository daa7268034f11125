//! When to try again: exponential back-off with jitter, bounded by a deadline.

use std::time::{Duration, Instant};

use reqwest::StatusCode;

use crate::ClientError;

/// How often what passes is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// First pause; each next one is twice as long.
    pub first: Duration,
    /// Longest pause, also of those that the server asks for.
    pub longest: Duration,
    /// No try begins later than this after the call began.
    pub deadline: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let (first, longest) = (Duration::from_millis(250), Duration::from_secs(10));
        Self { first, longest, deadline: Duration::from_secs(45) }
    }
}

impl ClientError {
    /// Whether the same call may work later.
    pub(crate) fn passes(&self) -> bool {
        matches!(self, Self::Transport { .. } | Self::Busy { .. })
    }
}

/// Statuses that [`crate::http::Answer::into_error`] makes [`ClientError::Busy`] of.
pub(crate) fn is_busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502..=504)
}

/// The tries of one call.
#[derive(Debug)]
pub(crate) struct Tries {
    policy: RetryPolicy,
    until: Instant,
    pause: Duration,
}

impl Tries {
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Self { policy, until: Instant::now() + policy.deadline, pause: policy.first }
    }

    /// How long to wait after `error`; `None` when it does not pass, or not before the deadline.
    fn next(&mut self, error: &ClientError, now: Instant, random: u8) -> Option<Duration> {
        if !error.passes() {
            return None;
        }
        // Between half of the pause and all of it: guests that started together do not come back together.
        let jittered = self.pause.mul_f64(0.5 + f64::from(random) / 510.0);
        self.pause = self.pause.saturating_mul(2).min(self.policy.longest);
        let asked = match error {
            ClientError::Busy { retry_after: Some(asked), .. } => (*asked).min(self.policy.longest),
            _ => Duration::ZERO,
        };
        let pause = jittered.max(asked);
        (now + pause <= self.until).then_some(pause)
    }

    /// Waits for the next try. Gives the error back when there is none.
    pub(crate) async fn wait(&mut self, error: ClientError) -> Result<(), ClientError> {
        let mut random = [0];
        // Without random numbers all pauses are short, which is no reason to fail.
        let _ = aws_lc_rs::rand::fill(&mut random);
        let [random] = random;
        match self.next(&error, Instant::now(), random) {
            Some(pause) => {
                tracing::debug!(%error, ?pause, "trying again");
                tokio::time::sleep(pause).await;
                Ok(())
            }
            None => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> ClientError {
        ClientError::Transport { url: "u".to_owned(), why: "w".to_owned() }
    }

    fn busy(seconds: Option<u64>) -> ClientError {
        let retry_after = seconds.map(Duration::from_secs);
        ClientError::Busy { what: "x".to_owned(), status: 429, detail: String::new(), retry_after }
    }

    #[test]
    fn pauses_grow_are_jittered_and_end_at_the_deadline() {
        let policy = RetryPolicy {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(4),
            deadline: Duration::from_secs(10),
        };
        let mut tries = Tries::new(policy);
        let start = Instant::now();
        let seconds = |pause: Option<Duration>| pause.map(|p| p.as_secs_f64());
        assert_eq!(seconds(tries.next(&lost(), start, 255)), Some(1.0));
        assert_eq!(seconds(tries.next(&lost(), start, 0)), Some(1.0), "half of two");
        assert_eq!(seconds(tries.next(&lost(), start, 255)), Some(4.0));
        assert_eq!(seconds(tries.next(&lost(), start, 255)), Some(4.0), "the longest");
        let late = start + Duration::from_secs(7);
        assert_eq!(tries.next(&lost(), late, 255), None, "it would end after the deadline");
        assert_eq!(seconds(tries.next(&busy(Some(3)), start, 0)), Some(3.0), "as the server asks");
        assert_eq!(seconds(tries.next(&busy(Some(3600)), start, 0)), Some(4.0), "but not longer than that");
        assert_eq!(tries.next(&ClientError::Evidence("none".to_owned()), start, 0), None, "it does not pass");
    }
}
