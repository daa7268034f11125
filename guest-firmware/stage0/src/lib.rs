//! Guest firmware for confidential launches: the only code that the launch measurement covers.
//!
//! The host puts kernel, initramfs and command line into shared memory; their hashes are in a measured
//! page. stage0 copies each of them once into private memory, hashes the copy, and boots it only when the
//! hash is the measured one. See `docs/stage0.md`.
//!
//! Everything that touches hardware is behind [`platform::Platform`]; what decides is in small modules
//! that run, with their tests, on any host.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

pub mod platform;
