//! The CPUID page of an SEV-SNP guest: parsed, checked, and asked in place of the `CPUID` instruction.
//!
//! `CPUID` is intercepted in an SNP guest, so its answers would be the host's. The host therefore hands over a
//! table at launch (page type 6) whose values the security processor compares with the hardware (SEV-SNP
//! Firmware ABI, "CPUID page"). The launch digest says *that* such a page is there, not what stands in it, and
//! firmware leaves some of it alone: the hypervisor range, which leaves are missing, which stand there twice,
//! the sizes of XSAVE areas that a guest allocates by. What Linux would believe without looking is looked at here.
//!
//! Format: u32 count (at most 64), 12 bytes reserved, then 48 bytes for each entry: eax_in, ecx_in (u32),
//! xcr0_in, xss_in (u64), eax, ebx, ecx, edx (u32), 8 bytes reserved.

use core::fmt;

use super::xsave;

/// The most entries that the security processor takes (Firmware ABI 8.17.2.6).
pub const MAX_ENTRIES: usize = 64;
/// Bytes of the page.
pub const PAGE_SIZE: usize = 4096;

const HEADER_SIZE: usize = 16;
const ENTRY_SIZE: usize = 48;

const LEAF_FEATURES: u32 = 1;
const LEAF_EXTENDED_FEATURES: u32 = 7;
/// The leaf of the XSAVE state components.
pub(super) const LEAF_XSAVE: u32 = 0xD;
/// Where Linux looks for `IntelTDX    `: a page that answers here would send an SNP guest down the TDX paths.
const LEAF_TDX: u32 = 0x21;
const LEAF_HYPERVISOR: u32 = 0x4000_0000;
const LEAF_EXTENDED: u32 = 0x8000_0000;
const LEAF_EXTENDED_SIGNATURE: u32 = 0x8000_0001;
const LEAF_ADDRESS_SIZES: u32 = 0x8000_0008;
const LEAF_ENCRYPTION: u32 = 0x8000_001F;

/// Highest leaves that a range may claim. Real processors are far below; a maximum of 0xFFFF_FFFF would make
/// each entry "in range".
const STANDARD_LIMIT: u32 = 0xFF;
const HYPERVISOR_LIMIT: u32 = 0x4000_00FF;
const EXTENDED_LIMIT: u32 = 0x8000_00FF;

/// Leaf 1, EDX: x87, TSC, MSRs, PAE, CMPXCHG8B, PGE, CMOV, FXSAVE, SSE, SSE2: without them no 64-bit Linux.
const FEATURES_EDX: u32 =
    1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 13 | 1 << 15 | 1 << 24 | 1 << 25 | 1 << 26;
/// Leaf 1, ECX: CMPXCHG16B and XSAVE.
const FEATURES_ECX: u32 = 1 << 13 | 1 << 26;
/// Leaf 1, ECX: AVX.
const FEATURE_AVX: u32 = 1 << 28;
/// Leaf 1, ECX: RDRAND. Each processor with SNP has it; without it the guest's entropy would be the host's.
const FEATURE_RDRAND: u32 = 1 << 30;
/// Leaf 1, ECX: set under each hypervisor; not set, Linux takes itself to be on bare metal.
const FEATURE_HYPERVISOR: u32 = 1 << 31;
/// Leaf 7, EBX: SMEP and SMAP. Each processor with SNP has them; hidden, the kernel runs without.
const FEATURE_SMEP_SMAP: u32 = 1 << 7 | 1 << 20;
/// Leaf 7, EBX: the SHA instructions.
const FEATURE_SHA: u32 = 1 << 29;
/// Leaf 0x8000_0001, EDX: no-execute and long mode.
const FEATURES_EXTENDED_EDX: u32 = 1 << 20 | 1 << 29;
/// Leaf 0x8000_001F, EAX: SEV, SEV-ES, SEV-SNP.
const ENCRYPTION_SEV_ES_SNP: u32 = 1 << 1 | 1 << 3 | 1 << 4;

/// `AuthenticAMD` as EBX, EDX, ECX of leaf 0.
const VENDOR_AMD: [u32; 3] = [0x6874_7541, 0x6974_6E65, 0x444D_4163];
/// `KVMKVMKVM` as EBX, ECX, EDX of leaf 0x4000_0000.
const HYPERVISOR_KVM: [u32; 3] = [0x4B4D_564B, 0x564B_4D56, 0x0000_004D];

/// Why a CPUID page is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuidRefusal {
    /// no entry, or more than the security processor takes
    Count(u32),
    /// something stands in a reserved field or behind the last entry
    Reserved,
    /// the entry's leaf lies outside the range that the page itself announces
    LeafOutOfRange(u32),
    /// two entries would answer the same question
    Duplicate(u32),
    /// a subleaf, XCR0 or XSS where the leaf knows none
    UnexpectedIndex(u32),
    /// a leaf that each SNP processor has is missing
    Missing(u32),
    /// the vendor is not AMD
    Vendor,
    /// the page claims to be on another hypervisor than KVM, whose paravirtual interfaces Linux would trust
    Hypervisor,
    /// the page claims to be a TDX guest
    ForeignTee,
    /// the hypervisor bit is not set
    HypervisorBit,
    /// RDRAND is hidden: the guest would be left without entropy of its own
    NoRdrand,
    /// SMEP or SMAP is hidden
    NoSupervisorProtection,
    /// a feature is hidden without which a 64-bit kernel does not run
    Baseline(u32),
    /// SEV, SEV-ES or SEV-SNP is not announced
    NoEncryption,
    /// another C-bit than the measured one
    CBit(u8),
    /// width of physical addresses that no such processor has
    PhysicalBits(u8),
    /// sizes or offsets of XSAVE areas that the processor would write beyond, or that overlap
    Xsave(u32),
}

impl fmt::Display for CpuidRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count} entries, 1 to {MAX_ENTRIES} can be"),
            Self::Reserved => f.write_str("something stands in a reserved field or behind the last entry"),
            Self::LeafOutOfRange(leaf) => write!(f, "leaf {leaf:#x} lies outside of what the page announces"),
            Self::Duplicate(leaf) => write!(f, "leaf {leaf:#x} is answered twice"),
            Self::UnexpectedIndex(leaf) => {
                write!(f, "leaf {leaf:#x} has a subleaf, XCR0 or XSS it cannot have")
            }
            Self::Missing(leaf) => write!(f, "leaf {leaf:#x} is missing"),
            Self::Vendor => f.write_str("the vendor is not AuthenticAMD"),
            Self::Hypervisor => f.write_str("the hypervisor is not KVM"),
            Self::ForeignTee => f.write_str("the page claims to be a TDX guest"),
            Self::HypervisorBit => f.write_str("the hypervisor bit is not set"),
            Self::NoRdrand => f.write_str("RDRAND is hidden"),
            Self::NoSupervisorProtection => f.write_str("SMEP or SMAP is hidden"),
            Self::Baseline(leaf) => write!(f, "leaf {leaf:#x} lacks what a 64-bit kernel needs"),
            Self::NoEncryption => f.write_str("SEV, SEV-ES or SEV-SNP is not announced"),
            Self::CBit(bit) => write!(f, "C-bit {bit} is not the measured one"),
            Self::PhysicalBits(bits) => write!(f, "{bits} physical address bits"),
            Self::Xsave(subleaf) => {
                write!(f, "XSAVE area of subleaf {subleaf} does not fit the processor's rules")
            }
        }
    }
}

/// The four answers of a leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// EAX
    pub eax: u32,
    /// EBX
    pub ebx: u32,
    /// ECX
    pub ecx: u32,
    /// EDX
    pub edx: u32,
}

/// One entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The leaf (EAX in).
    pub leaf: u32,
    /// The subleaf (ECX in).
    pub subleaf: u32,
    /// XCR0 for which the answer holds; 0 except for leaf 0xD.
    pub xcr0: u64,
    /// XSS for which the answer holds; 0 except for leaf 0xD.
    pub xss: u64,
    /// The answers.
    pub registers: Registers,
}

/// What stage0 takes from a page that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidFacts {
    /// Position of the C-bit.
    pub c_bit: u8,
    /// Width of guest physical addresses, the C-bit not counted.
    pub physical_bits: u8,
    /// The SHA instructions can be used.
    pub sha: bool,
}

/// A CPUID page whose form is right: entries can be walked, none answers twice.
///
/// The page is private memory, so it cannot change between check and use.
#[derive(Clone, Copy, Debug)]
pub struct CpuidTable<'a> {
    entries: &'a [[u8; ENTRY_SIZE]],
}

impl<'a> CpuidTable<'a> {
    /// Takes the page apart and checks its form: count, reserved fields, ranges, duplicates.
    ///
    /// # Errors
    /// The first rule of form that the page breaks.
    pub fn parse(page: &'a [u8; PAGE_SIZE]) -> Result<Self, CpuidRefusal> {
        let (header, body) = page.split_at(HEADER_SIZE);
        let count = word(header, 0);
        if header.iter().skip(4).any(|byte| *byte != 0) {
            return Err(CpuidRefusal::Reserved);
        }
        let used = usize::try_from(count)
            .ok()
            .filter(|count| (1..=MAX_ENTRIES).contains(count))
            .ok_or(CpuidRefusal::Count(count))?;
        let (all, _) = body.as_chunks::<ENTRY_SIZE>();
        let entries = all.get(..used).ok_or(CpuidRefusal::Count(count))?;
        let behind = body.get(used * ENTRY_SIZE..).unwrap_or_default();
        let reserved = entries.iter().flat_map(|entry| entry.iter().skip(40));
        if behind.iter().chain(reserved).any(|byte| *byte != 0) {
            return Err(CpuidRefusal::Reserved);
        }
        let table = Self { entries };
        table.check_ranges()?;
        table.check_unique()?;
        Ok(table)
    }

    /// The entries in the page's order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + use<'a> {
        self.entries.iter().map(|bytes| Entry {
            leaf: word(bytes, 0),
            subleaf: word(bytes, 4),
            xcr0: u64::from(word(bytes, 8)) | u64::from(word(bytes, 12)) << 32,
            xss: u64::from(word(bytes, 16)) | u64::from(word(bytes, 20)) << 32,
            registers: Registers {
                eax: word(bytes, 24),
                ebx: word(bytes, 28),
                ecx: word(bytes, 32),
                edx: word(bytes, 36),
            },
        })
    }

    /// What the processor would answer, had the host not intercepted the instruction. A leaf that the page does not
    /// have is all zeros, as one out of range is (the security processor lets all-zero leaves be left out). The size
    /// of the XSAVE area is that of the state at reset: stage0 never sets XCR0.
    #[must_use]
    pub fn lookup(&self, leaf: u32, subleaf: u32) -> Registers {
        self.find(leaf, if is_indexed(leaf) { subleaf } else { 0 }).unwrap_or_default()
    }

    /// The entry of a leaf and subleaf; for the two subleaves of XSAVE that depend on XCR0, the one of the state at
    /// reset (XCR0 1 or 3, no XSS), from which Linux computes the others too.
    pub(super) fn find(&self, leaf: u32, subleaf: u32) -> Option<Registers> {
        let found = self.entries().find(|entry| {
            let base = !depends_on_xcr0(leaf, subleaf) || (matches!(entry.xcr0, 1 | 3) && entry.xss == 0);
            entry.leaf == leaf && entry.subleaf == subleaf && base
        });
        found.map(|entry| entry.registers)
    }

    fn require(&self, leaf: u32, subleaf: u32) -> Result<Registers, CpuidRefusal> {
        self.find(leaf, subleaf).ok_or(CpuidRefusal::Missing(leaf))
    }

    fn range_end(&self, first: u32, limit: u32) -> Result<u32, CpuidRefusal> {
        // A range without its first leaf is empty.
        let Some(Registers { eax, .. }) = self.find(first, 0) else { return Ok(0) };
        if (first..=limit).contains(&eax) { Ok(eax) } else { Err(CpuidRefusal::LeafOutOfRange(eax)) }
    }

    fn check_ranges(&self) -> Result<(), CpuidRefusal> {
        let standard = self.range_end(0, STANDARD_LIMIT)?;
        let hypervisor = self.range_end(LEAF_HYPERVISOR, HYPERVISOR_LIMIT)?;
        let extended = self.range_end(LEAF_EXTENDED, EXTENDED_LIMIT)?;
        for Entry { leaf, subleaf, xcr0, xss, .. } in self.entries() {
            let end = match leaf {
                ..LEAF_HYPERVISOR => standard,
                LEAF_HYPERVISOR..LEAF_EXTENDED => hypervisor,
                LEAF_EXTENDED.. => extended,
            };
            if leaf > end {
                return Err(CpuidRefusal::LeafOutOfRange(leaf));
            }
            let indexed = subleaf == 0 || is_indexed(leaf);
            let state = (xcr0 == 0 && xss == 0) || depends_on_xcr0(leaf, subleaf);
            if !indexed || !state {
                return Err(CpuidRefusal::UnexpectedIndex(leaf));
            }
        }
        Ok(())
    }

    fn check_unique(&self) -> Result<(), CpuidRefusal> {
        for (index, one) in self.entries().enumerate() {
            let same = |other: Entry| {
                // Entries for XCR0 1 and for XCR0 3 are both "the state at reset": which of them Linux takes would
                // depend on their order.
                let state = |entry: &Entry| (if entry.xcr0 == 3 { 1 } else { entry.xcr0 }, entry.xss);
                one.leaf == other.leaf && one.subleaf == other.subleaf && state(&one) == state(&other)
            };
            if self.entries().take(index).any(same) {
                return Err(CpuidRefusal::Duplicate(one.leaf));
            }
        }
        Ok(())
    }

    /// Checks what the page says: nothing that a processor with SEV-SNP cannot be, nothing hidden that the guest
    /// needs against its host, and the C-bit that was measured.
    ///
    /// # Errors
    /// The first rule that the page breaks.
    pub fn check(&self, measured_c_bit: u8) -> Result<CpuidFacts, CpuidRefusal> {
        self.check_identity()?;
        let sha = self.check_features()?;
        let (c_bit, physical_bits) = self.check_encryption(measured_c_bit)?;
        xsave::check(self)?;
        Ok(CpuidFacts { c_bit, physical_bits, sha })
    }

    fn check_identity(&self) -> Result<(), CpuidRefusal> {
        let vendor = self.require(0, 0)?;
        if [vendor.ebx, vendor.edx, vendor.ecx] != VENDOR_AMD {
            return Err(CpuidRefusal::Vendor);
        }
        if let Some(hypervisor) = self.find(LEAF_HYPERVISOR, 0)
            && [hypervisor.ebx, hypervisor.ecx, hypervisor.edx] != HYPERVISOR_KVM
        {
            return Err(CpuidRefusal::Hypervisor);
        }
        if self.entries().any(|entry| entry.leaf == LEAF_TDX && entry.registers != Registers::default()) {
            return Err(CpuidRefusal::ForeignTee);
        }
        Ok(())
    }

    fn check_features(&self) -> Result<bool, CpuidRefusal> {
        let Registers { ecx, edx, .. } = self.require(LEAF_FEATURES, 0)?;
        if ecx & FEATURE_HYPERVISOR == 0 {
            return Err(CpuidRefusal::HypervisorBit);
        }
        if ecx & FEATURE_RDRAND == 0 {
            return Err(CpuidRefusal::NoRdrand);
        }
        if edx & FEATURES_EDX != FEATURES_EDX || ecx & FEATURES_ECX != FEATURES_ECX {
            return Err(CpuidRefusal::Baseline(LEAF_FEATURES));
        }
        let extended = self.require(LEAF_EXTENDED_SIGNATURE, 0)?;
        if extended.edx & FEATURES_EXTENDED_EDX != FEATURES_EXTENDED_EDX {
            return Err(CpuidRefusal::Baseline(LEAF_EXTENDED_SIGNATURE));
        }
        let structured = self.require(LEAF_EXTENDED_FEATURES, 0)?;
        if structured.ebx & FEATURE_SMEP_SMAP != FEATURE_SMEP_SMAP {
            return Err(CpuidRefusal::NoSupervisorProtection);
        }
        Ok(structured.ebx & FEATURE_SHA != 0)
    }

    fn check_encryption(&self, measured_c_bit: u8) -> Result<(u8, u8), CpuidRefusal> {
        let Registers { eax, ebx, .. } = self.require(LEAF_ENCRYPTION, 0)?;
        if eax & ENCRYPTION_SEV_ES_SNP != ENCRYPTION_SEV_ES_SNP {
            return Err(CpuidRefusal::NoEncryption);
        }
        let [c_bit, ..] = (ebx & 0x3F).to_le_bytes();
        if c_bit != measured_c_bit || !(32..52).contains(&c_bit) {
            return Err(CpuidRefusal::CBit(c_bit));
        }
        let [bits, ..] = self.require(LEAF_ADDRESS_SIZES, 0)?.eax.to_le_bytes();
        if !(36..=52).contains(&bits) {
            return Err(CpuidRefusal::PhysicalBits(bits));
        }
        Ok((c_bit, bits.min(c_bit)))
    }

    /// True when AVX is announced: then its state component must be there too.
    pub(super) fn announces_avx(&self) -> bool {
        self.find(LEAF_FEATURES, 0).is_some_and(|features| features.ecx & FEATURE_AVX != 0)
    }
}

/// Leaves whose answer depends on ECX. For all others Linux takes the first entry of the leaf.
fn is_indexed(leaf: u32) -> bool {
    matches!(
        leaf,
        4 | 7 | 0xB | LEAF_XSAVE | 0xF | 0x10 | 0x12 | 0x14 | 0x17 | 0x18 | 0x1D
            ..=0x1F | 0x23 | 0x24 | 0x8000_001D | 0x8000_0020 | 0x8000_0026
    )
}

fn depends_on_xcr0(leaf: u32, subleaf: u32) -> bool {
    leaf == LEAF_XSAVE && subleaf < 2
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
#[path = "cpuid_tests.rs"]
pub(super) mod tests;
