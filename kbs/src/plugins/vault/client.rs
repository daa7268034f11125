//! One HTTP client for a Vault-compatible server (HashiCorp's HTTP API, `/v1`): bounded answers, no redirects, errors with the
//! server's words.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kata_cc_causes::causes;
use reqwest::{Method, StatusCode};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use zeroize::Zeroizing;

use super::config::{VaultConfig, value};
use crate::plugins::registry::SetupError;

/// Most bytes of an answer.
const MAX_ANSWER: usize = 2 << 20;
/// Most bytes of a file with a token or id.
const MAX_TOKEN: usize = 16 << 10;

/// Why the server did not do it.
#[derive(Debug, Error)]
pub(crate) enum VaultError {
    /// The server cannot be reached, or its certificate is not trusted.
    #[error("{what}: {why}")]
    Connect {
        /// Which call.
        what: String,
        /// Why.
        why: String,
    },
    /// It answered an error.
    #[error("{what}: the server answered {status}{}: {words}", hint(*.status))]
    Status {
        /// Which call.
        what: String,
        /// Status code.
        status: StatusCode,
        /// The server's words.
        words: String,
    },
    /// Its answer is not understood.
    #[error("{what}: the answer is not understood: {why}")]
    Answer {
        /// Which call.
        what: String,
        /// Why.
        why: String,
    },
    /// A file with token or id.
    #[error("{0}")]
    File(String),
}

impl VaultError {
    /// Status code, when there is one.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// What a code means at a Vault (HashiCorp, HTTP API, "HTTP status codes").
fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        403 => " (the broker's token is not valid, or its policy does not allow this)",
        429 | 472 | 473 => " (a standby: give the address of the active one)",
        503 => " (sealed, or in maintenance)",
        300..=399 => " (a redirect, which is not followed: give the address of the active one)",
        _ => "",
    }
}

/// A text that may be secret.
pub(crate) struct SecretText(pub(crate) Zeroizing<String>);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// The client. Knows no token.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    address: String,
    namespace: Option<String>,
}

impl Client {
    /// Reads the certificates.
    pub(crate) fn new(config: &VaultConfig, base: &Path) -> Result<Self, SetupError> {
        let mut roots = RootCertStore::empty();
        for path in &config.ca_certificates {
            let path = base.join(path);
            let pem = std::fs::read(&path)
                .map_err(|e| value(format!("ca_certificates {} cannot be read: {e}", path.display())))?;
            let bad = |e: &dyn std::fmt::Display| value(format!("ca_certificates {}: {e}", path.display()));
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                roots.add(certificate.map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
            }
        }
        if roots.is_empty() {
            return Err(value("ca_certificates hold no certificate"));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| value(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .user_agent(concat!("kata-cc-kbs/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls)
            // A token must go nowhere but to the configured address.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .https_only(true)
            .connect_timeout(Duration::from_secs(config.connect_seconds))
            .timeout(Duration::from_secs(config.request_seconds))
            .build()
            .map_err(|e| value(e.to_string()))?;
        let address = config.address.trim_end_matches('/').to_owned();
        let namespace = config.namespace.as_ref().map(|namespace| namespace.trim_end_matches('/').to_owned());
        Ok(Self { http, address, namespace })
    }

    /// One call. `path` is below `/v1/`, maybe with a query, and of characters that need no escaping.
    pub(crate) async fn call(
        &self,
        token: Option<&str>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let what = format!("{method} {path}");
        let mut request = self
            .http
            .request(method, format!("{}/v1/{path}", self.address))
            .header("X-Vault-Request", "true");
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = token {
            let mut header = reqwest::header::HeaderValue::from_str(token)
                .map_err(|_| VaultError::File("the token holds characters that no header may".to_owned()))?;
            header.set_sensitive(true);
            request = request.header("X-Vault-Token", header);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let connect = |e: reqwest::Error| VaultError::Connect { what: what.clone(), why: causes(&e) };
        let mut response = request.send().await.map_err(connect)?;
        let status = response.status();
        let mut answer = Zeroizing::new(Vec::with_capacity(16 << 10));
        while let Some(chunk) = response.chunk().await.map_err(connect)? {
            if answer.len() + chunk.len() > MAX_ANSWER {
                let why = format!("it is larger than {MAX_ANSWER} bytes");
                return Err(VaultError::Answer { what, why });
            }
            answer.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            return Err(VaultError::Status { what, status, words: words(&answer) });
        }
        Ok(answer)
    }
}

/// Reads an answer.
pub(crate) fn parse<'a, T: Deserialize<'a>>(what: &str, answer: &'a [u8]) -> Result<T, VaultError> {
    serde_json::from_slice(answer).map_err(|e| VaultError::Answer {
        what: what.to_owned(),
        // Where, not what: it may be a secret.
        why: format!(
            "expected the JSON of HashiCorp's HTTP API, differs at line {} column {}",
            e.line(),
            e.column()
        ),
    })
}

/// Reads a file with a token or id.
pub(crate) fn read_token(path: &Path) -> Result<Zeroizing<String>, VaultError> {
    let file = |why: String| VaultError::File(why);
    let bytes = kata_cc_attestation_service::store::read_secret(path).map_err(|e| file(e.to_string()))?;
    let text = std::str::from_utf8(&bytes).ok().filter(|text| text.len() <= MAX_TOKEN).map(str::trim);
    match text {
        Some(text) if !text.is_empty() => Ok(Zeroizing::new(text.to_owned())),
        _ => Err(file(format!("{} must hold one line of text, at most {MAX_TOKEN} bytes", path.display()))),
    }
}

/// `{"errors": [...]}`, cut.
fn words(answer: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<String>,
    }
    let errors = serde_json::from_slice::<Errors>(answer).map(|e| e.errors).unwrap_or_default();
    let text = if errors.is_empty() { "no reason given".to_owned() } else { errors.join("; ") };
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}
