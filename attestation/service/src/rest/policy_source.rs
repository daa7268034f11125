//! `/api/v1/policy-source`: how it stands with the policy bundle that is followed, and holding an earlier one in force.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::{RawBody, Shared, admin, json_body};
use crate::problem::Problem;

/// Administrators only: errors of a source name addresses and files.
pub(super) async fn status(State(api): State<Shared>, headers: HeaderMap) -> Result<Response, Problem> {
    admin(&api, &headers, "policy_source")?;
    let Some(follower) = api.follower.get() else { return Ok(super::json(&json!({"followed": false}))) };
    Ok(super::json(&json!(follower.status().await?)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    /// Digest of a bundle that is kept, or how it begins; the one before the current without it.
    #[serde(default)]
    digest: Option<String>,
}

pub(super) async fn pin(
    State(api): State<Shared>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let who = admin(&api, &headers, "pin_policy_bundle")?;
    let Pin { digest } = json_body(&headers, body)?;
    Ok(super::json(&json!(api.follower()?.pin(digest.as_deref(), &who).await?)))
}

pub(super) async fn resume(State(api): State<Shared>, headers: HeaderMap) -> Result<Response, Problem> {
    let who = admin(&api, &headers, "resume_policy_source")?;
    Ok(super::json(&json!(api.follower()?.resume(&who).await?)))
}
