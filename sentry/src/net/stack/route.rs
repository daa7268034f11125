//! Where packets go: by which interface, to whom on it, how long they may be (RFC 1812, 5.2.4.3; 1191; 8201).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::Prefix;
use super::{Interface, Stack};
use crate::error::Errno;
use crate::net::lock;

/// Destinations with packets that are shorter than their interface's, and how long that is believed (`net.ipv4.route.mtu_expires`).
const MTUS: usize = 4096;
const BELIEVED: Duration = Duration::from_secs(600);
/// Nobody is believed who wants less (`net.ipv4.route.min_pmtu`; RFC 8200, 5).
const LEAST: [usize; 2] = [552, 1280];

/// The way to a destination.
#[derive(Clone)]
pub(crate) struct Path {
    pub(crate) link: Arc<Interface>,
    pub(crate) next_hop: IpAddr,
    pub(crate) source: IpAddr,
    pub(crate) mtu: usize,
    pub(crate) generation: u64,
}

/// How long packets to destinations may be, where it is less than the interface's.
#[derive(Default)]
pub(crate) struct Mtus {
    entries: HashMap<IpAddr, (usize, Instant)>,
}

impl Mtus {
    fn find(&mut self, to: IpAddr, now: Instant) -> Option<usize> {
        let (mtu, since) = *self.entries.get(&to)?;
        if now.saturating_duration_since(since) > BELIEVED {
            self.entries.remove(&to);
            return None;
        }
        Some(mtu)
    }

    fn note(&mut self, to: IpAddr, mtu: usize, now: Instant) {
        if self.entries.len() >= MTUS && !self.entries.contains_key(&to) {
            self.entries.retain(|_, (_, since)| now.saturating_duration_since(*since) <= BELIEVED);
        }
        if self.entries.len() < MTUS {
            self.entries.insert(to, (mtu, now));
        }
    }
}

struct Candidate {
    length: u8,
    metric: u32,
    link: Arc<Interface>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
}

impl Stack {
    /// The way to an address, from one of ours where that is known.
    ///
    /// # Errors
    /// ENETUNREACH where there is none.
    pub(crate) fn path(&self, to: IpAddr, from: Option<IpAddr>) -> Result<Path, Errno> {
        let generation = self.generation();
        let wide = to.is_ipv6();
        let mut best: Option<Candidate> = None;
        let mut consider = |candidate: Candidate| {
            let better = best.as_ref().is_none_or(|best| {
                (candidate.length, std::cmp::Reverse(candidate.metric))
                    > (best.length, std::cmp::Reverse(best.metric))
            });
            if better {
                best = Some(candidate);
            }
        };
        for link in self.interfaces() {
            link.with(|config| {
                let direct = |length| Candidate {
                    length,
                    metric: 0,
                    link: Arc::clone(&link),
                    gateway: None,
                    source: None,
                };
                for prefix in config.addresses.iter().filter(|prefix| prefix.contains(to)) {
                    consider(direct(prefix.length));
                }
                // Groups and addresses of a link are everywhere on it.
                let everywhere =
                    to.is_multicast() || matches!(to, IpAddr::V6(ip) if ip.is_unicast_link_local());
                let own = config.addresses.iter().any(|prefix| prefix.ip.is_ipv6() == wide);
                if everywhere
                    && own
                    && from.is_none_or(|from| config.addresses.iter().any(|prefix| prefix.ip == from))
                {
                    consider(direct(8));
                }
                for route in config.routes.iter().filter(|route| route.to.contains(to)) {
                    let (gateway, source) = (route.gateway, route.source);
                    consider(Candidate { gateway, source, metric: route.metric, ..direct(route.to.length) });
                }
            });
        }
        let best = best.ok_or(Errno::ENETUNREACH)?;
        let next_hop = best.gateway.unwrap_or(to);
        let source =
            from.or(best.source).or_else(|| best.link.source(to, next_hop)).ok_or(Errno::ENETUNREACH)?;
        let own = best.link.mtu() as usize;
        let mtu = lock(&self.mtus).find(to, Instant::now()).map_or(own, |mtu| mtu.min(own));
        Ok(Path { link: best.link, next_hop, source, mtu, generation })
    }

    /// The way of what is for all of the link: of the interface that has this address, or of the first.
    pub(crate) fn broadcast_path(&self, to: IpAddr, from: Option<IpAddr>) -> Result<Path, Errno> {
        let generation = self.generation();
        let fits = |link: &Arc<Interface>| {
            link.with(|config| {
                config.addresses.iter().any(|prefix| {
                    from.map_or(prefix.ip.is_ipv4(), |from| from == prefix.ip)
                        && (to.is_multicast() || IpAddr::from([255; 4]) == to || Prefix::contains(prefix, to))
                })
            })
        };
        let link = self.interfaces().into_iter().find(fits).ok_or(Errno::ENETUNREACH)?;
        let source = from.or_else(|| link.source(to, to)).ok_or(Errno::ENETUNREACH)?;
        let mtu = link.mtu() as usize;
        Ok(Path { link, next_hop: to, source, mtu, generation })
    }

    /// Whether an address means all of a network of ours.
    pub(crate) fn is_broadcast(&self, to: IpAddr) -> bool {
        self.interfaces().iter().any(|link| !to.is_multicast() && link.hears(to))
    }

    /// Somebody says that packets to an address may be only so long: how long they may be from now on. `None` where that is nothing new.
    pub(crate) fn shorten(&self, to: IpAddr, mtu: usize) -> Option<usize> {
        let mtu = mtu.max(LEAST[usize::from(to.is_ipv6())]);
        if self.path(to, None).ok()?.mtu <= mtu {
            return None;
        }
        lock(&self.mtus).note(to, mtu, Instant::now());
        self.generation.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        Some(mtu)
    }
}
