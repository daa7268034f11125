//! UDP sockets. What does not fit in the receiver's buffer is lost, as on Linux.

mod ways;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::super::address::Address;
use super::super::buffer::Sink;
use super::super::control::ControlMessage;
use super::super::messages::{Inbox, Message, Received, Room};
use super::super::options::{number, told};
use super::super::socket::{Context, Description, Outgoing, Receive, Socket};
use super::super::unix::gather;
use super::super::{Common, Identity, Net, lock};
use super::options::has;
use super::{Route, before_receiving, claim, destination, options, route, unspecified, wanted};
use crate::error::Errno;
use crate::events::Events;

pub(crate) use ways::{Arrival, arrives, fails};

/// Most bytes of a datagram: 65 535 without the headers of IPv4 and UDP.
const LENGTH_MAX: usize = 65_507;
/// Memberships of a socket (`net.ipv4.igmp_max_memberships`, and more).
const GROUPS_MAX: usize = 64;

#[derive(Default, Clone, Copy)]
struct Names {
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    /// The address that was bound, which comes back when an association is dissolved.
    bound: Option<IpAddr>,
}

/// A UDP socket.
pub(crate) struct Udp {
    common: Arc<Common>,
    me: Weak<Self>,
    inbox: Inbox,
    names: Mutex<Names>,
    groups: Mutex<Vec<IpAddr>>,
    /// Bit 0: receives no more; bit 1: sends no more.
    shut: AtomicI32,
}

impl Udp {
    pub(super) fn new(net: &Arc<Net>, domain: i32, owner: Identity) -> Result<Arc<Self>, Errno> {
        let common = Common::new(net, [domain, libc::SOCK_DGRAM, libc::IPPROTO_UDP], owner)?;
        Ok(Arc::new_cyclic(|me| Self {
            common,
            me: Weak::clone(me),
            inbox: Inbox::new(&net.bytes),
            names: Mutex::default(),
            groups: Mutex::default(),
            shut: AtomicI32::new(0),
        }))
    }

    fn claim_port(&self, local: SocketAddr) -> Result<(), Errno> {
        let mut names = lock(&self.names);
        if names.local.is_some() {
            return Err(Errno::EINVAL);
        }
        let me: Weak<Self> = Weak::clone(&self.me);
        let me: Weak<dyn Socket> = me;
        let port =
            self.common.net.inet.udp.claim(local.port(), claim(&self.common, local.ip()), &me, false)?;
        names.local = Some(SocketAddr::new(local.ip(), port));
        names.bound = Some(local.ip());
        Ok(())
    }

    fn bound(&self) -> Result<SocketAddr, Errno> {
        if lock(&self.names).local.is_none() {
            match self.claim_port(SocketAddr::new(unspecified(self.common.domain), 0)) {
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
        lock(&self.names).local.ok_or(Errno::EAGAIN)
    }

    fn dissolve(&self) {
        let mut names = lock(&self.names);
        names.remote = None;
        let bound = names.bound;
        if let (Some(local), Some(bound)) = (names.local.as_mut(), bound) {
            local.set_ip(bound);
            self.common.net.inet.udp.connect(local.port(), self.common.id(), bound, None);
        }
    }

    /// A datagram arrives here; where the buffer is full it is lost.
    fn deliver(&self, data: Vec<u8>, from: SocketAddr, to: SocketAddr, arrival: Arrival) {
        let message = Message {
            data,
            from: Some(Address::of_domain(self.common.domain, from)),
            controls: self.controls(to, arrival),
            ..Message::default()
        };
        let bytes = lock(&self.common.options).receive_buffer;
        if self.inbox.put(message, Room { messages: usize::MAX, bytes }).is_ok() {
            self.common.notify(Events::IN | Events::RDNORM);
        }
    }

    /// Control messages that the socket wants with what came to an address.
    fn controls(&self, to: SocketAddr, arrival: Arrival) -> Vec<ControlMessage> {
        let mut controls = Vec::new();
        let mut put = |level, kind, data: Vec<u8>| controls.push(ControlMessage { level, kind, data });
        let (ip, ipv6) = (libc::IPPROTO_IP, libc::IPPROTO_IPV6);
        let index = arrival.interface.to_ne_bytes();
        if let Some(nanoseconds) = lock(&self.common.options).timestamps {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let part = if nanoseconds { now.subsec_nanos() } else { now.subsec_micros() };
            let kind = if nanoseconds { libc::SO_TIMESTAMPNS } else { libc::SO_TIMESTAMP };
            put(
                libc::SOL_SOCKET,
                kind,
                [now.as_secs().to_ne_bytes(), u64::from(part).to_ne_bytes()].concat(),
            );
        }
        if let (IpAddr::V4(own), true) = (to.ip(), has(&self.common, ip, libc::IP_PKTINFO)) {
            put(ip, libc::IP_PKTINFO, [index, own.octets(), own.octets()].concat());
        }
        if has(&self.common, ip, libc::IP_RECVTTL) && to.is_ipv4() {
            put(ip, libc::IP_TTL, told(arrival.hops.into()));
        }
        if has(&self.common, ip, libc::IP_RECVTOS) && to.is_ipv4() {
            put(ip, libc::IP_TOS, vec![arrival.class]);
        }
        if has(&self.common, ip, libc::IP_RECVORIGDSTADDR) && to.is_ipv4() {
            put(ip, libc::IP_RECVORIGDSTADDR, Address::Inet(to).bytes());
        }
        if self.common.domain == libc::AF_INET6 {
            let own = match to.ip() {
                IpAddr::V4(own) => own.to_ipv6_mapped(),
                IpAddr::V6(own) => own,
            };
            if has(&self.common, ipv6, libc::IPV6_RECVPKTINFO) {
                put(ipv6, libc::IPV6_PKTINFO, [own.octets().as_slice(), &index].concat());
            }
            if has(&self.common, ipv6, libc::IPV6_RECVHOPLIMIT) && to.is_ipv6() {
                put(ipv6, libc::IPV6_HOPLIMIT, told(arrival.hops.into()));
            }
            if has(&self.common, ipv6, libc::IPV6_RECVTCLASS) && to.is_ipv6() {
                put(ipv6, libc::IPV6_TCLASS, told(arrival.class.into()));
            }
        }
        controls
    }

    /// Sender's address that a control message asks for (`IP_PKTINFO`, `IPV6_PKTINFO`).
    fn asked_source(&self, controls: &[ControlMessage]) -> Result<Option<IpAddr>, Errno> {
        for control in controls {
            let ip: IpAddr = match (control.level, control.kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let bytes: [u8; 4] =
                        *control.data.get(4..12).and_then(<[u8]>::first_chunk).ok_or(Errno::EINVAL)?;
                    Ipv4Addr::from(bytes).into()
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let bytes: &[u8; 20] = control.data.first_chunk().ok_or(Errno::EINVAL)?;
                    let ip: &[u8; 16] = bytes.first_chunk().ok_or(Errno::EINVAL)?;
                    Ipv6Addr::from(*ip).to_canonical()
                }
                _ => continue,
            };
            if !ip.is_unspecified() {
                return if self.common.net.is_own(ip) { Ok(Some(ip)) } else { Err(Errno::EADDRNOTAVAIL) };
            }
        }
        Ok(None)
    }

    /// Routers outside are told when the first joins a group, and when the last leaves it.
    fn member(&self, group: IpAddr, joins: bool) {
        let net = &self.common.net;
        let told = if joins { net.inet.join(group) } else { net.inet.leave(group) };
        if let (true, Some(stack)) = (told, net.stack()) {
            stack.join(group, 0, joins);
        }
    }

    fn membership(&self, name: i32, level: i32, value: &[u8]) -> Result<(), Errno> {
        let group: IpAddr = match level {
            libc::IPPROTO_IP => {
                let bytes: &[u8; 8] = value.first_chunk().ok_or(Errno::EINVAL)?;
                let ip: &[u8; 4] = bytes.first_chunk().ok_or(Errno::EINVAL)?;
                Ipv4Addr::from(*ip).into()
            }
            _ => {
                let bytes: &[u8; 20] = value.first_chunk().ok_or(Errno::EINVAL)?;
                let ip: &[u8; 16] = bytes.first_chunk().ok_or(Errno::EINVAL)?;
                Ipv6Addr::from(*ip).to_canonical()
            }
        };
        if !group.is_multicast() {
            return Err(Errno::EINVAL);
        }
        let mut groups = lock(&self.groups);
        let at = groups.iter().position(|member| *member == group);
        let joins =
            matches!((level, name), (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP) | (libc::IPPROTO_IPV6, 20));
        match (joins, at) {
            (true, Some(_)) => return Err(Errno::EADDRINUSE),
            (true, None) if groups.len() >= GROUPS_MAX => return Err(Errno::ENOBUFS),
            (true, None) => groups.push(group),
            (false, Some(at)) => drop(groups.remove(at)),
            (false, None) => return Err(Errno::EADDRNOTAVAIL),
        }
        drop(groups);
        self.member(group, joins);
        Ok(())
    }
}

impl Socket for Udp {
    fn common(&self) -> &Arc<Common> {
        &self.common
    }

    fn bind(&self, context: &Context, address: &Address) -> Result<(), Errno> {
        self.claim_port(wanted(context, &self.common, address)?)
    }

    fn connect(&self, context: &Context, address: &Address) -> Result<(), Errno> {
        if *address == Address::Unspecified {
            self.dissolve();
            return Ok(());
        }
        let to = destination(&self.common, address)?;
        let source = match route(&context.net, to.ip())? {
            Route::Own(source) => source,
            Route::Outside(path) => path.source,
            Route::Broadcast if !lock(&self.common.options).broadcast => return Err(Errno::EACCES),
            _ => self.source_to_all(to.ip()),
        };
        let mut local = self.bound()?;
        if local.ip().is_unspecified() {
            local.set_ip(source);
        }
        let mut names = lock(&self.names);
        names.local = Some(local);
        names.remote = Some(to);
        let heard = if to.ip().is_multicast() { None } else { Some(to) };
        self.common.net.inet.udp.connect(local.port(), self.common.id(), local.ip(), heard);
        Ok(())
    }

    fn local(&self) -> Result<Address, Errno> {
        let domain = self.common.domain;
        let local = lock(&self.names).local;
        Ok(Address::of_domain(domain, local.unwrap_or(SocketAddr::new(unspecified(domain), 0))))
    }

    fn peer(&self) -> Result<Address, Errno> {
        let remote = lock(&self.names).remote.ok_or(Errno::ENOTCONN)?;
        Ok(Address::of_domain(self.common.domain, remote))
    }

    fn send(&self, message: &mut Outgoing<'_>) -> Result<usize, Errno> {
        if message.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if message.source.left() > LENGTH_MAX {
            return Err(Errno::EMSGSIZE);
        }
        let to = match &message.address {
            Some(Address::Unspecified) | None => lock(&self.names).remote.ok_or(Errno::EDESTADDRREQ)?,
            Some(address) => destination(&self.common, address)?,
        };
        if to.port() == 0 {
            return Err(Errno::EINVAL);
        }
        self.common.take_error()?;
        if self.shut.load(Ordering::Relaxed) & 2 != 0 {
            return Err(Errno::EPIPE);
        }
        let route = route(&self.common.net, to.ip())?;
        if route.is_broadcast() && !lock(&self.common.options).broadcast {
            return Err(Errno::EACCES);
        }
        let asked = self.asked_source(&message.controls)?;
        let mut from = self.bound()?;
        if let Some(asked) = asked {
            from.set_ip(asked);
        } else if from.ip().is_unspecified() || from.ip().is_multicast() {
            from.set_ip(match &route {
                Route::Own(source) => *source,
                Route::Outside(path) => path.source,
                _ => self.source_to_all(to.ip()),
            });
        }
        let data = gather(message)?;
        let count = data.len();
        self.dispatch(&route, data, from, to)?;
        Ok(count)
    }

    fn receive(&self, sink: &mut dyn Sink, how: Receive) -> Result<Received, Errno> {
        before_receiving(&self.common, how)?;
        let over = self.shut.load(Ordering::Relaxed) & 1 != 0;
        match self.inbox.take(sink, how.has(libc::MSG_PEEK)) {
            Err(Errno::EAGAIN) if over && !how.has(libc::MSG_DONTWAIT) => Ok(Received::default()),
            Ok(mut received) => {
                received.sender = None;
                Ok(received)
            }
            other => other,
        }
    }

    fn shutdown(&self, how: i32) -> Result<(), Errno> {
        self.shut.fetch_or(how.saturating_add(1), Ordering::Relaxed);
        self.common.notify(Events::IN | Events::OUT | Events::RDHUP | Events::HUP);
        if lock(&self.names).remote.is_some() { Ok(()) } else { Err(Errno::ENOTCONN) }
    }

    fn ready(&self) -> Events {
        let mut ready = Events::OUT | Events::WRNORM;
        let shut = self.shut.load(Ordering::Relaxed);
        if self.common.has_error() {
            ready |= Events::ERR;
        }
        if shut & 1 != 0 {
            ready |= Events::RDHUP;
        }
        if shut & 3 == 3 {
            ready |= Events::HUP;
        }
        if shut & 1 != 0 || self.inbox.status().2 > 0 {
            ready |= Events::IN | Events::RDNORM;
        }
        ready
    }

    fn unread(&self) -> Result<usize, Errno> {
        Ok(self.inbox.status().0.unwrap_or(0))
    }

    fn option(&self, level: i32, name: i32, _room: usize) -> Result<Vec<u8>, Errno> {
        options::get(&self.common, level, name, lock(&self.names).remote.is_some())
    }

    fn set_option(&self, context: &Context, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        match (level, name) {
            (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP | libc::IP_DROP_MEMBERSHIP)
            | (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP | libc::IPV6_DROP_MEMBERSHIP) => {
                self.membership(name, level, value)
            }
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) if lock(&self.names).local.is_some() => {
                Err(Errno::EINVAL)
            }
            (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF)
                if !super::super::interfaces::is_number(&self.common.net, number(value)?) =>
            {
                Err(Errno::ENODEV)
            }
            _ => options::set(context, &self.common, [level, name], value),
        }
    }

    fn describe(&self) -> Description {
        let names = *lock(&self.names);
        let state = if names.remote.is_some() { 1 } else { 7 };
        Description {
            local: names.local.map(Address::Inet),
            peer: names.remote.map(Address::Inet),
            state,
            unread: self.inbox.status().1,
            ..Description::default()
        }
    }

    fn close(&self) {
        let local = std::mem::take(&mut *lock(&self.names)).local;
        if let Some(local) = local {
            self.common.net.inet.udp.release(local.port(), self.common.id());
        }
        let groups = std::mem::take(&mut *lock(&self.groups));
        groups.into_iter().for_each(|group| self.member(group, false));
        self.inbox.clear(true);
        self.common.notify(Events::IN | Events::OUT | Events::HUP);
    }
}
