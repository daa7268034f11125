//! First state of a vCPU in KVM's terms. What KVM itself sets at reset (FPU control words, most MSRs, APs
//! waiting for INIT) is not set again.

use kata_cc_boot::StartState;
use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs};
use kvm_ioctls::VcpuFd;

use crate::error::VmmError;
use crate::tee::snp::registers::segment;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Enabled, write-back: else Linux may take RAM for uncacheable.
const MTRR_WRITE_BACK: u64 = 0x800 | 6;

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const MODE_NMI: u32 = 4 << 8;
const MODE_EXT_INT: u32 = 7 << 8;
const MODE_MASK: u32 = 7 << 8;

/// MSRs of every vCPU; CPUID must be set before.
///
/// # Errors
/// What KVM said.
pub(crate) fn set_msrs(vcpu: &VcpuFd) -> Result<(), VmmError> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let wanted = [entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK), entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING)];
    let msrs = Msrs::from_entries(&wanted).map_err(|_| VmmError::KvmLacks("room for msrs"))?;
    let set = vcpu.set_msrs(&msrs).map_err(VmmError::kvm("msrs"))?;
    if set != wanted.len() {
        tracing::warn!(set, "kvm did not take every msr");
    }
    Ok(())
}

/// Local APIC: legacy interrupts by LINT0, NMI by LINT1, as the MP table says.
///
/// # Errors
/// What KVM said.
pub(crate) fn set_lapic(vcpu: &VcpuFd) -> Result<(), VmmError> {
    let mut lapic = vcpu.get_lapic().map_err(VmmError::kvm("local apic"))?;
    for (offset, mode) in [(LVT_LINT0, MODE_EXT_INT), (LVT_LINT1, MODE_NMI)] {
        let Some(bytes) = lapic.regs.get_mut(offset..offset + 4) else {
            continue;
        };
        let mut word = [0u8; 4];
        for (to, from) in word.iter_mut().zip(bytes.iter()) {
            *to = *from as u8;
        }
        let value = u32::from_le_bytes(word) & !MODE_MASK | mode;
        for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *to = from as _;
        }
    }
    vcpu.set_lapic(&lapic).map_err(VmmError::kvm("local apic"))
}

/// Registers of the boot vCPU.
///
/// # Errors
/// What KVM said.
pub fn set_registers(vcpu: &VcpuFd, start: &StartState) -> Result<(), VmmError> {
    let mut sregs = vcpu.get_sregs().map_err(VmmError::kvm("registers"))?;
    sregs.cs = segment(start.cs);
    let data = segment(start.data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(start.tr);
    let table =
        |t: kata_cc_boot::DescriptorTable| kvm_dtable { base: t.base, limit: t.limit, ..Default::default() };
    (sregs.gdt, sregs.idt) = (table(start.gdt), table(start.idt));
    (sregs.cr0, sregs.cr3, sregs.cr4) = (start.cr0, start.cr3, start.cr4);
    sregs.efer = start.efer;
    vcpu.set_sregs(&sregs).map_err(VmmError::kvm("system registers"))?;
    let regs = kvm_regs {
        rip: start.rip,
        rsp: start.rsp,
        rsi: start.rsi,
        rflags: start.rflags,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(VmmError::kvm("registers"))
}
