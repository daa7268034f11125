//! The device.

use std::io;
use std::os::fd::AsRawFd;

use vm_memory::GuestAddressSpace;

use super::mac::Mac;
use super::tap::TapBackend;
use crate::device::{ActivateError, Activation, PollSource, VirtioDevice, Work};
use crate::queue::{Chain, DeviceQueue, GuestFault};
use crate::{GuestRam, feature, sys};

const QUEUE_SIZES: [u16; 2] = [256, 256];
const RX: usize = 0;
const HEADER: usize = 12;
/// `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;
/// Largest frame with its header: what a driver without mergeable buffers provides room for (section 5.1.6.3.1).
pub const MAX_FRAME: usize = 65562;
/// Frames per event and direction before the other devices have their turn.
const BUDGET: usize = 256;

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_GUEST_UFO: u64 = 1 << 10;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_UFO: u64 = 1 << 14;
const F_MRG_RXBUF: u64 = 1 << 15;

/// What a net device is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Name for logs and metrics.
    pub id: String,
    /// The guest's address.
    pub mac: Mac,
}

#[derive(Default)]
struct Counters {
    rx_frames: u64,
    rx_bytes: u64,
    rx_dropped: u64,
    rx_errors: u64,
    tx_frames: u64,
    tx_bytes: u64,
    tx_dropped: u64,
    tx_malformed: u64,
}

struct Active {
    activation: Activation,
    rx: DeviceQueue,
    tx: DeviceQueue,
    mergeable: bool,
}

/// A virtio-net device.
pub struct Net {
    config: NetConfig,
    tap: Box<dyn TapBackend>,
    active: Option<Active>,
    chain: Chain,
    /// The frame that waits for room in the guest: its first `pending` bytes.
    frame: Box<[u8]>,
    pending: usize,
    counters: Counters,
}

enum Delivery {
    Delivered,
    /// The guest must provide more buffers first.
    NoRoom,
}

impl Net {
    /// A device on an open tap.
    pub fn new(config: NetConfig, tap: Box<dyn TapBackend>) -> Self {
        Self {
            config,
            tap,
            active: None,
            chain: Chain::default(),
            frame: vec![0; MAX_FRAME].into_boxed_slice(),
            pending: 0,
            counters: Counters::default(),
        }
    }

    fn receive(&mut self) -> Result<Work, GuestFault> {
        let Some(active) = &mut self.active else { return Ok(Work::Done) };
        let ram = active.activation.memory.memory();
        let mut work = Work::More;
        let mut used = false;
        active.rx.disable_notification(&ram)?;
        for _ in 0..BUDGET {
            if self.pending == 0 {
                match sys::read(self.tap.fd(), &mut self.frame) {
                    Ok(len) if len > HEADER => self.pending = len,
                    Ok(_) => {
                        self.counters.rx_errors += 1;
                        continue;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => {
                        // Anything but "nothing there" means that the tap is gone or down; its next edge tells when not.
                        self.counters.rx_errors += u64::from(e.kind() != io::ErrorKind::WouldBlock);
                        work = Work::Done;
                        break;
                    }
                }
            }
            let frame = &mut self.frame[..self.pending];
            match active.deliver(&ram, &mut self.chain, frame, &mut self.counters)? {
                Delivery::Delivered => {
                    self.pending = 0;
                    used = true;
                }
                Delivery::NoRoom => {
                    work = Work::Done;
                    break;
                }
            }
        }
        if used && active.rx.needs_notification(&ram)? {
            active.activation.notifier.used();
        }
        Ok(work)
    }

    fn transmit(&mut self) -> Result<Work, GuestFault> {
        let Some(active) = &mut self.active else { return Ok(Work::Done) };
        let ram = active.activation.memory.memory();
        let mut work = Work::More;
        let mut used = false;
        active.tx.disable_notification(&ram)?;
        for _ in 0..BUDGET {
            if !active.tx.pop(&ram, &mut self.chain)? {
                if active.tx.enable_notification(&ram)? {
                    continue;
                }
                work = Work::Done;
                break;
            }
            let len = self.chain.readable_len();
            if len <= HEADER as u64 || len > MAX_FRAME as u64 {
                self.counters.tx_malformed += 1;
            } else {
                // The kernel reads the frame once, straight from the guest, and checks header and length itself.
                match sys::write_from(self.tap.fd(), &ram, self.chain.readable(), None) {
                    Ok(len) => {
                        self.counters.tx_frames += 1;
                        self.counters.tx_bytes += len.saturating_sub(HEADER) as u64;
                    }
                    // A full tap drops, as a wire does.
                    Err(_) => self.counters.tx_dropped += 1,
                }
            }
            active.tx.add_used(&ram, self.chain.head(), 0)?;
            used = true;
        }
        if used && active.tx.needs_notification(&ram)? {
            active.activation.notifier.used();
        }
        Ok(work)
    }
}

impl Active {
    /// Puts a frame into one chain, or into as many as it takes when the driver can merge them.
    fn deliver(
        &mut self,
        ram: &GuestRam,
        chain: &mut Chain,
        frame: &mut [u8],
        counters: &mut Counters,
    ) -> Result<Delivery, GuestFault> {
        // First see whether there is room, so that a frame is never cut in the middle.
        let most = if self.mergeable { self.rx.size() } else { 1 };
        let (mut room, mut buffers) = (0_u64, 0_u16);
        while room < frame.len() as u64 && buffers < most {
            if !self.rx.pop(ram, chain)? {
                // Armed while all that is there is taken: with merging, the next chain must notify although others lie
                // before it that are too few.
                if self.rx.enable_notification(ram)? {
                    continue;
                }
                self.rx.undo_pop(buffers);
                return Ok(Delivery::NoRoom);
            }
            room += chain.writable_len();
            buffers += 1;
        }
        self.rx.undo_pop(buffers);
        if room < frame.len() as u64 {
            // Not even the whole ring holds it: drop it and give one buffer back, or reception would stop here for good.
            counters.rx_dropped += 1;
            if self.rx.pop(ram, chain)? {
                self.rx.add_used(ram, chain.head(), 0)?;
            }
            return Ok(Delivery::Delivered);
        }
        frame[NUM_BUFFERS..HEADER].copy_from_slice(&buffers.to_le_bytes());
        let mut rest: &[u8] = frame;
        for _ in 0..buffers {
            // Walked anew: the guest may have changed the chains since, and only this copy counts. What no longer fits is
            // lost to the guest that did it.
            if !self.rx.pop(ram, chain)? {
                break;
            }
            let take = usize::try_from(chain.writable_len()).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at(take);
            let written = chain.write_at(ram, 0, now).map_or(0, |()| now.len());
            self.rx.add_used(ram, chain.head(), written as u32)?;
            rest = later;
        }
        counters.rx_frames += 1;
        counters.rx_bytes += (frame.len() - HEADER) as u64;
        Ok(Delivery::Delivered)
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &str {
        &self.config.id
    }

    fn device_type(&self) -> u32 {
        1
    }

    fn features(&self) -> u64 {
        feature::EVENT_IDX
            | F_CSUM
            | F_GUEST_CSUM
            | F_MAC
            | F_GUEST_TSO4
            | F_GUEST_TSO6
            | F_GUEST_UFO
            | F_HOST_TSO4
            | F_HOST_TSO6
            | F_HOST_UFO
            | F_MRG_RXBUF
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let from = self.config.mac.0.get(offset..).unwrap_or_default();
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let backend = |what, source| ActivateError::Backend { device: self.config.id.clone(), what, source };
        self.tap
            .set_offloads(offloads(features))
            .map_err(|source| backend("set the accepted offloads", source))?;
        let (Some(mut tx), Some(rx)) = (activation.queues.pop(), activation.queues.pop()) else {
            return Err(backend("find its queues", io::ErrorKind::InvalidInput.into()));
        };
        // A frame a little too long is counted and dropped; a chain of another order of magnitude is an offence.
        tx.limit_chain_bytes(1 << 20);
        let mergeable = features & F_MRG_RXBUF != 0;
        self.active = Some(Active { activation, rx, tx, mergeable });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.pending = 0;
    }

    fn queue_event(&mut self, queue: usize) -> Result<Work, GuestFault> {
        if queue == RX { self.receive() } else { self.transmit() }
    }

    fn poll_sources(&self) -> Vec<PollSource> {
        vec![PollSource { fd: self.tap.fd().as_raw_fd(), token: 0, edge: true }]
    }

    fn poll_event(&mut self, _token: u32) -> Result<Work, GuestFault> {
        self.receive()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let c = &self.counters;
        vec![
            ("rx_frames", c.rx_frames),
            ("rx_bytes", c.rx_bytes),
            ("rx_dropped", c.rx_dropped),
            ("rx_errors", c.rx_errors),
            ("tx_frames", c.tx_frames),
            ("tx_bytes", c.tx_bytes),
            ("tx_dropped", c.tx_dropped),
            ("tx_malformed", c.tx_malformed),
        ]
    }
}

/// `TUN_F_*` for what the driver accepts to receive. Without checksum offload the kernel takes no other.
fn offloads(features: u64) -> u32 {
    if features & F_GUEST_CSUM == 0 {
        return 0;
    }
    let mut flags = libc::TUN_F_CSUM;
    for (feature, flag) in
        [(F_GUEST_TSO4, libc::TUN_F_TSO4), (F_GUEST_TSO6, libc::TUN_F_TSO6), (F_GUEST_UFO, libc::TUN_F_UFO)]
    {
        if features & feature != 0 {
            flags |= flag;
        }
    }
    flags
}
