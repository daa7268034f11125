//! One running sandbox: launched, driven through the agent's API, and removed without a trace.
//!
//! Every call to the guest is raced against the end of the VM ([`Sandbox::ended`]), so whatever process dies, no call
//! hangs and the caller learns the reason.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use kata_cc_agent_protocol::agent as wire;
use kata_cc_agent_protocol::agent_ttrpc::AgentServiceClient;
use kata_cc_vmm_api::{ControlReply, ControlRequest, port};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use crate::config::{ConfigError, NodeConfig};
use crate::egress::{self, AllowList, AllowListError};
use crate::guest_log::{self, LastWords};
use crate::initdata::{self, InitDataSourceError};
use crate::log::{Log, Source};
use crate::network::{Network, NetworkError};
use crate::oci::{self, SpecError};
use crate::record::Recorder;
use crate::rootfs::RootfsError;
use crate::sizing::{self, Limits};
use crate::tier::{self, Class, Demand, Refusal, Tier};
use crate::vm_shape::{self, Instance, ROOTFS_SLOTS};
use crate::{channel, paths, process, vmm};

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
    /// No tier may be used.
    #[error(transparent)]
    Tier(#[from] Refusal),
    /// The init-data was refused.
    #[error(transparent)]
    InitData(#[from] InitDataSourceError),
    /// The egress allow-list was refused.
    #[error(transparent)]
    Egress(#[from] AllowListError),
    /// The network could not be prepared.
    #[error("network: {0}")]
    Network(#[from] NetworkError),
    /// The root file system could not be handed in.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The specification cannot be had in the guest.
    #[error(transparent)]
    Spec(#[from] SpecError),
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

/// What the run-time folder remembers for [`cleanup_leftovers`].
#[derive(Debug, Serialize, Deserialize)]
struct Leftovers {
    pid: u32,
    start: u64,
    netns: PathBuf,
    own_netns: Option<String>,
}

/// A running sandbox.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    pub(crate) tier: Tier,
    pub(crate) dir: PathBuf,
    vmm_pid: u32,
    vmm_start: u64,
    pub(crate) agent: Agent,
    network: Arc<Mutex<Network>>,
    pub(crate) slots: StdMutex<BTreeSet<usize>>,
    pub(crate) containers: StdMutex<HashMap<String, Option<usize>>>,
    tasks: StdMutex<Vec<JoinHandle<()>>>,
    ended: watch::Receiver<Option<String>>,
    words: LastWords,
    pub(crate) log: Log,
    pub(crate) record: Recorder,
    stopping: Arc<AtomicBool>,
    stopped: Mutex<bool>,
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
        let record = Recorder::create(&paths::records(), &spec.id).map_err(io("cannot keep a record"))?;
        let log = Log::open(record.dir()).map_err(io("cannot keep a log"))?;
        record.stage("created", json!({"image": spec.image, "class": spec.class.name()}));
        let dir = paths::run_dir().join(&spec.id);
        let result = Box::pin(launch(config, &spec, &dir, &record, &log)).await;
        if let Err(error) = &result {
            log.add(Source::Shim, "error", &error.to_string());
            record.stage(failure_stage(error), failure_detail(error));
        }
        result
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
        self.vmm_pid
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
        if self.ended.borrow().is_none() {
            let request = wire::DestroySandboxRequest::new();
            let destroy = self.agent.0.destroy_sandbox(context(), &request);
            // A guest without ACPI cannot switch itself off: once it has let go of all, the monitor is told.
            let _ = tokio::time::timeout(GRACE, self.call(destroy)).await;
        }
        if self.ended.borrow().is_none() {
            let _ = tokio::time::timeout(GRACE, vmm::ask(&self.dir, &ControlRequest::Stop)).await;
            let _ = tokio::time::timeout(Duration::from_secs(1), self.ended()).await;
        }
        process::kill_if_same(self.vmm_pid, self.vmm_start);
        let _ = tokio::time::timeout(GRACE, self.ended()).await;
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        self.network.lock().await.remove().await;
        let _ = std::fs::remove_dir_all(&self.dir);
    }
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

/// What exists already while a launch is under way; dropped on failure, it removes it all.
struct Underway<'a> {
    dir: &'a Path,
    tasks: Vec<JoinHandle<()>>,
    network: Option<Network>,
    vmm: Option<(u32, u64)>,
}

impl Underway<'_> {
    async fn undo(mut self) {
        if let Some((pid, start)) = self.vmm {
            process::kill_if_same(pid, start);
        }
        for task in self.tasks.drain(..) {
            task.abort();
        }
        if let Some(network) = &mut self.network {
            network.remove().await;
        }
        let _ = std::fs::remove_dir_all(self.dir);
    }
}

async fn launch(
    config: &NodeConfig,
    spec: &SandboxSpec,
    dir: &Path,
    record: &Recorder,
    log: &Log,
) -> Result<Arc<Sandbox>, SandboxError> {
    let pod_data = initdata::of_pod(&spec.annotations)?;
    let demand = Demand { init_data: spec.demand.init_data || pod_data.is_some(), ..spec.demand };
    let selection = tier::select(spec.class, &config.ability(), demand, &config.auto_order)?;
    log.add(Source::Shim, "info", &format!("tier {}: {}", selection.tier, selection.why));
    record.stage("tier", json!({"tier": selection.tier, "why": selection.why}));

    make_run_dir(dir, &spec.id)?;
    let mut underway = Underway { dir, tasks: Vec::new(), network: None, vmm: None };
    let result =
        Box::pin(start(config, spec, dir, record, log, selection.tier, pod_data, &mut underway)).await;
    match result {
        Ok(sandbox) => Ok(sandbox),
        Err(error) => {
            underway.undo().await;
            Err(error)
        }
    }
}

fn make_run_dir(dir: &Path, id: &str) -> Result<(), SandboxError> {
    use std::os::unix::fs::DirBuilderExt;
    let socket = dir.join(format!("vsock_{}", port::SIM_TEE));
    if socket.as_os_str().len() > paths::SOCKET_PATH_MAX {
        return Err(io(format!("{} is too long for a Unix socket", socket.display()))(
            std::io::ErrorKind::InvalidInput.into(),
        ));
    }
    let parent = dir.parent().unwrap_or(dir);
    std::fs::create_dir_all(parent).map_err(io(format!("cannot make {}", parent.display())))?;
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(SandboxError::Exists(id.to_owned()))
        }
        Err(error) => Err(io(format!("cannot make {}", dir.display()))(error)),
    }
}

#[allow(clippy::too_many_arguments, reason = "the one place where a launch's parts meet")]
async fn start(
    config: &NodeConfig,
    spec: &SandboxSpec,
    dir: &Path,
    record: &Recorder,
    log: &Log,
    tier: Tier,
    pod_data: Option<initdata::Prepared>,
    underway: &mut Underway<'_>,
) -> Result<Arc<Sandbox>, SandboxError> {
    let size = sizing::size(spec.limits, &config.vm);
    let mut scratch = None;
    // A plain guest is told the same of registries; it just has nobody to prove it to.
    let prepared = match pod_data {
        Some(prepared) => prepared,
        None => initdata::of_node(config)?,
    };
    let initdata_path = dir.join("initdata.img");
    std::fs::write(&initdata_path, &prepared.image).map_err(io("cannot write the init-data image"))?;
    if config.scratch_mib > 0 {
        let path = dir.join("scratch.img");
        let file = std::fs::File::create(&path).map_err(io("cannot make the scratch disk"))?;
        file.set_len(config.scratch_mib << 20).map_err(io("cannot size the scratch disk"))?;
        scratch = Some(path);
    }
    let words = LastWords::default();
    let allow = AllowList::parse(&config.egress.allow)?;
    let socket = |port: u32| dir.join(format!("vsock_{port}"));
    underway
        .tasks
        .push(egress::serve(&socket(port::EGRESS), allow, log.clone()).map_err(io("cannot offer egress"))?);
    let agent_log = guest_log::follow_agent(&socket(port::LOG), log.clone(), words.clone(), record.clone());
    underway.tasks.push(agent_log.map_err(io("cannot listen for the agent's log"))?);
    underway.tasks.push(guest_log::follow_console(dir.join("console"), log.clone()));

    let network = Network::prepare(spec.netns.as_deref(), &spec.id).await?;
    let network = underway.network.insert(network);
    let instance = Instance {
        id: &spec.id,
        dir,
        initdata: Some(initdata_path),
        host_data: prepared.host_data,
        scratch,
        taps: network.taps(),
    };
    let vm = vm_shape::vm_config(config, tier, size, &instance);
    let mut monitor = vmm::start(&config.vmm(), &vm, dir, network.netns())
        .map_err(io(format!("cannot start {}", config.vmm().display())))?;
    underway.vmm = Some((monitor.pid, monitor.start));
    let leftovers = Leftovers {
        pid: monitor.pid,
        start: monitor.start,
        netns: network.netns().to_owned(),
        own_netns: network.own_namespace().map(str::to_owned),
    };
    let bytes = serde_json::to_vec(&leftovers)
        .map_err(std::io::Error::from)
        .map_err(io("cannot note the monitor"))?;
    std::fs::write(dir.join("leftovers.json"), bytes).map_err(io("cannot note the monitor"))?;
    record.stage(
        "vmm-started",
        json!({"pid": monitor.pid, "vcpus": size.vcpus, "memory_mib": size.memory_mib}),
    );
    if let Some(stderr) = monitor.child.stderr.take() {
        underway.tasks.push(guest_log::follow_vmm(stderr, log.clone(), words.clone()));
    }
    let (pid, vmm_start) = (monitor.pid, monitor.start);
    let stopping = Arc::new(AtomicBool::new(false));
    let (tell, ended) = watch::channel(None);
    // Not among the tasks that are aborted: it reaps the monitor.
    tokio::spawn(watch_monitor(
        monitor,
        tell,
        words.clone(),
        log.clone(),
        record.clone(),
        Arc::clone(&stopping),
    ));

    let agent = await_agent(config, dir, ended.clone(), &words).await?;
    if tier.is_confidential()
        && let Ok(ControlReply::State(state)) = vmm::ask(dir, &ControlRequest::State).await
    {
        record.stage("measured", json!({"launch_digest": state.launch_digest, "tee": state.tee}));
    }
    record.stage("agent-ready", json!({}));
    let sandbox = Arc::new(Sandbox {
        id: spec.id.clone(),
        tier,
        dir: dir.to_owned(),
        vmm_pid: pid,
        vmm_start,
        agent: Agent(agent),
        network: Arc::new(Mutex::new(underway.network.take().unwrap_or_else(|| unreachable!("set above")))),
        slots: StdMutex::default(),
        containers: StdMutex::default(),
        tasks: StdMutex::new(std::mem::take(&mut underway.tasks)),
        ended,
        words,
        log: log.clone(),
        record: record.clone(),
        stopping,
        stopped: Mutex::new(false),
    });
    if let Err(error) = sandbox.take_over(spec).await {
        sandbox.stop().await;
        return Err(error);
    }
    Ok(sandbox)
}

/// Waits for the agent, the end of the VM, or the limit.
async fn await_agent(
    config: &NodeConfig,
    dir: &Path,
    mut ended: watch::Receiver<Option<String>>,
    words: &LastWords,
) -> Result<AgentServiceClient, SandboxError> {
    let uds = dir.join("vsock");
    let seconds = config.agent_timeout_s;
    tokio::select! {
        agent = channel::agent(&uds) => Ok(agent),
        reason = ended.wait_for(Option::is_some) => {
            let reason = reason.ok().and_then(|reason| reason.clone());
            Err(SandboxError::Ended(reason.unwrap_or_else(|| "its monitor is gone".into())))
        }
        () = tokio::time::sleep(Duration::from_secs(seconds)) => {
            let console = words.refusal().unwrap_or_else(|| guest_log::console_end(&dir.join("console")));
            Err(SandboxError::NoAgent { seconds, console })
        }
    }
}

/// Reaps the monitor and tells everybody why it ended.
async fn watch_monitor(
    mut monitor: vmm::Vmm,
    tell: watch::Sender<Option<String>>,
    words: LastWords,
    log: Log,
    record: Recorder,
    stopping: Arc<AtomicBool>,
) {
    let mut reason = match monitor.child.wait().await {
        Ok(status) => vmm::exit_reason(status),
        Err(error) => format!("the virtual machine monitor was lost: {error}"),
    };
    // Its last lines may still be on their way.
    tokio::time::sleep(Duration::from_millis(50)).await;
    if let Some(more) = words.refusal().or_else(|| words.error()) {
        reason = format!("{reason}: {more}");
    }
    if !stopping.load(Ordering::SeqCst) {
        log.add(Source::Shim, "error", &format!("the sandbox has ended: {reason}"));
        record.stage("failed", json!({"by": "vmm", "reason": reason}));
    }
    let _ = tell.send(Some(reason));
}

impl Sandbox {
    /// CreateSandbox, then the network as it is now and as it becomes.
    async fn take_over(self: &Arc<Self>, spec: &SandboxSpec) -> Result<(), SandboxError> {
        let mut request = wire::CreateSandboxRequest::new();
        request.hostname.clone_from(&spec.hostname);
        request.dns.clone_from(&spec.dns);
        request.sandbox_id.clone_from(&spec.id);
        request.sandbox_pidns = spec.shared_pids;
        request.storages = vec![wire::Storage {
            driver: "ephemeral".into(),
            source: "shm".into(),
            fstype: "tmpfs".into(),
            options: ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"].map(str::to_owned).into(),
            mount_point: oci::SANDBOX_SHM.into(),
            ..Default::default()
        }];
        self.call(self.agent.0.create_sandbox(context(), &request)).await?;
        self.update_network().await?;
        if spec.netns.is_some() {
            let mut changes = self.network.lock().await.watch()?;
            let weak = Arc::downgrade(self);
            let task = tokio::spawn(async move {
                loop {
                    changes.next().await;
                    // An interface comes up in several steps: wait for them.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    let Some(sandbox) = weak.upgrade() else { return };
                    if let Err(error) = sandbox.update_network().await {
                        sandbox.log.add(
                            Source::Shim,
                            "warn",
                            &format!("network of the guest not updated: {error}"),
                        );
                    }
                }
            });
            self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        }
        Ok(())
    }

    /// Tie what is new in the namespace, and tell the guest.
    async fn update_network(&self) -> Result<(), SandboxError> {
        let guest = self.network.lock().await.scan().await?;
        for interface in guest.interfaces {
            let mut request = wire::UpdateInterfaceRequest::new();
            request.interface = Some(interface).into();
            self.call(self.agent.0.update_interface(context(), &request)).await?;
        }
        if !guest.routes.is_empty() {
            let mut request = wire::UpdateRoutesRequest::new();
            request.routes = Some(wire::Routes { Routes: guest.routes, ..Default::default() }).into();
            self.call(self.agent.0.update_routes(context(), &request)).await?;
        }
        Ok(())
    }

    /// Why the guest refused something, if it said so in its log.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.words.refusal()
    }
}

/// Remove what a sandbox whose shim died has left: the monitor, its network, its run-time folder.
///
/// The monitor dies with the shim by itself; this makes sure, and takes away the rest. Nothing happens when there is
/// nothing.
pub fn cleanup_leftovers(id: &str) {
    if !paths::is_id(id) {
        return;
    }
    let dir = paths::run_dir().join(id);
    let leftovers: Option<Leftovers> =
        std::fs::read(dir.join("leftovers.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(left) = &leftovers {
        process::kill_if_same(left.pid, left.start);
        crate::network::remove_leftovers(left.own_netns.as_deref(), Some(&left.netns));
    }
    let _ = std::fs::remove_dir_all(&dir);
}
