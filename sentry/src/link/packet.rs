//! A packet socket (`man 7 packet`) on an interface that is taken over.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::look::{self, Link, Seen};
use super::netlink::Netlink;
use super::{Before, LinkError, Opened, refused};
use crate::error::Errno;
use crate::net::stack::LinkConfig;

/// Bytes that wait at the socket, either way.
const BUFFER: libc::c_int = 8 << 20;

/// Takes over an interface of this thread's network namespace, by its name.
pub(super) fn open(name: &str) -> Result<Opened, LinkError> {
    let asked = |errno| refused(name, "asking by netlink")(errno);
    let mut netlink = Netlink::open().map_err(asked)?;
    let links = look::links(&mut netlink).map_err(asked)?;
    let link = links.iter().find(|link| link.name == name);
    let link = link.ok_or_else(|| LinkError::Missing(name.to_owned()))?;
    if !link.ethernet {
        return Err(LinkError::Kind(name.to_owned()));
    }
    if !link.up {
        return Err(LinkError::Down(name.to_owned()));
    }
    take(&mut netlink, link).map(|(opened, _)| opened)
}

/// Takes over an interface that is up, and tells what it was like. Where a step is refused it is again as it was.
pub(super) fn take(netlink: &mut Netlink, link: &Link) -> Result<(Opened, Before), LinkError> {
    let name = link.name.as_str();
    if link.follows_addresses {
        return Err(LinkError::Shared(name.to_owned()));
    }
    let seen = look::seen(netlink, link.index).map_err(refused(name, "asking by netlink"))?;
    // First the socket, which may be refused; then nothing is answered by the host's kernel any more; then packets are taken.
    let fd = socket().map_err(refused(name, "a packet socket"))?;
    let offload = configure(&fd).map_err(refused(name, "options of a packet socket"))?;
    let mut before = Before::new(link);
    let taken =
        before.strip(netlink, &seen).map_err(refused(name, "taking an address off it")).and_then(|()| {
            before.silence();
            bind(&fd, link.index).map_err(refused(name, "binding a packet socket"))
        });
    if let Err(error) = taken {
        before.put_back(netlink);
        return Err(error);
    }
    let Seen { addresses, routes, neighbours, .. } = seen;
    let config = LinkConfig {
        name: name.to_owned(),
        mac: link.mac,
        mtu: link.mtu,
        offload,
        addresses: addresses.into_iter().map(|(prefix, _)| prefix).collect(),
        routes: routes.into_iter().map(|(route, _)| route).collect(),
        neighbours: neighbours.into_iter().map(|(neighbour, _)| neighbour).collect(),
    };
    Ok((Opened { config, fd }, before))
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
