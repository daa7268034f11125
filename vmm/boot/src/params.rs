//! Boot parameters ("zero page"): kernel documentation, `arch/x86/zero-page.rst` and `boot.rst`.
//! Everything not named here is zero; there is no `setup_data` and no ACPI pointer.

use crate::kernel::Kernel;
use crate::layout::{CMDLINE, HIGH_RAM, LEGACY_HOLE, MIB, MMIO_HOLE, MMIO_HOLE_END};

const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const RAM: u32 = 1;
const RESERVED: u32 = 2;
const LOADER_UNASSIGNED: u8 = 0xff;

pub(crate) fn build(kernel: &Kernel<'_>, memory_mib: u64, initramfs: Option<(u64, u64)>) -> [u8; 4096] {
    let mut page = [0u8; 4096];
    let mut put = |offset: usize, bytes: &[u8]| {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    if let Some(header) = kernel.setup_header {
        put(0x1f1, header);
    } else {
        put(0x1fe, &0xaa55_u16.to_le_bytes());
        put(0x202, b"HdrS");
        put(0x230, &0x100_0000_u32.to_le_bytes());
        put(0x238, &(kernel.cmdline_max as u32 - 1).to_le_bytes());
    }
    put(0x210, &[LOADER_UNASSIGNED]);
    // a setup_data list of the image's would be followed by the kernel
    put(0x250, &[0; 8]);
    put(0x228, &(CMDLINE as u32).to_le_bytes());
    let (address, bytes) = initramfs.unwrap_or((0, 0));
    put(0x218, &(address as u32).to_le_bytes());
    put(0x21c, &(bytes as u32).to_le_bytes());

    let map = memory_map(memory_mib);
    put(E820_ENTRIES, &[map.len() as u8]);
    for (index, (start, bytes, kind)) in map.iter().enumerate() {
        let at = E820_TABLE + index * 20;
        put(at, &start.to_le_bytes());
        put(at + 8, &bytes.to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    page
}

/// The e820 map: (start, bytes, kind).
fn memory_map(memory_mib: u64) -> Vec<(u64, u64, u32)> {
    let end = memory_mib * MIB;
    let low_end = end.min(MMIO_HOLE);
    let mut map = vec![
        (0, LEGACY_HOLE, RAM),
        (LEGACY_HOLE, HIGH_RAM - LEGACY_HOLE, RESERVED),
        (HIGH_RAM, low_end - HIGH_RAM, RAM),
    ];
    if end > MMIO_HOLE {
        map.push((MMIO_HOLE_END, end - MMIO_HOLE, RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_map_adds_up() {
        for mib in [64, 128, 3070, 3072, 3074, 300 * 1024] {
            let map = memory_map(mib);
            let mut last = 0;
            for (start, bytes, _) in &map {
                assert!(*start >= last, "{mib} MiB: no overlap");
                last = start + bytes;
            }
            let ram: u64 = map.iter().map(|(_, bytes, _)| bytes).sum();
            assert_eq!(ram, mib * MIB);
        }
    }
}
