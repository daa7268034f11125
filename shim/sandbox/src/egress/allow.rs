//! Where the guest may go: the node's list of targets, and what "any host" on it means.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use thiserror::Error;

use super::split_authority;

/// Where the guest may go.
#[derive(Clone, Debug, Default)]
pub struct AllowList(Vec<(String, u16)>);

/// An entry of the allow-list is not `host:port`.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("egress allow-list entry {0:?} must be host:port or *:port")]
pub struct AllowListError(String);

impl AllowList {
    /// From `host:port` entries; `*` stands for any host.
    ///
    /// # Errors
    /// When an entry has another form.
    pub fn parse(entries: &[String]) -> Result<Self, AllowListError> {
        let parse = |entry: &String| match split_authority(entry, None) {
            Some((host, port)) => Ok((host.to_ascii_lowercase(), port)),
            None => Err(AllowListError(entry.clone())),
        };
        entries.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether, and how, a target may be reached.
    #[must_use]
    pub fn allows(&self, host: &str, port: u16) -> Allowed {
        let host = host.to_ascii_lowercase();
        let named = |name: &str| self.0.iter().any(|(allowed, at)| *at == port && allowed == name);
        match (named(&host), named("*")) {
            // An entry's word for any host is no host.
            _ if host.contains('*') => Allowed::No,
            (true, _) => Allowed::ByName,
            (false, true) => Allowed::ByPort,
            (false, false) => Allowed::No,
        }
    }
}

/// What the allow-list says of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// It is not on the list.
    No,
    /// It is on the list by its name: whatever address it has is meant.
    ByName,
    /// Any host at that port is on the list. This proxy connects from the node's own network namespace, with what the node
    /// may reach, so "any host" is anything but the node itself, its link, and its cloud's own services.
    ByPort,
}

/// The addresses of an allowed target that may be connected to; none when all are refused.
pub(super) async fn targets(host: &str, port: u16, allowed: Allowed) -> std::io::Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((host, port)).await?;
    let may = |address: &SocketAddr| match allowed {
        Allowed::No => false,
        Allowed::ByName => true,
        Allowed::ByPort => is_elsewhere(address.ip()) && !is_own(address.ip()),
    };
    Ok(found.filter(may).collect())
}

/// Where clouds answer their nodes beside the link-local addresses: AWS (IPv6), Azure, Alibaba.
const CLOUD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
const CLOUD_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200)];

/// Whether an address is beyond the local link and its cloud's services: not loopback, unspecified, link-local (where clouds
/// have their metadata), multicast or broadcast.
fn is_elsewhere(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            // 0.0.0.0/8 is "this host on this network" (RFC 1122, 3.2.1.3).
            let this_host = v4.octets()[0] == 0;
            let near = v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast();
            !(this_host || near || CLOUD_V4.contains(&v4))
        }
        IpAddr::V6(v6) => {
            let near = v6.is_unicast_link_local() || v6.is_multicast();
            !(holds_ipv4(v6) || near || v6 == CLOUD_V6)
        }
    }
}

/// Whether a translator would make IPv4 of it, which could reach what the IPv4 rules refuse: compatible and translated
/// addresses (RFC 4291, 2.5.5; RFC 2765), NAT64 (RFC 6052, RFC 8215), 6to4 (RFC 3056). `::1` and `::` are among the first.
fn holds_ipv4(v6: Ipv6Addr) -> bool {
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => true,
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => true,
        [first, ..] => first == 0x2002,
    }
}

/// Whether the node itself has the address: the kernel then takes it as its own source too. Connecting a UDP socket looks up
/// the route and sends nothing. An address that has no route is none of the node's.
fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let any: SocketAddr = match address {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let source = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allow_list_is_exact() {
        let allow = AllowList::parse(&["kbs:8080".into(), "*:443".into()]).unwrap();
        assert_eq!(allow.allows("KBS", 8080), Allowed::ByName);
        assert_eq!(allow.allows("any.example", 443), Allowed::ByPort);
        assert_eq!(allow.allows("kbs", 8081), Allowed::No);
        assert_eq!(allow.allows("kbs.evil", 8080), Allowed::No);
        assert_eq!(AllowList::default().allows("kbs", 8080), Allowed::No);
        assert_eq!(AllowList::parse(&["kbs".into()]).unwrap_err(), AllowListError("kbs".into()));
    }

    #[test]
    fn any_host_is_neither_this_node_nor_its_link_nor_its_cloud() {
        for own in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:0:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b:1::7f00:1",
            "2002:7f00:1::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!is_elsewhere(own.parse().unwrap()), "{own}");
        }
        for other in ["10.0.0.1", "192.0.2.7", "2001:db8::1", "fd00::1", "::ffff:10.0.0.1"] {
            assert!(is_elsewhere(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn the_nodes_own_addresses_are_known() {
        let own: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter(|interface| interface.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP))
            .filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
            })
            // A link-local address means nothing without its link.
            .filter(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
            .collect();
        assert!(own.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), "{own:?}");
        for address in own {
            assert!(is_own(address), "{address}");
        }
        assert!(!is_own("192.0.2.7".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_target_that_is_named_is_meant_wherever_it_is() {
        let loopback: SocketAddr = "127.0.0.1:9".parse().unwrap();
        assert_eq!(targets("127.0.0.1", 9, Allowed::ByName).await.unwrap(), [loopback]);
        assert!(targets("127.0.0.1", 9, Allowed::ByPort).await.unwrap().is_empty());
        assert!(targets("127.0.0.1", 9, Allowed::No).await.unwrap().is_empty());
    }
}
