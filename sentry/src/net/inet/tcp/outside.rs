//! TCP sockets whose other end is outside: what the stack tells them.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::super::super::buffer::ByteQueue;
use super::super::super::pair::End;
use super::super::super::socket::Context;
use super::super::super::stack::Path;
use super::super::super::{lock, options as socket_options};
use super::super::{BUFFER, accepts_outside, options};
use super::{Names, State, Tcp};
use crate::error::Errno;
use crate::events::Events;

impl Tcp {
    pub(in crate::net) fn weak(&self) -> Weak<Self> {
        Weak::clone(&self.me)
    }

    /// Queues of a connection to outside, by who reads them: each has the size that this side gives it.
    fn queues(&self) -> [ByteQueue; 2] {
        let options = lock(&self.common.options);
        let size = |fixed: bool, bytes: usize| if fixed { bytes } else { BUFFER };
        let reads = size(options.fixed[1], options.receive_buffer);
        let writes = size(options.fixed[0], options.send_buffer);
        [reads, writes].map(|limit| ByteQueue::new(limit, &self.common.net.bytes))
    }

    /// Begins to connect to outside.
    pub(super) fn dial(&self, to: SocketAddr, path: Path) -> Result<(), Errno> {
        if lock(&self.names).local.is_none() {
            self.claim_port(SocketAddr::new(path.source, 0), false, true)?;
        }
        let local = {
            let mut names = lock(&self.names);
            names.remote = Some(to);
            let local = names.local.as_mut().ok_or(Errno::EINVAL)?;
            if local.ip().is_unspecified() {
                local.set_ip(path.source);
            }
            *local
        };
        if !accepts_outside(local.ip()) {
            // From loopback nothing goes out (`ip_route_output_key`).
            self.release_automatic();
            return Err(Errno::EINVAL);
        }
        let (net, me) = (&self.common.net, self.me.upgrade().ok_or(Errno::EINVAL)?);
        let stack = net.stack().ok_or(Errno::ENETUNREACH)?;
        self.untold.store(true, Ordering::Relaxed);
        let mut over = false;
        let dialled = stack.connect(&me, &self.common, [local, to], path, self.queues());
        match dialled {
            Ok(end) => {
                match &mut *lock(&self.state) {
                    State::Knocking(waits) => *waits = Some(end.clone()),
                    // It is there already.
                    State::Connected(_) => {}
                    // It failed, or was closed meanwhile.
                    _ => over = true,
                }
                if over {
                    Self::hang_up(&end);
                }
                Ok(())
            }
            Err(errno) => {
                self.untold.store(false, Ordering::Relaxed);
                self.release_automatic();
                Err(errno)
            }
        }
    }

    /// The connection is there.
    pub(in crate::net) fn reached(&self, end: End<ByteQueue>) {
        let mut state = lock(&self.state);
        if matches!(*state, State::Knocking(_)) {
            *state = State::Connected(end);
            drop(state);
            self.common.notify(Events::OUT | Events::WRNORM);
        } else {
            // Closed meanwhile.
            drop(state);
            Self::hang_up(&end);
        }
    }

    /// What waits to be accepted is as much as there may be.
    pub(in crate::net) fn is_full(&self) -> bool {
        matches!(&*lock(&self.state), State::Listening { backlog, waiting, .. } if waiting.len() > *backlog)
    }

    /// What will be accepted, and both its ends.
    pub(in crate::net) fn child_from_outside(
        &self,
        [local, remote]: [SocketAddr; 2],
    ) -> Result<(Arc<Self>, [End<ByteQueue>; 2]), Errno> {
        let child = Self::new(&self.common.net, self.common.domain, self.common.owner)?;
        let inherited = lock(&self.common.options).clone();
        *lock(&child.common.options) = inherited;
        let [ours, theirs] = End::pair([&child.common, &child.common], child.queues());
        *lock(&child.state) = State::Connected(ours.clone());
        *lock(&child.names) =
            Names { local: Some(local), remote: Some(remote), claimed: false, chosen: true };
        child.accepted.store(true, Ordering::Relaxed);
        self.common.net.inet.tcp.accepted(local.port(), child.reuses());
        Ok((child, [ours, theirs]))
    }

    /// A connection that was opened from outside is there: `false` where nobody listens any more.
    pub(in crate::net) fn admit_from_outside(&self, child: &Arc<Self>) -> bool {
        match &mut *lock(&self.state) {
            State::Listening { waiting, .. } => waiting.push_back(Arc::clone(child)),
            _ => return false,
        }
        self.common.notify(Events::IN | Events::RDNORM);
        true
    }

    /// It never was there.
    pub(in crate::net) fn close_quietly(&self) {
        *lock(&self.state) = State::Closed;
        self.release();
    }

    /// Breaks off what is being dialled.
    pub(super) fn hang_up(end: &End<ByteQueue>) {
        end.incoming().close();
        end.outgoing().change(|flags| flags.broken = true);
        if let Some(wire) = end.wire() {
            wire.kick();
        }
    }

    /// Options of the socket changed: buffers have the size that the program gave them, if it did.
    pub(super) fn outside_changed(&self, end: &End<ByteQueue>) {
        let (sizes, fixed) = {
            let options = lock(&self.common.options);
            ([options.send_buffer, options.receive_buffer], options.fixed)
        };
        for (at, queue) in [end.outgoing(), end.incoming()].into_iter().enumerate() {
            if fixed[at] {
                queue.set_limit(sizes[at]);
            }
        }
        if let Some(wire) = end.wire() {
            wire.options_changed();
        }
    }

    /// Options that belong to a connection to outside.
    pub(super) fn outside_option(&self, name: i32) -> Option<Vec<u8>> {
        let wire = self.end().and_then(|end| end.wire())?;
        let measures = wire.measures();
        let told = |value: usize| socket_options::told(i32::try_from(value).unwrap_or(i32::MAX));
        match name {
            libc::TCP_INFO => Some(options::tcp_info_outside(wire.phase() as u8, &measures, wire.mtu())),
            libc::TCP_MAXSEG => Some(told(measures.mss)),
            _ => None,
        }
    }

    pub(super) fn begin_connect(&self, context: &Context, to: SocketAddr) -> Result<bool, Errno> {
        match super::super::route(&context.net, to.ip())? {
            super::super::Route::Outside(path) => self.dial(to, path).map(|()| true),
            super::super::Route::Own(source) => self.begin_own(source, to).map(|()| false),
            _ => Err(Errno::ENETUNREACH),
        }
    }
}
