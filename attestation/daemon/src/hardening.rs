//! The process keeps its memory to itself: no core dump, no debugger of the same user, no `/proc/self/mem` of others.
//!
//! Secrets are zeroised when they are dropped, but until then they are in memory, and a core file would carry them to disk.

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Switches core dumps off. Failures are told: a service that may dump its secrets is not started.
///
/// # Errors
/// Which of the two could not be done.
pub fn protect_memory() -> anyhow::Result<()> {
    use anyhow::Context as _;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("switching core dumps off (setrlimit RLIMIT_CORE)")?;
    // Also where core_pattern is a pipe, which the limit does not stop.
    prctl::set_dumpable(false).context("switching core dumps off (prctl PR_SET_DUMPABLE)")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_core_dump() {
        protect_memory().unwrap();
        assert!(!prctl::get_dumpable().unwrap());
        assert_eq!(nix::sys::resource::getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
    }
}
