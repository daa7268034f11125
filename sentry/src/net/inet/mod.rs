//! Internet sockets (`man 7 ip`, `ipv6`, `tcp`, `udp`, `icmp`): between programs of the sandbox by a short path, to outside by [`super::stack`].
//!
//! **Decisions.** A non-blocking `connect` gives EINPROGRESS even where the connection is there at once: Linux' does, because the answer to its
//! SYN is looked at only when the socket's lock is released (`__inet_stream_connect`). A connection takes
//! the place of 256 KiB at either side unless `SO_SNDBUF` or `SO_RCVBUF` say something else; Linux would let them grow to megabytes. Accepted
//! connections and TIME_WAIT are known by port alone, not by address.

mod echo;
mod options;
mod ports;
mod raw;
mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

pub(crate) use echo::arrives as echo_arrives;
pub(crate) use options::{header_of, settings};
pub(crate) use ports::{Claim, Ports};
pub(crate) use raw::Packet as RawPacket;
pub(crate) use tcp::Tcp;
pub(crate) use udp::{Arrival, arrives as udp_arrives, fails as udp_fails};

use super::address::Address;
use super::buffer::ByteQueue;
use super::options::CAP_NET_RAW;
use super::pair::End;
use super::socket::{Context, Receive, Socket};
use super::stack::Path;
use super::{Common, Net, lock};
use crate::error::Errno;

/// `CAP_NET_BIND_SERVICE`.
const CAP_NET_BIND_SERVICE: u32 = 10;
/// Ports below it are privileged (`net.ipv4.ip_unprivileged_port_start`).
const UNPRIVILEGED: u16 = 1024;

/// Bytes that a side has room for unless told otherwise.
pub(crate) const BUFFER: usize = 256 * 1024;

/// Bytes on their way from one socket to another at most.
pub(crate) fn limit(sender: &Common, receiver: &Common) -> usize {
    let of = |common: &Common, receives: bool| {
        let options = lock(&common.options);
        match (options.fixed[usize::from(receives)], receives) {
            (false, _) => BUFFER,
            (true, true) => options.receive_buffer,
            (true, false) => options.send_buffer,
        }
    };
    of(sender, false).saturating_add(of(receiver, true))
}

/// Whether nothing is left of a connection: reset, or a FIN went both ways (`TCP_CLOSE`).
pub(crate) fn over(end: &End<ByteQueue>) -> bool {
    let (incoming, outgoing) = (end.incoming().flags(), end.outgoing().flags());
    incoming.broken || outgoing.broken || incoming.ended && outgoing.ended
}

/// Where what is sent to an address goes. Sockets ask nothing else.
#[derive(Clone)]
pub(crate) enum Route {
    /// To the sandbox itself, from this address unless the socket has one.
    Own(IpAddr),
    /// To whoever is a member of the group.
    Group,
    /// To all sockets of the sandbox, and of the network that the address means.
    Broadcast,
    /// To outside, by the stack.
    Outside(Path),
}

impl Route {
    pub(crate) fn is_broadcast(&self) -> bool {
        matches!(self, Self::Broadcast)
    }
}

/// Whether what comes from an address may leave the sandbox.
pub(crate) fn accepts_outside(from: IpAddr) -> bool {
    !from.is_loopback()
}

/// The route to an address.
///
/// # Errors
/// ENETUNREACH where there is none.
pub(crate) fn route(net: &Net, to: IpAddr) -> Result<Route, Errno> {
    match to.to_canonical() {
        IpAddr::V4(ip) if ip.is_broadcast() || ip == Ipv4Addr::new(127, 255, 255, 255) => {
            Ok(Route::Broadcast)
        }
        ip if ip.is_multicast() => Ok(Route::Group),
        IpAddr::V4(ip) if ip.is_loopback() => Ok(Route::Own(Ipv4Addr::LOCALHOST.into())),
        ip if net.is_own(ip) => Ok(Route::Own(ip)),
        ip => {
            let stack = net.stack().ok_or(Errno::ENETUNREACH)?;
            if stack.is_broadcast(ip) {
                Ok(Route::Broadcast)
            } else {
                stack.path(ip, None).map(Route::Outside)
            }
        }
    }
}

/// Whether a socket of this kind is IPv6 alone (`IPV6_V6ONLY`).
pub(crate) fn only_v6(common: &Common) -> bool {
    let stored = lock(&common.options).stored(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
    common.domain == libc::AF_INET6 && stored.unwrap_or(0) != 0
}

/// Where a socket wants to connect or send: canonical, and not the unspecified address, which means the sandbox itself.
///
/// # Errors
/// EAFNOSUPPORT, ENETUNREACH.
pub(crate) fn destination(common: &Common, address: &Address) -> Result<SocketAddr, Errno> {
    let Address::Inet(address) = address else { return Err(Errno::EAFNOSUPPORT) };
    let ip = match address.ip().to_canonical() {
        IpAddr::V4(_) if only_v6(common) => return Err(Errno::ENETUNREACH),
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, address.port()))
}

/// What a socket asks to be bound to.
///
/// # Errors
/// EAFNOSUPPORT; EADDRNOTAVAIL where it is not the sandbox'; EACCES for privileged ports; EINVAL.
pub(crate) fn wanted(context: &Context, common: &Common, address: &Address) -> Result<SocketAddr, Errno> {
    let address = match address {
        Address::Inet(address) => *address,
        Address::Unspecified if common.domain == libc::AF_INET => {
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)
        }
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    if common.domain == libc::AF_INET6 && address.is_ipv4() {
        return Err(Errno::EAFNOSUPPORT);
    }
    let ip = address.ip().to_canonical();
    if common.domain == libc::AF_INET6 && ip.is_ipv4() && only_v6(common) {
        return Err(Errno::EINVAL);
    }
    let group = ip.is_multicast() && common.kind == libc::SOCK_DGRAM;
    let broadcast =
        matches!(route(&context.net, ip), Ok(Route::Broadcast)) && common.kind == libc::SOCK_DGRAM;
    if !ip.is_unspecified() && !group && !broadcast && !context.net.is_own(ip) {
        return Err(Errno::EADDRNOTAVAIL);
    }
    let port = address.port();
    if port != 0 && port < UNPRIVILEGED && !context.capable(CAP_NET_BIND_SERVICE) {
        return Err(Errno::EACCES);
    }
    Ok(SocketAddr::new(ip, port))
}

/// What a socket of datagrams says before it looks for one: it has no urgent data, an empty queue of errors, and may have an error.
fn before_receiving(common: &Common, how: Receive) -> Result<(), Errno> {
    if how.has(libc::MSG_OOB) {
        return Err(Errno::EOPNOTSUPP);
    }
    if how.has(libc::MSG_ERRQUEUE) {
        return Err(Errno::EAGAIN);
    }
    common.take_error()
}

/// Nothing in particular, as a socket of a domain has it.
pub(crate) fn unspecified(domain: i32) -> IpAddr {
    if domain == libc::AF_INET6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// What a socket asks a table of ports for.
pub(crate) fn claim(common: &Common, ip: IpAddr) -> Claim {
    let only_v6 = only_v6(common);
    let options = lock(&common.options);
    Claim {
        ip,
        only_v6,
        reuse_address: options.reuse_address,
        reuse_port: options.reuse_port,
        uid: common.owner.uid,
        id: common.id(),
    }
}

/// An Internet socket.
///
/// # Errors
/// EPROTONOSUPPORT, ESOCKTNOSUPPORT; EPERM for raw ones without CAP_NET_RAW; ENOBUFS.
pub(crate) fn create(
    context: &Context,
    [domain, kind, protocol]: [i32; 3],
) -> Result<Arc<dyn Socket>, Errno> {
    if !(0..=262).contains(&protocol) {
        return Err(Errno::EINVAL);
    }
    let (net, owner) = (&context.net, context.identity());
    Ok(match (kind, protocol) {
        (libc::SOCK_STREAM, 0 | libc::IPPROTO_TCP) => Tcp::new(net, domain, owner)?,
        (libc::SOCK_DGRAM, 0 | libc::IPPROTO_UDP) => udp::Udp::new(net, domain, owner)?,
        (libc::SOCK_DGRAM, libc::IPPROTO_ICMP) if domain == libc::AF_INET => {
            echo::Echo::new(net, [domain, kind, protocol], owner)?
        }
        (libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6) if domain == libc::AF_INET6 => {
            echo::Echo::new(net, [domain, kind, protocol], owner)?
        }
        (libc::SOCK_RAW, 0 | 256..) => return Err(Errno::EPROTONOSUPPORT),
        (libc::SOCK_RAW, _) if !context.capable(CAP_NET_RAW) => return Err(Errno::EPERM),
        (libc::SOCK_RAW, _) => raw::Raw::new(net, [domain, kind, protocol], owner)?,
        (libc::SOCK_STREAM | libc::SOCK_DGRAM, _) => return Err(Errno::EPROTONOSUPPORT),
        _ => return Err(Errno::ESOCKTNOSUPPORT),
    })
}

#[cfg(test)]
pub(in crate::net) mod tests;
