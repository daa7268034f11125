//! ICMP (RFC 792, 1122 3.2.2, 4443), neighbour discovery (RFC 4861) and membership of groups (RFC 2236, 2710).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smoltcp::wire::{EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpProtocol, NdiscNeighborFlags, NdiscRepr};

use super::frame;
use super::input::Incoming;
use super::output::seal6;
use super::tcp::segment::Seq;
use super::{Datagram, Interface, Stack};
use crate::error::Errno;
use crate::net::inet::{echo_arrives, udp_fails};
use crate::net::{Net, lock};

/// Errors that are told in a second (`net.ipv4.icmp_msgs_per_sec`), and at once.
const PER_SECOND: u32 = 1000;
const BURST: u32 = 50;
/// Bytes of a packet that an error quotes, with its headers (RFC 1812, 4.3.2.3; 4443, 3.1).
const QUOTED: [usize; 2] = [576 - 28, 1280 - 48];

const UNREACHABLE: u8 = 3;
const EXCEEDED: u8 = 11;
const PARAMETER: u8 = 12;

/// How many errors may be told.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    left: u32,
    since: Option<Instant>,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert_with(|| {
            self.left = BURST;
            now
        });
        let time = now.saturating_duration_since(since).min(Duration::from_secs(1));
        let fresh = u32::try_from(time.as_millis()).unwrap_or(0).saturating_mul(PER_SECOND) / 1000;
        if fresh > 0 {
            self.left = self.left.saturating_add(fresh).min(BURST);
            self.since = Some(now);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

/// What an error of IPv4 means, and whether it is final (`icmp_err_convert` of `net/ipv4/icmp.c`).
fn meaning4(kind: u8, code: u8) -> Option<(Errno, bool)> {
    Some(match (kind, code) {
        (UNREACHABLE, 0 | 5) => (Errno::ENETUNREACH, false),
        (UNREACHABLE, 1 | 12) => (Errno::EHOSTUNREACH, false),
        (UNREACHABLE, 2) => (Errno::ENOPROTOOPT, true),
        (UNREACHABLE, 3) => (Errno::ECONNREFUSED, true),
        (UNREACHABLE, 4) => (Errno::EMSGSIZE, false),
        (UNREACHABLE, 6 | 9) => (Errno::ENETUNREACH, true),
        (UNREACHABLE, 7) => (Errno::EHOSTDOWN, true),
        (UNREACHABLE, 8) => (Errno::ENONET, true),
        (UNREACHABLE, 11) => (Errno::ENETUNREACH, false),
        (UNREACHABLE, 10 | 13 | 14 | 15) => (Errno::EHOSTUNREACH, true),
        (EXCEEDED, _) => (Errno::EHOSTUNREACH, false),
        (PARAMETER, _) => (Errno::EPROTO, true),
        _ => return None,
    })
}

/// The same of IPv6 (`icmpv6_err_convert`).
fn meaning6(kind: u8, code: u8) -> Option<(Errno, bool)> {
    Some(match (kind, code) {
        (1, 0) => (Errno::ENETUNREACH, false),
        (1, 1 | 5 | 6) => (Errno::EACCES, true),
        (1, 4) => (Errno::ECONNREFUSED, true),
        (1, _) => (Errno::EHOSTUNREACH, false),
        (2, _) => (Errno::EMSGSIZE, false),
        (3, _) => (Errno::EHOSTUNREACH, false),
        (4, _) => (Errno::EPROTO, true),
        _ => return None,
    })
}

impl Stack {
    pub(super) fn icmp4(self: &Arc<Self>, net: &Net, incoming: &Incoming<'_>) -> Option<()> {
        let header: [u8; 8] = *incoming.bytes.first_chunk()?;
        if incoming.to.is_ipv6() || frame::plain_checksum(incoming.bytes) != 0 {
            return None;
        }
        match header[0] {
            // Who asks all of a network is not answered (`net.ipv4.icmp_echo_ignore_broadcasts`).
            8 if !incoming.to_all => self.echo(incoming),
            0 => {
                echo_arrives(net, incoming.bytes, incoming.from, incoming.to);
                Some(())
            }
            kind => {
                let mtu = usize::from(u16::from_be_bytes([header[6], header[7]]));
                let mtu = (header[0] == UNREACHABLE && header[1] == 4).then_some(mtu);
                self.report(incoming.bytes.get(8..)?, meaning4(kind, header[1])?, mtu);
                Some(())
            }
        }
    }

    /// Answers an echo request.
    fn echo(&self, incoming: &Incoming<'_>) -> Option<()> {
        let from = self.answer_from(incoming)?;
        let bytes = echo_answer(incoming.protocol, (from, incoming.from), incoming.bytes)?;
        self.answer(from, incoming, incoming.protocol, &bytes)
    }

    fn answer_from(&self, incoming: &Incoming<'_>) -> Option<IpAddr> {
        if incoming.to_all { incoming.link.source(incoming.from, incoming.from) } else { Some(incoming.to) }
    }

    fn answer(
        &self,
        from: IpAddr,
        incoming: &Incoming<'_>,
        protocol: IpProtocol,
        bytes: &[u8],
    ) -> Option<()> {
        let path = self.path(incoming.from, Some(from)).ok()?;
        let class = incoming.class;
        let whole = (incoming.from.is_ipv4() && bytes.len() > path.mtu).then_some(false);
        let datagram = Datagram { from, to: incoming.from, protocol, hops: None, class, whole, bytes };
        self.send_datagram(&path, &datagram).ok()
    }

    pub(super) fn icmp6(self: &Arc<Self>, net: &Net, incoming: &Incoming<'_>) -> Option<()> {
        let header: [u8; 8] = *incoming.bytes.first_chunk()?;
        let sum = frame::checksum(incoming.from, incoming.to, IpProtocol::Icmpv6, incoming.bytes);
        if incoming.to.is_ipv4() || sum != 0 && !incoming.trusted {
            return None;
        }
        match header[0] {
            128 => self.echo(incoming),
            129 => {
                echo_arrives(net, incoming.bytes, incoming.from, incoming.to);
                Some(())
            }
            130 => self.group_query(net, incoming),
            135 | 136 if incoming.hops == 255 => self.neighbour(incoming),
            // Routers may say what they like: addresses and routes are those of the pod.
            131..=137 | 143 => None,
            kind => {
                let number = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                let mtu = (kind == 2).then(|| usize::try_from(number).unwrap_or(usize::MAX));
                self.report(incoming.bytes.get(8..)?, meaning6(kind, header[1])?, mtu);
                Some(())
            }
        }
    }

    /// Neighbour discovery (RFC 4861, 7.2).
    fn neighbour(&self, incoming: &Incoming<'_>) -> Option<()> {
        let packet = Icmpv6Packet::new_checked(incoming.bytes).ok()?;
        let (from, to) = match (incoming.from, incoming.to) {
            (IpAddr::V6(from), IpAddr::V6(to)) => (from, to),
            _ => return None,
        };
        let ignored = smoltcp::phy::ChecksumCapabilities::ignored();
        let Icmpv6Repr::Ndisc(repr) = Icmpv6Repr::parse(&from, &to, &packet, &ignored).ok()? else {
            return None;
        };
        let mac_of = |address: Option<smoltcp::wire::RawHardwareAddress>| {
            let mac: [u8; 6] = address?.as_bytes().try_into().ok()?;
            EthernetAddress(mac).is_unicast().then_some(mac)
        };
        match repr {
            NdiscRepr::NeighborSolicit { target_addr, lladdr } if incoming.link.has(target_addr.into()) => {
                let asker = mac_of(lladdr).filter(|_| !from.is_unspecified());
                if let Some(mac) = asker {
                    self.learned(incoming.link, from.into(), mac, true);
                }
                let mut flags = NdiscNeighborFlags::OVERRIDE;
                // Whoever looks whether the address is free is answered in front of all.
                let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                let target = if from.is_unspecified() { all } else { from };
                flags.set(NdiscNeighborFlags::SOLICITED, !from.is_unspecified());
                let lladdr = Some(EthernetAddress(incoming.link.mac()).into());
                let repr = NdiscRepr::NeighborAdvert { flags, target_addr, lladdr };
                self.send_ndisc(incoming.link, (target_addr.into(), target.into()), &repr, asker);
                Some(())
            }
            NdiscRepr::NeighborAdvert { target_addr, lladdr, .. }
                if !incoming.link.has(target_addr.into()) =>
            {
                // An answer to whoever was asked by its hardware address need not repeat that.
                let known = || {
                    incoming
                        .link
                        .known()
                        .into_iter()
                        .find(|(ip, ..)| *ip == IpAddr::from(target_addr))
                        .map(|(_, mac, ..)| mac)
                };
                let mac = mac_of(lladdr).or_else(known)?;
                self.learned(incoming.link, target_addr.into(), mac, false);
                Some(())
            }
            _ => None,
        }
    }

    /// Tells who sent a packet that it did not arrive: `quoted` is its beginning.
    pub(super) fn report(&self, quoted: &[u8], (errno, fatal): (Errno, bool), mtu: Option<usize>) {
        let _ = self.report_to(quoted, (errno, fatal), mtu);
    }

    fn report_to(&self, quoted: &[u8], (errno, fatal): (Errno, bool), mtu: Option<usize>) -> Option<()> {
        let (from, to, protocol, rest) = quoted_header(quoted)?;
        let net = self.net.upgrade()?;
        if !net.is_own(from) {
            return None;
        }
        let [a, b, c, d, seq @ ..] = *rest.first_chunk::<8>()?;
        let from = SocketAddr::new(from, u16::from_be_bytes([a, b]));
        let to = SocketAddr::new(to, u16::from_be_bytes([c, d]));
        match IpProtocol::from(protocol) {
            IpProtocol::Tcp => {
                // Only who sees the connection's segments knows where it is (RFC 5927, 4.1).
                let connection = self.connection([from, to])?;
                let seq = Seq(u32::from_be_bytes(seq));
                if let Some(mtu) = mtu {
                    let mtu = self.shorten(to.ip(), mtu)?;
                    connection.shrink(mtu);
                } else {
                    connection.unreachable(seq, errno, fatal || !matches!(errno, Errno::EMSGSIZE));
                }
            }
            IpProtocol::Udp => {
                if let Some(mtu) = mtu {
                    self.shorten(to.ip(), mtu);
                }
                udp_fails(&net, from, to, errno, fatal);
            }
            _ => {}
        }
        Some(())
    }

    fn send_error(&self, incoming: &Incoming<'_>, kind: u8, code: u8) {
        let errors_only = |protocol| matches!(protocol, IpProtocol::Icmp | IpProtocol::Icmpv6);
        if incoming.to_all || errors_only(incoming.protocol) || !lock(&self.errors).take(Instant::now()) {
            return;
        }
        let wide = incoming.to.is_ipv6();
        let quoted = incoming.whole.get(..QUOTED[usize::from(wide)]).unwrap_or(incoming.whole);
        let mut bytes = vec![kind, code, 0, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(quoted);
        if wide {
            seal6(incoming.to, incoming.from, &mut bytes);
            self.answer(incoming.to, incoming, IpProtocol::Icmpv6, &bytes);
            return;
        }
        let sum = frame::plain_checksum(&bytes);
        if let Some(place) = bytes.get_mut(2..4) {
            place.copy_from_slice(&sum.to_be_bytes());
        }
        self.answer(incoming.to, incoming, IpProtocol::Icmp, &bytes);
    }

    /// Nobody has the port of a datagram.
    pub(super) fn port_unreachable(&self, incoming: &Incoming<'_>) {
        let (kind, code) = if incoming.to.is_ipv6() { (1, 4) } else { (UNREACHABLE, 3) };
        self.send_error(incoming, kind, code);
    }

    /// Nobody has the protocol of a packet.
    pub(super) fn unknown_protocol(&self, incoming: &Incoming<'_>) {
        let (kind, code) = if incoming.to.is_ipv6() { (4, 1) } else { (UNREACHABLE, 2) };
        self.send_error(incoming, kind, code);
    }

    /// A router asks which groups are heard here.
    pub(super) fn group_query(&self, net: &Net, incoming: &Incoming<'_>) -> Option<()> {
        let wide = incoming.to.is_ipv6();
        let asked: IpAddr = if wide {
            Ipv6Addr::from(*incoming.bytes.get(8..)?.first_chunk::<16>()?).into()
        } else {
            if incoming.bytes.first() != Some(&0x11) || frame::plain_checksum(incoming.bytes) != 0 {
                return None;
            }
            Ipv4Addr::from(*incoming.bytes.get(4..)?.first_chunk::<4>()?).into()
        };
        let groups = net.inet.groups(wide);
        for group in groups.into_iter().filter(|group| asked.is_unspecified() || asked == *group) {
            self.tell_group(incoming.link, group, true);
        }
        Some(())
    }

    /// Tells routers that a group is heard here, or no more (RFC 2236: version 2; RFC 2710: version 1, which all understand).
    pub(crate) fn tell_group(&self, link: &Arc<Interface>, group: IpAddr, joins: bool) {
        let Some(from) = link
            .source(IpAddr::from([0xff02_u16, 0, 0, 0, 0, 0, 0, 1]), group)
            .filter(|_| group.is_ipv6())
            .or_else(|| link.source(group, group))
        else {
            return;
        };
        let (to, protocol, bytes): (IpAddr, _, Vec<u8>) = match group {
            IpAddr::V4(ip) if ip != Ipv4Addr::new(224, 0, 0, 1) => {
                let mut bytes = vec![if joins { 0x16 } else { 0x17 }, 0, 0, 0];
                bytes.extend_from_slice(&ip.octets());
                let sum = frame::plain_checksum(&bytes);
                bytes.splice(2..4, sum.to_be_bytes());
                let to = if joins { ip } else { Ipv4Addr::new(224, 0, 0, 2) };
                (to.into(), IpProtocol::Igmp, bytes)
            }
            IpAddr::V6(ip) if ip.octets()[1] & 0xf > 1 => {
                let mut bytes = vec![if joins { 131 } else { 132 }, 0, 0, 0, 0, 0, 0, 0];
                bytes.extend_from_slice(&ip.octets());
                let to = if joins { ip } else { Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2) };
                seal6(from, to.into(), &mut bytes);
                (to.into(), IpProtocol::Icmpv6, bytes)
            }
            _ => return,
        };
        let (mtu, generation) = (link.mtu() as usize, self.generation());
        let path = super::Path { link: Arc::clone(link), next_hop: to, source: from, mtu, generation };
        let datagram = Datagram { from, to, protocol, hops: Some(1), class: 0, whole: None, bytes: &bytes };
        let _ = self.send_datagram(&path, &datagram);
    }

    /// Groups by which neighbours ask for the addresses of an interface: bridges that look on pass on only what is asked for.
    pub(super) fn tell_own_groups(&self, link: &Arc<Interface>) {
        let addresses = link.with(|config| config.addresses.clone());
        for prefix in addresses {
            if let IpAddr::V6(ip) = prefix.ip {
                self.tell_group(link, Self::solicited(ip).into(), true);
            }
        }
    }

    /// A group is heard, or no more: on the interface with this number, or on the first.
    pub(crate) fn join(&self, group: IpAddr, number: u32, joins: bool) {
        let fits = |link: &&Arc<Interface>| number == 0 || link.number() == number;
        if let Some(link) = self.interfaces().iter().find(fits) {
            self.tell_group(link, group, joins);
        }
    }
}

/// The answer to an echo request, from an address to another; `None` where it is no request.
pub(crate) fn echo_answer(
    protocol: IpProtocol,
    (from, to): (IpAddr, IpAddr),
    request: &[u8],
) -> Option<Vec<u8>> {
    let kind = match (protocol, request.first()?) {
        (IpProtocol::Icmp, 8) => 0,
        (IpProtocol::Icmpv6, 128) => 129,
        _ => return None,
    };
    let mut bytes = request.to_vec();
    *bytes.first_mut()? = kind;
    bytes.get_mut(2..4)?.fill(0);
    if protocol == IpProtocol::Icmpv6 {
        seal6(from, to, &mut bytes);
    } else {
        let sum = frame::plain_checksum(&bytes);
        bytes.get_mut(2..4)?.copy_from_slice(&sum.to_be_bytes());
    }
    Some(bytes)
}

/// Header of a packet that is quoted: from, to, protocol, what comes after.
fn quoted_header(bytes: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    match bytes.first()? >> 4 {
        4 => {
            let header: &[u8; 20] = bytes.first_chunk()?;
            let ip = |at: usize| Some(Ipv4Addr::from(*header.get(at..)?.first_chunk::<4>()?).into());
            let length = usize::from(header[0] & 0xf).saturating_mul(4);
            // Of a later part there are no ports.
            if u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0 {
                return None;
            }
            Some((ip(12)?, ip(16)?, header[9], bytes.get(length.max(20)..)?))
        }
        6 => {
            let (header, rest) = bytes.split_first_chunk::<40>()?;
            let ip = |at: usize| Some(Ipv6Addr::from(*header.get(at..)?.first_chunk::<16>()?).into());
            Some((ip(8)?, ip(24)?, header[6], rest))
        }
        _ => None,
    }
}
