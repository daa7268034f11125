//! Launching: from a specification to a sandbox whose agent has taken the pod over, or to nothing at all.
//!
//! What a launch makes is noted in [`Underway`] as it is made, and taken away again when a later step fails. The run-time
//! folder is the sandbox's claim on its id: made first, by [`claim`], removed last. What differs is in a file for each kind of machine: [`vm`] and
//! [`sentry`].

mod sentry;
mod vm;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kata_cc_agent_protocol::agent_ttrpc::AgentServiceClient;
use kata_cc_oci::cgroup::Inside;
use kata_cc_vmm_api::port;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::channel::{self, Address};
use crate::charge::Charge;
use crate::config::NodeConfig;
use crate::disks::Disks;
use crate::guest_log::{self, LastWords};
use crate::initdata;
use crate::leftovers::Leftovers;
use crate::log::{Log, Source};
use crate::machine::Machine;
use crate::monitor::Monitor;
use crate::network::Network;
use crate::record::Recorder;
use crate::requests::RequestRecorder;
use crate::sandbox::{Agent, Sandbox, SandboxError, SandboxSpec, io};
use crate::tier::{self, Demand, Tier};
use crate::{paths, process};

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
    charge: Option<Charge>,
    /// Until the monitor is in its group, this process may be.
    inside: Inside,
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
        drop(self.inside);
        if let Some(charge) = &self.charge {
            charge.remove().await;
        }
        if let Some(disks) = &self.disks {
            disks.remove();
        }
        if let Some(dir) = self.dir {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// Asks systemd for the scope that the engine names, with these limits; whether it is there.
async fn scope(plan: Plan<'_>, limits: Value, underway: &mut Underway<'_>) -> bool {
    let Some(name) = plan.spec.cgroup.clone() else { return false };
    let (id, what) = (plan.spec.id.clone(), format!("control group {name:?}"));
    let made = tokio::task::spawn_blocking(move || Charge::scope(&name, &id, &limits)).await;
    match made.map_err(std::io::Error::other).and_then(|made| made) {
        Ok(Some((charge, inside))) => {
            (underway.charge, underway.inside) = (Some(charge), inside);
            true
        }
        Ok(None) => false,
        // A node whose systemd cannot be asked from here (no `busctl`, no bus) is served as before.
        Err(error) => {
            let beside = format!("{what} is made beside systemd, which may take its limits away: {error}");
            plan.log.add(Source::Shim, "warn", &beside);
            false
        }
    }
}

/// Claim an id: make its run-time folder, which nobody else may have.
pub(crate) fn claim(dir: &Path, id: &str) -> Result<(), SandboxError> {
    use std::os::unix::fs::DirBuilderExt;
    let names = [format!("vsock_{}", port::SIM_TEE), sentry::STREAMS_SOCKET.to_owned()];
    let longest = names.into_iter().max_by_key(String::len).unwrap_or_default();
    let socket = dir.join(longest);
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
        charge: None,
        inside: Inside::default(),
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
    let tier = selection.tier;
    let Started { monitor, ended, address } = match tier {
        Tier::Sentry => sentry::start(plan, underway).await?,
        _ => vm::start(plan, tier, pod_data, underway).await?,
    };
    let agent = await_agent(config, &address, ended.clone(), &underway.words).await?;
    if tier.is_confidential() {
        vm::note_measurement(plan).await;
    }
    record.stage("agent-ready", json!({}));
    log.add(Source::Shim, "info", "the guest's agent answers");
    underway.dir = None;
    let machine = match (underway.network.take(), underway.disks.take()) {
        (Some(network), Some(disks)) => Machine::vm(network, disks),
        _ => Machine::Sentry,
    };
    let sandbox = Arc::new(Sandbox::new(crate::sandbox::Parts {
        id: spec.id.clone(),
        seal_at_first_use: config.image.seal_at_first_use,
        requests: recorder(config, record, log),
        tier,
        dir: dir.to_owned(),
        monitor,
        agent: Agent(agent),
        machine,
        charge: underway.charge.take(),
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

/// A monitor that runs.
struct Started {
    /// Process id and start.
    monitor: (u32, u64),
    ended: Ended,
    /// Where its agent is.
    address: Address,
}

/// Notes what is there to be cleaned up after, should this process die.
fn note(plan: Plan<'_>, left: &Leftovers) -> Result<(), SandboxError> {
    left.write(plan.dir).map_err(io("cannot note what is to be cleaned up"))
}

/// Watches over a monitor's end and what it says; `who` is its name in the record.
fn watch(plan: Plan<'_>, mut monitor: Monitor, who: &'static str, underway: &mut Underway<'_>) -> Ended {
    if let Some(stderr) = monitor.child.stderr.take() {
        underway.tasks.push(guest_log::follow_vmm(stderr, plan.log.clone(), underway.words.clone()));
    }
    let (tell, ended) = watch::channel(None);
    let watcher = Watcher {
        who,
        words: underway.words.clone(),
        log: plan.log.clone(),
        record: plan.record.clone(),
        stopping: Arc::clone(&underway.stopping),
        charge: underway.charge.clone(),
    };
    // Not among the tasks that are aborted: it reaps the monitor.
    tokio::spawn(watcher.watch(monitor, tell));
    ended
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

/// Waits for the agent, the end of the VM, or the limit.
async fn await_agent(
    config: &NodeConfig,
    address: &Address,
    mut ended: Ended,
    words: &LastWords,
) -> Result<AgentServiceClient, SandboxError> {
    let seconds = config.agent_timeout_s;
    tokio::select! {
        agent = channel::agent(address) => Ok(agent),
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
    who: &'static str,
    words: LastWords,
    log: Log,
    record: Recorder,
    stopping: Arc<AtomicBool>,
    charge: Option<Charge>,
}

impl Watcher {
    /// Reaps the monitor and tells everybody why it ended.
    async fn watch(self, mut monitor: Monitor, tell: watch::Sender<Option<String>>) {
        let mut reason = match monitor.child.wait().await {
            Ok(status) => (monitor.exit_reason)(status),
            Err(error) => format!("the monitor was lost: {error}"),
        };
        if self.charge.as_ref().is_some_and(Charge::ran_out_of_memory) {
            reason += ": its control group ran out of memory (its own limit, or the pod's)";
        }
        // Its last lines may still be on their way.
        tokio::time::sleep(Duration::from_millis(50)).await;
        if let Some(more) = self.words.reason() {
            reason = format!("{reason}: {more}");
        }
        if !self.stopping.load(Ordering::SeqCst) {
            self.log.add(Source::Shim, "error", &format!("the sandbox has ended: {reason}"));
            self.record.stage("failed", json!({"by": self.who, "reason": reason}));
        }
        let _ = tell.send(Some(reason));
    }
}
