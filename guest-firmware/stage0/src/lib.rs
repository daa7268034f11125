//! Guest firmware for confidential launches: the only code that the launch measurement covers.
//!
//! The host puts kernel, initramfs and command line into shared memory; their hashes are in a measured
//! page. stage0 copies each of them once into private memory, hashes the copy, and boots it only when the
//! hash is the measured one. See `docs/stage0.md`.
//!
//! Everything that touches hardware is behind [`platform::Platform`] and [`memory::GuestMemory`]; what
//! decides is in small modules that run, with their tests, on any host. Unsafe code is in `identity`,
//! `port`, `sha256::ni`, `string`, `snp::instructions` and `tdx::instructions`, and in the entry of the image.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

pub mod boot;
pub mod ending;
pub mod exception;
#[allow(unsafe_code, reason = "addresses become references")]
pub mod identity;
pub mod kernel;
pub mod memory;
pub mod params;
pub mod payload;
pub mod places;
pub mod plain;
pub mod platform;
#[allow(unsafe_code, reason = "port write and halt")]
mod port;
pub mod private_pages;
pub mod ranges;
pub mod sha256;
pub mod snp;
#[allow(unsafe_code, reason = "string instructions")]
pub mod string;
pub mod tables;
pub mod tdx;

#[cfg(test)]
mod boot_tests;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod fill_tests;
#[cfg(test)]
mod tee_boot_tests;
#[cfg(test)]
mod test_random;
