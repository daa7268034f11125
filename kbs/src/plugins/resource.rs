//! The plugin `resource`: secrets in the broker's own store, `repository/type/tag`.
//!
//! GET by a guest, encrypted to its key; POST (the bytes) and DELETE by an administrator. Always there.

use std::sync::Arc;

use async_trait::async_trait;
use axum::http::Method;
use kata_cc_kbs_protocol::ResourcePath;

use super::{Access, BlobStore, Caller, Plugin, PluginError, PluginRequest, PluginResponse};

/// Name of the plugin.
pub(crate) const NAME: &str = "resource";
/// Namespace of resources in the store.
pub(crate) const REPOSITORY: &str = "repository";

/// The plugin.
#[derive(Debug)]
pub(crate) struct Resource {
    store: Arc<dyn BlobStore>,
}

impl Resource {
    pub(crate) fn new(store: Arc<dyn BlobStore>) -> Self {
        Self { store }
    }
}

fn path(request: &PluginRequest) -> Result<ResourcePath, PluginError> {
    let path = match request.segments()[..] {
        [repository, kind, tag] => ResourcePath::new(repository, kind, tag),
        _ => return Err(PluginError::Path("a resource is repository/type/tag".to_owned())),
    };
    path.map_err(|e| PluginError::Path(e.to_string()))
}

fn missing(path: &ResourcePath) -> PluginError {
    PluginError::NotFound(format!("resource {} does not exist", path.uri()))
}

#[async_trait]
impl Plugin for Resource {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate_auth(&self, request: &PluginRequest) -> Result<Access, PluginError> {
        path(request)?;
        match request.method {
            Method::GET => Ok(Access::Guest),
            Method::POST | Method::DELETE => Ok(Access::Admin),
            ref other => Err(PluginError::method(other, "GET, POST or DELETE")),
        }
    }

    fn needs_encryption(&self, _: &PluginRequest) -> bool {
        true
    }

    async fn handle(&self, request: &PluginRequest, _: Caller<'_>) -> Result<PluginResponse, PluginError> {
        let path = path(request)?;
        let name = path.to_string();
        match request.method {
            Method::GET => {
                let value = self.store.get(REPOSITORY, &name).await?.ok_or_else(|| missing(&path))?;
                Ok(PluginResponse::ok("application/octet-stream", value))
            }
            Method::DELETE => {
                if !self.store.delete(REPOSITORY, &name).await? {
                    return Err(missing(&path));
                }
                Ok(PluginResponse::empty())
            }
            _ => {
                self.store.put(REPOSITORY, &name, &request.body).await?;
                Ok(PluginResponse::empty())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::request::tests::request;
    use kata_cc_attestation_service::store::{Store, StoreKey};
    use serde_json::json;

    #[tokio::test]
    async fn puts_gets_and_deletes_by_the_right_callers() {
        let plugin = Resource::new(Arc::new(Store::in_memory(StoreKey::ephemeral()).await.unwrap()));
        let put = request(Method::POST, "a/b/c", b"secret");
        assert_eq!(plugin.validate_auth(&put), Ok(Access::Admin));
        plugin.handle(&put, Caller::Admin { role: "admin" }).await.unwrap();
        let get = request(Method::GET, "a/b/c", b"");
        assert_eq!(plugin.validate_auth(&get), Ok(Access::Guest));
        assert!(plugin.needs_encryption(&get));
        let claims = json!({});
        let key =
            kata_cc_kbs_protocol::TeePubKey::RSA { alg: String::new(), n: String::new(), e: String::new() };
        let guest = Caller::Guest { claims: &claims, claims_digest: &[0; 32], key: &key };
        assert_eq!(plugin.handle(&get, guest).await.unwrap().body.as_slice(), b"secret");
        let delete = request(Method::DELETE, "a/b/c", b"");
        plugin.handle(&delete, Caller::Admin { role: "admin" }).await.unwrap();
        for request in [get, delete] {
            let error = plugin.handle(&request, guest).await.unwrap_err();
            assert_eq!(error, PluginError::NotFound("resource kbs:///a/b/c does not exist".to_owned()));
        }
        let error = plugin.validate_auth(&request(Method::PUT, "a/b/c", b"")).unwrap_err();
        assert!(matches!(error, PluginError::Method { .. }), "{error}");
        assert!(matches!(plugin.validate_auth(&request(Method::GET, "a/b", b"")), Err(PluginError::Path(_))));
    }
}
