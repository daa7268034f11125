//! `attestation-service`: the attestation service over REST, without a KBS. Thin: all work is in the library.
//!
//! Options as Trustee's `restful-as` (`-s`, `-t`, `-k`), the rest in arguments instead of a file. Whoever reaches it may
//! set policies and reference values, so it listens on loopback unless told otherwise.
//!
//! Exit codes: 0 after SIGTERM or SIGINT, 1 when the start failed, 2 for wrong arguments.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use kata_cc_attestation_service::ear::DEFAULT_ISSUER;
use kata_cc_attestation_service::rest::router;
use kata_cc_attestation_service::service::{AttestationService, signing_key};
use kata_cc_attestation_service::store::{Store, StoreKey};
use kata_cc_attestation_service::token::TokenBroker;
use kata_cc_attestation_service::verify::{SampleVerifier, Verifiers};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

/// Connections at a time.
const MAX_CONNECTIONS: usize = 1024;

/// Attestation service: verifies and appraises evidence, answers with signed EAR tokens.
#[derive(Debug, Parser)]
#[command(name = "attestation-service", version)]
struct Arguments {
    /// Address to listen on.
    #[arg(short, long, default_value = "127.0.0.1:8080")]
    socket: SocketAddr,
    /// TLS certificate chain (PEM); plain HTTP without.
    #[arg(short = 't', long, requires = "https_prikey")]
    https_pubkey_cert: Option<PathBuf>,
    /// TLS private key (PEM).
    #[arg(short = 'k', long, requires = "https_pubkey_cert")]
    https_prikey: Option<PathBuf>,
    /// Folder for the store and the keys; made when absent.
    #[arg(short, long, default_value = "/var/lib/kata-cc/attestation-service")]
    work_dir: PathBuf,
    /// Root of a simulated platform (ark.pem) that is trusted. Simulated evidence protects nothing.
    #[arg(long, value_name = "ARK")]
    simulated_trust_anchor: Option<PathBuf>,
    /// Algorithm of the token key that is made at the first start: ES256 or ES384.
    #[arg(long, default_value = "ES256", value_parser = ["ES256", "ES384"])]
    token_algorithm: String,
    /// Minutes that a token is valid.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1440))]
    token_minutes: u32,
    /// Log lines as JSON.
    #[arg(long)]
    json_log: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false);
    if arguments.json_log {
        builder.json().flatten_event(true).init();
    } else {
        builder.init();
    }
    let served = tokio::runtime::Runtime::new()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(serve(&arguments)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attestation-service: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tls(arguments: &Arguments) -> anyhow::Result<Option<TlsAcceptor>> {
    let (Some(certificate), Some(key)) = (&arguments.https_pubkey_cert, &arguments.https_prikey) else {
        return Ok(None);
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("certificate {}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("private key {}", key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

async fn service(arguments: &Arguments, store: Store) -> anyhow::Result<AttestationService> {
    let mut config = kata_cc_verifier::VerifierConfig::default();
    if let Some(path) = &arguments.simulated_trust_anchor {
        let anchor = std::fs::read(path).with_context(|| format!("trust anchor {}", path.display()))?;
        config.add_simulated_root(&anchor).with_context(|| format!("trust anchor {}", path.display()))?;
        warn!(anchor = %path.display(), "simulated evidence (sim-snp) is accepted: it protects nothing");
    }
    let key = signing_key(&arguments.work_dir.join("token.key"), &arguments.token_algorithm)?;
    let broker = TokenBroker::new(key, DEFAULT_ISSUER, arguments.token_minutes);
    let verifiers = Verifiers { config, sample: SampleVerifier { enabled: false } };
    Ok(AttestationService::new(store, Box::new(verifiers), broker).await?)
}

async fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let dir = &arguments.work_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let store = Store::open(&dir.join("service.db"), StoreKey::from_file(&dir.join("store.key"))?).await?;
    let router = router(Arc::new(service(arguments, store.clone()).await?));
    let tls = tls(arguments)?;
    let listener = TcpListener::bind(arguments.socket)
        .await
        .with_context(|| format!("listening on {}", arguments.socket))?;
    info!(address = %listener.local_addr()?, tls = tls.is_some(), "listening");
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = term.recv() => break,
            _ = int.recv() => break,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of file descriptors, mostly: waiting is all that helps.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(15));
            let handler = TowerToHyperService::new(router);
            let ended = match tls {
                None => http.serve_connection(TokioIo::new(stream), handler).await.map_err(|e| e.to_string()),
                Some(tls) => match tokio::time::timeout(Duration::from_secs(10), tls.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        http.serve_connection(TokioIo::new(stream), handler).await.map_err(|e| e.to_string())
                    }
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("TLS handshake took too long".to_owned()),
                },
            };
            if let Err(error) = ended {
                debug!(%peer, %error, "connection ended");
            }
            drop(slot);
        });
    }
    // Evaluations take milliseconds; those that run get a moment.
    let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(Duration::from_secs(2), slots.acquire_many(all)).await;
    store.close().await;
    info!("stopped");
    Ok(())
}
