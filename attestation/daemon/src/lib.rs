//! What the key broker and the attestation service share as processes: the [log and its traces](telemetry), memory that is
//! [kept in](hardening), and what [systemd is told](notify).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod hardening;
mod notify;
pub mod telemetry;

pub use notify::notify;
