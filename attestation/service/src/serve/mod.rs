//! The listening side of both servers: TLS, limits, and an end that lets running requests finish.
//!
//! Callers are not trusted and need no credentials to connect, so everything that costs a slot is bounded: a TLS handshake, a
//! request's head, a whole request with its answer, a connection's life, connections in all and of one peer. A peer is an
//! address, of IPv6 the /64 network, since a machine has as many addresses of that as it likes. A slow peer thus loses
//! its own slots, after [`Limits::request`], and cannot take all of them. Behind a balancer of connections, all clients have its
//! address, unless it is one of [`Limits::trusted_proxies`].

mod door;
mod proxy;
mod rpc;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use axum::response::IntoResponse as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use crate::problem::Problem;
use door::{Door, Knock, Visitor};

pub use door::{ClientCertificate, Peer};
pub use proxy::{ProxyError, networks, read as read_proxy_header};
pub use rpc::serve_rpc;

/// Time of a request until it is answered 408 by whoever knows its id: the outermost layer of a router.
pub const REQUEST_TIME: Duration = Duration::from_secs(30);

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
    /// Time of a whole request: body, work and answer. More than [`REQUEST_TIME`], which tells more.
    pub request: Duration,
    /// Time of a connection; a request that runs then may end.
    pub connection: Duration,
    /// Time that running requests have at the end.
    pub drain: Duration,
    /// Most bytes of a request's head (a bearer token with bulky evidence is large).
    pub max_head: usize,
    /// Balancers that say who is behind them, by the PROXY protocol.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            per_peer: 256,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(15),
            request: REQUEST_TIME.saturating_add(Duration::from_secs(1)),
            connection: Duration::from_secs(600),
            drain: Duration::from_secs(20),
            max_head: 256 << 10,
            trusted_proxies: Vec::new(),
        }
    }
}

/// Serves until `stop` changes, then lets running requests finish. TLS is spoken where `tls` is given.
pub async fn serve(
    listeners: Vec<TcpListener>,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    stop: &watch::Receiver<bool>,
) {
    let door = Door::new(tls, limits);
    let mut loops = tokio::task::JoinSet::new();
    for listener in listeners {
        let (door, router, mut stop) = (door.clone(), router.clone(), stop.clone());
        loops.spawn(async move {
            while let Some(knock) = door.next(&listener, &mut stop).await {
                tokio::spawn(connection(knock, door.clone(), router.clone(), stop.clone()));
            }
        });
    }
    while loops.join_next().await.is_some() {}
    info!("draining");
    if !door.empty().await {
        warn!("requests still running after {:?} are cut off", door.limits.drain);
    }
}

async fn connection(knock: Knock, door: Door, router: Router, stop: watch::Receiver<bool>) {
    let address = knock.address;
    let ended = match door.greet(knock).await {
        Ok(visitor) => http(visitor, router, &door.limits, stop).await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        debug!(%address, %error, "connection ended");
    }
}

async fn http(
    visitor: Visitor,
    router: Router,
    limits: &Limits,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String> {
    let Visitor { stream, peer, certificate, places: _places } = visitor;
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
        _ = stop.changed() => {}
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
    let why = format!("the request, with its body, took longer than {time:?}");
    let mut answer = Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", why).into_response();
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Bytes;
    use axum::routing::post;
    use std::net::SocketAddr;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpSocket, TcpStream};

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
        assert!(
            text.contains("application/problem+json") && text.contains("took longer than 300ms"),
            "{text}"
        );
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

    /// A header of the PROXY protocol, as a balancer on loopback sends it, before a whole request.
    fn proxied(source: &str) -> Vec<u8> {
        [format!("PROXY TCP4 {source} 127.0.0.1 4000 443\r\n").as_bytes(), WHOLE].concat()
    }

    #[tokio::test]
    async fn behind_a_trusted_proxy_each_client_has_its_own_places() {
        let trusted = Limits {
            per_peer: 2,
            request: Duration::from_secs(60),
            handshake: Duration::from_millis(500),
            trusted_proxies: networks(&["127.0.0.9".to_owned()]).unwrap(),
            ..limits()
        };
        let (address, _stop, _task) = server(trusted).await;
        let slow = [b"PROXY TCP4 10.0.0.1 127.0.0.1 4000 443\r\n".as_slice(), SLOW].concat();
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(connect("127.0.0.9", address, &slow).await);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        // The flooding client has no place left, another one through the same balancer has.
        assert_eq!(rest(connect("127.0.0.9", address, &proxied("10.0.0.1")).await).await, "");
        assert!(rest(connect("127.0.0.9", address, &proxied("10.0.0.2")).await).await.ends_with("done"));
        // A balancer that says nothing is not let in, nor one that does not say who.
        assert_eq!(rest(connect("127.0.0.9", address, WHOLE).await).await, "");
        assert_eq!(rest(connect("127.0.0.9", address, b"PROXY ").await).await, "");
        // Anybody else cannot choose who he is.
        assert!(
            rest(connect("127.0.0.1", address, &proxied("10.0.0.3")).await).await.starts_with("HTTP/1.1 400")
        );
        assert!(rest(connect("127.0.0.1", address, WHOLE).await).await.ends_with("done"));
    }

    async fn rpc_server(limits: Limits) -> (SocketAddr, watch::Sender<bool>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(serve_rpc(listener, None, tonic::service::Routes::default(), limits, stopped));
        (address, stop)
    }

    /// The preface of HTTP/2 with empty settings; who speaks gRPC gets settings in return.
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    async fn speaks(from: &str, to: SocketAddr) -> bool {
        let mut stream = connect(from, to, PREFACE).await;
        let mut answer = [0; 9];
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut answer)).await;
        matches!(read, Ok(Ok(_))) && answer[3] == 4
    }

    #[tokio::test]
    async fn idle_callers_of_grpc_take_their_own_places_only_and_not_for_long() {
        let bounds = Limits { connections: 8, per_peer: 4, head: Duration::from_millis(600), ..limits() };
        let (address, _stop) = rpc_server(bounds).await;
        let mut idle = Vec::new();
        for _ in 0..12 {
            idle.push(connect("127.0.0.2", address, b"").await);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(speaks("127.0.0.1", address).await);
        assert!(!speaks("127.0.0.2", address).await);
        // Nothing was said in time, so they are gone.
        for stream in idle {
            tokio::time::timeout(Duration::from_secs(5), rest(stream)).await.unwrap();
        }
        assert!(speaks("127.0.0.2", address).await);
    }
}
