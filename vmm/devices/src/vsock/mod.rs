//! virtio-vsock (VIRTIO 1.2, section 5.10) in user space: guest connections become Unix stream sockets.
//!
//! Host to guest: a client connects to the device's socket, sends `CONNECT <port>\n` and reads
//! `OK <hostport>\n` once the guest has accepted; a refusal closes the socket. Guest to host: a connection to port `p` of CID
//! 2 becomes one to `<uds>_<p>`, or to a service inside the VMM ([`VsockConfig::local_ports`]). This is the
//! protocol of Firecracker, Cloud Hypervisor and Kata.
//!
//! The muxer trusts neither side with memory: connections are limited ([`MAX_CONNECTIONS`]), and so is what
//! waits for a slow host reader, per connection (the credit that the guest is given) and in total. All counters of
//! the credit scheme wrap at 32 bits; a peer that claims more than was sent gets no credit (CVE-2026-23069). Half-closed
//! connections stay open in the other direction. The host's sockets are watched edge-triggered by an epoll of the
//! device's own, which is the one descriptor that the I/O loop polls.

mod connection;
mod device;
mod handshake;
mod muxer;
mod packet;

#[cfg(test)]
mod tests;

pub use device::{LocalPort, Vsock, VsockConfig, VsockError};
pub use packet::{HEADER_LEN, Header, MAX_PACKET, op};

/// Most connections at a time, with those whose `CONNECT` line is not complete.
pub const MAX_CONNECTIONS: usize = 1023;

/// Bytes that the guest may have in flight on a connection.
pub const BUFFER: u32 = 256 * 1024;

/// Bytes that may wait for the host's readers, over all connections.
pub const TOTAL_BUFFER: usize = 64 << 20;
