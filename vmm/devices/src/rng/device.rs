//! The device.

use vm_memory::GuestAddressSpace;

use crate::device::{ActivateError, Activation, VirtioDevice, Work};
use crate::feature;
use crate::queue::{Chain, DeviceQueue, GuestFault, slice};
use crate::sys;

const QUEUE_SIZES: [u16; 1] = [64];

/// Most bytes given per request.
pub const MAX_REQUEST: u64 = 64 * 1024;

/// A virtio-rng device.
pub struct Rng {
    name: String,
    active: Option<(Activation, DeviceQueue)>,
    chain: Chain,
    requests: u64,
    bytes: u64,
    errors: u64,
}

impl Rng {
    /// A device of that name.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), active: None, chain: Chain::default(), requests: 0, bytes: 0, errors: 0 }
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        4
    }

    fn features(&self) -> u64 {
        feature::EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.active = activation.queues.pop().map(|queue| (activation, queue));
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn queue_event(&mut self, _queue: usize) -> Result<Work, GuestFault> {
        let Some((activation, queue)) = &mut self.active else { return Ok(Work::Done) };
        let ram = activation.memory.memory();
        let mut parts = Vec::new();
        let mut used = false;
        let mut work = Work::More;
        queue.disable_notification(&ram)?;
        // One round of the queue, then the other devices have their turn.
        for _ in 0..queue.size() {
            if !queue.pop(&ram, &mut self.chain)? {
                if queue.enable_notification(&ram)? {
                    continue;
                }
                work = Work::Done;
                break;
            }
            let want = self.chain.writable_len().min(MAX_REQUEST);
            let filled = slice(self.chain.writable(), 0, want, &mut parts)
                .map_or(Ok(0), |()| sys::random_into(&ram, &parts))
                .unwrap_or_else(|_| {
                    self.errors += 1;
                    0
                });
            self.requests += 1;
            self.bytes += filled as u64;
            queue.add_used(&ram, self.chain.head(), filled as u32)?;
            used = true;
        }
        if used && queue.needs_notification(&ram)? {
            activation.notifier.used();
        }
        Ok(work)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("requests", self.requests), ("bytes", self.bytes), ("errors", self.errors)]
    }
}
