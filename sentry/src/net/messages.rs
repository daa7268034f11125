//! Messages that wait to be received: of UNIX, UDP, ICMP and netlink sockets.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::address::Address;
use super::buffer::Sink;
use super::control::{ControlMessage, Rights};
use super::{Budget, Identity, lock};
use crate::error::Errno;

/// What a message counts for beyond its bytes: about `SKB_TRUESIZE(0)`.
const OVERHEAD: usize = 768;
/// Messages that any inbox holds at most, whatever their size.
const MESSAGES: usize = 16_384;

/// A message.
#[derive(Default)]
pub(crate) struct Message {
    pub(crate) data: Vec<u8>,
    pub(crate) from: Option<Address>,
    pub(crate) sender: Identity,
    pub(crate) rights: Option<Rights>,
    pub(crate) controls: Vec<ControlMessage>,
}

impl Message {
    fn cost(&self) -> usize {
        self.data.len().saturating_add(OVERHEAD)
    }
}

/// What was received, but its bytes.
#[derive(Default)]
pub(crate) struct Received {
    /// Bytes that were copied.
    pub(crate) count: usize,
    /// Bytes that the message had.
    pub(crate) whole: usize,
    pub(crate) from: Option<Address>,
    pub(crate) sender: Option<Identity>,
    pub(crate) rights: Option<Rights>,
    pub(crate) peeked: Vec<Arc<crate::vfs::OpenFile>>,
    pub(crate) controls: Vec<ControlMessage>,
    /// More of it is not to be asked for in the same call, although there is room.
    pub(crate) boundary: bool,
    /// `MSG_*` to be told.
    pub(crate) flags: i32,
}

#[derive(Default)]
struct State {
    messages: VecDeque<Message>,
    bytes: usize,
    /// The receiver is gone.
    gone: bool,
    /// The receiver wants no more.
    unwanted: bool,
}

/// Messages that wait.
pub(crate) struct Inbox {
    state: Mutex<State>,
    budget: Arc<Budget>,
}

/// How full an inbox may be for a message to be put in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Messages that are there at most.
    pub(crate) messages: usize,
    /// Bytes, with what messages count for besides.
    pub(crate) bytes: usize,
}

impl Inbox {
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        Self { state: Mutex::default(), budget: Arc::clone(budget) }
    }

    /// Puts a message in.
    ///
    /// # Errors
    /// EAGAIN where it is full; ECONNREFUSED where nobody receives any more; EPIPE where nobody wants to; ENOBUFS. The message comes back.
    pub(crate) fn put(&self, message: Message, room: Room) -> Result<(), (Errno, Message)> {
        let mut state = lock(&self.state);
        let errno = if state.gone {
            Errno::ECONNREFUSED
        } else if state.unwanted {
            Errno::EPIPE
        } else if state.messages.len() >= room.messages.min(MESSAGES) || state.bytes >= room.bytes {
            Errno::EAGAIN
        } else if !self.budget.take(message.cost()) {
            Errno::ENOBUFS
        } else {
            state.bytes = state.bytes.saturating_add(message.cost());
            state.messages.push_back(message);
            return Ok(());
        };
        Err((errno, message))
    }

    /// Whether a message could be put in.
    pub(crate) fn fits(&self, room: Room) -> bool {
        let state = lock(&self.state);
        state.gone || state.messages.len() < room.messages.min(MESSAGES) && state.bytes < room.bytes
    }

    /// Receives the first message, of which what does not fit is lost.
    ///
    /// # Errors
    /// EAGAIN where there is none; EFAULT, with which the message is lost.
    pub(crate) fn take(&self, sink: &mut dyn Sink, peek: bool) -> Result<Received, Errno> {
        if peek {
            let state = lock(&self.state);
            let message = state.messages.front().ok_or(Errno::EAGAIN)?;
            let mut received = Self::copy(message, sink)?;
            received.peeked = message.rights.as_ref().map(Rights::files).unwrap_or_default();
            received.controls.clone_from(&message.controls);
            received.from.clone_from(&message.from);
            return Ok(received);
        }
        let message = {
            let mut state = lock(&self.state);
            let message = state.messages.pop_front().ok_or(Errno::EAGAIN)?;
            state.bytes = state.bytes.saturating_sub(message.cost());
            message
        };
        self.budget.give(message.cost());
        let mut received = Self::copy(&message, sink)?;
        received.rights = message.rights;
        received.controls = message.controls;
        received.from = message.from;
        Ok(received)
    }

    fn copy(message: &Message, sink: &mut dyn Sink) -> Result<Received, Errno> {
        let wanted = message.data.len().min(sink.room());
        let count = sink.put(&message.data);
        if count < wanted {
            return Err(Errno::EFAULT);
        }
        let whole = message.data.len();
        let flags = if count < whole { libc::MSG_TRUNC } else { 0 };
        let sender = Some(message.sender);
        Ok(Received { count, whole, flags, sender, boundary: true, ..Received::default() })
    }

    /// Bytes of the first message; of all of them; how many there are.
    pub(crate) fn status(&self) -> (Option<usize>, usize, usize) {
        let state = lock(&self.state);
        (state.messages.front().map(|message| message.data.len()), state.bytes, state.messages.len())
    }

    /// Nothing more is wanted (`SHUT_RD`).
    pub(crate) fn refuse(&self) {
        lock(&self.state).unwanted = true;
    }

    /// Whether nothing more is wanted.
    pub(crate) fn refuses(&self) -> bool {
        lock(&self.state).unwanted
    }

    /// Whether its receiver is gone.
    pub(crate) fn is_gone(&self) -> bool {
        lock(&self.state).gone
    }

    /// Drops all messages, and takes no more where the receiver goes. How many there were.
    pub(crate) fn clear(&self, gone: bool) -> usize {
        let messages = {
            let mut state = lock(&self.state);
            state.gone |= gone;
            state.bytes = 0;
            std::mem::take(&mut state.messages)
        };
        for message in &messages {
            self.budget.give(message.cost());
        }
        messages.len()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.clear(true);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole_or_cut() {
        let budget = Arc::new(Budget::new(1 << 20));
        let inbox = Inbox::new(&budget);
        let room = Room { messages: 2, bytes: 10_000 };
        let message = |data: &[u8]| Message { data: data.to_vec(), ..Message::default() };
        assert!(inbox.put(message(b"hello"), room).is_ok());
        assert!(inbox.put(message(b""), room).is_ok());
        assert_eq!(inbox.put(message(b"x"), room).map_err(|(errno, _)| errno), Err(Errno::EAGAIN));
        let mut bytes = [0; 3];
        let received = inbox.take(&mut bytes.as_mut_slice(), true).unwrap();
        assert_eq!((received.count, received.whole, received.flags), (3, 5, libc::MSG_TRUNC));
        let received = inbox.take(&mut bytes.as_mut_slice(), false).unwrap();
        assert_eq!((received.count, bytes), (3, *b"hel"));
        assert_eq!(inbox.take(&mut bytes.as_mut_slice(), false).map(|received| received.count), Ok(0));
        assert_eq!(inbox.take(&mut bytes.as_mut_slice(), false).err(), Some(Errno::EAGAIN));
        assert_eq!(budget.used(), 0);
        inbox.clear(true);
        assert_eq!(inbox.put(message(b"x"), room).map_err(|(errno, _)| errno), Err(Errno::ECONNREFUSED));
    }
}
