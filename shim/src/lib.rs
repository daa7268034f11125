//! containerd's side of kata-cc: the shim that turns task calls into agent calls.
//!
//! Rooms: [`flags`], [`bootstrap`], [`grouping`] and [`socket`] are how containerd finds and starts the server
//! ([`start`], [`delete`], [`info`]); [`daemon`] is the server, [`service`] its ttrpc face, [`tasks`], [`cell`] and
//! [`ops`] what it does, [`machine`] the rules of a process' life as pure code; [`stdio`], [`logger`] and [`pump`] move
//! the processes' data; [`events`] tells containerd; [`guest`] is the seam to the sandbox, [`vm`] the sandbox behind it.
//!
//! The server knows nothing of KVM, and the sandbox nothing of containerd.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod alive;
pub mod bootstrap;
pub mod cell;
pub mod daemon;
pub mod delete;
pub mod error;
pub mod events;
pub mod flags;
pub use kata_cc_oci::grouping;
pub mod guest;
pub mod hooks;
pub mod info;
pub mod logger;
pub mod logging;
pub mod machine;
pub mod mounts;
pub mod ops;
pub mod pump;
pub mod service;
pub mod socket;
pub mod start;
pub mod stats;
pub mod stdio;
mod sys;
pub mod tasks;
pub mod vm;
