//! MP table: Intel MultiProcessor Specification 1.4, chapter 4. It tells a kernel without ACPI of its
//! vCPUs and that each interrupt line has the IOAPIC pin of its own number (KVM's default routes).

use super::Writer;
use crate::platform::Termination;

/// Where it is: the kernel looks for it in the 64 KiB below 1 MiB.
pub const MP_TABLE: u64 = 0xF_0000;

const POINTER: usize = 16;
const HEADER: usize = 44;
const APIC_VERSION: u8 = 0x14;
const CPU: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ISA: u8 = 0;
const IRQS: u8 = 24;
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;
/// Address of the IOAPIC.
pub(super) const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
/// Address of each vCPU's local APIC.
pub(super) const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;

/// Writes the floating pointer and the table, to be placed at [`MP_TABLE`].
///
/// # Errors
/// When the place is too small.
pub fn build(place: &mut [u8], vcpus: u8) -> Result<(), Termination> {
    let entries = u16::from(vcpus) + 2 + u16::from(IRQS) + 2;
    let length = HEADER + usize::from(vcpus) * 20 + (usize::from(entries) - usize::from(vcpus)) * 8;
    let mut table = Writer::new(place);
    table.put(b"_MP_")?;
    table.put(&(MP_TABLE as u32 + POINTER as u32).to_le_bytes())?;
    // length in paragraphs, specification 1.4, checksum, five feature bytes
    table.put(&[1, 4, 0, 0, 0, 0, 0, 0])?;
    table.checksum(0, POINTER, 10);

    table.put(b"PCMP")?;
    table.put(&(length as u16).to_le_bytes())?;
    table.put(&[4, 0])?;
    table.put(b"KATACC  MICROVM     ")?;
    table.put(&[0; 6])?;
    table.put(&entries.to_le_bytes())?;
    table.put(&LOCAL_APIC_ADDRESS.to_le_bytes())?;
    table.put(&[0; 4])?;

    for id in 0..vcpus {
        let flags = if id == 0 { 3 } else { 1 };
        table.put(&[CPU, id, APIC_VERSION, flags])?;
        table.put(&CPU_SIGNATURE.to_le_bytes())?;
        table.put(&CPU_FEATURES.to_le_bytes())?;
        table.put(&[0; 8])?;
    }
    table.put(&[BUS, ISA, b'I', b'S', b'A', b' ', b' ', b' '])?;
    table.put(&[IOAPIC, vcpus, APIC_VERSION, 1])?;
    table.put(&IOAPIC_ADDRESS.to_le_bytes())?;
    for irq in 0..IRQS {
        table.put(&[INTERRUPT, INT, 0, 0, ISA, irq, vcpus, irq])?;
    }
    table.put(&[LOCAL_INTERRUPT, EXT_INT, 0, 0, ISA, 0, 0, 0])?;
    table.put(&[LOCAL_INTERRUPT, NMI, 0, 0, ISA, 0, 0xff, 1])?;
    table.checksum(POINTER, POINTER + length, POINTER + 7);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_sum_to_zero_and_the_counts_are_right() {
        for vcpus in [1, 4, 64] {
            let mut page = [0; 4096];
            build(&mut page, vcpus).expect("room");
            let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            let length = usize::from(u16::from_le_bytes([page[20], page[21]]));
            assert_eq!((sum(&page[..16]), sum(&page[16..16 + length])), (0, 0));
            assert!(page[16 + length..].iter().all(|byte| *byte == 0));
            // walks the entries as a kernel does
            let (mut at, mut entries, mut cpus) = (16 + 44, 0, 0);
            while at < 16 + length {
                let is_cpu = page[at] == CPU;
                at += if is_cpu { 20 } else { 8 };
                entries += 1;
                cpus += u8::from(is_cpu);
            }
            assert_eq!(at, 16 + length);
            assert_eq!(u16::from_le_bytes([page[50], page[51]]), entries);
            assert_eq!(cpus, vcpus);
        }
    }

    #[test]
    fn refuses_a_place_that_is_too_small() {
        assert_eq!(build(&mut [0; 200], 1), Err(Termination::TablesTooLarge));
    }
}
