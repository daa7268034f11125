//! What a launch by stage0 will be known by.

use crate::plan::LaunchPlan;

impl LaunchPlan<'_> {
    /// SNP launch digest of this plan; `None` for a launch that no SNP firmware, nor a simulated one, would measure.
    #[must_use]
    pub fn launch_digest(&self) -> Option<[u8; 48]> {
        self.stage0.as_ref()?.snp().ok().map(|launch| launch.digest())
    }
}
