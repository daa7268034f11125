//! What the guest firmware `stage0`, the VMM that launches it and the code that predicts its launch
//! digest agree upon: where things are, the measured boot block, the unmeasured boot info, the header of
//! the image, and the numbers with which stage0 gives up.
//!
//! Pure functions from bytes to values and back, without allocation, so that the firmware, the VMM and
//! `kata-cc measure` share one reading of each byte. Every parser refuses what it does not know: a
//! reserved byte that is not zero, a number out of its range, another version.
//!
//! | page | measured | who writes it | who trusts it |
//! |---|---|---|---|
//! | image (with [`ImageHeader`]) | yes | the release | everybody |
//! | [`BootBlock`] | yes | VMM | stage0: its content is part of the launch digest |
//! | [`BootInfo`], command line, kernel, initramfs | no | VMM | nobody, until checked or hashed |
#![no_std]
#![forbid(unsafe_code)]

mod block;
mod cursor;
mod event;
mod image;
mod info;
pub mod layout;
mod termination;

pub use block::{BootBlock, BootBlockError, KernelKind, PlatformKind, Sealed};
pub use event::{EV_EVENT_TAG, EventData, Measured};
pub use image::{ImageError, ImageHeader};
pub use info::{BootInfo, BootInfoError, MAX_RANGES, MemoryRange};
pub use termination::{REASON_SET, Termination};
