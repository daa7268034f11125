//! Plugins: what lies behind `/kbs/v0/{plugin}/...`.
//!
//! A plugin says for each request who may make it ([`Plugin::validate_auth`]) and whether the answer is encrypted to
//! the guest's key ([`Plugin::needs_encryption`]), then handles it. Everything else is done once, for all of them
//! ([`http`]): token or admin gate, the resource policy (asked first, with `data.plugin`, `data["resource-path"]` and
//! `data.query`, so that a denied guest does not learn what exists), encryption, limits, timeouts, metrics, the log.
//! The paths are Trustee's; which plugins there are is said by `[[plugins]]` in the configuration ([`registry`]).

mod blobs;
mod ca;
pub(crate) mod http;
pub(crate) mod pkcs11;
pub(crate) mod registry;
mod request;
mod resource;
mod vault;

use async_trait::async_trait;
use axum::http::{Method, StatusCode};
use kata_cc_kbs_protocol::TeePubKey;
use serde_json::Value;
use thiserror::Error;
use zeroize::Zeroizing;

pub(crate) use blobs::BlobStore;
pub(crate) use registry::{PluginConfig, Plugins};
pub(crate) use request::PluginRequest;
pub(crate) use resource::REPOSITORY;

/// Who may make a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// An administrator whose role may call the path. The resource policy is not asked.
    Admin,
    /// A guest with a valid token that the resource policy lets through.
    Guest,
    /// Anybody: what is public by nature, as a revocation list.
    Anyone,
}

/// Who makes a request, after the gate.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Caller<'a> {
    /// An attested guest.
    Guest {
        /// Claims of its token, verified.
        claims: &'a Value,
        /// By what the audit log names them.
        claims_digest: &'a [u8; 32],
        /// Its key, from the claims.
        key: &'a TeePubKey,
    },
    /// An administrator.
    Admin {
        /// Role of its token.
        role: &'a str,
    },
    /// Somebody.
    Anyone,
}

/// What the audit log is to hold of a request besides caller, path and outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PluginEvent {
    /// What was done, e.g. `certificate-issued`.
    pub(crate) action: &'static str,
    /// To what, e.g. a serial number. Never a secret.
    pub(crate) subject: String,
    /// More, by name. Never a secret.
    pub(crate) details: Value,
}

/// Answer of a plugin.
#[derive(Debug)]
pub(crate) struct PluginResponse {
    /// Status code.
    pub(crate) status: StatusCode,
    /// Content type of the body before it is encrypted.
    pub(crate) content_type: &'static str,
    /// The body, maybe a secret.
    pub(crate) body: Zeroizing<Vec<u8>>,
    /// For the audit log.
    pub(crate) event: Option<PluginEvent>,
}

impl PluginResponse {
    /// 200 with a body.
    pub(crate) fn ok(content_type: &'static str, body: impl Into<Zeroizing<Vec<u8>>>) -> Self {
        Self { status: StatusCode::OK, content_type, body: body.into(), event: None }
    }

    /// 200 with nothing in it.
    pub(crate) fn empty() -> Self {
        Self::ok("", Vec::new())
    }

    /// The same with an event for the audit log.
    pub(crate) fn with_event(self, action: &'static str, subject: impl Into<String>, details: Value) -> Self {
        Self { event: Some(PluginEvent { action, subject: subject.into(), details }), ..self }
    }
}

/// Why a plugin did not do what it was asked.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum PluginError {
    /// The request is wrong.
    #[error("{0}")]
    BadRequest(String),
    /// The path means nothing to this plugin.
    #[error("invalid request path: {0}")]
    Path(String),
    /// The path is fine, the method is not.
    #[error("method {seen} does not go here, use {allowed}")]
    Method {
        /// What was asked.
        seen: String,
        /// What goes.
        allowed: &'static str,
    },
    /// Body or answer is larger than the plugin's limit.
    #[error("{what} has {seen} bytes, plugin {plugin} takes at most {limit}")]
    TooLarge {
        /// `request` or `answer`.
        what: &'static str,
        /// Which plugin.
        plugin: &'static str,
        /// Bytes.
        seen: usize,
        /// Most bytes.
        limit: usize,
    },
    /// The plugin's own rules say no.
    #[error("plugin denies it: {0}")]
    Denied(String),
    /// It is not there.
    #[error("{0}")]
    NotFound(String),
    /// What the plugin stands for failed: a token, another server. `told` goes to the caller, `logged` to the log only.
    #[error("{told}")]
    Upstream {
        /// For the caller: what failed, and whether to try again.
        told: String,
        /// For the operator: why.
        logged: String,
    },
    /// All slots are taken.
    #[error("plugin {0} has as many requests as it may have, try again")]
    Busy(&'static str),
    /// It took too long.
    #[error("plugin {plugin} did not answer in {seconds} s")]
    Timeout {
        /// Which.
        plugin: &'static str,
        /// Its limit.
        seconds: u64,
    },
    /// Our fault; the text is for the log.
    #[error("{0}")]
    Internal(String),
}

impl PluginError {
    /// A failure behind the plugin.
    pub(crate) fn upstream(told: impl Into<String>, logged: impl std::fmt::Display) -> Self {
        Self::Upstream { told: told.into(), logged: logged.to_string() }
    }

    /// 405.
    pub(crate) fn method(seen: &Method, allowed: &'static str) -> Self {
        Self::Method { seen: seen.as_str().chars().take(16).collect(), allowed }
    }

    /// Status code and name in the error's type.
    pub(crate) fn parts(&self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "PluginBadRequest"),
            Self::Path(_) => (StatusCode::NOT_FOUND, "InvalidRequestPath"),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::TooLarge { what: "request", .. } => (StatusCode::PAYLOAD_TOO_LARGE, "PayloadTooLarge"),
            Self::TooLarge { .. } => (StatusCode::BAD_GATEWAY, "PluginUpstreamError"),
            Self::Denied(_) => (StatusCode::FORBIDDEN, "PluginDeny"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "ResourceNotFound"),
            Self::Upstream { .. } => (StatusCode::BAD_GATEWAY, "PluginUpstreamError"),
            Self::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "PluginBusy"),
            Self::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "PluginTimeout"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "PluginInternalError"),
        }
    }
}

/// One plugin.
///
/// `validate_auth` and `needs_encryption` look at the request only and cost nothing: they run before the caller is known.
#[async_trait]
pub(crate) trait Plugin: Send + Sync + std::fmt::Debug {
    /// Name in the path, and `data.plugin` of the policy.
    fn name(&self) -> &'static str;

    /// Who may make this request. An error when nobody may, since path or method mean nothing.
    fn validate_auth(&self, request: &PluginRequest) -> Result<Access, PluginError>;

    /// Whether the answer is encrypted to the guest's key. Asked for guests only.
    fn needs_encryption(&self, request: &PluginRequest) -> bool;

    /// Does it. `caller` is of the kind that `validate_auth` asked for.
    async fn handle(
        &self,
        request: &PluginRequest,
        caller: Caller<'_>,
    ) -> Result<PluginResponse, PluginError>;
}
