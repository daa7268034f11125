//! Resources: `repository/type/tag` to bytes.

use std::time::Instant;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_kbs_protocol::admin::{ResourceEntry, ResourceList};
use tracing::info;

use super::{AdminCall, Shared, caller, number, only, query};
use crate::error::ApiError;
use crate::state::Kbs;

/// Namespace of resources in the store.
pub(crate) const REPOSITORY: &str = "repository";
/// Entries of a page of the listing, unless it is told.
const PAGE: u64 = 1000;
/// Most that may be told.
const MAX_PAGE: u64 = 10_000;

type Parts = Path<(String, String, String)>;

fn resource_path(Path((repository, kind, tag)): Parts) -> Result<ResourcePath, ApiError> {
    ResourcePath::new(&repository, &kind, &tag).map_err(|e| ApiError::Path(e.to_string()))
}

fn missing(path: &ResourcePath) -> ApiError {
    ApiError::NotFound(format!("resource {} does not exist", path.uri()))
}

pub(crate) async fn read(State(kbs): State<Shared>, parts: Parts, uri: Uri, headers: HeaderMap) -> Response {
    let result = release(&kbs, parts, &uri, &headers).await;
    kbs.metrics.count("resource", result.as_ref().map_or_else(|e| e.name(), |_| "ok"));
    match result {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Token, then policy, then existence: a denied guest does not learn what exists.
async fn release(kbs: &Kbs, parts: Parts, uri: &Uri, headers: &HeaderMap) -> Result<Vec<u8>, ApiError> {
    let begin = Instant::now();
    let path = resource_path(parts)?;
    let query = query(uri)?;
    let caller = caller(kbs, headers).await?;
    let status = caller.status();
    let segments = path.segments().map(str::to_owned);
    if let Err(error) = kbs.policy.check(&caller.claims, "resource", &segments, &query).await {
        info!(resource = %path, status, verdict = "denied", reason = %error, "resource");
        return Err(error);
    }
    let stored = kbs.metrics.timed("get", kbs.store.get(REPOSITORY, &path.to_string())).await?;
    let Some(plain) = stored else {
        info!(resource = %path, status, verdict = "unknown", "resource");
        return Err(missing(&path));
    };
    let body = caller.encrypt(kbs, &plain)?;
    info!(resource = %path, status, verdict = "released", protocol = caller.version.name(), "resource");
    kbs.metrics.step("resource", None, begin);
    Ok(body)
}

pub(crate) async fn write(
    State(kbs): State<Shared>,
    call: AdminCall,
    parts: Parts,
    body: Bytes,
) -> Result<(), ApiError> {
    call.admit(&kbs, "write resource").await?;
    let path = resource_path(parts)?;
    let (limit, by) = kbs.settings.load().limits.resource(path.repository());
    if body.len() as u64 > limit {
        return Err(ApiError::TooLarge { limit, by });
    }
    Ok(kbs.metrics.timed("put", kbs.store.put(REPOSITORY, &path.to_string(), &body)).await?)
}

pub(crate) async fn delete(
    State(kbs): State<Shared>,
    call: AdminCall,
    parts: Parts,
) -> Result<(), ApiError> {
    call.admit(&kbs, "delete resource").await?;
    let path = resource_path(parts)?;
    let gone = kbs.metrics.timed("delete", kbs.store.delete(REPOSITORY, &path.to_string())).await?;
    if gone { Ok(()) } else { Err(missing(&path)) }
}

/// A page of the listing, in the order of paths: `?prefix=`, `?after=` (the last path of the page before), `?limit=`.
pub(crate) async fn list(State(kbs): State<Shared>, call: AdminCall) -> Result<Json<ResourceList>, ApiError> {
    call.admit(&kbs, "list resources").await?;
    let query = query(&call.uri)?;
    only(&query, &["prefix", "after", "limit"])?;
    let limit = number(&query, "limit", 1..=MAX_PAGE)?.unwrap_or(PAGE) as usize;
    let text = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let (prefix, after) = (text("prefix"), text("after"));
    let entries = kbs.metrics.timed("list", kbs.store.list(REPOSITORY)).await?;
    let mut entries = entries
        .into_iter()
        .filter(|entry| entry.name.starts_with(prefix) && entry.name.as_str() > after)
        .map(|entry| ResourceEntry { path: entry.name, size: entry.size, modified: entry.modified });
    let resources: Vec<ResourceEntry> = entries.by_ref().take(limit).collect();
    let more = entries.next().is_some();
    let next = resources.last().filter(|_| more).map(|last| last.path.clone());
    Ok(Json(ResourceList { resources, next }))
}
