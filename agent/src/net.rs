//! Network of the guest by netlink: interfaces, routes, neighbours, as the host asks (and the policy allows).
//!
//! An interface is found by its MAC address, else by name, else it is the first device not in use: a spare
//! virtio-net device sits in the VM from the start and gets MAC, name and addresses when an interface appears in
//! the pod's network namespace. Kata's semantics: link down, addresses, name (a conflict is swapped away), MTU,
//! NOARP, up; routes without gateway first, replaced where they exist.

use std::net::IpAddr;

use futures::TryStreamExt;
use kata_cc_agent_protocol::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteScope,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use thiserror::Error;

/// `IFF_NOARP`.
const NOARP: u32 = 0x80;
/// `IFNAMSIZ` - 1.
const MAX_NAME: usize = 15;

/// Listens on `port` of 127.0.0.1 for connections that come by the loopback device.
///
/// By address alone it would depend on a parameter (`route_localnet`) whether packets of the host for 127.0.0.1 arrive.
pub(crate) fn listen_on_loopback(port: u16) -> std::io::Result<tokio::net::TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind_device(Some(b"lo"))?;
    socket.bind((std::net::Ipv4Addr::LOCALHOST, port).into())?;
    socket.listen(1024)
}

/// Why a network request was refused or failed.
#[derive(Debug, Error)]
pub(crate) enum NetError {
    /// The kernel said no.
    #[error("{what}: {source}")]
    Netlink {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// Nothing fits.
    #[error("no network device with MAC {mac:?} or name {name:?}, and no spare one; there are {seen:?}")]
    NoDevice {
        /// MAC asked for.
        mac: String,
        /// Name asked for.
        name: String,
        /// Names that exist.
        seen: Vec<String>,
    },
    /// A value that does not parse.
    #[error("{what} {value:?} is not valid")]
    Value {
        /// Which field.
        what: &'static str,
        /// What it holds.
        value: String,
    },
    /// The machine has no netlink.
    #[error("netlink is not available")]
    Unavailable,
}

fn invalid(what: &'static str, value: &str) -> NetError {
    NetError::Value { what, value: value.chars().take(64).collect() }
}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetError {
    let what = what.into();
    move |source| NetError::Netlink { what, source }
}

/// A link as far as it matters here.
#[derive(Debug, Clone)]
struct Link {
    index: u32,
    name: String,
    mac: Vec<u8>,
    mtu: u32,
    up: bool,
    loopback: bool,
}

impl Link {
    fn read(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: Vec::new(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                _ => {}
            }
        }
        link
    }
}

/// The guest's network.
#[derive(Debug, Clone)]
pub(crate) struct Network(Option<Handle>);

impl Network {
    /// Connects to the kernel. Must be called in a runtime.
    pub(crate) fn new() -> Self {
        match rtnetlink::new_connection() {
            Ok((connection, handle, _)) => {
                tokio::spawn(connection);
                Self(Some(handle))
            }
            Err(e) => {
                tracing::warn!(error = %e, "no netlink: network requests will fail");
                Self(None)
            }
        }
    }

    fn handle(&self) -> Result<&Handle, NetError> {
        self.0.as_ref().ok_or(NetError::Unavailable)
    }

    async fn links(&self) -> Result<Vec<Link>, NetError> {
        let all = self.handle()?.link().get().execute().try_collect::<Vec<_>>();
        let all = all.await.map_err(failed("list links"))?;
        Ok(all.iter().map(Link::read).collect())
    }

    /// Brings loopback up.
    pub(crate) async fn loopback_up(&self) -> Result<(), NetError> {
        let up = LinkUnspec::new_with_name("lo").up().build();
        let change = self.handle()?.link().change(up).execute().await;
        change.map_err(failed("bring lo up"))
    }

    /// UpdateInterface.
    pub(crate) async fn update_interface(&self, wanted: &Interface) -> Result<(), NetError> {
        let handle = self.handle()?;
        let mac = parse_mac(&wanted.hwAddr)?;
        let fits = !wanted.name.is_empty()
            && wanted.name.len() <= MAX_NAME
            && wanted.name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if !fits || matches!(wanted.name.as_str(), "." | ".." | "lo") {
            return Err(invalid("interface name", &wanted.name));
        }
        let addresses: Vec<(IpAddr, u8)> =
            wanted.IPAddresses.iter().map(parse_address).collect::<Result<_, _>>()?;
        let links = self.links().await?;
        let Some(link) = pick(&links, mac.as_deref(), wanted) else {
            return Err(NetError::NoDevice {
                mac: wanted.hwAddr.clone(),
                name: wanted.name.clone(),
                seen: links.iter().map(|l| l.name.clone()).collect(),
            });
        };
        let change = |what: &str, message: LinkMessage| {
            let what = format!("{what} of {}", link.name);
            let request = handle.link().change(message);
            async move { request.execute().await.map_err(failed(what)) }
        };
        let of = || LinkUnspec::new_with_index(link.index);
        change("set down", of().down().build()).await?;
        if let Some(mac) = mac.filter(|m| *m != link.mac) {
            change("set the MAC", of().address(mac).build()).await?;
        }
        if link.name != wanted.name {
            if let Some(other) = links.iter().find(|l| l.name == wanted.name && l.index != link.index) {
                let away = LinkUnspec::new_with_index(other.index);
                change("free the name", away.down().name(temporary(&other.name)).build()).await?;
            }
            change("rename", of().name(wanted.name.as_str()).build()).await?;
        }
        if wanted.mtu > 0 {
            let mtu = u32::try_from(wanted.mtu).map_err(|_| invalid("MTU", &wanted.mtu.to_string()))?;
            change("set the MTU", of().mtu(mtu).build()).await?;
        }
        self.set_addresses(link.index, &addresses).await?;
        let arp = wanted.raw_flags & NOARP == 0;
        change("set up", of().arp(arp).up().build()).await
    }

    /// Makes the addresses of a link these.
    async fn set_addresses(&self, index: u32, wanted: &[(IpAddr, u8)]) -> Result<(), NetError> {
        let handle = self.handle()?;
        let present = handle.address().get().set_link_index_filter(index).execute();
        let present = present.try_collect::<Vec<_>>().await.map_err(failed("list addresses"))?;
        for message in present {
            let address = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(a) => Some(*a),
                _ => None,
            });
            let keep = address.is_some_and(|a| {
                wanted.contains(&(a, message.header.prefix_len))
                    || matches!(a, IpAddr::V6(v6) if v6.is_unicast_link_local())
            });
            if !keep {
                handle.address().del(message).execute().await.map_err(failed("remove an address"))?;
            }
        }
        for (address, prefix) in wanted {
            if address.is_ipv6() && !std::path::Path::new("/proc/sys/net/ipv6").exists() {
                tracing::info!(%address, "IPv6 address skipped: the guest has no IPv6");
                continue;
            }
            let add = handle.address().add(index, *address, *prefix).replace().execute();
            add.await.map_err(failed(format!("add address {address}/{prefix}")))?;
        }
        Ok(())
    }

    /// ListInterfaces.
    pub(crate) async fn interfaces(&self) -> Result<Vec<Interface>, NetError> {
        let mut all = Vec::new();
        for link in self.links().await? {
            let mut interface = Interface::new();
            interface.device.clone_from(&link.name);
            interface.name.clone_from(&link.name);
            interface.mtu = link.mtu.into();
            interface.hwAddr = show_mac(&link.mac);
            let found = self.handle()?.address().get().set_link_index_filter(link.index).execute();
            let found = found.try_collect::<Vec<_>>().await.map_err(failed("list addresses"))?;
            for message in found {
                for attribute in &message.attributes {
                    if let AddressAttribute::Address(address) = attribute {
                        let mut shown = IPAddress::new();
                        shown.family = family_of(*address).into();
                        shown.address = address.to_string();
                        shown.mask = message.header.prefix_len.to_string();
                        interface.IPAddresses.push(shown);
                    }
                }
            }
            all.push(interface);
        }
        Ok(all)
    }

    /// UpdateRoutes.
    pub(crate) async fn update_routes(&self, wanted: &[Route]) -> Result<(), NetError> {
        let handle = self.handle()?;
        let links = self.links().await?;
        // What has no gateway makes the gateways of the others reachable.
        let (direct, via): (Vec<_>, Vec<_>) = wanted.iter().partition(|r| r.gateway.is_empty());
        for route in direct.into_iter().chain(via) {
            let index = links.iter().find(|l| l.name == route.device).map(|l| l.index);
            let index = index.ok_or_else(|| invalid("route device", &route.device))?;
            let message = route_message(route, index)?;
            let what = format!("set route to {:?} by {:?}", route.dest, route.gateway);
            handle.route().add(message).replace().execute().await.map_err(failed(what))?;
        }
        Ok(())
    }

    /// ListRoutes: the main table.
    pub(crate) async fn routes(&self) -> Result<Vec<Route>, NetError> {
        let links = self.links().await?;
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            let found = self.handle()?.route().get(query).execute().try_collect::<Vec<_>>();
            // No IPv6 in the kernel is no error.
            let Ok(found) = found.await else { continue };
            all.extend(found.iter().filter_map(|m| show_route(m, &links)));
        }
        Ok(all)
    }

    /// AddARPNeighbors.
    pub(crate) async fn add_neighbors(&self, wanted: &[ARPNeighbor]) -> Result<(), NetError> {
        let links = self.links().await?;
        for n in wanted {
            let index = links.iter().find(|l| l.name == n.device).map(|l| l.index);
            let index = index.ok_or_else(|| invalid("neighbour device", &n.device))?;
            let text = n.toIPAddress.as_ref().map(|a| a.address.clone()).unwrap_or_default();
            let address: IpAddr = text.parse().map_err(|_| invalid("neighbour address", &text))?;
            let state =
                match u16::try_from(n.state).map_err(|_| invalid("neighbour state", &n.state.to_string()))? {
                    0 => NeighbourState::Permanent,
                    other => NeighbourState::from(other),
                };
            let flags =
                u8::try_from(n.flags).map_err(|_| invalid("neighbour flags", &n.flags.to_string()))?;
            let mut request = self.handle()?.neighbours().add(index, address);
            request = request.state(state).flags(NeighbourFlags::from_bits_retain(flags)).replace();
            if let Some(mac) = parse_mac(&n.lladdr)? {
                request = request.link_layer_address(&mac);
            }
            request.execute().await.map_err(failed(format!("add neighbour {address}")))?;
        }
        Ok(())
    }
}

/// By MAC, else by name, else the first device that is not in use.
fn pick<'a>(links: &'a [Link], mac: Option<&[u8]>, wanted: &Interface) -> Option<&'a Link> {
    let usable = || links.iter().filter(|l| !l.loopback);
    usable()
        .find(|l| mac == Some(l.mac.as_slice()))
        .or_else(|| usable().find(|l| l.name == wanted.device || l.name == wanted.name))
        .or_else(|| usable().find(|l| !l.up && l.mac.len() == 6 && !l.name.starts_with("dummy")))
}

/// A free name that fits.
fn temporary(name: &str) -> String {
    let short: String = name.chars().take(MAX_NAME - 5).collect();
    format!("{short}_temp")
}

fn family_of(address: IpAddr) -> IPFamily {
    if address.is_ipv4() { IPFamily::v4 } else { IPFamily::v6 }
}

fn parse_mac(text: &str) -> Result<Option<Vec<u8>>, NetError> {
    if text.is_empty() {
        return Ok(None);
    }
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|b| u8::from_str_radix(b, 16).ok().filter(|_| b.len() == 2)).collect();
    bytes.filter(|b| b.len() == 6).map(Some).ok_or_else(|| invalid("MAC address", text))
}

fn show_mac(mac: &[u8]) -> String {
    mac.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

fn parse_address(a: &IPAddress) -> Result<(IpAddr, u8), NetError> {
    let address: IpAddr = a.address.parse().map_err(|_| invalid("IP address", &a.address))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = a.mask.parse().ok().filter(|p| *p <= most);
    Ok((address, prefix.ok_or_else(|| invalid("prefix length", &a.mask))?))
}

fn parse_cidr(text: &str) -> Result<(IpAddr, u8), NetError> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().map_err(|_| invalid("network", text))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        "" => Some(most),
        p => p.parse().ok().filter(|p| *p <= most),
    };
    Ok((address, prefix.ok_or_else(|| invalid("network", text))?))
}

fn route_message(route: &Route, index: u32) -> Result<RouteMessage, NetError> {
    let v6 = route.family.enum_value() == Ok(IPFamily::v6);
    let bad = |what: &'static str, value: &str| {
        let value = value.to_owned();
        move |_| invalid(what, &value)
    };
    let mut builder = RouteMessageBuilder::<IpAddr>::new().output_interface(index);
    builder.get_mut().header.address_family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let scope = u8::try_from(route.scope).map_err(|_| invalid("route scope", &route.scope.to_string()))?;
    builder = builder.scope(RouteScope::from(scope));
    if !matches!(route.dest.as_str(), "" | "default") {
        let (address, prefix) = parse_cidr(&route.dest)?;
        builder =
            builder.destination_prefix(address, prefix).map_err(bad("route destination", &route.dest))?;
    }
    if !route.source.is_empty() {
        let (address, prefix) = parse_cidr(&route.source)?;
        builder = match route.source.contains('/') && prefix > 0 {
            true => builder.source_prefix(address, prefix),
            false => builder.pref_source(address),
        }
        .map_err(bad("route source", &route.source))?;
    }
    if !route.gateway.is_empty() {
        let gateway: IpAddr = route.gateway.parse().map_err(|_| invalid("gateway", &route.gateway))?;
        builder = builder.gateway(gateway).map_err(bad("gateway", &route.gateway))?;
    }
    let mut message = builder.build();
    if route.mtu > 0 {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    message.header.flags |= netlink_packet_route::route::RouteFlags::from_bits_retain(route.flags);
    Ok(message)
}

fn show_route(message: &RouteMessage, links: &[Link]) -> Option<Route> {
    if message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let mut route = Route::new();
    route.scope = u8::from(message.header.scope).into();
    let v6 = message.header.address_family == AddressFamily::Inet6;
    route.family = if v6 { IPFamily::v6 } else { IPFamily::v4 }.into();
    let show = |a: &RouteAddress| match a {
        RouteAddress::Inet(a) => a.to_string(),
        RouteAddress::Inet6(a) => a.to_string(),
        _ => String::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(a) => {
                route.dest = format!("{}/{}", show(a), message.header.destination_prefix_length);
            }
            RouteAttribute::Gateway(a) => route.gateway = show(a),
            RouteAttribute::PrefSource(a) => route.source = show(a),
            RouteAttribute::Oif(index) => {
                let link = links.iter().find(|l| l.index == *index)?;
                route.device.clone_from(&link.name);
            }
            _ => {}
        }
    }
    Some(route)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, last: u8, up: bool) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: vec![2, 0, 0, 0, 0, last],
            mtu: 1500,
            up,
            loopback: name == "lo",
        }
    }

    #[test]
    fn devices_are_found_by_mac_then_name_then_spare() {
        let links = [link(1, "lo", 0, true), link(2, "eth0", 1, true), link(3, "eth1", 2, false)];
        let mut wanted = Interface::new();
        wanted.name = "eth0".to_owned();
        let at =
            |wanted: &Interface, mac: u8| pick(&links, Some(&[2, 0, 0, 0, 0, mac]), wanted).map(|l| l.index);
        assert_eq!(at(&wanted, 2), Some(3));
        assert_eq!(at(&wanted, 9), Some(2));
        wanted.name = "net7".to_owned();
        assert_eq!(at(&wanted, 9), Some(3));
        wanted.name = "lo".to_owned();
        assert_eq!(at(&wanted, 0), Some(3));
    }

    #[tokio::test]
    async fn services_of_the_guest_are_reached_by_the_loopback_device_only() {
        let listener = listen_on_loopback(0).unwrap();
        let device =
            nix::sys::socket::getsockopt(&listener, nix::sys::socket::sockopt::BindToDevice).unwrap();
        assert_eq!(device.to_string_lossy().trim_end_matches('\0'), "lo");
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        client.and(server).unwrap();
    }

    #[test]
    fn odd_values_are_refused() {
        for mac in ["2:0:0:0:0:1", "02:00:00:00:00", "02:00:00:00:00:0g", "zz"] {
            assert!(parse_mac(mac).is_err(), "{mac}");
        }
        assert!(parse_cidr("10.0.0.0/33").is_err());
        assert!(parse_cidr("::/129").is_err());
        assert!(parse_cidr("x").is_err());
        let mut address = IPAddress::new();
        address.address = "10.0.0.1".to_owned();
        assert!(parse_address(&address).is_err());
        address.mask = "24".to_owned();
        assert_eq!(parse_address(&address).unwrap().1, 24);
    }

    #[test]
    fn routes_become_messages() {
        let mut route = Route::new();
        route.gateway = "10.0.0.1".to_owned();
        let message = route_message(&route, 7).unwrap();
        assert!(message.attributes.contains(&RouteAttribute::Oif(7)));
        assert_eq!(message.header.destination_prefix_length, 0);
        route.dest = "10.1.0.0/16".to_owned();
        route.scope = 253;
        route.mtu = 1400;
        let message = route_message(&route, 7).unwrap();
        assert_eq!(message.header.scope, RouteScope::Link);
        route.gateway = "fe80::1".to_owned();
        route.family = IPFamily::v6.into();
        assert!(route_message(&route, 7).is_err());
    }

    #[test]
    fn temporary_names_fit() {
        assert_eq!(temporary("averylongname12").len(), 15);
    }
}
