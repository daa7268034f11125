//! What every request passes on its way in and every answer on its way out: an id, a span, the peer's budget, metrics, and the
//! body of an error.
//!
//! The id is ours, in the header `x-request-id` of every answer, in the detail of every error and in every log line of the
//! request, so that whoever reads "refused" in a pod's events finds the line that says why. A caller's `traceparent` (W3C Trace
//! Context) is taken as the parent of the request's span where traces are sent.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use kata_cc_attestation_service::serve::{Peer, REQUEST_TIME};
use kata_cc_daemon::telemetry;
use kata_cc_kbs_protocol::ErrorInformation;
use kata_cc_kbs_protocol::strict;
use serde::Serialize;
use serde_json::Value;
use tracing::{Instrument as _, debug};

use crate::api::Shared;
use crate::checks::FailedCheck;
use crate::error::{ApiError, Failure};

/// Header with the id of a request.
pub(crate) const REQUEST_ID: &str = "x-request-id";
/// Media type of an error.
const PROBLEM: &str = "application/problem+json";

/// Body of every error: problem+json (RFC 9457). What Trustee's clients read, `type` and `detail`, comes first; they pass over the rest.
#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: String,
    detail: String,
    title: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    reason: String,
    instance: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checks: Vec<FailedCheck>,
}

/// The outermost layer.
pub(crate) async fn observe(State(kbs): State<Shared>, mut request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let id = uuid::Uuid::new_v4().simple().to_string();
    if let Ok(value) = HeaderValue::from_str(&id) {
        request.headers_mut().insert(REQUEST_ID, value);
    }
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!(
        "request", otel.name = %format!("{method} {route}"), otel.kind = "server", id, %method, route,
        status = tracing::field::Empty, protocol = tracing::field::Empty, tee = tracing::field::Empty,
    );
    telemetry::take_parent(&span, request.headers());
    let answered = async {
        match admit(&kbs, &request, &route) {
            // A body may be slow in coming.
            Ok(()) => match tokio::time::timeout(REQUEST_TIME, next.run(request)).await {
                Ok(response) => response,
                Err(_) => late(),
            },
            Err(error) => error.into_response(),
        }
    };
    let mut response = answered.instrument(span.clone()).await;
    let status = response.status();
    if !status.is_success() {
        response = failed(response, kbs.max_request, &id);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    span.record("status", status.as_u16());
    kbs.metrics.request(&method, &route, status, begin.elapsed());
    debug!(parent: &span, status = status.as_u16(), elapsed = ?begin.elapsed(), "request");
    response
}

/// Takes a request out of its peer's budget. Health and metrics cost nothing: who watches must see a flood.
fn admit(kbs: &Shared, request: &Request, route: &str) -> Result<(), ApiError> {
    if matches!(route, "/healthz" | "/readyz" | "/metrics") {
        return Ok(());
    }
    let Some(peer) = request.extensions().get::<Peer>() else { return Ok(()) };
    kbs.requests.take(*peer, Instant::now()).map_err(|seconds| {
        kbs.metrics.count("limit", "requests");
        ApiError::TooMany { what: "this address has made too many requests", seconds }
    })
}

fn late() -> Response {
    let mut response = ApiError::TooSlow(REQUEST_TIME).into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Writes the body of an error: ours says what failed, what the router itself refuses is told likewise.
fn failed(response: Response, limit: usize, id: &str) -> Response {
    let (mut parts, body) = response.into_parts();
    // The attestation service's interface tells its errors itself.
    if parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM) {
        return Response::from_parts(parts, body);
    }
    let failure = parts.extensions.remove::<Failure>().or_else(|| router_refusal(parts.status, limit));
    let Some(Failure { name, detail, field, checks }) = failure else {
        return Response::from_parts(parts, body);
    };
    let problem = Problem {
        kind: format!("{}{name}", ErrorInformation::TYPE_PREFIX),
        detail: format!("{detail} (request {id})"),
        title: name,
        status: parts.status.as_u16(),
        field,
        reason: detail,
        instance: format!("urn:kata-cc:request:{id}"),
        checks,
    };
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM));
    Response::from_parts(parts, Body::from(body))
}

fn router_refusal(status: StatusCode, limit: usize) -> Option<Failure> {
    let failure = |name, detail: String| Some(Failure { name, detail, field: None, checks: Vec::new() });
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let error =
                ApiError::TooLarge { limit: limit as u64, by: "http_server.payload_request_size".to_owned() };
            let field = Some("body".to_owned());
            Some(Failure { name: error.name(), detail: error.to_string(), field, checks: Vec::new() })
        }
        StatusCode::METHOD_NOT_ALLOWED => failure(
            "MethodNotAllowed",
            "this path does not take that method, see the header allow".to_owned(),
        ),
        status if status.is_client_error() => {
            failure("InvalidRequestPath", "the request's path or query is not understood".to_owned())
        }
        _ => None,
    }
}

/// A body that must be JSON: its media type, where one is named, and its form ([`strict`]).
pub(crate) fn json_body(headers: &HeaderMap, body: &[u8]) -> Result<Value, ApiError> {
    check_media_type(headers)?;
    Ok(strict::parse(body)?)
}

/// Reads a JSON body, an object, into a type that knows all its members.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, ApiError> {
    let value = json_body(headers, body)?;
    // serde would take an array too, member by member in the order of the type's.
    if !value.is_object() {
        let seen = strict::kind(&value);
        return Err(ApiError::Body(strict::BodyError::Json(format!("expected an object, seen {seen}"))));
    }
    T::deserialize(&value).map_err(|e| {
        let text = e.to_string();
        match wrong_member::<T>(&value, &text) {
            Some(member) => ApiError::Body(strict::BodyError::Value { member, why: text }),
            None => ApiError::Serde(text),
        }
    })
}

/// Most members of a body among which the wrong one is looked for; the types that are read here have fewer.
const MAX_MEMBERS: usize = 32;

/// The member that an error is about. serde names one that is missing or not known between back-ticks; of one of another kind it shows
/// the value alone, but without that member there is another error, or none.
fn wrong_member<T: serde::de::DeserializeOwned>(value: &Value, error: &str) -> Option<String> {
    if error.starts_with("missing field") || error.starts_with("unknown field") {
        return error.split('`').nth(1).map(str::to_owned);
    }
    let members = value.as_object().filter(|members| members.len() <= MAX_MEMBERS)?;
    let about = |name: &&String| {
        let mut others = members.clone();
        others.remove(*name);
        serde_json::from_value::<T>(Value::Object(others))
            .err()
            .is_none_or(|other| other.to_string() != error)
    };
    members.keys().find(about).cloned()
}

/// Whether the body is said to be JSON. Clients that say nothing are believed.
pub(crate) fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    let seen = text.chars().filter(|c| !c.is_control()).take(64).collect();
    Err(ApiError::MediaType { seen, expected: "application/json" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_object() {
        #[derive(Debug, serde::Deserialize)]
        struct One {
            #[expect(dead_code, reason = "it is only read")]
            policy: String,
        }
        let parse = |body: &str| parse::<One>(&HeaderMap::new(), body.as_bytes());
        assert!(parse(r#"{"policy": "p"}"#).is_ok());
        for (body, seen) in
            [(r#"["p"]"#, "an array"), ("[]", "an array"), ("null", "null"), ("1", "a number")]
        {
            let error = parse(body).unwrap_err().to_string();
            assert!(error.contains(&format!("expected an object, seen {seen}")), "{error}");
        }
        assert!(parse("{}").unwrap_err().to_string().contains("policy"));
    }

    #[test]
    fn media_types() {
        let check = |value: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_bytes(value).unwrap());
            check_media_type(&headers).is_ok()
        };
        assert!(check_media_type(&HeaderMap::new()).is_ok());
        for good in [&b"application/json"[..], b"Application/JSON; charset=utf-8", b"application/x+json"] {
            assert!(check(good));
        }
        for bad in [&b"text/plain"[..], b"", b"\xff", b"application/x-www-form-urlencoded", b"text/json"] {
            assert!(!check(bad));
        }
    }
}
