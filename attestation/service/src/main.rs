//! `attestation-service`: the attestation service over REST, without a KBS. Thin: all work is in the library.
//!
//! Options as Trustee's `restful-as` (`-s`, `-t`, `-k`), the rest in arguments instead of a file. Policies and reference values
//! are set by the holder of the administrator's key (`--admin-key`), by nobody without one; without one it also listens
//! on loopback only.
//!
//! Exit codes: 0 after SIGTERM or SIGINT, 1 when the start failed, 2 for wrong arguments.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use kata_cc_attestation_service::ear::DEFAULT_ISSUER;
use kata_cc_attestation_service::gate::AdminGate;
use kata_cc_attestation_service::rest::router;
use kata_cc_attestation_service::serve::Limits;
use kata_cc_attestation_service::service::{AttestationService, signing_key};
use kata_cc_attestation_service::store::{Store, StoreKey};
use kata_cc_attestation_service::token::TokenBroker;
use kata_cc_attestation_service::verify::{SampleVerifier, Verifiers};
use kata_cc_endorsements::EndorsementsConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

/// Attestation service: verifies and appraises evidence, answers with signed EAR tokens.
#[derive(Debug, Parser)]
#[command(name = "attestation-service", version)]
struct Arguments {
    /// Address to listen on.
    #[arg(short, long, default_value = "127.0.0.1:8080")]
    socket: SocketAddr,
    /// Public key (PEM) of the administrator, who may set policies and reference values.
    #[arg(long, value_name = "FILE")]
    admin_key: Option<PathBuf>,
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
    /// Where endorsements come from that evidence does not bring (TOML, as the section [endorsements] of the KBS).
    #[arg(long, value_name = "FILE")]
    endorsements: Option<PathBuf>,
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

/// Who may change policies and reference values. Beyond loopback somebody must be able to, or the default ones would be served
/// to a network without anyone having looked at them.
fn gate(arguments: &Arguments) -> anyhow::Result<AdminGate> {
    let Some(file) = &arguments.admin_key else {
        anyhow::ensure!(
            arguments.socket.ip().is_loopback(),
            "{} is not a loopback address: name the administrator's public key with --admin-key",
            arguments.socket
        );
        return Ok(AdminGate::closed());
    };
    let pem = std::fs::read(file).with_context(|| format!("administrator's key {}", file.display()))?;
    AdminGate::for_key(&pem).with_context(|| format!("administrator's key {}", file.display()))
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
    let endorser = match &arguments.endorsements {
        Some(path) => Some(Arc::new(EndorsementsConfig::read(path)?.build()?)),
        None => None,
    };
    config.snp.endorsements = endorser.clone().map(|endorser| endorser as _);
    let verifiers = Verifiers { config, sample: SampleVerifier { enabled: false } };
    Ok(AttestationService::new(store, Box::new(verifiers), broker).await?.with_endorser(endorser))
}

async fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let gate = gate(arguments)?;
    let dir = &arguments.work_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let key = dir.join("store.key");
    let key = StoreKey::from_file(&key).with_context(|| format!("key {}", key.display()))?;
    let store = Store::open(&dir.join("service.db"), key).await?;
    let router = router(Arc::new(service(arguments, store.clone()).await?), gate);
    let tls = tls(arguments)?;
    let listener = TcpListener::bind(arguments.socket)
        .await
        .with_context(|| format!("listening on {}", arguments.socket))?;
    info!(address = %listener.local_addr()?, tls = tls.is_some(), "listening");
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        let _ = stop.send(true);
    });
    // Evaluations take milliseconds; those that run get a moment.
    let limits = Limits { connections: 1024, drain: Duration::from_secs(2), ..Limits::default() };
    kata_cc_attestation_service::serve::serve(vec![listener], tls, router, limits, &stopped).await;
    store.close().await;
    info!("stopped");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_there_must_be_an_administrator() {
        let gate = |words: &[&str]| {
            gate(&Arguments::parse_from(["attestation-service"].iter().chain(words)))
                .map_err(|e| e.to_string())
        };
        for socket in ["127.0.0.1:1", "[::1]:1"] {
            gate(&["-s", socket]).unwrap();
        }
        for socket in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
            assert!(gate(&["-s", socket]).unwrap_err().contains("--admin-key"), "{socket}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("admin.pub");
        let pem = kata_cc_attestation_service::jws::SigningKey::generate_pem("EdDSA").unwrap();
        let key = kata_cc_attestation_service::jws::SigningKey::from_pem(pem.as_bytes()).unwrap();
        std::fs::write(&file, key.public_pem().unwrap()).unwrap();
        gate(&["-s", "0.0.0.0:1", "--admin-key", file.to_str().unwrap()]).unwrap();
        std::fs::write(&file, "no key").unwrap();
        assert!(gate(&["--admin-key", file.to_str().unwrap()]).is_err());
    }
}
