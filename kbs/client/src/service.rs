//! Tokens of an attestation service of its own (CoCo's token type `coco_as`).
//!
//! Trustee's REST service: `POST {url}/attestation` with the evidence, as the attestation agent sends it: no runtime data, so the
//! report data is zeros and nothing but the guest is attested. The token is for others to verify, offline by the service's
//! keys; a false one is found out there. So `http` is taken too, as CoCo does: evidence is no secret.

use std::sync::Arc;
use std::time::Instant;

use kata_cc_kbs_protocol::base64_url;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::http::{Answer, Endpoint, Http};
use crate::rcar::{Attested, EvidenceProvider};
use crate::retry::{RetryPolicy, Tries, is_busy};
use crate::{ClientError, rcar};

/// Client of an attestation service.
pub struct ServiceClient {
    http: Http,
    url: String,
    init_data: Option<String>,
    evidence: Arc<dyn EvidenceProvider>,
    retry: RetryPolicy,
    /// Held over a call: parallel calls of one guest attest once.
    kept: Mutex<Option<Attested>>,
}

impl std::fmt::Debug for ServiceClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceClient").field("url", &self.url).finish_non_exhaustive()
    }
}

impl ServiceClient {
    /// A client; nothing is sent yet. `init_data` is the exact text that the guest was launched with.
    ///
    /// # Errors
    /// When address or certificates cannot be used.
    pub fn new(
        endpoint: &Endpoint,
        init_data: Option<String>,
        retry: RetryPolicy,
        evidence: Arc<dyn EvidenceProvider>,
    ) -> Result<Self, ClientError> {
        let http = Http::new(endpoint, rcar::USER_AGENT)?;
        let url = endpoint.url.clone();
        Ok(Self { http, url, init_data, evidence, retry, kept: Mutex::new(None) })
    }

    /// The token: kept until shortly before its end, else a new one.
    ///
    /// # Errors
    /// When there is no evidence, or the service is not reached, or refuses it.
    pub async fn token(&self) -> Result<Zeroizing<String>, ClientError> {
        let mut kept = self.kept.lock().await;
        if let Some(attested) = kept.as_ref().filter(|attested| attested.is_fresh(Instant::now())) {
            return Ok(Zeroizing::new(attested.token.clone()));
        }
        let asked = Instant::now();
        let token = self.ask().await.map_err(|error| self.told(error))?;
        *kept = Some(Attested::new(token.to_string(), String::new(), asked));
        Ok(token)
    }

    async fn ask(&self) -> Result<Zeroizing<String>, ClientError> {
        let evidence = self.evidence.evidence(&[]).await.map_err(ClientError::Evidence)?;
        let body = self.request(&evidence);
        let mut tries = Tries::new(self.retry);
        loop {
            let error = match self.http.send(self.http.at(Method::POST, "/attestation").json(&body)).await {
                Ok(answer) if answer.status == StatusCode::OK => return token_of(&answer),
                Ok(answer) if is_busy(answer.status) => answer.into_error("attestation"),
                Ok(answer) => return Err(answer.into_error("attestation")),
                Err(error) => error,
            };
            tries.wait(error).await?;
        }
    }

    fn request(&self, evidence: &Value) -> Value {
        let mut request = json!({
            "tee": self.evidence.tee(),
            "evidence": base64_url(evidence.to_string().as_bytes()),
        });
        if let Some(text) = &self.init_data {
            request["init_data"] = json!({"init_data_toml": text});
        }
        json!({"verification_requests": [request], "policy_ids": []})
    }

    /// The common errors speak of the key broker: this is another server.
    fn told(&self, error: ClientError) -> ClientError {
        let why = match error {
            ClientError::Transport { why, .. } => format!("it was not reached: {why}"),
            ClientError::Busy { status, detail, .. } => format!("it is busy, {status}: {detail}"),
            ClientError::Refused { status, detail, .. } => format!("it answers {status}: {detail}"),
            ClientError::NotFound { detail, .. } => format!("it answers 404: {detail}"),
            ClientError::Denied { detail, .. } => format!("it answers 403: {detail}"),
            ClientError::Protocol { why, .. } => format!("its answer is not understood: {why}"),
            other => return other,
        };
        ClientError::Service { url: self.url.clone(), why }
    }
}

/// Has an attestation service of ours judge evidence and say why (`POST {url}/api/v1/explain`). No token is issued, and nothing binds the
/// evidence to this call. What the service refuses is [`ClientError::Refused`] with its reason as name.
///
/// # Errors
/// When address or certificates cannot be used, the service is not reached, or refuses.
pub async fn explain_evidence(
    endpoint: &Endpoint,
    tee: kata_cc_kbs_protocol::Tee,
    evidence: &Value,
) -> Result<Value, ClientError> {
    let http = Http::new(endpoint, rcar::USER_AGENT)?;
    let body = json!({"verification_requests": [{"tee": tee, "evidence": evidence}]});
    let answer = http.send(http.at(Method::POST, "/api/v1/explain").json(&body)).await?;
    if answer.status != StatusCode::OK {
        return Err(answer.into_error("evidence"));
    }
    answer.json("evidence")
}

/// The answer is the token as text; that it is a JWT is looked at, what it says is for its reader.
fn token_of(answer: &Answer) -> Result<Zeroizing<String>, ClientError> {
    let text = std::str::from_utf8(&answer.body).map(str::trim).unwrap_or_default();
    let plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if text.split('.').count() == 3 && text.split('.').all(plain) {
        return Ok(Zeroizing::new(text.to_owned()));
    }
    Err(ClientError::Protocol { what: "attestation".to_owned(), why: "it is no JWT".to_owned() })
}
