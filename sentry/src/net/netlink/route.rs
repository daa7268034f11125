//! What `NETLINK_ROUTE` answers (`man 7 rtnetlink`): dumps of links, addresses, routes and neighbours, one link, one route; everything
//! else is refused.

use std::net::IpAddr;

use super::super::Net;
use super::super::interfaces;
use super::tell;
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
const NEWNEIGH: u16 = 28;
const GETNEIGH: u16 = 30;
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

/// Messages that answer a request; `None` where it is for something that is not there.
fn entries(net: &Net, kind: u16, wanted: u8) -> Result<(u16, Vec<Vec<u8>>), Errno> {
    let fits = |ip: &IpAddr| wanted == 0 || tell::family(*ip) == wanted;
    match kind {
        GETLINK => Ok((NEWLINK, interfaces::all(net).iter().map(tell::link).collect())),
        GETADDR => {
            let of = |told: &interfaces::Told| {
                let own = told.addresses.iter().filter(|prefix| fits(&prefix.ip));
                own.map(|prefix| tell::address(told, *prefix)).collect::<Vec<_>>()
            };
            Ok((NEWADDR, interfaces::all(net).iter().flat_map(of).collect()))
        }
        GETROUTE => Ok((NEWROUTE, tell::routes(net, fits))),
        GETNEIGH => Ok((NEWNEIGH, tell::neighbours(net, fits))),
        // Rules and the like: none.
        34 | 38 | 42 | 66 | 74 | 78 => Ok((DONE, Vec::new())),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// An attribute after a header of so many bytes.
fn attribute_of(request: &[u8], header: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = request.get(HEADER.saturating_add(header)..)?;
    while let (Some(length), Some(kind)) = (part::<2>(rest, 0), part::<2>(rest, 2)) {
        let length = usize::from(u16::from_ne_bytes(length));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes(kind) == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// The interface that a request for one is for: by number, or by name (`IFLA_IFNAME`).
fn one_link(net: &Net, request: &[u8]) -> Option<interfaces::Told> {
    let index = part(request, HEADER + 4).map_or(0, u32::from_ne_bytes);
    let name = attribute_of(request, 16, 3).unwrap_or_default();
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    interfaces::all(net).into_iter().find(|told| {
        if index != 0 { told.number == index } else { !name.is_empty() && told.name.as_bytes() == name }
    })
}

/// The route that a request for one is for (`RTA_DST`).
fn one_route(net: &Net, request: &[u8]) -> Result<Vec<u8>, Errno> {
    let to = attribute_of(request, 12, 1).unwrap_or_default();
    let to: IpAddr = match to.len() {
        4 => <[u8; 4]>::try_from(to).map_err(|_| Errno::EINVAL)?.into(),
        16 => <[u8; 16]>::try_from(to).map_err(|_| Errno::EINVAL)?.into(),
        _ => return Err(Errno::EINVAL),
    };
    tell::route_to(net, to)
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
        Ok(_) if matches!(header.kind, GETLINK | GETROUTE) => {
            let (kind, one) = if header.kind == GETLINK {
                let told = one_link(net, request);
                (NEWLINK, told.map(|told| tell::link(&told)).ok_or(Errno::ENODEV))
            } else {
                (NEWROUTE, one_route(net, request))
            };
            match one {
                Ok(one) => {
                    writer.message(kind, 0, &one);
                    if header.flags & ACK != 0 {
                        writer.error(None, request);
                    }
                }
                Err(errno) => writer.error(Some(errno), request),
            }
        }
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
        tell::attribute(&mut body, 3, b"lo\0");
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
