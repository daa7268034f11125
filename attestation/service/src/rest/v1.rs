//! `/api/v1`: evaluation with an explanation, challenges, policies, tokens. Requests with unknown members are refused.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use kata_cc_kbs_protocol::service::{InitDataInput, RuntimeDataInput};
use kata_cc_kbs_protocol::{Tee, from_base64_url};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{RawBody, Shared, admin, json_body, list};
use crate::api::{self, Api, binding, hash, init_data};
use crate::audit_export;
use crate::jws::Unverified;
use crate::policies::{DryRun, DryRunInput, recorded};
use crate::problem::Problem;
use crate::references::format_time;
use crate::service::{Binding, Evaluate, ServiceError, Verdict};

/// One piece of evidence.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Verification {
    tee: Tee,
    /// JSON, or base64url of it as Trustee has it.
    evidence: Value,
    #[serde(default)]
    runtime_data: Option<RuntimeDataInput>,
    #[serde(default)]
    init_data: Option<InitDataInput>,
    #[serde(default)]
    runtime_data_hash_algorithm: Option<String>,
}

impl Verification {
    /// Reads one piece of evidence with what it binds.
    pub(super) fn read(value: &Value) -> Result<Self, Problem> {
        Self::deserialize(value).map_err(|error| super::not_json(&error))
    }

    pub(super) fn evaluate(&self, policy_id: &str) -> Result<Evaluate, Problem> {
        let evidence = match &self.evidence {
            Value::String(encoded) => api::evidence(encoded)?,
            Value::Object(_) => self.evidence.clone(),
            _ => return Err(Problem::request("evidence", "evidence is an object, or base64url of one")),
        };
        Ok(Evaluate {
            tee: self.tee,
            evidence,
            binding: binding(self.runtime_data.as_ref())?,
            hash: hash(self.runtime_data_hash_algorithm.as_deref())?,
            init_data: init_data(self.init_data.as_ref())?,
            policy_id: policy_id.to_owned(),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EvaluateRequest {
    verification_requests: Vec<Verification>,
    #[serde(default)]
    policy_ids: Vec<String>,
    /// A nonce of `/api/v1/challenge` that the evidence binds.
    #[serde(default)]
    challenge: Option<String>,
}

/// Whether evidence binds a nonce: as member `nonce` of what it binds, or as all of it.
fn binds(evaluate: &Evaluate, nonce: &str) -> bool {
    match &evaluate.binding {
        None => false,
        Some(Binding::Structured(value)) => value.get("nonce").and_then(Value::as_str) == Some(nonce),
        Some(Binding::Raw(bytes)) => {
            bytes == nonce.as_bytes() || from_base64_url(nonce).as_deref() == Some(bytes.as_slice())
        }
    }
}

async fn judge(api: &Api, request: &EvaluateRequest) -> Result<Verdict, Problem> {
    let policy_id = request.policy_ids.first().map_or("", String::as_str);
    let pieces: Vec<_> =
        request.verification_requests.iter().map(|one| one.evaluate(policy_id)).collect::<Result<_, _>>()?;
    if let Some(nonce) = &request.challenge
        && !pieces.iter().all(|piece| binds(piece, nonce))
    {
        let why = "all evidence is to bind the challenge: as member nonce of structured runtime data, or as raw runtime data";
        let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "challenge-not-bound", why);
        return Err(problem.field("runtime_data"));
    }
    let verdict = api.evaluate(&pieces).await?;
    // After the evidence was found good, so that only who has such evidence can use up challenges; before the verdict leaves, so
    // that one challenge has one verdict.
    if let Some(nonce) = &request.challenge {
        api.challenges.take(nonce, crate::now()).await?;
    }
    Ok(verdict)
}

fn explained(verdict: &Verdict) -> Value {
    let submods: serde_json::Map<String, Value> = verdict
        .submods
        .iter()
        .map(|submod| {
            let about = json!({
                "tee": submod.tee.name(),
                "status": submod.vector.status().name(),
                "trustworthiness_vector": submod.vector.to_json(),
                "measurement": submod.measurement,
                "explanation": submod.explanation,
            });
            (submod.name.clone(), about)
        })
        .collect();
    json!({"status": verdict.status().name(), "submods": submods})
}

pub(super) async fn evaluate(
    State(api): State<Shared>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let request: EvaluateRequest = json_body(&headers, body)?;
    let verdict = judge(&api, &request).await?;
    let mut answer = explained(&verdict);
    answer["token"] = json!(verdict.token);
    answer["expires"] = json!(format_time(crate::now() + api.service.broker().lifetime()));
    Ok(super::json(&answer))
}

/// Either a token, whose findings are shown, or evidence, which is judged without issuing a token.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ExplainRequest {
    Token(ExplainToken),
    Evidence(EvaluateRequest),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainToken {
    token: String,
}

pub(super) async fn explain(
    State(api): State<Shared>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let value: Value = json_body(&headers, body)?;
    let request = if value.get("token").is_some() {
        serde_json::from_value(value).map(ExplainRequest::Token)
    } else {
        serde_json::from_value(value).map(ExplainRequest::Evidence)
    };
    match request.map_err(|error| super::not_json(&error))? {
        ExplainRequest::Evidence(request) => Ok(super::json(&explained(&judge(&api, &request).await?))),
        ExplainRequest::Token(ExplainToken { token }) => {
            let claims = api.service.verify_token(&token, crate::now()).await.map_err(|e| bad_token(&e))?;
            Ok(super::json(&of_token(&claims)))
        }
    }
}

/// What a token says about why it says it.
fn of_token(claims: &Value) -> Value {
    let submods = claims.get("submods").and_then(Value::as_object).into_iter().flatten();
    let submods: serde_json::Map<String, Value> = submods
        .map(|(name, submod)| {
            let of = |member: &str| submod.get(member).cloned().unwrap_or(Value::Null);
            let about = json!({
                "status": of("ear.status"),
                "trustworthiness_vector": of("ear.trustworthiness-vector"),
                "policy_id": of("ear.appraisal-policy-id"),
                "findings": submod.get(crate::ear::FINDINGS).cloned().unwrap_or_else(|| json!([])),
            });
            (name.clone(), about)
        })
        .collect();
    json!({ "submods": submods })
}

fn bad_token(error: &crate::token::TokenError) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.reason(), error).field("token")
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChallengeRequest {
    /// What will be answered with; for the log.
    #[serde(default)]
    tee: Option<Tee>,
}

pub(super) async fn challenge(
    State(api): State<Shared>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let request: ChallengeRequest = json_body(&headers, body)?;
    let (challenge, end) = api.challenges.give(crate::now())?;
    tracing::debug!(tee = request.tee.map(Tee::name), "challenge");
    Ok(super::json(&json!({"challenge": challenge, "expires": format_time(end)})))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenRequest {
    token: String,
}

/// Whether a token is one of ours, and what it says. The answer is 200 also for a token that is no good: the question was answered.
pub(super) async fn verify_token(
    State(api): State<Shared>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let request: TokenRequest = json_body(&headers, body)?;
    let answer = match api.service.verify_token(&request.token, crate::now()).await {
        Ok(claims) => {
            let header = Unverified::parse(&request.token).map(|parsed| parsed.header).unwrap_or_default();
            json!({"valid": true, "claims": claims, "kid": header.get("kid"), "alg": header.get("alg")})
        }
        Err(error) => json!({"valid": false, "reason": error.reason(), "detail": error.to_string()}),
    };
    Ok(super::json(&answer))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotate {
    #[serde(default)]
    algorithm: Option<String>,
}

pub(super) async fn rotate(
    State(api): State<Shared>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let who = admin(&api, &headers, "rotate_key")?;
    let request: Rotate = json_body(&headers, body)?;
    if let Some(algorithm) = request.algorithm.as_deref().filter(|a| !["ES256", "ES384", "EdDSA"].contains(a))
    {
        let algorithm: String = algorithm.chars().take(32).collect();
        let why = format!("unknown algorithm {algorithm:?}, known are ES256, ES384, EdDSA");
        return Err(Problem::request("algorithm", why));
    }
    let jwk = api.service.rotate_key(request.algorithm.as_deref(), &who).await?;
    Ok(super::json(&json!({ "signing": jwk, "keys": api.service.jwks()["keys"] })))
}

/// A page of the audit log, which the call is on first.
pub(super) async fn audit(
    State(api): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let who = admin(&api, &headers, audit_export::ACTION)?;
    let page = audit_export::Page::of(&uri)?;
    let log = api.service.state.store.audit();
    let asked = recorded(audit_export::ACTION, &page.to_string(), &who).verdict("asked");
    log.append(asked).await.map_err(ServiceError::from)?;
    Ok(page.answer(log).await?)
}

pub(super) async fn policies(State(api): State<Shared>) -> Result<Response, Problem> {
    let mut policies = Vec::new();
    for id in api.service.policy_ids().await {
        let text = api.service.policy_text(&id).await?;
        policies.push(json!({"id": text.id, "digest": text.digest, "default": text.default}));
    }
    Ok(list("policies", policies))
}

pub(super) async fn policy(State(api): State<Shared>, Path(id): Path<String>) -> Result<Response, Problem> {
    Ok(super::json(&json!(api.service.policy_text(&id).await?)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetPolicy {
    /// Rego text, not encoded.
    policy: String,
}

pub(super) async fn set_policy(
    State(api): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let who = admin(&api, &headers, "set_policy")?;
    let request: SetPolicy = json_body(&headers, body)?;
    Ok(super::json(&json!(api.service.set_policy_by(&id, &request.policy, &who).await?)))
}

pub(super) async fn delete_policy(
    State(api): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let who = admin(&api, &headers, "delete_policy")?;
    api.service.delete_policy(&id, &who).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn versions(State(api): State<Shared>, Path(id): Path<String>) -> Result<Response, Problem> {
    Ok(list("versions", api.service.policy_versions(&id).await?))
}

pub(super) async fn version(
    State(api): State<Shared>,
    Path((id, version)): Path<(String, i64)>,
) -> Result<Response, Problem> {
    Ok(super::json(&json!(api.service.policy_version(&id, version).await?)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DryRunRequest {
    /// Text to try; the stored policy without it.
    #[serde(default)]
    policy: Option<String>,
    /// Id with the class.
    #[serde(default = "default_policy")]
    policy_id: String,
    #[serde(default)]
    verification_request: Option<Verification>,
    /// Name of evidence that is kept.
    #[serde(default)]
    stored_evidence: Option<String>,
    /// Claims as a policy sees them.
    #[serde(default)]
    claims: Option<Value>,
    #[serde(default)]
    reference_values: std::collections::BTreeMap<String, Value>,
}

fn default_policy() -> String {
    "default_cpu".to_owned()
}

/// Administrators only: a policy of somebody's own costs what it likes within its limits.
pub(super) async fn dry_run(
    State(api): State<Shared>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    admin(&api, &headers, "dry_run")?;
    let request: DryRunRequest = json_body(&headers, body)?;
    let input = match (request.verification_request, request.stored_evidence, request.claims) {
        (Some(one), None, None) => DryRunInput::Evidence(Box::new(one.evaluate("")?)),
        (None, Some(name), None) => {
            let kept = Verification::read(&api.service.evidence(&name).await?)?;
            DryRunInput::Evidence(Box::new(kept.evaluate("")?))
        }
        (None, None, Some(claims @ Value::Object(_))) => DryRunInput::Claims(claims),
        (None, None, Some(_)) => return Err(Problem::request("claims", "claims are an object")),
        _ => {
            let why = "give one of verification_request, stored_evidence and claims";
            return Err(Problem::request("claims", why));
        }
    };
    let run = DryRun {
        policy: request.policy,
        policy_id: request.policy_id,
        input,
        reference_values: request.reference_values,
    };
    Ok(super::json(&api.service.dry_run(&run).await?))
}
