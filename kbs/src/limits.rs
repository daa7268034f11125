//! Budgets of peers: so many requests, so many refused administrators.
//!
//! A token bucket for each peer (an address, of IPv6 the /64 network). A bucket that is full again is forgotten, so the table
//! holds only those that were seen lately, and at most [`MAX_PEERS`]: a flood from more addresses than that empties the table, which
//! gives all of them a new budget, but never more memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use kata_cc_attestation_service::serve::Peer;

/// Most peers that are remembered.
const MAX_PEERS: usize = 65_536;

/// How much a peer may do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate {
    /// Regained each second; 0 switches the limit off.
    pub(crate) per_second: f64,
    /// Most at once.
    pub(crate) burst: f64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

#[derive(Debug)]
struct Inner {
    rate: Rate,
    buckets: HashMap<Peer, Bucket>,
}

/// A budget of each peer.
#[derive(Debug)]
pub(crate) struct Budget(Mutex<Inner>);

impl Budget {
    /// Full for everybody.
    pub(crate) fn new(rate: Rate) -> Self {
        Self(Mutex::new(Inner { rate, buckets: HashMap::new() }))
    }

    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another rate from now on.
    pub(crate) fn set_rate(&self, rate: Rate) {
        self.with(|inner| inner.rate = rate);
    }

    /// Takes one; the error is after how many seconds there is one again.
    pub(crate) fn take(&self, peer: Peer, now: Instant) -> Result<(), u64> {
        self.with(|inner| inner.enough(peer, now).map(|left| inner.put(peer, left - 1.0, now)))
    }
}

impl Inner {
    /// What a peer has, when that is enough for one.
    fn enough(&self, peer: Peer, now: Instant) -> Result<f64, u64> {
        let Rate { per_second, burst } = self.rate;
        if per_second <= 0.0 {
            return Ok(f64::INFINITY);
        }
        let left = self.buckets.get(&peer).map_or(burst, |bucket| {
            let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * per_second;
            (bucket.left + gained).min(burst)
        });
        // At least one whole second, or Retry-After would say "at once".
        if left >= 1.0 {
            Ok(left)
        } else {
            Err(((1.0 - left) / per_second).ceil().clamp(1.0, 86_400.0) as u64)
        }
    }

    fn put(&mut self, peer: Peer, left: f64, now: Instant) {
        if !left.is_finite() {
            return;
        }
        if self.buckets.len() >= MAX_PEERS && !self.buckets.contains_key(&peer) {
            let Rate { per_second, burst } = self.rate;
            self.buckets.retain(|_, bucket| {
                bucket.left + now.saturating_duration_since(bucket.at).as_secs_f64() * per_second < burst
            });
            if self.buckets.len() >= MAX_PEERS {
                self.buckets.clear();
            }
        }
        self.buckets.insert(peer, Bucket { left, at: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn peer(number: u32) -> Peer {
        Peer::of(std::net::Ipv4Addr::from(number).into())
    }

    #[test]
    fn a_burst_then_a_steady_rate_and_nobody_else_pays() {
        let budget = Budget::new(Rate { per_second: 0.5, burst: 3.0 });
        let begin = Instant::now();
        for _ in 0..3 {
            budget.take(peer(1), begin).unwrap();
        }
        assert_eq!(budget.take(peer(1), begin), Err(2));
        budget.take(peer(2), begin).unwrap();
        let later = begin + Duration::from_secs(2);
        budget.take(peer(1), later).unwrap();
        assert!(budget.take(peer(1), later).is_err());
        // However long nobody came, no more than the burst.
        let day = begin + Duration::from_secs(86_400);
        for _ in 0..3 {
            budget.take(peer(1), day).unwrap();
        }
        assert!(budget.take(peer(1), day).is_err());
        // A clock that goes back gives nothing and panics nowhere.
        assert!(budget.take(peer(1), begin).is_err());
        budget.set_rate(Rate { per_second: 0.0, burst: 0.0 });
        for _ in 0..100 {
            budget.take(peer(1), begin).unwrap();
        }
    }

    #[test]
    fn the_table_is_bounded() {
        let budget = Budget::new(Rate { per_second: 1.0, burst: 2.0 });
        let now = Instant::now();
        for number in 0..200_000 {
            budget.take(peer(number), now).unwrap();
            assert!(number % 1000 != 0 || budget.with(|inner| inner.buckets.len() <= MAX_PEERS));
        }
    }
}
