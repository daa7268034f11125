//! Failures as the monitor hears them.

use crate::control::message::{Failure, FailureKind};
use crate::error::Errno;

/// Longest text of one.
const TEXT_MAX: usize = 4096;

pub(super) fn failure(kind: FailureKind, text: &str) -> Failure {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Failure { kind, text: text.get(..end).unwrap_or_default().to_owned() }
}

pub(super) fn invalid(text: &str) -> Failure {
    failure(FailureKind::Invalid, text)
}

/// Something that a call of the kernel refused.
pub(super) fn failed(what: &str, errno: Errno) -> Failure {
    let text = if what.is_empty() { errno.to_string() } else { format!("{what}: {errno}") };
    failure(FailureKind::Failed, &text)
}

impl Failure {
    /// With what it is about before it.
    #[must_use]
    pub(super) fn about(self, what: &str) -> Self {
        failure(self.kind, &format!("{what}: {}", self.text))
    }
}
