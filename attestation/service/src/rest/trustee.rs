//! Trustee's paths. Requests are read as leniently as Trustee reads them (unknown members are ignored); answers are Trustee's. Our own are
//! `GET /policy/{id}` and `/reference-value`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use kata_cc_kbs_protocol::admin::{ReferenceValueList, ResourcePolicyText};
use kata_cc_kbs_protocol::service::{EvaluateRequest, PolicyEntry, SetPolicyRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{RawBody, Shared, admin, json_body, raw_body};
use crate::api::{self, binding, hash, init_data, policy_text};
use crate::problem::Problem;
use crate::service::Evaluate;

pub(super) async fn evaluate(
    State(api): State<Shared>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<String, Problem> {
    let request: EvaluateRequest = json_body(&headers, body)?;
    let policy_id = request.policy_ids.first().cloned().unwrap_or_default();
    let mut pieces = Vec::new();
    for one in &request.verification_requests {
        pieces.push(Evaluate {
            tee: one.tee,
            evidence: api::evidence(&one.evidence)?,
            binding: binding(one.runtime_data.as_ref())?,
            hash: hash(one.runtime_data_hash_algorithm.as_deref())?,
            init_data: init_data(one.init_data.as_ref())?,
            policy_id: policy_id.clone(),
        });
    }
    Ok(api.evaluate(&pieces).await?.token)
}

/// Trustee asks for a challenge only where the TEE's verifier makes one (`se`), which none of ours does. The nonce is the one of
/// `/api/v1/challenge`.
#[derive(Debug, Deserialize)]
pub(super) struct ChallengeRequest {
    tee: kata_cc_kbs_protocol::Tee,
}

pub(super) async fn challenge(
    State(api): State<Shared>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<String, Problem> {
    let request: ChallengeRequest = json_body(&headers, body)?;
    tracing::debug!(tee = %request.tee, "challenge");
    Ok(api.challenges.give(crate::now())?.0)
}

pub(super) async fn set_policy(
    State(api): State<Shared>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<StatusCode, Problem> {
    let who = admin(&api, &headers, "set_policy")?;
    let request: SetPolicyRequest = json_body(&headers, body)?;
    api.service.set_policy_by(&request.policy_id, &policy_text(&request.policy)?, &who).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn policies(State(api): State<Shared>) -> Json<Vec<PolicyEntry>> {
    let ids = api.service.policy_ids().await;
    Json(ids.into_iter().map(|policy_id| PolicyEntry { policy_id }).collect())
}

pub(super) async fn policy(
    State(api): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<ResourcePolicyText>, Problem> {
    let (policy, default) = api.service.policy(&id).await?;
    Ok(Json(ResourcePolicyText { policy, default }))
}

pub(super) async fn set_reference_values(
    State(api): State<Shared>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<StatusCode, Problem> {
    super::values::register_message(&api, &headers, &raw_body(body)?).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn reference_values(State(api): State<Shared>) -> Result<Json<ReferenceValueList>, Problem> {
    Ok(Json(ReferenceValueList { reference_values: api.service.reference_values().await? }))
}

pub(super) async fn jwks(State(api): State<Shared>) -> Json<Value> {
    Json(api.service.jwks())
}

/// Where the keys are, as OpenID providers say it: a KBS that is given the address finds them.
pub(super) async fn metadata(State(api): State<Shared>) -> Response {
    let base = api.public_url.as_deref().unwrap_or_default().trim_end_matches('/');
    let jwks = api.service.jwks();
    let keys = jwks.get("keys").and_then(Value::as_array).into_iter().flatten();
    let mut algorithms: Vec<_> = keys.filter_map(|key| key.get("alg")?.as_str()).collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    super::json(&json!({
        "issuer": if base.is_empty() { api.service.broker().issuer() } else { base },
        "jwks_uri": format!("{base}/.well-known/jwks.json"),
        "id_token_signing_alg_values_supported": algorithms,
        "response_types_supported": ["none"],
        "subject_types_supported": ["public"],
    }))
}
