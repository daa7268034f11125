//! UNIX sockets with connections: `SOCK_STREAM` and `SOCK_SEQPACKET`.
//!
//! Of the two directions of a connection each is open or ended: `shutdown` of the writer's sending side and of the reader's receiving side
//! are the same.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use super::super::address::{Address, UnixName};
use super::super::buffer::{ByteQueue, How, Sink, Tag};
use super::super::messages::{Inbox, Message, Received, Room};
use super::super::pair::End;
use super::super::socket::{Context, Description, Outgoing, Receive, Socket, send_buffer};
use super::super::{BACKLOG, Common, Identity, Net, lock};
use super::{Named, find, gather, told};
use crate::error::Errno;
use crate::events::Events;

/// A connection, as one end has it.
#[derive(Clone)]
enum Link {
    Stream(End<ByteQueue>),
    Packets(End<Inbox>),
}

impl Link {
    fn pair(common: [&Arc<Common>; 2]) -> [Self; 2] {
        let budget = &common[0].net.bytes;
        if common[0].kind == libc::SOCK_STREAM {
            // What the first reads is what the second sends.
            let queues = [common[1], common[0]].map(|sender| ByteQueue::new(send_buffer(sender), budget));
            End::pair(common, queues).map(Self::Stream)
        } else {
            End::pair(common, [Inbox::new(budget), Inbox::new(budget)]).map(Self::Packets)
        }
    }

    fn other(&self) -> &Arc<Common> {
        match self {
            Self::Stream(end) => end.other(),
            Self::Packets(end) => end.other(),
        }
    }

    /// Whether the direction to here is ended, and from here.
    fn ended(&self) -> [bool; 2] {
        match self {
            Self::Stream(end) => [end.incoming().flags().ended, end.outgoing().flags().ended],
            Self::Packets(end) => [end.incoming().refuses(), end.outgoing().refuses()],
        }
    }

    fn end(&self, incoming: bool, outgoing: bool) {
        match self {
            Self::Stream(end) => {
                end.incoming().change(|flags| flags.ended |= incoming);
                end.outgoing().change(|flags| flags.ended |= outgoing);
            }
            Self::Packets(end) => {
                if incoming {
                    end.incoming().refuse();
                }
                if outgoing {
                    end.outgoing().refuse();
                }
            }
        }
    }

    /// This end goes; whether something was left unread.
    fn close(&self) -> bool {
        self.end(true, true);
        match self {
            Self::Stream(end) => end.incoming().close() > 0,
            // A first message without bytes does not count (`unix_release_sock` of Linux 6.18).
            Self::Packets(end) => {
                let (first, _, count) = end.incoming().status();
                let unread = count > 1 || first.is_some_and(|length| length > 0);
                end.incoming().clear(true);
                unread
            }
        }
    }

    /// What can be received, and whether something can be sent (`unix_writable`).
    fn status(&self, limit: usize) -> (usize, bool) {
        match self {
            Self::Stream(end) => {
                let (room, limit) = end.outgoing().room();
                (end.incoming().len(), limit.saturating_sub(room) <= limit / 4)
            }
            Self::Packets(end) => {
                let (first, _, count) = end.incoming().status();
                let available = first.map_or(0, |_| count);
                (available, end.outgoing().status().1 <= limit / 4)
            }
        }
    }
}

enum State {
    Fresh,
    /// On its way to a listener.
    Connecting,
    Listening {
        backlog: usize,
        waiting: VecDeque<Arc<Connection>>,
    },
    Connected(Link),
    Closed,
}

/// Who is at the other end.
#[derive(Clone, Default)]
struct Peer {
    name: UnixName,
    identity: Option<Identity>,
}

/// A UNIX socket with connections.
pub(crate) struct Connection {
    common: Arc<Common>,
    me: Weak<Self>,
    named: Named,
    state: Mutex<State>,
    peer: Mutex<Peer>,
}

impl Connection {
    pub(super) fn new(
        net: &Arc<Net>,
        kind: i32,
        owner: Identity,
        name: UnixName,
    ) -> Result<Arc<Self>, Errno> {
        let common = Common::new(net, [libc::AF_UNIX, kind, 0], owner)?;
        Ok(Arc::new_cyclic(|me| Self {
            common,
            me: Weak::clone(me),
            named: Named::like(name),
            state: Mutex::new(State::Fresh),
            peer: Mutex::default(),
        }))
    }

    pub(super) fn pair(net: &Arc<Net>, kind: i32, owner: Identity) -> Result<[Arc<Self>; 2], Errno> {
        let one = Self::new(net, kind, owner, UnixName::Unnamed)?;
        let other = Self::new(net, kind, owner, UnixName::Unnamed)?;
        let links = Link::pair([&one.common, &other.common]);
        for (socket, link) in [&one, &other].into_iter().zip(links) {
            *lock(&socket.state) = State::Connected(link);
            lock(&socket.peer).identity = Some(owner);
        }
        Ok([one, other])
    }

    fn link(&self) -> Option<Link> {
        match &*lock(&self.state) {
            State::Connected(link) => Some(link.clone()),
            _ => None,
        }
    }

    fn as_socket(&self) -> Weak<dyn Socket> {
        let me: Weak<Self> = Weak::clone(&self.me);
        me
    }

    /// Puts the accepted end of a new connection in a listener's queue; the other end.
    fn knock(&self, listener: &Self, caller: Identity) -> Result<Link, Errno> {
        let name = listener.named.name();
        let child = Self::new(&self.common.net, self.common.kind, listener.common.owner, name)?;
        let passes = lock(&listener.common.options).pass_credentials;
        lock(&child.common.options).pass_credentials = passes;
        let [ours, theirs] = Link::pair([&self.common, &child.common]);
        *lock(&child.state) = State::Connected(theirs);
        *lock(&child.peer) = Peer { name: self.named.name(), identity: Some(caller) };
        match &mut *lock(&listener.state) {
            State::Listening { backlog, waiting } if waiting.len() <= *backlog => waiting.push_back(child),
            State::Listening { .. } => return Err(Errno::EAGAIN),
            _ => return Err(Errno::ECONNREFUSED),
        }
        Ok(ours)
    }

    fn listener(&self, context: &Context, address: &Address) -> Result<Arc<dyn Socket>, Errno> {
        let Address::Unix(name) = address else { return Err(Errno::EINVAL) };
        let found = find(context, name)?;
        if found.common().kind == self.common.kind { Ok(found) } else { Err(Errno::EPROTOTYPE) }
    }

    fn receive_stream(
        &self,
        end: &End<ByteQueue>,
        sink: &mut dyn Sink,
        how: Receive,
    ) -> Result<Received, Errno> {
        let ended = end.incoming().flags().ended;
        let apart = lock(&self.common.options).pass_credentials;
        let peek = how.has(libc::MSG_PEEK);
        let taken = end.incoming().take(sink, How { peek, apart, ..How::default() })?;
        if taken.count == 0 && (sink.room() > 0 || end.incoming().len() == 0) {
            self.common.take_error()?;
            return if ended { Ok(Received::default()) } else { Err(Errno::EAGAIN) };
        }
        if !peek {
            end.other().notify(Events::OUT | Events::WRNORM);
        }
        Ok(Received {
            count: taken.count,
            whole: taken.count,
            from: told(lock(&self.peer).name.clone()),
            sender: taken.sender,
            rights: taken.rights,
            peeked: taken.peeked,
            boundary: taken.boundary,
            ..Received::default()
        })
    }

    fn receive_packet(&self, end: &End<Inbox>, sink: &mut dyn Sink, how: Receive) -> Result<Received, Errno> {
        self.common.take_error()?;
        let ended = end.incoming().refuses();
        match end.incoming().take(sink, how.has(libc::MSG_PEEK)) {
            Err(Errno::EAGAIN) if ended => Ok(Received::default()),
            Err(errno) => Err(errno),
            Ok(mut received) => {
                received.from = told(lock(&self.peer).name.clone());
                end.other().notify(Events::OUT | Events::WRNORM);
                Ok(received)
            }
        }
    }

    fn send_packet(&self, end: &End<Inbox>, message: &mut Outgoing<'_>) -> Result<usize, Errno> {
        self.common.take_error()?;
        let limit = send_buffer(&self.common);
        if message.source.left() > limit.saturating_sub(32) {
            return Err(Errno::EMSGSIZE);
        }
        if end.outgoing().refuses() {
            return Err(Errno::EPIPE);
        }
        // Looked at before the bytes are fetched: what comes again has to be fetched again.
        let room = Room { messages: usize::MAX, bytes: limit };
        if !end.outgoing().fits(room) {
            return Err(Errno::EAGAIN);
        }
        let data = gather(message)?;
        let count = data.len();
        let rights = message.rights.take();
        let packet = Message { data, sender: message.sender, rights, ..Message::default() };
        // Another thread may have filled it meanwhile; a message more does no harm.
        let room = Room { messages: usize::MAX, bytes: usize::MAX };
        end.outgoing().put(packet, room).map_err(|(errno, _)| match errno {
            Errno::ECONNREFUSED => Errno::EPIPE,
            errno => errno,
        })?;
        end.other().notify(Events::IN | Events::RDNORM);
        Ok(count)
    }
}

impl Socket for Connection {
    fn common(&self) -> &Arc<Common> {
        &self.common
    }

    fn bind(&self, context: &Context, address: &Address) -> Result<(), Errno> {
        self.named.bind(context, address, &self.as_socket())
    }

    fn connect(&self, context: &Context, address: &Address) -> Result<(), Errno> {
        let needed = lock(&self.common.options).pass_credentials;
        self.named.bind_if_needed(&context.net, needed, &self.as_socket())?;
        let found = self.listener(context, address)?;
        let listener = found.downcast::<Self>().ok_or(Errno::EPROTOTYPE)?;
        {
            let mut state = lock(&self.state);
            match &*state {
                State::Fresh => *state = State::Connecting,
                State::Connected(_) => return Err(Errno::EISCONN),
                _ => return Err(Errno::EINVAL),
            }
        }
        let result = self.knock(listener, context.identity());
        let mut state = lock(&self.state);
        match result {
            Ok(link) if matches!(*state, State::Connecting) => *state = State::Connected(link),
            Ok(link) => {
                // Closed meanwhile.
                drop(state);
                link.close();
                return Err(Errno::EINVAL);
            }
            Err(errno) => {
                if matches!(*state, State::Connecting) {
                    *state = State::Fresh;
                }
                return Err(errno);
            }
        }
        drop(state);
        *lock(&self.peer) = Peer { name: listener.named.name(), identity: Some(listener.common.owner) };
        listener.common.notify(Events::IN | Events::RDNORM);
        self.common.notify(Events::OUT | Events::WRNORM);
        Ok(())
    }

    fn listen(&self, _context: &Context, backlog: i32) -> Result<(), Errno> {
        if self.named.name() == UnixName::Unnamed {
            return Err(Errno::EINVAL);
        }
        let wanted = usize::try_from(backlog).unwrap_or(BACKLOG).min(BACKLOG);
        match &mut *lock(&self.state) {
            State::Listening { backlog, .. } => *backlog = wanted,
            state @ State::Fresh => {
                *state = State::Listening { backlog: wanted, waiting: VecDeque::new() };
            }
            _ => return Err(Errno::EINVAL),
        }
        self.common.notify(Events::OUT);
        Ok(())
    }

    fn accept(&self) -> Result<Arc<dyn Socket>, Errno> {
        let child = match &mut *lock(&self.state) {
            State::Listening { waiting, .. } => waiting.pop_front().ok_or(Errno::EAGAIN)?,
            _ => return Err(Errno::EINVAL),
        };
        // Who could not connect tries again.
        self.common.notify(Events::OUT | Events::WRNORM);
        let child: Arc<dyn Socket> = child;
        self.common.net.register(&child);
        Ok(child)
    }

    fn local(&self) -> Result<Address, Errno> {
        Ok(Address::Unix(self.named.name()))
    }

    fn peer(&self) -> Result<Address, Errno> {
        match self.link() {
            Some(_) => Ok(Address::Unix(lock(&self.peer).name.clone())),
            None => Err(Errno::ENOTCONN),
        }
    }

    fn send(&self, message: &mut Outgoing<'_>) -> Result<usize, Errno> {
        if message.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let link = self.link();
        match (&link, self.common.kind) {
            (Some(_), libc::SOCK_STREAM) if message.address.is_some() => return Err(Errno::EISCONN),
            (None, libc::SOCK_STREAM) if message.address.is_some() => return Err(Errno::EOPNOTSUPP),
            _ => {}
        }
        match link {
            None => Err(Errno::ENOTCONN),
            Some(Link::Packets(end)) => self.send_packet(&end, message),
            Some(Link::Stream(end)) => {
                if end.outgoing().flags().ended {
                    return Err(Errno::EPIPE);
                }
                let mut tag = Tag { sender: message.sender, rights: message.rights.take() };
                let result = end.outgoing().put(message.source, &mut tag);
                message.rights = tag.rights;
                let count = result?;
                end.other().notify(Events::IN | Events::RDNORM);
                Ok(count)
            }
        }
    }

    fn receive(&self, sink: &mut dyn Sink, how: Receive) -> Result<Received, Errno> {
        if how.has(libc::MSG_OOB) {
            // A stream that nobody sends urgent data to has none.
            let stream = self.common.kind == libc::SOCK_STREAM;
            return Err(if stream { Errno::EINVAL } else { Errno::EOPNOTSUPP });
        }
        match self.link() {
            Some(Link::Stream(end)) => self.receive_stream(&end, sink, how),
            Some(Link::Packets(end)) => self.receive_packet(&end, sink, how),
            None if self.common.kind == libc::SOCK_STREAM => Err(Errno::EINVAL),
            None => Err(Errno::ENOTCONN),
        }
    }

    fn shutdown(&self, how: i32) -> Result<(), Errno> {
        if let Some(link) = self.link() {
            link.end(how != libc::SHUT_WR, how != libc::SHUT_RD);
            let events = Events::IN | Events::OUT | Events::RDHUP | Events::HUP;
            link.other().notify(events);
            self.common.notify(events);
        }
        Ok(())
    }

    fn ready(&self) -> Events {
        let mut ready = Events::empty();
        if self.common.has_error() {
            ready |= Events::ERR;
        }
        let state = lock(&self.state);
        match &*state {
            State::Listening { waiting, .. } => {
                if !waiting.is_empty() {
                    ready |= Events::IN | Events::RDNORM;
                }
            }
            State::Connected(link) => {
                let link = link.clone();
                drop(state);
                let (available, writable) = link.status(send_buffer(&self.common));
                let [read_ended, write_ended] = link.ended();
                if read_ended {
                    ready |= Events::RDHUP;
                }
                if read_ended && write_ended {
                    ready |= Events::HUP;
                }
                if read_ended || available > 0 {
                    ready |= Events::IN | Events::RDNORM;
                }
                if writable {
                    ready |= Events::OUT | Events::WRNORM | Events::WRBAND;
                }
            }
            _ => ready |= Events::HUP | Events::OUT | Events::WRNORM | Events::WRBAND,
        }
        ready
    }

    fn obstacle(&self, context: &Context, address: Option<&Address>) -> Option<Arc<Common>> {
        let listener = self.listener(context, address?).ok()?;
        Some(Arc::clone(listener.common()))
    }

    fn unread(&self) -> Result<usize, Errno> {
        match self.link() {
            Some(Link::Stream(end)) => Ok(end.incoming().len()),
            Some(Link::Packets(end)) => Ok(end.incoming().status().0.unwrap_or(0)),
            None if self.describe().listening => Err(Errno::EINVAL),
            None => Ok(0),
        }
    }

    fn unsent(&self) -> Result<usize, Errno> {
        Ok(match self.link() {
            Some(Link::Stream(end)) => end.outgoing().len(),
            Some(Link::Packets(end)) => end.outgoing().status().1,
            None => 0,
        })
    }

    fn options_changed(&self) {
        if let Some(Link::Stream(end)) = self.link() {
            end.outgoing().set_limit(send_buffer(&self.common));
        }
    }

    fn has_sigpipe(&self) -> bool {
        self.common.kind == libc::SOCK_STREAM
    }

    fn is_stream(&self) -> bool {
        self.common.kind == libc::SOCK_STREAM
    }

    fn peer_identity(&self) -> Option<Identity> {
        lock(&self.peer).identity
    }

    fn describe(&self) -> Description {
        let (state, listening, unread) = match &*lock(&self.state) {
            State::Listening { waiting, .. } => (10, true, waiting.len()),
            State::Connected(_) => (1, false, 0),
            _ => (7, false, 0),
        };
        Description {
            local: Some(Address::Unix(self.named.name())),
            state,
            listening,
            unread,
            ..Description::default()
        }
    }

    fn close(&self) {
        self.named.release(&self.common.net);
        let state = std::mem::replace(&mut *lock(&self.state), State::Closed);
        match state {
            State::Connected(link) => {
                let unread = link.close();
                let other = link.other();
                if unread {
                    other.fail(Errno::ECONNRESET);
                }
                other.notify(Events::IN | Events::OUT | Events::HUP | Events::RDHUP);
            }
            State::Listening { waiting, .. } => {
                for child in waiting {
                    if let Some(link) = child.link() {
                        link.other().fail(Errno::ECONNRESET);
                    }
                    child.close();
                }
            }
            _ => {}
        }
        self.common.notify(Events::HUP | Events::OUT | Events::IN);
    }
}
