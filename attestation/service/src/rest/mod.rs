//! REST interface of the standalone attestation service: Trustee's `restful-as` paths ([`trustee`]), our own under `/api/v1`
//! ([`v1`], [`values`]), and health, metrics, keys and the description of all of it (`/openapi.json`).
//!
//! Errors are `application/problem+json` (RFC 9457). Policies, reference values and keys are changed by whoever passes the
//! [`AdminGate`](crate::gate::AdminGate) (reference values also by a signed message of a trusted key); everybody who reaches it may
//! have evidence judged and read them.

mod evidence;
mod policy_source;
mod trustee;
mod v1;
mod values;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use kata_cc_kbs_protocol::MAX_BODY;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::Api;
pub use crate::api::policy_text;
use kata_cc_daemon::telemetry;
use tracing::Instrument as _;

use crate::problem::{CURRENT_REQUEST, MEDIA_TYPE, Problem, REQUEST_ID};

type Shared = Arc<Api>;
type RawBody = Result<Bytes, BytesRejection>;

/// Description of the interface.
pub const OPENAPI: &str = include_str!("../../openapi.json");

/// A path and what answers there, by method.
type Route = (&'static str, Vec<(Method, MethodRouter<Shared>)>);

/// Every path, as it stands in the description.
fn routes() -> Vec<Route> {
    let (g, p, u, d) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    vec![
        ("/attestation", vec![(p.clone(), post(trustee::evaluate))]),
        ("/challenge", vec![(p.clone(), post(trustee::challenge))]),
        ("/policy", vec![(p.clone(), post(trustee::set_policy)), (g.clone(), get(trustee::policies))]),
        ("/policy/{id}", vec![(g.clone(), get(trustee::policy))]),
        (
            "/reference-value",
            vec![
                (p.clone(), post(trustee::set_reference_values)),
                (g.clone(), get(trustee::reference_values)),
            ],
        ),
        ("/.well-known/jwks.json", vec![(g.clone(), get(trustee::jwks))]),
        ("/.well-known/openid-configuration", vec![(g.clone(), get(trustee::metadata))]),
        ("/healthz", vec![(g.clone(), get(|| async { StatusCode::OK }))]),
        ("/readyz", vec![(g.clone(), get(ready))]),
        ("/metrics", vec![(g.clone(), get(metrics))]),
        ("/openapi.json", vec![(g.clone(), get(openapi))]),
        ("/api/v1/evaluate", vec![(p.clone(), post(v1::evaluate))]),
        ("/api/v1/explain", vec![(p.clone(), post(v1::explain))]),
        ("/api/v1/challenge", vec![(p.clone(), post(v1::challenge))]),
        ("/api/v1/tokens/verify", vec![(p.clone(), post(v1::verify_token))]),
        ("/api/v1/tokens/keys", vec![(g.clone(), get(trustee::jwks))]),
        ("/api/v1/tokens/keys/rotate", vec![(p.clone(), post(v1::rotate))]),
        ("/api/v1/audit", vec![(g.clone(), get(v1::audit))]),
        ("/api/v1/policies", vec![(g.clone(), get(v1::policies))]),
        ("/api/v1/policies/dry-run", vec![(p.clone(), post(v1::dry_run))]),
        (
            "/api/v1/policies/{id}",
            vec![
                (g.clone(), get(v1::policy)),
                (u.clone(), put(v1::set_policy)),
                (d.clone(), delete(v1::delete_policy)),
            ],
        ),
        ("/api/v1/policies/{id}/versions", vec![(g.clone(), get(v1::versions))]),
        ("/api/v1/policies/{id}/versions/{version}", vec![(g.clone(), get(v1::version))]),
        ("/api/v1/policy-source", vec![(g.clone(), get(policy_source::status))]),
        (
            "/api/v1/policy-source/pin",
            vec![(u.clone(), put(policy_source::pin)), (d.clone(), delete(policy_source::resume))],
        ),
        ("/api/v1/evidence", vec![(g.clone(), get(evidence::all))]),
        (
            "/api/v1/evidence/{name}",
            vec![
                (g.clone(), get(evidence::one)),
                (u.clone(), put(evidence::keep)),
                (d.clone(), delete(evidence::forget)),
            ],
        ),
        (
            "/api/v1/reference-values",
            vec![(g.clone(), get(values::list)), (p.clone(), post(values::register))],
        ),
        ("/api/v1/reference-values/{name}", vec![(g, get(values::one)), (d, delete(values::delete))]),
        ("/api/v1/reference-values/{name}/expire", vec![(p, post(values::expire))]),
    ]
}

/// All routes.
pub fn router(api: Arc<Api>) -> Router {
    let mut router = Router::new();
    for (path, methods) in routes() {
        for (_, method) in methods {
            router = router.route(path, method);
        }
    }
    router
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "path", "no such path").into_response() })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", "this path does not take that method")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(Arc::clone(&api), around))
        .with_state(api)
}

/// Around every request: its id, its time, its metrics; whatever goes wrong is told as a problem.
async fn around(
    State(api): State<Shared>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let given = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok());
    let fits = |id: &&str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let id = given.filter(fits).map_or_else(|| uuid::Uuid::new_v4().simple().to_string(), str::to_owned);
    let method = request.method().clone();
    let route = path.as_ref().map_or("other", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!(
        "request", otel.name = %format!("{method} {route}"), otel.kind = "server", id, %method, route,
        status = tracing::field::Empty,
    );
    telemetry::take_parent(&span, request.headers());
    let answer = async {
        match tokio::time::timeout(api.request_time, next.run(request)).await {
            Ok(response) => as_problem(response),
            Err(_) => {
                let why = format!("the request took longer than {:?}", api.request_time);
                let mut response = Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", why).into_response();
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                response
            }
        }
    };
    let mut response = CURRENT_REQUEST.scope(id.clone(), answer).instrument(span.clone()).await;
    span.record("status", response.status().as_u16());
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    api.metrics.request(&route, response.status().as_u16(), start.elapsed());
    response
}

/// What the router itself refuses (size, path, query) is a problem like the rest.
fn as_problem(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE);
    if !status.is_client_error() || kind.is_some_and(|kind| kind == MEDIA_TYPE) {
        return response;
    }
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => too_large().into_response(),
        _ => Problem::new(status, "request", "the path or the query is not understood").into_response(),
    }
}

fn too_large() -> Problem {
    let why = format!("the body has more than {MAX_BODY} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", why).field("body")
}

/// Reads a JSON body.
fn json_body<T: DeserializeOwned>(headers: &HeaderMap, body: RawBody) -> Result<T, Problem> {
    let body = raw_body(body)?;
    if let Some(kind) = headers.get(header::CONTENT_TYPE) {
        let kind = kind.to_str().unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if essence != "application/json" && !essence.ends_with("+json") {
            let why = format!(
                "content type {:?}, expected application/json",
                kind.chars().take(64).collect::<String>()
            );
            let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", why);
            return Err(problem.field("content-type"));
        }
    }
    if std::str::from_utf8(&body).is_err() {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "not-utf8", "the body is not UTF-8").field("body"));
    }
    // As a value first: how deep it is nested does not depend on what is expected then.
    let value: Value = serde_json::from_slice(&body).map_err(|error| not_json(&error))?;
    serde_json::from_value(value).map_err(|error| not_json(&error))
}

fn raw_body(body: RawBody) -> Result<Bytes, Problem> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _ => Problem::request("body", "the body did not come whole"),
    })
}

/// The parser's error, with the member that it names and a stable reason.
fn not_json(error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    let named = text.split('`').nth(1).map(|name| name.chars().take(64).collect::<String>());
    let (reason, field) = if text.starts_with("unknown variant") && text.contains("`snp`") {
        ("unknown-tee", Some("tee".to_owned()))
    } else if text.starts_with("unknown field") {
        ("unknown-field", named)
    } else if text.starts_with("missing field") {
        ("missing-field", named)
    } else if text.starts_with("recursion limit") {
        ("nested", Some("body".to_owned()))
    } else if error.is_data() {
        ("type", None)
    } else {
        ("syntax", Some("body".to_owned()))
    };
    let problem =
        Problem::new(StatusCode::BAD_REQUEST, reason, format!("the body is not the expected JSON: {text}"));
    Problem { field: field.or_else(|| Some("body".to_owned())), ..problem }
}

/// Passes administrators; gives who it is.
fn admin(api: &Api, headers: &HeaderMap, action: &'static str) -> Result<String, Problem> {
    Ok(api.admin(crate::gate::bearer(headers), action)?)
}

async fn ready(State(api): State<Shared>) -> Response {
    match api.service.ready().await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(error) => {
            tracing::warn!(%error, "not ready");
            let why = "the store cannot be read; the log has the reason";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", why).into_response()
        }
    }
}

async fn metrics(State(api): State<Shared>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], api.metrics.render()).into_response()
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], Body::from(OPENAPI)).into_response()
}

fn json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// A name in a path as it is shown.
fn list(name: &str, values: impl serde::Serialize) -> Response {
    json(&json!({ name: values }))
}

#[cfg(test)]
mod tests;
