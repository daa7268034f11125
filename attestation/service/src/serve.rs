//! The listening side of both servers: TLS, limits, and an end that lets running requests finish.
//!
//! Callers are not trusted and need no credentials to connect, so everything that costs a slot is bounded: a TLS handshake, a
//! request's head, a whole request with its answer, a connection's life, connections in all and of one peer. A peer is an
//! address, of IPv6 the /64 network, since a machine has as many addresses of that as it likes. A slow peer thus loses
//! its own slots, after [`Limits::request`], and cannot take all of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

/// Bounds of a server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Connections of one peer at a time. A node's guests share one address: each keeps a connection open for a while.
    pub per_peer: usize,
    /// Time of a TLS handshake.
    pub handshake: Duration,
    /// Time of a request's head, and of waiting for the next request.
    pub head: Duration,
    /// Time of a whole request: body, work and answer.
    pub request: Duration,
    /// Time of a connection; a request that runs then may end.
    pub connection: Duration,
    /// Time that running requests have at the end.
    pub drain: Duration,
    /// Most bytes of a request's head (a bearer token with bulky evidence is large).
    pub max_head: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            per_peer: 256,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(15),
            request: Duration::from_secs(30),
            connection: Duration::from_secs(600),
            drain: Duration::from_secs(20),
            max_head: 256 << 10,
        }
    }
}

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

/// What all connections share.
#[derive(Clone)]
struct Shared {
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Arc<Limits>,
    peers: Arc<Peers>,
    slots: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

/// Serves until `stop` changes, then lets running requests finish. TLS is spoken where `tls` is given.
pub async fn serve(
    listeners: Vec<TcpListener>,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    stop: &watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let shared = Shared {
        tls,
        router,
        limits: Arc::new(limits),
        peers: Arc::default(),
        slots: Arc::clone(&slots),
        stop: stop.clone(),
    };
    let mut loops = tokio::task::JoinSet::new();
    for listener in listeners {
        loops.spawn(accept(listener, shared.clone()));
    }
    while loops.join_next().await.is_some() {}
    info!("draining");
    let all = u32::try_from(shared.limits.connections).unwrap_or(u32::MAX);
    if tokio::time::timeout(shared.limits.drain, slots.acquire_many(all)).await.is_err() {
        warn!("requests still running after {:?} are cut off", shared.limits.drain);
    }
}

async fn accept(listener: TcpListener, mut shared: Shared) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shared.stop.changed() => return,
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
        let peer = Peer::of(address.ip());
        let Some(entered) = shared.peers.enter(peer, shared.limits.per_peer) else {
            debug!(%address, "connection closed: its peer has too many");
            continue;
        };
        let slot = tokio::select! {
            slot = Arc::clone(&shared.slots).acquire_owned() => slot,
            _ = shared.stop.changed() => return,
        };
        let Ok(slot) = slot else { return };
        tokio::spawn(connection(stream, address, shared.clone(), (entered, slot)));
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    shared: Shared,
    _counted: (Entered, OwnedSemaphorePermit),
) {
    // Small answers, one at a time: Nagle only delays them.
    let _ = stream.set_nodelay(true);
    let peer = Peer::of(address.ip());
    let ended = match shared.tls.clone() {
        None => http(stream, peer, None, shared).await,
        Some(tls) => match tokio::time::timeout(shared.limits.handshake, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let certificate = shown.map(|leaf| ClientCertificate(leaf.clone().into_owned()));
                http(stream, peer, certificate, shared).await
            }
            Ok(Err(error)) => Err(format!("TLS handshake failed: {error}")),
            Err(_) => Err("TLS handshake took too long".to_owned()),
        },
    };
    if let Err(error) = ended {
        debug!(%address, %error, "connection ended");
    }
}

async fn http<S>(
    stream: S,
    peer: Peer,
    certificate: Option<ClientCertificate>,
    mut shared: Shared,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (router, limits) = (shared.router, shared.limits);
    let time = limits.request;
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        if let Some(certificate) = &certificate {
            request.extensions_mut().insert(certificate.clone());
        }
        answer(router.clone(), request.map(Body::new), time)
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(limits.max_head)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(|e| e.to_string()),
        () = tokio::time::sleep(limits.connection) => {}
        _ = shared.stop.changed() => {}
    }
    // The request that runs may end. Its answer is bounded too: a peer that does not read it would hold the slot.
    connection.as_mut().graceful_shutdown();
    match tokio::time::timeout(limits.request, connection).await {
        Ok(ended) => ended.map_err(|e| e.to_string()),
        Err(_) => Err("its last request took too long".to_owned()),
    }
}

/// Answers one request, whose body may be slow in coming.
async fn answer(
    router: Router,
    request: Request<Body>,
    time: Duration,
) -> Result<Response<Body>, std::convert::Infallible> {
    if let Ok(answer) = tokio::time::timeout(time, router.oneshot(request)).await {
        return answer;
    }
    let mut answer = Response::new(Body::from("the request took too long\n"));
    *answer.status_mut() = StatusCode::REQUEST_TIMEOUT;
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Bytes;
    use axum::routing::post;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpSocket;

    const SLOW: &[u8] = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf";
    const WHOLE: &[u8] = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody";

    async fn server(limits: Limits) -> (SocketAddr, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let router = Router::new().route("/", post(async |_: Bytes| "done"));
        let task = tokio::spawn(async move { serve(vec![listener], None, router, limits, &stopped).await });
        (address, stop, task)
    }

    async fn connect(from: &str, to: SocketAddr, bytes: &[u8]) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        let mut stream = socket.connect(to).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// All that the server says until it closes.
    async fn rest(mut stream: TcpStream) -> String {
        let mut text = Vec::new();
        // A connection that was never wanted is reset.
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    fn limits() -> Limits {
        Limits { request: Duration::from_millis(300), drain: Duration::from_secs(5), ..Limits::default() }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_ends_its_connection() {
        let (address, _stop, _task) = server(limits()).await;
        let begin = Instant::now();
        let stream = connect("127.0.0.1", address, SLOW).await;
        let text = tokio::time::timeout(Duration::from_secs(10), rest(stream)).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 408"), "{text}");
        assert!(begin.elapsed() >= Duration::from_millis(300));
        assert!(rest(connect("127.0.0.1", address, WHOLE).await).await.ends_with("done"));
    }

    #[tokio::test]
    async fn slow_peers_leave_room_for_others() {
        let slow = Limits { connections: 8, per_peer: 4, request: Duration::from_secs(60), ..limits() };
        let (address, _stop, _task) = server(slow).await;
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(connect("127.0.0.2", address, SLOW).await);
        }
        for _ in 0..8 {
            let more = connect("127.0.0.2", address, SLOW).await;
            assert_eq!(tokio::time::timeout(Duration::from_secs(10), rest(more)).await.unwrap(), "");
        }
        let good = rest(connect("127.0.0.1", address, WHOLE).await);
        assert!(tokio::time::timeout(Duration::from_secs(10), good).await.unwrap().ends_with("done"));
        // Whoever goes makes room.
        held.clear();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(rest(connect("127.0.0.2", address, WHOLE).await).await.ends_with("done"));
    }

    #[tokio::test]
    async fn slots_taken_by_slow_peers_come_back() {
        let (address, _stop, _task) = server(Limits { connections: 4, ..limits() }).await;
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(connect("127.0.0.1", address, SLOW).await);
        }
        let good = rest(connect("127.0.0.1", address, WHOLE).await);
        assert!(tokio::time::timeout(Duration::from_secs(10), good).await.unwrap().ends_with("done"));
    }

    #[tokio::test]
    async fn a_connection_has_a_life_and_the_end_waits_for_nobody_idle() {
        let (address, _stop, _task) =
            server(Limits { connection: Duration::from_millis(200), ..limits() }).await;
        let idle = connect("127.0.0.1", address, b"").await;
        tokio::time::timeout(Duration::from_secs(10), rest(idle)).await.unwrap();

        let (address, stop, task) = server(limits()).await;
        let _idle = connect("127.0.0.1", address, b"").await;
        let _slow = connect("127.0.0.1", address, SLOW).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.send(true).unwrap();
        tokio::time::timeout(Duration::from_secs(3), task).await.unwrap().unwrap();
    }

    #[test]
    fn a_peer_is_a_machine() {
        let peer = |text: &str| Peer::of(text.parse().unwrap());
        assert_eq!(peer("2001:db8:1:2::1"), peer("2001:db8:1:2:ffff::9"));
        assert_ne!(peer("2001:db8:1:2::1"), peer("2001:db8:1:3::1"));
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
    }
}
