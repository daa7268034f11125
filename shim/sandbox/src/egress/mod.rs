//! The guest's way out: an HTTP proxy on the host's side of vsock port 1026.
//!
//! It takes `CONNECT host:port` (TLS then ends in the guest; the host only carries) and, for plain HTTP, requests in
//! absolute form (RFC 9112 §3.2.2), which are passed on in origin form with `Connection: close`. A target that is not on
//! the allow-list is answered 403 with the reason. What comes from the guest is untrusted: heads are limited to
//! [`MAX_HEAD`], connections to [`MAX_CONNECTIONS`], and nothing of what is carried is logged.
//!
//! Where a site lets its nodes out by a proxy only, that is asked in turn ([`Route`]).

mod allow;
mod route;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

pub use self::allow::{AllowList, AllowListError, Allowed};
use self::route::Reached;
pub use self::route::{Route, RouteError};
use crate::log::{Log, Source};

/// Largest request head.
pub const MAX_HEAD: usize = 16 << 10;
/// Most connections at a time.
pub const MAX_CONNECTIONS: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// `host:port`, `[v6]:port`, or a bare host when there is a default port.
fn split_authority(text: &str, default_port: Option<u16>) -> Option<(&str, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':').map(str::parse).transpose().ok()?)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        },
    };
    let fits = !host.is_empty()
        && host.len() <= 255
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'*'));
    fits.then_some((host, port.or(default_port)?))
}

/// What a request head asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// A tunnel.
    Connect {
        /// Target host.
        host: String,
        /// Target port.
        port: u16,
    },
    /// A plain request to pass on.
    Forward {
        /// Target host.
        host: String,
        /// Target port.
        port: u16,
        /// Head in origin form, ready to send.
        head: Vec<u8>,
    },
}

/// Fields that are not passed on: they are of this connection, or are written here.
const DROPPED: [&str; 5] = ["host", "connection", "proxy-connection", "proxy-authorization", "keep-alive"];

/// A character of a field's name (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Parse a request head (up to and with its empty line).
///
/// # Errors
/// What is wrong, in words for a 400 answer.
pub fn parse_head(head: &[u8]) -> Result<Request, &'static str> {
    let text = std::str::from_utf8(head).map_err(|_| "the request head is not text")?;
    // A lone CR or LF ends a line for some servers: behind it would stand a field or a request that nobody checked.
    let control = |line: &str| line.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t');
    if text.split("\r\n").any(control) {
        return Err("the request head has control characters");
    }
    let (line, fields) = text.split_once("\r\n").ok_or("the request line does not end")?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("the request line is not `METHOD TARGET VERSION`");
    };
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err("only HTTP/1.0 and HTTP/1.1 are spoken here");
    }
    if method == "CONNECT" {
        let (host, port) = split_authority(target, None).ok_or("CONNECT needs host:port")?;
        return Ok(Request::Connect { host: host.to_owned(), port });
    }
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Err("the method is not a word of capitals");
    }
    let rest = target.strip_prefix("http://").ok_or("the target must be absolute: http://host/path")?;
    let at = rest.find('/').unwrap_or(rest.len());
    let (host, port) = split_authority(&rest[..at], Some(80)).ok_or("the target's host is malformed")?;
    let path = if at == rest.len() { "/" } else { &rest[at..] };
    // The host that was checked is the one that is asked for (RFC 9112 §3.2.2).
    let mut out = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", &rest[..at]);
    for field in fields.split("\r\n").take_while(|field| !field.is_empty()) {
        let name = field.split_once(':').map_or("", |(name, _)| name).to_ascii_lowercase();
        // A folded line or a blank before the colon is read in one way here and in another there (RFC 9112 §5).
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err("a header field is not `NAME: VALUE`");
        }
        if !DROPPED.contains(&name.as_str()) {
            out += field;
            out += "\r\n";
        }
    }
    // One request a connection: the next may go to another host.
    out += "Connection: close\r\n\r\n";
    Ok(Request::Forward { host: host.to_owned(), port, head: out.into_bytes() })
}

/// Listen on `socket` until the returned task is aborted.
///
/// # Errors
/// When the socket cannot be bound.
pub fn serve(
    socket: &Path,
    allow: AllowList,
    route: Route,
    log: Log,
) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let listener = UnixListener::bind(socket)?;
    let way = Arc::new((allow, route));
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    Ok(tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let (way, log) = (Arc::clone(&way), log.clone());
            connections.spawn(async move {
                let _slot = slot;
                // The guest sees its connection end; there is nobody else to tell.
                let _ = carry(stream, &way.0, &way.1, &log).await;
            });
            while connections.try_join_next().is_some() {}
        }
    }))
}

async fn carry(mut guest: UnixStream, allow: &AllowList, route: &Route, log: &Log) -> std::io::Result<()> {
    let (head, more) = match tokio::time::timeout(HEAD_TIMEOUT, read_head(&mut guest)).await {
        Ok(Ok(head)) => head,
        Ok(Err(reason)) => return answer(&mut guest, 400, reason).await,
        Err(_) => return answer(&mut guest, 408, "the request head did not come").await,
    };
    let request = match parse_head(&head) {
        Ok(request) => request,
        Err(reason) => return answer(&mut guest, 400, reason).await,
    };
    let (Request::Connect { host, port } | Request::Forward { host, port, .. }) = &request;
    let allowed = allow.allows(host, *port);
    if allowed == Allowed::No {
        let reason = format!("{host}:{port} is not on this node's egress allow-list ([egress] allow)");
        return refuse(&mut guest, log, &reason).await;
    }
    let tunnel = matches!(request, Request::Connect { .. });
    let connecting = route.reach(host, *port, allowed, tunnel);
    let Reached { mut target, by_proxy } = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(Some(reached))) => reached,
        Ok(Ok(None)) => {
            let reason = format!(
                "{host}:{port} is an address of this node, its link or its cloud's services, which an entry *:port does \
                 not allow: name it on [egress] allow"
            );
            return refuse(&mut guest, log, &reason).await;
        }
        Ok(Err(error)) => {
            return answer(&mut guest, 502, &format!("cannot reach {host}:{port}: {error}")).await;
        }
        Err(_) => return answer(&mut guest, 504, &format!("{host}:{port} did not answer")).await,
    };
    match &request {
        Request::Connect { .. } => guest.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?,
        Request::Forward { head, .. } if by_proxy => {
            target.write_all(&route::absolute_form(head, host, *port)).await?;
        }
        Request::Forward { head, .. } => target.write_all(head).await?,
    }
    target.write_all(&more).await?;
    tokio::io::copy_bidirectional(&mut guest, &mut target).await.map(drop)
}

/// The head up to its empty line, and what came behind it.
async fn read_head(from: &mut (impl AsyncRead + Unpin)) -> Result<(Vec<u8>, Vec<u8>), &'static str> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        let count = from.read(&mut buffer).await.map_err(|_| "the connection broke")?;
        if count == 0 {
            return Err("the connection ended within the request head");
        }
        bytes.extend_from_slice(&buffer[..count]);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let more = bytes.split_off(end + 4);
            return Ok((bytes, more));
        }
        if bytes.len() > MAX_HEAD {
            return Err("the request head is larger than 16 KiB");
        }
    }
}

async fn refuse(to: &mut UnixStream, log: &Log, reason: &str) -> std::io::Result<()> {
    log.add(Source::Shim, "warn", &format!("egress refused: {reason}"));
    answer(to, 403, reason).await
}

async fn answer(
    to: &mut (impl AsyncRead + AsyncWrite + Unpin),
    code: u16,
    reason: &str,
) -> std::io::Result<()> {
    let phrase = match code {
        400 => "Bad Request",
        403 => "Forbidden",
        408 => "Request Timeout",
        502 => "Bad Gateway",
        _ => "Gateway Timeout",
    };
    let body = format!("{reason}\n");
    let head = format!(
        "HTTP/1.1 {code} {phrase}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    to.write_all(head.as_bytes()).await?;
    to.write_all(body.as_bytes()).await?;
    to.shutdown().await?;
    // Closing on unread bytes would reset the connection and take the answer with it.
    let mut rest = to.take(4 * MAX_HEAD as u64);
    let mut sink = tokio::io::sink();
    let drained = tokio::io::copy(&mut rest, &mut sink);
    let _ = tokio::time::timeout(Duration::from_secs(1), drained).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    #[test]
    fn connect_and_absolute_form() {
        assert_eq!(
            parse_head(b"CONNECT kbs:8080 HTTP/1.1\r\nHost: kbs:8080\r\n\r\n"),
            Ok(Request::Connect { host: "kbs".into(), port: 8080 })
        );
        assert_eq!(
            parse_head(b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n"),
            Ok(Request::Connect { host: "::1".into(), port: 443 })
        );
        let Ok(Request::Forward { host, port, head }) = parse_head(
            b"GET http://reg:5000/v2/ HTTP/1.1\r\nHost: reg:5000\r\nProxy-Connection: keep-alive\r\n\r\n",
        ) else {
            panic!("refused");
        };
        assert_eq!((host.as_str(), port), ("reg", 5000));
        assert_eq!(head, b"GET /v2/ HTTP/1.1\r\nHost: reg:5000\r\nConnection: close\r\n\r\n");
    }

    #[test]
    fn malformed_heads_are_refused_with_the_reason() {
        for (head, reason) in [
            (&b"CONNECT kbs HTTP/1.1\r\n\r\n"[..], "host:port"),
            (b"CONNECT kbs:99999 HTTP/1.1\r\n\r\n", "host:port"),
            (b"GET /v2/ HTTP/1.1\r\n\r\n", "absolute"),
            (b"GET http:///x HTTP/1.1\r\n\r\n", "host"),
            (b"GET http://a b/ HTTP/1.1\r\n\r\n", "request line"),
            (b"GET http://a/ HTTP/2\r\n\r\n", "HTTP/1"),
            (b"g\xff", "text"),
            (b"GET http://a/\nX: y HTTP/1.1\r\n\r\n", "control"),
            (b"GET http://a/ HTTP/1.1\r\nX: y\n\nGET /b HTTP/1.1\r\n\r\n", "control"),
            (b"GET http://a/ HTTP/1.1\r\nX: y\rZ: z\r\n\r\n", "control"),
            (b"CONNECT a:1 HTTP/1.1\r\nX: \0\r\n\r\n", "control"),
            (b"GET http://a/ HTTP/1.1\r\nConnection: x\r\n\tfolded\r\n\r\n", "header field"),
            (b"GET http://a/ HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n", "header field"),
            (b"GET http://a/ HTTP/1.1\r\nno colon\r\n\r\n", "header field"),
        ] {
            let error = parse_head(head).unwrap_err();
            assert!(error.contains(reason), "{error} for {head:?}");
        }
    }

    #[test]
    fn the_host_that_was_checked_is_the_one_that_is_asked_for() {
        let head = b"GET http://allowed:81/ HTTP/1.1\r\nHost: other\r\nhost: third\r\nA: b\r\n\r\n";
        let Ok(Request::Forward { head, .. }) = parse_head(head) else { panic!("refused") };
        assert_eq!(head, b"GET / HTTP/1.1\r\nHost: allowed:81\r\nA: b\r\nConnection: close\r\n\r\n");
    }

    proptest! {
        #[test]
        fn no_head_panics(head in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_head(&head);
        }

        #[test]
        fn no_target_escapes_its_line(target in "[ -~]{0,60}") {
            let head = format!("GET http://{target} HTTP/1.1\r\n\r\n");
            if let Ok(Request::Forward { head, .. }) = parse_head(head.as_bytes()) {
                let text = String::from_utf8(head).unwrap();
                prop_assert_eq!(text.matches("\r\n").count(), 4);
            }
        }
    }

    /// A server on loopback, and a proxy before it.
    struct Proxy {
        server: TcpListener,
        port: u16,
        socket: PathBuf,
        task: tokio::task::JoinHandle<()>,
        dir: tempfile::TempDir,
    }

    impl Proxy {
        /// It allows `host` at the server's port.
        async fn to(host: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("egress");
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = server.local_addr().unwrap().port();
            let allow = AllowList::parse(&[format!("{host}:{port}")]).unwrap();
            let task = serve(&socket, allow, Route::default(), Log::nowhere()).unwrap();
            Self { server, port, socket, task, dir }
        }
    }

    #[tokio::test]
    async fn an_entry_for_any_host_does_not_open_the_nodes_own_services() {
        let Proxy { server, port, socket, task, dir: _dir } = Proxy::to("*").await;
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "*"] {
            let refused = ask(&socket, &format!("CONNECT {host}:{port} HTTP/1.1\r\n\r\n")).await;
            assert!(
                refused.starts_with("HTTP/1.1 403") && (refused.contains("*:port") || host == "*"),
                "{host}: {refused}"
            );
        }
        assert!(tokio::time::timeout(Duration::from_millis(100), server.accept()).await.is_err());
        task.abort();
    }

    async fn ask(socket: &Path, request: &str) -> String {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn what_is_not_allowed_is_told_so_and_what_is_gets_through() {
        let Proxy { server, port, socket, task, dir: _dir } = Proxy::to("127.0.0.1").await;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                let mut head = [0; 512];
                let count = stream.read(&mut head).await.unwrap();
                stream.write_all(b"seen: ").await.unwrap();
                stream.write_all(&head[..count]).await.unwrap();
            }
        });
        let refused = ask(&socket, "CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n").await;
        assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("allow-list"), "{refused}");
        let forwarded = ask(&socket, &format!("GET http://127.0.0.1:{port}/x HTTP/1.1\r\n\r\n")).await;
        assert!(forwarded.starts_with("seen: GET /x HTTP/1.1"), "{forwarded}");
        let tunnel = ask(&socket, &format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\nhello")).await;
        assert!(tunnel.contains("200") && tunnel.ends_with("seen: hello"), "{tunnel}");
        let huge = ask(&socket, &"x".repeat(MAX_HEAD + 4096)).await;
        assert!(huge.starts_with("HTTP/1.1 400"), "{huge}");
        task.abort();
    }
}
