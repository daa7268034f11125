//! Where port and memory accesses of the guest go: 16550A, reset port, virtio-mmio devices, and the I/O APIC of a TD. Everything
//! else reads as all ones and swallows writes, as an empty bus does; it is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kata_cc_boot::layout::{DEVICE_BASE, DEVICE_SIZE, IOAPIC};
use kata_cc_boot::{TERMINATION_PORT, Termination};
use kata_cc_devices::MmioTransport;
use kata_cc_devices::serial::{COM1, I8042_COMMAND, ResetPort, Serial};

use crate::ioapic::{self, IoApic};
use crate::vm::Outcome;

const COM1_END: u16 = COM1 + 7;
const I8042_DATA: u16 = 0x60;

/// All devices, as vCPUs see them.
pub(crate) struct Bus {
    pub(crate) serial: Serial,
    pub(crate) reset: ResetPort,
    pub(crate) virtio: Vec<Arc<MmioTransport>>,
    /// Of a guest whose I/O APIC KVM does not keep.
    pub(crate) ioapic: Option<IoApic>,
    pub(crate) counters: BusCounters,
}

/// How often vCPUs left KVM, by reason.
#[derive(Default)]
pub(crate) struct BusCounters {
    pio: AtomicU64,
    mmio: AtomicU64,
    unknown: AtomicU64,
}

impl BusCounters {
    pub(crate) fn list(&self) -> [(&'static str, u64); 3] {
        [
            ("bus.pio_exits", self.pio.load(Ordering::Relaxed)),
            ("bus.mmio_exits", self.mmio.load(Ordering::Relaxed)),
            ("bus.unknown_accesses", self.unknown.load(Ordering::Relaxed)),
        ]
    }
}

impl Bus {
    pub(crate) fn port_read(&self, port: u16, data: &mut [u8]) {
        self.counters.pio.fetch_add(1, Ordering::Relaxed);
        match port {
            COM1..=COM1_END => self.serial.read((port - COM1) as u8, data),
            I8042_DATA | I8042_COMMAND => self.reset.read(data),
            _ => {
                self.unknown();
                data.fill(0xff);
            }
        }
    }

    /// Why the guest ends, if this write ends it.
    pub(crate) fn port_write(&self, port: u16, data: &[u8]) -> Option<Outcome> {
        self.counters.pio.fetch_add(1, Ordering::Relaxed);
        match port {
            COM1..=COM1_END => self.serial.write((port - COM1) as u8, data),
            I8042_COMMAND => return self.reset.write(data).then_some(Outcome::GuestReset),
            TERMINATION_PORT => return Some(refusal(data)),
            _ => self.unknown(),
        }
        None
    }

    pub(crate) fn memory_read(&self, address: u64, data: &mut [u8]) {
        self.counters.mmio.fetch_add(1, Ordering::Relaxed);
        if let Some((ioapic, offset)) = self.ioapic(address, data.len()) {
            return ioapic.read(offset, data);
        }
        match self.device(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => {
                self.unknown();
                data.fill(0xff);
            }
        }
    }

    pub(crate) fn memory_write(&self, address: u64, data: &[u8]) {
        self.counters.mmio.fetch_add(1, Ordering::Relaxed);
        if let Some((ioapic, offset)) = self.ioapic(address, data.len()) {
            return ioapic.write(offset, data);
        }
        match self.device(address, data.len()) {
            Some((device, offset)) => device.write(offset, data),
            None => self.unknown(),
        }
    }

    fn ioapic(&self, address: u64, bytes: usize) -> Option<(&IoApic, u64)> {
        let offset = address.checked_sub(IOAPIC.into())?;
        (offset + bytes as u64 <= ioapic::SIZE).then_some((self.ioapic.as_ref()?, offset))
    }

    fn device(&self, address: u64, bytes: usize) -> Option<(&MmioTransport, u64)> {
        let from_base = address.checked_sub(DEVICE_BASE)?;
        let offset = from_base % DEVICE_SIZE;
        // an access across the end of a window belongs to no device
        if offset + bytes as u64 > DEVICE_SIZE {
            return None;
        }
        let index = usize::try_from(from_base / DEVICE_SIZE).ok()?;
        Some((self.virtio.get(index)?, offset))
    }

    fn unknown(&self) {
        self.counters.unknown.fetch_add(1, Ordering::Relaxed);
    }
}

/// What stage0 says when it gives up; a guest that writes anything else there is told apart.
fn refusal(data: &[u8]) -> Outcome {
    let known = match data {
        [code, 0, 0, 0] => Termination::from_code(*code),
        _ => None,
    };
    Outcome::GuestFault(known.map_or_else(
        || format!("the guest wrote {data:02x?} to the port of stage0's refusals: no number that is known"),
        |why| why.to_string(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_in_words() {
        let told = |data: &[u8]| match refusal(data) {
            Outcome::GuestFault(words) => words,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            told(&[0x20, 0, 0, 0]),
            "stage0 refused to boot: the kernel is not the measured one (KernelHash, 0x20)"
        );
        for unknown in [&[0x20_u8][..], &[0x20, 1, 0, 0], &[0, 0, 0, 0], &[]] {
            assert!(told(unknown).contains("no number that is known"), "{unknown:?}");
        }
    }
}
