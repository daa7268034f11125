//! virtio-mmio, version 2 (VIRTIO 1.2, section 4.2): a device's registers, its state machine, and the way
//! from a notification to the device.
//!
//! - Registers below `0x100` take aligned 32-bit accesses only; everything else reads zero, is ignored
//!   when written, and is counted (`bad_access`).
//! - The status register moves one step at a time, `ACKNOWLEDGE` → `DRIVER` → `FEATURES_OK` → `DRIVER_OK`; writing
//!   0 resets in any state. Features are taken only before `FEATURES_OK`, queue registers only between
//!   `FEATURES_OK` and `DRIVER_OK`: what was validated at activation cannot be changed under the device
//!   (CVE-2026-5747).
//! - A fault of the guest sets `DEVICE_NEEDS_RESET`; the device does nothing more until it is reset.
//! - Interrupts are edge-triggered; status and acknowledge never wait for a busy device.

mod registers;
mod transport;

#[cfg(test)]
mod tests;

pub use registers::{Register, status};
pub use transport::MmioTransport;

/// Size of a device's window.
pub const WINDOW: u64 = 0x1000;

/// Offset of `QueueNotify`, for an ioeventfd with the queue's index as datamatch.
pub const QUEUE_NOTIFY: u64 = 0x50;
