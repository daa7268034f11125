//! What is to be done when. An entry is not taken back when it is not needed any more: whoever it is for looks at its clock then.

use std::collections::BTreeMap;
use std::sync::{Mutex, Weak};
use std::time::Instant;

use super::tcp::Connection;
use super::wake::Waker;
use crate::net::lock;

#[derive(Default)]
struct State {
    entries: BTreeMap<(Instant, u64), Weak<Connection>>,
    next: u64,
    /// When the stack's thread looks again at the latest.
    looks: Option<Instant>,
}

/// Times of connections.
pub(crate) struct Timers {
    state: Mutex<State>,
    waker: Waker,
}

impl Timers {
    pub(crate) fn new(waker: Waker) -> Self {
        Self { state: Mutex::default(), waker }
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// A connection is to be looked at then.
    pub(crate) fn arm(&self, at: Instant, connection: &Weak<Connection>) {
        let mut state = lock(&self.state);
        let number = state.next;
        state.next = number.wrapping_add(1);
        state.entries.insert((at, number), Weak::clone(connection));
        if state.looks.is_none_or(|looks| at < looks) {
            state.looks = Some(at);
            drop(state);
            self.waker.wake();
        }
    }

    /// Before the thread sleeps: until when, given another reason to wake.
    pub(crate) fn sleep(&self, other: Option<Instant>) -> Option<Instant> {
        let mut state = lock(&self.state);
        let first = state.entries.keys().next().map(|(at, _)| *at);
        let until = first.into_iter().chain(other).min();
        state.looks = until;
        until
    }

    /// Those whose time has come; the thread looks again after this.
    pub(crate) fn due(&self, now: Instant) -> Vec<Weak<Connection>> {
        let mut state = lock(&self.state);
        state.looks = Some(now);
        let later = state.entries.split_off(&(now, u64::MAX));
        std::mem::replace(&mut state.entries, later).into_values().collect()
    }
}
