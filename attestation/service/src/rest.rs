//! REST interface of the standalone attestation service: Trustee's `restful-as` paths, `/healthz`, reference values.
//!
//! Errors are `application/problem+json` (RFC 9457). Policies and reference values are set by whoever passes the
//! [`AdminGate`]; everybody who reaches it may have evidence judged and read them.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use kata_cc_kbs_protocol::admin::{ReferenceValueList, ReferenceValueMessage, ResourcePolicyText};
use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_kbs_protocol::service::{
    EvaluateRequest, InitDataInput, PolicyEntry, Problem, RuntimeDataInput, SetPolicyRequest,
};
use kata_cc_kbs_protocol::{MAX_BODY, from_base64_url};
use serde::de::DeserializeOwned;
use tracing::{info, warn};

use crate::gate::AdminGate;
use crate::service::{AttestationService, Binding, Evaluate, ExpectedInitData, ServiceError};
use crate::token::TokenError;

type Shared = Arc<AttestationService>;
type Gate = Extension<Arc<AdminGate>>;

/// Media type of an error.
const PROBLEM: &str = "application/problem+json";

/// All routes.
pub fn router(service: Shared, gate: AdminGate) -> Router {
    Router::new()
        .route("/attestation", post(evaluate))
        .route("/policy", post(set_policy).get(policies))
        .route("/policy/{id}", get(policy))
        .route("/reference-value", post(set_reference_values).get(reference_values))
        .route("/.well-known/jwks.json", get(jwks))
        .route("/healthz", get(|| async { StatusCode::OK }))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "not-found", "no such path") })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(Extension(Arc::new(gate)))
        .layer(map_response(as_problem))
        .with_state(service)
}

fn problem(status: StatusCode, kind: &str, detail: impl std::fmt::Display) -> Response {
    let body = Problem {
        kind: format!("urn:kata-cc:attestation-service:{kind}"),
        title: kind.replace('-', " "),
        status: status.as_u16(),
        detail: detail.to_string(),
    };
    let kind = [(header::CONTENT_TYPE, PROBLEM)];
    (status, kind, serde_json::to_vec(&body).unwrap_or_default()).into_response()
}

/// What the router itself refuses (method, size, path) is a problem like the rest.
async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE);
    if !status.is_client_error() || kind.is_some_and(|kind| kind == PROBLEM) {
        return response;
    }
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => {
            problem(status, "too-large", format!("the body has more than {MAX_BODY} bytes"))
        }
        StatusCode::METHOD_NOT_ALLOWED => problem(status, "method", "this path does not take that method"),
        _ => problem(status, "request", "the request is not understood"),
    }
}

impl IntoResponse for ServiceError {
    fn into_response(self) -> Response {
        match &self {
            Self::Refused(refusal) => problem(StatusCode::UNPROCESSABLE_ENTITY, refusal.reason.name(), &self),
            Self::Policy(_) => problem(StatusCode::BAD_REQUEST, "policy", &self),
            Self::PolicyId(_) => problem(StatusCode::NOT_FOUND, "policy-id", &self),
            Self::Request(_) => problem(StatusCode::BAD_REQUEST, "request", &self),
            Self::Admin(_) => problem(StatusCode::UNAUTHORIZED, "admin", &self),
            Self::Token(TokenError::TooLarge(_)) => {
                problem(StatusCode::UNPROCESSABLE_ENTITY, "token-size", &self)
            }
            Self::Appraisal(_) | Self::Store(_) | Self::Token(_) | Self::SigningKey { .. } => {
                warn!(error = %self, "request failed");
                problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", &self)
            }
        }
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ServiceError> {
    serde_json::from_slice(body)
        .map_err(|e| ServiceError::Request(format!("body is not the expected JSON: {e}")))
}

fn base64_url(what: &str, text: &str) -> Result<Vec<u8>, ServiceError> {
    from_base64_url(text)
        .ok_or_else(|| ServiceError::Request(format!("{what} is not base64url without padding")))
}

/// Reads a policy that travels as base64url.
pub fn policy_text(encoded: &str) -> Result<String, ServiceError> {
    String::from_utf8(base64_url("policy", encoded)?)
        .map_err(|_| ServiceError::Request("policy is not UTF-8 text".to_owned()))
}

async fn evaluate(State(service): State<Shared>, body: Bytes) -> Result<String, ServiceError> {
    let request: EvaluateRequest = parse(&body)?;
    let [one] = request.verification_requests.as_slice() else {
        return Err(ServiceError::Request(format!(
            "{} verification requests, exactly one is evaluated: evidence of devices is not supported",
            request.verification_requests.len()
        )));
    };
    let hash = one.runtime_data_hash_algorithm.as_deref().filter(|name| !name.is_empty());
    let hash = match hash {
        None => HashAlgorithm::Sha384,
        Some(name) => HashAlgorithm::from_name(name).ok_or_else(|| {
            ServiceError::Request(format!("unknown hash {name:?}, known are sha256, sha384, sha512"))
        })?,
    };
    let binding = match &one.runtime_data {
        None => None,
        Some(RuntimeDataInput::Raw(text)) => Some(Binding::Raw(base64_url("runtime_data", text)?)),
        Some(RuntimeDataInput::Structured(value)) => Some(Binding::Structured(value.clone())),
    };
    let init_data = match &one.init_data {
        None => None,
        Some(InitDataInput::InitDataToml(text)) => Some(ExpectedInitData::Toml(text.clone())),
        Some(InitDataInput::InitDataDigest(text)) => {
            Some(ExpectedInitData::Digest(base64_url("init_data_digest", text)?))
        }
    };
    let evaluate = Evaluate {
        tee: one.tee,
        evidence: parse(&base64_url("evidence", &one.evidence)?)?,
        binding,
        hash,
        init_data,
        policy_id: request.policy_ids.first().cloned().unwrap_or_default(),
    };
    match service.evaluate(&evaluate).await {
        Ok(verdict) => {
            info!(tee = %one.tee, status = verdict.vector.status().name(), measurement = verdict.measurement, "verdict");
            Ok(verdict.token)
        }
        Err(error) => {
            info!(tee = %one.tee, status = "refused", %error, "verdict");
            Err(error)
        }
    }
}

/// The gate of every call that changes something; leaves a trace.
fn admin(gate: &AdminGate, headers: &HeaderMap, action: &'static str) -> Result<(), ServiceError> {
    match gate.check(headers, crate::now()) {
        Ok(()) => {
            info!(action, "admin");
            Ok(())
        }
        Err(why) => {
            info!(action, %why, "admin refused");
            Err(ServiceError::Admin(why))
        }
    }
}

async fn set_policy(
    State(service): State<Shared>,
    Extension(gate): Gate,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(), ServiceError> {
    admin(&gate, &headers, "set_policy")?;
    let request: SetPolicyRequest = parse(&body)?;
    service.set_policy(&request.policy_id, &policy_text(&request.policy)?).await
}

async fn policies(State(service): State<Shared>) -> Json<Vec<PolicyEntry>> {
    Json(service.policy_ids().await.into_iter().map(|policy_id| PolicyEntry { policy_id }).collect())
}

async fn policy(
    State(service): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<ResourcePolicyText>, ServiceError> {
    let (policy, default) = service.policy(&id).await?;
    Ok(Json(ResourcePolicyText { policy, default }))
}

async fn set_reference_values(
    State(service): State<Shared>,
    Extension(gate): Gate,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(), ServiceError> {
    admin(&gate, &headers, "set_reference_values")?;
    let message: ReferenceValueMessage = parse(&body)?;
    let values = message.values().map_err(|e| ServiceError::Request(e.to_string()))?;
    service.set_reference_values(&values).await
}

async fn reference_values(State(service): State<Shared>) -> Result<Json<ReferenceValueList>, ServiceError> {
    Ok(Json(ReferenceValueList { reference_values: service.reference_values().await? }))
}

async fn jwks(State(service): State<Shared>) -> Json<serde_json::Value> {
    Json(service.jwks())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jws::SigningKey;
    use crate::store::{Store, StoreKey};
    use crate::token::TokenBroker;
    use crate::verify::SampleVerifier;
    use axum::body::Body;
    use axum::http::Request;
    use kata_cc_kbs_protocol::base64_url;
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    async fn service() -> Shared {
        let key = SigningKey::from_pem(SigningKey::generate_pem("ES256").unwrap().as_bytes()).unwrap();
        let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
        let verifier = Box::new(SampleVerifier { enabled: false });
        Arc::new(AttestationService::new(store, verifier, TokenBroker::new(key, "test", 5)).await.unwrap())
    }

    async fn post_status(router: &Router, path: &str, token: Option<&str>, body: &Value) -> StatusCode {
        let mut request = Request::post(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Body::from(body.to_string())).unwrap();
        router.clone().oneshot(request).await.unwrap().status()
    }

    /// A key broker may trust our tokens: nobody but the administrator decides what they say.
    #[tokio::test]
    async fn policies_and_reference_values_are_the_administrators() {
        let key = SigningKey::from_pem(SigningKey::generate_pem("EdDSA").unwrap().as_bytes()).unwrap();
        let public = key.public_pem().unwrap();
        let claims = json!({"role": "admin", "exp": crate::now() + 60});
        let token = key.sign(&json!({}), &claims).unwrap();
        let policy = json!({"policy_id": "default_cpu", "type": "rego",
            "policy": base64_url(b"package policy\ntrust_claims := {\"hardware\": 2}")});
        let values = ReferenceValueMessage::sample(&[("x".to_owned(), json!(["y"]))].into());
        let values = serde_json::to_value(&values).unwrap();
        let service = service().await;
        let open = router(Arc::clone(&service), AdminGate::for_key(public.as_bytes()).unwrap());
        let closed = router(Arc::clone(&service), AdminGate::closed());
        for (path, body) in [("/policy", &policy), ("/reference-value", &values)] {
            assert_eq!(post_status(&open, path, None, body).await, StatusCode::UNAUTHORIZED);
            assert_eq!(post_status(&closed, path, Some(&token), body).await, StatusCode::UNAUTHORIZED);
        }
        assert!(service.reference_values().await.unwrap().is_empty());
        assert!(service.policy("default_cpu").await.unwrap().1);
        for (path, body) in [("/policy", &policy), ("/reference-value", &values)] {
            assert_eq!(post_status(&open, path, Some(&token), body).await, StatusCode::OK, "{path}");
        }
        assert_eq!(service.reference_values().await.unwrap()["x"], json!(["y"]));
        assert!(!service.policy("default_cpu").await.unwrap().1);
    }
}
