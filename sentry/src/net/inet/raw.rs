//! Raw sockets (`man 7 raw`, RFC 3542 for IPv6): packets of a protocol with CAP_NET_RAW, to and from outside, and echo with the sandbox itself.
//!
//! Connections and datagrams within the sandbox are not packets, and so are not seen here.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, Weak};

use smoltcp::wire::IpProtocol;

use super::super::address::Address;
use super::super::buffer::Sink;
use super::super::messages::{Inbox, Message, Received, Room};
use super::super::socket::{Context, Description, Outgoing, Receive, Socket};
use super::super::stack::{self, Datagram, Path};
use super::super::unix::gather;
use super::super::{Common, Identity, Net, lock};
use super::{Route, before_receiving, destination, options, route, unspecified, wanted};
use crate::error::Errno;
use crate::events::Events;

/// Most bytes of a packet.
const LENGTH_MAX: usize = 65_535;
/// `ICMP_FILTER` of level `IPPROTO_RAW`, `ICMP6_FILTER` of level `IPPROTO_ICMPV6`.
const FILTER: i32 = 1;

#[derive(Default)]
struct Names {
    local: Option<IpAddr>,
    remote: Option<IpAddr>,
}

/// A raw socket.
pub(crate) struct Raw {
    common: Arc<Common>,
    inbox: Inbox,
    names: Mutex<Names>,
    /// A bit for each type of ICMP that is not wanted.
    filter: Mutex<[u32; 8]>,
}

/// Raw sockets of a sandbox.
#[derive(Default)]
pub(crate) struct RawSockets(Mutex<Vec<Weak<Raw>>>);

/// A packet that came, or stays within.
#[derive(Clone, Copy)]
pub(crate) struct Packet<'a> {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) protocol: u8,
    /// With its header; of IPv6, and where there is none, without.
    pub(crate) whole: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl RawSockets {
    /// A packet for whoever wants it: whether anybody did.
    pub(crate) fn deliver(&self, packet: Packet<'_>) -> bool {
        let sockets: Vec<_> = lock(&self.0).iter().filter_map(Weak::upgrade).collect();
        let wants = |socket: &&Arc<Raw>| socket.wants(&packet);
        let all: Vec<_> = sockets.iter().filter(wants).collect();
        all.iter().for_each(|socket| socket.take(&packet));
        !all.is_empty()
    }
}

impl Raw {
    pub(super) fn new(net: &Arc<Net>, kind: [i32; 3], owner: Identity) -> Result<Arc<Self>, Errno> {
        let common = Common::new(net, kind, owner)?;
        let inbox = Inbox::new(&net.bytes);
        let raw = Arc::new(Self { common, inbox, names: Mutex::default(), filter: Mutex::default() });
        let mut sockets = lock(&net.inet.raw.0);
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.push(Arc::downgrade(&raw));
        Ok(raw)
    }

    fn wide(&self) -> bool {
        self.common.domain == libc::AF_INET6
    }

    fn wants(&self, packet: &Packet<'_>) -> bool {
        // IPPROTO_RAW only sends.
        if packet.to.is_ipv6() != self.wide() || i32::from(packet.protocol) != self.common.protocol {
            return false;
        }
        let names = lock(&self.names);
        let heard = names.local.is_none_or(|local| local == packet.to)
            && names.remote.is_none_or(|remote| remote == packet.from);
        let icmp = matches!(self.common.protocol, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6);
        let kind = packet.payload.first().copied().filter(|_| icmp);
        heard && kind.is_none_or(|kind| !self.is_filtered(kind))
    }

    fn is_filtered(&self, kind: u8) -> bool {
        // The filter of IPv4 has 32 bits: other types pass (`icmp_filter` of `net/ipv4/raw.c`).
        if !self.wide() && kind >= 32 {
            return false;
        }
        let filter = lock(&self.filter);
        filter.get(usize::from(kind >> 5)).is_some_and(|word| word >> (kind & 31) & 1 != 0)
    }

    fn take(&self, packet: &Packet<'_>) {
        let data = if self.wide() { packet.payload } else { packet.whole };
        let from = Some(Address::Inet(SocketAddr::new(packet.from, 0)));
        let message = Message { data: data.to_vec(), from, ..Message::default() };
        let bytes = lock(&self.common.options).receive_buffer;
        if self.inbox.put(message, Room { messages: usize::MAX, bytes }).is_ok() {
            self.common.notify(Events::IN | Events::RDNORM);
        }
    }

    /// Whether what is sent begins with its IP header (`IP_HDRINCL`).
    fn has_header(&self) -> bool {
        !self.wide()
            && (self.common.protocol == libc::IPPROTO_RAW
                || options::has(&self.common, libc::IPPROTO_IP, libc::IP_HDRINCL))
    }

    /// Sends what has no header yet.
    fn send_payload(
        &self,
        path: Option<&Path>,
        from: IpAddr,
        to: IpAddr,
        mut data: Vec<u8>,
    ) -> Result<(), Errno> {
        let protocol = u8::try_from(self.common.protocol).map_err(|_| Errno::EINVAL)?;
        if protocol == 58 && self.wide() {
            let place = data.get_mut(2..4).ok_or(Errno::EINVAL)?;
            place.fill(0);
            let sum = stack::icmp6_checksum(from, to, &data);
            data.get_mut(2..4).ok_or(Errno::EINVAL)?.copy_from_slice(&sum.to_be_bytes());
        }
        let (hops, class) = options::header_of(&self.common, to);
        let protocol = IpProtocol::from(protocol);
        let whole = options::stays_whole(&self.common, to);
        let datagram = Datagram { from, to, protocol, hops, class, whole, bytes: &data };
        match path {
            Some(path) => self.common.net.stack().ok_or(Errno::ENETUNREACH)?.send_datagram(path, &datagram),
            None => {
                stay(&self.common.net, &datagram);
                Ok(())
            }
        }
    }

    /// Sends what has its header: what is 0 in it is filled in (`raw_send_hdrinc`).
    fn send_whole(&self, path: Option<&Path>, from: IpAddr, to: IpAddr, data: &[u8]) -> Result<(), Errno> {
        let header: &[u8; 20] = data.first_chunk().ok_or(Errno::EINVAL)?;
        let length = usize::from(header[0] & 0xf).saturating_mul(4);
        let payload = data.get(length..).filter(|_| length >= 20).ok_or(Errno::EINVAL)?;
        // Options of the header are not sent on.
        let source = match [header[12], header[13], header[14], header[15]] {
            [0, 0, 0, 0] => from,
            octets => octets.into(),
        };
        let protocol = IpProtocol::from(header[9]);
        let (hops, class) = (Some(header[8]), header[1]);
        let datagram =
            Datagram { from: source, to, protocol, hops, class, whole: Some(true), bytes: payload };
        match path {
            Some(path) => self.common.net.stack().ok_or(Errno::ENETUNREACH)?.send_datagram(path, &datagram),
            None => {
                stay(&self.common.net, &datagram);
                Ok(())
            }
        }
    }
}

/// A packet that does not leave the sandbox, and what the sandbox answers.
fn stay(net: &Net, datagram: &Datagram<'_>) {
    let deliver = |datagram: &Datagram<'_>| {
        let whole = datagram.whole_packet();
        let (from, to, payload) = (datagram.from, datagram.to, datagram.bytes);
        net.inet.raw.deliver(Packet {
            from,
            to,
            protocol: u8::from(datagram.protocol),
            whole: &whole,
            payload,
        });
    };
    deliver(datagram);
    if let Some(answer) = stack::echo_answer(datagram.protocol, (datagram.to, datagram.from), datagram.bytes)
    {
        deliver(&Datagram { from: datagram.to, to: datagram.from, bytes: &answer, ..*datagram });
    }
}

impl Socket for Raw {
    fn common(&self) -> &Arc<Common> {
        &self.common
    }

    fn bind(&self, context: &Context, address: &Address) -> Result<(), Errno> {
        // The port means nothing, nor is it privileged.
        let address = match address {
            Address::Inet(address) => Address::Inet(SocketAddr::new(address.ip(), 0)),
            other => other.clone(),
        };
        let local = wanted(context, &self.common, &address)?.ip();
        lock(&self.names).local = Some(local).filter(|ip| !ip.is_unspecified());
        Ok(())
    }

    fn connect(&self, context: &Context, address: &Address) -> Result<(), Errno> {
        if *address == Address::Unspecified {
            lock(&self.names).remote = None;
            return Ok(());
        }
        let to = destination(&self.common, address)?.ip();
        route(&context.net, to)?;
        lock(&self.names).remote = Some(to);
        Ok(())
    }

    fn local(&self) -> Result<Address, Errno> {
        let domain = self.common.domain;
        let ip = lock(&self.names).local.unwrap_or(unspecified(domain));
        // As Linux tells the protocol where others have a port.
        let port = u16::try_from(self.common.protocol).unwrap_or(0);
        Ok(Address::of_domain(domain, SocketAddr::new(ip, port)))
    }

    fn peer(&self) -> Result<Address, Errno> {
        let remote = lock(&self.names).remote.ok_or(Errno::ENOTCONN)?;
        Ok(Address::of_domain(self.common.domain, SocketAddr::new(remote, 0)))
    }

    fn send(&self, message: &mut Outgoing<'_>) -> Result<usize, Errno> {
        if message.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if message.source.left() > LENGTH_MAX {
            return Err(Errno::EMSGSIZE);
        }
        let to = match &message.address {
            None | Some(Address::Unspecified) => lock(&self.names).remote.ok_or(Errno::EDESTADDRREQ)?,
            Some(address) => destination(&self.common, address)?.ip(),
        };
        if to.is_ipv6() != self.wide() {
            return Err(Errno::EINVAL);
        }
        let bound = lock(&self.names).local;
        let (path, source) = match route(&self.common.net, to)? {
            Route::Own(source) => (None, source),
            Route::Outside(path) => {
                let source = path.source;
                (Some(path), source)
            }
            other if other.is_broadcast() && !lock(&self.common.options).broadcast => {
                return Err(Errno::EACCES);
            }
            _ => {
                let stack = self.common.net.stack().ok_or(Errno::ENETUNREACH)?;
                let path = stack.broadcast_path(to, bound)?;
                let source = path.source;
                (Some(path), source)
            }
        };
        let data = gather(message)?;
        let count = data.len();
        let from = bound.unwrap_or(source);
        if self.has_header() {
            self.send_whole(path.as_ref(), from, to, &data)?;
        } else {
            self.send_payload(path.as_ref(), from, to, data)?;
        }
        Ok(count)
    }

    fn receive(&self, sink: &mut dyn Sink, how: Receive) -> Result<Received, Errno> {
        before_receiving(&self.common, how)?;
        let mut received = self.inbox.take(sink, how.has(libc::MSG_PEEK))?;
        received.sender = None;
        Ok(received)
    }

    fn shutdown(&self, _how: i32) -> Result<(), Errno> {
        if lock(&self.names).remote.is_some() { Ok(()) } else { Err(Errno::ENOTCONN) }
    }

    fn ready(&self) -> Events {
        let ready = Events::OUT | Events::WRNORM;
        if self.inbox.status().2 > 0 { ready | Events::IN | Events::RDNORM } else { ready }
    }

    fn unread(&self) -> Result<usize, Errno> {
        Ok(self.inbox.status().0.unwrap_or(0))
    }

    fn option(&self, level: i32, name: i32, _room: usize) -> Result<Vec<u8>, Errno> {
        let count = match (level, name) {
            (libc::IPPROTO_RAW, FILTER) if self.common.protocol == libc::IPPROTO_ICMP => 1,
            (libc::IPPROTO_ICMPV6, FILTER) if self.common.protocol == libc::IPPROTO_ICMPV6 => 8,
            _ => return options::get(&self.common, level, name, lock(&self.names).remote.is_some()),
        };
        Ok(lock(&self.filter).iter().take(count).flat_map(|word| word.to_ne_bytes()).collect())
    }

    fn set_option(&self, context: &Context, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        match (level, name) {
            (libc::IPPROTO_RAW, FILTER) if self.common.protocol == libc::IPPROTO_ICMP => {}
            (libc::IPPROTO_ICMPV6, FILTER) if self.common.protocol == libc::IPPROTO_ICMPV6 => {}
            _ => return options::set(context, &self.common, [level, name], value),
        }
        let words = value.as_chunks::<4>().0;
        for (place, word) in lock(&self.filter).iter_mut().zip(words) {
            *place = u32::from_ne_bytes(*word);
        }
        Ok(())
    }

    fn describe(&self) -> Description {
        let port = u16::try_from(self.common.protocol).unwrap_or(0);
        let names = lock(&self.names);
        let domain = unspecified(self.common.domain);
        Description {
            local: Some(Address::Inet(SocketAddr::new(names.local.unwrap_or(domain), port))),
            peer: names.remote.map(|ip| Address::Inet(SocketAddr::new(ip, 0))),
            state: if names.remote.is_some() { 1 } else { 7 },
            unread: self.inbox.status().1,
            ..Description::default()
        }
    }

    fn close(&self) {
        self.inbox.clear(true);
        let id = self.common.id();
        let mut sockets = lock(&self.common.net.inet.raw.0);
        let gone =
            sockets.extract_if(.., |socket| socket.upgrade().is_none_or(|socket| socket.common.id() == id));
        let gone: Vec<_> = gone.collect();
        drop(sockets);
        drop(gone);
    }
}
