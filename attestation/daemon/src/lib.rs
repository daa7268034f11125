//! What the key broker and the attestation service share as processes: the [log and its traces](telemetry), memory that is
//! [kept in](hardening), the [allocator](MiMalloc), and what [systemd is told](notify).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod hardening;
mod notify;
pub mod telemetry;

pub use notify::notify;

/// Requests make many small values of all sizes, on few threads: glibc's allocator took an eighth of the time of a release. Without
/// transparent huge pages (a feature of the crate): with them 10,000 sessions held 112 MiB instead of 92.
///
/// Each of the two programs takes it. The library that one of them links into other programs does not: there freed memory is to go back to
/// the system at once, and mimalloc keeps it for a second (pulling an image: 66 MiB instead of 45).
pub use mimalloc::MiMalloc;
