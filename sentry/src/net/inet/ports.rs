//! Who has which port (`inet_csk_get_port`, `udp_lib_get_port`).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::super::lock;
use super::super::socket::Socket;
use crate::error::Errno;

/// Ports that are given to who asks for none in particular (`net.ipv4.ip_local_port_range`).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32_768..=60_999;
/// How long a port is remembered by whoever closed first (`TCP_TIMEWAIT_LEN`).
const TIME_WAIT: Duration = Duration::from_secs(60);

/// What a socket asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) ip: IpAddr,
    pub(crate) only_v6: bool,
    pub(crate) reuse_address: bool,
    pub(crate) reuse_port: bool,
    pub(crate) uid: u32,
    pub(crate) id: u64,
}

impl Claim {
    /// Whether an address is one of those that it is for.
    fn covers(&self, ip: IpAddr) -> bool {
        match self.ip {
            IpAddr::V6(own) if own.is_unspecified() => ip.is_ipv6() || !self.only_v6,
            IpAddr::V4(own) if own.is_unspecified() => ip.is_ipv4(),
            own => own == ip,
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.covers(other.ip)
            || other.covers(self.ip)
            || self.ip.is_unspecified() && other.ip.is_unspecified() && !self.only_v6 && !other.only_v6
    }

    fn shares_port(&self, other: &Self) -> bool {
        self.reuse_port && other.reuse_port && self.uid == other.uid
    }
}

struct Binding {
    claim: Claim,
    listening: bool,
    /// Who alone it hears.
    remote: Option<SocketAddr>,
    socket: Weak<dyn Socket>,
}

/// What is left of connections at a port: without and with `SO_REUSEADDR`.
#[derive(Default)]
struct Past {
    accepted: [usize; 2],
    until: [Option<Instant>; 2],
}

impl Past {
    fn conflicts(&self, reuse: bool) -> bool {
        let now = Instant::now();
        let used = |at: usize| self.accepted[at] > 0 || self.until[at].is_some_and(|until| until > now);
        used(0) || used(1) && !reuse
    }

    fn over(&self) -> bool {
        let now = Instant::now();
        self.accepted == [0; 2] && self.until.iter().flatten().all(|until| *until <= now)
    }
}

#[derive(Default)]
struct Inner {
    bindings: HashMap<u16, Vec<Binding>>,
    past: HashMap<u16, Past>,
}

/// Ports of a protocol.
#[derive(Default)]
pub(crate) struct Table {
    inner: Mutex<Inner>,
    /// Where the search for a free port begins.
    start: AtomicUsize,
    /// Whose turn it is among those that share a port.
    turn: AtomicUsize,
}

/// Ports of all protocols.
#[derive(Default)]
pub(crate) struct Ports {
    pub(crate) tcp: Table,
    pub(crate) udp: Table,
    pub(crate) echo: Table,
    pub(crate) raw: super::raw::RawSockets,
    /// Groups that sockets are members of, and how many of them.
    groups: Mutex<BTreeMap<IpAddr, usize>>,
}

impl Ports {
    /// A socket joins a group: whether it is the first.
    pub(crate) fn join(&self, group: IpAddr) -> bool {
        let mut groups = lock(&self.groups);
        let count = groups.entry(group).or_default();
        *count = count.saturating_add(1);
        *count == 1
    }

    /// A socket leaves a group: whether it was the last.
    pub(crate) fn leave(&self, group: IpAddr) -> bool {
        let mut groups = lock(&self.groups);
        let Some(count) = groups.get_mut(&group) else { return false };
        *count = count.saturating_sub(1);
        let last = *count == 0;
        if last {
            groups.remove(&group);
        }
        last
    }

    /// Groups of a family that anybody is a member of.
    pub(crate) fn groups(&self, wide: bool) -> Vec<IpAddr> {
        lock(&self.groups).keys().filter(|group| group.is_ipv6() == wide).copied().collect()
    }
}

impl Inner {
    fn conflicts(&self, port: u16, claim: &Claim) -> bool {
        let with = |binding: &Binding| {
            let other = &binding.claim;
            let shared = claim.reuse_address && other.reuse_address && !binding.listening;
            claim.overlaps(other) && !shared && !claim.shares_port(other)
        };
        self.past.get(&port).is_some_and(|past| past.conflicts(claim.reuse_address))
            || self.bindings.get(&port).is_some_and(|bindings| bindings.iter().any(with))
    }
}

impl Table {
    /// Gives a port to a socket: this, or any for 0.
    ///
    /// # Errors
    /// EADDRINUSE; where `connects`, EADDRNOTAVAIL where none is left.
    pub(crate) fn claim(
        &self,
        port: u16,
        claim: Claim,
        socket: &Weak<dyn Socket>,
        connects: bool,
    ) -> Result<u16, Errno> {
        let mut inner = lock(&self.inner);
        let port = if port == 0 {
            let count = EPHEMERAL.len();
            let start = self.start.fetch_add(1, Ordering::Relaxed) % count;
            let mut ports = EPHEMERAL.skip(start).chain(EPHEMERAL.take(start));
            let free = ports.find(|port| {
                if connects {
                    inner.bindings.get(port).is_none_or(Vec::is_empty)
                } else {
                    !inner.conflicts(*port, &claim)
                }
            });
            free.ok_or(if connects { Errno::EADDRNOTAVAIL } else { Errno::EADDRINUSE })?
        } else if inner.conflicts(port, &claim) {
            return Err(Errno::EADDRINUSE);
        } else {
            port
        };
        let binding = Binding { claim, listening: false, remote: None, socket: Weak::clone(socket) };
        inner.bindings.entry(port).or_default().push(binding);
        Ok(port)
    }

    /// A socket goes.
    pub(crate) fn release(&self, port: u16, id: u64) {
        let mut gone = Vec::new();
        let mut inner = lock(&self.inner);
        if let Some(bindings) = inner.bindings.get_mut(&port) {
            gone.extend(bindings.extract_if(.., |binding| binding.claim.id == id));
            if bindings.is_empty() {
                inner.bindings.remove(&port);
            }
        }
        drop(inner);
    }

    /// A socket listens.
    ///
    /// # Errors
    /// EADDRINUSE where another does.
    pub(crate) fn listen(&self, port: u16, id: u64) -> Result<(), Errno> {
        let mut inner = lock(&self.inner);
        let bindings = inner.bindings.get_mut(&port).ok_or(Errno::EINVAL)?;
        let own = bindings.iter().find(|binding| binding.claim.id == id).ok_or(Errno::EINVAL)?.claim;
        let taken = bindings.iter().any(|binding| {
            binding.listening
                && binding.claim.id != id
                && binding.claim.overlaps(&own)
                && !binding.claim.shares_port(&own)
        });
        if taken {
            return Err(Errno::EADDRINUSE);
        }
        bindings
            .iter_mut()
            .filter(|binding| binding.claim.id == id)
            .for_each(|binding| binding.listening = true);
        Ok(())
    }

    /// A socket hears this one alone, or everybody, and by another address.
    pub(crate) fn connect(&self, port: u16, id: u64, ip: IpAddr, remote: Option<SocketAddr>) {
        let mut inner = lock(&self.inner);
        let bindings = inner.bindings.get_mut(&port).into_iter().flatten();
        for binding in bindings.filter(|binding| binding.claim.id == id) {
            binding.remote = remote;
            binding.claim.ip = ip;
        }
    }

    /// Who gets what comes to an address from another: the most particular; among those that share a port, one after the other.
    pub(crate) fn find(&self, to: SocketAddr, from: SocketAddr, listening: bool) -> Option<Arc<dyn Socket>> {
        let inner = lock(&self.inner);
        let rank = |binding: &Binding| {
            let heard = binding.remote.is_none_or(|remote| remote == from);
            let fits = heard && binding.listening == listening && binding.claim.covers(to.ip());
            fits.then(|| {
                let exact = u8::from(binding.claim.ip == to.ip());
                let family = u8::from(binding.claim.ip.is_ipv4() == to.is_ipv4());
                u8::from(binding.remote.is_some()) * 4 + exact * 2 + family
            })
        };
        let bindings = inner.bindings.get(&to.port())?;
        let best = bindings.iter().filter_map(rank).max()?;
        let equals: Vec<_> = bindings.iter().filter(|binding| rank(binding) == Some(best)).collect();
        // Without SO_REUSEPORT the last one that was bound (`SO_REUSEADDR` of UDP).
        let at = if equals.iter().all(|binding| binding.claim.reuse_port) {
            self.turn.fetch_add(1, Ordering::Relaxed) % equals.len().max(1)
        } else {
            equals.len().saturating_sub(1)
        };
        equals.get(at).and_then(|binding| binding.socket.upgrade())
    }

    /// All sockets of a port.
    pub(crate) fn all(&self, port: u16) -> Vec<Arc<dyn Socket>> {
        let inner = lock(&self.inner);
        let bindings = inner.bindings.get(&port).into_iter().flatten();
        bindings.filter_map(|binding| binding.socket.upgrade()).collect()
    }

    /// A connection was accepted at a port.
    pub(crate) fn accepted(&self, port: u16, reuse: bool) {
        let mut inner = lock(&self.inner);
        let count = &mut inner.past.entry(port).or_default().accepted[usize::from(reuse)];
        *count = count.saturating_add(1);
    }

    /// It is gone.
    pub(crate) fn departed(&self, port: u16, reuse: bool) {
        let mut inner = lock(&self.inner);
        if let Some(past) = inner.past.get_mut(&port) {
            let count = &mut past.accepted[usize::from(reuse)];
            *count = count.saturating_sub(1);
            if past.over() {
                inner.past.remove(&port);
            }
        }
    }

    /// A connection was closed here first.
    pub(crate) fn linger(&self, port: u16, reuse: bool) {
        let until = Instant::now().checked_add(TIME_WAIT);
        lock(&self.inner).past.entry(port).or_default().until[usize::from(reuse)] = until;
    }
}
