//! The sandbox's interfaces: `lo`, and what `SIOCGIF*` tells about it (`man 7 netdevice`).
//!
//! The pod's own addresses are told as further addresses of `lo`: there is no other interface yet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Net;
use crate::call::Call;
use crate::error::Errno;

/// Number of `lo`.
pub const LOOPBACK_INDEX: u32 = 1;
/// `IFF_UP | IFF_LOOPBACK | IFF_RUNNING`.
const FLAGS: i16 = 0x49;
/// Its MTU.
pub(crate) const MTU: u32 = 65_536;
/// `sizeof(struct ifreq)`.
const REQUEST: usize = 40;

/// Addresses of `lo` with the length of their prefix.
pub(crate) fn addresses(net: &Net) -> Vec<(IpAddr, u8)> {
    let loopback = [(Ipv4Addr::LOCALHOST.into(), 8), (Ipv6Addr::LOCALHOST.into(), 128)];
    let own = net.addresses().into_iter().map(|ip| (ip, if ip.is_ipv4() { 32 } else { 128 }));
    loopback.into_iter().chain(own).collect()
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
    answer(request, &mut bytes)?;
    call.write(argument, &bytes)?;
    Ok(0)
}

/// Answers with `struct ifreq`.
fn answer(request: u32, bytes: &mut [u8; REQUEST]) -> Result<(), Errno> {
    let (name, value) = bytes.split_at_mut(16);
    // SIOCGIFNAME asks by number.
    if request == 0x8910 {
        if value.first_chunk() != Some(&LOOPBACK_INDEX.to_ne_bytes()) {
            return Err(Errno::ENODEV);
        }
        name.fill(0);
        name[..2].copy_from_slice(b"lo");
        return Ok(());
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let known = &name[..end] == b"lo";
    let mut put = |bytes: &[u8]| {
        for (place, byte) in value.iter_mut().zip(bytes) {
            *place = *byte;
        }
    };
    match request {
        // Changes: flags, addresses, MTU and so on.
        0x8914 | 0x8916 | 0x8918 | 0x891a | 0x891c | 0x891e | 0x8922..=0x8924 | 0x8930 | 0x8936 | 0x8943 => {
            return Err(Errno::EPERM);
        }
        0x8913 | 0x8915 | 0x8917 | 0x8919 | 0x891b | 0x891d | 0x8921 | 0x8927 | 0x8933 | 0x8942 if !known => {
            return Err(Errno::ENODEV);
        }
        0x8913 => put(&FLAGS.to_ne_bytes()),
        0x8915 => put(&inet(Ipv4Addr::LOCALHOST)),
        0x8917 => put(&inet(Ipv4Addr::LOCALHOST)),
        0x8919 => put(&inet(Ipv4Addr::UNSPECIFIED)),
        0x891b => put(&inet(Ipv4Addr::new(255, 0, 0, 0))),
        0x891d => put(&0i32.to_ne_bytes()),
        0x8921 => put(&MTU.to_ne_bytes()),
        // ARPHRD_LOOPBACK and six zeros.
        0x8927 => put(&[4, 3, 0, 0, 0, 0, 0, 0]),
        0x8933 => put(&LOOPBACK_INDEX.to_ne_bytes()),
        0x8942 => put(&1000i32.to_ne_bytes()),
        _ => return Err(Errno::ENOTTY),
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
    for (ip, _) in addresses(net) {
        let IpAddr::V4(ip) = ip else { continue };
        let mut entry = [0; REQUEST];
        entry[..2].copy_from_slice(b"lo");
        entry[16..32].copy_from_slice(&inet(ip));
        entries.extend_from_slice(&entry);
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
        answer(request, &mut bytes).map(|()| bytes)
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
