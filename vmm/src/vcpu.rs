//! A vCPU's thread: enter the guest, serve what it comes out for, until it must not go on.

use std::sync::Arc;

use kvm_bindings::KVM_SYSTEM_EVENT_RESET;
use kvm_ioctls::{HypercallExit, VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::confidential::Confidential;
use crate::tee::exits;
use crate::threads::{Gate, Go};
use crate::vm::Outcome;

/// What a vCPU meets outside of the guest.
pub(crate) struct World {
    /// Number of the vCPU, which is its APIC id too.
    pub(crate) id: u8,
    pub(crate) bus: Arc<Bus>,
    pub(crate) gate: Arc<Gate>,
    /// Of a guest with private memory.
    pub(crate) confidential: Option<Arc<Confidential>>,
}

/// Why a vCPU came out for good.
fn run(vcpu: &mut VcpuFd, world: &World) -> Option<Outcome> {
    let World { id, bus, gate, confidential } = world;
    loop {
        match gate.pass() {
            Go::Run => {}
            Go::Stop => return None,
            Go::RunAfterPause => {
                // tells the guest's watchdog that it slept; a guest without kvm-clock has none to tell
                let _ = vcpu.kvmclock_ctrl();
            }
        }
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                if let Some(outcome) = bus.port_write(port, data) {
                    return Some(outcome);
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => bus.port_read(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => bus.memory_read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.memory_write(address, data),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {}
            // in-kernel APICs keep halted vCPUs in KVM
            Ok(VcpuExit::Hlt) => return Some(Outcome::GuestShutdown),
            Ok(VcpuExit::Shutdown) => {
                return Some(Outcome::GuestFault("triple fault".into()));
            }
            Ok(VcpuExit::SystemEvent(kind, data)) => return Some(system_event(kind, data)),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return Some(Outcome::KvmFault(format!(
                    "kvm cannot enter the guest: hardware reason {reason:#x} on cpu {cpu}"
                )));
            }
            Ok(VcpuExit::InternalError) => return Some(internal_error(vcpu)),
            Ok(VcpuExit::Hypercall(HypercallExit { nr, args, ret, .. })) => {
                *ret = match confidential {
                    Some(confidential) => confidential.hypercall(nr, args),
                    None => exits::NO_SUCH_HYPERCALL,
                };
            }
            Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
                let served = match confidential {
                    Some(confidential) => confidential.memory_fault(flags, gpa, size),
                    None => Err(format!("memory fault at {gpa:#x}")),
                };
                if let Err(why) = served {
                    return Some(Outcome::GuestFault(why));
                }
            }
            Ok(VcpuExit::Unsupported(reason)) => {
                let served = confidential.as_ref().is_some_and(|guest| guest.other(reason, *id, vcpu));
                if !served {
                    return Some(Outcome::KvmFault(format!("unexpected exit: reason {reason}")));
                }
            }
            Ok(other) => {
                return Some(Outcome::KvmFault(format!("unexpected exit: {other:?}")));
            }
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(e) => return Some(Outcome::KvmFault(format!("KVM_RUN: {e}"))),
        }
    }
}

fn system_event(kind: u32, data: &[u64]) -> Outcome {
    match kind {
        KVM_SYSTEM_EVENT_RESET => Outcome::GuestReset,
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Outcome::GuestShutdown,
        _ => Outcome::GuestFault(exits::end(kind, data).unwrap_or_else(|| format!("system event {kind}"))),
    }
}

/// KVM gave up on an instruction: says which, so that a host that cannot run guests is recognised.
#[allow(unsafe_code)]
fn internal_error(vcpu: &mut VcpuFd) -> Outcome {
    // SAFETY: the exit reason says that this member of the union is the valid one.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    Outcome::KvmFault(format!(
        "kvm internal error {suberror} (1: cannot emulate an instruction) at rip {rip:#x}"
    ))
}

/// Starts the thread of a vCPU. It waits at the gate; `ended` is called when it comes out for good.
pub(crate) fn spawn(
    mut vcpu: VcpuFd,
    world: World,
    ended: impl Fn(Outcome) + Send + 'static,
) -> std::io::Result<()> {
    let (id, gate) = (world.id, Arc::clone(&world.gate));
    let handle =
        std::thread::Builder::new().name(format!("vcpu{id}")).stack_size(256 << 10).spawn(move || {
            if let Some(outcome) = run(&mut vcpu, &world) {
                tracing::debug!(vcpu = id, ?outcome, "vcpu ended");
                ended(outcome);
            }
            world.gate.leave();
        })?;
    gate.add(handle);
    Ok(())
}
