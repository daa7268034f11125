//! Wakes the stack's thread, which sleeps in `poll`: by two sockets, since those can be made when the sentry makes few calls.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::error::Errno;

/// Wakes one thread.
pub(crate) struct Waker {
    woken: AtomicBool,
    ends: (OwnedFd, OwnedFd),
}

impl Waker {
    /// # Errors
    /// The host has no descriptors left.
    pub(crate) fn new() -> Result<Self, Errno> {
        let ends = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
        Ok(Self { woken: AtomicBool::new(false), ends })
    }

    /// Wakes it; at most one message is on its way.
    pub(crate) fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            let _ = nix::unistd::write(&self.ends.0, &[1]);
        }
    }

    /// What becomes readable.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.ends.1.as_fd()
    }

    /// It was woken: the message is taken.
    pub(crate) fn clear(&self) {
        let mut byte = [0];
        let _ = nix::unistd::read(&self.ends.1, &mut byte);
        self.woken.store(false, Ordering::Release);
    }
}
