//! Why a task call fails, and the gRPC code that containerd knows it by.

use thiserror::Error;
use ttrpc::{Code, get_status};

use crate::guest::GuestError;
use crate::machine::Refusal;
use crate::mounts::MountError;
use crate::stdio::StdioError;

/// Why a call fails.
#[derive(Debug, Error)]
pub enum TaskError {
    /// No such container, or it is still being created.
    #[error("container {0:?} not found")]
    NoContainer(String),
    /// The id is taken.
    #[error("container {0:?} already exists")]
    Exists(String),
    /// The request is malformed.
    #[error("{0}")]
    Invalid(String),
    /// Not in the present state.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The guest says no, or is gone.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The root file system.
    #[error("root file system: {0}")]
    Rootfs(#[from] MountError),
    /// The streams.
    #[error("standard streams: {0}")]
    Stdio(#[from] StdioError),
    /// This shim cannot do it at all.
    #[error("{0} is not supported by this runtime")]
    Unsupported(&'static str),
    /// The caller gave the container up while it was being created.
    #[error("creation of container {0:?} was given up by the caller")]
    GivenUp(String),
    /// The caller waits no longer.
    #[error(
        "container {container:?} is not there after {seconds} s, and the caller waits no longer: {doing}; what to do: raise the caller's \
         time-out (the kubelet's runtimeRequestTimeout), or let the node keep a copy of the image ([image] seal_at_first_use)"
    )]
    TooLong {
        /// The container.
        container: String,
        /// How long it took.
        seconds: u64,
        /// What was being done, in words.
        doing: String,
    },
    /// A hook failed.
    #[error("{0}")]
    Hook(String),
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
}

impl TaskError {
    fn code(&self) -> Code {
        match self {
            Self::NoContainer(_) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::Invalid(_) | Self::Stdio(StdioError::Scheme(_)) => Code::INVALID_ARGUMENT,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::GivenUp(_) => Code::CANCELLED,
            Self::TooLong { .. } => Code::DEADLINE_EXCEEDED,
            Self::Refused(refusal) => match refusal {
                // containerd and CRI take NOT_FOUND of a kill for success: the process is gone
                Refusal::NotFound(_) | Refusal::Finished => Code::NOT_FOUND,
                Refusal::AlreadyExists(_) => Code::ALREADY_EXISTS,
                Refusal::NotRunning
                | Refusal::NotStarted
                | Refusal::StillRunning
                | Refusal::WrongState(_) => Code::FAILED_PRECONDITION,
                Refusal::StartedBefore => Code::UNKNOWN,
            },
            Self::Guest(error) => match error {
                GuestError::NotFound(_) => Code::NOT_FOUND,
                GuestError::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
                GuestError::InvalidArgument(_) => Code::INVALID_ARGUMENT,
                GuestError::Denied(_) => Code::PERMISSION_DENIED,
                GuestError::Unavailable(_) => Code::UNAVAILABLE,
                GuestError::Other(_) => Code::UNKNOWN,
            },
            Self::Rootfs(_) | Self::Stdio(_) | Self::Hook(_) | Self::Internal(_) => Code::UNKNOWN,
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        Self::RpcStatus(get_status(error.code(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_containerd_acts_on() {
        let cases = [
            (TaskError::NoContainer("c".into()), Code::NOT_FOUND),
            (TaskError::Refused(Refusal::Finished), Code::NOT_FOUND),
            (TaskError::Exists("c".into()), Code::ALREADY_EXISTS),
            (TaskError::Refused(Refusal::NotStarted), Code::FAILED_PRECONDITION),
            (TaskError::Refused(Refusal::StartedBefore), Code::UNKNOWN),
            (TaskError::Unsupported("checkpoint"), Code::UNIMPLEMENTED),
            (TaskError::Guest(GuestError::Unavailable("gone".into())), Code::UNAVAILABLE),
        ];
        for (error, code) in cases {
            let text = error.to_string();
            let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error) else { panic!("{text}") };
            assert_eq!(status.code(), code, "{text}");
            assert_eq!(status.message, text);
        }
    }
}
