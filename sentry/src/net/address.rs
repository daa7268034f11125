//! Addresses of sockets as system calls carry them (`man 7 unix`, `ip`, `ipv6`, `netlink`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::error::Errno;

/// `sizeof(struct sockaddr_storage)`: nothing longer is read.
pub(crate) const ADDRESS_MAX: usize = 128;
/// `sizeof(sun_path)`.
const PATH_MAX: usize = 108;

/// Name of a UNIX socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum UnixName {
    /// It has none.
    #[default]
    Unnamed,
    /// A path, as it was bound.
    Path(Vec<u8>),
    /// An abstract name, without the leading 0.
    Abstract(Vec<u8>),
}

/// An address of any family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// `AF_UNSPEC`: dissolves an association.
    Unspecified,
    /// `AF_UNIX`.
    Unix(UnixName),
    /// `AF_INET`, `AF_INET6`, as it was told: IPv4-mapped ones stay so.
    Inet(SocketAddr),
    /// `AF_NETLINK`: port and groups.
    Netlink(u32, u32),
}

fn family(bytes: &[u8]) -> Option<i32> {
    bytes.first_chunk::<2>().map(|bytes| i32::from(u16::from_ne_bytes(*bytes)))
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

impl Address {
    /// Of a socket of this domain.
    ///
    /// # Errors
    /// EINVAL where it is too short or too long; EAFNOSUPPORT where it is of another family.
    pub(crate) fn parse(domain: i32, bytes: &[u8]) -> Result<Self, Errno> {
        let found = family(bytes).ok_or(Errno::EINVAL)?;
        match domain {
            libc::AF_UNIX if found == libc::AF_UNSPEC => Ok(Self::Unspecified),
            libc::AF_UNIX => Self::unix(found, bytes),
            libc::AF_NETLINK if found == libc::AF_NETLINK => {
                let port = part(bytes, 4).ok_or(Errno::EINVAL)?;
                let groups = part(bytes, 8).ok_or(Errno::EINVAL)?;
                Ok(Self::Netlink(u32::from_ne_bytes(port), u32::from_ne_bytes(groups)))
            }
            libc::AF_NETLINK if found == libc::AF_UNSPEC => Ok(Self::Unspecified),
            libc::AF_NETLINK => Err(Errno::EINVAL),
            _ => Self::inet(domain, found, bytes),
        }
    }

    fn unix(found: i32, bytes: &[u8]) -> Result<Self, Errno> {
        let name = bytes.get(2..).unwrap_or_default();
        if found != libc::AF_UNIX || name.len() > PATH_MAX {
            return Err(Errno::EINVAL);
        }
        Ok(Self::Unix(match name.first() {
            None => UnixName::Unnamed,
            Some(0) => UnixName::Abstract(name.get(1..).unwrap_or_default().to_vec()),
            Some(_) => {
                let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                UnixName::Path(name.get(..end).unwrap_or(name).to_vec())
            }
        }))
    }

    fn inet(domain: i32, found: i32, bytes: &[u8]) -> Result<Self, Errno> {
        // The length is looked at before the family.
        let least = if domain == libc::AF_INET6 { 24 } else { 16 };
        let of_other = found != libc::AF_UNSPEC && !(domain == libc::AF_INET6 && found == libc::AF_INET);
        if of_other && bytes.len() < least {
            return Err(Errno::EINVAL);
        }
        match found {
            libc::AF_UNSPEC => Ok(Self::Unspecified),
            libc::AF_INET => {
                // `sizeof(struct sockaddr_in)`, although the last 8 bytes mean nothing.
                let whole: [u8; 16] = part(bytes, 0).ok_or(Errno::EINVAL)?;
                let port = u16::from_be_bytes([whole[2], whole[3]]);
                let address = Ipv4Addr::new(whole[4], whole[5], whole[6], whole[7]);
                Ok(Self::Inet(SocketAddr::V4(SocketAddrV4::new(address, port))))
            }
            libc::AF_INET6 if domain == libc::AF_INET6 => {
                // `SIN6_LEN_RFC2133`: the scope may be left out.
                let port = u16::from_be_bytes(part(bytes, 2).ok_or(Errno::EINVAL)?);
                let flow = u32::from_be_bytes(part(bytes, 4).ok_or(Errno::EINVAL)?);
                let address: [u8; 16] = part(bytes, 8).ok_or(Errno::EINVAL)?;
                let scope = part(bytes, 24).map_or(0, u32::from_ne_bytes);
                let address = SocketAddrV6::new(Ipv6Addr::from(address), port, flow, scope);
                Ok(Self::Inet(SocketAddr::V6(address)))
            }
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// As a system call tells it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let start = |family: i32| u16::try_from(family).unwrap_or(0).to_ne_bytes().to_vec();
        match self {
            Self::Unspecified => start(libc::AF_UNSPEC),
            Self::Unix(name) => {
                let mut bytes = start(libc::AF_UNIX);
                match name {
                    UnixName::Unnamed => {}
                    UnixName::Path(path) => {
                        bytes.extend_from_slice(path);
                        bytes.push(0);
                    }
                    UnixName::Abstract(name) => {
                        bytes.push(0);
                        bytes.extend_from_slice(name);
                    }
                }
                bytes
            }
            Self::Inet(SocketAddr::V4(address)) => {
                let mut bytes = start(libc::AF_INET);
                bytes.extend_from_slice(&address.port().to_be_bytes());
                bytes.extend_from_slice(&address.ip().octets());
                bytes.extend_from_slice(&[0; 8]);
                bytes
            }
            Self::Inet(SocketAddr::V6(address)) => {
                let mut bytes = start(libc::AF_INET6);
                bytes.extend_from_slice(&address.port().to_be_bytes());
                bytes.extend_from_slice(&address.flowinfo().to_be_bytes());
                bytes.extend_from_slice(&address.ip().octets());
                bytes.extend_from_slice(&address.scope_id().to_ne_bytes());
                bytes
            }
            Self::Netlink(port, groups) => {
                let mut bytes = start(libc::AF_NETLINK);
                bytes.extend_from_slice(&[0; 2]);
                bytes.extend_from_slice(&port.to_ne_bytes());
                bytes.extend_from_slice(&groups.to_ne_bytes());
                bytes
            }
        }
    }

    /// An Internet address as a socket of this domain tells it: IPv4 is mapped for IPv6.
    pub(crate) fn of_domain(domain: i32, address: SocketAddr) -> Self {
        Self::Inet(match (domain, address.ip()) {
            (libc::AF_INET6, IpAddr::V4(ip)) => {
                SocketAddr::V6(SocketAddrV6::new(ip.to_ipv6_mapped(), address.port(), 0, 0))
            }
            _ => address,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unix_names() {
        let parse = |bytes: &[u8]| Address::parse(libc::AF_UNIX, bytes);
        assert_eq!(parse(&[1]), Err(Errno::EINVAL));
        assert_eq!(parse(&[1, 0]), Ok(Address::Unix(UnixName::Unnamed)));
        assert_eq!(parse(b"\x01\0/a\0junk"), Ok(Address::Unix(UnixName::Path(b"/a".to_vec()))));
        assert_eq!(parse(b"\x01\0\0a\0b"), Ok(Address::Unix(UnixName::Abstract(b"a\0b".to_vec()))));
        assert_eq!(parse(&[[1, 0].as_slice(), &[7; 109]].concat()), Err(Errno::EINVAL));
        assert_eq!(parse(&[2, 0, 0, 0]), Err(Errno::EINVAL));
    }

    #[test]
    fn mapped_addresses_are_told_by_domain() {
        let address = "127.0.0.1:80".parse().unwrap();
        let told = Address::of_domain(libc::AF_INET6, address);
        assert_eq!(told, Address::Inet("[::ffff:127.0.0.1]:80".parse().unwrap()));
        assert_eq!(Address::parse(libc::AF_INET6, &told.bytes()), Ok(told));
    }

    proptest! {
        #[test]
        fn any_bytes(domain in 0..20, bytes in proptest::collection::vec(any::<u8>(), 0..130)) {
            if let Ok(address) = Address::parse(domain, &bytes) {
                let _ = address.bytes();
            }
        }
    }
}
