//! What an interface of the pod is like, as whoever opens it hands it in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Most addresses, routes and neighbours of an interface.
pub(super) const MOST: usize = 4096;

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network.
    pub length: u8,
}

impl Prefix {
    /// Whether an address is in the network.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.ip, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(self.length.into())).unwrap_or(0);
                u32::from(own) & mask == u32::from(ip) & mask
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(self.length.into())).unwrap_or(0);
                u128::from(own) & mask == u128::from(ip) & mask
            }
            _ => false,
        }
    }

    /// The address that means all of the network (RFC 919); networks of two addresses or one have none.
    #[must_use]
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        match self.ip {
            IpAddr::V4(ip) if self.length < 31 => {
                let hosts = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Some(Ipv4Addr::from(u32::from(ip) | hosts))
            }
            _ => None,
        }
    }

    /// The network itself: without the bits of a host.
    #[must_use]
    pub fn network(&self) -> Self {
        let ip = match self.ip {
            IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip) & u32::from(self.mask())).into(),
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(self.length.into())).unwrap_or(0);
                Ipv6Addr::from(u128::from(ip) & mask).into()
            }
        };
        Self { ip, length: self.length }
    }

    /// Its bits as an address of IPv4.
    #[must_use]
    pub fn mask(&self) -> Ipv4Addr {
        u32::MAX.checked_shl(32_u32.saturating_sub(self.length.into())).unwrap_or(0).into()
    }

    /// Everything, of a family.
    #[must_use]
    pub fn all(wide: bool) -> Self {
        let ip = if wide { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Self { ip, length: 0 }
    }
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteConfig {
    /// Where it leads.
    pub to: Prefix,
    /// By whom; directly without.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// The address that is sent from, unless the socket has one.
    #[serde(default)]
    pub source: Option<IpAddr>,
    /// Of two that lead there the lower one is taken.
    #[serde(default)]
    pub metric: u32,
    /// `RT_SCOPE_*`.
    #[serde(default)]
    pub scope: u8,
    /// `RTPROT_*`.
    #[serde(default)]
    pub protocol: u8,
}

/// Somebody whose hardware address is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourConfig {
    /// Its address.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// It stays so (`NUD_PERMANENT`).
    #[serde(default)]
    pub permanent: bool,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkConfig {
    /// Its name in the sandbox.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Longest packet.
    pub mtu: u32,
    /// Whether frames at the descriptor begin with a `struct virtio_net_hdr`: checksums and cutting are left to the host then.
    #[serde(default)]
    pub offload: bool,
    /// Its addresses.
    #[serde(default)]
    pub addresses: Vec<Prefix>,
    /// Its routes.
    #[serde(default)]
    pub routes: Vec<RouteConfig>,
    /// Whom it knows.
    #[serde(default)]
    pub neighbours: Vec<NeighbourConfig>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// `ip link` would not take it either.
    #[error("interface name {0:?}: 1 to 15 characters without space and slash, not lo")]
    Name(String),
    /// Less than IPv4 needs, or more than a frame has.
    #[error("MTU {0} of an interface: 68 to 65535 are possible")]
    Mtu(u32),
    /// A prefix is longer than its address.
    #[error("{0}/{1} is no address with the length of a prefix")]
    Prefix(IpAddr, u8),
    /// A gateway of another family than the route.
    #[error("the route to {0} leads over {1}, which is of another family")]
    Gateway(IpAddr, IpAddr),
    /// Too many of something.
    #[error("{0} {1} of an interface: at most {MOST}")]
    Many(usize, &'static str),
}

impl LinkConfig {
    /// Looks whether it can be used.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |c: char| c.is_whitespace() || c == '/' || c == '\0' || c == ':';
        if self.name.is_empty() || self.name.len() > 15 || self.name == "lo" || self.name.contains(wrong) {
            return Err(ConfigError::Name(self.name.clone()));
        }
        if !(68..=65_535).contains(&self.mtu) {
            return Err(ConfigError::Mtu(self.mtu));
        }
        let counts = [
            (self.addresses.len(), "addresses"),
            (self.routes.len(), "routes"),
            (self.neighbours.len(), "neighbours"),
        ];
        for (count, what) in counts {
            if count > MOST {
                return Err(ConfigError::Many(count, what));
            }
        }
        for prefix in self.addresses.iter().chain(self.routes.iter().map(|route| &route.to)) {
            if prefix.length > if prefix.ip.is_ipv4() { 32 } else { 128 } {
                return Err(ConfigError::Prefix(prefix.ip, prefix.length));
            }
        }
        for route in &self.routes {
            if let Some(gateway) = route.gateway.filter(|gateway| gateway.is_ipv4() != route.to.ip.is_ipv4())
            {
                return Err(ConfigError::Gateway(route.to.ip, gateway));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (ip, length) = text.split_once('/').unwrap();
        Prefix { ip: ip.parse().unwrap(), length: length.parse().unwrap() }
    }

    #[test]
    fn prefixes() {
        assert!(prefix("10.1.2.3/24").contains("10.1.2.255".parse().unwrap()));
        assert!(!prefix("10.1.2.3/24").contains("10.1.3.1".parse().unwrap()));
        assert!(prefix("0.0.0.0/0").contains("1.2.3.4".parse().unwrap()));
        assert!(!prefix("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(prefix("fd00::1/64").contains("fd00::ffff".parse().unwrap()));
        assert!(!prefix("fd00::1/128").contains("fd00::2".parse().unwrap()));
        assert_eq!(prefix("10.1.2.3/24").broadcast(), Some("10.1.2.255".parse().unwrap()));
        assert_eq!(prefix("10.1.2.3/32").broadcast(), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = LinkConfig {
            name: "eth0".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            offload: false,
            addresses: vec![prefix("10.0.0.2/24")],
            routes: vec![],
            neighbours: vec![],
        };
        assert_eq!(good.check(), Ok(()));
        for name in ["", "lo", "a name", "sixteen-letters-", "a/b"] {
            let bad = LinkConfig { name: name.to_owned(), ..good.clone() };
            assert_eq!(bad.check(), Err(ConfigError::Name(name.to_owned())));
        }
        assert_eq!(LinkConfig { mtu: 67, ..good.clone() }.check(), Err(ConfigError::Mtu(67)));
        let long = Prefix { length: 33, ..prefix("10.0.0.2/24") };
        let bad = LinkConfig { addresses: vec![long], ..good.clone() };
        assert_eq!(bad.check(), Err(ConfigError::Prefix(long.ip, 33)));
        let route = RouteConfig {
            to: Prefix::all(true),
            gateway: Some("10.0.0.1".parse().unwrap()),
            source: None,
            metric: 0,
            scope: 0,
            protocol: 0,
        };
        assert!(matches!(LinkConfig { routes: vec![route], ..good }.check(), Err(ConfigError::Gateway(..))));
    }
}
