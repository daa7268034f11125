//! The PROXY protocol: who is behind a balancer.
//!
//! A balancer of TCP connections hides its clients' addresses, by which this server counts. One that is configured as trusted
//! says them at the begin of each connection, before TLS, in version 1 (a line of text) or 2 (binary) of
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>. From such an address the header must come: a connection without one
//! would be counted as the balancer's own. From any other address it is not read: whoever could send it would choose who he is.

use std::net::IpAddr;

use ipnet::IpNet;
use proxy_header::{ParseConfig, ProxyHeader};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of version 2 before its addresses.
const FIXED: usize = 16;
/// Most bytes of a line of version 1, its end included.
const MAX_LINE: usize = 107;
/// Most bytes of a header of version 2. Addresses have 36 at most; the rest are values that proxies add, of which none is read.
const MAX_HEADER: usize = FIXED + 4096;

/// Why a header of a trusted proxy was refused.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// It ended.
    #[error("the trusted proxy's connection ended in its PROXY header: {0}")]
    Ended(#[from] std::io::Error),
    /// It begins otherwise.
    #[error(
        "the trusted proxy sent no PROXY header: switch it on there, or take its address out of trusted_proxies"
    )]
    Missing,
    /// It is too long.
    #[error("the trusted proxy's PROXY header has {seen} bytes, the most are {most}", most = MAX_HEADER)]
    TooLong {
        /// How long it says it is.
        seen: usize,
    },
    /// It is no good.
    #[error("the trusted proxy's PROXY header is not understood")]
    Invalid,
}

/// One network: `10.0.0.0/8`, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let read = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    read.ok_or_else(|| format!("trusted_proxies: {text:?} is neither an address nor a network (10.0.0.0/8)"))
}

/// All networks of a configuration.
///
/// # Errors
/// Which text is none.
pub fn networks(texts: &[String]) -> Result<Vec<IpNet>, String> {
    texts.iter().map(|text| network(text)).collect()
}

/// Reads the header at the begin of a connection, and not a byte more. `None` when the proxy speaks for itself (it looks whether this
/// server is well).
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<IpAddr>, ProxyError> {
    let mut bytes = vec![0; SIGNATURE.len()];
    stream.read_exact(&mut bytes).await?;
    if bytes == SIGNATURE {
        bytes.resize(FIXED, 0);
        stream.read_exact(&mut bytes[SIGNATURE.len()..]).await?;
        let size = FIXED + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
        if size > MAX_HEADER {
            return Err(ProxyError::TooLong { seen: size });
        }
        bytes.resize(size, 0);
        stream.read_exact(&mut bytes[FIXED..]).await?;
    } else if bytes.starts_with(b"PROXY ") {
        while !bytes.ends_with(b"\r\n") {
            if bytes.len() == MAX_LINE {
                return Err(ProxyError::Invalid);
            }
            bytes.push(stream.read_u8().await?);
        }
    } else {
        return Err(ProxyError::Missing);
    }
    let (header, used) =
        ProxyHeader::parse(&bytes, ParseConfig::default()).map_err(|_| ProxyError::Invalid)?;
    if used != bytes.len() {
        return Err(ProxyError::Invalid);
    }
    Ok(header.proxied_address().map(|address| address.source.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proxy_header::ProxiedAddress;

    fn header(source: &str) -> ProxyHeader<'static> {
        let there = if source.starts_with('[') { "[::1]:443" } else { "127.0.0.1:443" };
        ProxyHeader::with_address(ProxiedAddress::stream(source.parse().unwrap(), there.parse().unwrap()))
    }

    fn encoded(source: &str, version: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        match version {
            1 => header(source).encode_v1(&mut bytes).unwrap(),
            _ => header(source).encode_v2(&mut bytes).unwrap(),
        }
        bytes
    }

    async fn told(mut bytes: &[u8]) -> (Result<Option<IpAddr>, String>, usize) {
        let before = bytes.len();
        let told = read(&mut bytes).await.map_err(|e| e.to_string());
        (told, before - bytes.len())
    }

    #[tokio::test]
    async fn both_versions_and_not_a_byte_more() {
        for source in ["10.1.2.3:5000", "[2001:db8::7]:5000"] {
            for version in [1, 2] {
                let mut bytes = encoded(source, version);
                let size = bytes.len();
                bytes.extend(b"\x16\x03\x01 and TLS");
                let ip = source.parse::<std::net::SocketAddr>().unwrap().ip();
                assert_eq!(told(&bytes).await, (Ok(Some(ip)), size), "{source} {version}");
            }
        }
        let mut local = SIGNATURE.to_vec();
        local.extend([0x20, 0, 0, 0]);
        assert_eq!(told(&local).await, (Ok(None), 16));
        assert_eq!(told(b"PROXY UNKNOWN\r\nrest").await, (Ok(None), 15));
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let long = [SIGNATURE.as_slice(), &[0x21, 0x11, 0xff, 0xff]].concat();
        assert!(told(&long).await.0.unwrap_err().contains("65551 bytes"));
        assert!(told(b"GET /kbs/v0/auth HTTP/1.1\r\n").await.0.unwrap_err().contains("no PROXY header"));
        let line = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
        assert!(told(&line).await.0.unwrap_err().contains("not understood"));
        assert!(told(b"PROXY TCP4 1.2.3.4 5.6.7.8 x y\r\n").await.0.unwrap_err().contains("not understood"));
        for version in [1, 2] {
            let whole = encoded("10.1.2.3:5000", version);
            for cut in 0..whole.len() {
                assert!(told(&whole[..cut]).await.0.unwrap_err().contains("ended"), "{version} {cut}");
            }
        }
        // Version 3 is none.
        let mut other = encoded("10.1.2.3:5000", 2);
        other[12] = 0x31;
        assert!(told(&other).await.0.unwrap_err().contains("not understood"));
    }

    #[test]
    fn networks_of_a_configuration() {
        assert!(network("10.0.0.0/8").unwrap().contains(&"10.9.9.9".parse::<IpAddr>().unwrap()));
        assert_eq!(network("::1").unwrap().prefix_len(), 128);
        assert!(network("balancer").unwrap_err().contains("\"balancer\""));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), version in 0..3) {
            if version > 0 {
                let begin: &[u8] = if version == 1 { b"PROXY TCP4 " } else { SIGNATURE };
                bytes.splice(0..0, begin.iter().copied());
            }
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                let _ = read(&mut bytes.as_slice()).await;
            });
        }
    }
}
