//! What an interface was like before it was taken over, so that it can be given back.
//!
//! What netlink told is kept as the messages that say it again. Addresses that the host's kernel made by itself, and routes that come with an
//! address, are not said again: they come by themselves.

use std::fs;
use std::io::ErrorKind;

use super::look::{Link, Seen, word};
use super::netlink::{Changes, attributes, push};
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

/// How much of it was known at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    addresses: usize,
    routes: usize,
    neighbours: usize,
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

    /// Takes addresses off the host's side, and what hangs on them; remembers all. Where one is refused, those before it are put back, and nothing
    /// is remembered.
    pub(super) fn strip(&mut self, netlink: &mut impl Changes, seen: &Seen) -> Result<(), Errno> {
        let mark = self.mark();
        // Before the first goes: others go with it.
        self.remember(seen);
        for (_, body) in &seen.addresses {
            match netlink.change(DELADDR, body) {
                // It went with another one, of which it was a further one.
                Ok(()) | Err(Errno::EADDRNOTAVAIL) => {}
                Err(errno) => {
                    self.put_back_since(netlink, mark);
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    fn remember(&mut self, seen: &Seen) {
        let by_hand = |protocol: u8| protocol != BY_KERNEL && protocol != BY_ADVERTISEMENT;
        let routes = seen.routes.iter().filter(|(route, _)| by_hand(route.protocol));
        let (via, direct): (Vec<_>, Vec<_>) = routes.partition(|(route, _)| route.gateway.is_some());
        self.routes.extend(direct.into_iter().chain(via).map(|(_, body)| route(body)));
        let lasting = seen.neighbours.iter().filter(|(neighbour, _)| neighbour.permanent);
        // NDA_DST, NDA_LLADDR
        self.neighbours.extend(lasting.map(|(_, body)| with_only(body, 12, &[1, 2])));
        self.addresses.extend(seen.addresses.iter().map(|(_, body)| address(body)));
    }

    /// How much is remembered now.
    pub(super) fn mark(&self) -> Mark {
        let Self { addresses, routes, neighbours, .. } = self;
        Mark { addresses: addresses.len(), routes: routes.len(), neighbours: neighbours.len() }
    }

    /// Puts back what was taken off since, and forgets it. Settings stay.
    pub(super) fn put_back_since(&mut self, netlink: &mut impl Changes, mark: Mark) {
        fn since(all: &mut Vec<Vec<u8>>, mark: usize) -> Vec<Vec<u8>> {
            all.split_off(mark.min(all.len()))
        }
        let addresses = since(&mut self.addresses, mark.addresses);
        let routes = since(&mut self.routes, mark.routes);
        let neighbours = since(&mut self.neighbours, mark.neighbours);
        self.make(netlink, [(NEWADDR, &addresses), (NEWROUTE, &routes), (NEWNEIGH, &neighbours)]);
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
    pub(super) fn put_back(&self, netlink: &mut impl Changes) {
        for (path, value) in self.settings.iter().rev() {
            if let Err(error) = fs::write(path, value) {
                tracing::debug!(path, %error, "a setting of the interface is not put back");
            }
        }
        self.make(
            netlink,
            [(NEWADDR, &self.addresses), (NEWROUTE, &self.routes), (NEWNEIGH, &self.neighbours)],
        );
    }

    fn make(&self, netlink: &mut impl Changes, all: [(u16, &Vec<Vec<u8>>); 3]) {
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

    /// A host with these addresses that refuses to take one off.
    #[derive(Default)]
    struct Fake {
        there: Vec<u8>,
        refused: u8,
        /// Those that go with the first.
        further: Vec<u8>,
    }

    fn of(body: &[u8]) -> u8 {
        attributes(body, 8).first().and_then(|(_, value)| value.last().copied()).unwrap_or(0)
    }

    impl Changes for Fake {
        fn change(&mut self, _: u16, body: &[u8]) -> Result<(), Errno> {
            let address = of(body);
            if address == self.refused {
                return Err(Errno::EPERM);
            }
            if !self.there.contains(&address) {
                return Err(Errno::EADDRNOTAVAIL);
            }
            let first = self.there.first() == Some(&address);
            self.there.retain(|other| *other != address && !(first && self.further.contains(other)));
            Ok(())
        }

        fn make(&mut self, _: u16, body: &[u8]) -> Result<(), Errno> {
            if self.there.contains(&of(body)) {
                return Err(Errno::EEXIST);
            }
            self.there.push(of(body));
            Ok(())
        }
    }

    fn seen(addresses: &[u8]) -> Seen {
        let told = |last: &u8| {
            let mut body = vec![2, 24, 0x80, 0, 7, 0, 0, 0];
            push(&mut body, 1, &[10, 0, 0, *last]);
            (crate::net::stack::Prefix { ip: [10, 0, 0, *last].into(), length: 24 }, body)
        };
        let addresses = addresses.iter().map(told).collect();
        Seen { addresses, routes: Vec::new(), neighbours: Vec::new(), tentative: false }
    }

    fn before() -> Before {
        let (addresses, routes, neighbours, settings) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Before { name: "eth0".to_owned(), addresses, routes, neighbours, settings }
    }

    /// The second address goes with the first, of which it is a further one, and the third is refused.
    #[test]
    fn what_is_refused_halfway_is_undone() {
        let mut host = Fake { there: vec![1, 2, 3], refused: 3, further: vec![2] };
        let mut before = before();
        assert_eq!(before.strip(&mut host, &seen(&[1, 2, 3])), Err(Errno::EPERM));
        host.there.sort_unstable();
        assert_eq!(host.there, [1, 2, 3]);
        assert!(before.addresses.is_empty());
    }

    /// What came later can be put back alone; all of it is known at the end.
    #[test]
    fn what_came_later_is_put_back_alone() {
        let mut host = Fake { there: vec![1, 2], refused: 9, further: vec![2] };
        let mut before = before();
        before.strip(&mut host, &seen(&[1, 2])).unwrap();
        let mark = before.mark();
        host.there = vec![4];
        before.strip(&mut host, &seen(&[4])).unwrap();
        assert!(host.there.is_empty());
        before.put_back_since(&mut host, mark);
        assert_eq!(host.there, [4]);
        before.put_back(&mut host);
        assert_eq!(host.there, [4, 1, 2]);
    }

    #[test]
    fn messages_that_are_cut_short_are_no_harm() {
        for length in 0..16 {
            let body = vec![10; length];
            let _ = (address(&body), route(&body));
        }
    }
}
