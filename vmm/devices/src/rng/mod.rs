//! virtio-rng (VIRTIO 1.2, section 5.4): one queue of buffers, filled from the host's `getrandom`.
//!
//! At most [`MAX_REQUEST`] bytes are given per request, whatever the chain claims to hold: descriptors
//! that overlap could otherwise ask for gigabytes with a page of memory.

mod device;

#[cfg(test)]
mod tests;

pub use device::{MAX_REQUEST, Rng};
