//! Asking a service over HTTP: limits, retries, and being left alone when the service says so.
//!
//! AMD's KDS answers 429 to whoever asks more often than once in some ten seconds. So: one request at a time to a
//! service, waits as long as `Retry-After` says (with jitter, so that replicas do not come back together), and no
//! request at all until then when that is beyond the caller's time.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use kata_cc_causes::causes;
use reqwest::{Client, StatusCode, header};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::config::ConfigError;
use crate::document::MAX_DOCUMENT;
use crate::source::SourceError;

/// Where distributions keep the certificates of public authorities.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// Most bytes of a file of certificates of authorities.
const MAX_ROOTS: u64 = 4 * 1024 * 1024;

/// Longest `Retry-After` that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Limits of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Until a connection stands.
    pub connect: Duration,
    /// For one attempt, body included.
    pub attempt: Duration,
    /// Most bytes of a body.
    pub body: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(5), attempt: seconds(15), body: MAX_DOCUMENT }
    }
}

/// When failed requests are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts altogether.
    pub attempts: u32,
    /// Wait after the first failure; doubles with each.
    pub base: Duration,
    /// Longest wait without `Retry-After`.
    pub cap: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 4, base: Duration::from_millis(500), cap: Duration::from_secs(8) }
    }
}

impl Retry {
    /// Wait before attempt `number` (from 1) is followed by another: half of it fixed, half by chance.
    fn backoff(&self, number: u32) -> Duration {
        let full = self.base.saturating_mul(1 << number.saturating_sub(1).min(16)).min(self.cap);
        full / 2 + jitter(full / 2)
    }
}

/// One service.
#[derive(Debug)]
pub struct HttpSource {
    name: String,
    base: String,
    client: Client,
    limits: HttpLimits,
    retry: Retry,
    /// No request before this time: the service said so.
    quiet_until: Mutex<Option<Instant>>,
    /// One request at a time.
    turn: tokio::sync::Mutex<()>,
}

/// A good answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
    pub(crate) headers: header::HeaderMap,
}

/// What one attempt came to.
enum Attempt {
    Answer(Answer),
    NotFound,
    /// 429, with what `Retry-After` says.
    Limited(Option<Duration>),
    /// Worth another attempt.
    Failed(String),
    /// Not worth one.
    Hopeless(String),
}

impl HttpSource {
    /// A client for a service at `base`, through `proxy` when there is one, else by the environment's rules for
    /// proxies. Authorities of TLS are those of the system, or those in `ca_file`.
    ///
    /// # Errors
    /// [`ConfigError`] for an address, proxy or file that does not go.
    pub fn new(
        name: &str,
        base: &str,
        proxy: Option<&str>,
        ca_file: Option<&Path>,
        limits: HttpLimits,
        retry: Retry,
    ) -> Result<Self, ConfigError> {
        let address = |why: String| ConfigError::Address { address: base.to_owned(), why };
        let parsed = reqwest::Url::parse(base).map_err(|error| address(error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(address(format!("scheme is {}, expected http or https", parsed.scheme())));
        }
        let roots = if parsed.scheme() == "https" { roots(ca_file)? } else { RootCertStore::empty() };
        let mut builder = Client::builder()
            .user_agent(concat!("kata-cc/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(limits.connect)
            .timeout(limits.attempt)
            .tls_backend_preconfigured(tls(roots)?);
        if let Some(proxy) = proxy {
            let parsed = reqwest::Proxy::all(proxy).map_err(|error| ConfigError::Address {
                address: proxy.to_owned(),
                why: error.to_string(),
            })?;
            builder = builder.no_proxy().proxy(parsed);
        }
        let client = builder.build().map_err(|error| address(causes(&error)))?;
        Ok(Self {
            name: format!("{name} ({base})"),
            base: base.trim_end_matches('/').to_owned(),
            client,
            limits,
            retry,
            quiet_until: Mutex::new(None),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    /// Name with address.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// GET of `path` below the base.
    pub(crate) async fn get(&self, path: &str, what: &str, deadline: Instant) -> Result<Answer, SourceError> {
        let url = format!("{}{path}", self.base);
        let out_of_time = |why: &str| self.unavailable(format!("no time is left ({why})"));
        let _turn = tokio::time::timeout_at(deadline, self.turn.lock())
            .await
            .map_err(|_| out_of_time("waiting for other requests to it"))?;
        let mut last = "no attempt was made".to_owned();
        for number in 1..=self.retry.attempts.max(1) {
            self.wait_quiet(deadline).await?;
            let attempt = tokio::time::timeout_at(deadline, self.attempt(&url))
                .await
                .map_err(|_| out_of_time(&last))?;
            let wait = match attempt {
                Attempt::Answer(answer) => return Ok(answer),
                Attempt::NotFound => {
                    return Err(SourceError::NotFound { service: self.name.clone(), item: what.to_owned() });
                }
                Attempt::Hopeless(why) => return Err(self.unavailable(why)),
                Attempt::Limited(asked) => {
                    let asked = asked.map(|asked| asked.min(MAX_RETRY_AFTER));
                    let wait =
                        asked.map_or_else(|| self.retry.backoff(number), |asked| asked + jitter(asked / 10));
                    self.be_quiet_for(wait);
                    last = "it limits the rate of requests (429)".to_owned();
                    wait
                }
                Attempt::Failed(why) => {
                    last = why;
                    self.retry.backoff(number)
                }
            };
            debug!(
                service = self.name,
                url,
                number,
                wait_ms = wait.as_millis() as u64,
                last,
                "attempt failed"
            );
            if number == self.retry.attempts.max(1) {
                break;
            }
            if Instant::now() + wait >= deadline {
                // The quiet time is kept, and is what the error says.
                self.wait_quiet(deadline).await?;
                return Err(out_of_time(&last));
            }
            tokio::time::sleep(wait).await;
        }
        warn!(service = self.name, url, last, "service is given up for now");
        self.wait_quiet(Instant::now()).await?;
        Err(self.unavailable(last))
    }

    fn unavailable(&self, why: String) -> SourceError {
        SourceError::Unavailable { service: self.name.clone(), why }
    }

    fn be_quiet_for(&self, wait: Duration) {
        *self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + wait);
    }

    /// Waits until the service may be asked; refuses when that is after the deadline.
    async fn wait_quiet(&self, deadline: Instant) -> Result<(), SourceError> {
        let until = *self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(until) = until.filter(|until| *until > Instant::now()) else { return Ok(()) };
        if until >= deadline {
            let retry_after = until.saturating_duration_since(Instant::now());
            return Err(SourceError::RateLimited { service: self.name.clone(), retry_after });
        }
        tokio::time::sleep_until(until).await;
        Ok(())
    }

    async fn attempt(&self, url: &str) -> Attempt {
        let mut response = match self.client.get(url).send().await {
            Ok(response) => response,
            Err(error) => return Attempt::Failed(causes(&error)),
        };
        let status = response.status();
        match status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Attempt::NotFound,
            StatusCode::TOO_MANY_REQUESTS => return Attempt::Limited(retry_after(response.headers())),
            _ if status.is_server_error() => return Attempt::Failed(format!("it answers {status}")),
            _ => return Attempt::Hopeless(format!("it answers {status}")),
        }
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > self.limits.body => {
                    return Attempt::Hopeless(format!("its answer has more than {} bytes", self.limits.body));
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => return Attempt::Answer(Answer { body, headers: response.headers().clone() }),
                Err(error) => return Attempt::Failed(causes(&error)),
            }
        }
    }
}

/// `Retry-After` in seconds or as a date (RFC 9110, 10.2.3).
fn retry_after(headers: &header::HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let date = SystemTime::from(OffsetDateTime::parse(text, &Rfc2822).ok()?);
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Up to `most`, by chance.
fn jitter(most: Duration) -> Duration {
    let mut bytes = [0; 4];
    // Without random bytes there is no jitter: the wait is then only more regular.
    aws_lc_rs::rand::fill(&mut bytes).ok();
    most.mul_f64(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

fn tls(roots: RootCertStore) -> Result<ClientConfig, ConfigError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::Tls { why: error.to_string() })?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Certificates of authorities, of `file` or of the system.
fn roots(file: Option<&Path>) -> Result<RootCertStore, ConfigError> {
    let named = std::env::var_os("SSL_CERT_FILE");
    let path = match (file, &named) {
        (Some(file), _) => Some(file),
        (None, Some(file)) => Some(Path::new(file)),
        (None, None) => SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists()),
    };
    let Some(path) = path else {
        return Err(ConfigError::Tls {
            why: "no certificates of authorities are installed: install ca-certificates, or name a ca_file"
                .to_owned(),
        });
    };
    let unusable = |why: String| ConfigError::Tls { why: format!("{}: {why}", path.display()) };
    let size = std::fs::metadata(path).map_err(|error| unusable(error.to_string()))?.len();
    if size > MAX_ROOTS {
        return Err(unusable(format!("has {size} bytes, at most {MAX_ROOTS} are read")));
    }
    let text = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let mut store = RootCertStore::empty();
    // Single certificates that rustls cannot use are left out, as other programs do.
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).filter_map(Result::ok));
    if store.is_empty() {
        return Err(unusable("holds no usable certificate".to_owned()));
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_of(text: &str) -> header::HeaderMap {
        let mut headers = header::HeaderMap::new();
        headers.insert(header::RETRY_AFTER, text.parse().unwrap());
        headers
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        assert_eq!(retry_after(&header_of("7")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&header_of("Fri, 31 Dec 1999 23:59:59 GMT")), Some(Duration::ZERO));
        let later = retry_after(&header_of("Fri, 31 Dec 2199 23:59:59 GMT")).unwrap();
        assert!(later > MAX_RETRY_AFTER);
        for other in ["", "soon", "-1", "99999999999"] {
            assert_eq!(retry_after(&header_of(other)), None, "{other}");
        }
    }

    #[test]
    fn waits_double_up_to_a_cap_and_differ() {
        let retry = Retry { attempts: 9, base: Duration::from_millis(100), cap: Duration::from_secs(1) };
        for number in 1..100 {
            let full = Duration::from_millis(100 * (1 << (number - 1).min(16))).min(retry.cap);
            let wait = retry.backoff(number);
            assert!(wait >= full / 2 && wait <= full, "{number}: {wait:?}");
        }
    }
}
