//! virtio-net (VIRTIO 1.2, section 5.1): one pair of queues over a tap interface.
//!
//! The tap has vnet headers of 12 bytes, so checksums and segmentation pass between guest and host
//! untouched; the tap is told of what the driver *accepted*, not of what was offered (FC #4680). No
//! control queue. A received frame waits in the device until the guest has room for it (CVE-2020-16843: a
//! flood must not stop reception for good); a frame for which the guest's buffers are too small by
//! themselves is dropped. A transmitted frame longer than [`MAX_FRAME`] is dropped (FC #4526).

mod device;
mod mac;
mod tap;

#[cfg(test)]
mod tests;

pub use device::{MAX_FRAME, Net, NetConfig};
pub use mac::{Mac, MacError};
pub use tap::{Tap, TapBackend, TapError};
