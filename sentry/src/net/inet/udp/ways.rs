//! Where datagrams go, and who gets what comes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::IpProtocol;

use super::super::super::stack::{Datagram, Path, udp_header};
use super::super::super::{Net, lock};
use super::super::{Route, accepts_outside, options};
use super::Udp;
use crate::error::Errno;

/// How a datagram came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Number of the interface.
    pub(crate) interface: u32,
    /// Hops that were left.
    pub(crate) hops: u8,
    /// Type of service.
    pub(crate) class: u8,
    /// It was for all.
    pub(crate) to_all: bool,
}

impl Arrival {
    /// From within the sandbox.
    const OWN: Self = Self { interface: 1, hops: 64, class: 0, to_all: false };
}

/// A datagram came from outside: whether anybody wanted it.
pub(crate) fn arrives(net: &Net, data: &[u8], from: SocketAddr, to: SocketAddr, arrival: Arrival) -> bool {
    if arrival.to_all {
        return deliver_to_all(net, data, from, to, arrival);
    }
    match net.inet.udp.find(to, from, false) {
        Some(socket) => {
            if let Some(socket) = socket.downcast::<Udp>() {
                socket.deliver(data.to_vec(), from, to, arrival);
            }
            true
        }
        None => false,
    }
}

/// What was sent did not arrive. Only who is connected is told, of what is final (`__udp4_lib_err`).
pub(crate) fn fails(net: &Net, from: SocketAddr, to: SocketAddr, errno: Errno, fatal: bool) {
    let found = net.inet.udp.find(from, to, false);
    let Some(socket) = found.as_deref().and_then(|found| found.downcast::<Udp>()) else { return };
    let wants = |level, name| options::has(&socket.common, level, name);
    let all = if to.is_ipv4() {
        wants(libc::IPPROTO_IP, libc::IP_RECVERR)
    } else {
        wants(libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    };
    if all || fatal && lock(&socket.names).remote == Some(to) {
        socket.common.fail(errno);
    }
}

/// To all who hear a group or a broadcast: whether there are any.
fn deliver_to_all(net: &Net, data: &[u8], from: SocketAddr, to: SocketAddr, arrival: Arrival) -> bool {
    let mut heard = false;
    for socket in net.inet.udp.all(to.port()) {
        let Some(socket) = socket.downcast::<Udp>() else { continue };
        let names = *lock(&socket.names);
        let member = !to.ip().is_multicast() || lock(&socket.groups).contains(&to.ip());
        let hears = names.bound.is_some_and(|ip| match ip {
            IpAddr::V6(own) if own.is_unspecified() => to.is_ipv6() || !super::super::only_v6(&socket.common),
            IpAddr::V4(own) if own.is_unspecified() => to.is_ipv4(),
            own => own == to.ip(),
        });
        if member && hears && names.remote.is_none_or(|remote| remote == from) {
            socket.deliver(data.to_vec(), from, to, arrival);
            heard = true;
        }
    }
    heard
}

impl Udp {
    /// The address that something for all is sent from.
    pub(super) fn source_to_all(&self, to: IpAddr) -> IpAddr {
        let path = self.common.net.stack().and_then(|stack| stack.broadcast_path(to, None).ok());
        match (path, to) {
            (Some(path), _) => path.source,
            (None, IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
            (None, IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// Sends on its way.
    pub(super) fn dispatch(
        &self,
        route: &Route,
        data: Vec<u8>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<(), Errno> {
        let net = &self.common.net;
        match route {
            Route::Outside(path) => return self.send_outside(path, &data, from, to),
            Route::Group | Route::Broadcast => {
                let (level, name) = if to.is_ipv4() {
                    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP)
                } else {
                    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP)
                };
                let stack = net.stack().filter(|_| accepts_outside(from.ip()) && !to.ip().is_loopback());
                if !to.ip().is_multicast() || stack.is_none() || options::has(&self.common, level, name) {
                    deliver_to_all(net, &data, from, to, Arrival::OWN);
                }
                let path = stack.and_then(|stack| stack.broadcast_path(to.ip(), Some(from.ip())).ok());
                return path.map_or(Ok(()), |path| self.send_outside(&path, &data, from, to));
            }
            Route::Own(_) => {}
        }
        match net.inet.udp.find(to, from, false) {
            Some(socket) => {
                if let Some(socket) = socket.downcast::<Self>() {
                    socket.deliver(data, from, to, Arrival::OWN);
                }
            }
            // An ICMP error comes back, which only a connected socket is told.
            None if lock(&self.names).remote.is_some() => self.common.fail(Errno::ECONNREFUSED),
            None => {}
        }
        Ok(())
    }

    fn send_outside(&self, path: &Path, data: &[u8], from: SocketAddr, to: SocketAddr) -> Result<(), Errno> {
        if !accepts_outside(from.ip()) {
            return Err(Errno::EINVAL);
        }
        let bytes = udp_header(from, to, data);
        let (hops, class) = options::header_of(&self.common, to.ip());
        let whole = options::stays_whole(&self.common, to.ip());
        let (from, to) = (from.ip(), to.ip());
        let datagram = Datagram { from, to, protocol: IpProtocol::Udp, hops, class, whole, bytes: &bytes };
        let stack = self.common.net.stack().ok_or(Errno::ENETUNREACH)?;
        // A route by another of our addresses than the socket's.
        let other = if path.source == from { None } else { stack.path(to, Some(from)).ok() };
        stack.send_datagram(other.as_ref().unwrap_or(path), &datagram)
    }
}
