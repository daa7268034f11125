//! What `NETLINK_ROUTE` tells of interfaces, addresses, routes and neighbours (`man 7 rtnetlink`, `include/uapi/linux/rtnetlink.h`).

use std::net::IpAddr;

use super::super::Net;
use super::super::interfaces::{self, Told};
use super::super::stack::{Prefix, RouteConfig};
use crate::net::inet::{self, Route};

/// `RT_TABLE_LOCAL`, `RT_TABLE_MAIN`.
const LOCAL: u8 = 255;
const MAIN: u8 = 254;
/// `RT_SCOPE_HOST`, `RT_SCOPE_LINK`.
const HOST: u8 = 254;
const LINK: u8 = 253;
/// `RTPROT_KERNEL`.
const KERNEL: u8 = 2;
/// `NUD_PERMANENT`, `NUD_REACHABLE`, `NUD_STALE`.
const STATES: [u16; 3] = [0x80, 2, 4];

/// Adds an attribute (`struct rtattr`).
pub(super) fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub(super) fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}

fn text(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// `struct ifinfomsg` and attributes of an interface.
pub(super) fn link(told: &Told) -> Vec<u8> {
    let mut body = vec![0, 0];
    body.extend_from_slice(&told.kind().to_ne_bytes());
    body.extend_from_slice(&told.number.to_ne_bytes());
    // IFF_LOWER_UP besides.
    body.extend_from_slice(&(0x1_0000 | u32::from(told.flags.unsigned_abs())).to_ne_bytes());
    body.extend_from_slice(&[0; 4]);
    attribute(&mut body, 3, &text(&told.name));
    attribute(&mut body, 13, &1000u32.to_ne_bytes());
    // IFLA_OPERSTATE, IFLA_LINKMODE: unknown or up, default.
    attribute(&mut body, 16, &[if told.mac.is_some() { 6 } else { 0 }]);
    attribute(&mut body, 17, &[0]);
    attribute(&mut body, 4, &told.mtu.to_ne_bytes());
    attribute(&mut body, 27, &0u32.to_ne_bytes());
    attribute(&mut body, 31, &1u32.to_ne_bytes());
    attribute(&mut body, 32, &1u32.to_ne_bytes());
    attribute(&mut body, 33, &[1]);
    attribute(&mut body, 6, b"noqueue\0");
    attribute(&mut body, 1, &told.mac.unwrap_or_default());
    attribute(&mut body, 2, &told.mac.map_or([0; 6], |_| [0xff; 6]));
    // Packets, bytes, errors, dropped: each received and sent (`struct rtnl_link_stats64`, and of 32 bits).
    let [received, sent, dropped] = told.counted;
    let counts = [received[0], sent[0], received[1], sent[1], 0, 0, dropped[0], dropped[1]];
    let mut narrow: Vec<u8> = counts.iter().flat_map(|count| (*count as u32).to_ne_bytes()).collect();
    narrow.resize(96, 0);
    attribute(&mut body, 7, &narrow);
    let mut wide: Vec<u8> = counts.iter().flat_map(|count| count.to_ne_bytes()).collect();
    wide.resize(192, 0);
    attribute(&mut body, 23, &wide);
    body
}

/// `struct ifaddrmsg` and attributes.
pub(super) fn address(told: &Told, prefix: Prefix) -> Vec<u8> {
    let ip = prefix.ip;
    let scope = match ip {
        _ if ip.is_loopback() => HOST,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => LINK,
        _ => 0,
    };
    let mut body = vec![family(ip), prefix.length, 0x80, scope];
    body.extend_from_slice(&told.number.to_ne_bytes());
    attribute(&mut body, 1, &octets(ip));
    if ip.is_ipv4() {
        attribute(&mut body, 2, &octets(ip));
        if let (Some(broadcast), Some(_)) = (prefix.broadcast(), told.mac) {
            attribute(&mut body, 4, &broadcast.octets());
        }
        attribute(&mut body, 3, &text(&told.name));
    }
    attribute(&mut body, 8, &0x80u32.to_ne_bytes());
    // No end of its life: preferred, valid, made, changed.
    let life = [u32::MAX.to_ne_bytes(), u32::MAX.to_ne_bytes(), [0; 4], [0; 4]].concat();
    attribute(&mut body, 6, &life);
    body
}

/// `struct rtmsg` and attributes.
fn entry(number: u32, route: &RouteConfig, [table, kind]: [u8; 2], source: Option<IpAddr>) -> Vec<u8> {
    let to = route.to;
    let mut body = vec![family(to.ip), to.length, 0, 0, table, route.protocol, route.scope, kind, 0, 0, 0, 0];
    attribute(&mut body, 15, &u32::from(table).to_ne_bytes());
    if to.length > 0 {
        attribute(&mut body, 1, &octets(to.ip));
    }
    if route.metric > 0 {
        attribute(&mut body, 6, &route.metric.to_ne_bytes());
    }
    if let Some(gateway) = route.gateway {
        attribute(&mut body, 5, &octets(gateway));
    }
    if let Some(source) = source {
        attribute(&mut body, 7, &octets(source));
    }
    attribute(&mut body, 4, &number.to_ne_bytes());
    body
}

/// All routes: what is outside, then what is ours.
pub(super) fn routes(net: &Net, fits: impl Fn(&IpAddr) -> bool) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for told in interfaces::all(net) {
        for route in told.routes.iter().filter(|route| fits(&route.to.ip)) {
            all.push(entry(told.number, route, [MAIN, 1], route.source));
        }
    }
    for told in interfaces::all(net) {
        for prefix in told.addresses.iter().filter(|prefix| fits(&prefix.ip)) {
            all.push(own(&told, *prefix));
        }
    }
    all
}

/// The route to an address of ours.
fn own(told: &Told, prefix: Prefix) -> Vec<u8> {
    let ip = prefix.ip;
    let to = match ip {
        IpAddr::V4(ip) if ip.is_loopback() && prefix.length == 8 => {
            Prefix { ip: IpAddr::from([ip.octets()[0], 0, 0, 0]), length: 8 }
        }
        ip => Prefix { ip, length: if ip.is_ipv4() { 32 } else { 128 } },
    };
    let scope = if ip.is_ipv4() { HOST } else { 0 };
    let route = RouteConfig { to, gateway: None, source: None, metric: 0, scope, protocol: KERNEL };
    entry(told.number, &route, [LOCAL, 2], ip.is_ipv4().then_some(ip))
}

/// The route that leads to an address, as `ip route get` asks for it.
pub(super) fn route_to(net: &Net, to: IpAddr) -> Result<Vec<u8>, crate::error::Errno> {
    let whole = Prefix { ip: to, length: if to.is_ipv4() { 32 } else { 128 } };
    let route =
        |gateway, scope| RouteConfig { to: whole, gateway, source: None, metric: 0, scope, protocol: 0 };
    let mut found = match inet::route(net, to)? {
        Route::Outside(path) => {
            let gateway = Some(path.next_hop).filter(|hop| *hop != to);
            entry(path.link.number(), &route(gateway, 0), [MAIN, 1], Some(path.source))
        }
        Route::Own(source) => entry(interfaces::LOOPBACK_INDEX, &route(None, HOST), [LOCAL, 2], Some(source)),
        Route::Broadcast => entry(interfaces::LOOPBACK_INDEX, &route(None, LINK), [LOCAL, 3], None),
        Route::Group => {
            let number = interfaces::all(net).last().map_or(interfaces::LOOPBACK_INDEX, |told| told.number);
            entry(number, &route(None, 0), [MAIN, 5], None)
        }
    };
    // RTM_F_CLONED: it is no entry of a table.
    if let Some(flags) = found.get_mut(8..12) {
        flags.copy_from_slice(&0x200_u32.to_ne_bytes());
    }
    Ok(found)
}

/// `struct ndmsg` and attributes of all neighbours.
pub(super) fn neighbours(net: &Net, fits: impl Fn(&IpAddr) -> bool) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for link in net.interfaces() {
        for (ip, mac, permanent, lately) in link.known().into_iter().filter(|(ip, ..)| fits(ip)) {
            let state = match (permanent, lately) {
                (true, _) => STATES[0],
                (false, true) => STATES[1],
                (false, false) => STATES[2],
            };
            let mut body = vec![family(ip), 0, 0, 0];
            body.extend_from_slice(&link.number().to_ne_bytes());
            body.extend_from_slice(&state.to_ne_bytes());
            body.extend_from_slice(&[0, 1]);
            attribute(&mut body, 1, &octets(ip));
            attribute(&mut body, 2, &mac);
            all.push(body);
        }
    }
    all
}
