//! The I/O APIC of a TD, in this process: KVM keeps only the local APICs of one (split irqchip), since it could not
//! see when the guest ends a level-triggered interrupt.
//!
//! Lines stay what they are elsewhere, irqfds. What a guest writes into the redirection table becomes a table of
//! messages that KVM delivers by itself, so no interrupt passes through this process here either. All devices are
//! edge-triggered; an entry that asks for level is delivered as an edge, and there is no remote IRR.
//!
//! Source: Intel 82093AA datasheet, section 3 (registers); SDM volume 3, "Message Signalled Interrupts".

use std::sync::{Mutex, PoisonError};

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi};

use crate::tee::ioctls::Refusal;
use crate::tee::kernel::KernelIoctls;

/// Lines.
pub(crate) const LINES: usize = 24;
/// Address space.
pub(crate) const SIZE: u64 = 0x1000;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const TABLE: u8 = 0x10;
/// Version 0x11 (no EOI register) and the number of the last line.
const VERSION_VALUE: u32 = (LINES as u32 - 1) << 16 | 0x11;

/// Bits of an entry that the guest cannot write: delivery status, remote IRR, and what is reserved.
const READ_ONLY: u64 = 0x00FF_FFFF_FFFE_0000 | 1 << 14 | 1 << 12;
const MASKED: u64 = 1 << 16;
const LOGICAL: u64 = 1 << 11;

const MESSAGE_BASE: u32 = 0xFEE0_0000;

/// A line's message to the local APICs; none while it is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) address: u32,
    pub(crate) data: u32,
}

impl Message {
    /// Of an entry of the redirection table.
    const fn of(entry: u64) -> Option<Self> {
        if entry & MASKED != 0 {
            return None;
        }
        let destination = (entry >> 56) as u32;
        let logical = ((entry & LOGICAL) >> 11) as u32;
        // vector and delivery mode stand where a message has them
        Some(Self { address: MESSAGE_BASE | destination << 12 | logical << 2, data: entry as u32 & 0x7FF })
    }
}

/// Where messages go.
pub(crate) trait Routes: Send + Sync {
    /// From now on line `n` sends `messages[n]`.
    ///
    /// # Errors
    /// What KVM said.
    fn set(&self, messages: &[Option<Message>; LINES]) -> Result<(), Refusal>;
}

impl Routes for KernelIoctls {
    fn set(&self, messages: &[Option<Message>; LINES]) -> Result<(), Refusal> {
        let routed = (0u32..).zip(messages).filter_map(|(gsi, message)| Some((gsi, (*message)?)));
        let entries: Vec<_> = routed
            .map(|(gsi, message)| {
                let mut entry =
                    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
                entry.u.msi = kvm_irq_routing_msi {
                    address_lo: message.address,
                    data: message.data,
                    ..Default::default()
                };
                entry
            })
            .collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| Refusal::kernel(libc::E2BIG))?;
        self.vm().set_gsi_routing(&table).map_err(|error| Refusal::kernel(error.errno()))
    }
}

impl<R: Routes> Routes for std::sync::Arc<R> {
    fn set(&self, messages: &[Option<Message>; LINES]) -> Result<(), Refusal> {
        self.as_ref().set(messages)
    }
}

struct State {
    select: u8,
    id: u32,
    table: [u64; LINES],
}

/// The I/O APIC.
pub(crate) struct IoApic {
    state: Mutex<State>,
    routes: Box<dyn Routes>,
}

impl IoApic {
    /// As after reset: every line is masked.
    pub(crate) fn new(routes: Box<dyn Routes>) -> Self {
        Self { state: Mutex::new(State { select: 0, id: 0, table: [MASKED; LINES] }), routes }
    }

    /// A read of the guest's. Registers have 32 bits; anything else reads as zeros.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let value = match offset {
            SELECT => state.select.into(),
            WINDOW => state.read(),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// A write of the guest's; one that is not of 32 bits changes nothing.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(bytes);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match offset {
            SELECT => state.select = value as u8,
            WINDOW if state.write(value) => {
                let messages = state.table.map(Message::of);
                // the lock is kept: the last table that a guest wrote is the one in force
                if let Err(error) = self.routes.set(&messages) {
                    tracing::warn!(%error, "kvm did not take the guest's interrupt routes");
                }
            }
            _ => {}
        }
    }
}

impl State {
    /// Line and whether the upper half of its entry is selected.
    fn entry(&self) -> Option<(usize, bool)> {
        let index = self.select.checked_sub(TABLE)?;
        let line = usize::from(index / 2);
        (line < LINES).then_some((line, index % 2 == 1))
    }

    fn read(&self) -> u32 {
        match (self.select, self.entry()) {
            (ID | ARBITRATION, _) => self.id,
            (VERSION, _) => VERSION_VALUE,
            (_, Some((line, true))) => (self.table[line] >> 32) as u32,
            (_, Some((line, false))) => self.table[line] as u32,
            _ => 0,
        }
    }

    /// Whether the redirection table changed.
    fn write(&mut self, value: u32) -> bool {
        if self.select == ID {
            self.id = value & 0x0F00_0000;
        }
        let Some((line, upper)) = self.entry() else { return false };
        let old = self.table[line];
        let new = if upper {
            old & 0xFFFF_FFFF | u64::from(value) << 32
        } else {
            old & !0xFFFF_FFFF | u64::from(value)
        };
        // a mask bit is bit 16 of the lower half, which READ_ONLY leaves alone
        self.table[line] = new & !READ_ONLY;
        self.table[line] != old
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<[Option<Message>; LINES]>>>);

    impl Routes for Kept {
        fn set(&self, messages: &[Option<Message>; LINES]) -> Result<(), Refusal> {
            self.0.lock().unwrap().push(*messages);
            Ok(())
        }
    }

    fn write(apic: &IoApic, register: u8, value: u32) {
        apic.write(SELECT, &u32::from(register).to_le_bytes());
        apic.write(WINDOW, &value.to_le_bytes());
    }

    fn read(apic: &IoApic, register: u8) -> u32 {
        apic.write(SELECT, &u32::from(register).to_le_bytes());
        let mut bytes = [0; 4];
        apic.read(WINDOW, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn an_entry_becomes_a_message_when_it_is_unmasked() {
        let kept = Kept::default();
        let apic = IoApic::new(Box::new(kept.clone()));
        assert_eq!(read(&apic, VERSION), 0x17_0011);
        assert_eq!(read(&apic, 0x1A), 0x1_0000, "masked at reset");
        // line 5: vector 0x31, fixed, logical destination 3; as Linux does: upper half, then lower
        write(&apic, 0x1B, 3 << 24);
        assert_eq!(kept.0.lock().unwrap().last().unwrap()[5], None);
        write(&apic, 0x1A, 0x0831);
        let all = *kept.0.lock().unwrap().last().unwrap();
        assert_eq!(all[5], Some(Message { address: 0xFEE0_3004, data: 0x31 }));
        assert!(all.iter().enumerate().all(|(line, message)| line == 5 || message.is_none()));
        assert_eq!((read(&apic, 0x1A), read(&apic, 0x1B)), (0x0831, 3 << 24));
        write(&apic, 0x1A, 0x1_0831);
        assert_eq!(kept.0.lock().unwrap().last().unwrap()[5], None);
        let before = kept.0.lock().unwrap().len();
        write(&apic, 0x1A, 0x1_0831);
        assert_eq!(kept.0.lock().unwrap().len(), before, "nothing changed, nobody is told");
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        let kept = Kept::default();
        let apic = IoApic::new(Box::new(kept.clone()));
        for register in [VERSION, ARBITRATION, 3, 0xF, 0x40, 0x41, 0xFF] {
            write(&apic, register, u32::MAX);
        }
        for (offset, data) in [(WINDOW, &[1_u8][..]), (WINDOW, &[1; 8]), (0x40, &[0; 4]), (SELECT, &[])] {
            apic.write(offset, data);
        }
        assert!(kept.0.lock().unwrap().is_empty());
        assert_eq!(read(&apic, 0x40), 0);
        write(&apic, ID, u32::MAX);
        assert_eq!((read(&apic, ID), read(&apic, ARBITRATION)), (0x0F00_0000, 0x0F00_0000));
        // status and remote IRR are not the guest's to set
        write(&apic, 0x10, u32::MAX);
        assert_eq!(read(&apic, 0x10), 0x1_AFFF);
        let mut eight = [1; 8];
        apic.read(WINDOW, &mut eight);
        assert_eq!(eight, [0xFF, 0xAF, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn kvm_takes_the_routes() {
        use kata_cc_devices::{GuestRam, Memory};
        use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
        use vm_memory::GuestAddress;

        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let Ok(io) = KernelIoctls::open(0, Memory::new(ram)) else {
            println!("skipped: no KVM");
            return;
        };
        let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [24, 0, 0, 0], ..Default::default() };
        io.vm().enable_cap(&split).unwrap();
        let mut messages = [None; LINES];
        io.set(&messages).unwrap();
        messages[5] = Some(Message { address: 0xFEE0_3004, data: 0x31 });
        messages[23] = Some(Message { address: 0xFEE0_0000, data: 0x41 });
        io.set(&messages).unwrap();
        let line = kata_cc_devices::EventFd::new(libc::EFD_NONBLOCK).unwrap();
        io.vm().register_irqfd(&line, 23).unwrap();
    }
}
