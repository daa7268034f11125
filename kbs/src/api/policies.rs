//! Policies: the resource policy, and those of the attestation service.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use kata_cc_attestation_service::rest::policy_text;
use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_kbs_protocol::admin::{
    ResourceHistory, ResourcePolicyDryRun, ResourcePolicyText, ResourcePolicyVerdict, SetAttestationPolicy,
    SetResourcePolicy,
};
use kata_cc_kbs_protocol::strict::BodyError;
use serde_json::Value;

use super::resources::versions;
use super::{AdminCall, Shared};
use crate::audit;
use crate::error::ApiError;
use crate::policy;
use crate::request::parse;
use crate::state::Kbs;

fn encoded(text: &str) -> Result<String, ApiError> {
    policy_text(text).map_err(|e| ApiError::Body(BodyError::value("policy", e.detail)))
}

pub(crate) async fn set_resource(
    State(kbs): State<Shared>,
    call: AdminCall,
    body: Bytes,
) -> Result<(), ApiError> {
    let administrator = call.admit(&kbs, "set resource policy").await?;
    kbs.service.check_resource_policy_free()?;
    let request: SetResourcePolicy = parse(&call.headers, &body)?;
    let text = encoded(&request.policy)?;
    let record = audit::admin(&administrator, "set resource policy", policy::NAME).policy(text.as_bytes());
    kbs.policy.set(&text, &administrator.to_string(), record).await
}

pub(crate) async fn list_resource(
    State(kbs): State<Shared>,
    call: AdminCall,
) -> Result<Json<Vec<&'static str>>, ApiError> {
    call.admit(&kbs, "list resource policies").await?;
    Ok(Json(vec![policy::NAME]))
}

pub(crate) async fn resource(
    State(kbs): State<Shared>,
    call: AdminCall,
) -> Result<Json<ResourcePolicyText>, ApiError> {
    call.admit(&kbs, "read resource policy").await?;
    let (policy, default) = kbs.policy.text().await?;
    Ok(Json(ResourcePolicyText { policy, default }))
}

/// Versions of the resource policy, the latest first.
pub(crate) async fn history(
    State(kbs): State<Shared>,
    call: AdminCall,
) -> Result<Json<ResourceHistory>, ApiError> {
    call.admit(&kbs, "read history of resource policy").await?;
    Ok(Json(versions(&kbs, policy::NAMESPACE, policy::NAME).await?))
}

/// Tries a policy text, or the one in force, on claims, on a token, or on the guest of a session. Nothing is stored or released.
pub(crate) async fn dry_run(
    State(kbs): State<Shared>,
    call: AdminCall,
    body: Bytes,
) -> Result<Json<ResourcePolicyVerdict>, ApiError> {
    call.admit(&kbs, "try resource policy").await?;
    let request: ResourcePolicyDryRun = parse(&call.headers, &body)?;
    let plugin = request.plugin.as_deref().unwrap_or("resource");
    let segments: Vec<String> = if plugin == "resource" {
        let path: Result<ResourcePath, _> = request.resource.parse();
        let path = path.map_err(|e| BodyError::value("resource", e.to_string()))?;
        path.segments().map(str::to_owned).to_vec()
    } else {
        request.resource.split('/').map(str::to_owned).collect()
    };
    let claims = claims(&kbs, &request).await?;
    let query: BTreeMap<String, String> = request.query.unwrap_or_default();
    let text = request.policy.as_deref();
    Ok(Json(kbs.policy.dry_run(text, &claims, plugin, &segments, &query).await?))
}

/// What the policy is tried on.
async fn claims(kbs: &Kbs, request: &ResourcePolicyDryRun) -> Result<Value, ApiError> {
    let now = kata_cc_attestation_service::now();
    let refuse = |member: &str, why: String| ApiError::Body(BodyError::value(member, why));
    let token = match (&request.claims, &request.token, &request.session) {
        (Some(claims), None, None) if claims.is_object() => return Ok(claims.clone()),
        (Some(_), None, None) => {
            return Err(refuse("claims", "expected an object, as a token's claims are".to_owned()));
        }
        (None, Some(token), None) => token.clone(),
        (None, None, Some(id)) => {
            let guest = kbs.sessions.guest(id, now).await?;
            let guest = guest.ok_or_else(|| {
                refuse("session", "no attested guest has this session (any more)".to_owned())
            })?;
            guest.token
        }
        _ => {
            let why = "give exactly one of claims, token and session".to_owned();
            return Err(refuse("claims", why));
        }
    };
    kbs.verify_token(&token, now).await.map_err(|e| refuse("token", e.to_string()))
}

pub(crate) async fn set_attestation(
    State(kbs): State<Shared>,
    call: AdminCall,
    body: Bytes,
) -> Result<(), ApiError> {
    let administrator = call.admit(&kbs, "set attestation policy").await?;
    let request: SetAttestationPolicy = parse(&call.headers, &body)?;
    let text = encoded(&request.policy)?;
    kbs.service.set_policy_by(&request.policy_id, &text, &administrator.to_string()).await?;
    Ok(())
}

pub(crate) async fn attestation(
    State(kbs): State<Shared>,
    call: AdminCall,
    Path(id): Path<String>,
) -> Result<Json<ResourcePolicyText>, ApiError> {
    call.admit(&kbs, "read attestation policy").await?;
    let (policy, default) = kbs.service.policy(&id).await?;
    Ok(Json(ResourcePolicyText { policy, default }))
}
