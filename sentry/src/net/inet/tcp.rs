//! TCP sockets. No state machine: what a program can tell of one is in [`State`] and in the flags of both byte queues.
//!
//! A connection that ends: `ended` of a queue is a FIN that arrived, `gone` that its reader closed, `broken` an RST. Who sends to a reader that
//! closed is told so by the send after (`tcp_reset`); who closes with unread data, or with `SO_LINGER` and no time, sends an RST.

mod outside;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::super::address::Address;
use super::super::buffer::{ByteQueue, How, Sink, Tag};
use super::super::messages::Received;
use super::super::pair::End;
use super::super::socket::{Context, Description, Outgoing, Receive, Socket};
use super::super::{BACKLOG, Common, Identity, Net, lock};
use super::{BUFFER, claim, destination, limit, options, over, unspecified, wanted};
use crate::checkpoint::state::SavedTcp;
use crate::error::Errno;
use crate::events::Events;

enum State {
    Fresh,
    /// Waits for room in a listener's queue, or for an answer from outside: to be heard by this end.
    Knocking(Option<End<ByteQueue>>),
    Listening {
        backlog: usize,
        waiting: VecDeque<Arc<Tcp>>,
        knocking: VecDeque<Weak<Tcp>>,
    },
    Connected(End<ByteQueue>),
    Closed,
}

#[derive(Default, Clone, Copy)]
struct Names {
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    /// Its port was claimed in the table; `false` for what was accepted.
    claimed: bool,
    /// The address was asked for, not the port alone.
    chosen: bool,
}

/// A TCP socket.
pub(crate) struct Tcp {
    common: Arc<Common>,
    me: Weak<Self>,
    state: Mutex<State>,
    names: Mutex<Names>,
    /// A connect has begun whose end nobody was told.
    untold: AtomicBool,
    accepted: AtomicBool,
}

impl Tcp {
    pub(super) fn new(net: &Arc<Net>, domain: i32, owner: Identity) -> Result<Arc<Self>, Errno> {
        let common = Common::new(net, [domain, libc::SOCK_STREAM, libc::IPPROTO_TCP], owner)?;
        Ok(Arc::new_cyclic(|me| Self {
            common,
            me: Weak::clone(me),
            state: Mutex::new(State::Fresh),
            names: Mutex::default(),
            untold: AtomicBool::new(false),
            accepted: AtomicBool::new(false),
        }))
    }

    fn end(&self) -> Option<End<ByteQueue>> {
        match &*lock(&self.state) {
            State::Connected(end) => Some(end.clone()),
            _ => None,
        }
    }

    /// What a checkpoint keeps; `None` for a connection, which it does not.
    pub(crate) fn saved(&self) -> Option<SavedTcp> {
        let backlog = match &*lock(&self.state) {
            State::Fresh => None,
            State::Listening { backlog, .. } => Some(*backlog as u64),
            State::Knocking(_) | State::Connected(_) | State::Closed => return None,
        };
        let options = lock(&self.common.options).clone();
        Some(SavedTcp { domain: self.common.domain, local: lock(&self.names).local, backlog, options })
    }

    /// Becomes one whose connection the other end has reset.
    pub(crate) fn become_reset(&self) -> Result<(), Errno> {
        let (other, end) = self.child(self)?;
        *lock(&self.state) = State::Connected(end);
        other.abort();
        Ok(())
    }

    fn as_socket(&self) -> Weak<dyn Socket> {
        let me: Weak<Self> = Weak::clone(&self.me);
        me
    }

    fn reuses(&self) -> bool {
        lock(&self.common.options).reuse_address
    }

    fn claim_port(&self, local: SocketAddr, chosen: bool, connects: bool) -> Result<(), Errno> {
        let mut names = lock(&self.names);
        if names.local.is_some() {
            return Err(Errno::EINVAL);
        }
        let asked = claim(&self.common, local.ip());
        let port = self.common.net.inet.tcp.claim(local.port(), asked, &self.as_socket(), connects)?;
        let local = Some(SocketAddr::new(local.ip(), port));
        *names = Names { local, remote: None, claimed: true, chosen };
        Ok(())
    }

    /// The accepted end of a connection that `client` makes here; the other end.
    fn child(&self, client: &Self) -> Result<(Arc<Self>, End<ByteQueue>), Errno> {
        let child = Self::new(&self.common.net, self.common.domain, self.common.owner)?;
        let inherited = lock(&self.common.options).clone();
        *lock(&child.common.options) = inherited;
        let limits = [limit(&child.common, &client.common), limit(&client.common, &child.common)];
        let queues = limits.map(|limit| ByteQueue::new(limit, &self.common.net.bytes));
        let [ours, theirs] = End::pair([&client.common, &child.common], queues);
        *lock(&child.state) = State::Connected(theirs);
        let from = *lock(&client.names);
        *lock(&child.names) = Names { local: from.remote, remote: from.local, claimed: false, chosen: true };
        if let Some(local) = from.remote {
            child.accepted.store(true, Ordering::Relaxed);
            self.common.net.inet.tcp.accepted(local.port(), child.reuses());
        }
        Ok((child, ours))
    }

    /// Brings `client` into this listener's queue, or lets it wait for room there.
    fn admit(&self, client: &Self) -> Result<(), Errno> {
        let (child, end) = self.child(client)?;
        let admitted = match &mut *lock(&self.state) {
            State::Listening { backlog, waiting, .. } if waiting.len() <= *backlog => {
                waiting.push_back(Arc::clone(&child));
                true
            }
            State::Listening { knocking, .. } => {
                knocking.retain(|client| client.strong_count() > 0);
                if knocking.len() < BACKLOG {
                    knocking.push_back(Weak::clone(&client.me));
                }
                false
            }
            _ => {
                child.release();
                return Err(Errno::ECONNREFUSED);
            }
        };
        if !admitted {
            child.release();
            return Ok(());
        }
        let mut state = lock(&client.state);
        if matches!(*state, State::Knocking(_)) {
            *state = State::Connected(end);
            drop(state);
        } else {
            // Closed meanwhile: the accepted end finds nobody.
            drop(state);
            end.outgoing().change(|flags| flags.ended = true);
            end.incoming().close();
        }
        client.common.notify(Events::OUT | Events::WRNORM);
        self.common.notify(Events::IN | Events::RDNORM);
        Ok(())
    }

    /// A connect failed.
    pub(in crate::net) fn refuse(&self, errno: Errno) {
        let mut state = lock(&self.state);
        if matches!(*state, State::Knocking(_)) {
            *state = State::Fresh;
            drop(state);
            self.release_automatic();
            self.common.fail(errno);
        }
    }

    /// Gives up a port that nobody asked for.
    fn release_automatic(&self) {
        let mut names = lock(&self.names);
        names.remote = None;
        if let Some(local) = names.local.filter(|_| names.claimed && !names.chosen) {
            self.common.net.inet.tcp.release(local.port(), self.common.id());
            *names = Names::default();
        }
    }

    fn disconnect(&self) {
        let state = std::mem::replace(&mut *lock(&self.state), State::Fresh);
        self.end_state(state, true);
        self.release_automatic();
        self.untold.store(false, Ordering::Relaxed);
    }

    /// What a connection or a listener leaves behind.
    fn end_state(&self, state: State, reset: bool) {
        match state {
            State::Connected(end) => self.end_connection(&end, reset),
            State::Knocking(Some(end)) => Self::hang_up(&end),
            State::Listening { waiting, knocking, .. } => {
                for child in waiting {
                    child.abort();
                }
                for client in knocking.iter().filter_map(Weak::upgrade) {
                    client.refuse(Errno::ECONNREFUSED);
                }
            }
            _ => {}
        }
    }

    /// Closes with an RST.
    pub(in crate::net) fn abort(&self) {
        let state = std::mem::replace(&mut *lock(&self.state), State::Closed);
        self.end_state(state, true);
        self.release();
    }

    fn end_connection(&self, end: &End<ByteQueue>, reset: bool) {
        let heard = end.incoming().flags();
        let unread = end.incoming().close() > 0;
        if reset || unread {
            let told = end.outgoing().change(|flags| flags.broken = true);
            if !told.gone && !told.broken && !heard.broken {
                end.fail_other(if told.ended { Errno::EPIPE } else { Errno::ECONNRESET });
            }
        } else {
            // After an RST no FIN is heard any more.
            let told = end.outgoing().change(|flags| flags.ended |= !flags.broken && !heard.broken);
            let local = lock(&self.names).local;
            if let Some(local) = local.filter(|_| !heard.ended && !heard.broken && !told.broken) {
                self.common.net.inet.tcp.linger(local.port(), self.reuses());
            }
        }
        end.notify(Events::IN | Events::OUT | Events::RDHUP | Events::HUP | Events::RDNORM | Events::WRNORM);
    }

    fn release(&self) {
        let names = std::mem::take(&mut *lock(&self.names));
        let Some(local) = names.local else { return };
        if names.claimed {
            self.common.net.inet.tcp.release(local.port(), self.common.id());
        }
        if self.accepted.swap(false, Ordering::Relaxed) {
            self.common.net.inet.tcp.departed(local.port(), self.reuses());
        }
    }

    fn begin_own(&self, source: IpAddr, to: SocketAddr) -> Result<(), Errno> {
        if lock(&self.names).local.is_none() {
            self.claim_port(SocketAddr::new(source, 0), false, true)?;
        }
        let mut names = lock(&self.names);
        names.remote = Some(to);
        if let Some(local) = names.local.as_mut().filter(|local| local.ip().is_unspecified()) {
            local.set_ip(source);
        }
        Ok(())
    }
}

impl Socket for Tcp {
    fn common(&self) -> &Arc<Common> {
        &self.common
    }

    fn bind(&self, context: &Context, address: &Address) -> Result<(), Errno> {
        let local = wanted(context, &self.common, address)?;
        if !matches!(*lock(&self.state), State::Fresh) {
            return Err(Errno::EINVAL);
        }
        self.claim_port(local, true, false)
    }

    fn connect(&self, context: &Context, address: &Address) -> Result<(), Errno> {
        if *address == Address::Unspecified {
            self.disconnect();
            return Ok(());
        }
        if self.common.domain == libc::AF_INET6 && matches!(address, Address::Inet(SocketAddr::V4(_))) {
            return Err(Errno::EAFNOSUPPORT);
        }
        let to = destination(&self.common, address)?;
        let untold = self.untold.load(Ordering::Relaxed);
        {
            let mut state = lock(&self.state);
            match &*state {
                State::Connected(_) if untold => {
                    self.untold.store(false, Ordering::Relaxed);
                    return Ok(());
                }
                State::Connected(_) | State::Listening { .. } => return Err(Errno::EISCONN),
                State::Knocking(_) => return Err(Errno::EALREADY),
                State::Closed => return Err(Errno::EINVAL),
                State::Fresh if untold => {
                    self.untold.store(false, Ordering::Relaxed);
                    self.common.take_error()?;
                    return Err(Errno::ECONNABORTED);
                }
                State::Fresh => *state = State::Knocking(None),
            }
        }
        match self.begin_connect(context, to) {
            Ok(true) => return Err(Errno::EINPROGRESS),
            Ok(false) => {}
            Err(errno) => {
                *lock(&self.state) = State::Fresh;
                return Err(errno);
            }
        }
        self.untold.store(true, Ordering::Relaxed);
        let from = lock(&self.names).local.unwrap_or(to);
        let found = context.net.inet.tcp.find(to, from, true);
        let admitted = match found.as_deref().and_then(|found| found.downcast::<Self>()) {
            Some(listener) => listener.admit(self),
            None => Err(Errno::ECONNREFUSED),
        };
        if let Err(errno) = admitted {
            self.refuse(errno);
        }
        Err(Errno::EINPROGRESS)
    }

    fn connected(&self) -> Option<Result<(), Errno>> {
        let result = match &*lock(&self.state) {
            State::Knocking(_) => return None,
            State::Connected(_) => Ok(()),
            _ => Err(Errno::ECONNABORTED),
        };
        self.untold.store(false, Ordering::Relaxed);
        Some(result.or_else(|errno| self.common.take_error().and(Err(errno))))
    }

    fn listen(&self, _context: &Context, backlog: i32) -> Result<(), Errno> {
        let wanted = usize::try_from(backlog).unwrap_or(BACKLOG).min(BACKLOG);
        if let State::Listening { backlog, .. } = &mut *lock(&self.state) {
            *backlog = wanted;
            return Ok(());
        }
        if lock(&self.names).local.is_none() {
            self.claim_port(SocketAddr::new(unspecified(self.common.domain), 0), true, false)?;
        }
        let mut state = lock(&self.state);
        if !matches!(*state, State::Fresh) {
            return Err(Errno::EINVAL);
        }
        let port = lock(&self.names).local.map_or(0, |local| local.port());
        self.common.net.inet.tcp.listen(port, self.common.id())?;
        *state = State::Listening { backlog: wanted, waiting: VecDeque::new(), knocking: VecDeque::new() };
        Ok(())
    }

    fn accept(&self) -> Result<Arc<dyn Socket>, Errno> {
        let (child, next) = match &mut *lock(&self.state) {
            State::Listening { waiting, knocking, .. } => {
                let child = waiting.pop_front().ok_or(Errno::EAGAIN)?;
                (child, knocking.pop_front())
            }
            _ => return Err(Errno::EINVAL),
        };
        if let Some(next) = next.and_then(|next| next.upgrade())
            && let Err(errno) = self.admit(&next)
        {
            next.refuse(errno);
        }
        let child: Arc<dyn Socket> = child;
        self.common.net.register(&child);
        Ok(child)
    }

    fn local(&self) -> Result<Address, Errno> {
        let domain = self.common.domain;
        let local = lock(&self.names).local;
        Ok(Address::of_domain(domain, local.unwrap_or(SocketAddr::new(unspecified(domain), 0))))
    }

    fn peer(&self) -> Result<Address, Errno> {
        let end = self.end().ok_or(Errno::ENOTCONN)?;
        if over(&end) {
            return Err(Errno::ENOTCONN);
        }
        let remote = lock(&self.names).remote.ok_or(Errno::ENOTCONN)?;
        Ok(Address::of_domain(self.common.domain, remote))
    }

    fn send(&self, message: &mut Outgoing<'_>) -> Result<usize, Errno> {
        self.common.take_error()?;
        let end = match &*lock(&self.state) {
            State::Connected(end) => end.clone(),
            State::Knocking(_) => return Err(Errno::EAGAIN),
            _ => return Err(Errno::EPIPE),
        };
        let flags = end.outgoing().flags();
        if flags.ended || flags.broken || end.incoming().flags().broken {
            return Err(Errno::EPIPE);
        }
        let all = message.source.left();
        let deaf = flags.unwanted && end.incoming().flags().ended;
        if (flags.gone || deaf) && all > 0 {
            // An RST comes back for it; who only shut down both ways is reset, too. What fits was taken by then.
            let fits = end.outgoing().room().1;
            end.outgoing().change(|flags| flags.broken = true);
            self.common.fail(Errno::EPIPE);
            if !flags.gone {
                end.fail_other(Errno::ECONNRESET);
            }
            return Ok(all.min(fits));
        }
        let count = end.outgoing().put(message.source, &mut Tag::default())?;
        if message.flags & libc::MSG_OOB != 0 && count > 0 && count == all {
            end.outgoing().mark_urgent();
            end.tell_other(Events::PRI);
        }
        match end.wire() {
            Some(wire) => wire.was_written(message.flags & libc::MSG_MORE != 0),
            None => end.tell_other(Events::IN | Events::RDNORM),
        }
        Ok(count)
    }

    fn receive(&self, sink: &mut dyn Sink, how: Receive) -> Result<Received, Errno> {
        let end = self.end().ok_or(Errno::ENOTCONN)?;
        let urgent_inline = lock(&self.common.options).urgent_inline;
        let peek = how.has(libc::MSG_PEEK);
        if how.has(libc::MSG_OOB) {
            if urgent_inline {
                return Err(Errno::EINVAL);
            }
            let byte = end.incoming().take_urgent(peek)?;
            let count = sink.put(&[byte]);
            return Ok(Received {
                count,
                whole: 1,
                flags: libc::MSG_OOB,
                boundary: true,
                ..Received::default()
            });
        }
        let flags = end.incoming().flags();
        let discard = how.has(libc::MSG_TRUNC);
        let taken = end.incoming().take(sink, How { peek, discard, apart: false, urgent_inline })?;
        if taken.count == 0 && (sink.room() > 0 || end.incoming().len() == 0) {
            if flags.ended {
                return Ok(Received::default());
            }
            self.common.take_error()?;
            let over = flags.unwanted || flags.broken || end.outgoing().flags().broken;
            return if over { Ok(Received::default()) } else { Err(Errno::EAGAIN) };
        }
        if !peek {
            end.tell_other(Events::OUT | Events::WRNORM);
        }
        let count = taken.count;
        Ok(Received { count, whole: count, boundary: taken.boundary, ..Received::default() })
    }

    fn shutdown(&self, how: i32) -> Result<(), Errno> {
        let state = lock(&self.state);
        match &*state {
            State::Listening { .. } if how == libc::SHUT_WR => return Ok(()),
            State::Listening { .. } => {
                drop(state);
                let state = std::mem::replace(&mut *lock(&self.state), State::Fresh);
                self.end_state(state, true);
                self.common.notify(Events::IN | Events::HUP);
                return Ok(());
            }
            State::Connected(end) => {
                let end = end.clone();
                drop(state);
                if over(&end) {
                    return Err(Errno::ENOTCONN);
                }
                if how != libc::SHUT_WR {
                    end.incoming().change(|flags| flags.unwanted = true);
                }
                if how != libc::SHUT_RD {
                    end.outgoing().change(|flags| flags.ended = true);
                }
                end.notify(Events::IN | Events::OUT | Events::RDHUP | Events::HUP);
                return Ok(());
            }
            _ => {}
        }
        Err(Errno::ENOTCONN)
    }

    fn ready(&self) -> Events {
        let mut ready = if self.common.has_error() { Events::ERR } else { Events::empty() };
        let both = Events::OUT | Events::WRNORM;
        let state = lock(&self.state);
        match &*state {
            State::Listening { waiting, .. } if waiting.is_empty() => {}
            State::Listening { .. } => ready |= Events::IN | Events::RDNORM,
            State::Knocking(_) => {}
            State::Connected(end) => {
                let end = end.clone();
                drop(state);
                let (incoming, outgoing) = (end.incoming().flags(), end.outgoing().flags());
                let broken = incoming.broken || outgoing.broken;
                let read_over = incoming.ended || incoming.unwanted || broken;
                let write_over = outgoing.ended || broken;
                if read_over {
                    ready |= Events::IN | Events::RDNORM | Events::RDHUP;
                }
                if read_over && write_over {
                    ready |= Events::HUP;
                }
                let (urgent, at_mark) = end.incoming().urgent();
                if urgent {
                    ready |= Events::PRI;
                }
                let (low, inline) = {
                    let options = lock(&self.common.options);
                    (usize::try_from(options.low_water).unwrap_or(1), options.urgent_inline)
                };
                let unread = end.incoming().len().saturating_sub(usize::from(at_mark && !inline));
                if unread >= low.min(BUFFER) {
                    ready |= Events::IN | Events::RDNORM;
                }
                let (room, limit) = end.outgoing().room();
                if write_over || room > limit / 3 {
                    ready |= both;
                }
            }
            _ => ready |= Events::HUP | both,
        }
        ready
    }

    fn unread(&self) -> Result<usize, Errno> {
        match (self.end(), self.describe().listening) {
            (_, true) => Err(Errno::EINVAL),
            (end, _) => Ok(end.map_or(0, |end| end.incoming().len())),
        }
    }

    fn unsent(&self) -> Result<usize, Errno> {
        if self.describe().listening {
            return Err(Errno::EINVAL);
        }
        // What is on its way within the sandbox has arrived: nothing is left to be acknowledged.
        Ok(self.end().filter(End::is_outside).map_or(0, |end| end.outgoing().len()))
    }

    fn at_mark(&self) -> Result<bool, Errno> {
        Ok(self.end().is_some_and(|end| end.incoming().urgent().1))
    }

    fn option(&self, level: i32, name: i32, _room: usize) -> Result<Vec<u8>, Errno> {
        if level == libc::IPPROTO_TCP
            && let Some(told) = self.outside_option(name)
        {
            return Ok(told);
        }
        if (level, name) == (libc::IPPROTO_TCP, libc::TCP_INFO) {
            let room = self.end().map_or(BUFFER, |end| end.outgoing().room().0);
            return Ok(options::tcp_info(self.describe().state, room));
        }
        options::get(&self.common, level, name, self.end().is_some())
    }

    fn set_option(&self, context: &Context, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        if name == libc::IPV6_V6ONLY && level == libc::IPPROTO_IPV6 && lock(&self.names).local.is_some() {
            return Err(Errno::EINVAL);
        }
        options::set(context, &self.common, [level, name], value)?;
        if let Some(wire) = self.end().and_then(|end| end.wire()) {
            wire.options_changed();
        }
        Ok(())
    }

    fn options_changed(&self) {
        let Some(end) = self.end() else { return };
        if end.is_outside() {
            self.outside_changed(&end);
        } else {
            end.outgoing().set_limit(limit(&self.common, end.other()));
            end.incoming().set_limit(limit(end.other(), &self.common));
        }
    }

    fn has_sigpipe(&self) -> bool {
        true
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn describe(&self) -> Description {
        let mut description = Description::default();
        match &*lock(&self.state) {
            State::Listening { waiting, .. } => {
                (description.state, description.listening, description.unread) = (10, true, waiting.len());
            }
            State::Knocking(_) => description.state = 2,
            State::Connected(end) => {
                let (incoming, outgoing) = (end.incoming().flags(), end.outgoing().flags());
                description.state = match (incoming.ended, outgoing.ended) {
                    _ if incoming.broken || outgoing.broken => 7,
                    (false, false) => 1,
                    (false, true) => 5,
                    (true, false) => 8,
                    (true, true) => 7,
                };
                description.unread = end.incoming().len();
                if let Some(wire) = end.wire() {
                    description.state = wire.phase() as u8;
                    description.unsent = end.outgoing().len();
                }
            }
            _ => description.state = 7,
        }
        let names = *lock(&self.names);
        description.local = names.local.map(Address::Inet);
        description.peer = names.remote.map(Address::Inet);
        description
    }

    fn close(&self) {
        let state = std::mem::replace(&mut *lock(&self.state), State::Closed);
        let reset = lock(&self.common.options).linger == (true, 0);
        self.end_state(state, reset);
        self.release();
        self.common.notify(Events::IN | Events::OUT | Events::HUP);
    }
}
