//! What the shim needs of a running sandbox: the seam between containerd's world and the guest's.
//!
//! [`Launcher`] makes a [`Pod`]; a pod runs containers by the Kata agent API. `crate::vm` implements both with
//! `kata-cc-sandbox`; tests implement them with a fake. Implementations need not guard against a guest that dies
//! during a call: every call here is raced against [`Pod::ended`] by `crate::tasks`.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use kata_cc_agent_protocol::agent::StatsContainerResponse;
use kata_cc_sandbox::Pull;
use oci_spec::runtime::{LinuxResources, Process, Spec};
use thiserror::Error;

use crate::grouping::Kind;

/// Why the guest did not do what it was asked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GuestError {
    /// No such container or process.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be done in the present state.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request itself is wrong.
    #[error("{0}")]
    InvalidArgument(String),
    /// The agent's policy, or the tier, forbids it.
    #[error("{0}")]
    Denied(String),
    /// The guest cannot be reached (any more).
    #[error("{0}")]
    Unavailable(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// A pod to launch.
#[derive(Clone, Debug)]
pub struct PodRequest {
    /// Sandbox id.
    pub id: String,
    /// containerd namespace.
    pub namespace: String,
    /// The first container's bundle.
    pub bundle: PathBuf,
    /// The first container's specification: network namespace, annotations and limits are taken from it.
    pub spec: Spec,
    /// Whether that is the pause container of a pod, or a pod of its own.
    pub kind: Kind,
}

/// A container to create.
#[derive(Clone, Debug)]
pub struct ContainerRequest {
    /// Container id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its specification as containerd wrote it.
    pub spec: Spec,
    /// What it is to its pod.
    pub kind: Kind,
    /// Its root file system on the host, mounted (not used where the guest pulls).
    pub rootfs: PathBuf,
    /// The image's reference, when it is known.
    pub image: Option<String>,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// One of a process' outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Starts pods.
#[async_trait]
pub trait Launcher: Send + Sync {
    /// Start the sandbox. A failure leaves nothing behind.
    async fn launch(&self, request: PodRequest) -> Result<Arc<dyn Pod>, GuestError>;
}

/// A running sandbox. An empty `exec` means the container's init process.
#[async_trait]
pub trait Pod: Send + Sync {
    /// A process of the host that lives in the pod's network namespace for as long as the pod does.
    fn pid(&self) -> u32;
    /// Whether containers' root file systems come from the host; without it the guest pulls images itself and the
    /// host's layers are never looked at.
    fn uses_host_rootfs(&self) -> bool;
    /// Returns when the sandbox has ended, with the reason; at once if it has.
    async fn ended(&self) -> String;
    /// Create a container.
    async fn create(&self, request: &ContainerRequest) -> Result<(), GuestError>;
    /// How far the guest is with pulling `image`, when that goes on and takes long.
    fn pull(&self, image: &str) -> Option<Pull>;
    /// Start its init process.
    async fn start(&self, container: &str) -> Result<(), GuestError>;
    /// Start another process in it.
    async fn exec(&self, container: &str, exec: &str, process: &Process) -> Result<(), GuestError>;
    /// Send a signal to a process.
    async fn signal(&self, container: &str, exec: &str, signal: u32) -> Result<(), GuestError>;
    /// Exit code (or 128 + signal) of a process, once it has ended.
    async fn wait(&self, container: &str, exec: &str) -> Result<u32, GuestError>;
    /// Write to a process' standard input; how much was taken.
    async fn write_stdin(&self, container: &str, exec: &str, data: &[u8]) -> Result<usize, GuestError>;
    /// End of its standard input.
    async fn close_stdin(&self, container: &str, exec: &str) -> Result<(), GuestError>;
    /// Read an output; empty at its end.
    async fn read(&self, container: &str, exec: &str, output: Output) -> Result<Vec<u8>, GuestError>;
    /// Set the terminal's size.
    async fn resize(&self, container: &str, exec: &str, rows: u32, columns: u32) -> Result<(), GuestError>;
    /// Change limits.
    async fn update(&self, container: &str, resources: &LinuxResources) -> Result<(), GuestError>;
    /// Counters.
    async fn stats(&self, container: &str) -> Result<StatsContainerResponse, GuestError>;
    /// Freeze a container.
    async fn pause(&self, container: &str) -> Result<(), GuestError>;
    /// Let it go on.
    async fn resume(&self, container: &str) -> Result<(), GuestError>;
    /// Remove a container that has ended, or end it.
    async fn remove(&self, container: &str) -> Result<(), GuestError>;
    /// The next container that ran out of memory.
    async fn out_of_memory(&self) -> Result<String, GuestError>;
    /// End the sandbox and remove all that belongs to it. May be called again.
    async fn stop(&self);
}
