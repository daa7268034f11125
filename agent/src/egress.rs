//! The way out before, or without, a network: an HTTP proxy on the guest's loopback whose other end is the host's.
//!
//! Each TCP connection is carried to vsock port 1026 of the host, where the shim serves HTTP CONNECT for what the
//! node allows. The host sees bytes only: TLS ends in the guest.

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

/// Host port of the proxy.
const HOST_PORT: u32 = 1026;
/// Guest port of the proxy (squid's).
const GUEST_PORT: u16 = 3128;
/// Most connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 128;

/// Address for clients.
pub(crate) fn url() -> String {
    format!("http://127.0.0.1:{GUEST_PORT}")
}

/// Starts listening.
pub(crate) async fn start() -> std::io::Result<()> {
    let listener = crate::net::listen_on_loopback(GUEST_PORT)?;
    tokio::spawn(async move {
        let room = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(permit) = std::sync::Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((client, _)) => {
                    tokio::spawn(async move {
                        carry(client).await;
                        drop(permit);
                    });
                }
                Err(e) => {
                    tracing::warn!(error = %e, "egress: accept failed");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

async fn carry(mut client: TcpStream) {
    let address = VsockAddr::new(VMADDR_CID_HOST, HOST_PORT);
    match VsockStream::connect(address).await {
        Ok(mut host) => {
            // Either side may drop the connection; both are then closed.
            if let Err(e) = copy_bidirectional(&mut client, &mut host).await {
                tracing::debug!(error = %e, "egress connection ended");
            }
        }
        Err(e) => tracing::warn!(error = %e, "egress: the host's proxy does not answer"),
    }
}
