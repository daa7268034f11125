//! `/auth` and `/attest`: challenge, evidence, verdict.
//!
//! One log line per verdict: what was claimed, what was seen, what was expected. The nonce is consumed before the evidence
//! is looked at, so evidence cannot be tried twice.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use kata_cc_attestation_service::ear::Tier;
use kata_cc_attestation_service::serve::Peer;
use kata_cc_attestation_service::service::{Binding, Evaluate, ExpectedInitData, ServiceError};
use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_kbs_protocol::{
    Attestation, AttestationResponse, Challenge, PROTOCOL_VERSION, Request, SESSION_COOKIE, Tee,
    base64_standard,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;
use tracing::info;

use crate::api::{Shared, parse, session_id};
use crate::error::ApiError;
use crate::session::{Answer, Attested, SessionError};

/// `Set-Cookie` of a session, in Trustee's form.
fn cookie(id: &str, expires: i64) -> Option<HeaderValue> {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let date = OffsetDateTime::from_unix_timestamp(expires).ok()?.format(format).ok()?;
    HeaderValue::from_str(&format!("{SESSION_COOKIE}={id}; Expires={date}")).ok()
}

fn with_cookie(body: impl IntoResponse, id: &str, expires: i64) -> Response {
    let mut response = body.into_response();
    if let Some(cookie) = cookie(id, expires) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

/// An error of the store is ours; others are the guest's.
pub(crate) fn session(error: SessionError) -> ApiError {
    match error {
        SessionError::Store(error) => error.into(),
        why => ApiError::Attestation(format!("RCAR handshake failed: {why}")),
    }
}

pub(crate) async fn auth(
    State(kbs): State<Shared>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let refuse = |why: String| {
        kbs.metrics.count("auth", "refused");
        info!(%why, "auth refused");
        ApiError::Attestation(format!("RCAR handshake Auth failed: {why}"))
    };
    let request: Request = serde_json::from_slice(&body).map_err(|e| refuse(format!("request: {e}")))?;
    if request.version != PROTOCOL_VERSION {
        let seen: String = request.version.chars().take(32).collect();
        let semver = seen.split('.').filter(|part| part.parse::<u64>().is_ok()).count() >= 3;
        return Err(refuse(if semver {
            format!(
                "KBS Client Protocol Version Mismatch: expect ={PROTOCOL_VERSION} while the request is {seen}"
            )
        } else {
            format!("failed to parse KBS version {seen:?}")
        }));
    }
    let mut nonce = [0; 32];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| ApiError::Internal("no random numbers".to_owned()))?;
    let nonce = base64_standard(&nonce);
    let id = uuid::Uuid::new_v4().simple().to_string();
    let now = kata_cc_attestation_service::now();
    let expires = now + kbs.session_seconds;
    kbs.sessions.open(&id, peer, request.tee, &nonce, (now, expires)).await.map_err(session)?;
    kbs.metrics.count("auth", "ok");
    info!(tee = %request.tee, "challenge");
    Ok(with_cookie(Json(Challenge { nonce, extra_params: json!("") }), &id, expires))
}

pub(crate) async fn attest(
    State(kbs): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let now = kata_cc_attestation_service::now();
    let refuse = |reason: &'static str, why: String| {
        kbs.metrics.count("attest", reason);
        info!(verdict = "refused", reason, %why, "verdict");
        ApiError::Attestation(format!("RCAR handshake Attest failed: {why}"))
    };
    let id = session_id(&headers)
        .ok_or_else(|| refuse("session", "there is no session cookie, call auth first".to_owned()))?;
    let request: Attestation = match parse(&body) {
        Ok(request) => request,
        Err(error) => return Err(refuse("malformed", error.to_string())),
    };
    let nonce = &request.runtime_data.nonce;
    let tee = match kbs.sessions.answer(id, nonce, now).await {
        Ok(Answer::Judge { tee }) => tee,
        Ok(Answer::Done(token)) => return Ok(Json(AttestationResponse { token }).into_response()),
        Err(SessionError::Store(error)) => return Err(error.into()),
        Err(why) => return Err(refuse("nonce", why.to_string())),
    };
    let evaluate = evaluation(tee, request).map_err(|why| refuse("malformed", why))?;
    let verdict = match kbs.service.evaluate(&evaluate).await {
        Ok(verdict) => verdict,
        Err(error) => {
            if let ServiceError::Refused(refusal) = &error {
                kbs.metrics.count("attest", refusal.reason.name());
                info!(
                    %tee, verdict = "refused", reason = refusal.reason.name(), claim = refusal.claim,
                    seen = refusal.seen, expected = refusal.expected, why = %refusal, "verdict"
                );
                return Err(ApiError::Attestation(format!("RCAR handshake Attest failed: {refusal}")));
            }
            return Err(match ApiError::from(error) {
                ApiError::Attestation(why) => refuse("policy", why),
                other => other,
            });
        }
    };
    let status = verdict.vector.status();
    kbs.metrics.count("attest", status.name());
    for finding in &verdict.findings {
        info!(
            %tee, verdict = status.name(), claim = finding.claim, seen = %finding.seen,
            expected = %finding.expected, reference = finding.reference, "verdict"
        );
    }
    if status == Tier::Affirming || verdict.findings.is_empty() {
        info!(%tee, verdict = status.name(), claim = "measurement", seen = verdict.measurement, "verdict");
    }
    let attested = Attested { token: verdict.token.clone(), affirming: status == Tier::Affirming };
    kbs.sessions.attested(id, attested, now).await.map_err(|error| match error {
        SessionError::Store(error) => error.into(),
        why => refuse("session", why.to_string()),
    })?;
    let expires = now + kbs.session_seconds;
    Ok(with_cookie(Json(AttestationResponse { token: verdict.token }), id, expires))
}

fn evaluation(tee: Tee, request: Attestation) -> Result<Evaluate, String> {
    let additional = &request.tee_evidence.additional_evidence;
    if !additional.is_empty() {
        return Err("evidence of additional devices is not supported".to_owned());
    }
    let init_data = match request.init_data {
        None => None,
        Some(init_data) if init_data.format == "toml" => Some(ExpectedInitData::Toml(init_data.body)),
        Some(init_data) => {
            let seen: String = init_data.format.chars().take(32).collect();
            return Err(format!("init-data has the format {seen:?}, only toml is known"));
        }
    };
    request.runtime_data.tee_pubkey.check()?;
    let canonical = request.runtime_data.canonical_primary(additional);
    let binding: Value = serde_json::from_slice(&canonical).map_err(|e| e.to_string())?;
    Ok(Evaluate {
        tee,
        evidence: request.tee_evidence.primary_evidence,
        binding: Some(Binding::Structured(binding)),
        hash: HashAlgorithm::Sha384,
        init_data,
        policy_id: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key goes into the token, which is kept for as long as the session: whoever has evidence must not choose its size.
    #[test]
    fn a_key_of_any_length_is_refused() {
        let attestation = |x: String| -> Attestation {
            serde_json::from_value(json!({
                "runtime-data": {"nonce": "n", "tee-pubkey":
                    {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": x, "y": "A".repeat(43)}},
                "tee-evidence": {"primary_evidence": {}, "additional_evidence": ""}
            }))
            .unwrap()
        };
        evaluation(Tee::SimSnp, attestation("A".repeat(43))).unwrap();
        let error = evaluation(Tee::SimSnp, attestation("A".repeat(1 << 20))).unwrap_err();
        assert!(error.contains("tee-pubkey") && error.len() < 300, "{error}");
    }

    #[test]
    fn the_cookie_has_trustees_form() {
        let value = cookie("abc", 1_760_000_000).unwrap();
        assert_eq!(value, "kbs-session-id=abc; Expires=Thu, 09 Oct 2025 08:53:20 GMT");
    }
}
