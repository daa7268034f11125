//! ICMP echo sockets (`SOCK_DGRAM` with `IPPROTO_ICMP` or `IPPROTO_ICMPV6`, `man 7 icmp`): what is for the sandbox it answers itself.
//!
//! Everybody may have one, as where `net.ipv4.ping_group_range` is `0 2147483647`.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, Weak};

use smoltcp::wire::IpProtocol;

use super::super::address::Address;
use super::super::buffer::Sink;
use super::super::messages::{Inbox, Message, Received, Room};
use super::super::socket::{Context, Description, Outgoing, Receive, Socket};
use super::super::stack::{Datagram, Path, icmp6_checksum};
use super::super::unix::gather;
use super::super::{Common, Identity, Net, lock};
use super::{Route, claim, destination, options, route, unspecified, wanted};
use crate::error::Errno;
use crate::events::Events;

/// Most bytes of a message with its header.
const LENGTH_MAX: usize = 65_507;
/// Bytes of an ICMP header.
const HEADER: usize = 8;

/// An ICMP echo socket: its port is the identifier.
pub(crate) struct Echo {
    common: Arc<Common>,
    me: Weak<Self>,
    inbox: Inbox,
    names: Mutex<(Option<SocketAddr>, Option<SocketAddr>)>,
}

/// Checksum of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum = sum.wrapping_add(u32::from(u16::from_be_bytes([pair[0], low])));
        sum = (sum & 0xffff).wrapping_add(sum >> 16);
    }
    !u16::try_from(sum & 0xffff).unwrap_or(0)
}

/// An echo reply came from outside.
pub(crate) fn arrives(net: &Net, bytes: &[u8], from: IpAddr, to: IpAddr) {
    let Some([_, _, _, _, a, b, ..]) = bytes.first_chunk::<HEADER>().copied() else { return };
    let to = SocketAddr::new(to, u16::from_be_bytes([a, b]));
    let found = net.inet.echo.find(to, SocketAddr::new(from, 0), false);
    if let Some(echo) = found.as_deref().and_then(|found| found.downcast::<Echo>()) {
        echo.put(bytes.to_vec(), from);
    }
}

impl Echo {
    pub(super) fn new(net: &Arc<Net>, kind: [i32; 3], owner: Identity) -> Result<Arc<Self>, Errno> {
        let common = Common::new(net, kind, owner)?;
        Ok(Arc::new_cyclic(|me| Self {
            common,
            me: Weak::clone(me),
            inbox: Inbox::new(&net.bytes),
            names: Mutex::default(),
        }))
    }

    fn bound(&self, ip: IpAddr, port: u16) -> Result<SocketAddr, Errno> {
        let mut names = lock(&self.names);
        if let Some(local) = names.0 {
            return Ok(local);
        }
        let me: Weak<Self> = Weak::clone(&self.me);
        let me: Weak<dyn Socket> = me;
        let port = self.common.net.inet.echo.claim(port, claim(&self.common, ip), &me, false)?;
        let local = SocketAddr::new(ip, port);
        names.0 = Some(local);
        Ok(local)
    }

    /// A message comes to the socket.
    fn put(&self, data: Vec<u8>, from: IpAddr) {
        let from = Some(Address::Inet(SocketAddr::new(from, 0)));
        let bytes = lock(&self.common.options).receive_buffer;
        let answer = Message { data, from, ..Message::default() };
        if self.inbox.put(answer, Room { messages: usize::MAX, bytes }).is_ok() {
            self.common.notify(Events::IN | Events::RDNORM);
        }
    }

    /// A request goes out, with this socket's identifier.
    fn send_outside(
        &self,
        path: &Path,
        mut data: Vec<u8>,
        local: SocketAddr,
        to: SocketAddr,
    ) -> Result<(), Errno> {
        let wide = self.common.domain == libc::AF_INET6;
        let header: &mut [u8; HEADER] = data.first_chunk_mut().ok_or(Errno::EINVAL)?;
        if header[0] != if wide { 128 } else { 8 } || header[1] != 0 {
            return Err(Errno::EINVAL);
        }
        header[2..4].fill(0);
        header[4..6].copy_from_slice(&local.port().to_be_bytes());
        let from = if local.ip().is_unspecified() { path.source } else { local.ip() };
        let sum = if wide { icmp6_checksum(from, to.ip(), &data) } else { checksum(&data) };
        data.get_mut(2..4).ok_or(Errno::EINVAL)?.copy_from_slice(&sum.to_be_bytes());
        let (hops, class) = options::header_of(&self.common, to.ip());
        let protocol = if wide { IpProtocol::Icmpv6 } else { IpProtocol::Icmp };
        let whole = options::stays_whole(&self.common, to.ip());
        let datagram = Datagram { from, to: to.ip(), protocol, hops, class, whole, bytes: &data };
        self.common.net.stack().ok_or(Errno::ENETUNREACH)?.send_datagram(path, &datagram)
    }

    /// A request as its answer: type and identifier changed, checksum made anew.
    fn answer(&self, mut data: Vec<u8>, identifier: u16) -> Option<Vec<u8>> {
        let (request, reply) = if self.common.domain == libc::AF_INET6 { (128, 129) } else { (8, 0) };
        let header: &mut [u8; HEADER] = data.first_chunk_mut()?;
        if header[0] != request || header[1] != 0 {
            return None;
        }
        header[0] = reply;
        header[2..4].fill(0);
        header[4..6].copy_from_slice(&identifier.to_be_bytes());
        if self.common.domain == libc::AF_INET {
            let sum = checksum(&data);
            data.get_mut(2..4)?.copy_from_slice(&sum.to_be_bytes());
        }
        Some(data)
    }
}

impl Socket for Echo {
    fn common(&self) -> &Arc<Common> {
        &self.common
    }

    fn bind(&self, context: &Context, address: &Address) -> Result<(), Errno> {
        let local = wanted(context, &self.common, address)?;
        if lock(&self.names).0.is_some() {
            return Err(Errno::EINVAL);
        }
        self.bound(local.ip(), local.port()).map(drop)
    }

    fn connect(&self, context: &Context, address: &Address) -> Result<(), Errno> {
        if *address == Address::Unspecified {
            lock(&self.names).1 = None;
            return Ok(());
        }
        let to = destination(&self.common, address)?;
        route(&context.net, to.ip())?;
        self.bound(unspecified(self.common.domain), 0)?;
        lock(&self.names).1 = Some(to);
        Ok(())
    }

    fn local(&self) -> Result<Address, Errno> {
        let domain = self.common.domain;
        let local = lock(&self.names).0;
        Ok(Address::of_domain(domain, local.unwrap_or(SocketAddr::new(unspecified(domain), 0))))
    }

    fn peer(&self) -> Result<Address, Errno> {
        let remote = lock(&self.names).1.ok_or(Errno::ENOTCONN)?;
        Ok(Address::of_domain(self.common.domain, remote))
    }

    fn send(&self, message: &mut Outgoing<'_>) -> Result<usize, Errno> {
        if message.source.left() > LENGTH_MAX {
            return Err(Errno::EMSGSIZE);
        }
        if message.source.left() < HEADER {
            return Err(Errno::EINVAL);
        }
        let to = match &message.address {
            None | Some(Address::Unspecified) => lock(&self.names).1.ok_or(Errno::EDESTADDRREQ)?,
            Some(address) => destination(&self.common, address)?,
        };
        if to.is_ipv4() != (self.common.domain == libc::AF_INET) {
            return Err(Errno::EINVAL);
        }
        let route = route(&self.common.net, to.ip())?;
        let local = self.bound(unspecified(self.common.domain), 0)?;
        let data = gather(message)?;
        let count = data.len();
        match route {
            Route::Own(_) => {}
            Route::Outside(path) => {
                self.send_outside(&path, data, local, to)?;
                return Ok(count);
            }
            _ => return Err(Errno::EACCES),
        }
        let data = self.answer(data, local.port()).ok_or(Errno::EINVAL)?;
        self.put(data, to.ip());
        Ok(count)
    }

    fn receive(&self, sink: &mut dyn Sink, how: Receive) -> Result<Received, Errno> {
        if how.has(libc::MSG_OOB) {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut received = self.inbox.take(sink, how.has(libc::MSG_PEEK))?;
        received.sender = None;
        Ok(received)
    }

    fn shutdown(&self, _how: i32) -> Result<(), Errno> {
        if lock(&self.names).1.is_some() { Ok(()) } else { Err(Errno::ENOTCONN) }
    }

    fn ready(&self) -> Events {
        let ready = Events::OUT | Events::WRNORM;
        if self.inbox.status().2 > 0 { ready | Events::IN | Events::RDNORM } else { ready }
    }

    fn unread(&self) -> Result<usize, Errno> {
        Ok(self.inbox.status().0.unwrap_or(0))
    }

    fn option(&self, level: i32, name: i32, _room: usize) -> Result<Vec<u8>, Errno> {
        options::get(&self.common, level, name, lock(&self.names).1.is_some())
    }

    fn set_option(&self, context: &Context, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        options::set(context, &self.common, [level, name], value)
    }

    fn describe(&self) -> Description {
        let names = *lock(&self.names);
        Description {
            local: names.0.map(Address::Inet),
            peer: names.1.map(Address::Inet),
            state: 7,
            ..Description::default()
        }
    }

    fn close(&self) {
        let local = lock(&self.names).0.take();
        if let Some(local) = local {
            self.common.net.inet.echo.release(local.port(), self.common.id());
        }
        self.inbox.clear(true);
    }
}
