//! Who calls: a guest by its session or token, an administrator by what the gate demands.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Uri};
use kata_cc_attestation_service::serve::{ClientCertificate, Peer};
use kata_cc_kbs_protocol::ProtocolVersion;
use serde_json::Value;
use tracing::info;

use super::session_id;
use crate::admin::{Administrator, Call, bearer};
use crate::audit;
use crate::error::ApiError;
use crate::jwe;
use crate::state::Kbs;
use crate::tokens::KnownToken;

/// A guest whose token is good.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Its token, read.
    pub(crate) token: Arc<KnownToken>,
    /// What it speaks; the newest where that is not known, since a token does not tell.
    pub(crate) version: ProtocolVersion,
    /// Its session, when it came by one.
    pub(crate) session: Option<String>,
}

impl Caller {
    /// What the attestation policy found it to be.
    pub(crate) fn status(&self) -> &str {
        self.token.claims.pointer("/submods/cpu0/ear.status").and_then(Value::as_str).unwrap_or("none")
    }

    /// Encrypts an answer to it.
    pub(crate) fn encrypt(&self, kbs: &Kbs, plain: &[u8]) -> Result<Vec<u8>, ApiError> {
        let allow_rsa1_5 = kbs.settings.load().protocol.allow_rsa1_5;
        let form = jwe::Form { version: self.version, allow_rsa1_5 };
        let jwe = jwe::encrypt(&self.token.key, plain, form).map_err(|e| ApiError::Jwe(e.to_string()))?;
        serde_json::to_vec(&jwe).map_err(|e| ApiError::Internal(e.to_string()))
    }
}

/// The guest that calls: that of its session, else the bearer of a token.
async fn caller(kbs: &Kbs, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let now = kata_cc_attestation_service::now();
    let session = match session_id(headers) {
        None => None,
        Some(id) => {
            let guest = kbs.metrics.timed("session-get", kbs.sessions.guest(id, now)).await?;
            guest.map(|guest| (id.to_owned(), guest))
        }
    };
    let (session, token, version) = match (&session, bearer(headers)) {
        (Some((id, guest)), _) => (Some(id.clone()), guest.token.as_str(), guest.version),
        (None, Some(token)) => (None, token, ProtocolVersion::V0_4_0),
        (None, None) => {
            return Err(ApiError::TokenNotFound(
                "attest first: no attested session and no bearer token".to_owned(),
            ));
        }
    };
    Ok(Caller { token: kbs.known_token(token, now).await?, version, session })
}

/// The guest that calls; nobody's calls are on record.
pub(crate) async fn known_caller(
    kbs: &Kbs,
    peer: Option<Peer>,
    step: &str,
    headers: &HeaderMap,
) -> Result<Caller, ApiError> {
    let known = caller(kbs, headers).await;
    if let (Err(error), Some(peer)) = (&known, peer) {
        audit::turned_away(kbs, peer, step, session_id(headers), error).await?;
    }
    known
}

/// A call that only administrators may make, before the gate.
#[derive(Debug, Clone)]
pub(crate) struct AdminCall {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    certificate: Option<ClientCertificate>,
    pub(crate) peer: Option<Peer>,
}

impl<S: Send + Sync> FromRequestParts<S> for AdminCall {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            certificate: parts.extensions.get().cloned(),
            peer: parts.extensions.get().copied(),
        })
    }
}

impl AdminCall {
    /// The gate; leaves a trace of who did what.
    pub(crate) async fn admit(&self, kbs: &Kbs, action: &str) -> Result<Administrator, ApiError> {
        let gate = kbs.gate.load_full();
        let call = Call {
            method: &self.method,
            uri: &self.uri,
            headers: &self.headers,
            certificate: self.certificate.as_ref(),
            peer: self.peer,
        };
        let passed = gate.check(call, &kbs.failures, kata_cc_attestation_service::now()).await;
        kbs.metrics.count("admin", passed.as_ref().map_or_else(ApiError::name, |_| "ok"));
        let target = self.uri.path();
        match &passed {
            Ok(Administrator { role, name }) => info!(role, name, action, target, "admin"),
            Err(error) => {
                info!(action, target, %error, "admin refused");
                // Whoever is locked out was on record before, and must not fill the log.
                if !matches!(error, ApiError::TooMany { .. }) {
                    audit::not_let(kbs, action, target, error).await?;
                }
            }
        }
        passed
    }
}
