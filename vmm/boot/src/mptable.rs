//! MP table: Intel MultiProcessor Specification 1.4, chapter 4. It tells a kernel without ACPI of its
//! vCPUs and that each interrupt line has the IOAPIC pin of its own number (KVM's default routes).

use crate::layout::{IOAPIC, IRQ_END, LOCAL_APIC, MP_TABLE};

const APIC_VERSION: u8 = 0x14;
const ENTRY_CPU: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ISA: u8 = 0;
/// "Integrated local APIC present" and the CPU family: what the kernel reads is CPUID.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;

/// Floating pointer, then the table, to be placed at [`MP_TABLE`].
pub(crate) fn build(vcpus: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut add = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = 1 | if id == 0 { 2 } else { 0 };
        let mut cpu = vec![ENTRY_CPU, id, APIC_VERSION, flags];
        cpu.extend_from_slice(&CPU_SIGNATURE.to_le_bytes());
        cpu.extend_from_slice(&CPU_FEATURES.to_le_bytes());
        cpu.extend_from_slice(&[0; 8]);
        add(&cpu);
    }
    add(&[ENTRY_BUS, ISA, b'I', b'S', b'A', b' ', b' ', b' ']);
    let ioapic_id = vcpus;
    let mut ioapic = vec![ENTRY_IOAPIC, ioapic_id, APIC_VERSION, 1];
    ioapic.extend_from_slice(&IOAPIC.to_le_bytes());
    add(&ioapic);
    for irq in 0..IRQ_END as u8 {
        add(&[ENTRY_INTERRUPT, INT, 0, 0, ISA, irq, ioapic_id, irq]);
    }
    add(&[ENTRY_LOCAL_INTERRUPT, EXT_INT, 0, 0, ISA, 0, 0, 0]);
    add(&[ENTRY_LOCAL_INTERRUPT, NMI, 0, 0, ISA, 0, 0xff, 1]);

    let mut table = floating_pointer();
    table.extend_from_slice(&header(&entries, count));
    table.extend_from_slice(&entries);
    table
}

fn floating_pointer() -> Vec<u8> {
    let mut pointer = b"_MP_".to_vec();
    pointer.extend_from_slice(&(MP_TABLE as u32 + 16).to_le_bytes());
    // length in paragraphs, specification 1.4, checksum, five feature bytes
    pointer.extend_from_slice(&[1, 4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    pointer
}

fn header(entries: &[u8], count: u16) -> Vec<u8> {
    let mut header = b"PCMP".to_vec();
    header.extend_from_slice(&(44 + entries.len() as u16).to_le_bytes());
    header.extend_from_slice(&[4, 0]);
    header.extend_from_slice(b"KATACC  MICROVM     ");
    header.extend_from_slice(&[0; 6]);
    header.extend_from_slice(&count.to_le_bytes());
    header.extend_from_slice(&LOCAL_APIC.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header[7] = checksum(&header).wrapping_add(checksum(entries));
    header
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_sum_to_zero() {
        for vcpus in [1, 2, 64] {
            let table = build(vcpus);
            assert_eq!(checksum(&table[..16]), 0);
            assert_eq!(checksum(&table[16..]), 0);
            let length = u16::from_le_bytes([table[20], table[21]]);
            assert_eq!(usize::from(length), table.len() - 16);
        }
    }

    #[test]
    fn counts_its_entries() {
        let table = build(4);
        let count = u16::from_le_bytes([table[16 + 34], table[16 + 35]]);
        assert_eq!(count, 4 + 1 + 1 + 24 + 2);
        assert_eq!(table[16 + 44 + 3], 3, "vCPU 0 boots");
        assert_eq!(table[16 + 44 + 20 + 3], 1, "vCPU 1 waits");
    }
}
