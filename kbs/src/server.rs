//! The listening side: TLS, limits, and an end that lets running requests finish.
//!
//! At most [`MAX_CONNECTIONS`] at a time; a TLS handshake has 10 s, a request head 15 s and 128 KiB (a bearer token with bulky
//! evidence is large).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use crate::config::Config;

const MAX_CONNECTIONS: usize = 4096;
const MAX_HEAD: usize = 128 << 10;
const DRAIN: Duration = Duration::from_secs(20);

/// TLS of the configuration; `None` for plain HTTP.
pub(crate) fn tls(config: &Config) -> anyhow::Result<Option<TlsAcceptor>> {
    let http = &config.http_server;
    if http.insecure_http {
        warn!("plain HTTP: admin tokens and uploads can be read on the network");
        return Ok(None);
    }
    let (Some(key), Some(certificate)) = (&http.private_key, &http.certificate) else {
        anyhow::bail!("http_server needs private_key and certificate");
    };
    let (key, certificate) = (config.path(key), config.path(certificate));
    let chain = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("certificate {}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(&key).with_context(|| format!("private key {}", key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("certificate and private key do not go together")?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(tls))))
}

/// Opens all addresses.
pub(crate) async fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Serves until `stop` changes, then lets running requests finish.
pub(crate) async fn serve(
    listeners: Vec<TcpListener>,
    tls: Option<TlsAcceptor>,
    router: Router,
    stop: &watch::Receiver<bool>,
) {
    let graceful = Arc::new(GracefulShutdown::new());
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut loops = tokio::task::JoinSet::new();
    for listener in listeners {
        let (tls, router, mut stop) = (tls.clone(), router.clone(), stop.clone());
        let (graceful, slots) = (Arc::clone(&graceful), Arc::clone(&slots));
        loops.spawn(async move {
            loop {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    _ = stop.changed() => return,
                };
                let (stream, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, mostly: waiting is all that helps.
                        warn!(%error, "connection not accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let (tls, router, graceful) = (tls.clone(), router.clone(), Arc::clone(&graceful));
                tokio::spawn(async move {
                    connection(stream, peer, tls, router, &graceful).await;
                    drop(slot);
                });
            }
        });
    }
    while loops.join_next().await.is_some() {}
    info!("draining");
    if let Some(graceful) = Arc::into_inner(graceful) {
        drain(graceful.shutdown()).await;
        return;
    }
    // Connections still hold the watcher: they are between accept and their first request.
    drain(slots.acquire_many(u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX))).await;
}

async fn drain<F: Future>(work: F) {
    if tokio::time::timeout(DRAIN, work).await.is_err() {
        warn!("requests still running after {DRAIN:?} are cut off");
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    graceful: &GracefulShutdown,
) {
    // Small answers, one at a time: Nagle only delays them.
    let _ = stream.set_nodelay(true);
    match tls {
        None => http(stream, router, graceful).await,
        Some(tls) => match tokio::time::timeout(Duration::from_secs(10), tls.accept(stream)).await {
            Ok(Ok(stream)) => http(stream, router, graceful).await,
            Ok(Err(error)) => debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => debug!(%peer, "TLS handshake took too long"),
        },
    }
}

async fn http<S>(stream: S, router: Router, graceful: &GracefulShutdown)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(15))
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = graceful.watch(connection).await {
        debug!(%error, "connection ended");
    }
}
