//! The host's end of the wire.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys;

/// Why a tap could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "tap {name:?} cannot be opened ({source}); it must exist in the vmm's network namespace, unused, and be usable by its user"
)]
pub struct TapError {
    /// Name of the interface.
    pub name: String,
    /// What the system said.
    pub source: io::Error,
}

/// Something that sends and receives frames, each with a vnet header in front, without waiting.
pub trait TapBackend: Send {
    /// The descriptor: one frame per `readv` and `writev`.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Says what may come in: `TUN_F_*` bits.
    fn set_offloads(&mut self, flags: u32) -> io::Result<()>;
}

/// A tap interface.
pub struct Tap(OwnedFd);

impl Tap {
    /// Opens the existing interface of that name in the network namespace of the calling thread.
    pub fn open(name: &str) -> Result<Self, TapError> {
        sys::open_tap(name).map(Self).map_err(|source| TapError { name: name.into(), source })
    }
}

impl TapBackend for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn set_offloads(&mut self, flags: u32) -> io::Result<()> {
        sys::set_tap_offloads(self.fd(), flags)
    }
}
