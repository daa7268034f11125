//! The HTTP interface: Trustee's paths under `/kbs/v0`, and ours: `admin/resources`, `resource-policy/text`,
//! `attestation-policy/{id}`, `reference-value` (list), deletion of reference values, `/.well-known/jwks.json`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use kata_cc_attestation_service::rest::policy_text;
use kata_cc_kbs_protocol::admin::{
    ReferenceValueList, ReferenceValueMessage, ResourceEntry, ResourceList, ResourcePolicyText,
    SetAttestationPolicy, SetResourcePolicy,
};
use kata_cc_kbs_protocol::{SESSION_COOKIE, TeePubKey};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::info;

use crate::admin::bearer;
use crate::error::ApiError;
use crate::state::Kbs;
use crate::{handshake, plugins, policy};

pub(crate) type Shared = Arc<Kbs>;

/// All routes.
pub(crate) fn router(kbs: Shared) -> Router {
    let limit = kbs.max_request;
    Router::new()
        .route("/kbs/v0/auth", post(handshake::auth))
        .route("/kbs/v0/attest", post(handshake::attest))
        .route("/kbs/v0/admin/resources", get(list_resources))
        .route("/kbs/v0/resource-policy", post(set_resource_policy).get(resource_policies))
        .route("/kbs/v0/resource-policy/text", get(resource_policy))
        .route("/kbs/v0/attestation-policy", post(set_attestation_policy))
        .route("/kbs/v0/attestation-policy/{id}", get(attestation_policy))
        .route("/kbs/v0/reference-value", post(set_reference_values).get(reference_values))
        .route("/kbs/v0/reference-value/{*id}", get(reference_value).delete(delete_reference_value))
        .route("/kbs/v0/{plugin}", any(plugins::http::call))
        .route("/kbs/v0/{plugin}/{*rest}", any(plugins::http::call))
        .route("/healthz", get(|| async { StatusCode::OK }))
        .route("/metrics", get(metrics))
        .route("/.well-known/jwks.json", get(jwks))
        .fallback(|uri: Uri| async move { ApiError::Path(uri.path().chars().take(200).collect()) })
        .layer(DefaultBodyLimit::max(limit))
        .with_state(kbs)
}

/// Reads a JSON body, whatever its content type.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|e| ApiError::Serde(e.to_string()))
}

/// Session id of a request.
pub(crate) fn session_id(headers: &HeaderMap) -> Option<&str> {
    headers.get_all(header::COOKIE).iter().find_map(|value| {
        value.to_str().ok()?.split(';').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name.trim() == SESSION_COOKIE).then(|| value.trim())
        })
    })
}

async fn metrics(State(kbs): State<Shared>) -> String {
    kbs.metrics
        .sessions
        .set(i64::try_from(kbs.sessions.sweep(kata_cc_attestation_service::now())).unwrap_or(0));
    kbs.metrics.render()
}

async fn jwks(State(kbs): State<Shared>) -> Json<Value> {
    Json(kbs.service.jwks())
}

/// Claims of the caller's attestation token: that of its session, else the bearer's.
pub(crate) fn guest(kbs: &Kbs, headers: &HeaderMap) -> Result<Value, ApiError> {
    let now = kata_cc_attestation_service::now();
    let session = session_id(headers).and_then(|id| kbs.sessions.guest(id, now));
    let token = match (&session, bearer(headers)) {
        (Some(attested), _) => attested.token.as_str(),
        (None, Some(token)) => token,
        (None, None) => {
            return Err(ApiError::TokenNotFound(
                "attest first: no attested session and no bearer token".to_owned(),
            ));
        }
    };
    kbs.tokens.verify(token, now).map_err(|e| ApiError::TokenVerifier(e.to_string()))
}

pub(crate) fn guest_key(kbs: &Kbs, claims: &Value) -> Result<TeePubKey, ApiError> {
    let found = kbs.key_paths.iter().find_map(|path| claims.pointer(path));
    let key =
        found.ok_or_else(|| ApiError::TokenVerifier("the token names no key of the guest".to_owned()))?;
    serde_json::from_value(key.clone()).map_err(|e| ApiError::TokenVerifier(format!("key of the guest: {e}")))
}

/// The gate of every admin call; leaves a trace of who did what. Returns the role.
pub(crate) fn admin(kbs: &Kbs, headers: &HeaderMap, uri: &Uri, action: &str) -> Result<String, ApiError> {
    let passed = kbs.gate.check(headers, uri, kata_cc_attestation_service::now());
    kbs.metrics.count("admin", if passed.is_ok() { "ok" } else { "denied" });
    match passed {
        Ok(role) => {
            info!(role, action, target = uri.path(), "admin");
            Ok(role)
        }
        Err(error) => {
            info!(action, target = uri.path(), %error, "admin refused");
            Err(error)
        }
    }
}

async fn list_resources(
    State(kbs): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<ResourceList>, ApiError> {
    admin(&kbs, &headers, &uri, "list resources")?;
    let entries = kbs.store.list(plugins::REPOSITORY).await?;
    let read = |e: kata_cc_attestation_service::store::Entry| ResourceEntry {
        path: e.name,
        size: e.size,
        modified: e.modified,
    };
    Ok(Json(ResourceList { resources: entries.into_iter().map(read).collect() }))
}

async fn set_resource_policy(
    State(kbs): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(), ApiError> {
    admin(&kbs, &headers, &uri, "set resource policy")?;
    let request: SetResourcePolicy = parse(&body)?;
    kbs.policy.set(&policy_text(&request.policy)?).await
}

async fn resource_policies(
    State(kbs): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<Vec<&'static str>>, ApiError> {
    admin(&kbs, &headers, &uri, "list resource policies")?;
    Ok(Json(vec![policy::NAME]))
}

async fn resource_policy(
    State(kbs): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<ResourcePolicyText>, ApiError> {
    admin(&kbs, &headers, &uri, "read resource policy")?;
    let (policy, default) = kbs.policy.text().await?;
    Ok(Json(ResourcePolicyText { policy, default }))
}

async fn set_attestation_policy(
    State(kbs): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(), ApiError> {
    admin(&kbs, &headers, &uri, "set attestation policy")?;
    let request: SetAttestationPolicy = parse(&body)?;
    let text = policy_text(&request.policy)?;
    Ok(kbs.service.set_policy(&request.policy_id, &text).await?)
}

async fn attestation_policy(
    State(kbs): State<Shared>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<ResourcePolicyText>, ApiError> {
    admin(&kbs, &headers, &uri, "read attestation policy")?;
    let (policy, default) = kbs.service.policy(&id).await?;
    Ok(Json(ResourcePolicyText { policy, default }))
}

async fn set_reference_values(
    State(kbs): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    admin(&kbs, &headers, &uri, "set reference values")?;
    let message: ReferenceValueMessage = parse(&body)?;
    let values = message.values().map_err(|e| ApiError::Rvps(e.to_string()))?;
    kbs.service.set_reference_values(&values).await?;
    Ok([(header::CONTENT_TYPE, "application/json")].into_response())
}

async fn reference_values(
    State(kbs): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<ReferenceValueList>, ApiError> {
    admin(&kbs, &headers, &uri, "list reference values")?;
    Ok(Json(ReferenceValueList { reference_values: kbs.service.reference_values().await? }))
}

async fn reference_value(
    State(kbs): State<Shared>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    admin(&kbs, &headers, &uri, "read reference value")?;
    let value = kbs.service.reference_values().await?.remove(&id);
    value.map(Json).ok_or_else(|| ApiError::NotFound(format!("reference value {id} does not exist")))
}

async fn delete_reference_value(
    State(kbs): State<Shared>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<(), ApiError> {
    admin(&kbs, &headers, &uri, "delete reference value")?;
    if kbs.service.delete_reference_value(&id).await? {
        return Ok(());
    }
    Err(ApiError::NotFound(format!("reference value {id} does not exist")))
}
