//! ACPI tables: ACPI 6.5, sections 5.2.5 (RSDP), 5.2.8 (XSDT), 5.2.9 (FADT), 5.2.12 (MADT), 5.2.34
//! (CCEL). A kernel that has ACPI and runs in a TEE takes its vCPUs from the MADT only: Linux does not
//! look for an MP table there.
//!
//! The DSDT holds devices and no methods ([`super::dsdt`]), or nothing: there is no AML that could be run.

use super::Writer;
use super::dsdt::{self, Device};
use super::mptable::{IOAPIC_ADDRESS, LOCAL_APIC_ADDRESS};
use crate::platform::Termination;

const HEADER: usize = 36;
const OEM_ID: &[u8; 6] = b"KATACC";
const OEM_TABLE: &[u8; 8] = b"STAGE0  ";
const CREATOR: &[u8; 4] = b"KCC0";

const MADT_LOCAL_APIC: u8 = 0;
const MADT_IOAPIC: u8 = 1;
const MADT_WAKEUP: u8 = 0x10;

/// ACPI 6.5, table 5.9; "PM1a event block" and the like must exist for a kernel with the full hardware
/// model, without which it has no interrupt lines 0 to 15. Nothing answers there, and nothing need.
const PM1_EVENT_PORT: u32 = 0x600;
const PM1_CONTROL_PORT: u32 = 0x604;
/// The line of a second serial port, which there is not: devices have 5 to 23, and Linux shares none of them with the SCI.
const SCI_INTERRUPT: u16 = 3;
/// VGA not present, CMOS clock not present; neither legacy devices nor i8042.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;
/// WBINVD works, no fixed power button, no fixed sleep button.
const FADT_FLAGS: u32 = 1 | 1 << 4 | 1 << 5;
const FADT_LENGTH: usize = 276;

/// CCEL: type "TDX".
const CC_TYPE_TDX: u8 = 2;

/// What the tables tell.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// vCPUs; their APIC ids count from 0.
    pub vcpus: u8,
    /// Mailbox that wakes the other vCPUs.
    pub ap_mailbox: Option<u64>,
    /// Event log: address, bytes.
    pub event_log: Option<(u64, u32)>,
    /// Devices; none for a kernel that has them of its command line.
    pub devices: &'a [Device],
}

/// Writes the tables and gives the address of the RSDP. `base` is the address of the writer's first byte.
///
/// # Errors
/// When the place is too small.
pub fn build(out: &mut Writer<'_>, base: u64, machine: &Machine<'_>) -> Result<u64, Termination> {
    let dsdt = table(out, *b"DSDT", 2, |out| dsdt::body(out, machine.devices))?;
    let fadt = table(out, *b"FACP", 6, |out| fadt_body(out, base + dsdt as u64))?;
    let madt = table(out, *b"APIC", 5, |out| madt_body(out, machine))?;
    let ccel = match machine.event_log {
        None => None,
        Some((address, bytes)) => Some(table(out, *b"CCEL", 1, |out| {
            out.put(&[CC_TYPE_TDX, 0, 0, 0])?;
            out.put(&u64::from(bytes).to_le_bytes())?;
            out.put(&address.to_le_bytes())
        })?),
    };
    let xsdt = table(out, *b"XSDT", 1, |out| {
        for at in [Some(fadt), Some(madt), ccel].into_iter().flatten() {
            out.put(&(base + at as u64).to_le_bytes())?;
        }
        Ok(())
    })?;
    out.align(16)?;
    let rsdp = out.length();
    out.put(b"RSD PTR \0")?;
    out.put(OEM_ID)?;
    // revision, no RSDT, length, XSDT, extended checksum
    out.put(&[2, 0, 0, 0, 0, 36, 0, 0, 0])?;
    out.put(&(base + xsdt as u64).to_le_bytes())?;
    out.put(&[0; 4])?;
    out.checksum(rsdp, rsdp + 20, rsdp + 8);
    out.checksum(rsdp, rsdp + 36, rsdp + 32);
    Ok(base + rsdp as u64)
}

/// A table with its header; gives where it begins.
fn table(
    out: &mut Writer<'_>,
    signature: [u8; 4],
    revision: u8,
    body: impl FnOnce(&mut Writer<'_>) -> Result<(), Termination>,
) -> Result<usize, Termination> {
    out.align(16)?;
    let start = out.length();
    out.put(&signature)?;
    out.put(&[0, 0, 0, 0, revision, 0])?;
    out.put(OEM_ID)?;
    out.put(OEM_TABLE)?;
    out.put(&1_u32.to_le_bytes())?;
    out.put(CREATOR)?;
    out.put(&1_u32.to_le_bytes())?;
    body(out)?;
    let end = out.length();
    let length = (end - start) as u32;
    if let Some(place) = out.written(start).get_mut(4..8) {
        place.copy_from_slice(&length.to_le_bytes());
    }
    out.checksum(start, end, start + 9);
    Ok(start)
}

fn fadt_body(out: &mut Writer<'_>, dsdt: u64) -> Result<(), Termination> {
    let mut body = [0; FADT_LENGTH - HEADER];
    // offsets are those of the whole table
    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(place) = body.get_mut(offset - HEADER..offset - HEADER + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(40, &(dsdt as u32).to_le_bytes());
    put(46, &SCI_INTERRUPT.to_le_bytes());
    put(56, &PM1_EVENT_PORT.to_le_bytes());
    put(64, &PM1_CONTROL_PORT.to_le_bytes());
    // lengths of the two
    put(88, &[4, 2]);
    // no C2, no C3
    put(96, &101_u16.to_le_bytes());
    put(98, &1001_u16.to_le_bytes());
    put(109, &BOOT_ARCHITECTURE.to_le_bytes());
    put(112, &FADT_FLAGS.to_le_bytes());
    put(131, &[5]);
    put(140, &dsdt.to_le_bytes());
    out.put(&body)
}

fn madt_body(out: &mut Writer<'_>, machine: &Machine<'_>) -> Result<(), Termination> {
    out.put(&LOCAL_APIC_ADDRESS.to_le_bytes())?;
    // no 8259 beside the IOAPIC that would have to be masked
    out.put(&0_u32.to_le_bytes())?;
    for id in 0..machine.vcpus {
        out.put(&[MADT_LOCAL_APIC, 8, id, id, 1, 0, 0, 0])?;
    }
    out.put(&[MADT_IOAPIC, 12, machine.vcpus, 0])?;
    out.put(&IOAPIC_ADDRESS.to_le_bytes())?;
    out.put(&0_u32.to_le_bytes())?;
    if let Some(mailbox) = machine.ap_mailbox {
        out.put(&[MADT_WAKEUP, 16, 0, 0, 0, 0, 0, 0])?;
        out.put(&mailbox.to_le_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1F_0000;

    fn tables(machine: &Machine<'_>) -> (Vec<u8>, usize) {
        let mut place = vec![0; 8192];
        let mut out = Writer::new(&mut place);
        let rsdp = build(&mut out, BASE, machine).expect("room");
        let length = out.length();
        place.truncate(length);
        (place, (rsdp - BASE) as usize)
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"))
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"))
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The table at an address, after checking length and checksum.
    fn at(bytes: &[u8], address: u64) -> &[u8] {
        let start = (address - BASE) as usize;
        let table = &bytes[start..start + u32_at(bytes, start + 4) as usize];
        assert_eq!(sum(table), 0, "{:?}", &table[..4]);
        table
    }

    #[test]
    fn a_kernel_finds_every_table_from_the_rsdp() {
        let machine = Machine {
            vcpus: 4,
            ap_mailbox: Some(0x12_3000),
            event_log: Some((0x1D_0000, 0x2000)),
            devices: &[],
        };
        let (bytes, rsdp) = tables(&machine);
        assert_eq!(&bytes[rsdp..rsdp + 8], b"RSD PTR ");
        assert_eq!((sum(&bytes[rsdp..rsdp + 20]), sum(&bytes[rsdp..rsdp + 36])), (0, 0));
        assert_eq!(bytes[rsdp + 15], 2);
        let xsdt = at(&bytes, u64_at(&bytes, rsdp + 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let found: Vec<&[u8]> = xsdt[36..].chunks(8).map(|entry| at(&bytes, u64_at(entry, 0))).collect();
        let names: Vec<&[u8]> = found.iter().map(|table| &table[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC", b"CCEL"]);
        let (fadt, ccel) = (found[0], found[2]);
        assert_eq!(fadt.len(), 276);
        let dsdt = at(&bytes, u64_at(fadt, 140));
        assert_eq!((&dsdt[..4], dsdt.len()), (&b"DSDT"[..], 36), "no AML");
        let devices = [Device { address: 0xd000_0000, line: 5 }; 2];
        let (bytes, rsdp) = tables(&Machine { devices: &devices, ..machine });
        let xsdt = at(&bytes, u64_at(&bytes, rsdp + 24));
        let dsdt = at(&bytes, u64_at(at(&bytes, u64_at(xsdt, 36)), 140));
        assert_eq!(dsdt.windows(4).filter(|name| name.starts_with(b"VR0")).count(), 2);
        assert_eq!((ccel[36], u64_at(ccel, 40), u64_at(ccel, 48)), (2, 0x2000, 0x1D_0000));
    }

    /// The same log told in the same table as the firmware of Google's guests does: all but who made it, and so the checksum.
    #[test]
    fn the_table_of_the_log_is_as_a_real_guest_has_it() {
        let Some(real) = kata_cc_test_vectors::read("tdx/eventlogs/ccel-gcp-cos113.acpi-table.bin") else {
            return;
        };
        let log = kata_cc_test_vectors::read("tdx/eventlogs/ccel-gcp-cos113.bin").expect("beside its table");
        assert_eq!((sum(&real), u32_at(&real, 4) as usize), (0, real.len()));
        let (length, address) = (u64_at(&real, 40), u64_at(&real, 48));
        assert_eq!(length, log.len() as u64);
        let length = u32::try_from(length).expect("a short log");
        let machine =
            Machine { vcpus: 1, ap_mailbox: None, event_log: Some((address, length)), devices: &[] };
        let (bytes, rsdp) = tables(&machine);
        let xsdt = at(&bytes, u64_at(&bytes, rsdp + 24));
        let tables = xsdt[36..].chunks(8).map(|entry| at(&bytes, u64_at(entry, 0)));
        let ours = tables.into_iter().find(|table| table.starts_with(b"CCEL")).expect("a CCEL");
        assert_eq!((&ours[..9], &ours[36..]), (&real[..9], &real[36..]));
    }

    #[test]
    fn madt_lists_vcpus_ioapic_and_mailbox() {
        let list = |machine: &Machine| {
            let (bytes, rsdp) = tables(machine);
            let xsdt = at(&bytes, u64_at(&bytes, rsdp + 24)).to_vec();
            let madt = at(&bytes, u64_at(&xsdt, 44)).to_vec();
            let (mut entries, mut rest) = (Vec::new(), &madt[44..]);
            while !rest.is_empty() {
                let (entry, after) = rest.split_at(rest[1].into());
                entries.push(entry.to_vec());
                rest = after;
            }
            entries
        };
        let one = list(&Machine { vcpus: 1, ap_mailbox: None, event_log: None, devices: &[] });
        assert_eq!(one[0], [0, 8, 0, 0, 1, 0, 0, 0]);
        assert_eq!(one[1], [1, 12, 1, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(one.len(), 2);
        let many = list(&Machine { vcpus: 64, ap_mailbox: Some(0x12_3000), event_log: None, devices: &[] });
        assert_eq!(many.len(), 66);
        assert_eq!(many[63][3], 63);
        assert_eq!(many[65], [0x10, 16, 0, 0, 0, 0, 0, 0, 0, 0x30, 0x12, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn refuses_a_place_that_is_too_small() {
        let machine = Machine { vcpus: 64, ap_mailbox: None, event_log: None, devices: &[] };
        let mut place = [0; 512];
        assert_eq!(build(&mut Writer::new(&mut place), BASE, &machine), Err(Termination::TablesTooLarge));
    }
}
