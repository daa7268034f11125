//! Peers without credentials that hold their connections against the real `kbs`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Server, init};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};

/// Connections that one peer may have, and some more.
const ALLOWED: usize = 256;
const MORE: usize = 20;

async fn from(address: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn a_peer_that_holds_connections_takes_them_from_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    init(folder.path(), &[]);
    let server = Server::start(folder.path());
    let address: SocketAddr = server.endpoint.url.rsplit('/').next().unwrap().parse().unwrap();
    let mut held = Vec::new();
    for _ in 0..ALLOWED + MORE {
        held.push(from("127.0.0.2", address).await);
    }
    let mut closed = 0;
    for stream in held.iter_mut().rev() {
        // The server speaks first to nobody: what can be read is the end.
        let read = tokio::time::timeout(Duration::from_millis(50), stream.read_u8()).await;
        closed += usize::from(matches!(read, Ok(Err(_))));
        if closed == MORE {
            break;
        }
    }
    assert_eq!(closed, MORE, "connections of one peer are not bounded");
    server.admin(folder.path()).resource_policy().await.unwrap();
    drop(held);
    let (code, _) = server.stop();
    assert_eq!(code, Some(0));
}
