//! What `--network` says.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use crate::net::stack::Prefix;

/// The network of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// Loopback alone.
    None,
    /// All interfaces of the caller's network namespace are taken over.
    Sandbox {
        /// Also where processes outside the sandbox use it.
        seize: bool,
    },
    /// An interface of a network namespace is taken over, with its addresses and routes.
    Interface {
        /// Its name.
        name: String,
        /// The namespace; the caller's own without.
        namespace: Option<PathBuf>,
    },
    /// A tap.
    Tap {
        /// What it is like.
        tap: Tap,
        /// The namespace; the caller's own without.
        namespace: Option<PathBuf>,
    },
}

/// A tap, and what the sandbox' end of it is like: the host cannot know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// Its name on the host; in the sandbox it is `eth0`.
    pub name: String,
    /// Addresses of the sandbox.
    pub addresses: Vec<Prefix>,
    /// Who leads out.
    pub gateways: Vec<IpAddr>,
    /// Hardware address; without, one that depends on the name.
    pub mac: Option<[u8; 6]>,
    /// Longest packet; without, 1500.
    pub mtu: Option<u32>,
}

/// What cannot be meant.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// A kind that is not there.
    #[error(
        "network {0:?}: none, sandbox[,seize], host-veth=INTERFACE[,netns=PATH] or tap=NAME,address=IP/BITS[,gateway=IP] is possible"
    )]
    Kind(String),
    /// The host's own network.
    #[error(
        "network \"host\": sockets of the host would need host calls (socket, connect, sendto and others) that the sentry has given up \
         when a guest runs; give the sandbox an interface (sandbox, host-veth=…, tap=…)"
    )]
    Host,
    /// A part of it.
    #[error("{0:?} of the network {1:?}: {2}")]
    Part(String, String, &'static str),
}

fn prefix(text: &str) -> Option<Prefix> {
    let (ip, length) = text.split_once('/')?;
    let prefix = Prefix { ip: ip.parse().ok()?, length: length.parse().ok()? };
    (prefix.length <= if prefix.ip.is_ipv4() { 32 } else { 128 }).then_some(prefix)
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let parts: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let mac: [u8; 6] = parts?.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

impl FromStr for Network {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut parts = text.split(',').map(|part| part.split_once('=').unwrap_or((part, "")));
        let (kind, name) = parts.next().unwrap_or_default();
        let name = name.to_owned();
        let wrong =
            |part: (&str, &str), why| SpecError::Part(format!("{}={}", part.0, part.1), text.to_owned(), why);
        let (mut namespace, mut seize) = (None, false);
        let mut tap = Tap { name: name.clone(), addresses: vec![], gateways: vec![], mac: None, mtu: None };
        for part in parts {
            match part {
                ("seize", "") if kind == "sandbox" => seize = true,
                ("netns", path) if !path.is_empty() => namespace = Some(PathBuf::from(path)),
                ("address", value) if kind == "tap" => {
                    tap.addresses.push(prefix(value).ok_or_else(|| wrong(part, "IP/BITS is wanted"))?);
                }
                ("gateway", value) if kind == "tap" => {
                    tap.gateways.push(value.parse().map_err(|_| wrong(part, "an IP address is wanted"))?);
                }
                ("mac", value) if kind == "tap" => {
                    tap.mac = Some(
                        mac(value)
                            .ok_or_else(|| wrong(part, "XX:XX:XX:XX:XX:XX of one station is wanted"))?,
                    );
                }
                ("mtu", value) if kind == "tap" => {
                    tap.mtu = Some(value.parse().map_err(|_| wrong(part, "a number is wanted"))?);
                }
                _ => return Err(wrong(part, "there is no such part of this network")),
            }
        }
        match (kind, name.is_empty()) {
            ("none", true) if namespace.is_none() => Ok(Self::None),
            ("sandbox", true) if namespace.is_none() => Ok(Self::Sandbox { seize }),
            ("host", true) => Err(SpecError::Host),
            ("host-veth", false) => Ok(Self::Interface { name, namespace }),
            ("tap", false) if tap.addresses.is_empty() => {
                Err(wrong((kind, &name), "at least one address=IP/BITS is wanted"))
            }
            ("tap", false) => Ok(Self::Tap { tap, namespace }),
            _ => Err(SpecError::Kind(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_said() {
        let parse = |text: &str| text.parse::<Network>();
        assert_eq!(parse("none"), Ok(Network::None));
        assert_eq!(parse("sandbox"), Ok(Network::Sandbox { seize: false }));
        assert_eq!(parse("sandbox,seize"), Ok(Network::Sandbox { seize: true }));
        assert_eq!(
            parse("host-veth=eth0,netns=/run/netns/pod"),
            Ok(Network::Interface { name: "eth0".to_owned(), namespace: Some("/run/netns/pod".into()) })
        );
        let Ok(Network::Tap { tap, namespace: None }) = parse(
            "tap=tap7,address=10.0.0.2/24,address=fd00::2/64,gateway=10.0.0.1,mac=02:00:00:00:00:07,mtu=9000",
        ) else {
            panic!()
        };
        assert_eq!((tap.name.as_str(), tap.addresses.len(), tap.gateways.len()), ("tap7", 2, 1));
        assert_eq!((tap.mac, tap.mtu), (Some([2, 0, 0, 0, 0, 7]), Some(9000)));
    }

    #[test]
    fn what_cannot() {
        let parse = |text: &str| text.parse::<Network>().unwrap_err();
        assert_eq!(parse("host"), SpecError::Host);
        for kind in
            ["", "bridge", "none=x", "sandbox=x", "sandbox,netns=/x", "host-veth", "host-veth=", "tap"]
        {
            assert_eq!(parse(kind), SpecError::Kind(kind.to_owned()), "{kind}");
        }
        for part in [
            "tap=a",
            "tap=a,address=1.2.3.4",
            "tap=a,address=1.2.3.4/33",
            "tap=a,address=1.2.3.4/8,mac=01:00:00:00:00:00",
            "tap=a,address=1.2.3.4/8,mtu=x",
            "tap=a,address=1.2.3.4/8,gateway=x",
            "host-veth=a,address=1.2.3.4/8",
            "none,x",
            "none,seize",
            "sandbox,seize=no",
        ] {
            assert!(matches!(parse(part), SpecError::Part(..)), "{part}");
        }
    }
}
