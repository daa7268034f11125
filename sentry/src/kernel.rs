//! The kernel of one sandbox: what all its tasks share.

use std::sync::Arc;

use crate::platform::Platform;
use crate::task::Tasks;
use crate::time::Clocks;

/// The kernel of one sandbox.
pub struct Kernel {
    /// How guest code runs.
    pub platform: Box<dyn Platform>,
    /// Every task.
    pub tasks: Tasks,
    /// What time it is.
    pub clocks: Clocks,
}

impl Kernel {
    /// With no task yet.
    #[must_use]
    pub fn new(platform: Box<dyn Platform>) -> Arc<Self> {
        Arc::new(Self { platform, tasks: Tasks::default(), clocks: Clocks::new() })
    }
}
