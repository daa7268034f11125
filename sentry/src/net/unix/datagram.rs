//! UNIX sockets without connections: `SOCK_DGRAM`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::super::address::{Address, UnixName};
use super::super::buffer::Sink;
use super::super::messages::{Inbox, Message, Received, Room};
use super::super::socket::{Context, Description, Outgoing, Receive, Socket, send_buffer};
use super::super::{Common, Identity, Net, lock};
use super::{Named, find, gather, told};
use crate::error::Errno;
use crate::events::Events;

/// Messages that wait for a receiver who is not connected to the sender (`net.unix.max_dgram_qlen` and one more).
const WAITING: usize = 11;
/// Sockets that are told when an inbox has room; who is not among them finds out by itself.
const TOLD: usize = 4096;

/// A UNIX socket without connections.
pub(crate) struct Datagrams {
    common: Arc<Common>,
    me: Weak<Self>,
    named: Named,
    inbox: Inbox,
    peer: Mutex<Option<Weak<Self>>>,
    /// Sockets that send here and may wait for room.
    senders: Mutex<Vec<Weak<Common>>>,
    sends_no_more: AtomicBool,
}

impl Datagrams {
    pub(super) fn new(net: &Arc<Net>, owner: Identity) -> Result<Arc<Self>, Errno> {
        let common = Common::new(net, [libc::AF_UNIX, libc::SOCK_DGRAM, 0], owner)?;
        Ok(Arc::new_cyclic(|me| Self {
            common,
            me: Weak::clone(me),
            named: Named::default(),
            inbox: Inbox::new(&net.bytes),
            peer: Mutex::default(),
            senders: Mutex::default(),
            sends_no_more: AtomicBool::new(false),
        }))
    }

    pub(super) fn pair(net: &Arc<Net>, owner: Identity) -> Result<[Arc<Self>; 2], Errno> {
        let (one, other) = (Self::new(net, owner)?, Self::new(net, owner)?);
        one.set_peer(Some(&other));
        other.set_peer(Some(&one));
        Ok([one, other])
    }

    fn as_socket(&self) -> Weak<dyn Socket> {
        let me: Weak<Self> = Weak::clone(&self.me);
        me
    }

    /// Changes who it is connected to; what came from another is dropped (`unix_dgram_disconnected`).
    fn set_peer(&self, peer: Option<&Arc<Self>>) {
        let before = std::mem::replace(&mut *lock(&self.peer), peer.map(Arc::downgrade));
        if let Some(peer) = peer {
            let mut senders = lock(&peer.senders);
            senders.retain(|sender| sender.strong_count() > 0);
            if senders.len() < TOLD {
                senders.push(Arc::downgrade(&self.common));
            }
        }
        let Some(before) = before else { return };
        if peer.is_some_and(|peer| before.ptr_eq(&Arc::downgrade(peer))) || self.inbox.clear(false) == 0 {
            return;
        }
        if let Some(before) = before.upgrade()
            && before.is_peer(self)
            && !before.inbox.is_gone()
        {
            before.common.fail(Errno::ECONNRESET);
        }
    }

    fn is_peer(&self, other: &Self) -> bool {
        lock(&self.peer).as_ref().is_some_and(|peer| peer.ptr_eq(&other.me))
    }

    /// Whether `sender` may send here (`unix_may_send`).
    fn takes_from(&self, sender: &Self) -> bool {
        let peer = lock(&self.peer);
        peer.as_ref().is_none_or(|peer| peer.ptr_eq(&sender.me))
    }

    fn find(context: &Context, address: &Address) -> Result<Arc<Self>, Errno> {
        let Address::Unix(name) = address else { return Err(Errno::EINVAL) };
        let found = find(context, name)?;
        found.downcast::<Self>().and_then(|socket| socket.me.upgrade()).ok_or(Errno::EPROTOTYPE)
    }

    /// Where a message goes.
    fn target(&self, context: Option<&Context>, address: Option<&Address>) -> Result<Arc<Self>, Errno> {
        match (address, context) {
            (Some(address), Some(context)) => Self::find(context, address),
            (Some(_), None) => Err(Errno::EINVAL),
            (None, _) => {
                let peer = lock(&self.peer).clone().ok_or(Errno::ENOTCONN)?;
                peer.upgrade().ok_or_else(|| self.refused())
            }
        }
    }

    /// The peer is gone.
    fn refused(&self) -> Errno {
        *lock(&self.peer) = None;
        self.inbox.clear(false);
        Errno::ECONNREFUSED
    }

    /// How full the target's inbox may be.
    fn room(&self, target: &Self) -> Room {
        let messages = if target.is_peer(self) { usize::MAX } else { WAITING };
        Room { messages, bytes: send_buffer(&self.common) }
    }
}

impl Socket for Datagrams {
    fn common(&self) -> &Arc<Common> {
        &self.common
    }

    fn bind(&self, context: &Context, address: &Address) -> Result<(), Errno> {
        self.named.bind(context, address, &self.as_socket())
    }

    fn connect(&self, context: &Context, address: &Address) -> Result<(), Errno> {
        if *address == Address::Unspecified {
            self.set_peer(None);
            return Ok(());
        }
        let needed = lock(&self.common.options).pass_credentials;
        self.named.bind_if_needed(&context.net, needed, &self.as_socket())?;
        let target = Self::find(context, address)?;
        if !target.takes_from(self) {
            return Err(Errno::EPERM);
        }
        self.set_peer(Some(&target));
        self.common.notify(Events::OUT | Events::WRNORM);
        Ok(())
    }

    fn accept(&self) -> Result<Arc<dyn Socket>, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn local(&self) -> Result<Address, Errno> {
        Ok(Address::Unix(self.named.name()))
    }

    fn peer(&self) -> Result<Address, Errno> {
        let peer = lock(&self.peer).clone().ok_or(Errno::ENOTCONN)?;
        Ok(Address::Unix(peer.upgrade().map(|peer| peer.named.name()).unwrap_or_default()))
    }

    fn send(&self, message: &mut Outgoing<'_>) -> Result<usize, Errno> {
        if message.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let needed = lock(&self.common.options).pass_credentials;
        self.named.bind_if_needed(&self.common.net, needed, &self.as_socket())?;
        if message.source.left() > send_buffer(&self.common).saturating_sub(32) {
            return Err(Errno::EMSGSIZE);
        }
        self.common.take_error()?;
        if self.sends_no_more.load(Ordering::Relaxed) {
            return Err(Errno::EPIPE);
        }
        let target = self.target(message.context, message.address.as_ref())?;
        if target.inbox.is_gone() {
            return Err(if message.address.is_some() { Errno::ECONNREFUSED } else { self.refused() });
        }
        if !target.takes_from(self) {
            return Err(Errno::EPERM);
        }
        if target.inbox.refuses() {
            return Err(Errno::EPIPE);
        }
        if !target.inbox.fits(self.room(&target)) {
            return Err(Errno::EAGAIN);
        }
        let data = gather(message)?;
        let count = data.len();
        let message = Message {
            data,
            from: told(self.named.name()),
            sender: message.sender,
            rights: message.rights.take(),
            ..Message::default()
        };
        // Another thread may have filled it meanwhile; a message more does no harm.
        let room = Room { messages: usize::MAX, bytes: usize::MAX };
        target.inbox.put(message, room).map_err(|(errno, _)| errno)?;
        target.common.notify(Events::IN | Events::RDNORM);
        Ok(count)
    }

    fn receive(&self, sink: &mut dyn Sink, how: Receive) -> Result<Received, Errno> {
        if how.has(libc::MSG_OOB) {
            return Err(Errno::EOPNOTSUPP);
        }
        self.common.take_error()?;
        let ended = self.inbox.refuses();
        let received = match self.inbox.take(sink, how.has(libc::MSG_PEEK)) {
            // Only who would wait is told the end.
            Err(Errno::EAGAIN) if ended && !how.has(libc::MSG_DONTWAIT) => return Ok(Received::default()),
            other => other?,
        };
        if !how.has(libc::MSG_PEEK) {
            let senders: Vec<_> = lock(&self.senders).iter().filter_map(Weak::upgrade).collect();
            senders.iter().for_each(|sender| sender.notify(Events::OUT | Events::WRNORM));
            // Those that are not connected wait here.
            self.common.notify(Events::OUT | Events::WRNORM);
        }
        Ok(received)
    }

    fn shutdown(&self, how: i32) -> Result<(), Errno> {
        if how != libc::SHUT_WR {
            self.inbox.refuse();
        }
        if how != libc::SHUT_RD {
            self.sends_no_more.store(true, Ordering::Relaxed);
        }
        self.common.notify(Events::IN | Events::OUT | Events::RDHUP | Events::HUP);
        Ok(())
    }

    fn ready(&self) -> Events {
        let mut ready = Events::empty();
        if self.common.has_error() {
            ready |= Events::ERR;
        }
        let ended = self.inbox.refuses();
        if ended {
            ready |= Events::RDHUP;
        }
        if ended && self.sends_no_more.load(Ordering::Relaxed) {
            ready |= Events::HUP;
        }
        if ended || self.inbox.status().2 > 0 {
            ready |= Events::IN | Events::RDNORM;
        }
        let peer = lock(&self.peer).as_ref().and_then(Weak::upgrade);
        if peer.is_none_or(|peer| peer.inbox.fits(self.room(&peer))) {
            ready |= Events::OUT | Events::WRNORM | Events::WRBAND;
        }
        ready
    }

    fn obstacle(&self, context: &Context, address: Option<&Address>) -> Option<Arc<Common>> {
        let target = self.target(Some(context), address).ok()?;
        Some(Arc::clone(&target.common))
    }

    fn unread(&self) -> Result<usize, Errno> {
        Ok(self.inbox.status().0.unwrap_or(0))
    }

    fn peer_identity(&self) -> Option<Identity> {
        let peer = lock(&self.peer).as_ref().and_then(Weak::upgrade)?;
        // Only a pair knows it (`unix_socketpair`).
        (peer.is_peer(self) && peer.named.name() == UnixName::Unnamed).then_some(peer.common.owner)
    }

    fn describe(&self) -> Description {
        let state = if lock(&self.peer).is_some() { 1 } else { 7 };
        let local = Some(Address::Unix(self.named.name()));
        Description { local, state, unread: self.inbox.status().1, ..Description::default() }
    }

    fn close(&self) {
        self.named.release(&self.common.net);
        let unread = self.inbox.clear(true) > 0;
        let peer = lock(&self.peer).take().and_then(|peer| peer.upgrade());
        if let Some(peer) = peer {
            peer.common.notify(Events::OUT | Events::WRNORM | Events::WRBAND | Events::HUP);
            let _ = unread;
        }
        let senders = std::mem::take(&mut *lock(&self.senders));
        for sender in senders.iter().filter_map(Weak::upgrade) {
            sender.notify(Events::OUT | Events::WRNORM | Events::WRBAND);
        }
        self.common.notify(Events::OUT | Events::HUP | Events::IN);
    }
}
