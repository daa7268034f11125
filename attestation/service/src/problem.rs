//! Errors as `application/problem+json` (RFC 9457), with `field`, `reason` and `request_id` besides.

use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::audit_export::ExportError;
use crate::challenge::ChallengeError;
use crate::query::QueryError;
use crate::service::ServiceError;
use crate::token::TokenError;

/// Media type.
pub const MEDIA_TYPE: &str = "application/problem+json";
/// Header with the id of a request, in requests and answers.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Most characters of a detail: it may repeat what somebody sent.
const MAX_DETAIL: usize = 2000;

tokio::task_local! {
    /// Id of the request that is being answered.
    pub(crate) static CURRENT_REQUEST: String;
}

/// One error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Kind: `urn:kata-cc:attestation-service:<reason>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short, the same for the same kind.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// This occurrence: what failed, what was seen, what to do.
    pub detail: String,
    /// Member of the request that it is about, when it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Stable name of the reason, for programs.
    pub reason: String,
    /// Id of the request, as in the log and in the header `x-request-id`.
    pub request_id: String,
}

impl Problem {
    /// An error of a reason.
    pub fn new(status: StatusCode, reason: &str, detail: impl std::fmt::Display) -> Self {
        Self {
            kind: format!("urn:kata-cc:attestation-service:{reason}"),
            title: reason.replace('-', " "),
            status: status.as_u16(),
            detail: detail.to_string().chars().take(MAX_DETAIL).collect(),
            field: None,
            reason: reason.to_owned(),
            request_id: CURRENT_REQUEST.try_with(Clone::clone).unwrap_or_default(),
        }
    }

    /// About a member of the request.
    #[must_use]
    pub fn field(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    /// A request that is not understood.
    pub fn request(field: &str, detail: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "request", detail).field(field)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, axum::http::HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        use ServiceError as E;
        let (status, reason, field) = match &error {
            E::Refused(refusal) => {
                let field = refusal.claim.clone().unwrap_or_else(|| "evidence".to_owned());
                (StatusCode::UNPROCESSABLE_ENTITY, refusal.reason.name(), Some(field))
            }
            E::Policy(_) => (StatusCode::BAD_REQUEST, "policy", Some("policy".to_owned())),
            E::PolicyId(_) => (StatusCode::NOT_FOUND, "policy-id", Some("policy_id".to_owned())),
            E::NotFound(_) => (StatusCode::NOT_FOUND, "not-found", None),
            E::Request(_) => (StatusCode::BAD_REQUEST, "request", None),
            E::Reference(crate::references::ReferenceError::Replay { .. }) => {
                (StatusCode::CONFLICT, "replay", Some("payload".to_owned()))
            }
            E::Conflict { .. } => (StatusCode::CONFLICT, "conflict", None),
            E::Owned { .. } => (StatusCode::CONFLICT, "policy-source", None),
            E::Reference(_) => (StatusCode::BAD_REQUEST, "reference-value", Some("values".to_owned())),
            E::Source(crate::sources::SourceError::Unsigned(_)) => {
                (StatusCode::UNAUTHORIZED, "admin", Some("type".to_owned()))
            }
            E::Source(crate::sources::SourceError::NotAllowed { .. }) => {
                (StatusCode::FORBIDDEN, "not-allowed", Some("payload".to_owned()))
            }
            E::Source(_) => (StatusCode::BAD_REQUEST, "reference-value-message", Some("payload".to_owned())),
            E::Admin(_) => (StatusCode::UNAUTHORIZED, "admin", Some("authorization".to_owned())),
            E::Token(TokenError::TooLarge(_)) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "token-size", Some("init_data".to_owned()))
            }
            // A policy of the administrator, on evidence that it did not foresee: nobody's server is broken.
            E::Appraisal(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "policy-failed", Some("policy_ids".to_owned()))
            }
            E::Store(_) | E::Token(_) | E::SigningKey { .. } | E::Random => {
                tracing::error!(%error, "request failed");
                let problem = Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "internal",
                    "the service failed; its log has the reason under the request's id",
                );
                return problem;
            }
        };
        Self { field, ..Self::new(status, reason, &error) }
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        Self::request(error.name, &error)
    }
}

impl From<ExportError> for Problem {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Store(error) => ServiceError::Store(error).into(),
            ExportError::File(why) => {
                tracing::error!(%why, "the audit log cannot be sent");
                let told = "the audit log could not be written to a file to be sent: the log of the service says why";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", told)
            }
        }
    }
}

impl From<ChallengeError> for Problem {
    fn from(error: ChallengeError) -> Self {
        let status = match error {
            ChallengeError::Busy => StatusCode::TOO_MANY_REQUESTS,
            ChallengeError::Random => StatusCode::INTERNAL_SERVER_ERROR,
            ChallengeError::Store(error) => return ServiceError::Store(error).into(),
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error.reason(), &error).field("challenge")
    }
}
