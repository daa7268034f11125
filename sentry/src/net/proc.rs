//! Texts of `/proc/net` (`man 5 proc_net`). Addresses of the host's byte order, as Linux prints them.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Net;
use super::address::{Address, UnixName};
use super::interfaces::addresses;
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
    for (number, (socket, description)) in told.enumerate() {
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

/// `/proc/net/dev`: nothing is counted, for there are no packets.
#[must_use]
pub fn dev(_net: &Net) -> Vec<u8> {
    b"Inter-|   Receive                                                |  Transmit\n \
      face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
      lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n"
        .to_vec()
}

/// `/proc/net/if_inet6`.
#[must_use]
pub fn if_inet6(net: &Net) -> Vec<u8> {
    let mut text = String::new();
    for (ip, prefix) in addresses(net) {
        let IpAddr::V6(ip) = ip else { continue };
        ip.octets().iter().for_each(|byte| {
            let _ = write!(text, "{byte:02x}");
        });
        let scope = if ip.is_loopback() { 0x10 } else { 0 };
        let _ = writeln!(text, " 01 {prefix:02x} {scope:02x} 80       lo");
    }
    text.into_bytes()
}

/// `/proc/net/route`: the table `main`, which is empty.
#[must_use]
pub fn route(_net: &Net) -> Vec<u8> {
    let columns = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT";
    format!("{columns:<127}\n").into_bytes()
}

/// `/proc/net/arp`.
#[must_use]
pub fn arp(_net: &Net) -> Vec<u8> {
    b"IP address       HW type     Flags       HW address            Mask     Device\n".to_vec()
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
