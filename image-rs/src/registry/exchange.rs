//! One exchange with a registry, tried again where that helps.
//!
//! Again is tried what may pass by itself: no connection, a connection that broke, "too many requests", errors of the server. The
//! waits double, and a registry that says how long to wait (`Retry-After`) is believed up to a bound. What will not pass by
//! itself (no such image, no access, a certificate of an unknown authority) is told at once.
//!
//! A blob that broke off is asked for from where it broke off (RFC 9110, section 14). Nothing is believed of a registry here: who
//! reads the blob checks its digest.

use std::error::Error as _;
use std::time::Duration;

use kata_cc_causes::causes;
use oci_client::RegistryOperation;
use oci_client::secrets::RegistryAuth;
use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio_util::bytes::Bytes;

use super::endpoints::Endpoint;
use super::error::{check_status, explain};
use super::{Registry, RegistryError};

/// How often, and after what waits, an exchange is tried again.
#[derive(Debug, Clone)]
pub struct Retry {
    /// Attempts altogether, one at least.
    pub attempts: u32,
    /// Wait before the second attempt; doubled for each further one.
    pub first_wait: Duration,
    /// Longest wait, also where the registry asks for a longer one.
    pub longest_wait: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 4, first_wait: Duration::from_millis(250), longest_wait: Duration::from_secs(30) }
    }
}

/// Bytes after which a transfer that breaks off is not counted as a failed attempt.
const ADVANCE: u64 = 1 << 20;

/// Why an attempt failed.
pub(super) struct Failure {
    pub(super) error: RegistryError,
    /// Whether it may pass by itself.
    passing: bool,
    /// How long the registry wants us to wait.
    wait: Option<Duration>,
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self { error, passing: false, wait: None }
    }
}

/// The attempts at one thing.
pub(super) struct Attempts<'r> {
    retry: &'r Retry,
    made: u32,
    counted_from: u64,
}

impl<'r> Attempts<'r> {
    /// At something of which `have` bytes are there already.
    pub(super) fn new(retry: &'r Retry, have: u64) -> Self {
        Self { retry, made: 0, counted_from: have }
    }

    /// Waits for the next attempt; gives the error back when there is none. `have` are the bytes that came so far.
    pub(super) async fn again(&mut self, failure: Failure, have: u64) -> Result<(), RegistryError> {
        if have >= self.counted_from + ADVANCE {
            (self.made, self.counted_from) = (0, have);
        }
        self.made += 1;
        if !failure.passing || self.made >= self.retry.attempts {
            return Err(failure.error);
        }
        let doubled = self.retry.first_wait.saturating_mul(1 << (self.made - 1).min(16));
        let wait = failure.wait.unwrap_or(doubled).min(self.retry.longest_wait);
        tracing::warn!(error = %failure.error, attempt = self.made, ?wait, have, "the registry is asked again");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// What is asked for below a repository.
pub(super) struct Question<'q> {
    pub(super) path: &'q str,
    pub(super) accept: &'q str,
    /// In words, for errors.
    pub(super) what: &'q str,
    /// Offset of the first byte that is wanted.
    pub(super) from: u64,
}

impl Registry {
    /// Asks `endpoint` once, with a token; once more with a new one when the token is refused.
    pub(super) async fn ask(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
    ) -> Result<Response, Failure> {
        let mut response = self.ask_with_token(endpoint, question, false).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            // Tokens live for some minutes, long pulls for longer.
            response = self.ask_with_token(endpoint, question, true).await?;
        }
        let status = response.status();
        if matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504) {
            let error = transport(endpoint, question.what, &format!("status {}", status.as_u16()));
            let seconds =
                response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            return Err(Failure { error, passing: true, wait: seconds.map(Duration::from_secs) });
        }
        Ok(response)
    }

    async fn ask_with_token(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
        anew: bool,
    ) -> Result<Response, Failure> {
        let token = self.token(endpoint, anew).await?;
        let mut request = self.http.get(endpoint.url(question.path)).header(ACCEPT, question.accept);
        if question.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", question.from));
        }
        if let Some(token) = token {
            request = request.bearer_auth(token);
        } else if let RegistryAuth::Basic(user, password) = self.auth_for(&endpoint.reference()) {
            request = request.basic_auth(user, Some(password));
        }
        request.send().await.map_err(|error| broken(endpoint, question.what, &error))
    }

    /// The token for pulls from the endpoint's repository; `None` where it wants none.
    async fn token(&self, endpoint: &Endpoint, anew: bool) -> Result<Option<String>, Failure> {
        let key = (endpoint.host.clone(), endpoint.repository.clone());
        let mut tokens = self.tokens.lock().await;
        if !anew && let Some(token) = tokens.get(&key) {
            return Ok(token.clone());
        }
        let reference = endpoint.reference();
        let auth = self.auth_for(&reference);
        let answer = self.client.auth(&reference, &auth, RegistryOperation::Pull).await;
        let token = answer.map_err(|error| {
            let passing = matches!(&error, oci_client::errors::OciDistributionError::RequestError(error) if passes(error));
            Failure { error: explain(&reference, "access", &error), passing, wait: None }
        })?;
        tokens.insert(key, token.clone());
        Ok(token)
    }

    /// One answer of at most `max` bytes, tried again where that helps.
    pub(super) async fn small(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
        max: u64,
    ) -> Result<Body, RegistryError> {
        let mut attempts = Attempts::new(&self.config.retry, 0);
        loop {
            match self.small_once(endpoint, question, max).await {
                Ok(body) => return Ok(body),
                Err(failure) => attempts.again(failure, 0).await?,
            }
        }
    }

    async fn small_once(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
        max: u64,
    ) -> Result<Body, Failure> {
        let mut response = self.ask(endpoint, question).await?;
        let status = response.status().as_u16();
        let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default().to_owned();
        let mut bytes = Vec::new();
        while (200..300).contains(&status)
            && let Some(piece) =
                response.chunk().await.map_err(|error| broken(endpoint, question.what, &error))?
        {
            if (bytes.len() + piece.len()) as u64 > max {
                let (registry, what) = (endpoint.host.clone(), question.what.to_owned());
                return Err(RegistryError::TooLarge { registry, what, max }.into());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Body { status, bytes, media_type })
    }

    /// Streams a blob from `endpoint` to `sink`, from byte `have` on, which is kept up to date; tried again from where it broke off.
    pub(super) async fn stream<E>(
        &self,
        endpoint: &Endpoint,
        what: &str,
        digest: &str,
        have: &mut u64,
        sink: &mut impl AsyncFnMut(Bytes) -> Result<(), E>,
    ) -> Result<(), Stopped<E>> {
        let path = format!("blobs/{digest}");
        let mut attempts = Attempts::new(&self.config.retry, *have);
        loop {
            let question = Question { path: &path, accept: "*/*", what, from: *have };
            match self.stream_once(endpoint, &question, have, sink).await {
                Ok(()) => return Ok(()),
                Err(Stopped::Registry(failure)) => {
                    let again = attempts.again(failure, *have).await;
                    again.map_err(|error| Stopped::Registry(error.into()))?;
                }
                Err(stopped) => return Err(stopped),
            }
        }
    }

    async fn stream_once<E>(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
        have: &mut u64,
        sink: &mut impl AsyncFnMut(Bytes) -> Result<(), E>,
    ) -> Result<(), Stopped<E>> {
        let mut response = self.ask(endpoint, question).await?;
        let status = response.status();
        // Asked for what is behind the end: all of it is here.
        if status == StatusCode::RANGE_NOT_SATISFIABLE && question.from > 0 {
            return Ok(());
        }
        check_status(status.as_u16(), &endpoint.host, question.what).map_err(Failure::from)?;
        // A registry that knows no ranges begins anew: what we have of it is passed over.
        let mut pass_over = if status == StatusCode::PARTIAL_CONTENT {
            let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            if range_start(range.unwrap_or_default()) != Some(question.from) {
                let why =
                    format!("it answers with range {range:?}, asked for bytes from {} on", question.from);
                return Err(Failure::from(transport(endpoint, question.what, &why)).into());
            }
            0
        } else {
            question.from
        };
        loop {
            let piece = response.chunk().await.map_err(|error| broken(endpoint, question.what, &error))?;
            let Some(mut piece) = piece else { return Ok(()) };
            let passed = pass_over.min(piece.len() as u64);
            pass_over -= passed;
            let piece = piece.split_off(usize::try_from(passed).unwrap_or(usize::MAX));
            if !piece.is_empty() {
                *have += piece.len() as u64;
                sink(piece).await.map_err(Stopped::Sink)?;
            }
        }
    }
}

/// Why a stream stopped.
pub(super) enum Stopped<E> {
    /// The registry's doing.
    Registry(Failure),
    /// The reader's.
    Sink(E),
}

impl<E> From<Failure> for Stopped<E> {
    fn from(failure: Failure) -> Self {
        Self::Registry(failure)
    }
}

/// An answer.
pub(super) struct Body {
    pub(super) status: u16,
    pub(super) bytes: Vec<u8>,
    pub(super) media_type: String,
}

/// First byte of `bytes FIRST-LAST/LENGTH`.
fn range_start(value: &str) -> Option<u64> {
    value.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn transport(endpoint: &Endpoint, what: &str, why: &str) -> RegistryError {
    RegistryError::Transport { registry: endpoint.host.clone(), what: what.to_owned(), why: why.to_owned() }
}

fn broken(endpoint: &Endpoint, what: &str, error: &reqwest::Error) -> Failure {
    Failure { error: transport(endpoint, what, &causes(error)), passing: passes(error), wait: None }
}

/// Whether an error of the connection may be gone the next time: not so what TLS found wrong, nor an address that is none.
fn passes(error: &reqwest::Error) -> bool {
    if error.is_builder() || error.is_redirect() {
        return false;
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        let io = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if inner.is::<rustls::Error>() || io.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return false;
        }
        cause = inner.source();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::range_start;

    #[test]
    fn the_start_of_a_range_is_read_and_nothing_else() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        for wrong in ["", "bytes */10", "5-9/10", "items 5-9/10", "bytes -5"] {
            assert_eq!(range_start(wrong), None, "{wrong}");
        }
    }
}
