//! One running sandbox: launched, driven through the agent's API, and removed without a trace.
//!
//! Every call to the guest is raced against the end of the VM ([`Sandbox::ended`]), so whatever process dies, no call
//! hangs and the caller learns the reason.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use kata_cc_agent_protocol::agent as wire;
use kata_cc_agent_protocol::agent_ttrpc::AgentServiceClient;
use kata_cc_vmm_api::ControlRequest;
use protobuf::MessageDyn;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use crate::charge::Charge;
use crate::config::{ConfigError, NodeConfig};
use crate::copy::CopyError;
use crate::egress::{AllowListError, RouteError};
use crate::guest_log::{LastWords, Pull};
use crate::initdata::InitDataSourceError;
use crate::launch;
use crate::log::{Log, Source};
use crate::machine::Machine;
use crate::network::NetworkError;
use crate::oci::SpecError;
use crate::record::Recorder;
use crate::requests::RequestRecorder;
use crate::root_image::RootImageError;
use crate::rootfs::RootfsError;
use crate::sizing::Limits;
use crate::tier::{Class, Demand, Refusal, Tier};
use crate::vm_shape::ROOTFS_SLOTS;
use crate::{paths, process, vmm};

/// How long an orderly end may take before the VM is stopped hard.
const GRACE: Duration = Duration::from_secs(5);

/// Why a sandbox could not do what was asked.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The id cannot be a folder's name.
    #[error("sandbox id {0:?} must be 1 to 128 characters of [A-Za-z0-9_.-]")]
    Id(String),
    /// There is one of this id.
    #[error("sandbox {0} already exists: stop it, or use another id")]
    Exists(String),
    /// The node's configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no root image for the guest.
    #[error(transparent)]
    RootImage(#[from] RootImageError),
    /// No tier may be used.
    #[error(transparent)]
    Tier(#[from] Refusal),
    /// The init-data was refused.
    #[error(transparent)]
    InitData(#[from] InitDataSourceError),
    /// The egress allow-list was refused.
    #[error(transparent)]
    Egress(#[from] AllowListError),
    /// The proxy of the site was refused.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The network could not be prepared.
    #[error("network: {0}")]
    Network(#[from] NetworkError),
    /// The root file system could not be handed in.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The specification cannot be had in the guest.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A file of the host cannot be copied into the guest.
    #[error("cannot copy {from} into the guest: {why}")]
    Copy {
        /// The file.
        from: PathBuf,
        /// Why not.
        why: CopyError,
    },
    /// Something of the host failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The agent refused or failed; its own words.
    #[error("{message}")]
    Agent {
        /// gRPC code.
        code: i32,
        /// What it said.
        message: String,
    },
    /// The sandbox has ended.
    #[error("the sandbox has ended: {0}")]
    Ended(String),
    /// The agent did not answer in time.
    #[error("the guest's agent did not answer within {seconds} s; last lines of its console: {console}")]
    NoAgent {
        /// How long it was awaited.
        seconds: u64,
        /// What the guest printed last.
        console: String,
    },
    /// All spare block devices are in use.
    #[error("the sandbox has {ROOTFS_SLOTS} root file systems already, which is as many as a VM can take")]
    NoSlot,
    /// The sentry pulls no images.
    #[error(
        "the sentry runs root file systems of the host, and an image is named instead: unpack it (`kata-cc image unpack`) and run it by \
         `kata-cc --tier sentry run`, or run it by containerd or Podman"
    )]
    NoHostRoot,
}

pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> SandboxError {
    let what = what.into();
    move |source| SandboxError::Io { what, source }
}

/// A sandbox to start.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    /// Its id.
    pub id: String,
    /// Runtime class.
    pub class: Class,
    /// Network namespace of the pod; none gives the guest no network but the egress channel.
    pub netns: Option<PathBuf>,
    /// The pod's annotations.
    pub annotations: HashMap<String, String>,
    /// The pod's limits.
    pub limits: Limits,
    /// Host name.
    pub hostname: String,
    /// Lines of `resolv.conf`.
    pub dns: Vec<String>,
    /// The image, for the record.
    pub image: Option<String>,
    /// What the pod demands, beside what its annotations show.
    pub demand: Demand,
    /// Whether the containers share one PID namespace.
    pub shared_pids: bool,
    /// The pod's control group as the container engine names it (OCI `linux.cgroupsPath`); the monitor is started in it.
    /// None leaves the monitor where its parent is.
    pub cgroup: Option<String>,
}

/// A container's root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rootfs {
    /// A folder of the host, for a plain microVM.
    HostDir(PathBuf),
    /// The guest pulls this image.
    GuestPull(String),
    /// The guest's own pause program.
    Pause,
}

/// A container to create.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Its id.
    pub id: String,
    /// Its `config.json`.
    pub spec: Value,
    /// Its root.
    pub rootfs: Rootfs,
}

/// One of a process' outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A running sandbox.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    pub(crate) seal_at_first_use: bool,
    pub(crate) requests: Option<RequestRecorder>,
    pub(crate) tier: Tier,
    pub(crate) dir: PathBuf,
    /// Process id and start.
    monitor: (u32, u64),
    pub(crate) agent: Agent,
    pub(crate) machine: Machine,
    charge: Option<Charge>,
    pub(crate) containers: StdMutex<HashMap<String, Option<usize>>>,
    pub(crate) tasks: StdMutex<Vec<JoinHandle<()>>>,
    ended: watch::Receiver<Option<String>>,
    words: LastWords,
    pub(crate) log: Log,
    pub(crate) record: Recorder,
    stopping: Arc<AtomicBool>,
    stopped: Mutex<bool>,
}

/// What a launch hands over.
pub(crate) struct Parts {
    pub(crate) id: String,
    pub(crate) seal_at_first_use: bool,
    pub(crate) requests: Option<RequestRecorder>,
    pub(crate) tier: Tier,
    pub(crate) dir: PathBuf,
    pub(crate) monitor: (u32, u64),
    pub(crate) agent: Agent,
    pub(crate) machine: Machine,
    pub(crate) charge: Option<Charge>,
    pub(crate) tasks: Vec<JoinHandle<()>>,
    pub(crate) ended: watch::Receiver<Option<String>>,
    pub(crate) words: LastWords,
    pub(crate) log: Log,
    pub(crate) record: Recorder,
    pub(crate) stopping: Arc<AtomicBool>,
}

/// The client, with a `Debug` that says nothing.
#[derive(Clone)]
pub(crate) struct Agent(pub(crate) AgentServiceClient);

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AgentServiceClient")
    }
}

impl Sandbox {
    /// Start a sandbox; returns when its agent has taken the pod over. A failure leaves nothing behind but the record.
    ///
    /// # Errors
    /// See [`SandboxError`]; the record's last stage says the same.
    pub async fn create(config: &NodeConfig, spec: SandboxSpec) -> Result<Arc<Self>, SandboxError> {
        if !paths::is_id(&spec.id) {
            return Err(SandboxError::Id(spec.id));
        }
        // First of all: whoever has the folder has the id, and with it the record and the log of that name.
        let dir = paths::run_dir().join(&spec.id);
        launch::claim(&dir, &spec.id)?;
        let (record, log) = match open_record(&spec.id) {
            Ok(opened) => opened,
            Err(error) => {
                let _ = std::fs::remove_dir_all(&dir);
                return Err(error);
            }
        };
        record.stage("created", json!({"image": spec.image, "class": spec.class.name()}));
        let image = spec.image.as_deref().unwrap_or("no image named");
        log.add(Source::Shim, "info", &format!("starting: class {}, {image}", spec.class.name()));
        let plan = launch::Plan { config, spec: &spec, dir: &dir, record: &record, log: &log };
        let result = Box::pin(launch::launch(plan)).await;
        if let Err(error) = &result {
            log.add(Source::Shim, "error", &error.to_string());
            record.stage(failure_stage(error), failure_detail(error));
        }
        result
    }

    /// Of what a launch has made.
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            id: parts.id,
            seal_at_first_use: parts.seal_at_first_use,
            requests: parts.requests,
            tier: parts.tier,
            dir: parts.dir,
            monitor: parts.monitor,
            agent: parts.agent,
            machine: parts.machine,
            charge: parts.charge,
            containers: StdMutex::default(),
            tasks: StdMutex::new(parts.tasks),
            ended: parts.ended,
            words: parts.words,
            log: parts.log,
            record: parts.record,
            stopping: parts.stopping,
            stopped: Mutex::new(false),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What protects it.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Process id of the monitor, which lives in the pod's network namespace.
    #[must_use]
    pub fn vmm_pid(&self) -> u32 {
        self.monitor.0
    }

    /// Its record, for stages that the caller knows of.
    #[must_use]
    pub fn record(&self) -> &Recorder {
        &self.record
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Returns when the VM has ended, with the reason; at once if it has.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the sandbox's own tasks have ended".into(),
        }
    }

    /// Notes what is about to be asked of the guest, where the node's configuration wants that.
    pub(crate) fn sent<'r, R: MessageDyn>(&self, request: &'r R) -> &'r R {
        if let Some(requests) = &self.requests {
            requests.note(request);
        }
        request
    }

    /// A call to the agent, raced against the end of the VM.
    pub(crate) async fn call<T>(
        &self,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, SandboxError> {
        tokio::select! {
            biased;
            result = call => match result {
                Ok(value) => Ok(value),
                Err(ttrpc::Error::RpcStatus(status)) => {
                    Err(SandboxError::Agent { code: status.code.value(), message: status.message })
                }
                // The connection broke: the VM's end tells more, if it comes at once.
                Err(error) => match tokio::time::timeout(Duration::from_secs(2), self.ended()).await {
                    Ok(reason) => Err(SandboxError::Ended(reason)),
                    Err(_) => Err(SandboxError::Ended(format!("its agent cannot be reached: {error}"))),
                },
            },
            reason = self.ended() => Err(SandboxError::Ended(reason)),
        }
    }

    /// End the sandbox and remove all that belongs to it but its record. May be called again.
    pub async fn stop(&self) {
        let mut stopped = self.stopped.lock().await;
        if std::mem::replace(&mut *stopped, true) {
            return;
        }
        self.stopping.store(true, Ordering::SeqCst);
        self.log.add(Source::Shim, "info", "stopping");
        if self.ended.borrow().is_none() {
            let request = wire::DestroySandboxRequest::new();
            let destroy = self.agent.0.destroy_sandbox(context(), self.sent(&request));
            // A guest without ACPI cannot switch itself off: once it has let go of all, the monitor is told.
            let _ = tokio::time::timeout(GRACE, self.call(destroy)).await;
        }
        if matches!(self.machine, Machine::Vm(_)) && self.ended.borrow().is_none() {
            let _ = tokio::time::timeout(GRACE, vmm::ask(&self.dir, &ControlRequest::Stop)).await;
        }
        // A sentry's monitor gives the pod's interfaces back, which the engine's plug-ins look at.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.ended()).await;
        process::kill_if_same(self.monitor.0, self.monitor.1).await;
        let _ = tokio::time::timeout(GRACE, self.ended()).await;
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        self.machine.remove_network().await;
        if let Some(charge) = &self.charge
            && !charge.remove().await
        {
            let stays = format!("control group {} stays: it is in use", charge.name());
            self.log.add(Source::Shim, "warn", &stays);
        }
        self.log.add(Source::Shim, "info", "the sandbox is stopped and removed");
        self.machine.remove_disks();
        // The last step: it gives the id up.
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    /// The result, with an error told to the log as well: `what` could not be done.
    pub(crate) fn noted<T>(
        &self,
        what: impl FnOnce() -> String,
        result: Result<T, SandboxError>,
    ) -> Result<T, SandboxError> {
        if let Err(error) = &result {
            self.log.add(Source::Shim, "error", &format!("{}: {error}", what()));
        }
        result
    }
}

fn open_record(id: &str) -> Result<(Recorder, Log), SandboxError> {
    let record = Recorder::create(&paths::records(), id).map_err(io("cannot keep a record"))?;
    let log = Log::open(record.dir()).map_err(io("cannot keep a log"))?;
    Ok((record, log))
}

pub(crate) fn context() -> ttrpc::context::Context {
    ttrpc::context::Context::default()
}

pub(crate) fn failure_stage(error: &SandboxError) -> &'static str {
    match error {
        SandboxError::Tier(_) | SandboxError::InitData(_) | SandboxError::Spec(_) => "refused",
        // PERMISSION_DENIED: the agent's policy
        SandboxError::Agent { code: 7, .. } => "refused",
        _ => "failed",
    }
}

pub(crate) fn failure_detail(error: &SandboxError) -> Value {
    match error {
        SandboxError::Tier(refusal) => {
            json!({"by": "tier", "reason": refusal.reason, "advice": refusal.advice})
        }
        SandboxError::Agent { message, .. } => json!({"by": "agent", "reason": message}),
        other => json!({"by": "shim", "reason": other.to_string()}),
    }
}

impl Sandbox {
    /// How far the guest is with pulling `image`, when that goes on and takes long.
    #[must_use]
    pub fn pull(&self, image: &str) -> Option<Pull> {
        self.words.pull(image)
    }

    /// Why the guest refused something, if it said so in its log.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.words.refusal()
    }
}
