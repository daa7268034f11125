//! The device: configuration space, queue, counters.

use std::fs::File;
use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use super::request::{self, Kind, Status};
use super::slot::{Slot, SlotError};
use crate::device::{ActivateError, Activation, VirtioDevice, Work};
use crate::feature;
use crate::interrupt::Notifier;
use crate::queue::{Chain, DeviceQueue, GuestFault, Segment};

const QUEUE_SIZE: u16 = 256;
const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];
/// Header and status take a descriptor each.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most bytes of one request: 254 segments of 64 KiB, above what Linux sends (1280 KiB by default), and a bound on the time
/// that one request takes from the other devices.
const MAX_REQUEST: u64 = 16 << 20;
/// Requests per event before the other devices have their turn.
const BUDGET: usize = 64;
/// Bytes per event, likewise: ends the turn after the request that reaches it.
const BYTE_BUDGET: u64 = 4 << 20;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;

/// What a block device is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// Name for logs and metrics; its first 20 bytes are the serial number that the guest reads.
    pub id: String,
    /// Whether the guest may only read.
    pub read_only: bool,
}

#[derive(Default)]
struct Counters {
    reads: u64,
    writes: u64,
    flushes: u64,
    read_bytes: u64,
    write_bytes: u64,
    errors: u64,
    unsupported: u64,
    malformed: u64,
}

/// A virtio-blk device.
pub struct Block {
    config: BlockConfig,
    slot: Slot,
    active: Option<(Activation, DeviceQueue)>,
    chain: Chain,
    parts: Vec<Segment>,
    counters: Counters,
}

impl Block {
    /// A device with a file (opened read-write unless `read_only`) or an empty slot.
    pub fn new(config: BlockConfig, file: Option<File>) -> Result<Self, SlotError> {
        let slot = Slot::new(&config.id);
        if let Some(file) = file {
            slot.attach(file)?;
        }
        Ok(Self {
            config,
            slot,
            active: None,
            chain: Chain::default(),
            parts: Vec::new(),
            counters: Counters::default(),
        })
    }

    /// The handle that attaches and detaches the file.
    pub fn slot(&self) -> Slot {
        self.slot.clone()
    }

    fn config_space(&self) -> [u8; 24] {
        let mut space = [0; 24];
        space[..8].copy_from_slice(&self.slot.sectors().to_le_bytes());
        space[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        space[20..24].copy_from_slice(&(super::SECTOR as u32).to_le_bytes());
        space
    }
}

impl Counters {
    fn count(&mut self, outcome: Option<&request::Outcome>) {
        let Some(outcome) = outcome else {
            self.malformed += 1;
            return;
        };
        match outcome.status {
            Status::Ok => {}
            Status::IoError => self.errors += 1,
            Status::Unsupported => self.unsupported += 1,
        }
        match outcome.kind {
            Kind::Read => {
                self.reads += 1;
                self.read_bytes += outcome.data;
            }
            Kind::Write => {
                self.writes += 1;
                self.write_bytes += outcome.data;
            }
            Kind::Flush => self.flushes += 1,
            Kind::Id | Kind::Other => {}
        }
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &str {
        &self.config.id
    }

    fn device_type(&self) -> u32 {
        2
    }

    fn features(&self) -> u64 {
        let read_only = if self.config.read_only { F_RO } else { 0 };
        feature::EVENT_IDX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | read_only
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_generation(&self) -> u32 {
        self.slot.lock().generation
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let space = self.config_space();
        let from = space.get(offset..).unwrap_or_default();
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn bind(&mut self, notifier: Arc<Notifier>) {
        self.slot.bind(notifier);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.active = activation.queues.pop().map(|mut queue| {
            queue.limit_chain_bytes(MAX_REQUEST);
            (activation, queue)
        });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn queue_event(&mut self, _queue: usize) -> Result<Work, GuestFault> {
        let Some((activation, queue)) = &mut self.active else { return Ok(Work::Done) };
        let ram = activation.memory.memory();
        let mut used = false;
        let mut work = Work::More;
        let mut bytes = 0;
        queue.disable_notification(&ram)?;
        for _ in 0..BUDGET {
            if bytes >= BYTE_BUDGET {
                break;
            }
            if !queue.pop(&ram, &mut self.chain)? {
                if queue.enable_notification(&ram)? {
                    continue;
                }
                work = Work::Done;
                break;
            }
            // No overflow: limited per chain.
            bytes += self.chain.readable_len() + self.chain.writable_len();
            let outcome = request::handle(
                &ram,
                &self.chain,
                &self.slot.lock(),
                &self.config.id,
                self.config.read_only,
                &mut self.parts,
            );
            self.counters.count(outcome.as_ref());
            let written = outcome.map_or(0, |outcome| outcome.used);
            queue.add_used(&ram, self.chain.head(), written)?;
            used = true;
        }
        if used && queue.needs_notification(&ram)? {
            activation.notifier.used();
        }
        Ok(work)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let c = &self.counters;
        vec![
            ("capacity_sectors", self.slot.sectors()),
            ("reads", c.reads),
            ("writes", c.writes),
            ("flushes", c.flushes),
            ("read_bytes", c.read_bytes),
            ("write_bytes", c.write_bytes),
            ("errors", c.errors),
            ("unsupported", c.unsupported),
            ("malformed", c.malformed),
        ]
    }
}
