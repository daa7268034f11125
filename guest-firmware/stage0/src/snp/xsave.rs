//! Sizes of XSAVE areas in the CPUID page (leaf 0xD; APM volume 3, appendix E.3.8).
//!
//! Linux allocates its buffers by these sizes and the processor writes by its own. A page that makes a component
//! smaller than it is has the guest's kernel overflow its buffers at the first context switch, so the sizes that the
//! architecture fixes are demanded as they are, and the rest must at least hang together.

use super::cpuid::{CpuidRefusal, CpuidTable, LEAF_XSAVE, Registers};

/// Legacy region and header: where the first extended component can start.
const LEGACY_SIZE: u32 = 0x240;
/// No processor with SEV-SNP has a bigger area (x87, SSE, AVX, AVX-512, PKRU, CET: 2.7 KiB; AMX would be 11 KiB).
const MAX_AREA: u32 = 0x4000;

/// XCR0: x87 and SSE, which cannot be absent in 64-bit mode.
const X87_SSE: u64 = 0b11;
const AVX: u64 = 1 << 2;
/// Opmask, upper halves, upper registers: only all together, only with AVX.
const AVX512: u64 = 0b111 << 5;

/// Components whose size the architecture fixes.
const FIXED_SIZES: [(u32, u32); 7] = [(2, 256), (5, 64), (6, 512), (7, 1024), (9, 8), (11, 16), (12, 24)];

struct Component {
    subleaf: u32,
    size: u32,
    offset: u32,
    supervisor: bool,
}

impl Component {
    fn new(subleaf: u32, registers: Registers) -> Self {
        let Registers { eax, ebx, ecx, .. } = registers;
        Self { subleaf, size: eax, offset: ebx, supervisor: ecx & 1 != 0 }
    }

    fn refusal(&self) -> CpuidRefusal {
        CpuidRefusal::Xsave(self.subleaf)
    }

    fn end(&self) -> Result<u32, CpuidRefusal> {
        self.offset.checked_add(self.size).filter(|end| *end <= MAX_AREA).ok_or(self.refusal())
    }

    /// Rules for one component alone.
    fn check(&self) -> Result<(), CpuidRefusal> {
        let fixed = FIXED_SIZES.iter().find(|(subleaf, _)| *subleaf == self.subleaf);
        let size = self.size != 0 && fixed.is_none_or(|(_, size)| *size == self.size);
        // Supervisor components only exist in compacted areas and so have no offset.
        let place = if self.supervisor { self.offset == 0 } else { self.offset >= LEGACY_SIZE };
        if !size || !place {
            return Err(self.refusal());
        }
        self.end().map(drop)
    }

    fn overlaps(&self, other: &Self) -> Result<bool, CpuidRefusal> {
        let both = !self.supervisor && !other.supervisor;
        Ok(both && self.offset < other.end()? && other.offset < self.end()?)
    }
}

fn components<'a>(table: &CpuidTable<'a>) -> impl Iterator<Item = Component> + use<'a> {
    table
        .entries()
        .filter(|entry| entry.leaf == LEAF_XSAVE && entry.subleaf >= 2)
        .map(|entry| Component::new(entry.subleaf, entry.registers))
        // An all-zero subleaf is one that does not exist, as on the processor.
        .filter(|component| component.size != 0 || component.offset != 0 || component.supervisor)
}

/// Checks leaf 0xD as a whole.
pub(super) fn check(table: &CpuidTable<'_>) -> Result<(), CpuidRefusal> {
    let missing = CpuidRefusal::Missing(LEAF_XSAVE);
    let base = table.find(LEAF_XSAVE, 0).ok_or(missing)?;
    let extended = table.find(LEAF_XSAVE, 1).ok_or(missing)?;
    let user = u64::from(base.eax) | u64::from(base.edx) << 32;
    let supervisor = u64::from(extended.ecx) | u64::from(extended.edx) << 32;
    check_masks(table, user, supervisor)?;
    let end = check_components(table, user, supervisor)?;
    // Sizes for the state at reset, and for all that can be switched on.
    let sizes = matches!(base.ebx, LEGACY_SIZE) && (end..=MAX_AREA).contains(&base.ecx);
    let compacted = matches!(extended.ebx, 0 | LEGACY_SIZE);
    if sizes && compacted { Ok(()) } else { Err(CpuidRefusal::Xsave(0)) }
}

fn check_masks(table: &CpuidTable<'_>, user: u64, supervisor: u64) -> Result<(), CpuidRefusal> {
    let avx512 = user & AVX512;
    let whole = (avx512 == 0 || avx512 == AVX512 && user & AVX != 0) && user & supervisor == 0;
    let avx = !table.announces_avx() || user & AVX != 0;
    if user & X87_SSE == X87_SSE && supervisor & X87_SSE == 0 && whole && avx {
        Ok(())
    } else {
        Err(CpuidRefusal::Xsave(0))
    }
}

/// Each component that is announced has one good entry, and no other has one. Gives the end of the last.
fn check_components(table: &CpuidTable<'_>, user: u64, supervisor: u64) -> Result<u32, CpuidRefusal> {
    let (mut found, mut end) = (0_u64, LEGACY_SIZE);
    for component in components(table) {
        component.check()?;
        let bit = 1_u64.checked_shl(component.subleaf).ok_or(component.refusal())?;
        let mask = if component.supervisor { supervisor } else { user };
        if mask & bit == 0 {
            return Err(component.refusal());
        }
        for other in components(table).take_while(|other| other.subleaf != component.subleaf) {
            if component.overlaps(&other)? {
                return Err(component.refusal());
            }
        }
        found |= bit;
        end = end.max(component.end()?);
    }
    if found == (user | supervisor) & !X87_SSE { Ok(end) } else { Err(CpuidRefusal::Xsave(0)) }
}
