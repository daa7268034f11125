//! Where things are in guest-physical memory. `docs/design.md` fixes the devices' addresses; the rest
//! is this crate's choice.
//!
//! | address | what |
//! |---|---|
//! | `0x7000` | boot parameters ("zero page") |
//! | `0x8000` | GDT; the boot stack grows down from the page's end |
//! | `0x9000` … `0xbfff` | page tables: PML4, PDPT, one PD that maps the first GiB |
//! | `0x2_0000` | command line |
//! | `0xf_0000` | MP table (the kernel looks for it in the 64 KiB below 1 MiB) |
//! | `0x10_0000` … | kernel, then RAM; initramfs at the end of low RAM |
//! | 3 GiB … 4 GiB | no RAM: virtio-mmio at `0xd000_0000`, IOAPIC, local APIC, KVM's own pages |
//! | 4 GiB … | the rest of RAM |

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;
/// One MiB.
pub const MIB: u64 = 1 << 20;
/// One GiB.
pub const GIB: u64 = 1 << 30;

/// Boot parameters.
pub const ZERO_PAGE: u64 = 0x7000;
/// Global descriptor table.
pub const GDT: u64 = 0x8000;
/// First stack pointer.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Top of the page tables: PML4, PDPT and PD follow each other.
pub const PAGE_TABLES: u64 = 0x9000;
/// Command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes of the command line with its final zero: `COMMAND_LINE_SIZE` of x86 Linux.
pub const CMDLINE_MAX: usize = 2048;
/// End of the RAM that lies below the legacy hole.
pub const LEGACY_HOLE: u64 = 0x9_fc00;
/// MP floating pointer and table.
pub const MP_TABLE: u64 = 0xf_0000;
/// Where RAM goes on after the legacy hole; a kernel starts here or above.
pub const HIGH_RAM: u64 = MIB;
/// End of what the first page tables map, so of the kernel.
pub const IDENTITY_MAP_END: u64 = GIB;
/// Start of the hole below 4 GiB.
pub const MMIO_HOLE: u64 = 3 * GIB;
/// End of the hole: RAM goes on here.
pub const MMIO_HOLE_END: u64 = 4 * GIB;

/// First virtio-mmio device.
pub const DEVICE_BASE: u64 = 0xd000_0000;
/// Address space of each device.
pub const DEVICE_SIZE: u64 = 0x1000;
/// Interrupt of the first device.
pub const DEVICE_IRQ: u32 = 5;
/// Interrupts of the IOAPIC end here.
pub const IRQ_END: u32 = 24;
/// As many devices as there are interrupts.
pub const MAX_DEVICES: usize = (IRQ_END - DEVICE_IRQ) as usize;

/// Address of the IOAPIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Address of each vCPU's local APIC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// One page that KVM needs on Intel.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Least and most guest memory, in MiB.
pub const MEMORY_MIB: std::ops::RangeInclusive<u64> = 64..=1024 * 1024;
/// Least and most vCPUs.
pub const VCPUS: std::ops::RangeInclusive<u8> = 1..=64;

/// Address and interrupt of the `n`th virtio-mmio device; `None` beyond [`MAX_DEVICES`].
#[must_use]
pub fn device(n: usize) -> Option<(u64, u32)> {
    if n >= MAX_DEVICES {
        return None;
    }
    Some((DEVICE_BASE + n as u64 * DEVICE_SIZE, DEVICE_IRQ + n as u32))
}

/// The ranges of RAM that KVM must back, as (start, bytes): one below 3 GiB, one above 4 GiB.
#[must_use]
pub fn memory_ranges(memory_mib: u64) -> Vec<(u64, u64)> {
    let bytes = memory_mib.saturating_mul(MIB);
    if bytes <= MMIO_HOLE {
        return vec![(0, bytes)];
    }
    vec![(0, MMIO_HOLE), (MMIO_HOLE_END, bytes - MMIO_HOLE)]
}

/// Rounds up to a whole page.
pub(crate) fn page_up(address: u64) -> Option<u64> {
    address.checked_add(PAGE_SIZE - 1).map(|end| end & !(PAGE_SIZE - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_sit_where_the_design_says() {
        assert_eq!(device(0), Some((0xd000_0000, 5)));
        assert_eq!(device(9), Some((0xd000_9000, 14)));
        assert_eq!(device(18), Some((0xd001_2000, 23)));
        assert_eq!(device(19), None);
    }

    #[test]
    fn ram_leaves_the_hole_free() {
        assert_eq!(memory_ranges(3072), [(0, 3 * GIB)]);
        assert_eq!(memory_ranges(3074), [(0, 3 * GIB), (4 * GIB, 2 * MIB)]);
    }
}
