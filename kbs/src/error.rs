//! Errors as answers: Trustee's JSON shape, with status codes and details that say what went wrong.
//!
//! Trustee answers 401 to nearly everything. Here 401 means "attest (again)" or "no valid admin token", 403 "attested,
//! but the policy says no", 404 "no such resource", 400 "not understood", 500 "our fault" (with the reason in the log
//! only). A refusal of evidence stays 401 with `AttestationError`, as clients expect, and its detail names the reason.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use kata_cc_attestation_service::service::ServiceError;
use kata_cc_attestation_service::store::StoreError;
use kata_cc_attestation_service::token::TokenError;
use kata_cc_kbs_protocol::ErrorInformation;
use thiserror::Error;
use tracing::error;

use crate::plugins::{PluginError, http};

/// An error answer.
#[derive(Debug, Error)]
pub(crate) enum ApiError {
    /// The handshake failed.
    #[error("Attestation error: {0}")]
    Attestation(String),
    /// Neither a session nor a token.
    #[error("Attestation Token not found: {0}")]
    TokenNotFound(String),
    /// A token that is not valid.
    #[error("Token Verifier error: {0}")]
    TokenVerifier(String),
    /// The resource policy says no.
    #[error("Access denied by policy: {0}")]
    PolicyDeny(String),
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
    /// Something that is not there.
    #[error("{0}")]
    NotFound(String),
    /// No such plugin.
    #[error("Plugin {0} not found")]
    PluginNotFound(String),
    /// A path that is not understood.
    #[error("invalid request path: {0}")]
    Path(String),
    /// A body that is not understood.
    #[error("request is not understood: {0}")]
    Serde(String),
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

impl ApiError {
    fn parts(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Attestation(_) => (StatusCode::UNAUTHORIZED, "AttestationError"),
            Self::TokenNotFound(_) => (StatusCode::UNAUTHORIZED, "TokenNotFound"),
            Self::TokenVerifier(_) => (StatusCode::UNAUTHORIZED, "TokenVerifierError"),
            Self::PolicyDeny(_) => (StatusCode::FORBIDDEN, "PolicyDeny"),
            Self::PolicyEngine(_) => (StatusCode::INTERNAL_SERVER_ERROR, "PolicyEngineError"),
            Self::ParsePolicy(_) => (StatusCode::BAD_REQUEST, "ParsePolicyError"),
            Self::Admin { .. } => (StatusCode::UNAUTHORIZED, "AdminAuthAccess"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "ResourceNotFound"),
            Self::PluginNotFound(_) => (StatusCode::NOT_FOUND, "PluginNotFound"),
            Self::Path(_) => (StatusCode::NOT_FOUND, "InvalidRequestPath"),
            Self::Serde(_) => (StatusCode::BAD_REQUEST, "SerdeError"),
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
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Internal(error.to_string())
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
            ServiceError::PolicyId(_) => Self::NotFound(text),
            ServiceError::Request(_) => Self::Serde(text),
            // Only the standalone service's own gate says so; ours is `crate::admin`.
            ServiceError::Admin(why) => Self::Admin { endpoint: "attestation service".to_owned(), why },
            ServiceError::Store(_) | ServiceError::Token(_) | ServiceError::SigningKey { .. } => {
                Self::Internal(text)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, name) = self.parts();
        let detail = match &self {
            Self::Internal(why) => {
                error!(%why, "internal error");
                "internal error, the reason is in the log of the key broker".to_owned()
            }
            Self::Plugin(error) => {
                http::log_failure(error);
                http::told(error)
            }
            other => other.to_string(),
        };
        let body = serde_json::to_vec(&ErrorInformation::new(name, detail)).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}
