//! Contexts of Linux' asynchronous input and output (`man 2 io_setup`; `fs/aio.c`): what came of transfers until it is asked for.
//!
//! Transfers are done when they are handed in, as Linux does them where a file has no other way: what is here is their results.

use std::collections::VecDeque;
use std::sync::Mutex;

use crate::error::Errno;
use crate::events::{Events, WaitQueue};
use crate::sync::lock;

/// Contexts of an address space.
pub(crate) const CONTEXTS_MAX: usize = 1024;

/// What came of a transfer (`struct io_event`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    /// `aio_data`.
    pub(crate) data: u64,
    /// Where the guest has the transfer's `struct iocb`.
    pub(crate) object: u64,
    /// Bytes, or an error below 0.
    pub(crate) result: i64,
}

impl Event {
    /// As the ABI has it.
    pub(crate) fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (place, value) in
            bytes.as_chunks_mut::<8>().0.iter_mut().zip([self.data, self.object, self.result.cast_unsigned()])
        {
            *place = value.to_le_bytes();
        }
        bytes
    }
}

/// A context.
pub(crate) struct Context {
    most: usize,
    done: Mutex<State>,
    queue: WaitQueue,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    /// Whoever waits goes without.
    closed: bool,
}

impl Context {
    /// With room for so many results.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, done: Mutex::default(), queue: WaitQueue::new() }
    }

    /// Whether there is room for another result.
    pub(crate) fn has_room(&self) -> bool {
        lock(&self.done).events.len() < self.most
    }

    /// Keeps a result. Threads that hand in at the same moment may be a few above the room.
    pub(crate) fn put(&self, event: Event) {
        lock(&self.done).events.push_back(event);
        self.queue.notify(Events::IN);
    }

    /// Takes at most so many results, the oldest first, once there are `least` of them. `None`: there are not yet.
    pub(crate) fn take(&self, least: usize, most: usize) -> Option<Result<Vec<Event>, Errno>> {
        let mut state = lock(&self.done);
        if state.closed {
            return Some(Err(Errno::EINVAL));
        }
        if state.events.len() < least {
            return None;
        }
        let count = most.min(state.events.len());
        Some(Ok(state.events.drain(..count).collect()))
    }

    /// Puts results back that the guest could not be given.
    pub(crate) fn put_back(&self, events: &[Event]) {
        let mut state = lock(&self.done);
        for event in events.iter().rev() {
            state.events.push_front(*event);
        }
    }

    /// Whoever waits for results hears that there will be none.
    pub(crate) fn close(&self) {
        lock(&self.done).closed = true;
        self.queue.notify(Events::IN);
    }

    /// Tells of results.
    pub(crate) fn queue(&self) -> &WaitQueue {
        &self.queue
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn results_are_kept_in_their_order() {
        let context = Context::new(2);
        let event = |data| Event { data, object: 7, result: -5 };
        assert_eq!(context.take(1, 5), None);
        assert_eq!(context.take(0, 5), Some(Ok(Vec::new())));
        context.put(event(1));
        assert!(context.has_room());
        context.put(event(2));
        assert!(!context.has_room());
        assert_eq!(context.take(3, 5), None);
        let taken = context.take(1, 1).unwrap().unwrap();
        assert_eq!(taken, [event(1)]);
        context.put_back(&taken);
        assert_eq!(context.take(2, 2).unwrap().unwrap(), [event(1), event(2)]);
        context.close();
        assert_eq!(context.take(1, 1), Some(Err(Errno::EINVAL)));
        let bytes = event(1).bytes();
        assert_eq!((bytes[0], bytes[8], &bytes[16..24]), (1, 7, &(-5_i64).to_le_bytes()[..]));
    }
}
