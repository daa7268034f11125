//! What a sandbox has on the host beside its monitor: a virtual machine has taps in the pod's network namespace and disks, and is told of the
//! network as it changes; the sentry has nothing, since it takes all by path.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::Duration;

use kata_cc_agent_protocol::agent as wire;
use tokio::sync::Mutex;

use crate::disks::Disks;
use crate::log::Source;
use crate::network::{Changes, GuestNetwork, Network};
use crate::oci;
use crate::sandbox::{Sandbox, SandboxError, SandboxSpec, context};

/// An interface comes up in several steps, and `ip monitor` needs a moment before it hears: both are waited for.
const SETTLE: Duration = Duration::from_millis(100);
/// When the namespace is looked at once more, for what changed before the watch could hear it.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// The kind of a sandbox, with what only that kind has.
#[derive(Debug)]
pub(crate) enum Machine {
    /// A virtual machine.
    Vm(Box<Vm>),
    /// The sentry.
    Sentry,
}

/// A virtual machine's parts.
#[derive(Debug)]
pub(crate) struct Vm {
    network: Mutex<Network>,
    /// What the guest was told last of its network.
    told: Mutex<GuestNetwork>,
    pub(crate) disks: Disks,
    /// Spare block devices in use.
    pub(crate) slots: StdMutex<BTreeSet<usize>>,
}

impl Machine {
    /// A virtual machine.
    pub(crate) fn vm(network: Network, disks: Disks) -> Self {
        Self::Vm(Box::new(Vm {
            network: Mutex::new(network),
            told: Mutex::default(),
            disks,
            slots: StdMutex::default(),
        }))
    }

    /// Take away what was made in the network namespace.
    pub(crate) async fn remove_network(&self) {
        if let Self::Vm(vm) = self {
            vm.network.lock().await.remove().await;
        }
    }

    /// Take away the disks.
    pub(crate) fn remove_disks(&self) {
        if let Self::Vm(vm) = self {
            vm.disks.remove();
        }
    }
}

/// Memory that the containers of a guest share.
fn shared_memory() -> wire::Storage {
    wire::Storage {
        driver: "ephemeral".into(),
        source: "shm".into(),
        fstype: "tmpfs".into(),
        options: ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"].map(str::to_owned).into(),
        mount_point: oci::SANDBOX_SHM.into(),
        ..Default::default()
    }
}

impl Sandbox {
    /// CreateSandbox, then the network as it is now and as it becomes.
    pub(crate) async fn take_over(self: &Arc<Self>, spec: &SandboxSpec) -> Result<(), SandboxError> {
        let mut request = wire::CreateSandboxRequest::new();
        request.hostname.clone_from(&spec.hostname);
        request.dns.clone_from(&spec.dns);
        request.sandbox_id.clone_from(&spec.id);
        request.sandbox_pidns = spec.shared_pids;
        if let Machine::Vm(_) = &self.machine {
            request.storages = vec![shared_memory()];
        }
        self.call(self.agent.0.create_sandbox(context(), self.sent(&request))).await?;
        let Machine::Vm(vm) = &self.machine else { return Ok(()) };
        // The watch comes before the look: what appears between the two must not be missed.
        let changes = match &spec.netns {
            Some(_) => Some(vm.network.lock().await.watch()?),
            None => None,
        };
        self.update_network(vm).await?;
        if let Some(changes) = changes {
            let task = tokio::spawn(follow_network(Arc::downgrade(self), changes));
            self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        }
        Ok(())
    }

    /// Tie what is new in the namespace, and tell the guest what it has not been told yet.
    async fn update_network(&self, vm: &Vm) -> Result<(), SandboxError> {
        // One at a time, so that the guest never hears an older state after a newer one.
        let mut told = vm.told.lock().await;
        let guest = vm.network.lock().await.scan().await?;
        for interface in guest.interfaces.iter().filter(|interface| !told.interfaces.contains(interface)) {
            let mut request = wire::UpdateInterfaceRequest::new();
            request.interface = Some(interface.clone()).into();
            self.call(self.agent.0.update_interface(context(), self.sent(&request))).await?;
            self.log.add(Source::Shim, "info", &format!("the guest has interface {}", interface.name));
        }
        // An interface that was set anew has lost its routes.
        if !guest.routes.is_empty() && guest != *told {
            let mut request = wire::UpdateRoutesRequest::new();
            let routes = guest.routes.clone();
            request.routes = Some(wire::Routes { Routes: routes, ..Default::default() }).into();
            self.call(self.agent.0.update_routes(context(), self.sent(&request))).await?;
        }
        *told = guest;
        Ok(())
    }
}

/// Keeps the guest's network like the pod's, until the sandbox is gone.
async fn follow_network(sandbox: Weak<Sandbox>, mut changes: Changes) {
    // Changes before `ip monitor` listened were not heard: one look is taken without being told.
    let mut unheard = true;
    loop {
        let heard = if unheard {
            tokio::time::timeout(SECOND_LOOK, changes.next()).await.unwrap_or_else(|_| {
                unheard = false;
                true
            })
        } else {
            changes.next().await
        };
        tokio::time::sleep(SETTLE).await;
        let Some(sandbox) = sandbox.upgrade() else { return };
        if !heard {
            let lost = "`ip monitor` has ended: later changes of the pod's network do not reach the guest";
            sandbox.log.add(Source::Shim, "warn", lost);
            return;
        }
        let Machine::Vm(vm) = &sandbox.machine else { return };
        if let Err(error) = sandbox.update_network(vm).await {
            sandbox.log.add(Source::Shim, "warn", &format!("network of the guest not updated: {error}"));
        }
    }
}
