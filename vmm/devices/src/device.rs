//! What a virtio device is, to the transport and to the I/O loop.
//!
//! A device owns its back end from the start (files are opened before the vCPUs run) and gets its
//! queues at [`VirtioDevice::activate`]. All methods run under the transport's lock: `activate`, `reset` and the
//! configuration accessors on vCPU threads, the event handlers on the I/O thread.

use std::os::fd::RawFd;
use std::sync::Arc;

use crate::interrupt::Notifier;
use crate::queue::{DeviceQueue, GuestFault};
use crate::{GuestRam, Memory};

/// What a device gets when the driver sets `DRIVER_OK`.
pub struct Activation {
    /// Guest memory.
    pub memory: Memory,
    /// One validated queue per entry of [`VirtioDevice::queue_sizes`], in that order.
    pub queues: Vec<DeviceQueue>,
    /// The features that the driver accepted: a subset of those offered.
    pub features: u64,
    /// How to tell the driver that buffers were used.
    pub notifier: Arc<Notifier>,
}

impl Activation {
    /// The memory as it is now. There is no unplugging, so an address that was inside once stays inside.
    pub fn ram(&self) -> impl std::ops::Deref<Target = GuestRam> + use<> {
        use vm_memory::GuestAddressSpace;
        self.memory.memory()
    }
}

/// Whether an event handler is done or wants to be called again after the other devices had their turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Work {
    /// Nothing left to do until the next event.
    Done,
    /// The budget of one event is used up and there is more.
    More,
}

/// A file descriptor that the I/O loop polls for a device during its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollSource {
    /// The descriptor; it lives as long as the device.
    pub fd: RawFd,
    /// Handed to [`VirtioDevice::poll_event`].
    pub token: u32,
    /// Edge-triggered: the device reads until `EAGAIN`, or remembers that it did not.
    pub edge: bool,
}

/// Why a device could not be activated.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver set up a queue that cannot be used.
    #[error(transparent)]
    Queue(#[from] GuestFault),
    /// The back end refused what the driver negotiated.
    #[error("back end of device {device} cannot {what}: {source}")]
    Backend {
        /// Device name.
        device: String,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A virtio device behind an [`MmioTransport`](crate::MmioTransport).
pub trait VirtioDevice: Send {
    /// Name for logs and metrics, as in the VM's configuration.
    fn name(&self) -> &str;

    /// Device id (VIRTIO 1.2, section 5): 1 net, 2 block, 4 entropy, 19 socket.
    fn device_type(&self) -> u32;

    /// Features offered, without `VIRTIO_F_VERSION_1`, which the transport adds.
    fn features(&self) -> u64;

    /// Largest size of each queue, powers of two. The number of queues never changes.
    fn queue_sizes(&self) -> &[u16];

    /// Changes whenever the configuration space does.
    fn config_generation(&self) -> u32 {
        0
    }

    /// Reads the configuration space. `data` is zeroed before; bytes beyond its end stay zero.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Writes the configuration space. No device here has a writable field.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Called once, when the transport is made: how to announce a configuration change.
    fn bind(&mut self, notifier: Arc<Notifier>) {
        let _ = notifier;
    }

    /// The driver is ready. On an error the transport sets `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Forgets queues and everything the driver set. The back end stays, but none of [`VirtioDevice::poll_sources`] may
    /// stay ready (unless edge-triggered): nothing handles it until the next `activate`. Also called at a guest's fault.
    fn reset(&mut self);

    /// The driver notified a queue. Called only between `activate` and `reset`.
    fn queue_event(&mut self, queue: usize) -> Result<Work, GuestFault>;

    /// What the loop polls. Called once, when the device is added to the loop.
    fn poll_sources(&self) -> Vec<PollSource> {
        Vec::new()
    }

    /// A polled descriptor is ready. Called only between `activate` and `reset`; an edge that comes outside
    /// is lost, so `activate` must look for itself (the transport notifies every queue after it).
    fn poll_event(&mut self, token: u32) -> Result<Work, GuestFault> {
        let _ = token;
        Ok(Work::Done)
    }

    /// Counters since the VM's start, names in snake case.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}
