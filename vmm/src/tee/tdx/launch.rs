//! The launch itself.

use kata_cc_measurement::tdx::{PassOrder, TdLaunch, TdRegion};
use kvm_bindings::{CpuId, KVM_CAP_MAX_VCPUS, KVM_CAP_SPLIT_IRQCHIP};

use super::cpuid::configurable;
use crate::tee::abi::{
    CPUID_ENTRIES, Cpuid2, TDX_MEASURE_MEMORY_REGION, TdxCapabilities, TdxInitMemRegion, TdxInitVm,
    VM_TYPE_TDX,
};
use crate::tee::ioctls::TeeIoctls;
use crate::tee::memory::{MapError, MemoryBook};
use crate::tee::pages::{aligned, until_all_are_in};
use crate::tee::{Tee, TeeError, TeeKind, check_vm_type, enable_conversions, prepare_memory, set_private};

/// ATTRIBUTES.DEBUG.
const DEBUG: u64 = 1;
/// ATTRIBUTES bits 7:0: each lets the host look into the TD.
const UNTRUSTED: u64 = 0xFF;
/// ATTRIBUTES.SEPT_VE_DISABLE: a missing page ends the TD instead of raising #VE, which a host could abuse.
const SEPT_VE_DISABLE: u64 = 1 << 28;
/// XFAM: x87 and SSE are always on.
const XFAM_FIXED: u64 = 3;
/// Entries of the first attempt at the capabilities.
const FIRST_ROOM: u32 = 64;
/// Interrupt lines that stay with the user-space half of a split irqchip.
const IOAPIC_LINES: u64 = 24;

/// What a launch has besides its pages.
#[derive(Clone, Debug)]
pub struct TdxConfig {
    /// ATTRIBUTES.
    pub attributes: u64,
    /// Whether a TD that the host can debug is accepted.
    pub allow_debug: bool,
    /// XFAM that is wanted at most; what the host lacks is left out.
    pub xfam: u64,
    /// Digest of the init-data.
    pub mrconfigid: [u8; 48],
    /// Owner's identity.
    pub mrowner: [u8; 48],
    /// Owner's configuration.
    pub mrownerconfig: [u8; 48],
    /// First RCX of each vCPU: the hand-off block of TDVF, 0 for stage0.
    pub rcx: u64,
    /// Ranges (start, bytes) that start shared.
    pub shared: Vec<(u64, u64)>,
    /// Order that the hypervisor measures in.
    pub order: PassOrder,
}

impl TdxConfig {
    /// The usual launch: SEPT_VE_DISABLE, extended state up to AVX-512 and AMX as the host has it.
    #[must_use]
    pub const fn new(mrconfigid: [u8; 48]) -> Self {
        Self {
            attributes: SEPT_VE_DISABLE,
            allow_debug: false,
            xfam: 0x6_02E7,
            mrconfigid,
            mrowner: [0; 48],
            mrownerconfig: [0; 48],
            rcx: 0,
            shared: Vec::new(),
            order: PassOrder::Single,
        }
    }
}

/// A guest under TDX.
#[derive(Debug)]
pub struct TdxTee<'a> {
    config: TdxConfig,
    launch: TdLaunch<'a>,
    vcpus: u32,
    /// CPUID by vCPU.
    cpuid: Vec<CpuId>,
}

impl<'a> TdxTee<'a> {
    /// A launch of these regions with a number of vCPUs and their CPUID lists (one per vCPU).
    #[must_use]
    pub const fn new(config: TdxConfig, launch: TdLaunch<'a>, vcpus: u32, cpuid: Vec<CpuId>) -> Self {
        Self { config, launch, vcpus, cpuid }
    }

    fn check_attributes(&self) -> Result<(), TeeError> {
        let refuse = |reason| Err(TeeError::Policy { policy: self.config.attributes, reason });
        let untrusted = self.config.attributes & UNTRUSTED;
        if untrusted & !DEBUG != 0 {
            return refuse("ATTRIBUTES bits 1 to 7 let the host profile the guest");
        }
        if untrusted != 0 && !self.config.allow_debug {
            return refuse(
                "ATTRIBUTES bit 0 lets the host read the guest's memory: allow debugging by name to try things out",
            );
        }
        if self.config.attributes & SEPT_VE_DISABLE == 0 {
            return refuse("ATTRIBUTES bit 28 (SEPT_VE_DISABLE) must be set");
        }
        Ok(())
    }

    fn check_host(&self, io: &dyn TeeIoctls) -> Result<Box<TdxCapabilities>, TeeError> {
        check_vm_type(
            io,
            VM_TYPE_TDX,
            "VMs of type TDX",
            "run Linux 6.16 or later with kvm_intel.tdx=1 on a Xeon with TDX enabled in its firmware",
        )?;
        if io.capability(KVM_CAP_MAX_VCPUS) < self.vcpus {
            return Err(TeeError::Lacks {
                what: "as many vCPUs for a TD",
                change: "give the guest fewer vCPUs",
            });
        }
        let capabilities = capabilities(io)?;
        let supported = capabilities.supported_attrs;
        if self.config.attributes & !supported != 0 {
            return Err(TeeError::Unsupported {
                field: "ATTRIBUTES",
                asked: self.config.attributes,
                supported,
            });
        }
        if capabilities.supported_xfam & XFAM_FIXED != XFAM_FIXED {
            let supported = capabilities.supported_xfam;
            return Err(TeeError::Unsupported { field: "XFAM", asked: XFAM_FIXED, supported });
        }
        Ok(capabilities)
    }

    /// RAM regions lie in private memory; what is beyond RAM (the reset page) gets memory of its own.
    fn prepare_regions(&self, io: &dyn TeeIoctls, book: &MemoryBook) -> Result<(), TeeError> {
        let mut slot = u32::try_from(book.ram().len()).unwrap_or(u32::MAX);
        for region in self.launch.regions() {
            let (gpa, size) = (region.gpa, region.len);
            let end = gpa.saturating_add(size);
            if book.ram().iter().any(|ram| ram.start < end && gpa < ram.end) {
                if !book.private().iter().any(|private| private.start <= gpa && end <= private.end) {
                    return Err(MapError::NotRam { gpa, size }.into());
                }
                continue;
            }
            let memfd = io.create_guest_memfd(size).map_err(TeeError::refused("KVM_CREATE_GUEST_MEMFD"))?;
            io.set_memory_region(slot, gpa, size, memfd)
                .map_err(TeeError::refused("KVM_SET_USER_MEMORY_REGION2"))?;
            set_private(io, gpa, size, true)?;
            slot += 1;
        }
        Ok(())
    }
}

/// Asks for the capabilities with as much room as they need.
pub(super) fn capabilities(io: &dyn TeeIoctls) -> Result<Box<TdxCapabilities>, TeeError> {
    let mut room = FIRST_ROOM;
    loop {
        let mut answer = TdxCapabilities::with_room(room);
        match io.tdx_capabilities(&mut answer) {
            Err(refusal) if refusal.errno == libc::E2BIG && (room as usize) < CPUID_ENTRIES => {
                room = CPUID_ENTRIES as u32;
            }
            other => {
                other.map_err(TeeError::refused("KVM_TDX_CAPABILITIES"))?;
                return Ok(answer);
            }
        }
    }
}

/// INIT_MEM_REGION until all of a region is in.
fn add(io: &dyn TeeIoctls, region: &TdRegion<'_>) -> Result<(), TeeError> {
    let mut pages = aligned(&region.bytes, region.len);
    let flags = if region.measured { TDX_MEASURE_MEMORY_REGION } else { 0 };
    let len = pages.len() as u64 * 4096;
    until_all_are_in("KVM_TDX_INIT_MEM_REGION", region.gpa, len, |done| {
        let left = (len - done) / 4096;
        let mut call = TdxInitMemRegion { source_addr: 0, gpa: region.gpa + done, nr_pages: left };
        let start = usize::try_from(done / 4096).unwrap_or(usize::MAX);
        let source = pages.get_mut(start..).unwrap_or_default();
        let answer = io.tdx_init_mem_region(0, &mut call, flags, source);
        (left.saturating_sub(call.nr_pages) * 4096, answer)
    })
}

impl Tee for TdxTee<'_> {
    fn kind(&self) -> TeeKind {
        TeeKind::Tdx
    }

    fn vcpus(&self) -> Option<u32> {
        Some(self.vcpus)
    }

    fn predicted(&self) -> Option<[u8; 48]> {
        Some(self.launch.mrtd(self.config.order))
    }

    fn prepare(&mut self, io: &dyn TeeIoctls, book: &mut MemoryBook) -> Result<(), TeeError> {
        self.check_attributes()?;
        let capabilities = self.check_host(io)?;
        enable_conversions(io)?;
        io.enable_capability(KVM_CAP_SPLIT_IRQCHIP, IOAPIC_LINES)
            .map_err(TeeError::refused("KVM_ENABLE_CAP KVM_CAP_SPLIT_IRQCHIP"))?;
        let wanted = self.cpuid.first().map(CpuId::as_slice).unwrap_or_default();
        let chosen = configurable(wanted, capabilities.cpuid.as_slice());
        let cpuid = Cpuid2::from_slice(&chosen)
            .ok_or(TeeError::CpuidCount { seen: chosen.len(), most: CPUID_ENTRIES })?;
        let init = Box::new(TdxInitVm {
            attributes: self.config.attributes,
            xfam: self.config.xfam & capabilities.supported_xfam | XFAM_FIXED,
            mrconfigid: self.config.mrconfigid,
            mrowner: self.config.mrowner,
            mrownerconfig: self.config.mrownerconfig,
            reserved: [0; 12],
            cpuid,
        });
        io.tdx_init_vm(&init).map_err(TeeError::refused("KVM_TDX_INIT_VM"))?;
        prepare_memory(io, book, &self.config.shared)?;
        self.prepare_regions(io, book)
    }

    fn start_vcpu(&mut self, io: &dyn TeeIoctls, vcpu: u32) -> Result<(), TeeError> {
        // the kernel turns x2APIC on and has to find it in the vCPU's CPUID
        if let Some(list) = self.cpuid.get(vcpu as usize).or_else(|| self.cpuid.first()) {
            io.set_cpuid(vcpu, list).map_err(TeeError::refused("KVM_SET_CPUID2"))?;
        }
        io.tdx_init_vcpu(vcpu, self.config.rcx).map_err(TeeError::refused("KVM_TDX_INIT_VCPU"))
    }

    fn load(&mut self, io: &dyn TeeIoctls) -> Result<(), TeeError> {
        self.launch.regions().iter().try_for_each(|region| add(io, region))
    }

    fn finish(&mut self, io: &dyn TeeIoctls) -> Result<Option<[u8; 48]>, TeeError> {
        io.tdx_finalize().map_err(TeeError::refused("KVM_TDX_FINALIZE_VM"))?;
        Ok(Some(self.launch.mrtd(self.config.order)))
    }
}
