//! The sandbox's interfaces: `lo`, those that are attached, and what `SIOCGIF*` tells about them (`man 7 netdevice`).
//!
//! Addresses of the sandbox that are of no attached interface are told as further addresses of `lo`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Net;
use super::stack::{Counters, Interface, Prefix, RouteConfig};
use crate::call::Call;
use crate::error::Errno;

/// Number of `lo`.
pub const LOOPBACK_INDEX: u32 = 1;
/// `IFF_UP | IFF_LOOPBACK | IFF_RUNNING`.
const LOOPBACK_FLAGS: i16 = 0x49;
/// `IFF_UP | IFF_BROADCAST | IFF_RUNNING | IFF_MULTICAST`.
const FLAGS: i16 = 0x1043;
/// Its MTU.
pub(crate) const MTU: u32 = 65_536;
/// `sizeof(struct ifreq)`.
const REQUEST: usize = 40;

/// What is told of an interface.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) number: u32,
    pub(crate) name: String,
    pub(crate) flags: i16,
    /// None of loopback.
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) mtu: u32,
    pub(crate) addresses: Vec<Prefix>,
    pub(crate) routes: Vec<RouteConfig>,
    /// Packets and bytes that were received, that were sent; packets that were dropped, either way.
    pub(crate) counted: [[u64; 2]; 3],
}

impl Told {
    /// `ARPHRD_LOOPBACK`, `ARPHRD_ETHER`.
    pub(crate) fn kind(&self) -> u16 {
        if self.mac.is_some() { 1 } else { 772 }
    }

    fn of(link: &Interface) -> Self {
        let config = link.config();
        let counters = &link.counters;
        let [received, sent] = [&counters.received, &counters.sent].map(Counters::read);
        let dropped = [counters.dropped_in(), counters.dropped_out()];
        let mut routes = config.routes;
        // Whoever attached it may have said nothing of the networks that its addresses are in.
        for prefix in config.addresses.iter().filter(|prefix| prefix.length < 32 || prefix.ip.is_ipv6()) {
            let to = prefix.network();
            if !routes.iter().any(|route| route.to == to && route.gateway.is_none()) {
                let source = to.ip.is_ipv4().then_some(prefix.ip);
                let scope = if to.ip.is_ipv4() { 253 } else { 0 };
                routes.push(RouteConfig { to, gateway: None, source, metric: 0, scope, protocol: 2 });
            }
        }
        Self {
            number: link.number(),
            name: config.name,
            flags: FLAGS,
            mac: Some(config.mac),
            mtu: config.mtu,
            addresses: config.addresses,
            routes,
            counted: [received, sent, dropped],
        }
    }
}

/// All interfaces, `lo` first.
pub(crate) fn all(net: &Net) -> Vec<Told> {
    let attached: Vec<Told> = net.interfaces().iter().map(|link| Told::of(link)).collect();
    let loopback = [(Ipv4Addr::LOCALHOST.into(), 8), (Ipv6Addr::LOCALHOST.into(), 128)];
    let is_theirs = |ip: &IpAddr| attached.iter().any(|told| told.addresses.iter().any(|own| own.ip == *ip));
    let others = net.addresses().into_iter().filter(|ip| !is_theirs(ip));
    let others = others.map(|ip| (ip, if ip.is_ipv4() { 32 } else { 128 }));
    let addresses = loopback.into_iter().chain(others).map(|(ip, length)| Prefix { ip, length });
    let lo = Told {
        number: LOOPBACK_INDEX,
        name: "lo".to_owned(),
        flags: LOOPBACK_FLAGS,
        mac: None,
        mtu: MTU,
        addresses: addresses.collect(),
        routes: Vec::new(),
        counted: [[0; 2]; 3],
    };
    std::iter::once(lo).chain(attached).collect()
}

/// Whether there is an interface of this number, or it is 0.
pub(crate) fn is_number(net: &Net, number: i32) -> bool {
    let of_stack = |number: u32| net.interfaces().iter().any(|link| link.number() == number);
    matches!(number, 0 | 1) || u32::try_from(number).is_ok_and(of_stack)
}

fn inet(ip: Ipv4Addr) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = 2;
    bytes[4..8].copy_from_slice(&ip.octets());
    bytes
}

/// An `ioctl` about interfaces.
///
/// # Errors
/// ENODEV for another interface than `lo`; EPERM for changes; ENOTTY for what is not known; EFAULT.
pub(crate) fn control(net: &Net, call: &mut Call<'_>, request: u32, argument: u64) -> Result<u64, Errno> {
    match request {
        0x8912 => return list(net, call, argument),
        0x8900..=0x89ff => {}
        _ => return Err(Errno::ENOTTY),
    }
    let mut bytes: [u8; REQUEST] = call.read_array(argument)?;
    answer(&all(net), request, &mut bytes)?;
    call.write(argument, &bytes)?;
    Ok(0)
}

/// Answers with `struct ifreq`.
fn answer(all: &[Told], request: u32, bytes: &mut [u8; REQUEST]) -> Result<(), Errno> {
    let (name, value) = bytes.split_at_mut(16);
    // SIOCGIFNAME asks by number.
    if request == 0x8910 {
        let number = value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let told = all.iter().find(|told| Some(told.number) == number).ok_or(Errno::ENODEV)?;
        name.fill(0);
        for (place, byte) in name.iter_mut().zip(told.name.bytes()) {
            *place = byte;
        }
        return Ok(());
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let name = name.get(..end).unwrap_or_default();
    let mut put = |bytes: &[u8]| {
        for (place, byte) in value.iter_mut().zip(bytes) {
            *place = *byte;
        }
    };
    let told = match request {
        // Changes: flags, addresses, MTU and so on.
        0x8914 | 0x8916 | 0x8918 | 0x891a | 0x891c | 0x891e | 0x8922..=0x8924 | 0x8930 | 0x8936 | 0x8943 => {
            return Err(Errno::EPERM);
        }
        0x8913 | 0x8915 | 0x8917 | 0x8919 | 0x891b | 0x891d | 0x8921 | 0x8927 | 0x8933 | 0x8942 => {
            all.iter().find(|told| told.name.as_bytes() == name).ok_or(Errno::ENODEV)?
        }
        _ => return Err(Errno::ENOTTY),
    };
    let of_ipv4 = |prefix: &Prefix| match prefix.ip {
        IpAddr::V4(ip) => Some((ip, *prefix)),
        IpAddr::V6(_) => None,
    };
    let own = told.addresses.iter().find_map(of_ipv4).ok_or(Errno::EADDRNOTAVAIL);
    match request {
        0x8913 => put(&told.flags.to_ne_bytes()),
        0x8915 | 0x8917 => put(&inet(own?.0)),
        0x8919 => {
            let broadcast = own?.1.broadcast().filter(|_| told.mac.is_some());
            put(&inet(broadcast.unwrap_or(Ipv4Addr::UNSPECIFIED)));
        }
        0x891b => put(&inet(own?.1.mask())),
        0x891d => put(&0i32.to_ne_bytes()),
        0x8921 => put(&told.mtu.to_ne_bytes()),
        0x8927 => {
            put(&[told.kind().to_ne_bytes().as_slice(), &told.mac.unwrap_or_default()].concat());
        }
        0x8933 => put(&told.number.to_ne_bytes()),
        _ => put(&1000i32.to_ne_bytes()),
    }
    Ok(())
}

/// `SIOCGIFCONF`: as many entries as fit.
fn list(net: &Net, call: &Call<'_>, argument: u64) -> Result<u64, Errno> {
    let header: [u8; 16] = call.read_array(argument)?;
    let number = |at: usize| header.get(at..).and_then(<[u8]>::first_chunk).map(|b| u32::from_ne_bytes(*b));
    let room = number(0).unwrap_or(0) as usize;
    let buffer = u64::from(number(8).unwrap_or(0)) | u64::from(number(12).unwrap_or(0)) << 32;
    let mut entries = Vec::new();
    for told in all(net) {
        for prefix in &told.addresses {
            let IpAddr::V4(ip) = prefix.ip else { continue };
            let mut entry = [0; REQUEST];
            for (place, byte) in entry.iter_mut().zip(told.name.bytes()) {
                *place = byte;
            }
            entry[16..32].copy_from_slice(&inet(ip));
            entries.extend_from_slice(&entry);
        }
    }
    if buffer != 0 {
        entries.truncate(room / REQUEST * REQUEST);
        call.write(buffer, &entries)?;
    }
    let length = u32::try_from(entries.len()).map_err(|_| Errno::EINVAL)?;
    call.write(argument, &length.to_ne_bytes())?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: u32, name: &[u8]) -> Result<[u8; REQUEST], Errno> {
        let mut bytes = [0; REQUEST];
        bytes[..name.len()].copy_from_slice(name);
        answer(&all(&Net::new()), request, &mut bytes).map(|()| bytes)
    }

    #[test]
    fn tells_of_lo_alone() {
        assert_eq!(ask(0x8913, b"lo").map(|bytes| bytes[16]), Ok(0x49));
        assert_eq!(ask(0x8933, b"lo").map(|bytes| bytes[16]), Ok(1));
        assert_eq!(ask(0x8933, b"eth0"), Err(Errno::ENODEV));
        assert_eq!(ask(0x8914, b"lo"), Err(Errno::EPERM));
        assert_eq!(ask(0x89f0, b"lo"), Err(Errno::ENOTTY));
        assert_eq!(ask(0x8910, b""), Err(Errno::ENODEV));
    }
}
