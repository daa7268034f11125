//! The VM as KVM sees it: interrupt controllers, memory slots, vCPUs.
//!
//! In-kernel irqchip in full: devices raise edge-triggered IOAPIC lines through irqfds, so no interrupt
//! passes through this process, and nothing in the guest needs more than 24 lines. The PIT is there as
//! well, since a guest that cannot use the local APIC's timer at once (no TSC frequency, no always-running
//! timer) calibrates by it; a guest with kvm-clock never programs it. KVM keeps only the local APICs of a
//! TD: its IOAPIC is [`crate::ioapic`], which turns the lines into messages that KVM delivers by itself.
//!
//! Order: KVM's own pages, irqchip and PIT before any vCPU; per vCPU CPUID first, then MSRs, since from
//! Linux 6.13 on KVM looks at CPUID when it reads and writes these. Memory and vCPUs of SNP and TDX are
//! made by the launch ([`crate::tee`]), and their first state is not this module's to set.

pub mod cpuid;
pub mod start;

use std::sync::Arc;

use kata_cc_boot::layout;
use kata_cc_devices::{EventFd, Memory};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd};
use vm_memory::{Address, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use crate::error::VmmError;
use crate::tee::ioctls::TeeIoctls as _;
use crate::tee::kernel::KernelIoctls;
use crate::tee::{TeeError, TeeKind};

/// The only version of KVM's interface.
const API_VERSION: i32 = 12;
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
    io: Arc<KernelIoctls>,
    cpuid: CpuId,
    tsc_deadline: bool,
}

impl Machine {
    /// Opens KVM and creates a VM for that environment with that memory.
    ///
    /// # Errors
    /// When KVM is missing or lacks something.
    pub fn create(kind: TeeKind, memory: Memory) -> Result<Self, VmmError> {
        let kvm = Kvm::new().map_err(VmmError::kvm("/dev/kvm cannot be opened"))?;
        let io =
            KernelIoctls::create(kvm, kind.vm_type(), memory).map_err(TeeError::refused("KVM_CREATE_VM"))?;
        let kvm = io.kvm();
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
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let machine = Self { io: Arc::new(io), cpuid, tsc_deadline };
        if kind != TeeKind::Tdx {
            machine.create_interrupt_controllers()?;
        }
        if !kind.has_private_memory() {
            machine.register_memory()?;
        }
        Ok(machine)
    }

    fn create_interrupt_controllers(&self) -> Result<(), VmmError> {
        let vm = self.io.vm();
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(VmmError::kvm("identity map address"))?;
        vm.set_tss_address(layout::KVM_TSS as usize).map_err(VmmError::kvm("tss address"))?;
        vm.create_irq_chip().map_err(VmmError::kvm("irqchip"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(VmmError::kvm("pit"))
    }

    #[allow(unsafe_code)]
    fn register_memory(&self) -> Result<(), VmmError> {
        let ram = self.io.memory().memory();
        for (slot, region) in (0u32..).zip(ram.iter()) {
            let description = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping is as long as stated and outlives the VM: `self.io` holds both, and the memory of
            // a running VM is never replaced.
            unsafe { self.io.vm().set_user_memory_region(description) }
                .map_err(VmmError::kvm("memory slot"))?;
        }
        Ok(())
    }

    /// The kernel's interface to this VM.
    #[must_use]
    pub const fn io(&self) -> &Arc<KernelIoctls> {
        &self.io
    }

    /// CPUID of vCPU `id` of `count`.
    #[must_use]
    pub fn cpuid(&self, id: u8, count: u8) -> CpuId {
        let mut cpuid = self.cpuid.clone();
        cpuid::normalise(&mut cpuid, id, count, self.tsc_deadline);
        cpuid
    }

    /// The only vCPU of a machine without protection; it has no registers yet.
    ///
    /// # Errors
    /// What KVM said.
    pub fn single_vcpu(&self) -> Result<VcpuFd, VmmError> {
        self.io.create_vcpu(0).map_err(TeeError::refused("KVM_CREATE_VCPU"))?;
        let vcpu = self.io.take_vcpus().pop().ok_or(VmmError::KvmLacks("a vcpu"))?;
        self.prepare_vcpu(&vcpu, 0, 1)?;
        Ok(vcpu)
    }

    /// Gives vCPU `id` of `count`, of a guest without private memory, its CPUID and MSRs; it has no registers yet.
    ///
    /// # Errors
    /// What KVM said.
    pub fn prepare_vcpu(&self, vcpu: &VcpuFd, id: u8, count: u8) -> Result<(), VmmError> {
        let mut list = self.cpuid(id, count);
        cpuid::without_encryption(&mut list);
        vcpu.set_cpuid2(&list).map_err(VmmError::kvm("cpuid"))?;
        start::set_msrs(vcpu)?;
        start::set_lapic(vcpu)
    }

    /// Lets an event raise an interrupt line.
    ///
    /// # Errors
    /// What KVM said.
    pub fn connect_interrupt(&self, event: &EventFd, irq: u32) -> Result<(), VmmError> {
        self.io.vm().register_irqfd(event, irq).map_err(VmmError::kvm("irqfd"))
    }

    /// Lets a 32-bit write of `value` to `address` signal an event instead of leaving KVM.
    ///
    /// # Errors
    /// What KVM said.
    pub fn connect_notification(&self, event: &EventFd, address: u64, value: u32) -> Result<(), VmmError> {
        self.io
            .vm()
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(VmmError::kvm("ioeventfd"))
    }
}
