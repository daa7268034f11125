//! Kernel structures and numbers for confidential VMs that `kvm-bindings` does not have, by
//! `arch/x86/include/uapi/asm/kvm.h` and `include/uapi/linux/kvm.h` (kvm-x86 tree, Linux 6.16 and later).
//! Sizes and offsets are checked when this is compiled.

use kvm_bindings::kvm_cpuid_entry2;

/// `KVM_X86_SNP_VM`.
pub const VM_TYPE_SNP: u64 = 4;
/// `KVM_X86_TDX_VM`.
pub const VM_TYPE_TDX: u64 = 5;

/// `KVM_X86_SEV_VMSA_FEATURES`: SEV_FEATURES that this host can give (group `KVM_X86_GRP_SEV`).
pub const SEV_VMSA_FEATURES: u64 = 0;
/// `KVM_X86_SNP_POLICY_BITS`: policy bits that this host accepts; kernels before 6.19 do not have it.
pub const SNP_POLICY_BITS: u64 = 1;
/// `KVM_SEV_SNP_ENABLE_REQ_CERTS`.
pub const SEV_SNP_ENABLE_REQ_CERTS: u32 = 103;

/// `KVM_EXIT_TDX`.
pub const EXIT_TDX: u32 = 40;
/// `KVM_EXIT_SNP_REQ_CERTS`.
pub const EXIT_SNP_REQ_CERTS: u32 = 43;

/// `KVM_HC_MAP_GPA_RANGE` (`include/uapi/linux/kvm_para.h`).
pub const HC_MAP_GPA_RANGE: u64 = 12;
/// `KVM_MAP_GPA_RANGE_ENCRYPTED`: to private.
pub const MAP_GPA_ENCRYPTED: u64 = 1 << 4;
/// Size of the pages in bits 3:0 of its attributes; a hint.
pub const MAP_GPA_SIZE_MASK: u64 = 0xF;

/// Commands of `KVM_MEMORY_ENCRYPT_OP` on a TDX VM or vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the kernel's names")]
pub enum TdxCommand {
    Capabilities = 0,
    InitVm = 1,
    InitVcpu = 2,
    InitMemRegion = 3,
    FinalizeVm = 4,
}

/// `KVM_TDX_MEASURE_MEMORY_REGION`.
pub const TDX_MEASURE_MEMORY_REGION: u32 = 1;

/// `struct kvm_tdx_cmd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TdxCmd {
    /// [`TdxCommand`].
    pub id: u32,
    /// By command.
    pub flags: u32,
    /// Address of the argument, or the argument.
    pub data: u64,
    /// TDX module's error, written by the kernel; zero on the way in.
    pub hw_error: u64,
}

/// Most entries of a CPUID list (`KVM_MAX_CPUID_ENTRIES`).
pub const CPUID_ENTRIES: usize = 256;

/// `struct kvm_cpuid2` with room for as many entries as the kernel takes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Cpuid2 {
    /// Number of entries.
    pub nent: u32,
    /// Zero.
    pub padding: u32,
    /// Entries.
    pub entries: [kvm_cpuid_entry2; CPUID_ENTRIES],
}

impl Cpuid2 {
    /// No entries, room for all.
    #[must_use]
    pub fn empty() -> Self {
        Self { nent: 0, padding: 0, entries: [kvm_cpuid_entry2::default(); CPUID_ENTRIES] }
    }

    /// A list; what is beyond the kernel's limit is refused.
    #[must_use]
    pub fn from_slice(list: &[kvm_cpuid_entry2]) -> Option<Self> {
        let mut cpuid = Self::empty();
        cpuid.entries.get_mut(..list.len())?.copy_from_slice(list);
        cpuid.nent = u32::try_from(list.len()).ok()?;
        Some(cpuid)
    }

    /// The entries in use.
    #[must_use]
    pub fn as_slice(&self) -> &[kvm_cpuid_entry2] {
        self.entries.get(..self.nent as usize).unwrap_or(&self.entries)
    }
}

/// `struct kvm_tdx_capabilities`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct TdxCapabilities {
    /// ATTRIBUTES that may be set.
    pub supported_attrs: u64,
    /// XFAM bits that may be set.
    pub supported_xfam: u64,
    /// TDVMCALLs that the kernel and user space serve, as GetTdVmCallInfo tells the guest.
    pub tdvmcall_info: [u64; 4],
    /// Zero.
    pub reserved: [u64; 250],
    /// CPUID bits that may be chosen.
    pub cpuid: Cpuid2,
}

impl TdxCapabilities {
    /// Room for the answer, `nent` entries of it.
    #[must_use]
    pub fn with_room(nent: u32) -> Box<Self> {
        let cpuid = Cpuid2 { nent, ..Cpuid2::empty() };
        Box::new(Self {
            supported_attrs: 0,
            supported_xfam: 0,
            tdvmcall_info: [0; 4],
            reserved: [0; 250],
            cpuid,
        })
    }
}

/// `struct kvm_tdx_init_vm`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct TdxInitVm {
    /// ATTRIBUTES.
    pub attributes: u64,
    /// XFAM.
    pub xfam: u64,
    /// Digest of the init-data, chosen by the host and fixed from here on.
    pub mrconfigid: [u8; 48],
    /// Owner's identity.
    pub mrowner: [u8; 48],
    /// Owner's configuration.
    pub mrownerconfig: [u8; 48],
    /// Zero.
    pub reserved: [u64; 12],
    /// CPUID of the guest, of the bits that may be chosen.
    pub cpuid: Cpuid2,
}

/// `struct kvm_tdx_init_mem_region`. The kernel advances it as pages are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TdxInitMemRegion {
    /// Address of the contents in this process.
    pub source_addr: u64,
    /// Guest address.
    pub gpa: u64,
    /// Pages that are left.
    pub nr_pages: u64,
}

/// `struct kvm_exit_snp_req_certs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SnpReqCerts {
    /// Where the guest wants the certificates, in shared memory.
    pub gpa: u64,
    /// Pages that it has room for; the pages needed on the way back.
    pub npages: u64,
    /// 0, `ENOSPC`, `EAGAIN` or `EIO`.
    pub ret: u64,
}

const _: () = {
    use std::mem::{align_of, offset_of, size_of};
    assert!(size_of::<TdxCmd>() == 24 && align_of::<TdxCmd>() == 8);
    assert!(offset_of!(TdxCmd, flags) == 4 && offset_of!(TdxCmd, data) == 8);
    assert!(offset_of!(TdxCmd, hw_error) == 16);
    assert!(offset_of!(Cpuid2, entries) == 8 && size_of::<Cpuid2>() == 8 + 40 * CPUID_ENTRIES);
    assert!(offset_of!(TdxCapabilities, supported_xfam) == 8);
    assert!(offset_of!(TdxCapabilities, reserved) == 48 && offset_of!(TdxCapabilities, cpuid) == 2048);
    assert!(offset_of!(TdxInitVm, xfam) == 8 && offset_of!(TdxInitVm, mrconfigid) == 16);
    assert!(offset_of!(TdxInitVm, mrowner) == 64 && offset_of!(TdxInitVm, mrownerconfig) == 112);
    assert!(offset_of!(TdxInitVm, reserved) == 160 && offset_of!(TdxInitVm, cpuid) == 256);
    assert!(size_of::<TdxInitMemRegion>() == 24 && offset_of!(TdxInitMemRegion, gpa) == 8);
    assert!(offset_of!(TdxInitMemRegion, nr_pages) == 16);
    assert!(size_of::<SnpReqCerts>() == 24 && offset_of!(SnpReqCerts, ret) == 16);
};
