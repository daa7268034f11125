//! TLS and addresses of the configuration. The listening side itself is [`kata_cc_attestation_service::serve`].
//!
//! Certificate, key and the authority of administrators' certificates can be exchanged while the server runs: handshakes that begin
//! afterwards use the new ones. Callers need no certificate; one that is shown must be good.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use crate::config::Config;

/// What can be exchanged.
#[derive(Debug)]
pub(crate) struct Credentials {
    certificate: Arc<CertifiedKey>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// Reads certificate, key and authority; `None` for plain HTTP.
pub(crate) fn credentials(config: &Config) -> anyhow::Result<Option<Credentials>> {
    let http = &config.http_server;
    if http.insecure_http {
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
    let certified = CertifiedKey::from_der(chain, key, &provider)
        .context("certificate and private key do not go together")?;
    let clients = match &http.client_ca {
        None => None,
        Some(path) => {
            let path = config.path(path);
            let mut roots = RootCertStore::empty();
            let file = || format!("client_ca {}", path.display());
            for certificate in CertificateDer::pem_file_iter(&path).with_context(file)? {
                roots.add(certificate.with_context(file)?).with_context(file)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            Some(verifier.allow_unauthenticated().build().with_context(file)?)
        }
    };
    Ok(Some(Credentials { certificate: Arc::new(certified), clients }))
}

/// The TLS side of the server.
#[derive(Debug)]
pub(crate) struct Tls(ArcSwap<Credentials>);

impl Tls {
    /// TLS of the configuration, and what its connections are accepted by; `None` for plain HTTP.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Option<(Arc<Self>, TlsAcceptor)>> {
        let Some(credentials) = credentials(config)? else {
            warn!("plain HTTP: admin tokens and uploads can be read on the network");
            return Ok(None);
        };
        let has_clients = credentials.clients.is_some();
        let tls = Arc::new(Self(ArcSwap::from_pointee(credentials)));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut server = if has_clients {
            builder.with_client_cert_verifier(Arc::clone(&tls) as Arc<dyn ClientCertVerifier>)
        } else {
            builder.with_no_client_auth()
        }
        .with_cert_resolver(Arc::clone(&tls) as Arc<dyn ResolvesServerCert>);
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        if has_clients {
            // A resumed session would bring back a certificate that nobody checks again.
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
        }
        Ok(Some((tls, TlsAcceptor::from(Arc::new(server)))))
    }

    /// Whether `new` can take the place of what is in use: whether callers are asked for certificates is fixed at the start.
    pub(crate) fn fits(&self, new: &Credentials) -> bool {
        self.0.load().clients.is_some() == new.clients.is_some()
    }

    /// Uses other credentials from now on.
    pub(crate) fn exchange(&self, new: Credentials) {
        self.0.store(Arc::new(new));
    }

    fn clients(&self) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
        let clients = self.0.load().clients.clone();
        clients.ok_or_else(|| rustls::Error::General("no authority for callers is configured".to_owned()))
    }
}

impl ResolvesServerCert for Tls {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().certificate))
    }
}

impl ClientCertVerifier for Tls {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: the list would be a hint only, and it can change.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.clients()?.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients()?.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients()?.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients().map(|clients| clients.supported_verify_schemes()).unwrap_or_default()
    }
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
