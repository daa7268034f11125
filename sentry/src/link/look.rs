//! What netlink says about interfaces of this thread's network namespace (`man 7 rtnetlink`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink::{Netlink, attributes};
use crate::error::Errno;
use crate::net::stack::{NeighbourConfig, Prefix, RouteConfig};

// `include/uapi/linux/rtnetlink.h`
const GETLINK: u16 = 18;
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
/// `IFA_F_TENTATIVE`.
const TENTATIVE: u8 = 0x40;

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_ne_bytes)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => field::<4>(bytes, 0).map(|bytes| Ipv4Addr::from(bytes).into()),
        16 => field::<16>(bytes, 0).map(|bytes| Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

/// An interface.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) ethernet: bool,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    /// The host's kernel gives it frames by addresses that the interface has there: an ipvlan.
    pub(super) follows_addresses: bool,
}

/// Something that was read, and the message that said it.
pub(super) type Told<T> = (T, Vec<u8>);

/// What an interface has.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) addresses: Vec<Told<Prefix>>,
    pub(super) routes: Vec<Told<RouteConfig>>,
    pub(super) neighbours: Vec<Told<NeighbourConfig>>,
    /// Of one address it is not known yet whether somebody else has it, too (RFC 4862, 5.4).
    pub(super) tentative: bool,
}

impl Seen {
    /// Addresses that somebody gave it: those of its link alone it has by itself.
    pub(super) fn given(&self) -> impl Iterator<Item = &Prefix> {
        let local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        self.addresses.iter().map(|(prefix, _)| prefix).filter(move |prefix| !local(prefix.ip))
    }

    /// Whether somebody gave it an address.
    pub(super) fn is_given(&self) -> bool {
        self.given().next().is_some()
    }
}

/// All interfaces.
pub(super) fn links(netlink: &mut Netlink) -> Result<Vec<Link>, Errno> {
    Ok(netlink.dump(GETLINK, &[0; 16])?.iter().filter_map(|body| link(body)).collect())
}

fn link(body: &[u8]) -> Option<Link> {
    let all = attributes(body, 16);
    let of = |kind: u16| all.iter().find(|(other, _)| *other == kind).map(|(_, value)| *value);
    let name = of(3).and_then(|value| value.strip_suffix(&[0]))?;
    // IFLA_LINKINFO with IFLA_INFO_KIND.
    let kind = of(18).and_then(|info| attributes(info, 0).into_iter().find(|(kind, _)| *kind == 1));
    Some(Link {
        index: word(body, 4)?,
        name: String::from_utf8(name.to_vec()).ok()?,
        up: word(body, 8)? & 1 != 0,
        ethernet: field(body, 2).map(u16::from_ne_bytes) == Some(ETHERNET),
        mac: of(1).and_then(|value| field(value, 0)).unwrap_or_default(),
        mtu: of(4).and_then(|value| word(value, 0)).unwrap_or(1500),
        follows_addresses: kind.is_some_and(|(_, kind)| kind.starts_with(b"ipvlan")),
    })
}

/// What an interface has.
pub(super) fn seen(netlink: &mut Netlink, index: u32) -> Result<Seen, Errno> {
    let addresses = addresses(netlink, index)?;
    let tentative = addresses.iter().any(|(_, body)| body.get(2).is_some_and(|flags| flags & TENTATIVE != 0));
    let (routes, neighbours) = (routes(netlink, index)?, neighbours(netlink, index)?);
    Ok(Seen { addresses, routes, neighbours, tentative })
}

/// Its addresses. The messages are also those by which they are removed.
fn addresses(netlink: &mut Netlink, index: u32) -> Result<Vec<Told<Prefix>>, Errno> {
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

fn routes(netlink: &mut Netlink, index: u32) -> Result<Vec<Told<RouteConfig>>, Errno> {
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
        let route = RouteConfig {
            to: Prefix { ip, length },
            gateway: of(5).and_then(address),
            source: of(7).and_then(address),
            metric: of(6).and_then(|value| word(value, 0)).unwrap_or(0),
            scope,
            protocol,
        };
        found.push((route, body));
    }
    Ok(found)
}

fn neighbours(netlink: &mut Netlink, index: u32) -> Result<Vec<Told<NeighbourConfig>>, Errno> {
    let mut found = Vec::new();
    for body in netlink.dump(GETNEIGH, &[0; 12])? {
        let state = field(&body, 8).map_or(0, u16::from_ne_bytes);
        if word(&body, 4) != Some(index) || state & KNOWN == 0 {
            continue;
        }
        let all = attributes(&body, 12);
        let of = |kind: u16| all.iter().find(|(other, _)| *other == kind).map(|(_, value)| *value);
        if let (Some(ip), Some(mac)) = (of(1).and_then(address), of(2).and_then(|value| field(value, 0))) {
            let neighbour = NeighbourConfig { ip, mac, permanent: state & PERMANENT != 0 };
            found.push((neighbour, body));
        }
    }
    Ok(found)
}
