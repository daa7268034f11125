//! `/api/v1/evidence`: evidence that administrators keep to try policies on it. Only they read it: it names chips.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::v1::Verification;
use super::{RawBody, Shared, admin, json_body, list};
use crate::problem::Problem;

pub(super) async fn all(State(api): State<Shared>, headers: HeaderMap) -> Result<Response, Problem> {
    admin(&api, &headers, "list_evidence")?;
    let kept = api.service.kept_evidence().await?;
    let told = kept.iter().map(|e| json!({"name": e.name, "size": e.size, "modified": e.modified}));
    Ok(list("evidence", told.collect::<Vec<_>>()))
}

pub(super) async fn one(
    State(api): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    admin(&api, &headers, "read_evidence")?;
    Ok(super::json(&api.service.evidence(&name).await?))
}

pub(super) async fn keep(
    State(api): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let who = admin(&api, &headers, "keep_evidence")?;
    let request: Value = json_body(&headers, body)?;
    // Has the form of evidence, so that a dry run can read it.
    Verification::read(&request)?.evaluate("")?;
    api.service.keep_evidence(&name, &request, &who).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn forget(
    State(api): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let who = admin(&api, &headers, "delete_evidence")?;
    api.service.forget_evidence(&name, &who).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
