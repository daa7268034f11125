//! Device models of the microVM: virtio-mmio transport, virtqueues, block, net, rng, vsock, and the two
//! legacy ports (16550A serial, i8042 reset). Nothing here knows KVM; everything runs in plain memory.
//!
//! The guest is the adversary. Each field of guest memory is read once, every chain is walked with a
//! bound on descriptors and bytes ([`queue`]), the transport's registers follow a strict state machine
//! and are frozen after `DRIVER_OK` ([`mmio`]), and a guest that breaks the contract of a virtqueue gets
//! `DEVICE_NEEDS_RESET` and a [`GuestFault`] that names device, queue and reason. No input panics, and no
//! input keeps the I/O thread busy beyond a budget per event ([`Work`]).
//!
//! Formats: Virtual I/O Device (VIRTIO) 1.2, sections 2.7 (split virtqueues), 4.2 (MMIO), 5.1 (net),
//! 5.2 (block), 5.4 (entropy), 5.10 (socket). Legacy (0.9) drivers, packed rings, indirect descriptors
//! and multi-queue are not offered.
//!
//! # Wiring
//!
//! Each device sits in an [`MmioTransport`]. vCPU threads call [`MmioTransport::read`] and
//! [`MmioTransport::write`]; one I/O thread runs [`IoLoop`] for all devices. With KVM, register each of
//! [`MmioTransport::queue_events`] as an ioeventfd at offset `0x50` with its index as datamatch (without, a
//! write to that register does the same), and give an irqfd's [`EventFd`] as the interrupt.
//!
//! The loop is our own, not the `event-manager` crate: the set of descriptors is fixed before the guest
//! runs (vsock keeps its connections in an epoll of its own), so that a hundred lines replace
//! subscribers behind locks, and pause and stop are part of the loop.
//!
//! ```
//! use std::sync::Arc;
//! use kata_cc_devices::{
//!     EventFd, IoLoop, Memory, MmioTransport, VirtioDevice,
//!     block::{Block, BlockConfig}, rng::Rng,
//! };
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = Memory::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
//! // An empty slot: the file comes later, through the handle.
//! let block = Block::new(BlockConfig { id: "rootfs-0".into(), read_only: true }, None)?;
//! let slot = block.slot();
//! let devices: Vec<Box<dyn VirtioDevice>> = vec![Box::new(Rng::new("rng")), Box::new(block)];
//!
//! let mut io = IoLoop::new()?;
//! let control = io.control()?;
//! let mut bus = Vec::new();
//! for device in devices {
//!     let irq = EventFd::new(libc::EFD_NONBLOCK)?; // kvm: register_irqfd(&irq, gsi)
//!     let transport = Arc::new(MmioTransport::new(device, memory.clone(), Arc::new(irq))?);
//!     // kvm: for (n, event) in transport.queue_events().iter().enumerate() { register_ioevent(..) }
//!     io.add(transport.clone())?;
//!     bus.push(transport);
//! }
//! let thread = std::thread::Builder::new().name("vmm-io".into()).spawn(move || io.run())?;
//!
//! // A vCPU thread, on an MMIO exit at device 0 + offset 0:
//! let mut magic = [0; 4];
//! bus[0].read(0, &mut magic);
//! assert_eq!(&magic, b"virt");
//!
//! let file = tempfile::tempfile()?;
//! file.set_len(4096)?;
//! slot.attach(file)?; // the guest sees a configuration change
//! let metrics: std::collections::BTreeMap<String, u64> = bus.iter().flat_map(|t| t.counters()).collect();
//! assert_eq!(metrics["rootfs-0.capacity_sectors"], 8);
//!
//! control.stop()?;
//! thread.join().expect("i/o thread")?;
//! # Ok(())
//! # }
//! ```

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod block;
pub mod fuzzing;
pub mod io_loop;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
pub mod serial;
pub mod vsock;

mod device;
mod interrupt;
mod sys;
pub mod test_utils;

pub use device::{ActivateError, Activation, PollSource, VirtioDevice, Work};
pub use interrupt::{Interrupt, Notifier};
pub use io_loop::{IoControl, IoLoop};
pub use mmio::MmioTransport;
pub use queue::{DeviceQueue, FaultKind, GuestFault};
pub use vmm_sys_util::eventfd::EventFd;

/// The guest's memory as devices see it. One value for all devices; cloning shares it.
pub type Memory = vm_memory::GuestMemoryAtomic<GuestRam>;

/// One snapshot of [`Memory`]. No dirty bitmap: snapshots come later.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// Feature bits that belong to the transport and rings rather than to a device (VIRTIO 1.2, section 6).
pub mod feature {
    /// `VIRTIO_F_EVENT_IDX`.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`: offered by the transport for every device, and demanded from the driver.
    pub const VERSION_1: u64 = 1 << 32;
    /// `VIRTIO_F_ACCESS_PLATFORM`: the device does not reach all of the guest's memory, so its driver has to ask the
    /// platform where data may lie. A Linux guest under a TEE then uses memory that it shares.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
}
