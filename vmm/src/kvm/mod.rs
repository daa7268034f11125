//! The VM as KVM sees it: interrupt controllers, memory slots, vCPUs.
//!
//! In-kernel irqchip in full, not split: devices raise edge-triggered IOAPIC lines through irqfds, so no
//! interrupt passes through this process, and nothing in the guest needs more than 24 lines. The PIT is
//! there as well, since a guest that cannot use the local APIC's timer at once (no TSC frequency, no
//! always-running timer) calibrates by it; a guest with kvm-clock never programs it.
//!
//! Order: KVM's own pages, irqchip and PIT before any vCPU; per vCPU CPUID first, then MSRs, since from
//! Linux 6.13 on KVM looks at CPUID when it reads and writes these.

pub mod cpuid;
pub mod start;

use kata_cc_boot::layout;
use kata_cc_devices::{EventFd, Memory};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use crate::error::VmmError;

/// The only version of KVM's interface.
const API_VERSION: i32 = 12;
/// How often `KVM_CREATE_VM` is tried again when a signal or load interrupts it.
const CREATE_ATTEMPTS: u32 = 5;

/// What must be there.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// An open VM.
pub struct Machine {
    vm: VmFd,
    cpuid: CpuId,
    tsc_deadline: bool,
    // mapped as long as KVM may use it
    memory: Memory,
}

impl Machine {
    /// Opens KVM and creates a VM with that memory.
    ///
    /// # Errors
    /// When KVM is missing or lacks something.
    pub fn create(memory: Memory) -> Result<Self, VmmError> {
        let kvm = Kvm::new().map_err(VmmError::kvm("/dev/kvm cannot be opened"))?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            tracing::error!(version, "unknown version of kvm");
            return Err(VmmError::KvmLacks("version 12 of its interface"));
        }
        for (cap, name) in NEEDED {
            if !kvm.check_extension(cap) {
                return Err(VmmError::KvmLacks(name));
            }
        }
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(VmmError::kvm("supported cpuid"))?;
        let vm = create_vm(&kvm)?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(VmmError::kvm("identity map address"))?;
        vm.set_tss_address(layout::KVM_TSS as usize).map_err(VmmError::kvm("tss address"))?;
        vm.create_irq_chip().map_err(VmmError::kvm("irqchip"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(VmmError::kvm("pit"))?;
        let machine = Self { vm, cpuid, tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer), memory };
        machine.register_memory()?;
        Ok(machine)
    }

    #[allow(unsafe_code)]
    fn register_memory(&self) -> Result<(), VmmError> {
        let ram = self.memory.memory();
        for (slot, region) in (0u32..).zip(ram.iter()) {
            let description = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping is as long as stated and outlives the VM: `self.memory` holds it, and
            // the memory of a running VM is never replaced.
            unsafe { self.vm.set_user_memory_region(description) }.map_err(VmmError::kvm("memory slot"))?;
        }
        Ok(())
    }

    /// Creates vCPU `id` of `count`; it has CPUID and MSRs, but no registers yet.
    ///
    /// # Errors
    /// What KVM said.
    pub fn create_vcpu(&self, id: u8, count: u8) -> Result<VcpuFd, VmmError> {
        let vcpu = self.vm.create_vcpu(id.into()).map_err(VmmError::kvm("vcpu"))?;
        let mut cpuid = self.cpuid.clone();
        cpuid::normalise(&mut cpuid, id, count, self.tsc_deadline);
        vcpu.set_cpuid2(&cpuid).map_err(VmmError::kvm("cpuid"))?;
        start::set_msrs(&vcpu)?;
        start::set_lapic(&vcpu)?;
        Ok(vcpu)
    }

    /// Lets an event raise an interrupt line.
    ///
    /// # Errors
    /// What KVM said.
    pub fn connect_interrupt(&self, event: &EventFd, irq: u32) -> Result<(), VmmError> {
        self.vm.register_irqfd(event, irq).map_err(VmmError::kvm("irqfd"))
    }

    /// Lets a 32-bit write of `value` to `address` signal an event instead of leaving KVM.
    ///
    /// # Errors
    /// What KVM said.
    pub fn connect_notification(&self, event: &EventFd, address: u64, value: u32) -> Result<(), VmmError> {
        self.vm
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(VmmError::kvm("ioeventfd"))
    }
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, VmmError> {
    let mut attempt = 1;
    loop {
        match kvm.create_vm() {
            Err(e) if e.errno() == libc::EINTR && attempt < CREATE_ATTEMPTS => {
                std::thread::sleep(std::time::Duration::from_micros(1 << attempt));
                attempt += 1;
            }
            other => return other.map_err(VmmError::kvm("create vm")),
        }
    }
}
