//! virtio-blk (VIRTIO 1.2, section 5.2) over raw files and block devices.
//!
//! - The format is never probed: a disk that begins with another format's magic stays raw
//!   (GHSA-jmr4-g2hv-mjj6).
//! - Read-only is enforced here, not only announced; sector arithmetic is checked; requests beyond the
//!   capacity fail with `IOERR`.
//! - virtio-mmio has no hot-plug, so a slot may be empty (capacity 0) and get its file later, through
//!   its [`Slot`]; the guest is told by a configuration change and Linux re-reads the capacity.
//! - Requests: IN, OUT, FLUSH, GET_ID. Discard, write-zeroes and multi-queue are not offered.
//! - I/O is synchronous on the I/O thread: a request is complete when the handler returns, so that a reset never finds
//!   one in flight (CVE-2026-45782). A slow disk delays the other devices of the same VM.

mod device;
mod request;
mod slot;

#[cfg(test)]
mod tests;

pub use device::{Block, BlockConfig};
pub use slot::{Slot, SlotError};

/// Bytes of a sector, for the protocol whatever the disk's own.
pub const SECTOR: u64 = 512;
