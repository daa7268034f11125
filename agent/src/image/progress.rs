//! Tells the host how a long pull goes: it sees nothing but traffic, and whoever waits for the container wants to know whether to wait on.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kata_cc_image::Progress;
use tracing::{debug, info};

/// After how long a pull is told of; doubled each time, up to a minute. A short one is told of when it is done.
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(60);

/// The progress of one pull.
pub(super) struct PullProgress {
    image: String,
    /// Bytes of all layers.
    of: u64,
    state: Mutex<State>,
}

struct State {
    bytes: BTreeMap<usize, u64>,
    unpacked: usize,
    begun: Instant,
    next: Duration,
    wait: Duration,
}

impl PullProgress {
    pub(super) fn new(image: &str, of: u64) -> Self {
        let state =
            State { bytes: BTreeMap::new(), unpacked: 0, begun: Instant::now(), next: FIRST, wait: FIRST };
        Self { image: image.to_owned(), of, state: Mutex::new(state) }
    }

    /// Takes note of a step.
    pub(super) fn note(&self, step: &Progress) {
        match step {
            Progress::Downloaded { .. } => {}
            step => debug!(progress = ?step, "pulling"),
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = state.begun.elapsed();
        if let Some((bytes, unpacked)) = state.tell(step, elapsed) {
            let percent = (bytes * 100).checked_div(self.of).unwrap_or(100);
            info!(
                stage = "pulling",
                image = self.image,
                bytes,
                of = self.of,
                percent,
                layers_unpacked = unpacked as u64,
                seconds = elapsed.as_secs(),
                "image is being pulled"
            );
        }
    }
}

impl State {
    /// Takes note; gives bytes and unpacked layers when it is time to tell them.
    fn tell(&mut self, step: &Progress, elapsed: Duration) -> Option<(u64, usize)> {
        match step {
            Progress::Downloaded { layer, bytes, .. } => {
                self.bytes.insert(*layer, *bytes);
            }
            Progress::Unpacked { .. } => self.unpacked += 1,
            _ => {}
        }
        if elapsed < self.next {
            return None;
        }
        self.wait = (self.wait * 2).min(LONGEST);
        self.next = elapsed + self.wait;
        Some((self.bytes.values().sum(), self.unpacked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_pull_is_told_of_seldom_and_a_short_one_never() {
        let progress = PullProgress::new("r/i:1", 1000);
        let mut state = progress.state.lock().unwrap();
        let mut told = Vec::new();
        for second in 0..=300 {
            let step = Progress::Downloaded { layer: second % 2, bytes: second as u64, of: 500 };
            if let Some((bytes, _)) = state.tell(&step, Duration::from_secs(second as u64)) {
                told.push((second, bytes));
            }
        }
        // both layers count
        assert_eq!(told, [(10, 19), (30, 59), (70, 139), (130, 259), (190, 379), (250, 499)]);
    }
}
