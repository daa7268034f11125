//! What comes: frames, packets, datagrams.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet, Ipv6Packet, UdpPacket,
};

use super::device::Frame;
use super::interface::Counters;
use super::tcp::segment;
use super::{Datagram, Interface, Stack, frame};
use crate::net::inet::{Arrival, RawPacket, udp_arrives};
use crate::net::{Net, lock};

/// Headers between that of IPv6 and what it carries, at most.
const EXTENSIONS: usize = 8;

/// A packet that is ours, without its header.
#[derive(Clone, Copy)]
pub(super) struct Incoming<'a> {
    pub(super) link: &'a Arc<Interface>,
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) protocol: IpProtocol,
    pub(super) hops: u8,
    pub(super) class: u8,
    /// It was sent to all of a network, or to a group.
    pub(super) to_all: bool,
    /// See [`Frame`].
    pub(super) trusted: bool,
    pub(super) datagrams: u16,
    pub(super) bytes: &'a [u8],
    /// With its header, as far as it came in one.
    pub(super) whole: &'a [u8],
}

impl Incoming<'_> {
    /// As if we sent it.
    fn as_datagram(&self) -> Datagram<'_> {
        Datagram {
            from: self.from,
            to: self.to,
            protocol: self.protocol,
            hops: Some(self.hops),
            class: self.class,
            whole: None,
            bytes: self.bytes,
        }
    }
}

impl Stack {
    /// A frame came.
    pub(super) fn input(self: &Arc<Self>, link: &Arc<Interface>, frame: Frame<'_>) {
        Counters::count(&link.counters.received, frame.bytes.len());
        let taken = self.take(link, frame);
        if taken.is_none() {
            link.counters.drop_one(false);
        }
    }

    fn take(self: &Arc<Self>, link: &Arc<Interface>, frame: Frame<'_>) -> Option<()> {
        let ethernet = EthernetFrame::new_checked(frame.bytes).ok()?;
        let to = ethernet.dst_addr();
        if to.is_unicast() && to.0 != link.mac() || ethernet.src_addr().0 == link.mac() {
            return None;
        }
        match ethernet.ethertype() {
            EthernetProtocol::Arp => self.arp(link, ethernet.payload()),
            EthernetProtocol::Ipv4 => self.ipv4(link, ethernet.payload(), frame),
            EthernetProtocol::Ipv6 => self.ipv6(link, ethernet.payload(), frame),
            EthernetProtocol::Unknown(_) => None,
        }
    }

    fn arp(&self, link: &Arc<Interface>, bytes: &[u8]) -> Option<()> {
        let packet = ArpPacket::new_checked(bytes).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: mac,
            source_protocol_addr: from,
            target_protocol_addr: to,
            ..
        } = ArpRepr::parse(&packet).ok()?
        else {
            return None;
        };
        let for_us = link.has(to.into());
        let asks = operation == ArpOperation::Request && for_us;
        if mac.is_unicast() && !from.is_unspecified() && !link.has(from.into()) {
            self.learned(link, from.into(), mac.0, asks);
        }
        if asks {
            self.send_arp(link, ArpOperation::Reply, (to, from), mac);
        }
        Some(())
    }

    /// Somebody's hardware address is known now: what waited for it goes.
    pub(super) fn learned(&self, link: &Arc<Interface>, ip: IpAddr, mac: [u8; 6], asks: bool) {
        let waiting = lock(&link.neighbours).learn(ip, mac, asks, Instant::now());
        for mut frame in waiting {
            let _ = self.send_frame(link, &mut frame, mac, ip.is_ipv6());
        }
    }

    fn ipv4(self: &Arc<Self>, link: &Arc<Interface>, bytes: &[u8], frame: Frame<'_>) -> Option<()> {
        let packet = Ipv4Packet::new_checked(bytes).ok()?;
        if packet.version() != 4 || packet.header_len() < 20 || !packet.verify_checksum() {
            return None;
        }
        let whole = bytes.get(..usize::from(packet.total_len()))?;
        let (from, to): (IpAddr, IpAddr) = (packet.src_addr().into(), packet.dst_addr().into());
        let to_all = self.is_for_us(link, from, to)?;
        let mut incoming = Incoming {
            link,
            from,
            to,
            protocol: packet.next_header(),
            hops: packet.hop_limit(),
            class: packet.dscp() << 2 | packet.ecn(),
            to_all,
            trusted: frame.trusted,
            datagrams: frame.datagrams,
            bytes: packet.payload(),
            whole,
        };
        if !packet.more_frags() && packet.frag_offset() == 0 {
            return self.deliver(incoming);
        }
        let key = (from, to, u32::from(packet.ident()), u8::from(packet.next_header()));
        let (offset, more) = (usize::from(packet.frag_offset()), packet.more_frags());
        let put = lock(&self.fragments).add(key, offset, more, packet.payload(), Instant::now());
        if let Some(bytes) = put {
            (incoming.bytes, incoming.trusted, incoming.datagrams) = (&bytes, false, 0);
            let whole = incoming.as_datagram().whole_packet();
            incoming.whole = &whole;
            self.deliver(incoming)?;
        }
        Some(())
    }

    fn ipv6(self: &Arc<Self>, link: &Arc<Interface>, bytes: &[u8], frame: Frame<'_>) -> Option<()> {
        let packet = Ipv6Packet::new_checked(bytes).ok()?;
        if packet.version() != 6 {
            return None;
        }
        let whole = bytes.get(..packet.total_len())?;
        let (from, to): (IpAddr, IpAddr) = (packet.src_addr().into(), packet.dst_addr().into());
        let to_all = self.is_for_us(link, from, to)?;
        let mut incoming = Incoming {
            link,
            from,
            to,
            protocol: packet.next_header(),
            hops: packet.hop_limit(),
            class: packet.traffic_class(),
            to_all,
            trusted: frame.trusted,
            datagrams: frame.datagrams,
            bytes: packet.payload(),
            whole,
        };
        let Some((key, offset, more)) = skip_extensions(&mut incoming)? else {
            return self.deliver(incoming);
        };
        let (number, next) = key;
        let key = (from, to, number, u8::from(next));
        let put = lock(&self.fragments).add(key, offset, more, incoming.bytes, Instant::now());
        if let Some(bytes) = put {
            (incoming.bytes, incoming.trusted, incoming.datagrams) = (&bytes, false, 0);
            incoming.protocol = next;
            if skip_extensions(&mut incoming)?.is_none() {
                let whole = incoming.as_datagram().whole_packet();
                incoming.whole = &whole;
                self.deliver(incoming)?;
            }
        }
        Some(())
    }

    /// Whether a packet is for all of the link, if it is for us.
    fn is_for_us(&self, link: &Interface, from: IpAddr, to: IpAddr) -> Option<bool> {
        let ours = |ip| self.interfaces().iter().any(|link| link.has(ip));
        let strange =
            from.is_loopback() || from.is_multicast() || from == IpAddr::from([255; 4]) || ours(from);
        if strange || to.is_loopback() {
            return None;
        }
        if link.hears(to) {
            return Some(true);
        }
        ours(to).then_some(false)
    }

    fn deliver(self: &Arc<Self>, incoming: Incoming<'_>) -> Option<()> {
        let net = self.net.upgrade()?;
        let wanted = net.inet.raw.deliver(RawPacket {
            from: incoming.from,
            to: incoming.to,
            protocol: u8::from(incoming.protocol),
            whole: incoming.whole,
            payload: incoming.bytes,
        });
        match incoming.protocol {
            IpProtocol::Tcp => self.tcp(&net, &incoming),
            IpProtocol::Udp => self.udp(&net, &incoming),
            IpProtocol::Icmp => self.icmp4(&net, &incoming),
            IpProtocol::Icmpv6 => self.icmp6(&net, &incoming),
            IpProtocol::Igmp => self.group_query(&net, &incoming),
            _ if wanted => Some(()),
            _ => {
                self.unknown_protocol(&incoming);
                None
            }
        }
    }

    fn tcp(self: &Arc<Self>, net: &Net, incoming: &Incoming<'_>) -> Option<()> {
        if incoming.to_all || incoming.from.is_unspecified() {
            return None;
        }
        let ends = [incoming.from, incoming.to];
        let (theirs, ours, segment) = segment::parse(incoming.bytes, ends, incoming.trusted)?;
        let names = [SocketAddr::new(incoming.to, ours), SocketAddr::new(incoming.from, theirs)];
        self.segment(net, names, &segment);
        Some(())
    }

    fn udp(&self, net: &Net, incoming: &Incoming<'_>) -> Option<()> {
        let packet = UdpPacket::new_checked(incoming.bytes).ok()?;
        let length = usize::from(packet.len());
        // Several datagrams in one are longer than their first header says, or as long as all of them.
        let bytes = if incoming.datagrams > 0 { incoming.bytes } else { incoming.bytes.get(..length)? };
        let unchecked = incoming.trusted || packet.checksum() == 0 && incoming.to.is_ipv4();
        if !unchecked && frame::checksum(incoming.from, incoming.to, IpProtocol::Udp, bytes) != 0 {
            return None;
        }
        let from = SocketAddr::new(incoming.from, packet.src_port());
        let to = SocketAddr::new(incoming.to, packet.dst_port());
        let payload = bytes.get(8..)?;
        let arrival = Arrival {
            interface: incoming.link.number(),
            hops: incoming.hops,
            class: incoming.class,
            to_all: incoming.to_all,
        };
        let size = match incoming.datagrams {
            0 => payload.len().max(1),
            size => usize::from(size),
        };
        let mut parts: Vec<&[u8]> = payload.chunks(size).collect();
        if parts.is_empty() {
            parts.push(payload);
        }
        for part in parts {
            if !udp_arrives(net, part, from, to, arrival) && !incoming.to_all {
                self.port_unreachable(incoming);
            }
        }
        Some(())
    }

    /// Who is asked for by a group of the link alone (RFC 4291, 2.7.1): the last three bytes of its address.
    pub(super) fn solicited(ip: Ipv6Addr) -> Ipv6Addr {
        let octets = ip.octets();
        Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, octets[13], octets[14], octets[15]])
    }

    /// An ARP packet: `(from, to)` are addresses, `mac` is asked for or answered.
    pub(super) fn send_arp(
        &self,
        link: &Arc<Interface>,
        operation: ArpOperation,
        (from, to): (std::net::Ipv4Addr, std::net::Ipv4Addr),
        mac: EthernetAddress,
    ) {
        let asks = operation == ArpOperation::Request;
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(link.mac()),
            source_protocol_addr: from,
            target_hardware_addr: if asks { EthernetAddress([0; 6]) } else { mac },
            target_protocol_addr: to,
        };
        let mut bytes = vec![0; frame::IP.saturating_add(repr.buffer_len())];
        if let Some(place) = bytes.get_mut(frame::IP..) {
            repr.emit(&mut ArpPacket::new_unchecked(place));
        }
        frame::address(&mut bytes, link.mac(), mac.0, EthernetProtocol::Arp);
        self.put(link, &bytes);
    }
}

/// A fragment: which packet it is of, and what that carries; its offset; whether more come.
type Fragment = ((u32, IpProtocol), usize, bool);

/// Passes over headers that say nothing to us. `None` where one is not understood; a fragment, where it is one.
fn skip_extensions(incoming: &mut Incoming<'_>) -> Option<Option<Fragment>> {
    for _ in 0..EXTENSIONS {
        match incoming.protocol {
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route => {
                let header: &[u8; 4] = incoming.bytes.first_chunk()?;
                // A source route that is not at its end is not followed (RFC 5095).
                if incoming.protocol == IpProtocol::Ipv6Route && header[3] != 0 {
                    return None;
                }
                let length = usize::from(header[1]).saturating_add(1).saturating_mul(8);
                incoming.protocol = IpProtocol::from(header[0]);
                incoming.bytes = incoming.bytes.get(length..)?;
            }
            IpProtocol::Ipv6Frag => {
                let (header, rest) = incoming.bytes.split_first_chunk::<8>()?;
                let place = u16::from_be_bytes([header[2], header[3]]);
                let ident = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                incoming.bytes = rest;
                let next = IpProtocol::from(header[0]);
                if place & !6 == 0 {
                    // A packet of one fragment (RFC 6946).
                    incoming.protocol = next;
                    continue;
                }
                return Some(Some(((ident, next), usize::from(place & !7), place & 1 != 0)));
            }
            _ => return Some(None),
        }
    }
    None
}
