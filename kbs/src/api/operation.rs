//! Health, readiness, metrics, keys, and the description of the interface.

use std::io::Seek as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tracing::warn;

use super::{AdminCall, Shared, number, only, query};
use crate::audit;
use crate::error::ApiError;

/// Description of the interface, kept by hand.
pub(super) const OPENAPI: &str = include_str!("../../openapi.json");

/// Largest number of a record: JSON readers take no larger whole numbers for sure.
const MAX_NUMBER: u64 = (1 << 53) - 1;

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

/// Most records of a page of the audit log.
const MAX_PAGE: u64 = 10_000;

/// The audit log as it is, one JSON object a line; with `?after=` (number of a record) and `?limit=` a page of it. It is made in a
/// file without a name and sent from there: it may be larger than memory.
pub(crate) async fn audit_export(State(kbs): State<Shared>, call: AdminCall) -> Result<Response, ApiError> {
    let administrator = call.admit(&kbs, "export audit log").await?;
    let query = query(&call.uri)?;
    only(&query, &["after", "limit"])?;
    let after = number(&query, "after", 0..=MAX_NUMBER)?.unwrap_or(0);
    let limit = number(&query, "limit", 1..=MAX_PAGE)?;
    let records = limit.map_or_else(String::new, |limit| format!(", {limit} records"));
    let asked_for = format!("after {after}{records}");
    audit::asked(&kbs, &administrator, "export audit log", &asked_for).await?;
    let failed = |e: std::io::Error| ApiError::Internal(format!("export of the audit log: {e}"));
    let mut file = tempfile::tempfile().map_err(failed)?;
    kbs.metrics
        .timed("audit-export", kbs.store.audit().export_page(&mut file, after, limit.unwrap_or(u64::MAX)))
        .await?;
    let length = file.stream_position().map_err(failed)?;
    file.rewind().map_err(failed)?;
    let body = Body::from_stream(tokio_util::io::ReaderStream::new(tokio::fs::File::from_std(file)));
    let headers = [
        (header::CONTENT_TYPE, "application/jsonl".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, body).into_response())
}

pub(crate) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

pub(crate) async fn jwks(State(kbs): State<Shared>) -> Json<Value> {
    Json(kbs.service.jwks())
}
