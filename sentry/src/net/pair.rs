//! Two connected ends of a stream: each reads the queue that the other writes.

use std::sync::Arc;

use super::Common;
use crate::events::Events;

/// Both directions of a connection, and both sockets.
struct Pair<Q> {
    /// By who reads.
    queues: [Q; 2],
    common: [Arc<Common>; 2],
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
        let pair = Arc::new(Pair { queues, common: common.map(Arc::clone) });
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

    /// The other socket.
    pub(crate) fn other(&self) -> &Arc<Common> {
        &self.pair.common[usize::from(!self.second)]
    }

    /// Tells both sides.
    pub(crate) fn notify(&self, events: Events) {
        self.pair.common.iter().for_each(|common| common.notify(events));
    }
}
