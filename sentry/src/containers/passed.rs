//! Descriptors that came with a request, each of which is taken once.

use std::os::fd::OwnedFd;

use super::failure::invalid;
use crate::control::message::{Descriptor, Failure};

/// Descriptors of a request.
pub struct Passed(Vec<Option<OwnedFd>>);

impl Passed {
    /// Those that came.
    #[must_use]
    pub fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter().map(Some).collect())
    }

    pub(super) fn take(&mut self, place: Descriptor) -> Result<OwnedFd, Failure> {
        let taken = self.0.get_mut(usize::from(place.0)).and_then(Option::take);
        taken.ok_or_else(|| invalid(&format!("descriptor {} did not come with the request", place.0)))
    }
}
