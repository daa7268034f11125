//! Address spaces that are made ahead: to copy the first stub takes the host longer than all else that the sentry does for an `execve`.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use super::thread::StubThread;
use super::waiting;
use crate::error::Errno;
use crate::sync::lock;

/// So many wait.
const MOST: usize = 2;

/// The first stub, and copies of it that nobody uses yet.
pub(in crate::platform) struct Spare {
    first: Mutex<StubThread>,
    state: Mutex<State>,
    taken: Condvar,
}

#[derive(Default)]
struct State {
    ready: VecDeque<StubThread>,
    /// How many were asked for. The first program of a sandbox may be its only one: nothing is made ahead for it.
    asked: u64,
    /// A thread makes more.
    filled: bool,
}

impl Spare {
    pub(in crate::platform) fn new(first: StubThread) -> Arc<Self> {
        first.let_sleep();
        Arc::new(Self { first: Mutex::new(first), state: Mutex::default(), taken: Condvar::new() })
    }

    fn copy(&self) -> Result<StubThread, Errno> {
        let mut first = lock(&self.first);
        let copy = first.fork_stub();
        first.let_sleep();
        copy
    }

    /// One that is ready, or a new one.
    pub(in crate::platform) fn take(self: &Arc<Self>) -> Result<StubThread, Errno> {
        let (ready, fill) = {
            let mut state = lock(&self.state);
            state.asked += 1;
            let fill = state.asked > 1 && !state.filled;
            state.filled |= fill;
            (state.ready.pop_front(), fill)
        };
        if fill {
            let weak = Arc::downgrade(self);
            let thread = std::thread::Builder::new().name("spare".to_owned()).stack_size(64 << 10);
            if thread.spawn(move || fill_up(&weak)).is_err() {
                lock(&self.state).filled = false;
            }
        } else {
            self.taken.notify_one();
        }
        match ready.filter(|ready| ready.has_turn()) {
            Some(ready) => Ok(ready),
            None => self.copy(),
        }
    }

    /// Makes one more where there are too few, else waits until one is taken. Whether more can be made.
    fn fill(&self) -> bool {
        let state = lock(&self.state);
        if state.ready.len() >= MOST {
            drop(self.taken.wait(state).unwrap_or_else(PoisonError::into_inner));
            return true;
        }
        drop(state);
        let copy = self.copy();
        waiting::rest();
        let mut state = lock(&self.state);
        match copy {
            Ok(copy) => {
                copy.let_sleep();
                state.ready.push_back(copy);
                true
            }
            Err(_) => {
                // Whoever needs one next is told why.
                state.filled = false;
                false
            }
        }
    }
}

fn fill_up(spare: &Weak<Spare>) {
    while let Some(spare) = spare.upgrade() {
        if !spare.fill() {
            return;
        }
    }
}
