//! The microVM monitor: one process per sandbox, one VM per process.
//!
//! What it does, in order: read the configuration ([`config`]), open every file the devices need
//! ([`devices`]), make the launch plan (crate `kata-cc-boot`), create the VM ([`kvm`]), launch it by the plan
//! ([`tee`]: with or without protection, the steps are the same), start the threads ([`vm`]), wait for an end,
//! take everything down.
//! Nothing is opened after the vCPUs run but what `attach_block` names, so that a sandbox can be drawn
//! around the process at that moment.
//!
//! Threads: `main` (signals and the end), `io` (all devices), `vcpu<n>`, `control` (control socket), and
//! `sim-tee` under the simulated TEE. `quote` comes and goes for a TD that asks for a quote.
//!
//! The guest is untrusted: whatever it does ends in an [`vm::Outcome`], never in a panic. Whoever
//! writes the configuration and speaks on the control socket is trusted with the files they name.
//!
//! Limits: 64 vCPUs, 1 TiB, 19 devices; no hot-plug but block slots; no snapshots.

pub mod config;
pub mod control;
pub mod devices;
pub mod digests;
pub mod error;
pub mod files;
pub mod kvm;
pub mod memory;
pub mod probe;
pub mod sim;
pub mod tee;
pub mod vcpu;
pub mod vm;

mod bus;
mod confidential;
mod ioapic;
mod launch;
mod threads;
