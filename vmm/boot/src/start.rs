//! First state of the vCPUs. The boot vCPU starts in 64-bit mode at the kernel's entry (kernel
//! documentation, `arch/x86/boot.rst`, "64-bit boot protocol"); the others wait, at reset, for the
//! boot vCPU to start them.

pub use kata_cc_measurement::vmsa::Segment;

use crate::layout::{BOOT_STACK, GDT, PAGE_TABLES, ZERO_PAGE};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_ONE: u64 = 2;

const PRESENT_WRITABLE: u64 = 3;
const PRESENT_WRITABLE_HUGE: u64 = 0x83;
const HUGE_PAGE: u64 = 2 << 20;

/// Null, null, code (`__BOOT_CS`), data (`__BOOT_DS`), TSS (two entries).
const GDT_ENTRIES: [u64; 6] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Registers of the boot vCPU; what is not named here is zero or at its reset value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields carry the architecture's register names")]
pub struct StartState {
    pub rip: u64,
    pub rsp: u64,
    pub rsi: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    pub tr: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
}

impl StartState {
    /// 64-bit mode at `entry`, boot parameters in RSI, first GiB mapped, interrupts off.
    #[must_use]
    pub const fn linux64(entry: u64) -> Self {
        Self {
            rip: entry,
            rsp: BOOT_STACK,
            rsi: ZERO_PAGE,
            rflags: RFLAGS_ONE,
            cr0: CR0_PE | CR0_ET | CR0_PG,
            cr3: PAGE_TABLES,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            cs: Segment { selector: 0x10, base: 0, limit: 0xffff_ffff, attributes: 0xa9b },
            data: Segment { selector: 0x18, base: 0, limit: 0xffff_ffff, attributes: 0xc93 },
            tr: Segment { selector: 0x20, base: 0, limit: 0x67, attributes: 0x8b },
            gdt: DescriptorTable { base: GDT, limit: (GDT_ENTRIES.len() * 8 - 1) as u16 },
            idt: DescriptorTable { base: 0, limit: 0 },
        }
    }

    /// 32-bit protected mode without paging, flat segments: how every vCPU begins in stage0, since a TDX
    /// vCPU cannot begin otherwise.
    #[must_use]
    pub const fn flat32(entry: u64) -> Self {
        // Empty: an event before stage0 has tables ends the guest.
        const NONE: DescriptorTable = DescriptorTable { base: 0, limit: 0 };
        Self {
            rip: entry,
            rsp: 0,
            rsi: 0,
            rflags: RFLAGS_ONE,
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            cs: Segment { selector: 0x8, base: 0, limit: 0xffff_ffff, attributes: 0xc9b },
            data: Segment { selector: 0x10, base: 0, limit: 0xffff_ffff, attributes: 0xc93 },
            tr: Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x8b },
            gdt: NONE,
            idt: NONE,
        }
    }
}

/// GDT content.
pub(crate) fn gdt() -> Vec<u8> {
    GDT_ENTRIES.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

/// PML4, PDPT and PD: the first GiB, in pages of 2 MiB.
pub(crate) fn page_tables() -> Vec<u8> {
    let mut tables = vec![0u64; 3 * 512];
    tables[0] = (PAGE_TABLES + 0x1000) | PRESENT_WRITABLE;
    tables[512] = (PAGE_TABLES + 0x2000) | PRESENT_WRITABLE;
    for (index, entry) in tables[1024..].iter_mut().enumerate() {
        *entry = (index as u64 * HUGE_PAGE) | PRESENT_WRITABLE_HUGE;
    }
    tables.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}
