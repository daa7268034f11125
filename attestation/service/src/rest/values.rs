//! `/api/v1/reference-values`.

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{RawBody, Shared, admin, json_body, raw_body};
use crate::api::Api;
use crate::problem::Problem;
use crate::references::{Record, parse_time};
use crate::registry::{Mode, Registration};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Names that begin with it.
    prefix: Option<String>,
    /// Those that have ended too.
    #[serde(default)]
    expired: bool,
}

/// Values of an administrator, without a message around them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    values: std::collections::BTreeMap<String, Value>,
    #[serde(default)]
    expiration: Option<String>,
    /// Added to what is there, not in its place.
    #[serde(default)]
    add: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expire {
    /// RFC 3339; now when absent, never when null.
    #[serde(default = "now")]
    at: Option<String>,
}

fn now() -> Option<String> {
    Some(crate::now_rfc3339())
}

fn described(records: &[Record]) -> Vec<Value> {
    let now = crate::now();
    records.iter().map(|record| record.describe(now)).collect()
}

pub(super) async fn list(
    State(api): State<Shared>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let now = crate::now();
    let prefix = query.prefix.unwrap_or_default();
    let records = api.service.reference_records().await?;
    let shown: Vec<Record> = records
        .into_iter()
        .filter(|record| record.name.starts_with(&prefix) && (query.expired || !record.is_expired(now)))
        .collect();
    Ok(super::list("reference_values", described(&shown)))
}

pub(super) async fn one(State(api): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    Ok(super::json(&api.service.reference_record(&name).await?.describe(crate::now())))
}

/// Registers a message, of an administrator or signed by a trusted key.
pub(super) async fn register_message(
    api: &Api,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Vec<Record>, Problem> {
    let now = crate::now();
    let signed = serde_json::from_slice::<Value>(body).is_ok_and(|message| message["type"] == "signed");
    // Without a token, or with one that is no good, a signed message is as good as its signature.
    let who = if signed { None } else { Some(admin(api, headers, "set_reference_values")?) };
    let registration = api
        .trusted_sources()
        .read(body, who.as_deref(), api.service.default_expiry(now), now)
        .map_err(crate::service::ServiceError::from)?;
    Ok(api.service.register(&registration).await?)
}

pub(super) async fn register(
    State(api): State<Shared>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let body = raw_body(body)?;
    let value: Value = json_body(&headers, Ok(body.clone()))?;
    let records = if value.get("type").is_some() {
        register_message(&api, &headers, &body).await?
    } else {
        let by = admin(&api, &headers, "set_reference_values")?;
        let plain: Plain = json_body(&headers, Ok(body))?;
        if plain.values.len() > kata_cc_kbs_protocol::admin::MAX_REFERENCE_VALUES {
            return Err(Problem::request("values", "too many names, at most 1024 at a time"));
        }
        let expires = match &plain.expiration {
            None => api.service.default_expiry(crate::now()),
            Some(text) => Some(parse_time(text).map_err(|e| Problem::request("expiration", e))?),
        };
        let registration = Registration {
            values: plain.values,
            expires,
            source: crate::references::Source::administrator(),
            mode: if plain.add { Mode::Add } else { Mode::Replace },
            by,
        };
        api.service.register(&registration).await?
    };
    Ok(super::list("registered", described(&records)))
}

pub(super) async fn expire(
    State(api): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let by = admin(&api, &headers, "expire_reference_value")?;
    let request: Expire = json_body(&headers, body)?;
    let at = match &request.at {
        None => None,
        Some(text) => Some(parse_time(text).map_err(|e| Problem::request("at", e))?),
    };
    let record = api.service.expire_reference_value(&name, at, &by).await?;
    Ok(super::json(&record.describe(crate::now())))
}

pub(super) async fn delete(
    State(api): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let by = admin(&api, &headers, "delete_reference_value")?;
    if !api.service.delete_reference_value(&name, &by).await? {
        let why = json!(name.chars().take(64).collect::<String>());
        let why = format!("there is no reference value {why}");
        return Err(Problem::new(StatusCode::NOT_FOUND, "not-found", why).field("name"));
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}
