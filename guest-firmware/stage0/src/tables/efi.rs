//! As much of EFI as Linux needs to find its table of unaccepted memory: UEFI 2.10, sections 4.3 (system
//! table), 4.6 (configuration tables), 7.2.3 (memory map); Linux, `struct efi_unaccepted_memory`. There
//! are no services: no part of the memory map is marked for run time, so Linux does without them.

use kata_cc_stage0_abi::MemoryRange;

use super::Writer;
use crate::params::{EfiInfo, guest_range};
use crate::platform::Termination;
use crate::platform::layout::{IMAGE, LARGE_PAGE, PAGE_SIZE, RESERVED_END, TABLES, TABLES_END};

/// "IBI SYST"
const SIGNATURE: u64 = 0x5453_5953_2049_4249;
const REVISION: u32 = 2 << 16 | 100;
const SYSTEM_TABLE: usize = 120;
const DESCRIPTOR: usize = 48;
const RESERVED_MEMORY: u32 = 0;
const ACPI_RECLAIM_MEMORY: u32 = 9;
const ACPI_MEMORY_NVS: u32 = 10;
const CONVENTIONAL_MEMORY: u32 = 7;
const WRITE_BACK: u64 = 8;

/// EFI_ACPI_20_TABLE_GUID, 8868e871-e4f1-11d3-bc22-0080c73c8881.
const ACPI: [u8; 16] = guid(0x8868_e871, 0xe4f1, 0x11d3, [0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81]);
/// EFI_CC_BLOB_GUID, 067b1f5f-cf26-44c5-8554-93d777912d42.
const CC_BLOB: [u8; 16] = guid(0x067b_1f5f, 0xcf26, 0x44c5, [0x85, 0x54, 0x93, 0xd7, 0x77, 0x91, 0x2d, 0x42]);
/// LINUX_EFI_UNACCEPTED_MEM_TABLE_GUID, d5d1de3c-105c-44f9-9ea9-bcef98120031.
const UNACCEPTED: [u8; 16] =
    guid(0xd5d1_de3c, 0x105c, 0x44f9, [0x9e, 0xa9, 0xbc, 0xef, 0x98, 0x12, 0x00, 0x31]);

const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> [u8; 16] {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = d;
    [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7]
}

/// What the configuration tables lead to.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// RSDP.
    pub rsdp: u64,
    /// CC blob.
    pub cc_blob: Option<u64>,
    /// Table of unaccepted memory.
    pub unaccepted: u64,
}

/// Writes system table, configuration tables and memory map. `base` is the address of the writer's first
/// byte.
///
/// # Errors
/// When the place is too small.
pub fn build(
    out: &mut Writer<'_>,
    base: u64,
    tables: &Tables,
    ram: &[MemoryRange],
) -> Result<EfiInfo, Termination> {
    out.align(16)?;
    let address = |at: usize| base + at as u64;
    let vendor = out.length();
    for character in "kata-cc\0".encode_utf16() {
        out.put(&character.to_le_bytes())?;
    }
    out.align(16)?;
    let memory_map = out.length();
    memory_descriptors(out, ram)?;
    let memory_map_bytes = (out.length() - memory_map) as u32;

    let configuration = out.length();
    let entries = [Some((ACPI, tables.rsdp)), tables.cc_blob.map(|blob| (CC_BLOB, blob)), {
        Some((UNACCEPTED, tables.unaccepted))
    }];
    let mut count = 0_u64;
    for (guid, pointer) in entries.into_iter().flatten() {
        out.put(&guid)?;
        out.put(&pointer.to_le_bytes())?;
        count += 1;
    }
    out.align(16)?;
    let system_table = out.length();
    let mut table = [0; SYSTEM_TABLE];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = table.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &SIGNATURE.to_le_bytes());
    put(8, &REVISION.to_le_bytes());
    put(12, &(SYSTEM_TABLE as u32).to_le_bytes());
    put(24, &address(vendor).to_le_bytes());
    put(104, &count.to_le_bytes());
    put(112, &address(configuration).to_le_bytes());
    let checksum = crc32(&table);
    if let Some(place) = table.get_mut(16..20) {
        place.copy_from_slice(&checksum.to_le_bytes());
    }
    out.put(&table)?;
    Ok(EfiInfo {
        system_table: address(system_table),
        memory_map: address(memory_map),
        memory_map_bytes,
        descriptor_bytes: DESCRIPTOR as u32,
    })
}

fn memory_descriptors(out: &mut Writer<'_>, ram: &[MemoryRange]) -> Result<(), Termination> {
    const LOW_END: u64 = 0x9_F000;
    let mut descriptor = |kind: u32, start: u64, end: u64| {
        out.put(&u64::from(kind).to_le_bytes())?;
        out.put(&start.to_le_bytes())?;
        out.put(&0_u64.to_le_bytes())?;
        out.put(&((end - start) / PAGE_SIZE).to_le_bytes())?;
        out.put(&WRITE_BACK.to_le_bytes())?;
        out.put(&0_u64.to_le_bytes())
    };
    descriptor(CONVENTIONAL_MEMORY, 0, LOW_END)?;
    // As in the e820 map.
    descriptor(RESERVED_MEMORY, LOW_END, IMAGE)?;
    descriptor(ACPI_MEMORY_NVS, IMAGE, TABLES)?;
    descriptor(ACPI_RECLAIM_MEMORY, TABLES, TABLES_END)?;
    descriptor(RESERVED_MEMORY, TABLES_END, RESERVED_END)?;
    for (start, end) in ram.iter().map(|range| guest_range(range, true)).filter(|(start, end)| start < end) {
        descriptor(CONVENTIONAL_MEMORY, start, end)?;
    }
    Ok(())
}

/// Bytes of the table of unaccepted memory for this RAM.
#[must_use]
pub fn unaccepted_bytes(ram: &[MemoryRange]) -> u64 {
    UNACCEPTED_HEADER + bitmap_bytes(ram)
}

const UNACCEPTED_HEADER: u64 = 24;

fn bitmap_bytes(ram: &[MemoryRange]) -> u64 {
    // whole words, as the kernel's bit operations read them
    let end = ram.last().map_or(0, MemoryRange::end);
    (end / LARGE_PAGE).div_ceil(64) * 8
}

/// Writes the table of unaccepted memory: one bit for each 2 MiB from address 0 on, set where there is RAM
/// that was not accepted. The rest of the place is zeros.
///
/// # Errors
/// When the place is too small.
pub fn unaccepted(
    place: &mut [u8],
    ram: &[MemoryRange],
    is_accepted: impl Fn(u64) -> bool,
) -> Result<(), Termination> {
    let length = usize::try_from(unaccepted_bytes(ram)).map_err(|_| Termination::TablesTooLarge)?;
    place.fill(0);
    let place = place.get_mut(..length).ok_or(Termination::TablesTooLarge)?;
    let (header, bitmap) = place.split_at_mut(UNACCEPTED_HEADER as usize);
    let mut header = Writer::new(header);
    header.put(&1_u32.to_le_bytes())?;
    header.put(&(LARGE_PAGE as u32).to_le_bytes())?;
    header.put(&0_u64.to_le_bytes())?;
    header.put(&bitmap_bytes(ram).to_le_bytes())?;
    for range in ram {
        let (mut unit, end) = guest_range(range, true);
        while unit < end {
            if !is_accepted(unit) {
                let index = unit / LARGE_PAGE;
                let byte = bitmap.get_mut((index / 8) as usize).ok_or(Termination::TablesTooLarge)?;
                *byte |= 1 << (index % 8);
            }
            unit += LARGE_PAGE;
        }
    }
    Ok(())
}

/// CRC-32 of UEFI (section 4.2): the one of Ethernet.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1F_0000;
    const MIB: u64 = 1 << 20;

    fn ram() -> [MemoryRange; 2] {
        let range = |start, length| MemoryRange { start, length };
        [range(0, 65 * MIB), range(4 << 30, 130 * MIB)]
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"))
    }

    #[test]
    fn crc_of_the_published_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_kernel_finds_every_table_from_the_system_table() {
        let mut place = vec![0; 4096];
        let told = Tables { rsdp: 0x1F_0400, cc_blob: Some(0x1F_0800), unaccepted: 0x1D_0000 };
        let info = build(&mut Writer::new(&mut place), BASE, &told, &ram()).expect("room");
        let table = &place[(info.system_table - BASE) as usize..][..120];
        assert_eq!(&table[..8], b"IBI SYST");
        let mut without = table.to_vec();
        without[16..20].fill(0);
        assert_eq!(table[16..20], crc32(&without).to_le_bytes());
        assert_eq!((u64_at(table, 88), u64_at(table, 96)), (0, 0), "no services");
        let vendor = &place[(u64_at(table, 24) - BASE) as usize..][..16];
        assert_eq!(vendor, b"k\0a\0t\0a\0-\0c\0c\0\0\0");
        assert_eq!(u64_at(table, 104), 3);
        let entries = &place[(u64_at(table, 112) - BASE) as usize..][..72];
        let pointers: Vec<u64> = entries.chunks(24).map(|entry| u64_at(entry, 16)).collect();
        assert_eq!(pointers, [0x1F_0400, 0x1F_0800, 0x1D_0000]);
        let map = &place[(info.memory_map - BASE) as usize..][..info.memory_map_bytes as usize];
        let map: Vec<(u64, u64, u64)> =
            map.chunks(48).map(|d| (u64_at(d, 0), u64_at(d, 8), u64_at(d, 24))).collect();
        assert_eq!(
            map,
            [
                (7, 0, 0x9f),
                (0, 0x9_F000, 0x61),
                (10, IMAGE, 0xF0),
                (9, TABLES, 8),
                (0, TABLES_END, 8),
                (7, 2 * MIB, 62 * 256),
                (7, 4 << 30, 130 * 256)
            ],
            "whole units of 2 MiB only"
        );
    }

    #[test]
    fn bitmap_has_what_was_not_accepted_and_nothing_else() {
        let ram = ram();
        let mut place = vec![0xff; unaccepted_bytes(&ram) as usize];
        unaccepted(&mut place, &ram, |unit| unit < 16 * MIB || unit == 4 << 30).expect("room");
        assert_eq!(place[..8], [1, 0, 0, 0, 0, 0, 0x20, 0]);
        assert_eq!((u64_at(&place, 8), u64_at(&place, 16)), (0, place.len() as u64 - 24));
        let bit = |unit: u64| place[24 + (unit / 8) as usize] >> (unit % 8) & 1 == 1;
        for unit in 0..(place.len() as u64 - 24) * 8 {
            let start = unit * 2 * MIB;
            let there = start < 64 * MIB || ((4 << 30)..(4 << 30) + 130 * MIB).contains(&start);
            let accepted = start < 16 * MIB || start == 4 << 30;
            assert_eq!(bit(unit), there && !accepted, "{start:#x}");
        }
    }

    #[test]
    fn refuses_a_place_that_is_too_small() {
        let told = Tables { rsdp: 0, cc_blob: None, unaccepted: 0 };
        let mut small = [0; 100];
        let refused = build(&mut Writer::new(&mut small), BASE, &told, &ram());
        assert_eq!(refused, Err(Termination::TablesTooLarge));
        assert_eq!(unaccepted(&mut small, &ram(), |_| false), Err(Termination::TablesTooLarge));
    }
}
