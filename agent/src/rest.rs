//! The guest's REST API for containers: `127.0.0.1:8006`, paths of CoCo's api-server-rest.
//!
//! `GET /cdh/resource/{repository}/{type}/{tag}` gives a resource of the key broker, `GET /aa/token?token_type=kbs` an
//! attestation token. Loopback only: containers share the guest's network, so every container of the sandbox may
//! ask, and nobody outside can. One request a connection, answered and closed; the head is read up to [`MAX_HEAD`].

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::confidential::Broker;

/// Port of api-server-rest.
const PORT: u16 = 8006;
/// Longest request head.
const MAX_HEAD: usize = 8192;
/// Most requests at once.
const MAX_REQUESTS: usize = 64;
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts serving.
pub(crate) async fn start(broker: Broker) -> std::io::Result<()> {
    let listener = crate::net::listen_on_loopback(PORT)?;
    tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(MAX_REQUESTS));
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let broker = broker.clone();
                    tokio::spawn(async move {
                        serve(stream, &broker).await;
                        drop(permit);
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(())
}

async fn serve(mut stream: TcpStream, broker: &Broker) {
    let Ok(Some(line)) = tokio::time::timeout(PATIENCE, request_line(&mut stream)).await else {
        return;
    };
    let (status, kind, body) = match route(&line) {
        Route::Resource(path) => match broker.resource(&format!("kbs:///{path}")).await {
            Ok(bytes) => ("200 OK", "application/octet-stream", bytes),
            Err(e) => ("500 Internal Server Error", "text/plain", text(&e.to_string())),
        },
        Route::Token => match broker.token().await {
            Ok(token) => {
                let json = serde_json::json!({"token": token}).to_string();
                ("200 OK", "application/json", text(&json))
            }
            Err(e) => ("500 Internal Server Error", "text/plain", text(&e.to_string())),
        },
        Route::BadMethod => ("405 Method Not Allowed", "text/plain", text("only GET")),
        Route::Bad => ("400 Bad Request", "text/plain", text("BAD REQUEST")),
        Route::Unknown => ("404 Not Found", "text/plain", text("URL NOT FOUND")),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // A client that is gone has no use for an error.
    if stream.write_all(head.as_bytes()).await.is_ok() && stream.write_all(&body).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}

fn text(message: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(message.as_bytes().to_vec())
}

/// Reads the head and gives its first line.
async fn request_line(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let count = stream.read(&mut piece).await.ok().filter(|n| *n > 0)?;
        head.extend_from_slice(piece.get(..count)?);
        if head.windows(4).any(|w| w == b"\r\n\r\n") {
            let line = head.split(|b| *b == b'\r').next()?;
            return String::from_utf8(line.to_vec()).ok();
        }
        if head.len() > MAX_HEAD {
            return None;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Resource(&'a str),
    Token,
    Bad,
    BadMethod,
    Unknown,
}

fn route(line: &str) -> Route<'_> {
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Route::Bad;
    };
    if !version.starts_with("HTTP/1.") {
        return Route::Bad;
    }
    if method != "GET" {
        return Route::BadMethod;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match path {
        "/aa/token" if query.split('&').any(|p| p == "token_type=kbs") => Route::Token,
        "/aa/token" => Route::Bad,
        other => match other.strip_prefix("/cdh/resource/") {
            Some(resource) => Route::Resource(resource),
            None => Route::Unknown,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_routed() {
        assert_eq!(route("GET /cdh/resource/a/b/c HTTP/1.1"), Route::Resource("a/b/c"));
        assert_eq!(route("GET /aa/token?token_type=kbs HTTP/1.0"), Route::Token);
        assert_eq!(route("GET /aa/token HTTP/1.1"), Route::Bad);
        assert_eq!(route("POST /cdh/resource/a/b/c HTTP/1.1"), Route::BadMethod);
        assert_eq!(route("GET / HTTP/1.1"), Route::Unknown);
        for bad in ["", "GET", "GET /", "GET / HTTP/2", "GET / HTTP/1.1 x"] {
            assert_eq!(route(bad), Route::Bad, "{bad}");
        }
    }
}
