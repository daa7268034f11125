//! Launching the sentry: a process in the pod's network namespace and control group. What a container has of the host it is handed by path, and
//! its agent listens on a Unix socket of the run-time folder.

use kata_cc_oci::cgroup::Inside;
use serde_json::{Value, json};

use super::{Plan, Started, Underway, note, watch};
use crate::channel::Address;
use crate::charge::Charge;
use crate::leftovers::Leftovers;
use crate::log::Source;
use crate::monitor;
use crate::process::Netns;
use crate::sandbox::{SandboxError, io};
use crate::sentry;
use crate::sizing::Limits;

/// Names in the run-time folder.
pub(super) const STREAMS_SOCKET: &str = "streams.sock";
const AGENT_SOCKET: &str = "agent.sock";
/// A period of the CPU's time, in which a quota is counted, µs.
const PERIOD: u64 = 100_000;

/// Starts one.
pub(super) async fn start(plan: Plan<'_>, underway: &mut Underway<'_>) -> Result<Started, SandboxError> {
    let Plan { config, spec, dir, record, log } = plan;
    charge(plan, underway).await?;
    note(plan, &leftovers(plan, underway, None))?;
    // The network that the pod has is that of this namespace, which hooks and plug-ins of the engine find by the monitor's number, and whose
    // interfaces the sentry takes over; a pod without one gets an empty one, never the host's.
    let netns = spec.netns.as_deref().map_or(Netns::New, Netns::Of);
    let program = config.sentry();
    let sockets = (dir.join(AGENT_SOCKET), dir.join(STREAMS_SOCKET));
    let doors = underway.charge.as_ref().map(Charge::doors).transpose();
    let doors = doors.map_err(io("cannot enter the control groups"))?.unwrap_or_default();
    let command = sentry::command(&program, &sockets.0, &sockets.1, spec);
    let monitor = monitor::start(command, netns, doors, sentry::exit_reason)
        .map_err(io(format!("cannot start {}", program.display())))?;
    underway.inside = Inside::default();
    let known = (monitor.pid, monitor.start);
    underway.monitor = Some(known);
    note(plan, &leftovers(plan, underway, Some(known)))?;
    record.stage("sentry-started", json!({"pid": monitor.pid}));
    let started = format!("{} runs as process {}", program.display(), monitor.pid);
    log.add(Source::Shim, "info", &started);
    let ended = watch(plan, monitor, "sentry", underway);
    Ok(Started { monitor: known, ended, address: Address::Unix(sockets.0) })
}

/// The control groups that the engine names, with the pod's limits.
async fn charge(plan: Plan<'_>, underway: &mut Underway<'_>) -> Result<(), SandboxError> {
    let Some(name) = plan.spec.cgroup.clone() else { return Ok(()) };
    let (id, limits) = (plan.spec.id.clone(), resources(plan.spec.limits));
    if super::scope(plan, limits.clone(), underway).await {
        return Ok(());
    }
    let what = format!("control group {name:?}");
    // Files of the kernel, which may take milliseconds each.
    let made = tokio::task::spawn_blocking(move || Charge::sentry(&name, &id, &limits)).await;
    let made = made.map_err(std::io::Error::other).and_then(|made| made);
    underway.charge = Some(made.map_err(io(what))?);
    Ok(())
}

/// Limits in OCI's words. What the pod may use, its monitor, sentry and stubs use together.
fn resources(limits: Limits) -> Value {
    let mut all = json!({});
    if let Some(bytes) = limits.memory_bytes {
        all["memory"] = json!({"limit": bytes});
    }
    if let Some(millis) = limits.cpu_millis {
        all["cpu"] = json!({"quota": millis.saturating_mul(PERIOD) / 1000, "period": PERIOD});
    }
    all
}

fn leftovers(plan: Plan<'_>, underway: &Underway<'_>, monitor: Option<(u32, u64)>) -> Leftovers {
    Leftovers {
        monitor,
        netns: plan.spec.netns.clone(),
        own_netns: None,
        cgroup: None,
        missing_cgroups: Vec::new(),
        groups: underway.charge.as_ref().and_then(Charge::groups).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_limits_are_the_groups() {
        let limits = Limits { cpu_millis: Some(1500), memory_bytes: Some(1 << 30) };
        assert_eq!(
            resources(limits),
            json!({"memory": {"limit": 1 << 30}, "cpu": {"quota": 150_000, "period": 100_000}})
        );
        assert_eq!(resources(Limits::default()), json!({}));
    }
}
