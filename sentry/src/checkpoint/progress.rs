//! How far the writing or reading of an image has come, and whether anybody still wants it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::image::ImageError;

/// Of one image.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    moved: AtomicU64,
    given_up: AtomicBool,
}

impl Progress {
    /// So many bytes were moved.
    ///
    /// # Errors
    /// [`ImageError::GivenUp`]: nobody wants more of it.
    pub(crate) fn add(&self, bytes: usize) -> Result<(), ImageError> {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        self.is_wanted()
    }

    /// See [`add`](Self::add).
    pub(crate) fn is_wanted(&self) -> Result<(), ImageError> {
        if self.given_up.load(Ordering::Acquire) { Err(ImageError::GivenUp) } else { Ok(()) }
    }

    /// Bytes that were moved. The number says nothing but that it grows as long as something is done.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Nobody wants it any more.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }
}
