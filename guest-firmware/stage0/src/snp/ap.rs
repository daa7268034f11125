//! Further vCPUs from a state that the guest makes (GHCB specification, "SNP AP creation"; APM volume 2, appendix B
//! for the page's layout).
//!
//! Linux starts its processors itself in this way, so the boot asks only whether the host can. What is here is for
//! work of stage0's own on another vCPU. The state page is the guest's: the host learns its address and can decide
//! when, never with which registers, the vCPU runs.

use super::error::Error;
use super::ghcb::Ghcb;
use super::instructions::{Instructions, RMPADJUST_VMPL1, RMPADJUST_VMSA};
use crate::platform::layout;

/// Where a further vCPU begins: 32-bit protected mode, flat segments, no paging, as the first one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApState {
    /// EIP.
    pub entry: u32,
    /// SEV features of this vCPU; must be those of the first.
    pub sev_features: u64,
    /// CPUID signature, which a processor has in EDX at reset.
    pub signature: u32,
}

/// One field of eight bytes in the page.
type Field = (u64, u64);

/// Selector, attributes, limit as one number: u16, u16, u32. The base, 0 for all of them, follows.
const fn segment(selector: u64, attributes: u64, limit: u64) -> u64 {
    selector | attributes << 16 | limit << 32
}

const FLAT: u64 = 0xFFFF_FFFF;
const DATA: u64 = segment(0x10, 0xC93, FLAT);
const CODE: u64 = segment(0x08, 0xC9B, FLAT);
/// GDTR and IDTR are empty: an event that the host injects before there are tables ends the guest.
const TABLE: u64 = segment(0, 0, 0);

impl ApState {
    /// The fields of the page that are not zero.
    fn fields(&self) -> [Field; 23] {
        [
            (0x00, DATA),
            (0x10, CODE),
            (0x20, DATA),
            (0x30, DATA),
            (0x40, DATA),
            (0x50, DATA),
            (0x60, TABLE),
            (0x70, segment(0, 0x82, 0xFFFF)),
            (0x80, TABLE),
            (0x90, segment(0, 0x8B, 0xFFFF)),
            (0xD0, 0x1000),                 // EFER: SVME, which must be set under SEV
            (0x148, 0x40),                  // CR4: MCE
            (0x158, 0x11),                  // CR0: PE, ET
            (0x160, 0x400),                 // DR7
            (0x168, 0xFFFF_0FF0),           // DR6
            (0x170, 2),                     // RFLAGS
            (0x178, self.entry.into()),     // RIP
            (0x268, 0x0007_0406_0007_0406), // PAT
            (0x310, self.signature.into()), // RDX
            (0x3B0, self.sev_features),     // SEV_FEATURES
            (0x3E8, 1),                     // XCR0
            (0x408, 0x1F80),                // MXCSR; x87 tag and status words 0
            (0x410, 0x37F),                 // x87 control word
        ]
    }

    /// Writes the page.
    fn write(&self, hardware: &impl Instructions, vmsa: u64) {
        for offset in (0..layout::PAGE_SIZE).step_by(8) {
            hardware.write_private(vmsa + offset, 0);
        }
        for (offset, value) in self.fields() {
            hardware.write_private(vmsa + offset, value);
        }
    }
}

/// Makes a private page the state of a vCPU and has the host run it.
///
/// # Errors
/// When the page cannot be one, the processor does not make it one, or the host refuses; in the last case the page
/// is an ordinary one again.
pub fn create<H: Instructions>(
    hardware: &H,
    ghcb: &Ghcb<'_, H>,
    apic_id: u32,
    vmsa: u64,
    state: &ApState,
) -> Result<(), Error> {
    // A state page at a multiple of 2 MiB makes older processors see RMP violations in a large page beside it
    // (erratum, worked around in Linux' snp_alloc_vmsa_page).
    if !vmsa.is_multiple_of(layout::PAGE_SIZE) || vmsa.is_multiple_of(layout::LARGE_PAGE) {
        return Err(Error::Range(vmsa));
    }
    state.write(hardware, vmsa);
    let status = hardware.rmpadjust(vmsa, RMPADJUST_VMPL1 | RMPADJUST_VMSA);
    if status != 0 {
        return Err(Error::Rmpadjust(status));
    }
    ghcb.create_ap(apic_id, vmsa, state.sev_features).inspect_err(|_| {
        hardware.rmpadjust(vmsa, RMPADJUST_VMPL1);
    })
}
