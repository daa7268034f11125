//! Frames: headers of Ethernet and IP before what is sent, and checksums.

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol, Ipv4Packet,
    Ipv4Repr, Ipv6Packet, Ipv6Repr,
};

use super::device::HEADER;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Where the IP header of a frame begins.
pub(crate) const IP: usize = HEADER + ETHERNET;
/// Bytes of IP headers.
pub(crate) const IPV4: usize = 20;
pub(crate) const IPV6: usize = 40;

/// What an IP header says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) protocol: IpProtocol,
    /// `None`: 64.
    pub(crate) hops: Option<u8>,
    /// Type of service, traffic class.
    pub(crate) class: u8,
    /// IPv4: it is not to be cut.
    pub(crate) whole: bool,
    pub(crate) ident: u16,
}

impl Packet {
    pub(crate) fn new(from: IpAddr, to: IpAddr, protocol: IpProtocol) -> Self {
        Self { from, to, protocol, hops: None, class: 0, whole: true, ident: 0 }
    }
}

/// Bytes of the header of a packet to there.
pub(crate) fn header_length(to: IpAddr) -> usize {
    if to.is_ipv4() { IPV4 } else { IPV6 }
}

/// Begins a frame in a buffer, with room for so many bytes after the IP header; where they begin. Hardware addresses are written later.
pub(crate) fn begin(buffer: &mut Vec<u8>, packet: &Packet, length: usize) -> usize {
    let start = IP.saturating_add(header_length(packet.to));
    buffer.clear();
    buffer.resize(start.saturating_add(length), 0);
    write_ip(buffer, packet, length, 0, false);
    start
}

/// Writes the IP header. `offset` and `more` are of a fragment of IPv4.
pub(crate) fn write_ip(frame: &mut [u8], packet: &Packet, length: usize, offset: usize, more: bool) {
    let Some(bytes) = frame.get_mut(IP..) else { return };
    let (payload_len, hop_limit) = (length, packet.hops.unwrap_or(64));
    match (packet.from, packet.to) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) if bytes.len() >= IPV4 => {
            let repr = Ipv4Repr { src_addr, dst_addr, next_header: packet.protocol, payload_len, hop_limit };
            let mut ip = Ipv4Packet::new_unchecked(bytes);
            repr.emit(&mut ip, &ChecksumCapabilities::ignored());
            ip.set_ident(packet.ident);
            ip.set_dont_frag(packet.whole);
            ip.set_more_frags(more);
            ip.set_frag_offset(u16::try_from(offset).unwrap_or(0));
            ip.set_dscp(packet.class >> 2);
            ip.set_ecn(packet.class & 3);
            ip.fill_checksum();
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) if bytes.len() >= IPV6 => {
            let repr = Ipv6Repr { src_addr, dst_addr, next_header: packet.protocol, payload_len, hop_limit };
            let mut ip = Ipv6Packet::new_unchecked(bytes);
            repr.emit(&mut ip);
            ip.set_traffic_class(packet.class);
        }
        _ => {}
    }
}

/// Writes the Ethernet header.
pub(crate) fn address(frame: &mut [u8], from: [u8; 6], to: [u8; 6], ethertype: EthernetProtocol) {
    if let Some(bytes) = frame.get_mut(HEADER..).filter(|bytes| bytes.len() >= ETHERNET) {
        let repr = EthernetRepr { src_addr: EthernetAddress(from), dst_addr: EthernetAddress(to), ethertype };
        repr.emit(&mut EthernetFrame::new_unchecked(bytes));
    }
}

/// Sum of RFC 1071, not complemented.
fn sum(bytes: &[u8], start: u32) -> u32 {
    let mut wide = u64::from(start);
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        wide += u64::from(u32::from_be_bytes(*word));
    }
    let mut last = [0; 4];
    for (place, byte) in last.iter_mut().zip(rest) {
        *place = *byte;
    }
    wide += u64::from(u32::from_be_bytes(last));
    while wide >> 16 != 0 {
        wide = (wide & 0xffff) + (wide >> 16);
    }
    wide as u32
}

fn address_sum(ip: IpAddress) -> u32 {
    match ip {
        IpAddress::Ipv4(ip) => sum(&ip.octets(), 0),
        IpAddress::Ipv6(ip) => sum(&ip.octets(), 0),
    }
}

/// Sum of the pseudo header (RFC 9293, 3.1; 8200, 8.1), to which the device adds the rest.
pub(crate) fn pseudo_header(from: IpAddress, to: IpAddress, protocol: IpProtocol, length: u32) -> u16 {
    let parts =
        [address_sum(from), address_sum(to), u32::from(u8::from(protocol)), length >> 16, length & 0xffff];
    let total: u32 = parts.iter().sum();
    sum(&[], total) as u16
}

/// Checksum of what a pseudo header stands before, its own field being 0 or what is to be checked: 0 where it is right.
pub(crate) fn checksum(from: IpAddr, to: IpAddr, protocol: IpProtocol, bytes: &[u8]) -> u16 {
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    let start = u32::from(pseudo_header(from.into(), to.into(), protocol, length));
    !(sum(bytes, start) as u16)
}

/// Checksum without a pseudo header.
pub(crate) fn plain_checksum(bytes: &[u8]) -> u16 {
    !(sum(bytes, 0) as u16)
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::UdpPacket;

    use super::*;

    #[test]
    fn checksums_agree_with_the_crate() {
        for length in [8_usize, 9, 13, 64] {
            for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
                let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
                let mut bytes: Vec<u8> = (0..length).map(|at| (at * 7 + 3) as u8).collect();
                bytes[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                bytes[6..8].fill(0);
                let sum = checksum(from, to, IpProtocol::Udp, &bytes);
                bytes[6..8].copy_from_slice(&sum.to_be_bytes());
                assert!(UdpPacket::new_checked(&bytes).unwrap().verify_checksum(&from.into(), &to.into()));
                assert_eq!(checksum(from, to, IpProtocol::Udp, &bytes), 0);
            }
        }
    }

    #[test]
    fn a_frame_has_its_headers() {
        let mut frame = Vec::new();
        let packet = Packet::new("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), IpProtocol::Udp);
        let start = begin(&mut frame, &packet, 5);
        assert_eq!((start, frame.len()), (44, 49));
        address(&mut frame, [1; 6], [2; 6], EthernetProtocol::Ipv4);
        let ip = Ipv4Packet::new_checked(&frame[IP..]).unwrap();
        assert!(ip.verify_checksum() && ip.dont_frag());
        assert_eq!((ip.total_len(), ip.hop_limit()), (25, 64));
    }
}
