//! What goes: datagrams, cut where they are too long, and frames to whoever is next on the way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use smoltcp::wire::{ArpOperation, EthernetAddress, EthernetProtocol, Icmpv6Packet, IpProtocol, NdiscRepr};

use super::device::{Offload, mark};
use super::frame::{self, Packet};
use super::interface::Counters;
use super::neighbours::{Due, Found};
use super::{Interface, Path, Stack};
use crate::error::Errno;
use crate::net::lock;

/// What a socket sends.
#[derive(Clone, Copy)]
pub(crate) struct Datagram<'a> {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) protocol: IpProtocol,
    pub(crate) hops: Option<u8>,
    pub(crate) class: u8,
    /// It is not to be cut on its way; `None`: as is best.
    pub(crate) whole: Option<bool>,
    /// With its header of UDP or ICMP.
    pub(crate) bytes: &'a [u8],
}

impl Datagram<'_> {
    /// With its IP header.
    pub(crate) fn whole_packet(&self) -> Vec<u8> {
        let mut packet = Packet::new(self.from, self.to, self.protocol);
        (packet.hops, packet.class) = (self.hops, self.class);
        let mut buffer = Vec::new();
        let start = frame::begin(&mut buffer, &packet, self.bytes.len());
        if let Some(place) = buffer.get_mut(start..) {
            place.copy_from_slice(self.bytes);
        }
        buffer.split_off(frame::IP)
    }
}

impl Stack {
    /// Sends a datagram.
    ///
    /// # Errors
    /// EMSGSIZE where it must not be cut and is too long; ENOBUFS where the device has no room; ENETDOWN.
    pub(crate) fn send_datagram(&self, path: &Path, datagram: &Datagram<'_>) -> Result<(), Errno> {
        let header = frame::header_length(datagram.to);
        let fits = datagram.bytes.len().saturating_add(header) <= path.mtu;
        if !fits && datagram.whole == Some(true) {
            return Err(Errno::EMSGSIZE);
        }
        let mut packet = Packet::new(datagram.from, datagram.to, datagram.protocol);
        (packet.hops, packet.class, packet.ident) = (datagram.hops, datagram.class, self.next_ident());
        packet.whole = datagram.whole.unwrap_or(true) && fits;
        let result = if fits {
            self.send_part(path, &packet, datagram.bytes, (0, false))
        } else if datagram.to.is_ipv4() {
            self.send_parts4(path, &packet, datagram.bytes)
        } else {
            self.send_parts6(path, packet, datagram.bytes)
        };
        result.map_err(|errno| if errno == Errno::EAGAIN { Errno::ENOBUFS } else { errno })
    }

    fn send_part(
        &self,
        path: &Path,
        packet: &Packet,
        bytes: &[u8],
        (offset, more): (usize, bool),
    ) -> Result<(), Errno> {
        let mut buffer = Vec::new();
        let start = frame::begin(&mut buffer, packet, bytes.len());
        if offset > 0 || more {
            frame::write_ip(&mut buffer, packet, bytes.len(), offset, more);
        }
        if let Some(place) = buffer.get_mut(start..) {
            place.copy_from_slice(bytes);
        }
        mark(&mut buffer, Offload::None);
        self.transmit(&path.link, path.next_hop, &mut buffer)
    }

    fn send_parts4(&self, path: &Path, packet: &Packet, bytes: &[u8]) -> Result<(), Errno> {
        let size = path.mtu.saturating_sub(frame::IPV4) & !7;
        if size == 0 {
            return Err(Errno::EMSGSIZE);
        }
        let mut offset = 0;
        for part in bytes.chunks(size) {
            let end = offset + part.len();
            self.send_part(path, packet, part, (offset, end < bytes.len()))?;
            offset = end;
        }
        Ok(())
    }

    fn send_parts6(&self, path: &Path, mut packet: Packet, bytes: &[u8]) -> Result<(), Errno> {
        let size = path.mtu.saturating_sub(frame::IPV6 + 8) & !7;
        if size == 0 {
            return Err(Errno::EMSGSIZE);
        }
        let next = std::mem::replace(&mut packet.protocol, IpProtocol::Ipv6Frag);
        let ident = (u32::from(self.next_ident()) << 16) | u32::from(packet.ident);
        let mut offset = 0_usize;
        for part in bytes.chunks(size) {
            let end = offset + part.len();
            let place = u16::try_from(offset).unwrap_or(0) | u16::from(end < bytes.len());
            let mut with_header = vec![u8::from(next), 0];
            with_header.extend_from_slice(&place.to_be_bytes());
            with_header.extend_from_slice(&ident.to_be_bytes());
            with_header.extend_from_slice(part);
            self.send_part(path, &packet, &with_header, (0, false))?;
            offset = end;
        }
        Ok(())
    }

    /// Sends a frame to the next on the way, as soon as it is known who that is.
    ///
    /// # Errors
    /// EAGAIN where the device has no room; ENETDOWN.
    pub(crate) fn transmit(
        &self,
        link: &Arc<Interface>,
        next_hop: IpAddr,
        frame: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let wide = next_hop.is_ipv6();
        let mac = match next_hop {
            IpAddr::V4(ip) if link.hears(ip.into()) => group_mac4(ip),
            IpAddr::V6(ip) if ip.is_multicast() => {
                let octets = ip.octets();
                [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
            }
            _ => {
                let found = lock(&link.neighbours).find(next_hop, frame, Instant::now());
                let (mac, asks) = match found {
                    Found::Known(mac, asks) => (Some(mac), asks),
                    Found::Waits(asks) => (None, asks),
                };
                if asks {
                    self.ask(link, next_hop, mac);
                    self.timers.waker().wake();
                }
                let Some(mac) = mac else { return Ok(()) };
                mac
            }
        };
        self.send_frame(link, frame, mac, wide)
    }

    /// Sends a frame to a hardware address.
    pub(super) fn send_frame(
        &self,
        link: &Interface,
        frame: &mut [u8],
        mac: [u8; 6],
        wide: bool,
    ) -> Result<(), Errno> {
        let ethertype = if wide { EthernetProtocol::Ipv6 } else { EthernetProtocol::Ipv4 };
        frame::address(frame, link.mac(), mac, ethertype);
        let result = link.device.send(frame);
        match result {
            Ok(()) => Counters::count(&link.counters.sent, frame.len().saturating_sub(super::device::HEADER)),
            Err(_) => link.counters.drop_one(true),
        }
        match result {
            Err(Errno::EAGAIN) => Err(Errno::EAGAIN),
            Err(Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV) => Err(Errno::ENETDOWN),
            // A queue of the host that is full, or a frame that is longer than the interface takes now: lost.
            _ => Ok(()),
        }
    }

    /// Sends a frame that is complete.
    pub(super) fn put(&self, link: &Interface, frame: &[u8]) {
        if link.device.send(frame).is_ok() {
            Counters::count(&link.counters.sent, frame.len().saturating_sub(super::device::HEADER));
        }
    }

    /// Asks for somebody's hardware address; one that is known already is asked itself.
    fn ask(&self, link: &Arc<Interface>, ip: IpAddr, known: Option<[u8; 6]>) {
        let Some(source) = link.source(ip, ip) else { return };
        match (source, ip) {
            (IpAddr::V4(source), IpAddr::V4(ip)) => {
                let mac = EthernetAddress(known.unwrap_or([0xff; 6]));
                self.send_arp(link, ArpOperation::Request, (source, ip), mac);
            }
            (IpAddr::V6(_), IpAddr::V6(target)) => {
                let lladdr = Some(EthernetAddress(link.mac()).into());
                let repr = NdiscRepr::NeighborSolicit { target_addr: target, lladdr };
                let to = if known.is_some() { target } else { Self::solicited(target) };
                self.send_ndisc(link, (source, to.into()), &repr, known);
            }
            _ => {}
        }
    }

    /// Sends a message of neighbour discovery, to this hardware address or to a group's.
    pub(super) fn send_ndisc(
        &self,
        link: &Arc<Interface>,
        (from, to): (IpAddr, IpAddr),
        repr: &NdiscRepr<'_>,
        mac: Option<[u8; 6]>,
    ) {
        let mut packet = Packet::new(from, to, IpProtocol::Icmpv6);
        packet.hops = Some(255);
        let mut buffer = Vec::new();
        let start = frame::begin(&mut buffer, &packet, repr.buffer_len());
        if let Some(bytes) = buffer.get_mut(start..) {
            repr.emit(&mut Icmpv6Packet::new_unchecked(&mut *bytes));
            seal6(from, to, bytes);
        }
        mark(&mut buffer, Offload::None);
        let _ = match mac {
            Some(mac) => self.send_frame(link, &mut buffer, mac, true),
            None => self.transmit(link, to, &mut buffer),
        };
    }

    /// Asks again who does not answer, and gives up.
    pub(super) fn tick_neighbours(&self) {
        let now = Instant::now();
        for link in self.interfaces() {
            let due = lock(&link.neighbours).tick(now);
            for due in due {
                match due {
                    Due::Ask(ip, mac) => self.ask(&link, ip, mac),
                    Due::Silent(_, frames) => {
                        for frame in frames {
                            let packet = frame.get(frame::IP..).unwrap_or_default();
                            self.report(packet, (Errno::EHOSTUNREACH, false), None);
                        }
                    }
                }
            }
        }
    }
}

/// A datagram with its header (RFC 768).
pub(crate) fn udp_header(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len().saturating_add(8)).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(data.len().saturating_add(8));
    for part in [from.port(), to.port(), length, 0] {
        bytes.extend_from_slice(&part.to_be_bytes());
    }
    bytes.extend_from_slice(data);
    let sum = match frame::checksum(from.ip(), to.ip(), IpProtocol::Udp, &bytes) {
        // 0 means that there is none.
        0 => u16::MAX,
        sum => sum,
    };
    if let Some(place) = bytes.get_mut(6..8) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// Writes the checksum of an ICMPv6 message.
pub(super) fn seal6(from: IpAddr, to: IpAddr, bytes: &mut [u8]) {
    if let Some(place) = bytes.get_mut(2..4) {
        place.fill(0);
    }
    let sum = frame::checksum(from, to, IpProtocol::Icmpv6, bytes);
    if let Some(place) = bytes.get_mut(2..4) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
}

/// RFC 1112, 6.4; what is for all has the address of all.
fn group_mac4(ip: Ipv4Addr) -> [u8; 6] {
    if !ip.is_multicast() {
        return [0xff; 6];
    }
    let octets = ip.octets();
    [1, 0, 0x5e, octets[1] & 0x7f, octets[2], octets[3]]
}
