//! Keys of identity providers: from files, or fetched over https and kept.
//!
//! An OpenID provider is asked for its discovery document, which must name it as issuer, and that for its keys. Fetched keys are used
//! for [`FRESH`]; a token with an unknown `kid` makes them be fetched anew, at most once in [`PAUSE`], whoever asks: strangers must
//! not make us flood the provider. Where it cannot be reached, what was fetched last goes on being used for at most [`STALE`].

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use kata_cc_attestation_service::jws::VerifyingKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::config::{Config, ConfigError, IdentityProvider};

/// How long fetched keys are used before they are fetched anew.
const FRESH: Duration = Duration::from_secs(3600);
/// How long they are used when they cannot be fetched.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// Least time between two fetches.
const PAUSE: Duration = Duration::from_secs(10);
/// Time of one fetch.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a document that is fetched.
const MAX_DOCUMENT: usize = 1 << 20;
/// Most keys of a set.
const MAX_KEYS: usize = 256;

#[derive(Debug, Default, Clone)]
struct Fetched {
    keys: Vec<VerifyingKey>,
    /// When they came; `None` before the first.
    at: Option<Instant>,
}

/// What is fetched, and how.
struct Remote {
    /// JWKS, or issuer of an OpenID provider.
    url: String,
    discover: bool,
    client: reqwest::Client,
    fetched: ArcSwap<Fetched>,
    /// When it was last tried; held during a fetch.
    tried: Mutex<Option<Instant>>,
}

/// Keys of one provider.
pub(crate) struct Keys {
    /// From a PEM; used whatever `kid` says.
    pem: Option<VerifyingKey>,
    /// From a JWKS file; chosen by `kid`.
    set: Vec<VerifyingKey>,
    remote: Option<Remote>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("remote", &self.remote.as_ref().map(|r| &r.url)).finish_non_exhaustive()
    }
}

/// The keys of a JWKS that are of a kind that is read.
fn key_set(document: &Value, strict: bool) -> Result<Vec<VerifyingKey>, String> {
    let keys = document.get("keys").and_then(Value::as_array).ok_or("it has no array keys")?;
    let read = keys.iter().take(MAX_KEYS).map(VerifyingKey::from_jwk);
    if strict {
        return read.collect::<Result<_, _>>().map_err(|e| e.to_string());
    }
    // Providers also publish keys for encryption and of kinds that nobody here needs.
    Ok(read.filter_map(Result::ok).collect())
}

impl Keys {
    /// Reads files; what is fetched is fetched later.
    pub(crate) fn new(config: &Config, provider: &IdentityProvider) -> Result<Self, ConfigError> {
        let value = |why: String, what: &str| ConfigError::Value(format!("{what}: {why}"));
        let pem = match &provider.public_key_uri {
            None => None,
            Some(uri) => {
                let key = VerifyingKey::from_pem(&config.read_uri(uri)?);
                Some(key.map_err(|e| value(e.to_string(), uri))?)
            }
        };
        let (mut set, mut remote) = (Vec::new(), None);
        match (&provider.jwk_set_uri, &provider.oidc_issuer) {
            (_, Some(issuer)) => remote = Some((issuer, true)),
            (Some(uri), None) if uri.starts_with("https://") => remote = Some((uri, false)),
            (Some(uri), None) => {
                let document = serde_json::from_slice(&config.read_uri(uri)?);
                let document = document.map_err(|e| value(e.to_string(), uri))?;
                set = key_set(&document, true).map_err(|e| value(e, uri))?;
                if set.is_empty() {
                    return Err(value("there is no key in it".to_owned(), uri));
                }
            }
            (None, None) => {}
        }
        let remote = match remote {
            None => None,
            Some((url, discover)) => {
                let ca = provider.ca_certificate.as_ref().map(|path| config.path(path));
                let client = client(ca.as_deref()).map_err(|e| value(e, url))?;
                let url = url.trim_end_matches('/').to_owned();
                Some(Remote { url, discover, client, fetched: ArcSwap::default(), tried: Mutex::default() })
            }
        };
        Ok(Self { pem, set, remote })
    }

    /// The key that a token with this `kid` must be signed by.
    pub(crate) async fn find(&self, kid: Option<&str>, now: Instant) -> Option<VerifyingKey> {
        let named =
            |keys: &[VerifyingKey]| keys.iter().find(|key| kid.is_some() && key.kid() == kid).cloned();
        if let Some(key) = named(&self.set) {
            return Some(key);
        }
        if let Some(remote) = &self.remote
            && kid.is_some()
        {
            let fetched = remote.fetched.load_full();
            let age = fetched.at.map(|at| now.saturating_duration_since(at));
            if let Some(key) = named(&fetched.keys).filter(|_| age.is_some_and(|age| age < FRESH)) {
                return Some(key);
            }
            remote.refresh(now).await;
            let fetched = remote.fetched.load();
            let usable = fetched.at.is_some_and(|at| now.saturating_duration_since(at) < STALE);
            if let Some(key) = named(&fetched.keys).filter(|_| usable) {
                return Some(key);
            }
        }
        self.pem.clone()
    }

    /// Fetches what is to be fetched, so that the first administrator need not wait. Failing is no reason not to start: guests need no
    /// administrator.
    pub(crate) async fn warm(&self) {
        if let Some(remote) = &self.remote {
            remote.refresh(Instant::now()).await;
        }
    }
}

impl Remote {
    async fn refresh(&self, now: Instant) {
        let mut tried = self.tried.lock().await;
        // Another request may have fetched while we waited.
        if tried.is_some_and(|at| now.saturating_duration_since(at) < PAUSE) {
            return;
        }
        *tried = Some(now);
        match self.fetch().await {
            Ok(keys) => {
                info!(url = self.url, keys = keys.len(), "keys of an identity provider fetched");
                self.fetched.store(Arc::new(Fetched { keys, at: Some(now) }));
            }
            Err(why) => warn!(url = self.url, %why, "keys of an identity provider cannot be fetched"),
        }
    }

    async fn fetch(&self) -> Result<Vec<VerifyingKey>, String> {
        let mut url = self.url.clone();
        if self.discover {
            let document = self.get(&format!("{url}/.well-known/openid-configuration")).await?;
            let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
            // OpenID Connect Discovery 1.0, 4.3: a document of another issuer is not to be used.
            if text("issuer").trim_end_matches('/') != self.url {
                return Err(format!("its discovery document is of the issuer {:?}", text("issuer")));
            }
            url = text("jwks_uri").to_owned();
            if !url.starts_with("https://") {
                return Err(format!("its jwks_uri {url:?} is not https"));
            }
        }
        let keys = key_set(&self.get(&url).await?, false)?;
        if keys.is_empty() { Err("there is no key of a kind that is read".to_owned()) } else { Ok(keys) }
    }

    async fn get(&self, url: &str) -> Result<Value, String> {
        let failed = |e: reqwest::Error| {
            let cause = std::error::Error::source(&e).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{e}{cause}")
        };
        let mut response = self.client.get(url).send().await.map_err(failed)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(format!("{url} answers {}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_DOCUMENT {
                return Err(format!("{url} answers more than {MAX_DOCUMENT} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|e| format!("{url} answers no JSON: {e}"))
    }
}

/// A client that trusts the given authority, or those of the system. It follows no redirects: the address is what was configured.
fn client(ca: Option<&Path>) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TIMEOUT)
        .user_agent(concat!("kata-cc-kbs/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = ca {
        let name = path.display();
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| format!("{name}: {e}"))? {
            let certificate = certificate.map_err(|e| format!("{name}: {e}"))?;
            roots.add(certificate).map_err(|e| format!("{name}: {e}"))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        builder = builder.tls_backend_preconfigured(tls);
    }
    builder.build().map_err(|e| e.to_string())
}
