//! Launching a virtual machine: its disks, its network, its monitor, and what its guest finds at the host's end of its channels.

use std::path::PathBuf;

use kata_cc_oci::cgroup::Inside;
use kata_cc_vmm_api::{ControlReply, ControlRequest, VmConfig, port};
use serde_json::json;

use super::{Ended, Plan, Started, Underway, note, watch};
use crate::cgroup::{self, Cgroup};
use crate::channel::Address;
use crate::charge::Charge;
use crate::disks::Disks;
use crate::egress::{self, AllowList, Route};
use crate::guest_log;
use crate::initdata;
use crate::leftovers::Leftovers;
use crate::log::Source;
use crate::network::Network;
use crate::root_image::RootImage;
use crate::sandbox::{SandboxError, io};
use crate::sizing::{self, Size};
use crate::tier::Tier;
use crate::vm_shape::{self, Instance};
use crate::{paths, vmm};

/// Starts one.
pub(super) async fn start(
    plan: Plan<'_>,
    tier: Tier,
    pod_data: Option<initdata::Prepared>,
    underway: &mut Underway<'_>,
) -> Result<Started, SandboxError> {
    let Plan { config, spec, dir, .. } = plan;
    // A plain guest is told the same of registries; it just has nobody to prove it to.
    let prepared = match pod_data {
        Some(prepared) => prepared,
        None => initdata::of_node(config)?,
    };
    let size = sizing::size(spec.limits, &config.vm);
    serve_guest(plan, underway)?;
    let vm = describe_vm(plan, tier, size, &prepared, underway).await?;
    let (monitor, ended) = start_monitor(plan, size, &vm, underway)?;
    Ok(Started { monitor, ended, address: Address::Vsock(dir.join("vsock")) })
}

/// What the monitor of a confidential guest has measured.
pub(super) async fn note_measurement(plan: Plan<'_>) {
    if let Ok(ControlReply::State(state)) = vmm::ask(plan.dir, &ControlRequest::State).await {
        plan.record.stage("measured", json!({"launch_digest": state.launch_digest, "tee": state.tee}));
    }
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
    let Plan { config, spec, dir, .. } = plan;
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
    charge(plan, size, underway).await?;
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

/// Where the monitor is charged: systemd's scope, a group of our own, or none.
async fn charge(plan: Plan<'_>, size: Size, underway: &mut Underway<'_>) -> Result<(), SandboxError> {
    let Plan { spec, log, .. } = plan;
    let warn = |warning: &str| log.add(Source::Shim, "warn", warning);
    let limits = json!({"memory": {"limit": cgroup::needed_mib(size.memory_mib) << 20}});
    if super::scope(plan, limits, underway).await {
        let groups = underway.charge.as_ref().and_then(Charge::groups);
        let folder = groups.filter(|groups| groups.is_unified()).and_then(|groups| groups.folder("memory"));
        if let Some(warning) = folder.and_then(|folder| Cgroup::of_systemd(folder).warning(size.memory_mib)) {
            warn(&warning);
        }
        return note(plan, &leftovers(plan, underway, None));
    }
    let cgroup = Cgroup::named(spec.cgroup.as_deref());
    let cgroup = cgroup.map_err(io(format!("control group {:?}", spec.cgroup)))?;
    underway.charge = cgroup.map(Charge::Vm);
    if spec.cgroup.is_some() && underway.charge.is_none() {
        warn("this node has no cgroup v2: what the guest uses is not charged to its pod");
    }
    // Noted before they are made: a launch that is broken off is cleaned up after by the note alone.
    note(plan, &leftovers(plan, underway, None))?;
    if let Some(cgroup) = underway.charge.as_ref().and_then(Charge::cgroup) {
        let made = cgroup.make(size.memory_mib);
        let made = made.map_err(io(format!("cannot make control group {}", cgroup.path().display())))?;
        if let Some(warning) = made {
            warn(&warning);
        }
    }
    Ok(())
}

/// What is there to be cleaned up after.
fn leftovers(plan: Plan<'_>, underway: &Underway<'_>, monitor: Option<(u32, u64)>) -> Leftovers {
    let (netns, own_netns) = Network::place(plan.spec.netns.as_deref(), &plan.spec.id);
    let group = underway.charge.as_ref().and_then(Charge::cgroup);
    Leftovers {
        monitor,
        netns: Some(netns),
        own_netns,
        cgroup: group.map(|group| group.path().to_owned()),
        missing_cgroups: group.map(Cgroup::missing).unwrap_or_default(),
        groups: underway.charge.as_ref().and_then(Charge::groups).cloned(),
    }
}

fn make_scratch(disks: &Disks, mib: u64) -> Result<PathBuf, SandboxError> {
    let path = disks.file("scratch.img");
    let file = std::fs::File::create(&path).map_err(io("cannot make the scratch disk"))?;
    file.set_len(mib << 20).map_err(io("cannot size the scratch disk"))?;
    Ok(path)
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
    let doors = underway.charge.as_ref().map(Charge::doors).transpose();
    let doors = doors.map_err(io("cannot enter the control groups"))?.unwrap_or_default();
    let monitor = vmm::start(&config.vmm(), vm, dir, &netns, doors)
        .map_err(io(format!("cannot start {}", config.vmm().display())))?;
    underway.inside = Inside::default();
    let known = (monitor.pid, monitor.start);
    underway.monitor = Some(known);
    note(plan, &leftovers(plan, underway, Some(known)))?;
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
    Ok((known, watch(plan, monitor, "vmm", underway)))
}
