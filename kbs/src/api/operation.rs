//! Health, readiness, metrics, keys, and the description of the interface.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use kata_cc_attestation_service::audit_export::{self, Page};
use serde_json::{Value, json};
use tracing::warn;

use super::{AdminCall, Shared};
use crate::audit;
use crate::error::ApiError;

/// Description of the interface, kept by hand.
pub(super) const OPENAPI: &str = include_str!("../../openapi.json");

/// How long the store may take to answer before it counts as unreachable.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// Whether the process runs: it does, when it answers.
pub(crate) async fn healthz() -> StatusCode {
    StatusCode::OK
}

/// Whether it can serve guests: the store answers, policies and keys are there, and it is not about to end.
pub(crate) async fn readyz(State(kbs): State<Shared>) -> Response {
    let asked = kbs.metrics.timed("ready", kbs.store.ready());
    let store = match tokio::time::timeout(STORE_PATIENCE, asked).await {
        Ok(Ok(_)) => true,
        Ok(Err(why)) => {
            warn!(%why, "store is not ready");
            false
        }
        Err(_) => {
            warn!("store does not answer");
            false
        }
    };
    let keys = kbs.service.jwks()["keys"].as_array().is_some_and(|keys| !keys.is_empty());
    let policies = !kbs.service.policy_ids().await.is_empty();
    let serving = !kbs.draining.load(Ordering::Relaxed);
    let ready = store && keys && policies && serving;
    let checks = json!({"store": store, "keys": keys, "policies": policies, "serving": serving});
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": ready, "checks": checks}))).into_response()
}

pub(crate) async fn metrics(State(kbs): State<Shared>) -> String {
    if let Ok(open) = kbs.sessions.sweep(kata_cc_attestation_service::now()).await {
        kbs.metrics.sessions.set(i64::try_from(open).unwrap_or(i64::MAX));
    }
    kbs.metrics.render()
}

/// The audit log, as [`audit_export`] gives it.
pub(crate) async fn audit_export(State(kbs): State<Shared>, call: AdminCall) -> Result<Response, ApiError> {
    let administrator = call.admit(&kbs, audit_export::ACTION).await?;
    let page = Page::of(&call.uri)?;
    audit::asked(&kbs, &administrator, audit_export::ACTION, &page.to_string()).await?;
    Ok(kbs.metrics.timed("audit-export", page.answer(kbs.store.audit())).await?)
}

pub(crate) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

pub(crate) async fn jwks(State(kbs): State<Shared>) -> Json<Value> {
    Json(kbs.service.jwks())
}
