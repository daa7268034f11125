//! Launching: from a specification to a sandbox whose agent has taken the pod over, or to nothing at all.
//!
//! What a launch makes is noted in [`Underway`] as it is made, and taken away again when a later step fails. The run-time
//! folder is the sandbox's claim on its id: made first, by [`claim`], removed last.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kata_cc_agent_protocol::agent_ttrpc::AgentServiceClient;
use kata_cc_vmm_api::{ControlReply, ControlRequest, VmConfig, port};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cgroup::Cgroup;
use crate::config::NodeConfig;
use crate::disks::Disks;
use crate::egress::{self, AllowList, Route};
use crate::guest_log::{self, LastWords};
use crate::initdata;
use crate::leftovers::Leftovers;
use crate::log::{Log, Source};
use crate::network::Network;
use crate::record::Recorder;
use crate::requests::RequestRecorder;
use crate::root_image::RootImage;
use crate::sandbox::{Agent, Sandbox, SandboxError, SandboxSpec, io};
use crate::sizing::{self, Size};
use crate::tier::{self, Demand, Tier};
use crate::vm_shape::{self, Instance};
use crate::{channel, paths, process, vmm};

/// What a launch starts from.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) config: &'a NodeConfig,
    pub(crate) spec: &'a SandboxSpec,
    /// The run-time folder, claimed.
    pub(crate) dir: &'a Path,
    pub(crate) record: &'a Recorder,
    pub(crate) log: &'a Log,
}

/// What exists already while a launch is under way; [`Underway::undo`] takes it all away.
struct Underway<'a> {
    /// None once the sandbox has taken the folder over.
    dir: Option<&'a Path>,
    tasks: Vec<JoinHandle<()>>,
    network: Option<Network>,
    disks: Option<Disks>,
    cgroup: Option<Cgroup>,
    monitor: Option<(u32, u64)>,
    words: LastWords,
    /// Whether the monitor's end is our own doing.
    stopping: Arc<AtomicBool>,
}

impl Underway<'_> {
    async fn undo(mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Some((pid, start)) = self.monitor {
            process::kill_if_same(pid, start).await;
        }
        for task in self.tasks.drain(..) {
            task.abort();
        }
        if let Some(network) = &mut self.network {
            network.remove().await;
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove().await;
        }
        if let Some(disks) = &self.disks {
            disks.remove();
        }
        if let Some(dir) = self.dir {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// Claim an id: make its run-time folder, which nobody else may have.
pub(crate) fn claim(dir: &Path, id: &str) -> Result<(), SandboxError> {
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

/// Launch into a claimed folder. A failure leaves nothing behind, and gives the claim up.
pub(crate) async fn launch(plan: Plan<'_>) -> Result<Arc<Sandbox>, SandboxError> {
    let mut underway = Underway {
        dir: Some(plan.dir),
        tasks: Vec::new(),
        network: None,
        disks: None,
        cgroup: None,
        monitor: None,
        words: LastWords::default(),
        stopping: Arc::default(),
    };
    match Box::pin(start(plan, &mut underway)).await {
        Ok(sandbox) => Ok(sandbox),
        Err(error) => {
            underway.undo().await;
            Err(error)
        }
    }
}

async fn start<'a>(plan: Plan<'a>, underway: &mut Underway<'a>) -> Result<Arc<Sandbox>, SandboxError> {
    let Plan { config, spec, dir, record, log } = plan;
    let pod_data = initdata::of_pod(&spec.annotations)?;
    let demand = Demand { init_data: spec.demand.init_data || pod_data.is_some(), ..spec.demand };
    let selection = tier::select(spec.class, &config.ability(), demand, &config.auto_order)?;
    log.add(Source::Shim, "info", &format!("tier {}: {}", selection.tier, selection.why));
    record.stage("tier", json!({"tier": selection.tier, "why": selection.why}));
    // A plain guest is told the same of registries; it just has nobody to prove it to.
    let prepared = match pod_data {
        Some(prepared) => prepared,
        None => initdata::of_node(config)?,
    };
    let tier = selection.tier;
    let size = sizing::size(spec.limits, &config.vm);
    serve_guest(plan, underway)?;
    let vm = describe_vm(plan, tier, size, &prepared, underway).await?;
    let (monitor, ended) = start_monitor(plan, size, &vm, underway)?;

    let agent = await_agent(config, dir, ended.clone(), &underway.words).await?;
    if tier.is_confidential()
        && let Ok(ControlReply::State(state)) = vmm::ask(dir, &ControlRequest::State).await
    {
        record.stage("measured", json!({"launch_digest": state.launch_digest, "tee": state.tee}));
    }
    record.stage("agent-ready", json!({}));
    log.add(Source::Shim, "info", "the guest's agent answers");
    underway.dir = None;
    let network = underway.network.take().unwrap_or_else(|| unreachable!("describe_vm has set it"));
    let disks = underway.disks.take().unwrap_or_else(|| unreachable!("describe_vm has made them"));
    let sandbox = Arc::new(Sandbox::new(crate::sandbox::Parts {
        id: spec.id.clone(),
        seal_at_first_use: config.image.seal_at_first_use,
        requests: recorder(config, record, log),
        tier,
        dir: dir.to_owned(),
        monitor,
        agent: Agent(agent),
        network,
        disks,
        cgroup: underway.cgroup.take(),
        tasks: std::mem::take(&mut underway.tasks),
        ended,
        words: underway.words.clone(),
        log: log.clone(),
        record: record.clone(),
        stopping: Arc::clone(&underway.stopping),
    }));
    if let Err(error) = sandbox.take_over(spec).await {
        sandbox.stop().await;
        return Err(error);
    }
    log.add(Source::Shim, "info", "the sandbox runs");
    Ok(sandbox)
}

/// What the guest finds at the host's end of its channels: the way out, and somebody who takes its log.
fn serve_guest(plan: Plan<'_>, underway: &mut Underway<'_>) -> Result<(), SandboxError> {
    let Plan { config, dir, record, log, .. } = plan;
    let allow = AllowList::parse(&config.egress.allow)?;
    let route = Route::parse(config.egress.proxy.as_deref(), &config.egress.direct)?;
    let socket = |port: u32| dir.join(format!("vsock_{port}"));
    let egress = egress::serve(&socket(port::EGRESS), allow, route, log.clone());
    underway.tasks.push(egress.map_err(io("cannot offer egress"))?);
    let agent_log =
        guest_log::follow_agent(&socket(port::LOG), log.clone(), underway.words.clone(), record.clone());
    underway.tasks.push(agent_log.map_err(io("cannot listen for the agent's log"))?);
    let console = guest_log::follow_console(&vm_shape::console(dir), log.clone(), underway.words.clone());
    underway.tasks.push(console.map_err(io("cannot make the guest's console"))?);
    Ok(())
}

/// The VM's configuration, with the disks and the network that it names.
async fn describe_vm(
    plan: Plan<'_>,
    tier: Tier,
    size: Size,
    prepared: &initdata::Prepared,
    underway: &mut Underway<'_>,
) -> Result<VmConfig, SandboxError> {
    let Plan { config, spec, dir, log, .. } = plan;
    let root = RootImage::of(config)?;
    let disks = Disks::make(&paths::disks(), &spec.id);
    let disks = disks.map_err(io(format!("cannot make disks in {}", paths::disks().display())))?;
    let disks = underway.disks.insert(disks);
    let initdata = dir.join("initdata.img");
    std::fs::write(&initdata, &prepared.image).map_err(io("cannot write the init-data image"))?;
    let scratch = match config.scratch_mib {
        0 => None,
        mib => Some(make_scratch(disks, mib)?),
    };
    let cgroup = Cgroup::named(spec.cgroup.as_deref());
    underway.cgroup = cgroup.map_err(io(format!("control group {:?}", spec.cgroup)))?;
    if spec.cgroup.is_some() && underway.cgroup.is_none() {
        let uncharged = "this node has no cgroup v2: what the guest uses is not charged to its pod";
        log.add(Source::Shim, "warn", uncharged);
    }
    // Noted before they are made: a launch that is broken off is cleaned up after by the note alone.
    note(plan, underway, None)?;
    if let Some(cgroup) = &underway.cgroup {
        let made = cgroup.make(size.memory_mib);
        let made = made.map_err(io(format!("cannot make control group {}", cgroup.path().display())))?;
        if let Some(warning) = made {
            log.add(Source::Shim, "warn", &warning);
        }
    }
    let network = Network::prepare(spec.netns.as_deref(), &spec.id).await?;
    let network = underway.network.insert(network);
    let instance = Instance {
        id: &spec.id,
        dir,
        root: root.as_ref(),
        initdata: Some(initdata),
        init_data_digest: prepared.digest.clone(),
        scratch,
        taps: network.taps(),
    };
    Ok(vm_shape::vm_config(config, tier, size, &instance))
}

/// Notes what is there to be cleaned up after, should this process die.
fn note(plan: Plan<'_>, underway: &Underway<'_>, monitor: Option<(u32, u64)>) -> Result<(), SandboxError> {
    let (netns, own_netns) = Network::place(plan.spec.netns.as_deref(), &plan.spec.id);
    let cgroup = underway.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned());
    let missing_cgroups = underway.cgroup.as_ref().map(Cgroup::missing).unwrap_or_default();
    let left = Leftovers { monitor, netns, own_netns, cgroup, missing_cgroups };
    left.write(plan.dir).map_err(io("cannot note what is to be cleaned up"))
}

fn make_scratch(disks: &Disks, mib: u64) -> Result<PathBuf, SandboxError> {
    let path = disks.file("scratch.img");
    let file = std::fs::File::create(&path).map_err(io("cannot make the scratch disk"))?;
    file.set_len(mib << 20).map_err(io("cannot size the scratch disk"))?;
    Ok(path)
}

/// Why the sandbox has ended, once it has.
type Ended = watch::Receiver<Option<String>>;

/// Keeps what the guest is asked, where the configuration wants that. That it cannot is no reason not to start.
fn recorder(config: &NodeConfig, record: &Recorder, log: &Log) -> Option<RequestRecorder> {
    if !config.record_requests {
        return None;
    }
    let created = RequestRecorder::create(record.dir());
    created.map_err(|error| log.add(Source::Shim, "warn", &format!("requests are not kept: {error}"))).ok()
}

/// Start the monitor, note it, and watch over its end.
fn start_monitor(
    plan: Plan<'_>,
    size: Size,
    vm: &VmConfig,
    underway: &mut Underway<'_>,
) -> Result<((u32, u64), Ended), SandboxError> {
    let Plan { config, spec, dir, record, log } = plan;
    let (netns, _) = Network::place(spec.netns.as_deref(), &spec.id);
    let mut monitor = vmm::start(&config.vmm(), vm, dir, &netns, underway.cgroup.as_ref())
        .map_err(io(format!("cannot start {}", config.vmm().display())))?;
    let known = (monitor.pid, monitor.start);
    underway.monitor = Some(known);
    note(plan, underway, Some(known))?;
    record.stage(
        "vmm-started",
        json!({"pid": monitor.pid, "vcpus": size.vcpus, "memory_mib": size.memory_mib}),
    );
    let started = format!(
        "{} runs as process {} with {} vCPUs and {} MiB",
        config.vmm().display(),
        monitor.pid,
        size.vcpus,
        size.memory_mib
    );
    log.add(Source::Shim, "info", &started);
    if let Some(stderr) = monitor.child.stderr.take() {
        underway.tasks.push(guest_log::follow_vmm(stderr, log.clone(), underway.words.clone()));
    }
    let (tell, ended) = watch::channel(None);
    let watcher = Watcher {
        words: underway.words.clone(),
        log: log.clone(),
        record: record.clone(),
        stopping: Arc::clone(&underway.stopping),
        cgroup: underway.cgroup.clone(),
    };
    // Not among the tasks that are aborted: it reaps the monitor.
    tokio::spawn(watcher.watch(monitor, tell));
    Ok((known, ended))
}

/// Waits for the agent, the end of the VM, or the limit.
async fn await_agent(
    config: &NodeConfig,
    dir: &Path,
    mut ended: Ended,
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
            let console = words.refusal().unwrap_or_else(|| words.console());
            Err(SandboxError::NoAgent { seconds, console })
        }
    }
}

/// Who is to hear of the monitor's end.
struct Watcher {
    words: LastWords,
    log: Log,
    record: Recorder,
    stopping: Arc<AtomicBool>,
    cgroup: Option<Cgroup>,
}

impl Watcher {
    /// Reaps the monitor and tells everybody why it ended.
    async fn watch(self, mut monitor: vmm::Vmm, tell: watch::Sender<Option<String>>) {
        let mut reason = match monitor.child.wait().await {
            Ok(status) => vmm::exit_reason(status),
            Err(error) => format!("the virtual machine monitor was lost: {error}"),
        };
        if self.cgroup.as_ref().is_some_and(Cgroup::ran_out_of_memory) {
            reason += ": its control group ran out of memory (its own limit, or the pod's)";
        }
        // Its last lines may still be on their way.
        tokio::time::sleep(Duration::from_millis(50)).await;
        if let Some(more) = self.words.reason() {
            reason = format!("{reason}: {more}");
        }
        if !self.stopping.load(Ordering::SeqCst) {
            self.log.add(Source::Shim, "error", &format!("the sandbox has ended: {reason}"));
            self.record.stage("failed", json!({"by": "vmm", "reason": reason}));
        }
        let _ = tell.send(Some(reason));
    }
}
