//! The guest APIs of CoCo's guest components, served by the agent to the containers of its guest.
//!
//! Two forms of the same calls: REST on `127.0.0.1:8006` ([`rest`], paths and answers of api-server-rest) for programs in
//! containers, and ttrpc on unix sockets ([`rpc`], the attestation agent's and the confidential data hub's services) for
//! programs that were made for CoCo. Both go through [`GuestApi`], where switches, limits of size and rate, and sealed
//! secrets ([`sealed`]) are. What the guest can do is behind the trait [`Guest`], which the agent implements.
//!
//! Everything that comes in is untrusted: containers are, and sealed secrets and key packets come from the host. Secrets are
//! `Zeroizing` as far as the libraries below allow (a ttrpc answer is not), never logged and never in an error.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod api;
mod guest;
pub mod keyprovider;
mod limits;
pub mod rest;
pub mod rpc;
pub mod sealed;
pub mod volume;

pub use api::{ApiError, Features, GuestApi, Settings};
pub use guest::{Guest, GuestError, Measured, Token};
pub use limits::RateLimit;
