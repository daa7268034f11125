//! Resources: `repository/type/tag` to bytes, with their versions. Guests get the latest, or by `?version=N` one that is kept; the
//! media type is kept with each version and shown in its history, since an encrypted answer has one of its own.

use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use kata_cc_attestation_service::serve::Peer;
use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_kbs_protocol::admin::{ResourceEntry, ResourceHistory, ResourceList, ResourceVersion};
use kata_cc_store::{State as VersionState, VersionInfo, Write};
use tracing::info;

use super::{AdminCall, Shared, known_caller, number, only, query};
use crate::audit;
use crate::checks;
use crate::error::ApiError;
use crate::plugins::REPOSITORY;
use crate::state::Kbs;

/// Entries of a page of the listing, unless it is told.
const PAGE: u64 = 1000;
/// Most that may be told.
const MAX_PAGE: u64 = 10_000;
/// Largest number of a version: JSON readers take no larger whole numbers for sure.
const MAX_VERSION: u64 = (1 << 53) - 1;
/// Media type of what was uploaded without one.
const OCTETS: &str = "application/octet-stream";
/// Most characters of a media type.
const MAX_MEDIA_TYPE: usize = 128;

type Parts = Path<(String, String, String)>;

fn resource_path(Path((repository, kind, tag)): Parts) -> Result<ResourcePath, ApiError> {
    ResourcePath::new(&repository, &kind, &tag).map_err(|e| ApiError::Path(e.to_string()))
}

fn missing(path: &ResourcePath) -> ApiError {
    ApiError::NotFound(format!("resource {} does not exist", path.uri()))
}

pub(crate) async fn read(
    State(kbs): State<Shared>,
    Extension(peer): Extension<Peer>,
    parts: Parts,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let result = release(&kbs, peer, parts, &uri, &headers).await;
    kbs.metrics.count("resource", result.as_ref().map_or_else(|e| e.name(), |_| "ok"));
    match result {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Token, then policy, then existence: a denied guest does not learn what exists.
async fn release(
    kbs: &Kbs,
    peer: Peer,
    parts: Parts,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Vec<u8>, ApiError> {
    let begin = Instant::now();
    let path = resource_path(parts)?;
    let query = query(uri)?;
    let wanted = number(&query, "version", 1..=MAX_VERSION)?;
    let caller = known_caller(kbs, Some(peer), "resource", headers).await?;
    let (status, name) = (caller.status().to_owned(), path.to_string());
    let segments = path.segments().map(str::to_owned);
    let decision = kbs.policy.decide(&caller.token.document, "resource", &segments, &query).await?;
    if !decision.allow {
        let checks = checks::of_claims(&caller.token.claims);
        let error = ApiError::PolicyDeny { why: decision.explanation, checks };
        info!(resource = name, status, verdict = "denied", reason = %error, "resource");
        audit::refused(kbs, &caller, &decision.digest, &name, &error.to_string()).await?;
        return Err(error);
    }
    let stored = kbs.metrics.timed("get", kbs.store.get_version(REPOSITORY, &name, wanted)).await?;
    let Some(stored) = stored else {
        info!(resource = name, status, verdict = "unknown", "resource");
        let error = match wanted {
            None => missing(&path),
            Some(version) => {
                ApiError::NotFound(format!("resource {} has no version {version} (any more)", path.uri()))
            }
        };
        audit::refused(kbs, &caller, &decision.digest, &name, &error.to_string()).await?;
        return Err(error);
    };
    let version = stored.info.version;
    let body = match caller.encrypt(kbs, &stored.value) {
        Ok(body) => body,
        Err(error) => {
            audit::refused(kbs, &caller, &decision.digest, &name, &error.to_string()).await?;
            return Err(error);
        }
    };
    audit::released(kbs, &caller, &decision.digest, &name, Some(version)).await?;
    let protocol = caller.version.name();
    info!(resource = name, version, status, verdict = "released", protocol, "resource");
    kbs.metrics.step("resource", None, begin);
    Ok(body)
}

/// The media type of an upload, which must be one.
fn media_type(headers: &HeaderMap) -> Result<String, ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(OCTETS.to_owned()) };
    let plain = |b: u8| b.is_ascii_graphic() || b == b' ';
    let text = value.to_str().ok().filter(|text| {
        text.len() <= MAX_MEDIA_TYPE && text.bytes().all(plain) && text.split_once('/').is_some()
    });
    text.map(str::to_owned).ok_or_else(|| {
        let seen = String::from_utf8_lossy(value.as_bytes());
        let seen = seen.chars().filter(|c| !c.is_control()).take(64).collect();
        ApiError::MediaType { seen, expected: "type/subtype of at most 128 printable characters" }
    })
}

pub(crate) async fn write(
    State(kbs): State<Shared>,
    call: AdminCall,
    parts: Parts,
    body: Bytes,
) -> Result<(), ApiError> {
    let administrator = call.admit(&kbs, "write resource").await?;
    let path = resource_path(parts)?;
    let (limit, by) = kbs.settings.load().limits.resource(path.repository());
    if body.len() as u64 > limit {
        return Err(ApiError::TooLarge { limit, by });
    }
    let (name, who) = (path.to_string(), administrator.to_string());
    let content_type = media_type(&call.headers)?;
    let write = Write { value: &body, content_type: &content_type, who: &who };
    let record = audit::admin(&administrator, "write resource", &name);
    let written = kbs.store.put_version(REPOSITORY, &name, write, Some(record));
    let version = kbs.metrics.timed("put", written).await?;
    info!(resource = name, version, "resource written");
    Ok(())
}

pub(crate) async fn delete(State(kbs): State<Shared>, call: AdminCall, parts: Parts) -> Result<(), ApiError> {
    let administrator = call.admit(&kbs, "delete resource").await?;
    let path = resource_path(parts)?;
    let (name, who) = (path.to_string(), administrator.to_string());
    let record = audit::admin(&administrator, "delete resource", &name);
    let erased = kbs.store.erase(REPOSITORY, &name, &who, Some(record));
    let gone = kbs.metrics.timed("delete", erased).await?;
    gone.map(drop).ok_or_else(|| missing(&path))
}

fn told(info: VersionInfo) -> ResourceVersion {
    let state = match info.state {
        VersionState::Live => "live",
        VersionState::Erased => "erased",
        VersionState::Deleted => "deleted",
    };
    ResourceVersion {
        version: info.version,
        state: state.to_owned(),
        size: info.size,
        content_type: info.content_type,
        modified: info.modified,
        who: info.who,
    }
}

/// Versions of a name, the latest first.
pub(super) async fn versions(kbs: &Kbs, namespace: &str, name: &str) -> Result<ResourceHistory, ApiError> {
    let all = kbs.metrics.timed("history", kbs.store.history(namespace, name)).await?;
    Ok(ResourceHistory { versions: all.into_iter().map(told).collect() })
}

pub(crate) async fn history(
    State(kbs): State<Shared>,
    call: AdminCall,
    parts: Parts,
) -> Result<Json<ResourceHistory>, ApiError> {
    call.admit(&kbs, "read history of resource").await?;
    let path = resource_path(parts)?;
    only(&query(&call.uri)?, &[])?;
    let history = versions(&kbs, REPOSITORY, &path.to_string()).await?;
    if history.versions.is_empty() { Err(missing(&path)) } else { Ok(Json(history)) }
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
