//! Errors of the parts → ttrpc statuses, with Kata's codes.

use crate::sandbox::SandboxError;

/// What a call answers.
pub(crate) type Answer<T> = ttrpc::Result<T>;

/// A status with this code.
pub(crate) fn code(code: ttrpc::Code, message: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}

/// INTERNAL with the whole chain.
pub(crate) fn internal(error: impl std::error::Error) -> ttrpc::Error {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // thiserror messages often include their source already.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    code(ttrpc::Code::INTERNAL, text)
}

/// Kata's codes: unknown container INVALID_ARGUMENT, unknown process NOT_FOUND.
pub(crate) fn from_sandbox(error: SandboxError) -> ttrpc::Error {
    tracing::warn!(error = %error, "request failed");
    match &error {
        SandboxError::NoContainer(_) | SandboxError::Spec(_) => {
            code(ttrpc::Code::INVALID_ARGUMENT, error.to_string())
        }
        SandboxError::NoProcess { .. } => code(ttrpc::Code::NOT_FOUND, error.to_string()),
        SandboxError::Denied(_) => code(ttrpc::Code::PERMISSION_DENIED, error.to_string()),
        SandboxError::GivenUp(_) => code(ttrpc::Code::CANCELLED, error.to_string()),
        SandboxError::Exists(_) => code(ttrpc::Code::ALREADY_EXISTS, error.to_string()),
        SandboxError::TooMany => code(ttrpc::Code::RESOURCE_EXHAUSTED, error.to_string()),
        _ => internal(error),
    }
}
