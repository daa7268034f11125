//! A key broker in this process, for tests.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use kata_cc_attestation_service::serve::Peer;
use serde_json::Value;
use tower::ServiceExt as _;

use crate::api;
use crate::config::Config;
use crate::state::Kbs;

/// A policy that gives `default/...` to every guest.
pub(crate) const OPEN_POLICY: &str = "package policy\nimport rego.v1\ndefault allow := false\n\
    allow if { data.plugin == \"resource\"; data[\"resource-path\"][0] == \"default\" }\n";

/// A key broker with sample evidence, everything in memory, and `more` in its configuration.
pub(crate) async fn kbs(folder: &std::path::Path, more: &str) -> Arc<Kbs> {
    let admin =
        if more.contains("[admin") { "" } else { "[admin]\nauthorization_mode = \"InsecureAllowAll\"\n" };
    let text = format!(
        "[http_server]\ninsecure_http = true\n[attestation]\nallow_sample = true\n\
         [storage_backend]\nstorage_type = \"Memory\"\n{admin}{more}"
    );
    let path = folder.join("kbs.toml");
    std::fs::write(&path, text).unwrap();
    Kbs::new(&Config::read(&path).unwrap()).await.unwrap()
}

/// Answer to a request.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Its body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| {
            panic!("{e}: {} {}", self.status, String::from_utf8_lossy(&self.body));
        })
    }
}

/// Sends a request to a router, from 127.0.0.1.
pub(crate) async fn send(router: &Router, request: Request<Body>) -> Answer {
    let mut request = request;
    request.extensions_mut().insert(Peer::of([127, 0, 0, 1].into()));
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 16 << 20).await.unwrap().to_vec();
    Answer { status: parts.status, headers: parts.headers, body }
}

/// `method path` with a JSON body, if there is one.
pub(crate) async fn call(router: &Router, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let request = Request::builder().method(method).uri(path);
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    send(router, request.body(body).unwrap()).await
}

/// The router.
pub(crate) fn router(kbs: &Arc<Kbs>) -> Router {
    api::router(Arc::clone(kbs))
}

/// Sets the resource policy.
pub(crate) async fn set_policy(kbs: &Kbs, text: &str) {
    let record = kata_cc_store::audit::Record::new(kata_cc_store::audit::Kind::Admin);
    kbs.policy.set(text, "test", record).await.unwrap();
}
