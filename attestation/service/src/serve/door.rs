//! The door of a listening side: who may come in, how many, and who they are.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::{Limits, proxy};

/// Who sent a request, as connections and sessions are counted. An extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer(IpAddr);

impl Peer {
    /// The peer of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            v4 => v4,
        })
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The certificate that a caller showed in the TLS handshake, which checked it. An extension of every request of such a caller.
#[derive(Debug, Clone)]
pub struct ClientCertificate(pub CertificateDer<'static>);

/// Connections of each peer.
#[derive(Debug, Default)]
struct Peers(Mutex<HashMap<Peer, usize>>);

impl Peers {
    fn with<R>(&self, work: impl FnOnce(&mut HashMap<Peer, usize>) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts a connection, unless its peer has `most` already.
    fn enter(self: &Arc<Self>, peer: Peer, most: usize) -> Option<Entered> {
        let entered = self.with(|peers| {
            let count = peers.entry(peer).or_default();
            let room = *count < most;
            *count += usize::from(room);
            room
        });
        entered.then(|| Entered { peers: Arc::clone(self), peer })
    }
}

/// A counted connection; it counts until it is dropped.
struct Entered {
    peers: Arc<Peers>,
    peer: Peer,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.peers.with(|peers| {
            if let Some(count) = peers.get_mut(&self.peer) {
                *count -= 1;
                if *count == 0 {
                    peers.remove(&self.peer);
                }
            }
        });
    }
}

/// What is spoken over once the door is passed: TCP, or TLS over it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that is not yet let in.
pub(super) struct Knock {
    stream: TcpStream,
    pub(super) address: SocketAddr,
    /// None while only its proxy is known.
    entered: Option<Entered>,
    slot: OwnedSemaphorePermit,
}

/// A connection that is let in.
pub(super) struct Visitor {
    pub(super) stream: Box<dyn Stream>,
    pub(super) peer: Peer,
    pub(super) certificate: Option<ClientCertificate>,
    /// Its places; they are given back when this is dropped.
    pub(super) places: Places,
}

/// Places that a connection takes, of its peer's and of all.
pub(super) struct Places {
    _entered: Entered,
    _slot: OwnedSemaphorePermit,
}

/// Counts connections by [`Limits`].
#[derive(Clone)]
pub(super) struct Door {
    tls: Option<TlsAcceptor>,
    pub(super) limits: Arc<Limits>,
    peers: Arc<Peers>,
    slots: Arc<Semaphore>,
}

impl Door {
    pub(super) fn new(tls: Option<TlsAcceptor>, limits: Limits) -> Self {
        let slots = Arc::new(Semaphore::new(limits.connections));
        Self { tls, limits: Arc::new(limits), peers: Arc::default(), slots }
    }

    /// The next connection that there is room for; none when `stop` has changed.
    pub(super) async fn next(
        &self,
        listener: &TcpListener,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Knock> {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.changed() => return None,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: waiting is all that helps.
                    warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let entered = if self.is_proxy(address.ip()) {
                None
            } else {
                let Some(entered) = self.enter(Peer::of(address.ip())) else {
                    debug!(%address, "connection closed: its peer has too many");
                    continue;
                };
                Some(entered)
            };
            let slot = tokio::select! {
                slot = Arc::clone(&self.slots).acquire_owned() => slot.ok()?,
                _ = stop.changed() => return None,
            };
            return Some(Knock { stream, address, entered, slot });
        }
    }

    fn is_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.limits.trusted_proxies.iter().any(|network| network.contains(&address))
    }

    fn enter(&self, peer: Peer) -> Option<Entered> {
        self.peers.enter(peer, self.limits.per_peer)
    }

    /// Hears who is there (a trusted proxy says it), and speaks TLS. The error says why the connection is not let in.
    pub(super) async fn greet(&self, knock: Knock) -> Result<Visitor, String> {
        let greeted = tokio::time::timeout(self.limits.handshake, self.identify(knock)).await;
        greeted.unwrap_or_else(|_| Err("it took too long to say who is there (PROXY header, TLS)".to_owned()))
    }

    async fn identify(&self, knock: Knock) -> Result<Visitor, String> {
        let Knock { mut stream, address, entered, slot } = knock;
        // Small answers, one at a time: Nagle only delays them.
        let _ = stream.set_nodelay(true);
        let entered = match entered {
            Some(entered) => entered,
            None => {
                let source = proxy::read(&mut stream).await.map_err(|e| e.to_string())?;
                let peer = Peer::of(source.unwrap_or(address.ip()));
                self.enter(peer).ok_or_else(|| format!("peer {peer}, behind a proxy, has too many"))?
            }
        };
        let peer = entered.peer;
        let places = Places { _entered: entered, _slot: slot };
        let Some(tls) = &self.tls else {
            return Ok(Visitor { stream: Box::new(stream), peer, certificate: None, places });
        };
        let stream = tls.accept(stream).await.map_err(|e| format!("TLS handshake failed: {e}"))?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let certificate = shown.map(|leaf| ClientCertificate(leaf.clone().into_owned()));
        Ok(Visitor { stream: Box::new(stream), peer, certificate, places })
    }

    /// Waits until nobody is in any more; false when the time for that is over.
    pub(super) async fn empty(&self) -> bool {
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        tokio::time::timeout(self.limits.drain, self.slots.acquire_many(all)).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_a_machine() {
        let peer = |text: &str| Peer::of(text.parse().unwrap());
        assert_eq!(peer("2001:db8:1:2::1"), peer("2001:db8:1:2:ffff::9"));
        assert_ne!(peer("2001:db8:1:2::1"), peer("2001:db8:1:3::1"));
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
    }
}
