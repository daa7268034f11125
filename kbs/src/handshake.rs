//! `/auth` and `/attest`: challenge, evidence, verdict.
//!
//! One log line per verdict: what was claimed, what was seen, what was expected. The nonce is consumed before the evidence
//! is looked at, so evidence cannot be tried twice.
//!
//! Three versions of the protocol are spoken ([`kata_cc_kbs_protocol::version`]). Which one a client speaks is settled by `/auth`, kept
//! in its session, and decides what `/attest` may look like and how resources are encrypted ([`crate::jwe`]).

use std::time::Instant;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use kata_cc_attestation_service::composite;
use kata_cc_attestation_service::ear::Tier;
use kata_cc_attestation_service::serve::Peer;
use kata_cc_attestation_service::service::{Binding, Evaluate, ExpectedInitData, ServiceError, Verdict};
use kata_cc_kbs_protocol::bodies::{self, AttestBody};
use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_kbs_protocol::strict::BodyError;
use kata_cc_kbs_protocol::{
    AttestationResponse, Challenge, InitDataBody, ProtocolVersion, SESSION_COOKIE, Tee, base64_standard,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;
use tracing::{Span, info};

use crate::api::{Shared, session_id};
use crate::audit;
use crate::checks;
use crate::error::ApiError;
use crate::request::check_media_type;
use crate::session::{Answer, Context, Guest, SessionError};
use crate::state::Kbs;

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

pub(crate) async fn auth(
    State(kbs): State<Shared>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let challenged = challenge(&kbs, peer, &headers, &body).await;
    if let Err(error) = &challenged {
        audit::turned_away(&kbs, peer, "auth", None, error).await?;
    }
    challenged
}

async fn challenge(kbs: &Kbs, peer: Peer, headers: &HeaderMap, body: &[u8]) -> Result<Response, ApiError> {
    let begin = Instant::now();
    check_media_type(headers)?;
    let request = bodies::request(body).map_err(|error| {
        kbs.metrics.count("auth", "malformed");
        info!(why = %error, "auth refused");
        ApiError::Handshake { step: "Auth", error }
    })?;
    let tee = request.tee;
    let settings = kbs.settings.load_full();
    let version =
        ProtocolVersion::negotiate(&request.version, &settings.protocol.versions).map_err(|why| {
            kbs.metrics.count("auth", "version");
            kbs.metrics.client(None, tee);
            info!(%tee, %why, "auth refused");
            ApiError::Attestation(format!("RCAR handshake Auth failed: {why}"))
        })?;
    Span::current().record("protocol", version.name()).record("tee", tee.name());
    let mut nonce = [0; 32];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| ApiError::Internal("no random numbers".to_owned()))?;
    let nonce = base64_standard(&nonce);
    let id = uuid::Uuid::new_v4().simple().to_string();
    let now = kata_cc_attestation_service::now();
    let expires = now + kbs.session_seconds;
    let context = Context { tee, version, nonce: nonce.clone() };
    let opened = kbs.sessions.open(&id, peer, &context, (now, expires));
    kbs.metrics.timed("session-open", opened).await?;
    kbs.metrics.count("auth", "ok");
    kbs.metrics.client(Some(version), tee);
    kbs.metrics.step("auth", Some(tee), begin);
    info!(%tee, protocol = version.name(), "challenge");
    Ok(with_cookie(Json(Challenge { nonce, extra_params: json!("") }), &id, expires))
}

/// The error of a step with the session: the store's is ours, others are the guest's.
fn session_error(refuse: &Refuse<'_>, reason: &'static str, error: SessionError) -> ApiError {
    match error {
        SessionError::Store(error) => error.into(),
        why => refuse.because(reason, why),
    }
}

/// A refusal of `/attest`: counted, logged, told.
struct Refuse<'a> {
    kbs: &'a Kbs,
    tee: Option<Tee>,
}

impl Refuse<'_> {
    fn note(&self, reason: &'static str, why: &dyn std::fmt::Display) {
        self.kbs.metrics.count("attest", reason);
        self.kbs.metrics.verdict(self.tee, "refused", reason);
        let tee = self.tee.map_or("none", Tee::name);
        info!(tee, verdict = "refused", reason, %why, "verdict");
    }

    fn because(&self, reason: &'static str, why: impl std::fmt::Display) -> ApiError {
        self.note(reason, &why);
        ApiError::Attestation(format!("RCAR handshake Attest failed: {why}"))
    }

    fn body(&self, error: BodyError) -> ApiError {
        self.note("malformed", &error);
        ApiError::Handshake { step: "Attest", error }
    }
}

/// Takes the challenge that evidence answers: whose session it is, what was sent, and what there is to do.
async fn take<'a>(
    kbs: &Kbs,
    headers: &'a HeaderMap,
    body: &[u8],
    now: i64,
) -> Result<(&'a str, AttestBody, Answer), ApiError> {
    let refuse = Refuse { kbs, tee: None };
    let id = session_id(headers)
        .ok_or_else(|| refuse.because("session", "there is no session cookie, call auth first"))?;
    check_media_type(headers)?;
    let request = bodies::attestation(body).map_err(|error| refuse.body(error))?;
    let sent = match &request {
        AttestBody::Current(current) => Some(current.runtime_data.nonce.as_str()),
        AttestBody::Legacy(_) => None,
    };
    let taken = kbs.metrics.timed("session-take", kbs.sessions.take(id, sent, now)).await;
    Ok((id, request, taken.map_err(|error| session_error(&refuse, "nonce", error))?))
}

pub(crate) async fn attest(
    State(kbs): State<Shared>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let begin = Instant::now();
    let now = kata_cc_attestation_service::now();
    let (id, request, answer) = match take(&kbs, &headers, &body, now).await {
        Ok(taken) => taken,
        Err(error) => {
            audit::turned_away(&kbs, peer, "attest", session_id(&headers), &error).await?;
            return Err(error);
        }
    };
    let context = match answer {
        Answer::Judge(context) => context,
        Answer::Done(guest) => return Ok(Json(AttestationResponse { token: guest.token }).into_response()),
    };
    let (tee, version) = (context.tee, context.version);
    Span::current().record("protocol", version.name()).record("tee", tee.name());
    let refuse = Refuse { kbs: &kbs, tee: Some(tee) };
    // From here on there is evidence of somebody: what comes of it is put on record before anybody is told.
    let verdict = match evaluation(&context, request) {
        Err(error) => Err(refuse.body(error)),
        Ok(evaluate) => judge(&kbs, &refuse, tee, &evaluate).await,
    };
    audit::attested(&kbs, id, tee, verdict.as_ref()).await?;
    let verdict = verdict?;
    let affirming = verdict.status() == Tier::Affirming;
    let guest = Guest { version, token: verdict.token };
    let kept = kbs.sessions.attested(id, &guest, affirming, now);
    let kept = kbs.metrics.timed("session-attested", kept).await;
    kept.map_err(|error| session_error(&refuse, "session", error))?;
    kbs.metrics.step("attest", Some(tee), begin);
    let expires = now + kbs.session_seconds;
    Ok(with_cookie(Json(AttestationResponse { token: guest.token }), id, expires))
}

/// Has the evidence judged; the verdict is counted and logged.
async fn judge(kbs: &Kbs, refuse: &Refuse<'_>, tee: Tee, evaluate: &[Evaluate]) -> Result<Verdict, ApiError> {
    let begin = Instant::now();
    let verdict = kbs.service.evaluate_all(evaluate).await;
    kbs.metrics.step("verify", Some(tee), begin);
    let verdict = match verdict {
        Ok(verdict) => verdict,
        Err(ServiceError::Refused(refusal)) => {
            let reason = refusal.reason.name();
            kbs.metrics.count("attest", reason);
            kbs.metrics.verdict(Some(tee), "refused", reason);
            info!(
                %tee, verdict = "refused", reason, claim = refusal.claim, seen = refusal.seen,
                expected = refusal.expected, why = %refusal, what_to_do = refusal.reason.what_to_do(), "verdict"
            );
            let why = format!("RCAR handshake Attest failed: {refusal}");
            return Err(ApiError::Refused { why, checks: checks::of_refusal(&refusal) });
        }
        Err(error) => {
            return Err(match ApiError::from(error) {
                ApiError::Attestation(why) => refuse.because("policy", why),
                other => other,
            });
        }
    };
    let status = verdict.status();
    kbs.metrics.count("attest", status.name());
    let reason = verdict.findings.first().map_or("none", |_| "reference-value");
    kbs.metrics.verdict(Some(tee), status.name(), reason);
    log(tee, &verdict);
    Ok(verdict)
}

/// A line for the verdict, and one for each comparison that failed, those of devices too.
fn log(tee: Tee, verdict: &Verdict) {
    let status = verdict.status().name();
    let (failed, all) = checks::of_verdict(verdict);
    for check in &failed {
        info!(
            %tee, verdict = status, submod = check.submod, rule = check.rule, claim = check.claim, seen = %check.seen,
            expected = %check.expected, reference = check.reference, policy = check.policy,
            policy_digest = check.policy_digest, what_to_do = check.what_to_do, "verdict"
        );
    }
    if failed.len() < all {
        info!(%tee, verdict = status, failed = all, told = failed.len(), "more comparisons failed than are told here");
    }
    if failed.is_empty() {
        info!(%tee, verdict = status, claim = "measurement", seen = verdict.measurement, "verdict");
    }
}

/// What is to be evaluated, the CPU first, if the body has the shape of the session's version.
fn evaluation(context: &Context, request: AttestBody) -> Result<Vec<Evaluate>, BodyError> {
    let version = context.version;
    let mut devices = None;
    let (canonical, evidence, init_data) = match request {
        AttestBody::Current(current) if version.has_runtime_data() => {
            let additional = current.tee_evidence.additional_evidence;
            let canonical = current.runtime_data.canonical_primary(&additional);
            devices = Some((current.runtime_data, additional));
            (canonical, current.tee_evidence.primary_evidence, current.init_data)
        }
        AttestBody::Legacy(legacy) if !version.has_runtime_data() => {
            (legacy.canonical(&context.nonce), legacy.tee_evidence, legacy.init_data)
        }
        AttestBody::Current(_) | AttestBody::Legacy(_) => {
            let why = format!("its shape is not that of protocol {version}, which auth was asked for");
            return Err(BodyError::Json(why));
        }
    };
    let binding: Value = serde_json::from_slice(&canonical).map_err(|e| BodyError::Json(e.to_string()))?;
    let primary = Evaluate {
        tee: context.tee,
        evidence,
        binding: Some(Binding::Structured(binding)),
        hash: HashAlgorithm::Sha384,
        init_data: init_data.map(|InitDataBody { body, .. }| ExpectedInitData::Toml(body)),
        policy_id: String::new(),
    };
    let Some((runtime_data, additional)) = devices else { return Ok(vec![primary]) };
    composite::with_devices(primary, &runtime_data, &additional)
        .map_err(|why| BodyError::value("tee-evidence.additional_evidence", why.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attestation(body: Value) -> AttestBody {
        bodies::attestation(body.to_string().as_bytes()).unwrap()
    }

    /// A body of one version in a session of another is nobody's.
    #[test]
    fn the_shape_must_be_that_of_the_session() {
        let key = json!({"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "A".repeat(43), "y": "A".repeat(43)});
        let current = json!({
            "runtime-data": {"nonce": "n", "tee-pubkey": key},
            "tee-evidence": {"primary_evidence": {}, "additional_evidence": ""}
        });
        let legacy = json!({"tee-pubkey": key, "tee-evidence": "{}"});
        for version in ProtocolVersion::ALL {
            let context = Context { tee: Tee::SimSnp, version, nonce: "n".to_owned() };
            let fits = |body: &Value| evaluation(&context, attestation(body.clone()));
            assert_eq!(fits(&current).is_ok(), version == ProtocolVersion::V0_4_0);
            assert_eq!(fits(&legacy).is_ok(), version != ProtocolVersion::V0_4_0);
            let hashed = fits(if version.has_runtime_data() { &current } else { &legacy }).unwrap();
            let [Evaluate { binding: Some(Binding::Structured(hashed)), .. }] = hashed.as_slice() else {
                panic!()
            };
            assert_eq!(hashed["nonce"], "n");
            assert_eq!(hashed.get("additional-evidence").is_some(), version == ProtocolVersion::V0_4_0);
        }
        let mut device = current;
        device["tee-evidence"]["additional_evidence"] = json!("{\"nvidia\":{}}");
        let context = Context { tee: Tee::SimSnp, version: ProtocolVersion::V0_4_0, nonce: "n".to_owned() };
        let both = evaluation(&context, attestation(device.clone())).unwrap();
        assert_eq!(both.iter().map(|piece| piece.tee).collect::<Vec<_>>(), [Tee::SimSnp, Tee::Nvidia]);
        device["tee-evidence"]["additional_evidence"] = json!("{\"snp\":{}}");
        let error = evaluation(&context, attestation(device)).unwrap_err();
        assert_eq!(error.member(), Some("tee-evidence.additional_evidence"));
    }

    #[test]
    fn the_cookie_has_trustees_form() {
        let value = cookie("abc", 1_760_000_000).unwrap();
        assert_eq!(value, "kbs-session-id=abc; Expires=Thu, 09 Oct 2025 08:53:20 GMT");
    }
}
