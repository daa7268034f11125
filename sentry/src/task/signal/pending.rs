//! Signals that were sent and not yet taken.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{FIRST_REALTIME, Payload, SignalInfo, SignalSet};
use crate::checkpoint::state::SavedPending;

/// One queued signal on a user's account (`RLIMIT_SIGPENDING`); given back when it is dropped.
#[derive(Debug)]
pub struct Charge(Arc<AtomicU64>);

impl Charge {
    /// One more on `account`, unless it holds `limit` already.
    pub(crate) fn take(account: &Arc<AtomicU64>, limit: u64) -> Option<Self> {
        let more = |queued: u64| if queued < limit { queued.checked_add(1) } else { None };
        account.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(Arc::clone(account)))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Signals of one thread, or those of a process that any of its threads may take.
#[derive(Debug, Default)]
pub struct Pending {
    set: SignalSet,
    queue: VecDeque<(SignalInfo, Option<Charge>)>,
}

impl Pending {
    /// What a checkpoint keeps.
    pub(in crate::task) fn saved(&self) -> SavedPending {
        let queue = self.queue.iter().map(|(info, _)| (info.signal, info.to_bytes().to_vec())).collect();
        SavedPending { set: self.set.0, queue }
    }

    /// The same again; `None` where a signal is none.
    pub(in crate::task) fn restored(saved: &SavedPending) -> Option<Self> {
        let mut queue = VecDeque::new();
        for (signal, bytes) in &saved.queue {
            queue.push_back((SignalInfo::from_bytes(*signal, bytes.as_slice().try_into().ok()?)?, None));
        }
        Some(Self { set: SignalSet(saved.set), queue })
    }

    /// Which signals are there.
    #[must_use]
    pub fn set(&self) -> SignalSet {
        self.set
    }

    /// Whether a further one of this signal would be dropped: a standard signal is pending once.
    #[must_use]
    pub fn has_already(&self, signal: i32) -> bool {
        signal < FIRST_REALTIME && self.set.has(signal)
    }

    /// Puts one at the end. Nothing where [`has_already`](Self::has_already).
    pub fn push(&mut self, info: SignalInfo, charge: Option<Charge>) {
        if self.has_already(info.signal) {
            return;
        }
        self.set.insert(info.signal);
        self.queue.push_back((info, charge));
    }

    /// Notes that a signal came of which nothing more could be kept.
    pub fn push_bit(&mut self, signal: i32) {
        self.set.insert(signal);
    }

    /// Takes the first of `wanted`: those a fault made before others, then the lowest number, of equals the oldest.
    pub fn take(&mut self, wanted: SignalSet) -> Option<SignalInfo> {
        let here = self.set.intersection(wanted);
        let signal = here.intersection(SignalSet::SYNCHRONOUS).lowest().or_else(|| here.lowest())?;
        let mut same = self.queue.iter().enumerate().filter(|(_, (info, _))| info.signal == signal);
        let first = same.next().map(|(at, _)| at);
        if same.next().is_none() {
            self.set.remove(signal);
        }
        let queued = first.and_then(|at| self.queue.remove(at));
        Some(queued.map_or_else(|| SignalInfo::lost(signal), |(info, _)| info))
    }

    /// Forgets all of `set`.
    pub fn discard(&mut self, set: SignalSet) {
        self.set = self.set.without(set);
        self.queue.retain(|(info, _)| !set.has(info.signal));
    }

    /// Adds expirations to the signal of a timer that is queued already. Its overrun then; `None` where there is none.
    pub fn add_overrun(&mut self, timer: i32, count: u64) -> Option<i32> {
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        self.queue.iter_mut().find_map(|(info, _)| match &mut info.payload {
            Payload::Timer { id, overrun, .. } if *id == timer => {
                *overrun = overrun.saturating_add(count);
                Some(*overrun)
            }
            _ => None,
        })
    }

    /// Those that are queued, as they came.
    pub fn iter(&self) -> impl Iterator<Item = &SignalInfo> {
        self.queue.iter().map(|(info, _)| info)
    }

    /// How many are queued.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn faults_first_then_the_lowest_then_the_oldest() {
        let mut pending = Pending::default();
        for (signal, sender) in [(40, 1), (libc::SIGHUP, 2), (40, 3), (libc::SIGSEGV, 4), (libc::SIGHUP, 5)] {
            pending.push(SignalInfo::user(signal, sender, 0), None);
        }
        let mut order = Vec::new();
        while let Some(info) = pending.take(SignalSet::ALL) {
            order.push(info);
        }
        let wanted = [(libc::SIGSEGV, 4), (libc::SIGHUP, 2), (40, 1), (40, 3)];
        assert_eq!(order, wanted.map(|(signal, sender)| SignalInfo::user(signal, sender, 0)));
        assert!(pending.set().is_empty());
    }

    #[test]
    fn a_users_account_is_bounded_and_given_back() {
        let account = Arc::new(AtomicU64::new(0));
        let first = Charge::take(&account, 1).unwrap();
        assert!(Charge::take(&account, 1).is_none());
        drop(first);
        assert!(Charge::take(&account, 1).is_some());
    }

    proptest! {
        /// Against a plain model: a list for each signal.
        #[test]
        fn behaves_as_lists_of_each_signal(operations in prop::collection::vec((0..3_u8, 1..=64_i32, any::<u64>()), 0..200)) {
            let mut pending = Pending::default();
            let mut model: Vec<Vec<i32>> = vec![Vec::new(); 65];
            for (number, (kind, signal, mask)) in (1..).zip(operations) {
                match kind {
                    0 => {
                        pending.push(SignalInfo::user(signal, number, 0), None);
                        let list = &mut model[usize::try_from(signal).unwrap()];
                        if signal >= FIRST_REALTIME || list.is_empty() {
                            list.push(number);
                        }
                    }
                    1 => {
                        let taken = pending.take(SignalSet(mask));
                        let there = |at: &usize| mask & (1 << (*at - 1)) != 0 && !model[*at].is_empty();
                        let first = [4_usize, 5, 7, 8, 11, 31].into_iter().chain(1..65).find(there);
                        let wanted = first.map(|at| {
                            SignalInfo::user(i32::try_from(at).unwrap(), model[at].remove(0), 0)
                        });
                        prop_assert_eq!(taken, wanted);
                    }
                    _ => {
                        pending.discard(SignalSet::of(&[signal]));
                        model[usize::try_from(signal).unwrap()].clear();
                    }
                }
                let set = (1..65).filter(|at| !model[*at as usize].is_empty()).collect::<Vec<i32>>();
                prop_assert_eq!(pending.set(), SignalSet::of(&set));
                prop_assert_eq!(pending.queued(), model.iter().map(Vec::len).sum::<usize>());
            }
        }
    }
}
