//! Queues of messages (`man 2 msgop`; `ipc/msg.c`).

use std::collections::VecDeque;
use std::sync::Mutex;

use super::{Object, Permissions, now};
use crate::error::Errno;
use crate::events::{Events, WaitQueue};
use crate::task::{Credentials, Pid, capability, lock};

/// Longest message (`MSGMAX`).
pub const MESSAGE_MAX: usize = 8192;
/// Bytes of a queue unless told otherwise (`MSGMNB`).
const BYTES: u64 = 16_384;

/// Which message is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// The first.
    Any,
    /// The first of this type.
    Type(i64),
    /// The first of another type (`MSG_EXCEPT`).
    Except(i64),
    /// The first of the lowest type up to this.
    Lowest(i64),
}

struct Message {
    kind: i64,
    text: Vec<u8>,
}

/// A queue.
pub struct Queue {
    state: Mutex<State>,
    queue: WaitQueue,
}

struct State {
    permissions: Permissions,
    messages: VecDeque<Message>,
    bytes: u64,
    limit: u64,
    sender: Pid,
    receiver: Pid,
    sent: i64,
    received: i64,
    changed: i64,
    removed: bool,
}

impl Object for Queue {
    fn permissions(&self) -> Permissions {
        lock(&self.state).permissions
    }
}

impl Queue {
    /// An empty one.
    #[must_use]
    pub fn new(permissions: Permissions) -> Self {
        let state = State {
            permissions,
            messages: VecDeque::new(),
            bytes: 0,
            limit: BYTES,
            sender: 0,
            receiver: 0,
            sent: 0,
            received: 0,
            changed: now(),
            removed: false,
        };
        Self { state: Mutex::new(state), queue: WaitQueue::new() }
    }

    /// Told when a message comes or goes, and at the end.
    #[must_use]
    pub fn queue(&self) -> &WaitQueue {
        &self.queue
    }

    /// Puts a message at the end.
    ///
    /// # Errors
    /// EAGAIN where there is no room; EIDRM.
    pub fn send(&self, process: Pid, kind: i64, text: &[u8]) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        if state.removed {
            return Err(Errno::EIDRM);
        }
        let bytes = state.bytes.saturating_add(text.len() as u64);
        if bytes > state.limit || state.messages.len() as u64 >= state.limit {
            return Err(Errno::EAGAIN);
        }
        state.messages.push_back(Message { kind, text: text.to_vec() });
        (state.bytes, state.sender, state.sent) = (bytes, process, now());
        drop(state);
        self.queue.notify(Events::CHANGED);
        Ok(())
    }

    /// Takes a message of at most `most` bytes; a longer one is cut off where that is `allowed`.
    ///
    /// # Errors
    /// ENOMSG where there is none; E2BIG; EIDRM.
    pub fn receive(
        &self,
        process: Pid,
        select: Select,
        most: usize,
        cut: bool,
    ) -> Result<(i64, Vec<u8>), Errno> {
        let mut state = lock(&self.state);
        if state.removed {
            return Err(Errno::EIDRM);
        }
        let at = state.find(select).ok_or(Errno::ENOMSG)?;
        if !cut && state.messages.get(at).is_some_and(|message| message.text.len() > most) {
            return Err(Errno::E2BIG);
        }
        let mut message = state.messages.remove(at).ok_or(Errno::ENOMSG)?;
        state.bytes = state.bytes.saturating_sub(message.text.len() as u64);
        (state.receiver, state.received) = (process, now());
        drop(state);
        self.queue.notify(Events::CHANGED);
        message.text.truncate(most);
        Ok((message.kind, message.text))
    }

    /// `IPC_SET`.
    ///
    /// # Errors
    /// EPERM for a larger queue without CAP_SYS_RESOURCE.
    pub fn change(&self, who: &Credentials, bytes: &[u8; 48], limit: u64) -> Result<(), Errno> {
        if limit > BYTES && !who.capable(capability::SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
        let mut state = lock(&self.state);
        state.permissions.set(bytes)?;
        state.limit = limit.min(1 << 30);
        state.changed = now();
        drop(state);
        self.queue.notify(Events::CHANGED);
        Ok(())
    }

    /// It was taken out of the table: who waits hears of it.
    pub fn removed(&self) {
        lock(&self.state).removed = true;
        self.queue.notify(Events::CHANGED);
    }

    /// As `struct msqid64_ds`.
    #[must_use]
    pub fn to_bytes(&self, id: i32) -> [u8; 120] {
        let state = lock(&self.state);
        let mut bytes = [0; 120];
        bytes[..48].copy_from_slice(&state.permissions.to_bytes(id));
        let times = [state.sent, state.received, state.changed].map(i64::cast_unsigned);
        let counts = [state.bytes, state.messages.len() as u64, state.limit];
        let words = times.into_iter().chain(counts).flat_map(u64::to_le_bytes);
        let pids = [state.sender, state.receiver].map(super::shown).into_iter().flat_map(i32::to_le_bytes);
        for (place, byte) in bytes.iter_mut().skip(48).zip(words.chain(pids)) {
            *place = byte;
        }
        bytes
    }
}

impl State {
    fn find(&self, select: Select) -> Option<usize> {
        let mut all = self.messages.iter();
        match select {
            Select::Any => (!self.messages.is_empty()).then_some(0),
            Select::Type(kind) => all.position(|message| message.kind == kind),
            Select::Except(kind) => all.position(|message| message.kind != kind),
            Select::Lowest(most) => {
                let lowest = all.enumerate().filter(|(_, message)| message.kind <= most);
                lowest.min_by_key(|(at, message)| (message.kind, *at)).map(|(at, _)| at)
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_by_type() {
        let queue = Queue::new(Permissions::new(0, &Credentials::root(), 0o600));
        for (kind, text) in [(3, "three"), (1, "one"), (2, "two"), (1, "uno")] {
            queue.send(1, kind, text.as_bytes()).unwrap();
        }
        let take = |select| queue.receive(2, select, 100, false).map(|(kind, _)| kind);
        assert_eq!(take(Select::Type(2)), Ok(2));
        assert_eq!(queue.receive(2, Select::Lowest(2), 2, false), Err(Errno::E2BIG));
        assert_eq!(queue.receive(2, Select::Lowest(2), 2, true), Ok((1, b"on".to_vec())));
        assert_eq!(take(Select::Except(3)), Ok(1));
        assert_eq!(take(Select::Lowest(2)), Err(Errno::ENOMSG));
        assert_eq!(take(Select::Any), Ok(3));
        assert_eq!(queue.send(1, 1, &[0; 8192]), Ok(()));
        assert_eq!(queue.send(1, 1, &[0; 8192]), Ok(()));
        assert_eq!(queue.send(1, 1, &[0]), Err(Errno::EAGAIN));
        queue.removed();
        assert_eq!(take(Select::Any), Err(Errno::EIDRM));
    }
}
