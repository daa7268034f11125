//! Errors as answers: status, name, detail, and the member of the request that is wrong.
//!
//! Trustee answers 401 to nearly everything. Here 401 means "attest (again)" or "no valid admin token", 403 "attested,
//! but the policy says no", 404 "no such resource", 400 "not understood", 500 "our fault" (with the reason in the log
//! only). A refusal of evidence stays 401 with `AttestationError`, as clients expect, and its detail names the reason.
//! Which client depends on which 401: `docs/operator-guide/protocol.md`.
//!
//! A handler gives an [`ApiError`]; the body is written by [`crate::request`], which knows the request's id.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use kata_cc_attestation_service::audit_export::ExportError;
use kata_cc_attestation_service::query::QueryError;
use kata_cc_attestation_service::service::ServiceError;
use kata_cc_attestation_service::store::StoreError;
use kata_cc_attestation_service::token::TokenError;
use kata_cc_kbs_protocol::strict::BodyError;
use thiserror::Error;
use tracing::error;

use crate::checks::FailedCheck;
use crate::plugins::{PluginError, http};
use crate::session::SessionError;

/// An error answer.
#[derive(Debug, Error)]
pub(crate) enum ApiError {
    /// The handshake failed.
    #[error("Attestation error: {0}")]
    Attestation(String),
    /// The evidence was refused.
    #[error("Attestation error: {why}")]
    Refused {
        /// Which step, and why.
        why: String,
        /// What differed.
        checks: Vec<FailedCheck>,
    },
    /// A body of the handshake that is not understood.
    #[error("Attestation error: RCAR handshake {step} failed: {error}")]
    Handshake {
        /// `Auth` or `Attest`.
        step: &'static str,
        /// What is wrong with it.
        error: BodyError,
    },
    /// Neither a session nor a token.
    #[error("Attestation Token not found: {0}")]
    TokenNotFound(String),
    /// A token that is not valid.
    #[error("Token Verifier error: {0}")]
    TokenVerifier(String),
    /// The resource policy says no.
    #[error("Access denied by policy: {why}")]
    PolicyDeny {
        /// Which rule, and why.
        why: String,
        /// What the guest's token says it failed.
        checks: Vec<FailedCheck>,
    },
    /// The resource policy failed.
    #[error("policy engine: {0}")]
    PolicyEngine(String),
    /// A policy text that does not compile.
    #[error("policy was refused: {0}")]
    ParsePolicy(String),
    /// The caller is no administrator.
    #[error("admin access denied for endpoint {endpoint}: {why}")]
    Admin {
        /// What was called.
        endpoint: String,
        /// Why.
        why: String,
    },
    /// An administrator whose role may not call this.
    #[error("admin access denied for endpoint {endpoint}: {why}")]
    Role {
        /// What was called.
        endpoint: String,
        /// Why.
        why: String,
    },
    /// Something that is not there.
    #[error("{0}")]
    NotFound(String),
    /// Others changed the same at the same time.
    #[error("{0}")]
    Conflict(String),
    /// No such plugin.
    #[error("Plugin {0} not found")]
    PluginNotFound(String),
    /// A path that is not understood.
    #[error("invalid request path: {0}")]
    Path(String),
    /// A body that is not understood.
    #[error("request is not understood: {0}")]
    Serde(String),
    /// A body of which one member is not understood.
    #[error("request is not understood: {0}")]
    Body(#[from] BodyError),
    /// A parameter of the query that is not understood.
    #[error("request is not understood: parameter {name}: {why}")]
    Query {
        /// Which.
        name: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A body in another media type.
    #[error("content type {seen:?} is not read here, send {expected}")]
    MediaType {
        /// What it is said to be.
        seen: String,
        /// What is read.
        expected: &'static str,
    },
    /// A body that is too large.
    #[error("the body has more than {limit} bytes, which is the most that is taken ({by})")]
    TooLarge {
        /// Most bytes.
        limit: u64,
        /// Which setting says so.
        by: String,
    },
    /// A request that takes too long, mostly its body.
    #[error("the request, with its body, took longer than {0:?}")]
    TooSlow(Duration),
    /// Too many requests of one peer.
    #[error("{what}, try again in {seconds} s")]
    TooMany {
        /// What there were too many of.
        what: &'static str,
        /// Seconds until the next may pass.
        seconds: u64,
    },
    /// Reference values.
    #[error("reference values: {0}")]
    Rvps(String),
    /// The guest's key cannot be encrypted to.
    #[error("answer cannot be encrypted: {0}")]
    Jwe(String),
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// Our fault; the text is for the log.
    #[error("{0}")]
    Internal(String),
}

/// What a failure says, as an extension of its answer until the body is written.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// Bare name of the error.
    pub(crate) name: &'static str,
    /// Sentence for the caller.
    pub(crate) detail: String,
    /// Member or parameter of the request that is wrong.
    pub(crate) field: Option<String>,
    /// Comparisons that failed.
    pub(crate) checks: Vec<FailedCheck>,
}

impl ApiError {
    fn parts(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Attestation(_) | Self::Refused { .. } => (StatusCode::UNAUTHORIZED, "AttestationError"),
            Self::Handshake { .. } => (StatusCode::BAD_REQUEST, "AttestationError"),
            Self::TokenNotFound(_) => (StatusCode::UNAUTHORIZED, "TokenNotFound"),
            Self::TokenVerifier(_) => (StatusCode::UNAUTHORIZED, "TokenVerifierError"),
            Self::PolicyDeny { .. } => (StatusCode::FORBIDDEN, "PolicyDeny"),
            Self::PolicyEngine(_) => (StatusCode::INTERNAL_SERVER_ERROR, "PolicyEngineError"),
            Self::ParsePolicy(_) => (StatusCode::BAD_REQUEST, "ParsePolicyError"),
            Self::Admin { .. } => (StatusCode::UNAUTHORIZED, "AdminAuthAccess"),
            Self::Role { .. } => (StatusCode::FORBIDDEN, "AdminAuthAccess"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "ResourceNotFound"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "Conflict"),
            Self::PluginNotFound(_) => (StatusCode::NOT_FOUND, "PluginNotFound"),
            Self::Path(_) => (StatusCode::NOT_FOUND, "InvalidRequestPath"),
            Self::Serde(_) | Self::Body(_) | Self::Query { .. } => (StatusCode::BAD_REQUEST, "SerdeError"),
            Self::MediaType { .. } => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "PayloadTooLarge"),
            Self::TooSlow(_) => (StatusCode::REQUEST_TIMEOUT, "RequestTimeout"),
            Self::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            Self::Rvps(_) => (StatusCode::BAD_REQUEST, "RvpsError"),
            Self::Jwe(_) => (StatusCode::BAD_REQUEST, "JweError"),
            Self::Plugin(error) => error.parts(),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "PluginInternalError"),
        }
    }

    /// The bare name of the error, for metrics.
    pub(crate) fn name(&self) -> &'static str {
        self.parts().1
    }

    fn field(&self) -> Option<String> {
        match self {
            Self::Handshake { error, .. } | Self::Body(error) => error.member().map(str::to_owned),
            Self::Query { name, .. } => Some((*name).to_owned()),
            Self::MediaType { .. } => Some("content-type".to_owned()),
            Self::TooLarge { .. } | Self::Serde(_) => Some("body".to_owned()),
            Self::Path(_) => Some("path".to_owned()),
            Self::ParsePolicy(_) => Some("policy".to_owned()),
            Self::TokenVerifier(_) | Self::TokenNotFound(_) | Self::Admin { .. } => {
                Some("authorization".to_owned())
            }
            _ => None,
        }
    }
}

impl ApiError {
    fn into_checks(self) -> Vec<FailedCheck> {
        match self {
            Self::Refused { checks, .. } | Self::PolicyDeny { checks, .. } => checks,
            _ => Vec::new(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<QueryError> for ApiError {
    fn from(QueryError { name, why }: QueryError) -> Self {
        Self::Query { name, why }
    }
}

impl From<ExportError> for ApiError {
    fn from(error: ExportError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// Only the store's error is met where this is used; others are told by the handshake itself.
impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Store(error) => error.into(),
            why => Self::Attestation(format!("RCAR handshake failed: {why}")),
        }
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let text = error.to_string();
        match error {
            ServiceError::Refused(_)
            | ServiceError::Appraisal(_)
            | ServiceError::Token(TokenError::TooLarge(_)) => Self::Attestation(text),
            ServiceError::Policy(_) => Self::ParsePolicy(text),
            ServiceError::PolicyId(_) | ServiceError::NotFound(_) => Self::NotFound(text),
            ServiceError::Conflict { .. } | ServiceError::Owned { .. } => Self::Conflict(text),
            ServiceError::Reference(_) | ServiceError::Source(_) => Self::Rvps(text),
            ServiceError::Request(_) => Self::Serde(text),
            // Only the standalone service's own gate says so; ours is `crate::admin`.
            ServiceError::Admin(why) => Self::Admin { endpoint: "attestation service".to_owned(), why },
            ServiceError::Store(_)
            | ServiceError::Token(_)
            | ServiceError::SigningKey { .. }
            | ServiceError::Random => Self::Internal(text),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let (status, name) = self.parts();
        let detail = match &self {
            Self::Internal(why) | Self::PolicyEngine(why) => {
                error!(%why, "internal error");
                "internal error, the reason is in the log of the key broker".to_owned()
            }
            Self::Plugin(error) => {
                http::log_failure(error);
                http::told(error)
            }
            other => other.to_string(),
        };
        let mut response = status.into_response();
        if let Self::TooMany { seconds, .. } = &self {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
        }
        let field = self.field();
        response.extensions_mut().insert(Failure { name, detail, field, checks: self.into_checks() });
        response
    }
}
