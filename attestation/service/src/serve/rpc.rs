//! The listening side of gRPC: the same door as HTTP's, and bounds that HTTP/2 needs besides.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tracing::{debug, warn};

use super::Limits;
use super::door::{Door, Places, Stream};

/// Bytes of the preface that every client of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Requests of one connection at a time.
const STREAMS: u32 = 64;

/// A connection. Pings find those that are dead, but only after the preface: until then it has a time of its own.
struct Connection {
    stream: Box<dyn Stream>,
    missing: usize,
    preface: Pin<Box<Sleep>>,
    _places: Places,
}

impl Connection {
    /// Whether the preface is late, looked at when there is nothing to read.
    fn late(&mut self, context: &mut Context<'_>) -> bool {
        self.missing > 0 && self.preface.as_mut().poll(context).is_ready()
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending() && self.late(context) {
            let late = io::Error::new(io::ErrorKind::TimedOut, "the preface of HTTP/2 did not come in time");
            return Poll::Ready(Err(late));
        }
        self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Serves gRPC until `stop` changes, then lets running calls finish.
pub async fn serve_rpc(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    routes: Routes,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    let door = Door::new(tls, limits);
    let limits = door.limits.clone();
    let (ready, incoming) = tokio::sync::mpsc::channel(16);
    let accepting = tokio::spawn({
        let mut stop = stop.clone();
        async move {
            while let Some(knock) = door.next(&listener, &mut stop).await {
                let (door, ready) = (door.clone(), ready.clone());
                tokio::spawn(async move {
                    let address = knock.address;
                    match door.greet(knock).await {
                        Ok(visitor) => {
                            let connection = Connection {
                                stream: visitor.stream,
                                missing: PREFACE,
                                preface: Box::pin(tokio::time::sleep(door.limits.head)),
                                _places: visitor.places,
                            };
                            let _ = ready.send(connection).await;
                        }
                        Err(error) => debug!(%address, %error, "gRPC connection ended"),
                    }
                });
            }
        }
    });
    let incoming = futures::stream::unfold(incoming, |mut incoming| async move {
        Some((Ok::<_, io::Error>(incoming.recv().await?), incoming))
    });
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .concurrency_limit_per_connection(STREAMS as usize)
        .max_concurrent_streams(STREAMS)
        .timeout(limits.request)
        .max_connection_age(limits.connection)
        .max_connection_age_grace(limits.request)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, async move {
            let _ = stop.changed().await;
        })
        .await;
    accepting.abort();
    if let Err(error) = served {
        warn!(%error, "gRPC ended");
    }
}
