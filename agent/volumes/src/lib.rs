//! Encrypted volumes of a guest: what is on a block device before and after the kernel's dm-crypt.
//!
//! - [`luks2`]: LUKS2 headers read and written, keyslots opened. No `cryptsetup` in the measured image.
//! - [`ext4`]: an empty ext4 file system. No `mkfs` there either.
//!
//! Both are bytes in and bytes out: devices are anything that reads, writes and seeks, and nothing here asks the kernel for
//! anything. Mapping and mounting are the agent's.
#![forbid(unsafe_code)]

pub mod ext4;
pub mod luks2;
