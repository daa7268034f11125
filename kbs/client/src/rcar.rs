//! The guest's side of the handshake: request, challenge, attestation, response.
//!
//! `GET` of a resource is tried with the session that there is; 401 means that there is none (or not any more), so the
//! handshake runs and the call is repeated, at most [`ATTEMPTS`] times. A refusal of the evidence is final: trying again
//! would only hide the reason. Failures of the network are tried again with a growing pause.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_kbs_protocol::{
    Attestation, AttestationResponse, Challenge, CompositeEvidence, InitDataBody, JweResponse,
    PROTOCOL_VERSION, Request, ResourcePath, RuntimeData, SESSION_COOKIE, Tee,
};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tracing::{debug, info};
use zeroize::Zeroizing;

use crate::http::{Answer, Endpoint, Http};
use crate::key::{KeyAlgorithm, TeeKey};
use crate::{ClientError, jwe};

/// How often a call is made.
const ATTEMPTS: u32 = 3;

/// Where the guest gets its evidence from.
#[async_trait]
pub trait EvidenceProvider: Send + Sync {
    /// What the guest runs in.
    fn tee(&self) -> Tee;

    /// Evidence whose report data starts with `report_data` (32 to 64 bytes) and is zero after it. The error is a
    /// sentence.
    async fn evidence(&self, report_data: &[u8]) -> Result<Value, String>;
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
}

/// Result of a handshake.
#[derive(Clone)]
pub struct Attested {
    /// EAR token, a JWT. Whoever holds it can fetch resources, encrypted to this guest's key.
    pub token: String,
    cookie: String,
}

impl std::fmt::Debug for Attested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Attested(..)")
    }
}

/// Client of a guest.
pub struct KbsClient {
    http: Http,
    key: TeeKey,
    init_data: Option<String>,
    evidence: Arc<dyn EvidenceProvider>,
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
        let scheme = config.endpoint.url.split_once("://").map(|(scheme, _)| scheme);
        if !config.allow_http && !scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
            let url: String = config.endpoint.url.chars().take(200).collect();
            return Err(ClientError::Config(format!(
                "address {url:?} is not https: anybody between the guest and the key broker could answer in its place"
            )));
        }
        let user_agent = concat!("kata-cc-kbs-client/", env!("CARGO_PKG_VERSION"));
        Ok(Self {
            http: Http::new(&config.endpoint, user_agent)?,
            key: TeeKey::generate(config.key_algorithm)?,
            init_data: config.init_data,
            evidence,
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

    /// Fetches a resource; attests first when the key broker asks for it.
    pub async fn get_resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let what = path.uri();
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            // Held over the handshake: parallel calls of one guest attest once.
            let mut session = self.session.lock().await;
            let attested = match &*session {
                Some(attested) => attested.clone(),
                None => {
                    let attested = self.handshake().await?;
                    *session = Some(attested.clone());
                    attested
                }
            };
            drop(session);
            let request = self
                .http
                .request(Method::GET, &format!("/resource/{path}"))
                .header(header::COOKIE, format!("{SESSION_COOKIE}={}", attested.cookie));
            let answer = self.patiently(request).await?;
            match answer.status {
                StatusCode::OK => {
                    let jwe: JweResponse = answer.json(&what)?;
                    info!(resource = %what, "resource received");
                    return Ok(jwe::decrypt(&self.key, &jwe)?);
                }
                StatusCode::UNAUTHORIZED => {
                    debug!(resource = %what, attempt, "key broker asks for attestation");
                    let mut session = self.session.lock().await;
                    if session.as_ref().is_some_and(|s| s.cookie == attested.cookie) {
                        *session = None;
                    }
                    let error = answer.into_error(&what);
                    if matches!(error, ClientError::Denied { .. }) {
                        return Err(error);
                    }
                    last = Some(error);
                }
                _ => return Err(answer.into_error(&what)),
            }
        }
        Err(last.unwrap_or_else(|| ClientError::Protocol { what, why: "no answer".to_owned() }))
    }

    async fn handshake(&self) -> Result<Attested, ClientError> {
        let tee = self.evidence.tee();
        let request = Request {
            version: PROTOCOL_VERSION.to_owned(),
            tee,
            extra_params: json!({"supported-hash-algorithms": ["sha256", "sha384", "sha512"]}),
        };
        let answer = self.patiently(self.http.request(Method::POST, "/auth").json(&request)).await?;
        let answer = expect_ok(answer)?;
        let challenge: Challenge = answer.json("auth")?;
        let protocol = |why: &str| ClientError::Protocol { what: "auth".to_owned(), why: why.to_owned() };
        let cookie = answer.cookie.ok_or_else(|| protocol("there is no session cookie"))?;
        let hash: HashAlgorithm = challenge.hash_algorithm().map_err(|seen| {
            protocol(&format!("it selects the hash {seen}, known are sha256, sha384, sha512"))
        })?;
        let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey: self.key.public().clone() };
        let report_data = hash.digest(&runtime_data.canonical_primary(""));
        let evidence = self.evidence.evidence(&report_data).await.map_err(ClientError::Evidence)?;
        let body = Attestation {
            init_data: self.init_data.clone().map(|body| InitDataBody { format: "toml".to_owned(), body }),
            runtime_data,
            tee_evidence: CompositeEvidence {
                primary_evidence: evidence,
                additional_evidence: String::new(),
            },
        };
        // A nonce is good for one attempt: what was sent is not sent again.
        let request = self
            .http
            .request(Method::POST, "/attest")
            .header(header::COOKIE, format!("{SESSION_COOKIE}={cookie}"))
            .json(&body);
        let answer = expect_ok(self.http.send(request).await?)?;
        let response: AttestationResponse = answer.json("attest")?;
        info!(%tee, "attested");
        Ok(Attested { token: response.token, cookie: answer.cookie.unwrap_or(cookie) })
    }

    /// Sends, and again when the network fails.
    async fn patiently(&self, request: reqwest::RequestBuilder) -> Result<Answer, ClientError> {
        let mut pause = Duration::from_millis(250);
        for _ in 1..ATTEMPTS {
            let Some(copy) = request.try_clone() else { break };
            match self.http.send(copy).await {
                Err(ClientError::Transport { url, why }) => {
                    debug!(%url, %why, "key broker not reached, trying again");
                    tokio::time::sleep(pause).await;
                    pause *= 4;
                }
                other => return other,
            }
        }
        self.http.send(request).await
    }
}

fn expect_ok(answer: Answer) -> Result<Answer, ClientError> {
    if answer.status == StatusCode::OK {
        return Ok(answer);
    }
    let (name, detail) = answer.error();
    Err(ClientError::Attestation { status: answer.status.as_u16(), name, detail })
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
}
