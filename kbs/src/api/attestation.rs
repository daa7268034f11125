//! The attestation service's own interface, below `/kbs/v0/admin/attestation`: policies with versions and dry run, reference values with
//! source and expiry, signed messages, explanations, rotation of the keys that sign tokens. What is there is `/api/v1` of the
//! standalone service, served by the same code; who may call it is decided by the key broker's gate.

use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse as _, Response};
use kata_cc_attestation_service::gate;
use tower::ServiceExt as _;

use super::{AdminCall, Shared};
use crate::error::ApiError;

/// Where it is.
pub(super) const PREFIX: &str = "/kbs/v0/admin/attestation";
/// Where it is in the standalone service.
const OWN: &str = "/api/v1";
/// Where earlier policy bundles are pinned there.
const PINNING: &str = "/api/v1/policy-source";

/// Lets administrators through.
pub(crate) async fn call(
    State(kbs): State<Shared>,
    call: AdminCall,
    request: Request,
) -> Result<Response, ApiError> {
    let action = format!("{} attestation service", call.method);
    let administrator = call.admit(&kbs, &action).await?;
    let (mut parts, body) = request.into_parts();
    parts.uri = own(&parts.uri)?;
    // What the outer routes have matched must not be taken for the inner ones'.
    parts.extensions.clear();
    // Pinning and resuming put another resource policy into the store.
    let may_change_policy = parts.method != Method::GET && parts.uri.path().starts_with(PINNING);
    let work = kbs.attestation.clone().oneshot(Request::from_parts(parts, body));
    let response = gate::admitted(administrator.to_string(), work).await.into_response();
    if may_change_policy {
        kbs.take_resource_policy().await;
    }
    Ok(response)
}

/// Metadata of what signs tokens, for whoever verifies them: open to all, as its keys are.
pub(crate) async fn metadata(State(kbs): State<Shared>, mut request: Request) -> Response {
    request.extensions_mut().clear();
    kbs.attestation.clone().oneshot(request).await.into_response()
}

/// The address in the standalone service.
fn own(uri: &Uri) -> Result<Uri, ApiError> {
    let told = uri.path_and_query().map_or("", PathAndQuery::as_str);
    let rest = told.strip_prefix(PREFIX).unwrap_or_default();
    format!("{OWN}{rest}").parse().map_err(|_| ApiError::Path(told.chars().take(200).collect()))
}
