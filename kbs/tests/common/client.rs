//! A guest's client in steps: each call is one request on a new connection, and the session's id and the evidence are at hand.

use std::sync::Arc;
use std::time::Duration;

use kata_cc_kbs_client::{EvidenceProvider as _, KeyAlgorithm, TeeKey, jwe};
use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_kbs_protocol::{
    Attestation, Challenge, CompositeEvidence, JweResponse, PROTOCOL_VERSION, Request, RuntimeData,
    SESSION_COOKIE,
};
use serde_json::json;

use super::Guest;

/// Attempts of one step until the client counts as stuck.
pub const ATTEMPTS: u32 = 40;

/// A client that makes a new connection for each call, so that each goes to another replica.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    evidence: Guest,
    key: Arc<TeeKey>,
}

/// An attested session.
pub type Cookie = String;

impl Client {
    pub fn new(evidence: &Guest) -> Self {
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .no_proxy()
            .timeout(Duration::from_secs(60))
            .build()
            .unwrap();
        let key = Arc::new(TeeKey::generate(KeyAlgorithm::default()).unwrap());
        Self { http, evidence: evidence.clone(), key }
    }

    /// Asks for a challenge; returns it with the session's cookie. The error says what happened.
    pub async fn auth(&self, base: &str) -> Result<(Challenge, Cookie), String> {
        let tee = self.evidence.tee;
        let request = Request { version: PROTOCOL_VERSION.to_owned(), tee, extra_params: json!({}) };
        let sent = self.http.post(format!("{base}/kbs/v0/auth")).json(&request).send().await;
        let answer = sent.map_err(|e| e.to_string())?;
        if answer.status() != 200 {
            return Err(format!("auth: {}", answer.status()));
        }
        let cookie = answer.headers().get("set-cookie").unwrap().to_str().unwrap().to_owned();
        let cookie = cookie.strip_prefix(&format!("{SESSION_COOKIE}=")).unwrap();
        let cookie = cookie.split(';').next().unwrap().to_owned();
        Ok((answer.json().await.map_err(|e| e.to_string())?, cookie))
    }

    /// Evidence for a challenge.
    pub async fn evidence(&self, challenge: Challenge) -> Attestation {
        let hash = challenge.hash_algorithm().unwrap_or(HashAlgorithm::Sha384);
        let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey: self.key.public().clone() };
        let report_data = hash.digest(&runtime_data.canonical_primary(""));
        let primary_evidence = self.evidence.evidence(&report_data).await.unwrap();
        let additional_evidence = String::new();
        let tee_evidence = CompositeEvidence { primary_evidence, additional_evidence };
        Attestation { init_data: None, runtime_data, tee_evidence }
    }

    /// Sends evidence; returns status and body.
    pub async fn attest(
        &self,
        base: &str,
        cookie: &str,
        evidence: &Attestation,
    ) -> Result<(u16, String), String> {
        let request = self.http.post(format!("{base}/kbs/v0/attest")).json(evidence);
        let answer = request.header("cookie", format!("{SESSION_COOKIE}={cookie}")).send().await;
        let answer = answer.map_err(|e| e.to_string())?;
        Ok((answer.status().as_u16(), answer.text().await.map_err(|e| e.to_string())?))
    }

    /// Fetches a resource.
    pub async fn get(&self, base: &str, cookie: &str, name: &str) -> Result<Vec<u8>, String> {
        let request = self.http.get(format!("{base}/kbs/v0/resource/{name}"));
        let answer = request.header("cookie", format!("{SESSION_COOKIE}={cookie}")).send().await;
        let answer = answer.map_err(|e| e.to_string())?;
        let (status, text) = (answer.status().as_u16(), answer.text().await.map_err(|e| e.to_string())?);
        if status != 200 {
            return Err(format!("get: {status} {text}"));
        }
        let response: JweResponse = serde_json::from_str(&text).unwrap();
        Ok(jwe::decrypt(&self.key, &response).unwrap().to_vec())
    }

    /// A whole handshake, tried again from the beginning when anything fails.
    pub async fn handshake(&self, base: &str) -> Cookie {
        let mut errors = Vec::new();
        for _ in 0..ATTEMPTS {
            let tried = async {
                let (challenge, cookie) = self.auth(base).await?;
                let evidence = self.evidence(challenge).await;
                match self.attest(base, &cookie, &evidence).await? {
                    (200, _) => Ok(cookie),
                    (status, text) => Err(format!("attest: {status} {text}")),
                }
            };
            match tried.await {
                Ok(cookie) => return cookie,
                Err(error) => errors.push(error),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("a client is stuck in the handshake: {errors:?}");
    }
}
