//! What `NETLINK_ROUTE` answers (`man 7 rtnetlink`): dumps of links, addresses and routes; everything else is refused.

use std::net::IpAddr;

use super::super::Net;
use super::super::interfaces::{LOOPBACK_INDEX, MTU, addresses};
use crate::error::Errno;

/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const MULTI: u16 = 2;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;
/// Bytes of answers in one datagram.
const BATCH: usize = 16 * 1024;

#[derive(Debug, Clone, Copy)]
struct Header {
    length: usize,
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

fn header(bytes: &[u8]) -> Option<Header> {
    let length = usize::try_from(u32::from_ne_bytes(part(bytes, 0)?)).ok()?;
    let header = Header {
        length,
        kind: u16::from_ne_bytes(part(bytes, 4)?),
        flags: u16::from_ne_bytes(part(bytes, 6)?),
        sequence: u32::from_ne_bytes(part(bytes, 8)?),
    };
    (part::<HEADER>(bytes, 0).is_some() && (HEADER..=bytes.len()).contains(&length)).then_some(header)
}

/// A message that is being made.
struct Writer {
    bytes: Vec<u8>,
    sequence: u32,
    port: u32,
}

impl Writer {
    /// Adds a message.
    fn message(&mut self, kind: u16, flags: u16, body: &[u8]) {
        let length = u32::try_from(HEADER.saturating_add(body.len())).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&self.port.to_ne_bytes());
        self.bytes.extend_from_slice(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// `NLMSG_ERROR`: an acknowledgement where there is no error.
    fn error(&mut self, errno: Option<Errno>, request: &[u8]) {
        let number = errno.map_or(0, |errno| (errno as i32).saturating_neg());
        let quoted = if errno.is_some() { request } else { request.get(..HEADER).unwrap_or(request) };
        let body = [&number.to_ne_bytes(), quoted].concat();
        self.message(ERROR, 0, &body);
    }
}

/// Adds an attribute (`struct rtattr`).
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
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

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}

/// `struct ifinfomsg` and attributes of `lo`.
fn link() -> Vec<u8> {
    let mut body = vec![0, 0];
    // ARPHRD_LOOPBACK; IFF_UP | IFF_LOOPBACK | IFF_RUNNING | IFF_LOWER_UP.
    body.extend_from_slice(&772u16.to_ne_bytes());
    body.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    body.extend_from_slice(&0x1_0049u32.to_ne_bytes());
    body.extend_from_slice(&[0; 4]);
    attribute(&mut body, 3, b"lo\0");
    attribute(&mut body, 13, &1000u32.to_ne_bytes());
    // IFLA_OPERSTATE, IFLA_LINKMODE: unknown, default.
    attribute(&mut body, 16, &[0]);
    attribute(&mut body, 17, &[0]);
    attribute(&mut body, 4, &MTU.to_ne_bytes());
    attribute(&mut body, 27, &0u32.to_ne_bytes());
    attribute(&mut body, 31, &1u32.to_ne_bytes());
    attribute(&mut body, 32, &1u32.to_ne_bytes());
    attribute(&mut body, 33, &[1]);
    attribute(&mut body, 6, b"noqueue\0");
    attribute(&mut body, 1, &[0; 6]);
    attribute(&mut body, 2, &[0; 6]);
    attribute(&mut body, 7, &[0; 96]);
    attribute(&mut body, 23, &[0; 192]);
    body
}

/// `struct ifaddrmsg` and attributes.
fn address(ip: IpAddr, prefix: u8) -> Vec<u8> {
    let scope = if ip.is_loopback() { 254 } else { 0 };
    let mut body = vec![family(ip), prefix, 0x80, scope];
    body.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    attribute(&mut body, 1, &octets(ip));
    if ip.is_ipv4() {
        attribute(&mut body, 2, &octets(ip));
        attribute(&mut body, 3, b"lo\0");
    }
    attribute(&mut body, 8, &0x80u32.to_ne_bytes());
    // No end of its life: preferred, valid, made, changed.
    let life = [u32::MAX.to_ne_bytes(), u32::MAX.to_ne_bytes(), [0; 4], [0; 4]].concat();
    attribute(&mut body, 6, &life);
    body
}

/// `struct rtmsg` and attributes of the route in the table `local`.
fn route(ip: IpAddr, prefix: u8) -> Vec<u8> {
    let scope = if ip.is_ipv4() { 254 } else { 0 };
    // Table 255 (local), protocol 2 (kernel), type 2 (local).
    let mut body = vec![family(ip), prefix, 0, 0, 255, 2, scope, 2, 0, 0, 0, 0];
    attribute(&mut body, 15, &255u32.to_ne_bytes());
    let network = match ip {
        IpAddr::V4(ip) if prefix == 8 => vec![ip.octets()[0], 0, 0, 0],
        ip => octets(ip),
    };
    attribute(&mut body, 1, &network);
    if ip.is_ipv4() {
        attribute(&mut body, 7, &octets(ip));
    }
    attribute(&mut body, 4, &LOOPBACK_INDEX.to_ne_bytes());
    body
}

/// Messages that answer a request; `None` where it is for something that is not there.
fn entries(net: &Net, kind: u16, wanted: u8) -> Result<(u16, Vec<Vec<u8>>), Errno> {
    let fits = |ip: &IpAddr| wanted == 0 || family(*ip) == wanted;
    let own = || addresses(net).into_iter().filter(|(ip, _)| fits(ip));
    match kind {
        GETLINK => Ok((NEWLINK, vec![link()])),
        GETADDR => Ok((NEWADDR, own().map(|(ip, prefix)| address(ip, prefix)).collect())),
        GETROUTE => Ok((NEWROUTE, own().map(|(ip, prefix)| route(ip, prefix)).collect())),
        // Neighbours, rules and the like: none.
        30 | 34 | 38 | 42 | 66 | 74 | 78 => Ok((DONE, Vec::new())),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Whether a request for one link is for `lo`: by number, or by name (`IFLA_IFNAME`).
fn is_loopback(request: &[u8]) -> bool {
    let index = part(request, HEADER + 4).map_or(0, u32::from_ne_bytes);
    if index != 0 {
        return index == LOOPBACK_INDEX;
    }
    let mut rest = request.get(HEADER + 16..).unwrap_or_default();
    while let (Some(length), Some(kind)) = (part::<2>(rest, 0), part::<2>(rest, 2)) {
        let length = usize::from(u16::from_ne_bytes(length));
        let Some(value) = rest.get(4..length) else { return false };
        if u16::from_ne_bytes(kind) == 3 {
            return value == b"lo\0" || value == b"lo";
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn answer(net: &Net, request: &[u8], header: Header, port: u32) -> Vec<Vec<u8>> {
    let mut writer = Writer { bytes: Vec::new(), sequence: header.sequence, port };
    let mut datagrams = Vec::new();
    let wanted = request.get(HEADER).copied().unwrap_or(0);
    let dump = header.flags & DUMP != 0;
    let reads = header.kind >= NEWLINK && (header.kind - NEWLINK) % 4 == 2;
    let result = if !reads { Err(Errno::EPERM) } else { entries(net, header.kind, wanted) };
    match result {
        Err(errno) => writer.error(Some(errno), request),
        Ok((kind, entries)) if dump => {
            for entry in entries {
                if writer.bytes.len().saturating_add(entry.len()).saturating_add(64) > BATCH {
                    datagrams.push(std::mem::take(&mut writer.bytes));
                }
                writer.message(kind, MULTI, &entry);
            }
            writer.message(DONE, MULTI, &0i32.to_ne_bytes());
        }
        Ok((kind, entries)) if header.kind == GETLINK && is_loopback(request) => {
            entries.iter().for_each(|entry| writer.message(kind, 0, entry));
            if header.flags & ACK != 0 {
                writer.error(None, request);
            }
        }
        Ok(_) if header.kind == GETLINK => writer.error(Some(Errno::ENODEV), request),
        Ok(_) if header.kind == GETROUTE => writer.error(Some(Errno::ENETUNREACH), request),
        Ok(_) => writer.error(Some(Errno::EOPNOTSUPP), request),
    }
    datagrams.push(writer.bytes);
    datagrams
}

/// Datagrams that answer what was sent (`netlink_rcv_skb`).
pub(super) fn answers(net: &Net, mut data: &[u8], port: u32) -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    while let Some(header) = header(data) {
        let request = data.get(..header.length).unwrap_or(data);
        // What is no request, and control messages, are passed over.
        if header.flags & REQUEST != 0 && header.kind >= NEWLINK {
            datagrams.extend(answer(net, request, header, port));
        } else if header.flags & ACK != 0 {
            let mut writer = Writer { bytes: Vec::new(), sequence: header.sequence, port };
            writer.error(None, request);
            datagrams.push(writer.bytes);
        }
        data = data.get(header.length.next_multiple_of(4)..).unwrap_or_default();
    }
    datagrams
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut writer = Writer { bytes: Vec::new(), sequence: 7, port: 0 };
        writer.message(kind, flags | REQUEST, body);
        writer.bytes
    }

    /// Kinds of all messages, which must fill their datagrams.
    fn kinds(datagrams: &[Vec<u8>]) -> Vec<u16> {
        let mut kinds = Vec::new();
        for datagram in datagrams {
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let header = header(rest).unwrap();
                assert_eq!(header.sequence, 7);
                kinds.push(header.kind);
                rest = &rest[header.length.next_multiple_of(4)..];
            }
        }
        kinds
    }

    #[test]
    fn dumps_end() {
        let net = Net::new();
        net.set_addresses(vec!["10.1.2.3".parse().unwrap()]);
        let ask = |kind, body: &[u8]| kinds(&answers(&net, &request(kind, DUMP, body), 5));
        assert_eq!(ask(GETLINK, &[0; 16]), [NEWLINK, DONE]);
        assert_eq!(ask(GETADDR, &[0; 8]), [NEWADDR, NEWADDR, NEWADDR, DONE]);
        assert_eq!(ask(GETADDR, &[10, 0, 0, 0, 0, 0, 0, 0]), [NEWADDR, DONE]);
        assert_eq!(ask(GETROUTE, &[2; 12]), [NEWROUTE, NEWROUTE, DONE]);
        assert_eq!(ask(GETROUTE + 4, &[0; 12]), [DONE]);
    }

    #[test]
    fn changes_are_refused() {
        let net = Net::new();
        let datagrams = answers(&net, &request(NEWLINK, ACK, &[0; 16]), 5);
        assert_eq!(kinds(&datagrams), [ERROR]);
        let number: [u8; 4] = part(&datagrams[0], HEADER).unwrap();
        assert_eq!(i32::from_ne_bytes(number), -(Errno::EPERM as i32));
    }

    #[test]
    fn one_link_by_number_or_name() {
        let net = Net::new();
        let mut body = vec![0; 16];
        body[4] = 1;
        assert_eq!(kinds(&answers(&net, &request(GETLINK, ACK, &body), 5)), [NEWLINK, ERROR]);
        body[4] = 2;
        assert_eq!(kinds(&answers(&net, &request(GETLINK, 0, &body), 5)), [ERROR]);
        body[4] = 0;
        attribute(&mut body, 3, b"lo\0");
        assert_eq!(kinds(&answers(&net, &request(GETLINK, 0, &body), 5)), [NEWLINK]);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u16..120, flags: u16) {
            let net = Net::new();
            let _ = answers(&net, &bytes, 5);
            let _ = answers(&net, &request(kind, flags, &bytes), 5);
        }
    }
}
