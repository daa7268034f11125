//! The HTTP interface: Trustee's paths under `/kbs/v0`, and ours. All of them stand in one table, [`routes`]; `kbs/openapi.json`
//! describes them, and a test compares the two.

mod attestation;
mod gate;
mod operation;
mod policies;
mod references;
mod resources;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, any, get, post};
use kata_cc_kbs_protocol::SESSION_COOKIE;

pub(crate) use gate::{AdminCall, Caller, known_caller};
pub(crate) use kata_cc_attestation_service::query::{number, only, read as query};

use crate::error::ApiError;
use crate::state::Kbs;
use crate::{handshake, plugins, request};

pub(crate) type Shared = Arc<Kbs>;

/// A path and what answers it.
struct Route {
    path: &'static str,
    handler: MethodRouter<Shared>,
}

/// All of them, but for those of plugins.
fn routes() -> Vec<Route> {
    let route = |path, handler| Route { path, handler };
    vec![
        route("/kbs/v0/auth", post(handshake::auth)),
        route("/kbs/v0/attest", post(handshake::attest)),
        route(
            "/kbs/v0/resource/{repository}/{type}/{tag}",
            get(resources::read).post(resources::write).delete(resources::delete),
        ),
        route("/kbs/v0/resource-policy", post(policies::set_resource).get(policies::list_resource)),
        route("/kbs/v0/resource-policy/text", get(policies::resource)),
        route("/kbs/v0/attestation-policy", post(policies::set_attestation)),
        route("/kbs/v0/attestation-policy/{id}", get(policies::attestation)),
        route("/kbs/v0/reference-value", post(references::set).get(references::list)),
        route("/kbs/v0/reference-value/{*id}", get(references::read).delete(references::delete)),
        route("/kbs/v0/admin/resources", get(resources::list)),
        route("/kbs/v0/admin/resources/{repository}/{type}/{tag}/history", get(resources::history)),
        route("/kbs/v0/admin/resource-policy/dry-run", post(policies::dry_run)),
        route("/kbs/v0/admin/resource-policy/history", get(policies::history)),
        route("/kbs/v0/admin/audit", get(operation::audit_export)),
        route("/kbs/v0/admin/attestation/{*rest}", any(attestation::call)),
        route("/healthz", get(operation::healthz)),
        route("/readyz", get(operation::readyz)),
        route("/metrics", get(operation::metrics)),
        route("/openapi.json", get(operation::openapi)),
        route("/.well-known/jwks.json", get(operation::jwks)),
        route("/.well-known/openid-configuration", get(attestation::metadata)),
    ]
}

/// The router.
pub(crate) fn router(kbs: Shared) -> Router {
    let limit = kbs.max_request;
    let mut router = Router::new();
    for Route { path, handler } in routes() {
        router = router.route(path, handler);
    }
    router
        .route("/kbs/v0/{plugin}", any(plugins::http::call))
        .route("/kbs/v0/{plugin}/{*rest}", any(plugins::http::call))
        .fallback(|uri: Uri| async move { ApiError::Path(uri.path().chars().take(200).collect()) })
        .layer(DefaultBodyLimit::max(limit))
        .layer(from_fn_with_state(Arc::clone(&kbs), request::observe))
        .with_state(kbs)
}

/// Session id of a request.
pub(crate) fn session_id(headers: &HeaderMap) -> Option<&str> {
    headers.get_all(header::COOKIE).iter().find_map(|value| {
        value.to_str().ok()?.split(';').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name.trim() == SESSION_COOKIE).then(|| value.trim())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document has every path, and of each path exactly the methods that are routed.
    #[tokio::test]
    async fn the_document_is_what_is_routed() {
        use crate::test_utils;
        let document: serde_json::Value = serde_json::from_str(operation::OPENAPI).unwrap();
        let documented = document["paths"].as_object().unwrap();
        // The attestation service's interface is that of its own document, which its own test compares with what is routed.
        let service: serde_json::Value =
            serde_json::from_str(kata_cc_attestation_service::rest::OPENAPI).unwrap();
        let service = service["paths"].as_object().unwrap();
        let nested =
            |path: &str| path.strip_prefix("/api/v1").map(|rest| format!("{}{rest}", attestation::PREFIX));
        let routes = routes();
        let ours = routes.iter().map(|route| route.path.replace("{*", "{"));
        let ours = ours.filter(|path| !path.starts_with(attestation::PREFIX));
        let routed: Vec<String> = ours.chain(service.keys().filter_map(|path| nested(path))).collect();
        for (path, operations) in service {
            let Some(path) = nested(path) else { continue };
            let methods =
                |of: &serde_json::Value| of.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(methods(&documented[&path]), methods(operations), "{path}");
        }
        let mut names: Vec<&String> = documented.keys().collect();
        let mut expected: Vec<&String> = routed.iter().collect();
        names.sort();
        expected.sort();
        assert_eq!(names, expected);
        let folder = tempfile::tempdir().unwrap();
        let router = test_utils::router(&test_utils::kbs(folder.path(), "").await);
        for (path, operations) in documented.iter().filter(|(path, _)| !path.starts_with(attestation::PREFIX))
        {
            let target = path.replace(['{', '}'], "");
            for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
                let answer = test_utils::call(&router, method, &target, None).await;
                let told = operations.get(method.to_ascii_lowercase()).is_some();
                let text = String::from_utf8_lossy(&answer.body);
                assert_eq!(answer.status != 405, told, "{method} {path}: {} {text}", answer.status);
                assert!(!text.contains("PluginNotFound"), "{method} {path} is not routed");
                assert_eq!(answer.headers["x-request-id"].len(), 32);
            }
        }
        let served = test_utils::call(&router, "GET", "/openapi.json", None).await;
        assert_eq!(served.json(), document);
        // What operations refer to is there.
        let text = operation::OPENAPI;
        for part in text.split("\"#/").skip(1) {
            let pointer = format!("/{}", part.split('"').next().unwrap());
            assert!(document.pointer(&pointer).is_some(), "{pointer} is not in the document");
        }
    }
}
