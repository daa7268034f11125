//! The rings of one queue: set-up by registers, validation, popping and returning of chains.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::chain::{Chain, Segment};
use super::fault::{FaultKind, GuestFault};
use crate::GuestRam;

const DESC_SIZE: u64 = 16;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// The limit on a chain's bytes when a device sets no tighter one: what VIRTIO 1.2 section 2.7.5.2 allows.
const MAX_CHAIN_BYTES: u64 = 1 << 32;

/// What a driver writes into the queue registers: untrusted until [`DeviceQueue::new`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSetup {
    /// `QueueSize`.
    pub size: u16,
    /// `QueueReady`.
    pub ready: bool,
    /// `QueueDesc`.
    pub desc: u64,
    /// `QueueDriver`, the available ring.
    pub avail: u64,
    /// `QueueDevice`, the used ring.
    pub used: u64,
}

/// A queue in use. Its parameters are copies that no register write can change.
pub struct DeviceQueue {
    device: Arc<str>,
    index: u16,
    queue: Queue,
    max_chain_bytes: u64,
}

impl DeviceQueue {
    /// Checks what the driver set up: size, alignment, all rings in memory, none overlapping.
    pub fn new(
        device: Arc<str>,
        index: u16,
        max_size: u16,
        setup: QueueSetup,
        event_idx: bool,
        ram: &GuestRam,
    ) -> Result<Self, GuestFault> {
        let fault = |kind| GuestFault { device: device.to_string(), queue: index, kind };
        if !setup.ready {
            return Err(fault(FaultKind::NotReady));
        }
        let mut queue = Queue::new(max_size).map_err(|_| fault(FaultKind::BadSize(max_size)))?;
        queue.try_set_size(setup.size).map_err(|_| fault(FaultKind::BadSize(setup.size)))?;
        let size = u64::from(setup.size);
        let rings = [
            ("descriptor table", setup.desc, DESC_SIZE * size, 16),
            ("available ring", setup.avail, 6 + 2 * size, 2),
            ("used ring", setup.used, 6 + 8 * size, 4),
        ];
        for (ring, address, len, align) in rings {
            // Address 0 is what an unset register holds, and what virtio-queue takes for "not ready".
            if address == 0 || address % align != 0 || !in_ram(ram, address, len) {
                return Err(fault(FaultKind::BadRing { ring, address }));
            }
        }
        for (n, (_, a, a_len, _)) in rings.iter().enumerate() {
            for (_, b, b_len, _) in &rings[n + 1..] {
                // No overflow: all ends are inside memory.
                if *a < b + b_len && *b < a + a_len {
                    return Err(fault(FaultKind::RingsOverlap));
                }
            }
        }
        let bad = |ring, address| fault(FaultKind::BadRing { ring, address });
        queue
            .try_set_desc_table_address(GuestAddress(setup.desc))
            .map_err(|_| bad("descriptor table", setup.desc))?;
        queue
            .try_set_avail_ring_address(GuestAddress(setup.avail))
            .map_err(|_| bad("available ring", setup.avail))?;
        queue
            .try_set_used_ring_address(GuestAddress(setup.used))
            .map_err(|_| bad("used ring", setup.used))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(Self { device, index, queue, max_chain_bytes: MAX_CHAIN_BYTES })
    }

    /// Refuses chains of more bytes than this, so that overlapping descriptors cannot multiply work.
    pub fn limit_chain_bytes(&mut self, limit: u64) {
        self.max_chain_bytes = limit.min(MAX_CHAIN_BYTES);
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next available chain into `chain`. `false` when there is none.
    pub fn pop(&mut self, ram: &GuestRam, chain: &mut Chain) -> Result<bool, GuestFault> {
        let index =
            self.queue.avail_idx(ram, Ordering::Acquire).map_err(|_| self.fault(FaultKind::Access))?.0;
        let next = self.queue.next_avail();
        let ready = index.wrapping_sub(next);
        if ready == 0 {
            return Ok(false);
        }
        if ready > self.queue.size() {
            return Err(self.fault(FaultKind::AvailIndexJump { index, next }));
        }
        let slot = u64::from(next % self.queue.size());
        let head: u16 = ram
            .load(GuestAddress(self.queue.avail_ring() + 4 + 2 * slot), Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|_| self.fault(FaultKind::Access))?;
        self.walk(ram, head, chain)?;
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(true)
    }

    /// Puts the `count` chains popped last back, so that they are popped again.
    pub fn undo_pop(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Returns a chain to the driver with `len` bytes written.
    pub fn add_used(&mut self, ram: &GuestRam, head: u16, len: u32) -> Result<(), GuestFault> {
        self.queue.add_used(ram, head, len).map_err(|_| self.fault(FaultKind::Access))
    }

    /// Whether the driver wants an interrupt for what was returned since the last call.
    pub fn needs_notification(&mut self, ram: &GuestRam) -> Result<bool, GuestFault> {
        if !self.queue.event_idx_enabled() {
            // virtio-queue leaves this flag to its caller.
            std::sync::atomic::fence(Ordering::SeqCst);
            let flags: u16 = ram
                .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
                .map(u16::from_le)
                .map_err(|_| self.fault(FaultKind::Access))?;
            return Ok(flags & AVAIL_F_NO_INTERRUPT == 0);
        }
        self.queue.needs_notification(ram).map_err(|_| self.fault(FaultKind::Access))
    }

    /// Asks the driver for notifications again; `true` when chains came in between.
    pub fn enable_notification(&mut self, ram: &GuestRam) -> Result<bool, GuestFault> {
        self.queue.enable_notification(ram).map_err(|_| self.fault(FaultKind::Access))
    }

    /// Tells the driver that notifications are not needed while the device is busy.
    pub fn disable_notification(&mut self, ram: &GuestRam) -> Result<(), GuestFault> {
        self.queue.disable_notification(ram).map_err(|_| self.fault(FaultKind::Access))
    }

    /// A fault of this queue.
    pub fn fault(&self, kind: FaultKind) -> GuestFault {
        GuestFault { device: self.device.to_string(), queue: self.index, kind }
    }

    fn walk(&self, ram: &GuestRam, head: u16, chain: &mut Chain) -> Result<(), GuestFault> {
        chain.clear();
        chain.head = head;
        let mut index = head;
        let mut total = 0_u64;
        for _ in 0..self.queue.size() {
            if index >= self.queue.size() {
                return Err(self.fault(FaultKind::DescriptorIndex(index)));
            }
            // The one read of this descriptor; everything below works on the copy.
            let mut raw = [0_u8; DESC_SIZE as usize];
            ram.read_slice(&mut raw, GuestAddress(self.queue.desc_table() + DESC_SIZE * u64::from(index)))
                .map_err(|_| self.fault(FaultKind::Access))?;
            let desc = u128::from_le_bytes(raw);
            let (address, len) = (desc as u64, (desc >> 64) as u32);
            let (flags, next) = ((desc >> 96) as u16, (desc >> 112) as u16);

            if flags & F_INDIRECT != 0 {
                return Err(self.fault(FaultKind::Indirect));
            }
            total += u64::from(len);
            if total > self.max_chain_bytes {
                return Err(self.fault(FaultKind::ChainTooLarge { limit: self.max_chain_bytes }));
            }
            if flags & F_WRITE == 0 && !chain.writable.is_empty() {
                return Err(self.fault(FaultKind::Order));
            }
            if len > 0 {
                if !in_ram(ram, address, u64::from(len)) {
                    return Err(self.fault(FaultKind::Address { address, len }));
                }
                let segment = Segment { address: GuestAddress(address), len };
                if flags & F_WRITE == 0 {
                    chain.readable.push(segment);
                    chain.readable_len += u64::from(len);
                } else {
                    chain.writable.push(segment);
                    chain.writable_len += u64::from(len);
                }
            }
            if flags & F_NEXT == 0 {
                return Ok(());
            }
            index = next;
        }
        Err(self.fault(FaultKind::ChainTooLong))
    }
}

fn in_ram(ram: &GuestRam, address: u64, len: u64) -> bool {
    match usize::try_from(len) {
        Ok(len) => {
            address.checked_add(len as u64).is_some()
                && GuestMemoryBackend::check_range(ram, GuestAddress(address), len)
        }
        Err(_) => false,
    }
}
