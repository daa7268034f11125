//! Texts of `/proc/net` (`man 5 proc_net`). Addresses of the host's byte order, as Linux prints them.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Net;
use super::address::{Address, UnixName};
use super::interfaces;
use super::socket::{Description, Socket};

/// Sockets of a domain, a type and a protocol, described.
fn sockets(net: &Net, fits: impl Fn(&dyn Socket) -> bool) -> Vec<(Arc<dyn Socket>, Description)> {
    let all = net.all().into_iter().filter(|socket| fits(socket.as_ref()));
    all.map(|socket| (Arc::clone(&socket), socket.describe())).collect()
}

/// `/proc/net/unix`.
#[must_use]
pub fn unix(net: &Net) -> Vec<u8> {
    let mut text = b"Num       RefCount Protocol Flags    Type St Inode Path\n".to_vec();
    for (socket, description) in sockets(net, |socket| socket.common().domain == libc::AF_UNIX) {
        let common = socket.common();
        let flags = if description.listening { 0x10000 } else { 0 };
        let state = if description.state == 1 { 3 } else { 1 };
        let line = format!(
            "0000000000000000: {:08X} {:08X} {flags:08X} {:04X} {state:02X} {:5}",
            2,
            0,
            common.kind,
            common.id()
        );
        text.extend_from_slice(line.as_bytes());
        match description.local {
            Some(Address::Unix(UnixName::Path(path))) => {
                text.push(b' ');
                text.extend_from_slice(&path);
            }
            Some(Address::Unix(UnixName::Abstract(name))) => {
                text.extend_from_slice(b" @");
                text.extend(name.iter().map(|byte| if *byte == 0 { b'@' } else { *byte }));
            }
            _ => {}
        }
        text.push(b'\n');
    }
    text
}

fn inet_address(address: Option<&Address>, wide: bool) -> String {
    let address = match address {
        Some(Address::Inet(address)) => *address,
        _ => SocketAddr::new(IpAddr::from([0; 4]), 0),
    };
    let mut text = String::new();
    let mut word = |bytes: [u8; 4]| {
        let _ = write!(text, "{:08X}", u32::from_ne_bytes(bytes));
    };
    match (address.ip(), wide) {
        (IpAddr::V4(ip), false) => word(ip.octets()),
        (IpAddr::V4(ip), true) if ip.is_unspecified() => (0..4).for_each(|_| word([0; 4])),
        (IpAddr::V4(ip), true) => {
            ip.to_ipv6_mapped().octets().as_chunks().0.iter().for_each(|part| word(*part))
        }
        (IpAddr::V6(ip), _) => ip.octets().as_chunks().0.iter().for_each(|part| word(*part)),
    }
    let _ = write!(text, ":{:04X}", address.port());
    text
}

/// A table of Internet sockets.
fn inet(net: &Net, domain: i32, protocol: i32) -> Vec<u8> {
    let wide = domain == libc::AF_INET6;
    let column = if wide {
        "local_address                         remote_address                       "
    } else {
        "local_address rem_address  "
    };
    let tail = if protocol == libc::IPPROTO_TCP { "" } else { " ref pointer drops" };
    // Tables of datagrams of IPv4 are one column further to the right (`udp4_seq_show`).
    let lead = if wide || protocol == libc::IPPROTO_TCP { "" } else { " " };
    let mut text = format!(
        "{lead}  sl  {column} st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode{tail}\n"
    );
    let fits = |socket: &dyn Socket| {
        let common = socket.common();
        common.domain == domain && common.protocol == protocol
    };
    let described = sockets(net, fits);
    let told = described.iter().filter(|(_, description)| description.local.is_some());
    let mut told_before = 0_usize;
    for (number, (socket, description)) in told.enumerate() {
        told_before = number.saturating_add(1);
        let common = socket.common();
        let (local, peer) = (description.local.as_ref(), description.peer.as_ref());
        let _ = writeln!(
            text,
            "{lead}{number:4}: {} {} {:02X} {:08X}:{:08X} 00:00000000 00000000 {:5}        0 {} 2 0000000000000000 {}",
            inet_address(local, wide),
            inet_address(peer, wide),
            description.state,
            description.unsent,
            description.unread,
            common.owner.uid,
            common.id(),
            if protocol == libc::IPPROTO_TCP { "20 4 0 10 -1" } else { "0" },
        );
    }
    let past =
        net.stack().filter(|_| protocol == libc::IPPROTO_TCP).map(|stack| stack.past()).unwrap_or_default();
    let past = past.into_iter().filter(|[local, _]| local.is_ipv6() == wide);
    for (number, [local, peer]) in past.enumerate() {
        let (local, peer) = (Address::Inet(local), Address::Inet(peer));
        let _ = writeln!(
            text,
            "{:4}: {} {} 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0000000000000000",
            told_before.saturating_add(number),
            inet_address(Some(&local), wide),
            inet_address(Some(&peer), wide),
        );
    }
    text.into_bytes()
}

/// `/proc/net/tcp`.
#[must_use]
pub fn tcp(net: &Net) -> Vec<u8> {
    inet(net, libc::AF_INET, libc::IPPROTO_TCP)
}

/// `/proc/net/tcp6`.
#[must_use]
pub fn tcp6(net: &Net) -> Vec<u8> {
    inet(net, libc::AF_INET6, libc::IPPROTO_TCP)
}

/// `/proc/net/udp`.
#[must_use]
pub fn udp(net: &Net) -> Vec<u8> {
    inet(net, libc::AF_INET, libc::IPPROTO_UDP)
}

/// `/proc/net/udp6`.
#[must_use]
pub fn udp6(net: &Net) -> Vec<u8> {
    inet(net, libc::AF_INET6, libc::IPPROTO_UDP)
}

/// `/proc/net/netlink`.
#[must_use]
pub fn netlink(net: &Net) -> Vec<u8> {
    let mut text = String::from(
        "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n",
    );
    for (socket, description) in sockets(net, |socket| socket.common().domain == libc::AF_NETLINK) {
        let Some(Address::Netlink(port, groups)) = description.local else { continue };
        let common = socket.common();
        let _ = writeln!(
            text,
            "0000000000000000 {:<3} {port:<10} {groups:08x} {:<8} {:<8} {:<5} {:<8} {:<8} {:<8}",
            common.protocol,
            description.unread,
            0,
            0,
            2,
            0,
            common.id(),
        );
    }
    text.into_bytes()
}

/// `/proc/net/dev`. Nothing is counted of `lo`, for there are no packets.
#[must_use]
pub fn dev(net: &Net) -> Vec<u8> {
    let mut text = String::from(
        "Inter-|   Receive                                                |  Transmit\n \
         face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n",
    );
    for told in interfaces::all(net) {
        let [received, sent, dropped] = told.counted;
        let _ = writeln!(
            text,
            "{:>6}: {:7} {:7} {:4} {:4} {:4} {:5} {:10} {:9} {:8} {:7} {:4} {:4} {:4} {:5} {:7} {:10}",
            told.name,
            received[1],
            received[0],
            0,
            dropped[0],
            0,
            0,
            0,
            0,
            sent[1],
            sent[0],
            0,
            dropped[1],
            0,
            0,
            0,
            0
        );
    }
    text.into_bytes()
}

/// `/proc/net/if_inet6`.
#[must_use]
pub fn if_inet6(net: &Net) -> Vec<u8> {
    let mut text = String::new();
    for told in interfaces::all(net) {
        for prefix in &told.addresses {
            let IpAddr::V6(ip) = prefix.ip else { continue };
            let scope = match ip {
                ip if ip.is_loopback() => 0x10,
                ip if ip.is_unicast_link_local() => 0x20,
                _ => 0,
            };
            let (number, length, name) = (told.number, prefix.length, &told.name);
            let _ =
                writeln!(text, "{:032x} {number:02x} {length:02x} {scope:02x} 80 {name:>8}", u128::from(ip));
        }
    }
    text.into_bytes()
}

/// `/proc/net/route`: the table `main` of IPv4.
#[must_use]
pub fn route(net: &Net) -> Vec<u8> {
    let columns = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT";
    let mut text = format!("{columns:<127}\n");
    let word = |ip: std::net::Ipv4Addr| u32::from_ne_bytes(ip.octets());
    for told in interfaces::all(net) {
        for route in &told.routes {
            let IpAddr::V4(to) = route.to.ip else { continue };
            let gateway = match route.gateway {
                Some(IpAddr::V4(ip)) => word(ip),
                _ => 0,
            };
            // RTF_UP, RTF_GATEWAY, RTF_HOST.
            let flags = 1 | u32::from(route.gateway.is_some()) << 1 | u32::from(route.to.length == 32) << 2;
            let line = format!(
                "{}\t{:08X}\t{gateway:08X}\t{flags:04X}\t0\t0\t{}\t{:08X}\t0\t0\t0",
                told.name,
                word(to),
                route.metric,
                word(route.to.mask())
            );
            let _ = writeln!(text, "{line:<127}");
        }
    }
    text.into_bytes()
}

/// `/proc/net/ipv6_route`: the tables `main` and `local`.
#[must_use]
pub fn ipv6_route(net: &Net) -> Vec<u8> {
    let mut text = String::new();
    let mut line = |to: u128, length: u8, gateway: u128, (metric, flags): (u32, u32), name: &str| {
        // Routes to own addresses are referred to once more.
        let references = 1 + (flags >> 31);
        let _ = writeln!(
            text,
            "{to:032x} {length:02x} {:032x} 00 {gateway:032x} {metric:08x} {references:08x} 00000000 {flags:08x} {name:>8}",
            0
        );
    };
    let wide = |ip: IpAddr| match ip {
        IpAddr::V6(ip) => Some(u128::from(ip)),
        IpAddr::V4(_) => None,
    };
    for told in interfaces::all(net) {
        for route in &told.routes {
            let Some(to) = wide(route.to.ip) else { continue };
            let gateway = route.gateway.and_then(wide);
            let flags = 1 | u32::from(gateway.is_some()) << 1;
            line(to, route.to.length, gateway.unwrap_or(0), (route.metric, flags), &told.name);
        }
    }
    // RTF_UP | RTF_NONEXTHOP | RTF_LOCAL.
    for told in interfaces::all(net) {
        for ip in told.addresses.iter().filter_map(|prefix| wide(prefix.ip)) {
            line(ip, 128, 0, (0, 0x8020_0001), &told.name);
        }
    }
    text.into_bytes()
}

/// `/proc/net/arp`.
#[must_use]
pub fn arp(net: &Net) -> Vec<u8> {
    let mut text =
        String::from("IP address       HW type     Flags       HW address            Mask     Device\n");
    for link in net.interfaces() {
        for (ip, mac, permanent, _) in link.known().into_iter().filter(|(ip, ..)| ip.is_ipv4()) {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            // ATF_COM, ATF_PERM.
            let flags = if permanent { 6 } else { 2 };
            let _ = writeln!(
                text,
                "{:<16} 0x1         0x{flags:x}         {mac:>17}     *        {}",
                ip.to_string(),
                link.name()
            );
        }
    }
    text.into_bytes()
}

/// `/proc/net/raw`: there are no raw sockets.
#[must_use]
pub fn raw(net: &Net) -> Vec<u8> {
    inet(net, libc::AF_INET, libc::IPPROTO_RAW)
}

/// `/proc/net/packet`: there are no packet sockets.
#[must_use]
pub fn packet(_net: &Net) -> Vec<u8> {
    b"sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n".to_vec()
}

/// `/proc/net/sockstat`.
#[must_use]
pub fn sockstat(net: &Net) -> Vec<u8> {
    let all = net.all();
    let count = |protocol: i32| all.iter().filter(|socket| socket.common().protocol == protocol).count();
    let pages = net.bytes.used() / 4096;
    format!(
        "sockets: used {}\nTCP: inuse {} orphan 0 tw 0 alloc {} mem {pages}\nUDP: inuse {} mem 0\n\
         UDPLITE: inuse 0\nRAW: inuse 0\nFRAG: inuse 0 memory 0\n",
        net.sockets.used(),
        count(libc::IPPROTO_TCP),
        count(libc::IPPROTO_TCP),
        count(libc::IPPROTO_UDP),
    )
    .into_bytes()
}
