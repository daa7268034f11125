//! Boot parameters ("zero page"): kernel documentation, `arch/x86/zero-page.rst` and `boot.rst`. What is
//! not named here is zero.

use kata_cc_stage0_abi::MemoryRange;

use crate::kernel::Kernel;
use crate::platform::Termination;
use crate::platform::layout::{IMAGE, LARGE_PAGE, RESERVED_END, TABLES, TABLES_END};

/// Where the boot parameters are.
pub const ZERO_PAGE: u64 = 0x7000;
/// Where the command line is.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// End of RAM below the legacy hole, as a PC has it.
const LEGACY_HOLE: u64 = 0x9_fc00;

const ACPI_RSDP: usize = 0x70;
const CC_BLOB: usize = 0x13c;
const EFI_INFO: usize = 0x1c0;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY: usize = 20;
const E820_MAX: usize = 128;
const SETUP_HEADER: usize = 0x1f1;
const RAM: u32 = 1;
const RESERVED: u32 = 2;
/// Tables. Linux maps what lies in types 3 and 4 as its own memory; in `RESERVED` it would look for them on the host's side.
const ACPI: u32 = 3;
/// What is read and written as long as the guest lives: the mailbox of the processors, the event log.
const ACPI_NVS: u32 = 4;
const LOADER_UNASSIGNED: u8 = 0xff;

/// Where the EFI tables are, for `efi_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EfiInfo {
    /// System table.
    pub system_table: u64,
    /// Memory map.
    pub memory_map: u64,
    /// Bytes of the memory map.
    pub memory_map_bytes: u32,
    /// Bytes of each of its descriptors.
    pub descriptor_bytes: u32,
}

/// What the guest is told beside its kernel's own header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parameters<'a> {
    /// RAM.
    pub ram: &'a [MemoryRange],
    /// Whether only whole units of 2 MiB are shown, since the guest accepts memory by these.
    pub whole_units: bool,
    /// Address and bytes of the initramfs.
    pub initramfs: Option<(u64, u64)>,
    /// Address of the RSDP.
    pub rsdp: u64,
    /// Address of the CC blob.
    pub cc_blob: Option<u64>,
    /// `setup_data` list; 0: none.
    pub setup_data: u64,
    /// EFI tables.
    pub efi: Option<EfiInfo>,
}

/// Fills the page.
///
/// # Errors
/// When there are more ranges of memory than the page has room for.
pub fn build(page: &mut [u8; 4096], kernel: &Kernel, told: &Parameters<'_>) -> Result<(), Termination> {
    page.fill(0);
    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(place) = page.get_mut(offset..offset + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    match kernel.setup_header() {
        Some(header) => put(SETUP_HEADER, header),
        None => {
            put(0x1fe, &0xaa55_u16.to_le_bytes());
            put(0x202, b"HdrS");
            put(0x230, &0x100_0000_u32.to_le_bytes());
            put(0x238, &(kernel.command_line_max as u32).to_le_bytes());
        }
    }
    put(0x210, &[LOADER_UNASSIGNED]);
    // whatever list the file names is not ours
    put(0x250, &told.setup_data.to_le_bytes());
    put(0x228, &(COMMAND_LINE as u32).to_le_bytes());
    let (address, bytes) = told.initramfs.unwrap_or_default();
    put(0x218, &(address as u32).to_le_bytes());
    put(0x21c, &(bytes as u32).to_le_bytes());
    put(ACPI_RSDP, &told.rsdp.to_le_bytes());
    put(CC_BLOB, &(told.cc_blob.unwrap_or_default() as u32).to_le_bytes());
    if let Some(efi) = &told.efi {
        put(EFI_INFO, b"EL64");
        put(EFI_INFO + 4, &(efi.system_table as u32).to_le_bytes());
        put(EFI_INFO + 8, &efi.descriptor_bytes.to_le_bytes());
        put(EFI_INFO + 12, &1_u32.to_le_bytes());
        put(EFI_INFO + 16, &(efi.memory_map as u32).to_le_bytes());
        put(EFI_INFO + 20, &efi.memory_map_bytes.to_le_bytes());
        put(EFI_INFO + 24, &((efi.system_table >> 32) as u32).to_le_bytes());
        put(EFI_INFO + 28, &((efi.memory_map >> 32) as u32).to_le_bytes());
    }

    let mut count = 0;
    for (start, end, kind) in memory_map(told.ram, told.whole_units) {
        if count == E820_MAX {
            return Err(Termination::TablesTooLarge);
        }
        let at = E820_TABLE + count * E820_ENTRY;
        put(at, &start.to_le_bytes());
        put(at + 8, &(end - start).to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
        count += 1;
    }
    put(E820_ENTRIES, &[count as u8]);
    Ok(())
}

/// The e820 map: start, end, kind. Nothing that stage0 has for itself is given to the guest as RAM.
pub fn memory_map(ram: &[MemoryRange], whole_units: bool) -> impl Iterator<Item = (u64, u64, u32)> {
    let first = [
        (0, LEGACY_HOLE, RAM),
        (LEGACY_HOLE, IMAGE, RESERVED),
        (IMAGE, TABLES, ACPI_NVS),
        (TABLES, TABLES_END, ACPI),
        (TABLES_END, RESERVED_END, RESERVED),
    ];
    first.into_iter().chain(ram.iter().filter_map(move |range| {
        let (start, end) = guest_range(range, whole_units);
        (start < end).then_some((start, end, RAM))
    }))
}

/// What the guest sees of a range of RAM beyond the first 2 MiB.
#[must_use]
pub fn guest_range(range: &MemoryRange, whole_units: bool) -> (u64, u64) {
    let start = range.start.max(RESERVED_END);
    match whole_units {
        false => (start, range.end()),
        true => (start.next_multiple_of(LARGE_PAGE), range.end() & !(LARGE_PAGE - 1)),
    }
}
