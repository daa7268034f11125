//! TCP segments (RFC 9293, 7323, 2018): out of packets, and into them.

use std::net::SocketAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, TcpTimestampRepr};

/// A sequence number: compared by distance, as numbers wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Seq(pub(crate) u32);

impl Seq {
    /// So many bytes later.
    pub(crate) fn plus(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes as u32))
    }

    /// How far this is after another; negative where it is before.
    pub(crate) fn since(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0).cast_signed()
    }

    /// How many bytes after another, 0 where it is not after.
    pub(crate) fn after(self, other: Self) -> usize {
        usize::try_from(self.since(other)).unwrap_or(0)
    }

    pub(crate) fn is_before(self, other: Self) -> bool {
        self.since(other) < 0
    }

    pub(crate) fn later(self, other: Self) -> Self {
        if self.is_before(other) { other } else { self }
    }

    pub(crate) fn earlier(self, other: Self) -> Self {
        if self.is_before(other) { self } else { other }
    }
}

/// Bytes from the first to before the second.
pub(crate) type Range = (Seq, Seq);

/// Most blocks that a segment tells of what arrived out of order, with timestamps beside them.
pub(crate) const BLOCKS: usize = 3;

/// What a segment says of itself (RFC 9293, 3.1), without its ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) seq: Seq,
    pub(crate) ack: Option<Seq>,
    /// As it stands there, without its scale.
    pub(crate) window: u16,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    /// Not looked at in what comes.
    pub(crate) push: bool,
    /// Where urgent data ends, from `seq` on.
    pub(crate) urgent: Option<u16>,
    pub(crate) mss: Option<u16>,
    pub(crate) scale: Option<u8>,
    pub(crate) sack_permitted: bool,
    pub(crate) blocks: [Option<Range>; BLOCKS],
    /// `TSval`, `TSecr`.
    pub(crate) timestamp: Option<(u32, u32)>,
}

/// A segment that came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Segment<'a> {
    pub(crate) header: Header,
    pub(crate) payload: &'a [u8],
}

impl std::ops::Deref for Segment<'_> {
    type Target = Header;

    fn deref(&self) -> &Header {
        &self.header
    }
}

impl Segment<'_> {
    /// Sequence numbers that it takes.
    pub(crate) fn length(&self) -> usize {
        self.payload.len().saturating_add(usize::from(self.syn)).saturating_add(usize::from(self.fin))
    }
}

/// Takes a segment apart, with its ports. `None` where it is none, or its checksum is wrong; `trusted` where somebody has looked at that.
pub(crate) fn parse(
    bytes: &[u8],
    [from, to]: [std::net::IpAddr; 2],
    trusted: bool,
) -> Option<(u16, u16, Segment<'_>)> {
    let packet = TcpPacket::new_checked(bytes).ok()?;
    let mut checksums = ChecksumCapabilities::ignored();
    if !trusted {
        checksums.tcp = smoltcp::phy::Checksum::Both;
    }
    let repr = TcpRepr::parse(&packet, &from.into(), &to.into(), &checksums).ok()?;
    let control = repr.control;
    let header = Header {
        seq: Seq(repr.seq_number.0.cast_unsigned()),
        ack: repr.ack_number.map(|number| Seq(number.0.cast_unsigned())),
        window: repr.window_len,
        syn: control == TcpControl::Syn,
        fin: control == TcpControl::Fin,
        rst: control == TcpControl::Rst,
        push: control == TcpControl::Psh,
        urgent: packet.urg().then(|| packet.urgent_at()),
        mss: repr.max_seg_size,
        scale: repr.window_scale,
        sack_permitted: repr.sack_permitted,
        blocks: repr.sack_ranges.map(|range| range.map(|(start, end)| (Seq(start), Seq(end)))),
        timestamp: repr.timestamp.map(|stamp| (stamp.tsval, stamp.tsecr)),
    };
    Some((repr.src_port, repr.dst_port, Segment { header, payload: repr.payload }))
}

impl Header {
    fn repr(&self, [from, to]: [u16; 2]) -> TcpRepr<'static> {
        TcpRepr {
            src_port: from,
            dst_port: to,
            control: match (self.syn, self.fin, self.rst, self.push) {
                (true, ..) => TcpControl::Syn,
                (_, true, ..) => TcpControl::Fin,
                (_, _, true, _) => TcpControl::Rst,
                (_, _, _, true) => TcpControl::Psh,
                _ => TcpControl::None,
            },
            seq_number: TcpSeqNumber(self.seq.0.cast_signed()),
            ack_number: self.ack.map(|seq| TcpSeqNumber(seq.0.cast_signed())),
            window_len: self.window,
            window_scale: self.scale,
            max_seg_size: self.mss,
            sack_permitted: self.sack_permitted,
            sack_ranges: self.blocks.map(|range| range.map(|(start, end)| (start.0, end.0))),
            timestamp: self.timestamp.map(|(value, echo)| TcpTimestampRepr::new(value, echo)),
            payload: &[],
        }
    }

    /// Bytes of it, options included.
    pub(crate) fn size(&self) -> usize {
        self.repr([1, 1]).header_len()
    }

    /// Writes it before its bytes, which are there. The checksum is that of the pseudo header alone where the device finishes it
    /// (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    pub(crate) fn emit(&self, [from, to]: [SocketAddr; 2], bytes: &mut [u8], offload: bool) {
        let repr = self.repr([from.port(), to.port()]);
        let length = u32::try_from(bytes.len()).unwrap_or(0);
        let (source, target) = (from.ip().into(), to.ip().into());
        let mut packet = TcpPacket::new_unchecked(bytes);
        repr.emit(&mut packet, &source, &target, &ChecksumCapabilities::ignored());
        if self.fin {
            packet.set_psh(self.push);
        }
        if let Some(urgent) = self.urgent {
            packet.set_urg(true);
            packet.set_urgent_at(urgent);
        }
        if offload {
            let next = smoltcp::wire::IpProtocol::Tcp;
            packet.set_checksum(super::super::frame::pseudo_header(source, target, next, length));
        } else {
            packet.fill_checksum(&source, &target);
        }
    }
}
