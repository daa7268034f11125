//! A tap of the host (`Documentation/networking/tuntap.rst`).

use std::fs::OpenOptions;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use super::spec::Tap;
use super::{LinkError, Opened, refused};
use crate::error::Errno;
use crate::net::stack::{LinkConfig, Prefix, RouteConfig};

// `include/uapi/linux/if_tun.h`
const IFF_TAP: i16 = 2;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
/// `TUN_F_CSUM`, `TUN_F_TSO4`, `TUN_F_TSO6`: what we take uncut and without checksum.
const OFFLOAD: libc::c_ulong = 1 | 2 | 4;

/// `struct ifreq` with flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

/// Opens a tap, which is made where it is not there. Taking over one that another process has is refused.
pub(super) fn open(tap: &Tap) -> Result<Opened, LinkError> {
    let name = tap.name.as_str();
    let step = |step| {
        move |error: std::io::Error| {
            refused(name, step)(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
        }
    };
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun");
    let fd: OwnedFd = file.map_err(step("/dev/net/tun"))?.into();
    let mut request = Request { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    if name.len() >= request.name.len() {
        return Err(refused(name, "its name")(Errno::ENAMETOOLONG));
    }
    for (place, byte) in request.name.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    // SAFETY: the structure is a `struct ifreq` and lives during the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) };
    Errno::result(result).map_err(refused(name, "the tap"))?;
    // SAFETY: it takes a number.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, OFFLOAD) };
    Errno::result(result).map_err(refused(name, "what the tap leaves to us"))?;
    let default = |gateway: &std::net::IpAddr| RouteConfig {
        to: Prefix::all(gateway.is_ipv6()),
        gateway: Some(*gateway),
        source: None,
        metric: 0,
        scope: 0,
        protocol: 3,
    };
    let config = LinkConfig {
        name: "eth0".to_owned(),
        mac: tap.mac.unwrap_or_else(|| own_mac(name)),
        mtu: tap.mtu.unwrap_or(1500),
        offload: true,
        addresses: tap.addresses.clone(),
        routes: tap.gateways.iter().map(default).collect(),
        neighbours: Vec::new(),
    };
    Ok(Opened { config, fd })
}

/// A hardware address of local meaning for the sandbox' end: the host's end has another.
fn own_mac(name: &str) -> [u8; 6] {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let [_, _, _, a, b, c, d, e] = hasher.finish().to_be_bytes();
    [0x02, a, b, c, d, e]
}
