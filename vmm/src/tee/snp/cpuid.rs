//! The CPUID page: what the guest may believe of CPUID, checked by the security processor when it is added.
//!
//! Layout (firmware ABI, table "CPUID page"): u32 count, u32 and u64 reserved, then 48-byte entries {EAX, ECX,
//! XCR0, XSS on the way in, EAX, EBX, ECX, EDX on the way out, u64 reserved}, 64 at most.
//!
//! KVM offers bits that it emulates and that the security processor refuses; they are removed here. Leaves that
//! say nothing (all zero) are left out: the guest reads a missing leaf as zeros.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::tee::TeeError;
use crate::tee::ioctls::Page;

/// Most entries of the page.
pub const CPUID_MAX: usize = 64;
const HEADER: usize = 16;
const ENTRY: usize = 48;

/// Bits that the security processor refuses although KVM offers them (leaf, index, EBX, ECX, EDX): what it
/// reports are properties of the hypervisor's emulation.
const REFUSED: [(u32, u32, u32, u32, u32); 3] = [
    // TSC deadline timer
    (0x1, 0, 0, 1 << 24, 0),
    // TSC_ADJUST; SPEC_CTRL, STIBP, ARCH_CAPABILITIES, CORE_CAPABILITIES, SSBD
    (0x7, 0, 1 << 1, 0, 1 << 26 | 1 << 27 | 1 << 29 | 1 << 30 | 1 << 31),
    // VIRT_SSBD
    (0x8000_0008, 0, 1 << 25, 0, 0),
];

/// Size of the XSAVE area with x87 and SSE only, which is what XCR0 has at start.
const XSAVE_AT_START: u32 = 0x240;

/// Whether a leaf is for the page: the processor's, and of the hypervisor's name and features, without which Linux finds no clock.
const fn is_for_the_guest(leaf: u32) -> bool {
    matches!(leaf, 0..=0xFFFF | 0x4000_0000..=0x4000_0001 | 0x8000_0000..=0x8000_FFFF)
}

/// The entries of the boot vCPU that the page holds.
fn filtered(cpuid: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    let mut out = Vec::with_capacity(cpuid.len());
    for entry in cpuid.iter().filter(|entry| is_for_the_guest(entry.function)) {
        let mut entry = *entry;
        for (leaf, index, ebx, ecx, edx) in REFUSED {
            if (leaf, index) == (entry.function, entry.index) {
                entry.ebx &= !ebx;
                entry.ecx &= !ecx;
                entry.edx &= !edx;
            }
        }
        if entry.function == 0xD && entry.index < 2 {
            entry.ebx = XSAVE_AT_START;
        }
        if entry.eax | entry.ebx | entry.ecx | entry.edx != 0 {
            out.push(entry);
        }
    }
    out
}

/// The page.
///
/// # Errors
/// When more leaves are left than it has room for.
pub fn cpuid_page(cpuid: &[kvm_cpuid_entry2]) -> Result<Page, TeeError> {
    let entries = filtered(cpuid);
    if entries.len() > CPUID_MAX {
        return Err(TeeError::CpuidCount { seen: entries.len(), most: CPUID_MAX });
    }
    let mut page = [0; 4096];
    page[..4].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    let (_, body) = page.split_at_mut(HEADER);
    for (slot, entry) in body.chunks_exact_mut(ENTRY).zip(&entries) {
        let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        let xcr0 = u64::from(entry.function == 0xD && entry.index < 2);
        slot[0..4].copy_from_slice(&entry.function.to_le_bytes());
        slot[4..8].copy_from_slice(&if indexed { entry.index } else { 0 }.to_le_bytes());
        slot[8..16].copy_from_slice(&xcr0.to_le_bytes());
        for (at, value) in [(24, entry.eax), (28, entry.ebx), (32, entry.ecx), (36, entry.edx)] {
            slot[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    Ok(Page(page))
}

/// The first leaf in which two pages differ.
pub(super) fn first_difference(a: &Page, b: &Page) -> Option<(u32, u32)> {
    let entries = |page: &Page| page.0[HEADER..HEADER + ENTRY * CPUID_MAX].to_vec();
    let word =
        |slot: &[u8], at: usize| slot.get(at..at + 4).and_then(|w| w.try_into().ok()).map(u32::from_le_bytes);
    entries(a)
        .chunks_exact(ENTRY)
        .zip(entries(b).chunks_exact(ENTRY))
        .find(|(a, b)| a != b)
        .and_then(|(slot, _)| Some((word(slot, 0)?, word(slot, 4)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, values: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = values;
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    }

    #[test]
    fn what_the_firmware_refuses_is_left_out() {
        let page = cpuid_page(&[
            entry(1, 0, [0xA00F11, 1, 1 << 24 | 1, 2]),
            entry(7, 0, [0, 3, 4, 0xFFFF_FFFF]),
            entry(0xD, 0, [7, 0x988, 0x988, 0]),
            entry(0xB, 1, [0, 0, 0, 0]),
            entry(0x4000_0000, 0, [1, 2, 3, 4]),
            entry(0x4000_0010, 0, [1, 2, 3, 4]),
            entry(0x8000_0008, 0, [0x3030, 1 << 25 | 1, 0, 0]),
        ])
        .unwrap();
        let word = |at: usize| u32::from_le_bytes(page.0[at..at + 4].try_into().unwrap());
        assert_eq!(word(0), 5);
        assert_eq!([word(16), word(40), word(44), word(48), word(52)], [1, 0xA00F11, 1, 1, 2]);
        assert_eq!([word(64), word(92), word(96), word(100)], [7, 1, 4, 0x13FF_FFFF]);
        assert_eq!([word(112), word(116), word(120), word(136), word(140)], [0xD, 0, 1, 7, 0x240]);
        assert_eq!([word(160), word(184), word(188)], [0x4000_0000, 1, 2]);
        assert_eq!([word(208), word(236)], [0x8000_0008, 1]);
        assert!(page.0[16 + 5 * 48..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn more_than_64_leaves_are_refused() {
        let leaves: Vec<_> = (0..65).map(|leaf| entry(leaf, 0, [1, 1, 1, 1])).collect();
        assert!(cpuid_page(&leaves[..64]).is_ok());
        assert!(matches!(cpuid_page(&leaves), Err(TeeError::CpuidCount { seen: 65, most: 64 })));
    }
}
