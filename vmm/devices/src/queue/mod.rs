//! Virtqueues as devices use them: split rings over `virtio-queue`, with a chain walker of our own.
//!
//! `virtio-queue`'s walker ends a chain silently when something is wrong; a device then sees a short
//! chain and cannot tell why. [`DeviceQueue::pop`] reads every descriptor once, checks index, order
//! (readable before writable, VIRTIO 1.2 section 2.7.4.2), address, number and total length, and says
//! in a [`GuestFault`] what was broken. What it hands out ([`Chain`]) is a copy: the guest may rewrite
//! the table afterwards without effect.

mod chain;
mod fault;
mod ring;

#[cfg(test)]
mod tests;

pub(crate) use chain::slice;
pub use chain::{Chain, Segment};
pub use fault::{FaultKind, GuestFault};
pub use ring::{DeviceQueue, QueueSetup};
