//! Interfaces, routes and neighbours as the agent API carries them, and as the sentry's stack has them.

use std::net::IpAddr;

use kata_cc_agent_protocol::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};
use kata_cc_sentry::net::stack::{LinkConfig, NeighbourConfig, Prefix, RouteConfig};

use super::spec::{SpecError, invalid, unsupported};

/// `NUD_PERMANENT` (`include/uapi/linux/neighbour.h`).
const PERMANENT: i32 = 0x80;
/// `RTPROT_STATIC` (`include/uapi/linux/rtnetlink.h`).
const STATIC: u8 = 4;

/// An interface, and the longest packet of its host's side.
type Known = (LinkConfig, u32);

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

fn ip(field: &str, text: &str) -> Result<IpAddr, SpecError> {
    text.parse().or_else(|_| invalid(field, format!("{} is no IP address", shown(text))))
}

fn length(field: &str, ip: IpAddr, text: &str) -> Result<u8, SpecError> {
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let length = text.parse().ok().filter(|length| *length <= most);
    length.map_or_else(|| invalid(field, format!("{} is no length of a prefix of {ip}", shown(text))), Ok)
}

fn mac(field: &str, text: &str) -> Result<[u8; 6], SpecError> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let mac = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    mac.map_or_else(|| invalid(field, format!("{} is no hardware address of Ethernet", shown(text))), Ok)
}

fn show_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn family(ip: IpAddr) -> IPFamily {
    if ip.is_ipv4() { IPFamily::v4 } else { IPFamily::v6 }
}

/// The interface of a name.
pub(super) fn named<'a>(links: &'a mut [Known], field: &str, name: &str) -> Result<&'a mut Known, SpecError> {
    let names: Vec<String> = links.iter().map(|(config, _)| config.name.clone()).collect();
    match links.iter_mut().find(|(config, _)| config.name == name) {
        Some(found) => Ok(found),
        None => invalid(field, format!("there is no interface {} but {names:?}", shown(name))),
    }
}

/// The interface that is meant: by its hardware address, else by its name.
pub(super) fn find<'a>(links: &'a mut [Known], wanted: &Interface) -> Result<&'a mut Known, SpecError> {
    if wanted.hwAddr.is_empty() {
        let name = if wanted.name.is_empty() { &wanted.device } else { &wanted.name };
        return named(links, "interface.name", name);
    }
    let mac = mac("interface.hwAddr", &wanted.hwAddr)?;
    let found = links.iter_mut().find(|(config, _)| config.mac == mac);
    found.map_or_else(|| invalid("interface.hwAddr", format!("no interface has {}", show_mac(mac))), Ok)
}

/// The interface as it is wanted.
pub(super) fn update(known: &LinkConfig, most: u32, wanted: &Interface) -> Result<LinkConfig, SpecError> {
    if !wanted.name.is_empty() && wanted.name != known.name {
        return unsupported("interface.name", format!("the interface is called {} for good", known.name));
    }
    let mtu = match wanted.mtu {
        0 => known.mtu,
        mtu => match u32::try_from(mtu).ok().filter(|mtu| *mtu <= most) {
            Some(mtu) => mtu,
            None => {
                return invalid("interface.mtu", format!("{mtu} is more than the host's side takes, {most}"));
            }
        },
    };
    let prefix = |address: &IPAddress| {
        let ip = ip("interface.IPAddresses.address", &address.address)?;
        Ok(Prefix { ip, length: length("interface.IPAddresses.mask", ip, &address.mask)? })
    };
    let addresses = wanted.IPAddresses.iter().map(prefix).collect::<Result<_, _>>()?;
    Ok(LinkConfig { mtu, addresses, ..known.clone() })
}

/// What the host's side of an interface has got since.
pub(super) fn add(known: &mut LinkConfig, host: LinkConfig, most: &mut u32) {
    fn add<T: PartialEq>(to: &mut Vec<T>, from: Vec<T>) {
        for one in from {
            if !to.contains(&one) {
                to.push(one);
            }
        }
    }
    if host.mtu != *most {
        (known.mtu, *most) = (host.mtu, host.mtu);
    }
    add(&mut known.addresses, host.addresses);
    add(&mut known.routes, host.routes);
    add(&mut known.neighbours, host.neighbours);
}

/// With a route more.
pub(super) fn with_route(known: &LinkConfig, route: &Route) -> Result<LinkConfig, SpecError> {
    let wide = route.family.enum_value() == Ok(IPFamily::v6);
    let some = |field: &str, text: &String| match text.is_empty() {
        true => Ok(None),
        false => ip(field, text).map(Some),
    };
    let gateway = some("route.gateway", &route.gateway)?;
    let to = match route.dest.split_once('/') {
        _ if route.dest.is_empty() || route.dest == "default" => {
            Prefix::all(gateway.map_or(wide, |gateway| gateway.is_ipv6()))
        }
        Some((network, bits)) => {
            let ip = ip("route.dest", network)?;
            Prefix { ip, length: length("route.dest", ip, bits)? }.network()
        }
        None => {
            let ip = ip("route.dest", &route.dest)?;
            Prefix { ip, length: if ip.is_ipv4() { 32 } else { 128 } }
        }
    };
    let Ok(scope) = u8::try_from(route.scope) else {
        return invalid("route.scope", format!("{} is no scope", route.scope));
    };
    let source = some("route.source", &route.source)?;
    let route = RouteConfig { to, gateway, source, metric: 0, scope, protocol: STATIC };
    let mut next = known.clone();
    next.routes.retain(|other| (other.to.network(), other.metric) != (to, 0));
    next.routes.push(route);
    Ok(next)
}

/// With a neighbour more.
pub(super) fn with_neighbour(known: &LinkConfig, neighbour: &ARPNeighbor) -> Result<LinkConfig, SpecError> {
    let ip = ip("neighbor.toIPAddress", &neighbour.toIPAddress.get_or_default().address)?;
    let mac = mac("neighbor.lladdr", &neighbour.lladdr)?;
    let permanent = neighbour.state == 0 || neighbour.state & PERMANENT != 0;
    let mut next = known.clone();
    next.neighbours.retain(|other| other.ip != ip);
    next.neighbours.push(NeighbourConfig { ip, mac, permanent });
    Ok(next)
}

/// An interface as it is told.
pub(super) fn show(config: &LinkConfig) -> Interface {
    let mut interface = Interface::new();
    interface.device.clone_from(&config.name);
    interface.name.clone_from(&config.name);
    interface.mtu = config.mtu.into();
    interface.hwAddr = show_mac(config.mac);
    let address = |prefix: &Prefix| {
        let mut address = IPAddress::new();
        address.family = family(prefix.ip).into();
        address.address = prefix.ip.to_string();
        address.mask = prefix.length.to_string();
        address
    };
    interface.IPAddresses = config.addresses.iter().map(address).collect();
    interface
}

/// Its routes as they are told.
pub(super) fn show_routes(config: &LinkConfig) -> Vec<Route> {
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let show = |route: &RouteConfig| {
        let mut shown = Route::new();
        if route.to.length > 0 {
            shown.dest = format!("{}/{}", route.to.ip, route.to.length);
        }
        shown.gateway = text(route.gateway);
        shown.source = text(route.source);
        shown.device.clone_from(&config.name);
        shown.scope = route.scope.into();
        shown.family = family(route.to.ip).into();
        shown
    };
    config.routes.iter().map(show).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (ip, length) = text.split_once('/').unwrap();
        Prefix { ip: ip.parse().unwrap(), length: length.parse().unwrap() }
    }

    fn known() -> LinkConfig {
        LinkConfig {
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 7],
            mtu: 1500,
            offload: true,
            addresses: vec![prefix("10.0.0.2/24")],
            routes: vec![],
            neighbours: vec![],
        }
    }

    fn interface(name: &str, mac: &str, mtu: u64, addresses: &[(&str, &str)]) -> Interface {
        let address = |(ip, mask): &(&str, &str)| IPAddress {
            address: (*ip).into(),
            mask: (*mask).into(),
            ..Default::default()
        };
        Interface {
            name: name.into(),
            hwAddr: mac.into(),
            mtu,
            IPAddresses: addresses.iter().map(address).collect(),
            ..Default::default()
        }
    }

    fn route(dest: &str, gateway: &str, family: IPFamily) -> Route {
        Route { dest: dest.into(), gateway: gateway.into(), family: family.into(), ..Default::default() }
    }

    #[test]
    fn an_interface_is_found_and_changed() {
        let mut links = [(known(), 1500)];
        let wanted = interface("", "02:00:00:00:00:07", 1400, &[("10.1.0.2", "16"), ("fd00::2", "64")]);
        let (found, most) = find(&mut links, &wanted).unwrap();
        let next = update(found, *most, &wanted).unwrap();
        assert_eq!(
            (next.mtu, next.addresses.clone()),
            (1400, vec![prefix("10.1.0.2/16"), prefix("fd00::2/64")])
        );
        let told = show(&next);
        assert_eq!((told.hwAddr.as_str(), told.IPAddresses.len()), ("02:00:00:00:00:07", 2));
        assert!(find(&mut links, &interface("eth0", "", 0, &[])).is_ok());
    }

    #[test]
    fn what_cannot_be_says_so() {
        let mut links = [(known(), 1500)];
        for (wanted, says) in [
            (interface("eth1", "", 0, &[]), "no interface \"eth1\" but [\"eth0\"]"),
            (interface("", "02:00:00:00:00:08", 0, &[]), "no interface has 02:00:00:00:00:08"),
            (interface("", "02:00", 0, &[]), "no hardware address"),
        ] {
            let error = find(&mut links, &wanted).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        for (wanted, says) in [
            (interface("eth1", "", 0, &[]), "eth0 for good"),
            (interface("eth0", "", 1501, &[]), "1500"),
            (interface("eth0", "", u64::MAX, &[]), "1500"),
            (interface("eth0", "", 0, &[("10.0.0.x", "24")]), "no IP address"),
            (interface("eth0", "", 0, &[("10.0.0.3", "33")]), "length of a prefix"),
        ] {
            let error = update(&known(), 1500, &wanted).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        for wrong in [
            route("x", "", IPFamily::v4),
            route("1.2.3.4/40", "", IPFamily::v4),
            route("", "y", IPFamily::v4),
        ] {
            assert!(with_route(&known(), &wrong).is_err(), "{wrong:?}");
        }
        let wrong = Route { scope: 256, ..route("", "10.0.0.1", IPFamily::v4) };
        assert!(with_route(&known(), &wrong).unwrap_err().to_string().contains("256"));
        assert!(with_neighbour(&known(), &ARPNeighbor::new()).is_err());
    }

    #[test]
    fn a_route_takes_the_place_of_its_like() {
        let first = with_route(&known(), &route("", "10.0.0.1", IPFamily::v4)).unwrap();
        let second = with_route(&first, &route("0.0.0.0/0", "10.0.0.9", IPFamily::v4)).unwrap();
        assert_eq!(second.routes.len(), 1);
        let third = with_route(&second, &route("", "fd00::1", IPFamily::v6)).unwrap();
        let fourth = with_route(&third, &route("10.9.8.7/16", "", IPFamily::v4)).unwrap();
        let told: Vec<_> =
            show_routes(&fourth).into_iter().map(|route| (route.dest, route.gateway)).collect();
        let of = |dest: &str, gateway: &str| (dest.to_owned(), gateway.to_owned());
        assert_eq!(told, [of("", "10.0.0.9"), of("", "fd00::1"), of("10.9.0.0/16", "")]);
        assert!(fourth.check().is_ok());
    }

    #[test]
    fn a_neighbour_is_known_once() {
        let of = |lladdr: &str, state| ARPNeighbor {
            toIPAddress: Some(IPAddress { address: "10.0.0.1".into(), ..Default::default() }).into(),
            lladdr: lladdr.into(),
            state,
            ..Default::default()
        };
        let first = with_neighbour(&known(), &of("02:00:00:00:00:01", 0)).unwrap();
        assert!(first.neighbours.first().unwrap().permanent);
        let second = with_neighbour(&first, &of("02:00:00:00:00:02", 2)).unwrap();
        let only = second.neighbours.as_slice();
        assert!(
            matches!(only, [NeighbourConfig { mac: [2, 0, 0, 0, 0, 2], permanent: false, .. }]),
            "{only:?}"
        );
    }

    #[test]
    fn what_the_host_adds_is_added() {
        let (mut own, mut most) = (known(), 1500);
        own.mtu = 1400;
        let host = LinkConfig { addresses: vec![prefix("10.0.0.2/24"), prefix("10.0.0.3/24")], ..known() };
        add(&mut own, host.clone(), &mut most);
        assert_eq!((own.mtu, own.addresses.len()), (1400, 2), "its own MTU stays");
        add(&mut own, LinkConfig { mtu: 1300, ..host }, &mut most);
        assert_eq!((own.mtu, most), (1300, 1300));
    }
}
