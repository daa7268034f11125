//! Why a verb fails. The first words are runc's: engines and users know them, and some engines look for them.

use std::path::PathBuf;

use thiserror::Error;

use crate::agent::AgentError;
use crate::bundle::BundleError;
use crate::cgroup::CgroupError;
use crate::hooks::HookError;
use crate::store::Status;

/// Why a verb fails.
#[derive(Debug, Error)]
pub enum OciError {
    /// The id cannot be a folder's name.
    #[error(
        "invalid container ID format {0:?}: it must be 1 to 1024 characters of [A-Za-z0-9_+.-] and not . or .."
    )]
    Id(String),
    /// There is one already.
    #[error("container with given ID already exists: {0}; `delete` it, or choose another")]
    Exists(String),
    /// There is none.
    #[error("container does not exist: {id} is not in {root}; `list` shows what is there")]
    Missing {
        /// What was asked for.
        id: String,
        /// Where it was looked for.
        root: PathBuf,
    },
    /// It was started before.
    #[error("cannot start an already running container: {0}")]
    Running(String),
    /// It has ended.
    #[error("cannot start a container that has stopped: {0}; `delete` it and create it again")]
    Stopped(String),
    /// It does not run.
    #[error("container not running: {id} is {status}")]
    NotRunning {
        /// Which.
        id: String,
        /// What it is instead.
        status: Status,
    },
    /// It is frozen.
    #[error("container paused: {0}; `resume` it first")]
    Paused(String),
    /// It is not frozen.
    #[error("container not paused: {0}")]
    NotPaused(String),
    /// Only one that has ended can be deleted.
    #[error("cannot delete container {id} that is not stopped: {status}; `kill` it, or `delete --force`")]
    StillThere {
        /// Which.
        id: String,
        /// What it is.
        status: Status,
    },
    /// The sandbox that a container belongs to is gone.
    #[error("sandbox {sandbox} of container {id} does not run: create its first container before the others")]
    NoSandbox {
        /// Which.
        id: String,
        /// Its sandbox.
        sandbox: String,
    },
    /// The bundle is refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A control group.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The sentry refuses, or cannot be reached.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The sentry does not start.
    #[error("unable to start container process: {program} did not start: {reason}")]
    Sentry {
        /// What was started.
        program: PathBuf,
        /// What it said.
        reason: String,
    },
    /// An option does not fit.
    #[error("{0}")]
    Usage(String),
    /// The file of a container's state is not as it was written.
    #[error("{path} is damaged: {reason}; `delete --force` takes the container away")]
    State {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Something of the host.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the host says.
        source: std::io::Error,
    },
}

/// Says what was tried.
pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> OciError {
    let what = what.into();
    move |source| OciError::Io { what, source }
}

/// The same for what `nix` says.
pub(crate) fn sys(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> OciError {
    let what = what.into();
    move |errno| OciError::Io { what, source: errno.into() }
}
