//! What an interface was like before it was taken over, so that it can be given back.
//!
//! What netlink told is kept as the messages that say it again. Addresses that the host's kernel made by itself, and routes that come with an
//! address, are not said again: they come by themselves.

use std::fs;
use std::io::ErrorKind;

use super::look::{Link, Seen, word};
use super::netlink::{Netlink, attributes, push};
use crate::error::Errno;

// `include/uapi/linux/rtnetlink.h`, `if_addr.h`, `neighbour.h`
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const NEWROUTE: u16 = 24;
const NEWNEIGH: u16 = 28;
/// `RTPROT_KERNEL`, `RTPROT_RA`.
const BY_KERNEL: u8 = 2;
const BY_ADVERTISEMENT: u8 = 9;
/// `RTNH_F_ONLINK`.
const ON_LINK: u32 = 4;
const FLAGS: u16 = 8;
/// `IFA_F_NODAD`, `IFA_F_NOPREFIXROUTE`.
const NO_DETECTION: u32 = 0x02;
const NO_ROUTE: u32 = 0x200;
/// Settings of an interface that let the host's kernel give it addresses of IPv6 by itself, and what they are to be instead.
const SETTINGS: [(&str, &str); 3] = [("accept_ra", "0"), ("autoconf", "0"), ("disable_ipv6", "1")];

/// What an interface was like.
#[derive(Debug)]
pub(super) struct Before {
    name: String,
    addresses: Vec<Vec<u8>>,
    routes: Vec<Vec<u8>>,
    neighbours: Vec<Vec<u8>>,
    settings: Vec<(String, String)>,
}

/// A message with some of its attributes.
fn with_only(body: &[u8], header: usize, kinds: &[u16]) -> Vec<u8> {
    let mut message = body.get(..header).unwrap_or_default().to_vec();
    for (kind, value) in attributes(body, header) {
        if kinds.contains(&kind) {
            push(&mut message, kind, value);
        }
    }
    message
}

/// An address as it is made: addresses, label, broadcast; without a look whether somebody else has it.
fn address(body: &[u8]) -> Vec<u8> {
    let mut message = with_only(body, 8, &[1, 2, 3, 4]);
    let wide = body.first().map(|family| i32::from(*family)) == Some(libc::AF_INET6);
    let found = attributes(body, 8).into_iter().find(|(kind, _)| *kind == FLAGS);
    let flags = found.and_then(|(_, value)| word(value, 0)).unwrap_or(0) & NO_ROUTE;
    if let Some(old) = message.get_mut(2) {
        *old = 0;
    }
    push(&mut message, FLAGS, &(flags | if wide { NO_DETECTION } else { 0 }).to_ne_bytes());
    message
}

/// A route as it is made.
fn route(body: &[u8]) -> Vec<u8> {
    // RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE
    let mut message = with_only(body, 12, &[1, 4, 5, 6, 7, 8, 15]);
    let flags = word(body, 8).unwrap_or(0) & ON_LINK;
    if let Some(old) = message.get_mut(8..12) {
        old.copy_from_slice(&flags.to_ne_bytes());
    }
    message
}

impl Before {
    pub(super) fn new(link: &Link) -> Self {
        Self {
            name: link.name.clone(),
            addresses: Vec::new(),
            routes: Vec::new(),
            neighbours: Vec::new(),
            settings: Vec::new(),
        }
    }

    /// Takes addresses off the host's side, and what hangs on them; remembers all.
    pub(super) fn strip(&mut self, netlink: &mut Netlink, seen: &Seen) -> Result<(), Errno> {
        let by_hand = |protocol: u8| protocol != BY_KERNEL && protocol != BY_ADVERTISEMENT;
        let routes = seen.routes.iter().filter(|(route, _)| by_hand(route.protocol));
        let (via, direct): (Vec<_>, Vec<_>) = routes.partition(|(route, _)| route.gateway.is_some());
        self.routes.extend(direct.into_iter().chain(via).map(|(_, body)| route(body)));
        let lasting = seen.neighbours.iter().filter(|(neighbour, _)| neighbour.permanent);
        // NDA_DST, NDA_LLADDR
        self.neighbours.extend(lasting.map(|(_, body)| with_only(body, 12, &[1, 2])));
        for (_, body) in &seen.addresses {
            match netlink.change(DELADDR, body) {
                // It went with another one, of which it was a further one.
                Ok(()) | Err(Errno::EADDRNOTAVAIL) => self.addresses.push(address(body)),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// The host's kernel gives the interface no addresses of IPv6 by itself. Without a `/proc/sys` that can be written it stays as it is: an
    /// address that is made later is then the host's, not the sandbox'.
    pub(super) fn silence(&mut self) {
        for (setting, value) in SETTINGS {
            let path = format!("/proc/sys/net/ipv6/conf/{}/{setting}", self.name);
            let set = fs::read_to_string(&path).and_then(|old| fs::write(&path, value).map(|()| old));
            match set {
                Ok(old) => self.settings.push((path, old.trim().to_owned())),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::debug!(interface = self.name, %error, setting, "the host keeps IPv6 on the interface");
                }
            }
        }
    }

    /// Makes it as it was. What cannot be is told in the log: the interface may be gone, or down.
    pub(super) fn put_back(&self, netlink: &mut Netlink) {
        for (path, value) in self.settings.iter().rev() {
            if let Err(error) = fs::write(path, value) {
                tracing::debug!(path, %error, "a setting of the interface is not put back");
            }
        }
        let all = [(NEWADDR, &self.addresses), (NEWROUTE, &self.routes), (NEWNEIGH, &self.neighbours)];
        for (kind, messages) in all {
            for message in messages {
                match netlink.make(kind, message) {
                    Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => {}
                    Err(errno) => {
                        tracing::warn!(interface = self.name, %errno, kind, "something of the interface is not put back");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address of IPv6 that was tentative, with its times: what is made is without either.
    #[test]
    fn an_address_is_made_without_what_the_kernel_adds() {
        let family = u8::try_from(libc::AF_INET6).unwrap();
        let mut body = vec![family, 64, 0x40, 0, 7, 0, 0, 0];
        push(&mut body, 1, &[0xfd; 16]);
        push(&mut body, 6, &[0xff; 16]);
        push(&mut body, FLAGS, &0x240_u32.to_ne_bytes());
        let made = address(&body);
        assert_eq!(made.get(..8), Some(&[family, 64, 0, 0, 7, 0, 0, 0][..]));
        let kinds: Vec<_> =
            attributes(&made, 8).into_iter().map(|(kind, value)| (kind, value.to_vec())).collect();
        assert_eq!(kinds, [(1, vec![0xfd; 16]), (FLAGS, 0x202_u32.to_ne_bytes().to_vec())]);
    }

    #[test]
    fn a_route_keeps_that_its_gateway_is_on_the_link() {
        let mut body = vec![2, 0, 0, 0, 254, 3, 0, 1];
        body.extend((ON_LINK | 1 << 4).to_ne_bytes());
        push(&mut body, 5, &[10, 0, 0, 1]);
        push(&mut body, 12, &[0; 32]);
        let made = route(&body);
        assert_eq!(word(&made, 8), Some(ON_LINK));
        assert_eq!(attributes(&made, 12), [(5, &[10, 0, 0, 1][..])]);
    }

    #[test]
    fn messages_that_are_cut_short_are_no_harm() {
        for length in 0..16 {
            let body = vec![10; length];
            let _ = (address(&body), route(&body));
        }
    }
}
