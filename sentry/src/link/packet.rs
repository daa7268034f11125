//! A packet socket (`man 7 packet`) on an interface that is taken over.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::netlink::{Netlink, attributes};
use super::{LinkError, Opened, refused};
use crate::error::Errno;
use crate::net::stack::{LinkConfig, NeighbourConfig, Prefix, RouteConfig};

// `include/uapi/linux/rtnetlink.h`
const GETLINK: u16 = 18;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const GETROUTE: u16 = 26;
const GETNEIGH: u16 = 30;
const TABLE_MAIN: u32 = 254;
const UNICAST: u8 = 1;
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;
/// `NUD_PERMANENT`; `NUD_REACHABLE`, `NUD_STALE`, `NUD_DELAY`, `NUD_PROBE`.
const PERMANENT: u16 = 0x80;
const KNOWN: u16 = 0x02 | 0x04 | 0x08 | 0x10 | PERMANENT;
/// Bytes that wait at the socket, either way.
const BUFFER: libc::c_int = 8 << 20;

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_ne_bytes)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => field::<4>(bytes, 0).map(|bytes| Ipv4Addr::from(bytes).into()),
        16 => field::<16>(bytes, 0).map(|bytes| Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

/// What netlink says about an interface: number, flags, type, hardware address, MTU.
struct Link {
    index: u32,
    up: bool,
    ethernet: bool,
    mac: [u8; 6],
    mtu: u32,
}

fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, Errno> {
    for body in netlink.dump(GETLINK, &[0; 16])? {
        let all = attributes(&body, 16);
        let of = |kind: u16| all.iter().find(|(other, _)| *other == kind).map(|(_, value)| *value);
        if of(3).and_then(|value| value.strip_suffix(&[0])) != Some(name.as_bytes()) {
            continue;
        }
        return Ok(Some(Link {
            index: word(&body, 4).unwrap_or(0),
            up: word(&body, 8).unwrap_or(0) & 1 != 0,
            ethernet: field(&body, 2).map(u16::from_ne_bytes) == Some(ETHERNET),
            mac: of(1).and_then(|value| field(value, 0)).unwrap_or_default(),
            mtu: of(4).and_then(|value| word(value, 0)).unwrap_or(1500),
        }));
    }
    Ok(None)
}

/// Addresses of an interface, and the messages by which they are removed.
fn addresses(netlink: &mut Netlink, index: u32) -> Result<Vec<(Prefix, Vec<u8>)>, Errno> {
    let mut found = Vec::new();
    for body in netlink.dump(GETADDR, &[0; 8])? {
        if word(&body, 4) != Some(index) {
            continue;
        }
        let all = attributes(&body, 8);
        // IFA_LOCAL is ours where IFA_ADDRESS is the peer's.
        let of =
            |kind: u16| all.iter().find(|(other, _)| *other == kind).and_then(|(_, value)| address(value));
        let (Some(ip), Some(length)) = (of(2).or_else(|| of(1)), body.get(1)) else { continue };
        found.push((Prefix { ip, length: *length }, body));
    }
    Ok(found)
}

fn routes(netlink: &mut Netlink, index: u32) -> Result<Vec<RouteConfig>, Errno> {
    let mut found = Vec::new();
    for body in netlink.dump(GETROUTE, &[0; 12])? {
        let [family, length, .., table, protocol, scope, kind] = *match body.first_chunk::<8>() {
            Some(header) => header,
            None => continue,
        };
        let all = attributes(&body, 12);
        let of = |kind: u16| all.iter().find(|(other, _)| *other == kind).map(|(_, value)| *value);
        let table = of(15).and_then(|value| word(value, 0)).unwrap_or(table.into());
        let out = of(4).and_then(|value| word(value, 0));
        if kind != UNICAST || table != TABLE_MAIN || out != Some(index) {
            continue;
        }
        let ip = of(1).and_then(address).unwrap_or(Prefix::all(i32::from(family) == libc::AF_INET6).ip);
        found.push(RouteConfig {
            to: Prefix { ip, length },
            gateway: of(5).and_then(address),
            source: of(7).and_then(address),
            metric: of(6).and_then(|value| word(value, 0)).unwrap_or(0),
            scope,
            protocol,
        });
    }
    Ok(found)
}

fn neighbours(netlink: &mut Netlink, index: u32) -> Result<Vec<NeighbourConfig>, Errno> {
    let mut found = Vec::new();
    for body in netlink.dump(GETNEIGH, &[0; 12])? {
        let state = field(&body, 8).map_or(0, u16::from_ne_bytes);
        if word(&body, 4) != Some(index) || state & KNOWN == 0 {
            continue;
        }
        let all = attributes(&body, 12);
        let of = |kind: u16| all.iter().find(|(other, _)| *other == kind).map(|(_, value)| *value);
        if let (Some(ip), Some(mac)) = (of(1).and_then(address), of(2).and_then(|value| field(value, 0))) {
            found.push(NeighbourConfig { ip, mac, permanent: state & PERMANENT != 0 });
        }
    }
    Ok(found)
}

/// Takes over an interface of this thread's network namespace.
pub(super) fn open(name: &str) -> Result<Opened, LinkError> {
    let mut netlink = Netlink::open().map_err(refused(name, "asking by netlink"))?;
    let asked = |errno| refused(name, "asking by netlink")(errno);
    let link = find(&mut netlink, name).map_err(asked)?.ok_or_else(|| LinkError::Missing(name.to_owned()))?;
    if !link.ethernet {
        return Err(LinkError::Kind(name.to_owned()));
    }
    if !link.up {
        return Err(LinkError::Down(name.to_owned()));
    }
    let addresses = addresses(&mut netlink, link.index).map_err(asked)?;
    let routes = routes(&mut netlink, link.index).map_err(asked)?;
    let neighbours = neighbours(&mut netlink, link.index).map_err(asked)?;
    // First the socket, which may be refused; then nothing is answered by the host's kernel any more; then packets are taken.
    let fd = socket().map_err(refused(name, "a packet socket"))?;
    let offload = configure(&fd).map_err(refused(name, "options of a packet socket"))?;
    for (_, body) in &addresses {
        match netlink.change(DELADDR, body) {
            // It went with another one, of which it was a further one.
            Ok(()) | Err(Errno::EADDRNOTAVAIL) => {}
            Err(errno) => return Err(refused(name, "taking an address off it")(errno)),
        }
    }
    silence(name);
    bind(&fd, link.index).map_err(refused(name, "binding a packet socket"))?;
    let config = LinkConfig {
        name: name.to_owned(),
        mac: link.mac,
        mtu: link.mtu,
        offload,
        addresses: addresses.into_iter().map(|(prefix, _)| prefix).collect(),
        routes,
        neighbours,
    };
    Ok(Opened { config, fd })
}

/// The host's kernel gives the interface no addresses of IPv6 by itself. Without a `/proc/sys` that can be written it stays as it is: an address
/// that is made later is then the host's, not the sandbox'.
fn silence(name: &str) {
    for option in ["accept_ra", "autoconf"] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{option}"), "0");
    }
    if let Err(error) = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1")
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(interface = name, %error, "the host keeps IPv6 on the interface");
    }
}

fn socket() -> Result<OwnedFd, Errno> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // Protocol 0: nothing is received before it is bound.
    // SAFETY: it takes numbers.
    let fd = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the kernel has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    let size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(4);
    // SAFETY: the value lives during the call, and the size is its own.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size) };
    Errno::result(result).map(drop)
}

/// Whether frames have a header for checksums and cutting.
fn configure(fd: &OwnedFd) -> Result<bool, Errno> {
    // `include/uapi/linux/if_packet.h`: what this host sends itself is not for us.
    const IGNORE_OUTGOING: libc::c_int = 23;
    const VIRTIO_HEADER: libc::c_int = 15;
    set(fd, libc::SOL_PACKET, IGNORE_OUTGOING, 1)?;
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if set(fd, libc::SOL_SOCKET, force, BUFFER).is_err() {
            set(fd, libc::SOL_SOCKET, plain, BUFFER)?;
        }
    }
    Ok(set(fd, libc::SOL_PACKET, VIRTIO_HEADER, 1).is_ok())
}

fn bind(fd: &OwnedFd, index: u32) -> Result<(), Errno> {
    let index = libc::c_int::try_from(index).map_err(|_| Errno::ENODEV)?;
    let all = u16::try_from(libc::ETH_P_ALL).unwrap_or(3).to_be();
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap_or(17),
        sll_protocol: all,
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(20);
    // SAFETY: the address lives during the call, and the size is its own.
    Errno::result(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) })?;
    // Groups of all kinds: who is a member of which changes later, when nothing can be asked any more.
    let membership = libc::packet_mreq { mr_ifindex: index, mr_type: 2, mr_alen: 0, mr_address: [0; 8] };
    let size = libc::socklen_t::try_from(size_of_val(&membership)).unwrap_or(16);
    // SAFETY: the structure lives during the call, and the size is its own.
    let result = unsafe {
        let value = (&raw const membership).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, value, size)
    };
    Errno::result(result).map(drop)
}
