//! An interface that is attached.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Instant;

use super::config::LinkConfig;
use super::device::Device;
use super::neighbours::Neighbours;
use crate::net::lock;
use crate::sync::{read, write};

/// What went through an interface.
#[derive(Debug, Default)]
pub struct Counters {
    /// Packets and bytes that came.
    pub received: [AtomicU64; 2],
    /// Packets and bytes that went.
    pub sent: [AtomicU64; 2],
    /// Packets that were dropped: coming, going.
    dropped: [AtomicU64; 2],
}

impl Counters {
    pub(super) fn count(pair: &[AtomicU64; 2], bytes: usize) {
        pair[0].fetch_add(1, Ordering::Relaxed);
        pair[1].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn drop_one(&self, going: bool) {
        self.dropped[usize::from(going)].fetch_add(1, Ordering::Relaxed);
    }

    /// Packets that came and were dropped.
    #[must_use]
    pub fn dropped_in(&self) -> u64 {
        self.dropped[0].load(Ordering::Relaxed)
    }

    /// Packets that could not go.
    #[must_use]
    pub fn dropped_out(&self) -> u64 {
        self.dropped[1].load(Ordering::Relaxed)
    }

    /// Packets and bytes.
    #[must_use]
    pub fn read(pair: &[AtomicU64; 2]) -> [u64; 2] {
        [pair[0].load(Ordering::Relaxed), pair[1].load(Ordering::Relaxed)]
    }
}

/// An interface.
pub struct Interface {
    number: u32,
    name: String,
    mac: [u8; 6],
    config: RwLock<LinkConfig>,
    pub(super) device: Device,
    pub(super) neighbours: Mutex<Neighbours>,
    /// What went through.
    pub counters: Counters,
}

impl Interface {
    pub(super) fn new(number: u32, config: LinkConfig, fd: OwnedFd) -> Self {
        let device = Device::new(fd, config.offload);
        let mut neighbours = Neighbours::default();
        let now = Instant::now();
        for neighbour in &config.neighbours {
            neighbours.insert(neighbour.ip, neighbour.mac, neighbour.permanent, now);
        }
        Self {
            number,
            name: config.name.clone(),
            mac: config.mac,
            config: RwLock::new(config),
            device,
            neighbours: Mutex::new(neighbours),
            counters: Counters::default(),
        }
    }

    pub(super) fn configure(&self, config: LinkConfig) {
        let now = Instant::now();
        for neighbour in &config.neighbours {
            lock(&self.neighbours).insert(neighbour.ip, neighbour.mac, neighbour.permanent, now);
        }
        *write(&self.config) = config;
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its hardware address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Longest packet.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        read(&self.config).mtu
    }

    /// All of its configuration, as it is now.
    #[must_use]
    pub fn config(&self) -> LinkConfig {
        read(&self.config).clone()
    }

    /// Looks at it without a copy.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&LinkConfig) -> T) -> T {
        look(&read(&self.config))
    }

    /// Whom it knows: address, hardware address, whether for ever, whether lately.
    #[must_use]
    pub fn known(&self) -> Vec<(IpAddr, [u8; 6], bool, bool)> {
        lock(&self.neighbours).list(Instant::now())
    }

    /// Whether it has an address.
    pub(super) fn has(&self, ip: IpAddr) -> bool {
        self.with(|config| config.addresses.iter().any(|prefix| prefix.ip == ip))
    }

    /// Whether all of a network, or a group, is meant, for which it listens.
    pub(super) fn hears(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) if ip.is_broadcast() || ip.is_multicast() => true,
            IpAddr::V4(ip) => {
                self.with(|config| config.addresses.iter().any(|prefix| prefix.broadcast() == Some(ip)))
            }
            IpAddr::V6(ip) => ip.is_multicast(),
        }
    }

    /// The address of its own that it sends from, to one of a scope like this.
    pub(super) fn source(&self, to: IpAddr, next_hop: IpAddr) -> Option<IpAddr> {
        self.with(|config| {
            let of_family = || config.addresses.iter().filter(|prefix| prefix.ip.is_ipv4() == to.is_ipv4());
            let local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
            let narrow = local(to) || matches!(to, IpAddr::V6(ip) if is_link_group(ip));
            let fitting = || of_family().filter(|prefix| local(prefix.ip) == narrow);
            let near = fitting().find(|prefix| prefix.contains(next_hop));
            near.or(fitting().next()).or(of_family().next()).map(|prefix| prefix.ip)
        })
    }
}

/// Whether a group does not leave the link (RFC 4291, 2.7).
fn is_link_group(ip: Ipv6Addr) -> bool {
    ip.is_multicast() && ip.octets()[1] & 0xf <= 2
}
