//! TLS and addresses of the configuration. The listening side itself is [`kata_cc_attestation_service::serve`].

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use crate::config::Config;

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
