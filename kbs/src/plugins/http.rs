//! From a request to a plugin and back: the gate, the policy, encryption, and the trace that each call leaves.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, Uri, header};
use axum::response::{IntoResponse, Response};
use tracing::{error, info};

use super::{Access, Caller, Plugin, PluginError, PluginRequest, PluginResponse, resource};
use crate::api::{self, AdminCall, Shared};
use crate::audit;
use crate::checks;
use crate::error::ApiError;
use crate::state::Kbs;

/// Start of the paths of plugins.
const PREFIX: &str = "/kbs/v0/";

/// Handler of every path of a plugin.
pub(crate) async fn call(State(kbs): State<Shared>, admin: AdminCall, body: Bytes) -> Response {
    let uri = &admin.uri;
    let (name, path) = match uri.path().strip_prefix(PREFIX) {
        Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
        None => ("", ""),
    };
    let Some(plugin) = kbs.plugins.get(name) else {
        return ApiError::PluginNotFound(name.chars().take(64).collect()).into_response();
    };
    let result = match request(plugin, admin.method.clone(), path, uri, body) {
        Ok(request) => serve(&kbs, plugin, &request, &admin).await,
        Err(error) => Err(error.into()),
    };
    kbs.metrics.count(plugin.name(), result.as_ref().map_or_else(|e| e.name(), |_| "ok"));
    result.unwrap_or_else(IntoResponse::into_response)
}

fn request(
    plugin: &dyn Plugin,
    method: Method,
    path: &str,
    uri: &Uri,
    body: Bytes,
) -> Result<PluginRequest, PluginError> {
    if path.is_empty() && plugin.name() == resource::NAME {
        return Err(PluginError::Path("a resource is repository/type/tag".to_owned()));
    }
    PluginRequest::new(method, path, uri, body)
}

async fn serve(
    kbs: &Kbs,
    plugin: &dyn Plugin,
    request: &PluginRequest,
    admin: &AdminCall,
) -> Result<Response, ApiError> {
    match plugin.validate_auth(request)? {
        Access::Admin => {
            let action = format!("{} {}", request.method, plugin.name());
            let administrator = admin.admit(kbs, &action).await?;
            // Before, since what a plugin does is not in a transaction of the store, and after it.
            let target = request.joined();
            audit::asked(kbs, &administrator, &action, &target).await?;
            let caller = Caller::Admin { role: &administrator.role };
            let response = match kbs.plugins.call(plugin, request, caller).await {
                Ok(response) => response,
                Err(error) => {
                    let error = ApiError::from(error);
                    audit::failed_in_plugin(kbs, &administrator, &action, &target, &error.to_string())
                        .await?;
                    return Err(error);
                }
            };
            audit::done_by_plugin(kbs, &administrator, &action, &target, response.event.as_ref()).await?;
            trace(plugin, request, "administrator", "done", &response);
            Ok(plain(response))
        }
        Access::Anyone => Ok(plain(kbs.plugins.call(plugin, request, Caller::Anyone).await?)),
        Access::Guest => release(kbs, plugin, request, admin).await,
    }
}

/// Token, then policy, then the plugin: a denied guest does not learn what exists.
async fn release(
    kbs: &Kbs,
    plugin: &dyn Plugin,
    request: &PluginRequest,
    call: &AdminCall,
) -> Result<Response, ApiError> {
    let guest = api::known_caller(kbs, call.peer, plugin.name(), &call.headers).await?;
    let status = guest.status();
    let path = request.joined();
    let name = plugin.name();
    let target = format!("{name}/{path}");
    let refused = |verdict: &str, error: &ApiError| {
        info!(plugin = name, resource = %path, status, verdict, reason = %error, "plugin");
    };
    let decision = kbs.policy.decide(&guest.token.document, name, &request.path, &request.query).await?;
    if !decision.allow {
        let checks = checks::of_claims(&guest.token.claims);
        let error = ApiError::PolicyDeny { why: decision.explanation, checks };
        refused("denied", &error);
        audit::refused(kbs, &guest, &decision.digest, &target, &error.to_string()).await?;
        return Err(error);
    }
    let caller = Caller::Guest {
        claims: &guest.token.claims,
        claims_digest: &guest.token.claims_digest,
        key: &guest.token.key,
    };
    let response = match kbs.plugins.call(plugin, request, caller).await {
        Ok(response) => response,
        Err(error) => {
            let verdict = match &error {
                PluginError::NotFound(_) => "unknown",
                PluginError::Denied(_) => "denied",
                _ => "failed",
            };
            let error = ApiError::from(error);
            refused(verdict, &error);
            audit::refused(kbs, &guest, &decision.digest, &target, &error.to_string()).await?;
            return Err(error);
        }
    };
    audit::released_by_plugin(kbs, &guest, &decision.digest, &target, response.event.as_ref()).await?;
    trace(plugin, request, status, "released", &response);
    if !plugin.needs_encryption(request) {
        return Ok(plain(response));
    }
    let body = guest.encrypt(kbs, &response.body)?;
    Ok((response.status, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// One line of the log for what was done, with what the plugin has to say about it.
fn trace(
    plugin: &dyn Plugin,
    request: &PluginRequest,
    status: &str,
    verdict: &str,
    response: &PluginResponse,
) {
    let resource = request.joined();
    let name = plugin.name();
    match &response.event {
        None => info!(plugin = name, %resource, status, verdict, "plugin"),
        Some(event) => info!(
            plugin = name, %resource, status, verdict,
            action = event.action, subject = %event.subject, details = %event.details, "plugin"
        ),
    }
}

fn plain(mut response: PluginResponse) -> Response {
    // What goes out in clear is no secret, so it need not be wiped.
    let body = std::mem::take(&mut *response.body);
    if response.content_type.is_empty() {
        return (response.status, body).into_response();
    }
    (response.status, [(header::CONTENT_TYPE, response.content_type)], body).into_response()
}

/// What of a plugin's failure is for the log only.
pub(crate) fn log_failure(error: &PluginError) {
    match error {
        PluginError::Upstream { told, logged } => error!(%told, why = %logged, "plugin failed"),
        PluginError::Internal(why) => error!(%why, "plugin failed"),
        _ => {}
    }
}

/// What of a plugin's failure the caller is told.
pub(crate) fn told(error: &PluginError) -> String {
    match error {
        PluginError::Internal(_) => "internal error, the reason is in the log of the key broker".to_owned(),
        other => other.to_string(),
    }
}
