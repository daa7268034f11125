//! Two connected ends of a stream: each reads the queue that the other writes.

use std::sync::{Arc, OnceLock, Weak};

use super::Common;
use super::stack::Connection;
use crate::error::Errno;
use crate::events::Events;

/// Both directions of a connection, and both sockets.
struct Pair<Q> {
    /// By who reads.
    queues: [Q; 2],
    common: [Arc<Common>; 2],
    /// What carries it, where the second end is not a socket of the sandbox but the stack's.
    wire: OnceLock<Weak<Connection>>,
}

/// One end.
pub(crate) struct End<Q> {
    pair: Arc<Pair<Q>>,
    second: bool,
}

impl<Q> Clone for End<Q> {
    fn clone(&self) -> Self {
        Self { pair: Arc::clone(&self.pair), second: self.second }
    }
}

impl<Q> End<Q> {
    /// Both ends, with what the first and what the second reads.
    pub(crate) fn pair(common: [&Arc<Common>; 2], queues: [Q; 2]) -> [Self; 2] {
        let pair = Arc::new(Pair { queues, common: common.map(Arc::clone), wire: OnceLock::new() });
        [Self { pair: Arc::clone(&pair), second: false }, Self { pair, second: true }]
    }

    /// What this end reads.
    pub(crate) fn incoming(&self) -> &Q {
        &self.pair.queues[usize::from(self.second)]
    }

    /// What this end writes.
    pub(crate) fn outgoing(&self) -> &Q {
        &self.pair.queues[usize::from(!self.second)]
    }

    /// The other socket; of a connection to outside, the same one.
    pub(crate) fn other(&self) -> &Arc<Common> {
        &self.pair.common[usize::from(!self.second)]
    }

    /// The second end is carried by this.
    pub(crate) fn carry(&self, wire: &Arc<Connection>) {
        let _ = self.pair.wire.set(Arc::downgrade(wire));
    }

    /// Whether the other end is outside.
    pub(crate) fn is_outside(&self) -> bool {
        self.pair.wire.get().is_some()
    }

    /// What carries it, as long as it does.
    pub(crate) fn wire(&self) -> Option<Arc<Connection>> {
        self.pair.wire.get().and_then(Weak::upgrade)
    }

    /// Tells the other side that there is something to read, or to write.
    pub(crate) fn tell_other(&self, events: Events) {
        if !self.is_outside() {
            self.other().notify(events);
        } else if let Some(wire) = self.wire() {
            if events.contains(Events::OUT) { wire.was_read() } else { wire.kick() }
        }
    }

    /// The other socket has an error. What is outside is told by segments.
    pub(crate) fn fail_other(&self, errno: Errno) {
        if !self.is_outside() {
            self.other().fail(errno);
        }
    }

    /// Tells both sides.
    pub(crate) fn notify(&self, events: Events) {
        if self.is_outside() {
            self.other().notify(events);
            if let Some(wire) = self.wire() {
                wire.kick();
            }
        } else {
            self.pair.common.iter().for_each(|common| common.notify(events));
        }
    }
}
