//! The one thread that serves all timers.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Instant;

use crate::task::lock;

/// What is called when an [`Alarm`] goes off: on the timers' thread, without a lock. It must not wait.
pub trait Expire: Send + Sync {
    /// It is time.
    fn expire(&self);
}

/// All alarms of a sandbox.
#[derive(Clone, Default)]
pub struct Timers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: BTreeMap<Key, Weak<dyn Expire>>,
    next: u64,
    running: bool,
    /// The kernel is gone.
    closed: bool,
}

type Key = (Instant, u64);

/// One alarm. It is called off when it is dropped.
pub struct Alarm {
    timers: Timers,
    key: Option<Key>,
}

impl Timers {
    /// An alarm that is not set.
    #[must_use]
    pub fn alarm(&self) -> Alarm {
        Alarm { timers: self.clone(), key: None }
    }

    /// Nothing goes off any more, and the thread ends.
    pub(crate) fn close(&self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
    }

    fn serve(&self) {
        let mut state = lock(&self.shared.state);
        while !state.closed {
            let Some((deadline, _)) = state.queue.keys().next().copied() else {
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                let waited = self.shared.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let due = state.queue.pop_first().and_then(|(_, target)| target.upgrade());
            drop(state);
            if let Some(due) = due {
                due.expire();
            }
            state = lock(&self.shared.state);
        }
    }
}

impl Alarm {
    /// Sets it, instead of what it was set to; `None` calls it off.
    pub fn set(&mut self, deadline: Option<Instant>, target: &Weak<dyn Expire>) {
        let mut state = lock(&self.timers.shared.state);
        if let Some(old) = self.key.take() {
            state.queue.remove(&old);
        }
        let Some(deadline) = deadline else { return };
        let key = (deadline, state.next);
        state.next = state.next.wrapping_add(1);
        let first = state.queue.keys().next().is_none_or(|first| *first > key);
        state.queue.insert(key, Weak::clone(target));
        self.key = Some(key);
        if !state.running {
            let timers = self.timers.clone();
            let builder = std::thread::Builder::new().name("timers".into()).stack_size(256 << 10);
            // Without a thread now, the next alarm tries again.
            state.running = builder.spawn(move || timers.serve()).is_ok();
        } else if first {
            self.timers.shared.changed.notify_one();
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let target = lock(&self.timers.shared.state).queue.remove(&key);
            drop(target);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use super::*;

    struct Note(u32, Mutex<Sender<u32>>);

    impl Expire for Note {
        fn expire(&self) {
            lock(&self.1).send(self.0).unwrap();
        }
    }

    #[test]
    fn alarms_go_off_in_order_and_can_be_called_off() {
        let timers = Timers::default();
        let (sender, receiver) = channel();
        let mut kept = Vec::new();
        for (number, after) in [(1, 30), (2, 10), (3, 20), (4, 5)] {
            let note: Arc<dyn Expire> = Arc::new(Note(number, Mutex::new(sender.clone())));
            let mut alarm = timers.alarm();
            alarm.set(Some(Instant::now() + Duration::from_millis(after)), &Arc::downgrade(&note));
            kept.push((alarm, note));
        }
        drop(kept.pop());
        assert_eq!([(); 3].map(|()| receiver.recv().unwrap()), [2, 3, 1]);
        assert!(receiver.recv_timeout(Duration::from_millis(10)).is_err());
    }
}
