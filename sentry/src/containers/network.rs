//! Interfaces of the pod, which all containers have in common.

use std::sync::Arc;

use super::failure::failure;
use super::passed::Passed;
use crate::control::message::{Answer, Descriptor, Failure, FailureKind};
use crate::net::Net;
use crate::net::stack::{AttachError, LinkConfig};

/// What the monitor hears of a change.
pub(super) fn done(changed: Result<(), AttachError>) -> Result<Answer, Failure> {
    changed.map(|()| Answer::Done).map_err(|error| {
        let kind = match &error {
            AttachError::Config(_) | AttachError::Exists(_) | AttachError::Waits(_) => FailureKind::Invalid,
            AttachError::Missing(_) => FailureKind::Missing,
            AttachError::Many => FailureKind::Full,
            AttachError::Thread(_) => FailureKind::Failed,
        };
        failure(kind, &error.to_string())
    })
}

/// Attaches an interface.
pub(super) fn attach(
    net: &Arc<Net>,
    config: LinkConfig,
    mut passed: Passed,
    frames: Descriptor,
) -> Result<Answer, Failure> {
    done(net.attach(config, passed.take(frames)?))
}
