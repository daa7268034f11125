//! The kernel's interface for confidential VMs, one method per call, so that launches can be driven against
//! the kernel ([`super::kernel::KernelIoctls`]) or against a fake that checks every rule of it.
//!
//! Methods take the kernel's structures; only addresses in this process are replaced by references, so that
//! an implementation needs no trust in numbers. What the kernel changes in a structure is changed here too.

use kvm_bindings::{
    CpuId, kvm_memory_attributes, kvm_regs, kvm_sev_init, kvm_sev_snp_launch_finish,
    kvm_sev_snp_launch_start, kvm_sev_snp_launch_update, kvm_sregs,
};

use super::abi::{TdxCapabilities, TdxInitMemRegion, TdxInitVm};

/// A page of this process, aligned as the kernel wants a source of guest pages to be.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; 4096]);

impl std::fmt::Debug for Page {
    /// No guest contents in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Page")
    }
}

/// A call that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the kernel said.
    pub errno: i32,
    /// What the security processor (SNP) or the TDX module said; 0: nothing.
    pub firmware: u64,
}

impl Refusal {
    /// A refusal by the kernel alone.
    #[must_use]
    pub const fn kernel(errno: i32) -> Self {
        Self { errno, firmware: 0 }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let said = std::io::Error::from_raw_os_error(self.errno);
        match (self.firmware, snp_status(self.firmware)) {
            (0, _) => write!(f, "{said}"),
            (status, Some(name)) => write!(f, "{said}; firmware status {status:#x} ({name})"),
            (status, None) => write!(f, "{said}; firmware status {status:#x}"),
        }
    }
}

impl std::error::Error for Refusal {}

/// SEV firmware's status codes (`enum sev_ret_code`, firmware ABI table "Status codes") that a launch meets.
const fn snp_status(status: u64) -> Option<&'static str> {
    Some(match status {
        0x01 => "platform state does not allow it: is SNP initialised?",
        0x02 => "guest state does not allow it",
        0x07 => "the guest's policy does not allow it",
        0x09 => "invalid address",
        0x0A => "bad signature: the ID block is not signed by the key beside it",
        0x0B => "bad measurement: the ID block names another launch digest",
        0x15 => "not supported",
        0x16 => "invalid parameter",
        0x17 => "resource limit: no free ASID or guest context",
        0x19 => "invalid page size",
        0x1A => "invalid page state",
        0x1C => "invalid page owner",
        0x20 => "the RMP is not initialised",
        0x21 => "security version too low",
        0x22 => "firmware version too low",
        _ => return None,
    })
}

/// Which of a guest page's two places is given back to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// guest_memfd.
    Private,
    /// This process's mapping.
    Shared,
}

/// ID block and authentication information as LAUNCH_FINISH takes them.
pub type IdPages<'a> = (&'a [u8; 96], &'a [u8; 4096]);

/// See the module's documentation. `vcpu` is the vCPU's number.
pub trait TeeIoctls {
    /// `KVM_CHECK_EXTENSION` on the VM; 0 when the kernel does not know it.
    fn capability(&self, capability: u32) -> u32;
    /// `KVM_ENABLE_CAP` on the VM.
    ///
    /// # Errors
    /// What the kernel said; the same for all methods.
    fn enable_capability(&self, capability: u32, argument: u64) -> Result<(), Refusal>;
    /// `KVM_CREATE_GUEST_MEMFD`; the descriptor stays with the implementation, which knows it by this number.
    fn create_guest_memfd(&self, size: u64) -> Result<u32, Refusal>;
    /// `KVM_SET_USER_MEMORY_REGION2` with a guest_memfd beside the process's own mapping of that address.
    fn set_memory_region(&self, slot: u32, gpa: u64, size: u64, guest_memfd: u32) -> Result<(), Refusal>;
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    fn set_memory_attributes(&self, attributes: &kvm_memory_attributes) -> Result<(), Refusal>;
    /// Gives the pages of one side back to the host: `fallocate` or `madvise`.
    fn discard(&self, gpa: u64, size: u64, side: Side) -> Result<(), Refusal>;
    /// Writes to the process's own mapping: shared memory, or all memory without a TEE.
    fn write_shared(&self, gpa: u64, bytes: &[u8]) -> Result<(), Refusal>;
    /// Reads from the process's own mapping.
    fn read_shared(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), Refusal>;
    /// `KVM_SIGNAL_MSI`: an interrupt by message, lower half of the address and data.
    fn signal_msi(&self, address: u32, data: u32) -> Result<(), Refusal>;

    /// `KVM_CREATE_VCPU`.
    fn create_vcpu(&self, vcpu: u32) -> Result<(), Refusal>;
    /// `KVM_SET_CPUID2`.
    fn set_cpuid(&self, vcpu: u32, cpuid: &CpuId) -> Result<(), Refusal>;
    /// What user space sets besides registers before a vCPU first runs, after its CPUID: `KVM_SET_MSRS` (memory types)
    /// and `KVM_SET_LAPIC` (legacy interrupts). Not for a TD.
    fn set_reset_state(&self, vcpu: u32) -> Result<(), Refusal>;
    /// `KVM_GET_SREGS`.
    fn sregs(&self, vcpu: u32) -> Result<kvm_sregs, Refusal>;
    /// `KVM_SET_SREGS` and `KVM_SET_REGS`.
    fn set_registers(&self, vcpu: u32, sregs: &kvm_sregs, regs: &kvm_regs) -> Result<(), Refusal>;

    /// `KVM_GET_DEVICE_ATTR` of group `KVM_X86_GRP_SEV` on `/dev/kvm`.
    fn sev_attribute(&self, attribute: u64) -> Result<u64, Refusal>;
    /// `KVM_SEV_INIT2`.
    fn sev_init2(&self, init: &kvm_sev_init) -> Result<(), Refusal>;
    /// `KVM_SEV_SNP_LAUNCH_START`.
    fn snp_launch_start(&self, start: &kvm_sev_snp_launch_start) -> Result<(), Refusal>;
    /// `KVM_SEV_SNP_LAUNCH_UPDATE` from `source`, which is empty for zero pages. The kernel advances `gfn_start`
    /// and `len` by what it did, also when it returns an error, and writes a CPUID page that it refuses back.
    fn snp_launch_update(
        &self,
        update: &mut kvm_sev_snp_launch_update,
        source: &mut [Page],
    ) -> Result<(), Refusal>;
    /// `KVM_SEV_SNP_LAUNCH_FINISH`.
    fn snp_launch_finish(
        &self,
        finish: &kvm_sev_snp_launch_finish,
        id: Option<IdPages<'_>>,
    ) -> Result<(), Refusal>;
    /// `KVM_SEV_SNP_ENABLE_REQ_CERTS`.
    fn snp_enable_req_certs(&self) -> Result<(), Refusal>;

    /// `KVM_TDX_CAPABILITIES`.
    fn tdx_capabilities(&self, capabilities: &mut TdxCapabilities) -> Result<(), Refusal>;
    /// `KVM_TDX_INIT_VM`.
    fn tdx_init_vm(&self, init: &TdxInitVm) -> Result<(), Refusal>;
    /// `KVM_TDX_INIT_VCPU` with the first RCX.
    fn tdx_init_vcpu(&self, vcpu: u32, rcx: u64) -> Result<(), Refusal>;
    /// `KVM_TDX_INIT_MEM_REGION` from `source`. The kernel advances `gpa` and `nr_pages` by what it did, also
    /// when it returns an error.
    fn tdx_init_mem_region(
        &self,
        vcpu: u32,
        region: &mut TdxInitMemRegion,
        flags: u32,
        source: &mut [Page],
    ) -> Result<(), Refusal>;
    /// `KVM_TDX_FINALIZE_VM`.
    fn tdx_finalize(&self) -> Result<(), Refusal>;
}
