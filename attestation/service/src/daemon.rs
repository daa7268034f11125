//! The daemon: puts the parts together, listens, reloads at SIGHUP, and ends when running requests are done.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use kata_cc_attestation_service::api::Api;
use kata_cc_attestation_service::follow::Follower;
use kata_cc_attestation_service::gate::AdminGate;
use kata_cc_attestation_service::serve::{Limits, serve_rpc};
use kata_cc_attestation_service::service::{AttestationService, KeyFile, signing_key};
use kata_cc_attestation_service::store::Store;
use kata_cc_attestation_service::token::TokenBroker;
use kata_cc_attestation_service::verify::{SampleVerifier, Verifiers};
use kata_cc_attestation_service::{grpc, rest};
use kata_cc_daemon::notify;
use kata_cc_daemon::telemetry::Telemeter;
use kata_cc_endorsements::EndorsementsConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::config::{Config, Tls};

/// Connections of each interface.
const CONNECTIONS: usize = 1024;
/// Time that running requests have at the end. Evaluations take milliseconds.
const DRAIN: Duration = Duration::from_secs(2);
/// Time between looks at keys and store.
const TEND: Duration = Duration::from_secs(2);

/// The certificate in force; another can be put in its place while connections are served.
#[derive(Debug)]
struct Certificate(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certified_key(config: &Config, tls: &Tls, provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
    let (certificate, key) = (config.path(&tls.certificate), config.path(&tls.private_key));
    let chain = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("certificate {}", certificate.display()))?;
    anyhow::ensure!(!chain.is_empty(), "certificate {} holds none", certificate.display());
    let named = || format!("private key {}", key.display());
    let private = PrivateKeyDer::from_pem_file(&key).with_context(named)?;
    CertifiedKey::from_der(chain, private, provider)
        .with_context(|| format!("certificate {} and private key {}", certificate.display(), key.display()))
}

/// Acceptors of the two interfaces, which differ in the protocol that they agree on, and the certificate in both.
struct Listening {
    certificate: Arc<Certificate>,
    rest: TlsAcceptor,
    grpc: TlsAcceptor,
}

fn listening(config: &Config) -> anyhow::Result<Option<Listening>> {
    let Some(tls) = &config.tls else { return Ok(None) };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = certified_key(config, tls, &provider)?;
    let certificate = Arc::new(Certificate(ArcSwap::from_pointee(key)));
    let acceptor = |protocols: &[&[u8]]| -> anyhow::Result<TlsAcceptor> {
        let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificate) as Arc<dyn ResolvesServerCert>);
        server.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(TlsAcceptor::from(Arc::new(server)))
    };
    let (rest, grpc) = (acceptor(&[b"http/1.1"])?, acceptor(&[b"h2"])?);
    Ok(Some(Listening { rest, grpc, certificate }))
}

/// Who may change policies and reference values. Beyond loopback somebody must be able to, or the default ones would be served
/// to a network without anyone having looked at them.
fn gate(config: &Config) -> anyhow::Result<AdminGate> {
    let Some(file) = &config.admin.public_key else {
        for socket in std::iter::once(&config.socket).chain(&config.grpc_socket) {
            anyhow::ensure!(
                socket.ip().is_loopback(),
                "{socket} is not a loopback address: name the administrator's public key with --admin-key"
            );
        }
        return Ok(AdminGate::closed());
    };
    let file = config.path(file);
    let pem = std::fs::read(&file).with_context(|| format!("administrator's key {}", file.display()))?;
    AdminGate::for_key(&pem).with_context(|| format!("administrator's key {}", file.display()))
}

async fn service(config: &Config, store: Store) -> anyhow::Result<AttestationService> {
    let mut verifier = kata_cc_verifier::VerifierConfig { max_vmpl: config.max_vmpl, ..Default::default() };
    verifier.snp.settings = config.snp.clone();
    verifier.tdx.settings = config.tdx.clone();
    if let Some(simulated) = &config.simulated {
        let path = config.path(&simulated.trust_anchor);
        let anchor = std::fs::read(&path).with_context(|| format!("trust anchor {}", path.display()))?;
        verifier.add_simulated_roots(&anchor).with_context(|| format!("trust anchor {}", path.display()))?;
        warn!(anchor = %path.display(), "simulated evidence is accepted: it protects nothing");
    }
    if config.allow_sample {
        warn!("sample evidence is accepted: anybody can make it up");
    }
    let path = match &config.token.key {
        Some(path) => config.path(path),
        None => config.path(&config.work_dir).join("token.key"),
    };
    let key = signing_key(&path, &config.token.algorithm)?;
    let broker = TokenBroker::new(key, &config.token.issuer, config.token.minutes);
    let endorser = match &config.endorsements {
        Some(path) => Some(Arc::new(EndorsementsConfig::read(&config.path(path))?.build()?)),
        None => None,
    };
    verifier.snp.endorsements = endorser.clone().map(|endorser| endorser as _);
    verifier.tdx.collateral = endorser.clone().map(|endorser| endorser as _);
    let verifiers = Verifiers { config: verifier, sample: SampleVerifier { enabled: config.allow_sample } };
    let certificates = config.token.certificates.as_ref().map(|path| config.path(path));
    let service = AttestationService::new(store, Box::new(verifiers), broker)
        .await?
        .with_endorser(endorser)
        .with_default_days(config.reference_values.default_days)
        .with_key_file(KeyFile { path, certificates })
        .await?;
    Ok(service)
}

/// The policy bundle's source, where one is configured.
fn follower(config: &Config, api: &Arc<Api>) -> anyhow::Result<Option<Arc<Follower>>> {
    let Some(followed) = &config.policy_source else { return Ok(None) };
    let (source, metrics) = (followed.source(&config.base)?, api.metrics.policy_source.clone());
    if !source.is_signed() {
        warn!(%source, "the policy source is not signed: whoever can write there decides what is trusted");
    }
    let follower = Follower::new(Arc::clone(&api.service), source, followed.every(), None, metrics);
    let follower = Arc::new(follower);
    // Nobody else sets it.
    let _ = api.follower.set(Arc::clone(&follower));
    Ok(Some(follower))
}

/// Serves until SIGTERM or SIGINT; with `check`, only looks whether it could.
pub(crate) async fn serve(config: &Config, check: bool) -> anyhow::Result<()> {
    let log = Telemeter::start("attestation-service", &config.log, &config.telemetry)?;
    // Handlers first: a signal during the start must not be lost.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hup = signal(SignalKind::hangup())?;
    let gate = gate(config)?;
    let sources = config.sources()?;
    let store = config.open_store().await?;
    let mut api = Api::new(Arc::new(service(config, store.clone()).await?), gate).await?;
    api.public_url.clone_from(&config.public_url);
    api.sources.store(Arc::new(sources));
    let api = Arc::new(api);
    let follower = follower(config, &api)?;
    let tls = listening(config)?;
    if check {
        if let Some(follower) = &follower {
            follower.try_out().await.context("policy_source")?;
        }
        store.close().await;
        println!("configuration is fine");
        return Ok(());
    }
    // Before anybody can ask: what was in force before the restart is so again.
    if let Some(follower) = &follower {
        follower.start().await.context("policy_source")?;
    }
    let bind =
        async |socket| TcpListener::bind(socket).await.with_context(|| format!("listening on {socket}"));
    let listener = bind(config.socket).await?;
    info!(address = %listener.local_addr()?, tls = tls.is_some(), "listening");
    let (stop, stopped) = watch::channel(false);
    let trusted_proxies = config.proxies()?;
    let limits = Limits { connections: CONNECTIONS, drain: DRAIN, trusted_proxies, ..Limits::default() };
    let rpc = match config.grpc_socket {
        None => None,
        Some(socket) => {
            let listener = bind(socket).await?;
            info!(grpc = %listener.local_addr()?, tls = tls.is_some(), "listening");
            let acceptor = tls.as_ref().map(|tls| tls.grpc.clone());
            let routes = grpc::services(Arc::clone(&api));
            Some(tokio::spawn(serve_rpc(listener, acceptor, routes, limits.clone(), stopped.clone())))
        }
    };
    let tending = tokio::spawn(tend(
        Arc::clone(&api),
        config.clone(),
        tls.as_ref().map(|tls| Arc::clone(&tls.certificate)),
        hup,
    ));
    let following = follower.map(|follower| {
        tokio::spawn(async move {
            loop {
                follower.turn().await;
            }
        })
    });
    notify("READY=1");
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        notify("STOPPING=1");
        let _ = stop.send(true);
    });
    let router = rest::router(Arc::clone(&api));
    let acceptor = tls.map(|tls| tls.rest);
    kata_cc_attestation_service::serve::serve(vec![listener], acceptor, router, limits, &stopped).await;
    if let Some(rpc) = rpc
        && tokio::time::timeout(DRAIN, rpc).await.is_err()
    {
        warn!("gRPC connections still open after {DRAIN:?} are cut off");
    }
    tending.abort();
    if let Some(following) = following {
        following.abort();
    }
    store.close().await;
    info!("stopped");
    log.stop().await;
    Ok(())
}

/// Looks after keys and store, and reloads at SIGHUP.
async fn tend(
    api: Arc<Api>,
    config: Config,
    certificate: Option<Arc<Certificate>>,
    mut hup: tokio::signal::unix::Signal,
) {
    loop {
        let asked = tokio::select! {
            _ = hup.recv() => true,
            () = tokio::time::sleep(TEND) => false,
        };
        if !asked {
            if let Err(error) = api.service.tend().await {
                warn!(%error, "keys or store cannot be read");
            }
            continue;
        }
        notify("RELOADING=1");
        match reload(&api, &config, certificate.as_deref()).await {
            Ok(()) => info!("reloaded"),
            Err(error) => warn!(error = format!("{error:#}"), "not reloaded; what was in force stays so"),
        }
        notify("READY=1");
    }
}

/// Reads everything anew, and only when all of it is good puts it in force.
async fn reload(api: &Api, config: &Config, certificate: Option<&Certificate>) -> anyhow::Result<()> {
    let new = match (&config.tls, certificate) {
        (Some(tls), Some(certificate)) => {
            let provider = rustls::crypto::aws_lc_rs::default_provider();
            Some((certificate, certified_key(config, tls, &provider)?))
        }
        _ => None,
    };
    let sources = config.sources()?;
    api.service.reload().await?;
    api.sources.store(Arc::new(sources));
    if let Some(follower) = api.follower.get() {
        follower.wake();
    }
    if let Some((certificate, new)) = new {
        certificate.0.store(Arc::new(new));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_there_must_be_an_administrator() {
        let config = |socket: &str| Config { socket: socket.parse().unwrap(), ..Config::default() };
        let told = |config: &Config| gate(config).map_err(|e| e.to_string());
        for socket in ["127.0.0.1:1", "[::1]:1"] {
            told(&config(socket)).unwrap();
        }
        for socket in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
            assert!(told(&config(socket)).unwrap_err().contains("--admin-key"), "{socket}");
            let grpc = Config { grpc_socket: Some(socket.parse().unwrap()), ..Config::default() };
            assert!(told(&grpc).unwrap_err().contains("--admin-key"), "{socket}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("admin.pub");
        let pem = kata_cc_attestation_service::jws::SigningKey::generate_pem("EdDSA").unwrap();
        let key = kata_cc_attestation_service::jws::SigningKey::from_pem(pem.as_bytes()).unwrap();
        std::fs::write(&file, key.public_pem().unwrap()).unwrap();
        let mut open = config("0.0.0.0:1");
        open.admin.public_key = Some(file.clone());
        told(&open).unwrap();
        std::fs::write(&file, "no key").unwrap();
        assert!(told(&open).is_err());
    }
}
