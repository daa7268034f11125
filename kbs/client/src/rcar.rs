//! The guest's side of the handshake: request, challenge, attestation, response.
//!
//! A session is made by the first call that needs one and kept until shortly before its token ends; the calls that come
//! meanwhile wait for it and do not attest themselves. 401 for a resource means that there is no session (or not any more):
//! the handshake runs once more and the call is repeated, once. A refusal of the evidence is final, as are 403 and
//! 404: trying again would only hide the reason. What passes is tried again ([`crate::RetryPolicy`]), the handshake as a whole,
//! since a nonce is good for one attempt.
//!
//! Trustee answers nearly everything with 401; the error's name tells apart what attesting again can mend from what it cannot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_kbs_protocol::{
    Attestation, AttestationResponse, Challenge, CompositeEvidence, InitDataBody, JweResponse,
    PROTOCOL_VERSION, Request, ResourcePath, RuntimeData, SESSION_COOKIE, Tee, from_base64_url,
};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tracing::{debug, info};
use zeroize::Zeroizing;

use crate::http::{Answer, Endpoint, Http};
use crate::key::{KeyAlgorithm, TeeKey};
use crate::retry::{Tries, is_busy};
use crate::{ClientError, RetryPolicy, jwe};

/// How long before its end a token is not used any more: the clocks of others, and the way to them.
const TOKEN_SKEW: Duration = Duration::from_secs(30);
/// Life of a token that does not say: short.
const TOKEN_LIFE: Duration = Duration::from_secs(60);

/// Where the guest gets its evidence from.
#[async_trait]
pub trait EvidenceProvider: Send + Sync {
    /// What the guest runs in.
    fn tee(&self) -> Tee;

    /// Evidence whose report data starts with `report_data` (32 to 64 bytes) and is zero after it. The error is a
    /// sentence.
    async fn evidence(&self, report_data: &[u8]) -> Result<Value, String>;

    /// Evidence of devices: an object from TEE name to evidence, bound to `report_data`. `None` where there are none.
    async fn additional_evidence(&self, report_data: &[u8]) -> Result<Option<Value>, String> {
        let _ = report_data;
        Ok(None)
    }
}

/// What a guest's client is made of.
#[derive(Debug, Clone, Default)]
pub struct KbsConfig {
    /// The key broker.
    pub endpoint: Endpoint,
    /// The init-data document that the guest was launched with, byte for byte.
    pub init_data: Option<String>,
    /// Kind of the ephemeral key.
    pub key_algorithm: KeyAlgorithm,
    /// Whether an `http://` address will do. The network of a confidential guest is its host: who plays the key broker there sees
    /// no secret, but answers every resource with its own. For tests.
    pub allow_http: bool,
    /// When to try again.
    pub retry: RetryPolicy,
}

/// Result of a handshake.
#[derive(Clone)]
pub struct Attested {
    /// EAR token, a JWT. Whoever holds it can fetch resources, encrypted to this guest's key.
    pub token: String,
    cookie: String,
    /// By the guest's own count of time.
    until: Instant,
}

impl std::fmt::Debug for Attested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Attested(..)")
    }
}

impl Drop for Attested {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.token);
    }
}

impl Attested {
    pub(crate) fn new(token: String, cookie: String, asked: Instant) -> Self {
        let until = asked + token_life(&token).unwrap_or(TOKEN_LIFE);
        Self { token, cookie, until }
    }

    /// Whether the token can be handed out at this time.
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        now + TOKEN_SKEW < self.until
    }
}

/// From issue to expiry: the guest's own clock, which the host set, has no part in it. The signature need not be checked: the
/// token came from the key broker itself.
fn token_life(token: &str) -> Option<Duration> {
    const LONGEST: u64 = 7 * 24 * 3600;
    let claims: Value = serde_json::from_slice(&from_base64_url(token.split('.').nth(1)?)?).ok()?;
    let at = |name: &str| claims.get(name)?.as_u64();
    at("exp")?.checked_sub(at("iat")?).map(|life| Duration::from_secs(life.min(LONGEST)))
}

/// What the guest's clients call themselves.
pub(crate) const USER_AGENT: &str = concat!("kata-cc-kbs-client/", env!("CARGO_PKG_VERSION"));

/// Client of a guest.
pub struct KbsClient {
    http: Http,
    key: TeeKey,
    init_data: Option<String>,
    evidence: Arc<dyn EvidenceProvider>,
    retry: RetryPolicy,
    /// Held over a handshake: parallel calls of one guest attest once.
    session: Mutex<Option<Attested>>,
}

impl std::fmt::Debug for KbsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KbsClient").field("http", &self.http).finish_non_exhaustive()
    }
}

impl KbsClient {
    /// Makes the client and its key; nothing is sent yet. An address that is not https is refused unless the configuration
    /// allows it.
    pub fn new(config: KbsConfig, evidence: Arc<dyn EvidenceProvider>) -> Result<Self, ClientError> {
        let key = TeeKey::generate(config.key_algorithm)?;
        Self::with_key(config, key, evidence)
    }

    /// As [`Self::new`], with a key that is there already; the configuration's kind of key is not looked at.
    pub fn with_key(
        config: KbsConfig,
        key: TeeKey,
        evidence: Arc<dyn EvidenceProvider>,
    ) -> Result<Self, ClientError> {
        let scheme = config.endpoint.url.split_once("://").map(|(scheme, _)| scheme);
        if !config.allow_http && !scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
            let url: String = config.endpoint.url.chars().take(200).collect();
            return Err(ClientError::Config(format!(
                "address {url:?} is not https: anybody between the guest and the key broker could answer in its place"
            )));
        }
        Ok(Self {
            http: Http::new(&config.endpoint, USER_AGENT)?,
            key,
            init_data: config.init_data,
            evidence,
            retry: config.retry,
            session: Mutex::new(None),
        })
    }

    /// The guest's key, to which resources are encrypted.
    pub fn key(&self) -> &TeeKey {
        &self.key
    }

    /// Runs the handshake anew.
    pub async fn attest(&self) -> Result<Attested, ClientError> {
        let mut session = self.session.lock().await;
        let attested = self.handshake().await?;
        *session = Some(attested.clone());
        Ok(attested)
    }

    /// The attestation of before while its token is good for a while yet, else a new one.
    pub async fn attested(&self) -> Result<Attested, ClientError> {
        let mut session = self.session.lock().await;
        if let Some(attested) = session.as_ref().filter(|attested| attested.is_fresh(Instant::now())) {
            return Ok(attested.clone());
        }
        let attested = self.handshake().await?;
        *session = Some(attested.clone());
        Ok(attested)
    }

    /// The attestation token: kept until shortly before its end.
    pub async fn token(&self) -> Result<Zeroizing<String>, ClientError> {
        Ok(Zeroizing::new(self.attested().await?.token.clone()))
    }

    /// Fetches a resource; attests first when there is no session, and again, once, when the key broker asks for it.
    pub async fn get_resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let what = path.uri();
        let mut again = true;
        loop {
            let attested = self.session_for_resources().await?;
            let cookie = format!("{SESSION_COOKIE}={}", attested.cookie);
            let answer = self.patiently(&what, || {
                let request = self.http.request(Method::GET, &format!("/resource/{path}"));
                request.header(header::COOKIE, &cookie)
            });
            let answer = answer.await?;
            match answer.status {
                StatusCode::OK => {
                    let jwe: JweResponse = answer.json(&what)?;
                    info!(resource = %what, "resource received");
                    return Ok(jwe::decrypt(&self.key, &jwe)?);
                }
                StatusCode::UNAUTHORIZED if again && mended_by_attesting(&answer.error().0) => {
                    debug!(resource = %what, "key broker asks for attestation");
                    again = false;
                    let mut session = self.session.lock().await;
                    // Unless another call has made a new one meanwhile.
                    session.take_if(|session| session.cookie == attested.cookie);
                }
                _ => return Err(answer.into_error(&what)),
            }
        }
    }

    /// The session that there is, however old: whether it still holds is the key broker's to say.
    async fn session_for_resources(&self) -> Result<Attested, ClientError> {
        let mut session = self.session.lock().await;
        if let Some(attested) = session.as_ref() {
            return Ok(attested.clone());
        }
        let attested = self.handshake().await?;
        *session = Some(attested.clone());
        Ok(attested)
    }

    async fn handshake(&self) -> Result<Attested, ClientError> {
        let mut tries = Tries::new(self.retry);
        loop {
            match self.handshake_once().await {
                Err(error) => tries.wait(error).await?,
                done => return done,
            }
        }
    }

    async fn handshake_once(&self) -> Result<Attested, ClientError> {
        let tee = self.evidence.tee();
        let asked = Instant::now();
        let request = Request {
            version: PROTOCOL_VERSION.to_owned(),
            tee,
            extra_params: json!({"supported-hash-algorithms": ["sha256", "sha384", "sha512"]}),
        };
        let answer = self.http.send(self.http.request(Method::POST, "/auth").json(&request)).await?;
        let answer = expect_ok(answer, "auth")?;
        let challenge: Challenge = answer.json("auth")?;
        let protocol = |why: &str| ClientError::Protocol { what: "auth".to_owned(), why: why.to_owned() };
        let cookie = answer.cookie.ok_or_else(|| protocol("there is no session cookie"))?;
        let hash: HashAlgorithm = challenge.hash_algorithm().map_err(|seen| {
            protocol(&format!("it selects the hash {seen}, known are sha256, sha384, sha512"))
        })?;
        let body = self.attestation(challenge.nonce, hash).await?;
        let request = self
            .http
            .request(Method::POST, "/attest")
            .header(header::COOKIE, format!("{SESSION_COOKIE}={cookie}"))
            .json(&body);
        let answer = expect_ok(self.http.send(request).await?, "attest")?;
        let response: AttestationResponse = answer.json("attest")?;
        info!(%tee, "attested");
        Ok(Attested::new(response.token, answer.cookie.unwrap_or(cookie), asked))
    }

    /// What is sent in answer to a challenge.
    async fn attestation(&self, nonce: String, hash: HashAlgorithm) -> Result<Attestation, ClientError> {
        let runtime_data = RuntimeData { nonce, tee_pubkey: self.key.public().clone() };
        let devices = self.evidence.additional_evidence(&hash.digest(&runtime_data.canonical_device())).await;
        // The text is what is bound: it is made once, and sent as it is.
        let additional_evidence =
            devices.map_err(ClientError::Evidence)?.map_or_else(String::new, |value| value.to_string());
        let report_data = hash.digest(&runtime_data.canonical_primary(&additional_evidence));
        let primary_evidence = self.evidence.evidence(&report_data).await.map_err(ClientError::Evidence)?;
        Ok(Attestation {
            init_data: self.init_data.clone().map(|body| InitDataBody { format: "toml".to_owned(), body }),
            runtime_data,
            tee_evidence: CompositeEvidence { primary_evidence, additional_evidence },
        })
    }

    /// Sends, and again while the network fails or the key broker is busy.
    async fn patiently(
        &self,
        what: &str,
        request: impl Fn() -> reqwest::RequestBuilder,
    ) -> Result<Answer, ClientError> {
        let mut tries = Tries::new(self.retry);
        loop {
            let error = match self.http.send(request()).await {
                Ok(answer) if !is_busy(answer.status) => return Ok(answer),
                Ok(answer) => answer.into_error(what),
                Err(error) => error,
            };
            tries.wait(error).await?;
        }
    }
}

/// Whether a 401 of this name says that there is no attested session. The other names mean that there was one, and that
/// something else failed: Trustee says `PluginInternalError` for a resource that does not exist.
fn mended_by_attesting(name: &str) -> bool {
    !matches!(
        name,
        "PolicyDeny" | "PluginInternalError" | "PolicyEngineError" | "JweError" | "ParsePolicyError"
    )
}

fn expect_ok(answer: Answer, what: &str) -> Result<Answer, ClientError> {
    if answer.status == StatusCode::OK {
        return Ok(answer);
    }
    let status = answer.status.as_u16();
    let (name, detail) = answer.error();
    match answer.into_error(what) {
        error @ (ClientError::Busy { .. } | ClientError::Version { .. }) => Err(error),
        _ => Err(ClientError::Attestation { status, name, detail }),
    }
}

/// Evidence of the guest that this process runs in, from its security processor.
#[derive(Debug, Clone, Copy)]
pub struct GuestEvidence {
    source: kata_cc_attester::Tee,
    tee: Tee,
}

impl GuestEvidence {
    /// `None` when the guest runs in no TEE: then there is nothing to attest.
    pub fn new(source: kata_cc_attester::Tee) -> Option<Self> {
        Some(Self { source, tee: source.protocol()? })
    }
}

#[async_trait]
impl EvidenceProvider for GuestEvidence {
    fn tee(&self) -> Tee {
        self.tee
    }

    async fn evidence(&self, report_data: &[u8]) -> Result<Value, String> {
        let report_data = kata_cc_kbs_protocol::initdata::fit::<64>(report_data);
        kata_cc_attester::evidence(self.source, report_data).await.map_err(|e| e.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    struct Nothing;

    #[async_trait]
    impl EvidenceProvider for Nothing {
        fn tee(&self) -> Tee {
            Tee::Snp
        }

        async fn evidence(&self, _: &[u8]) -> Result<Value, String> {
            Err("none".to_owned())
        }
    }

    /// The host is the network of a confidential guest: without TLS it is the key broker too.
    #[test]
    fn a_guest_speaks_to_its_key_broker_by_https_only() {
        let client = |url: &str, allow_http: bool| {
            let endpoint = Endpoint { url: url.to_owned(), ..Endpoint::default() };
            KbsClient::new(KbsConfig { endpoint, allow_http, ..KbsConfig::default() }, Arc::new(Nothing))
        };
        for url in ["http://kbs:8080", "HTTP://kbs", "kbs:8080", ""] {
            let error = client(url, false).unwrap_err();
            assert!(
                matches!(&error, ClientError::Config(why) if why.contains("is not https")),
                "{url}: {error}"
            );
        }
        client("http://kbs:8080", true).unwrap();
        // What is missing here is the certificate.
        assert!(client("https://kbs", false).unwrap_err().to_string().contains("certificate"));
    }

    #[test]
    fn a_token_is_kept_until_shortly_before_its_end() {
        let token = |claims: &str| format!("h.{}.s", kata_cc_kbs_protocol::base64_url(claims.as_bytes()));
        let start = Instant::now();
        let kept = |token: String| Attested::new(token, String::new(), start);
        let long = kept(token(r#"{"iat": 1000, "exp": 1300}"#));
        assert!(long.is_fresh(start + Duration::from_secs(269)));
        assert!(!long.is_fresh(start + Duration::from_secs(270)));
        for odd in [token(r#"{"iat": 5, "exp": 1}"#), token("{}"), "nonsense".to_owned(), String::new()] {
            assert!(!kept(odd).is_fresh(start + TOKEN_LIFE));
        }
        // However long it says it lives.
        let endless = kept(token(r#"{"iat": 0, "exp": 18446744073709551615}"#));
        assert!(!endless.is_fresh(start + Duration::from_secs(8 * 24 * 3600)));
    }
}
