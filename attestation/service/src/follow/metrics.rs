//! Metrics of a followed source. Where none is followed they stay 0.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::references::parse_time;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    /// `ok` or `failed`.
    outcome: &'static str,
}

/// The metrics; a clone counts for the same.
#[derive(Debug, Clone, Default)]
pub struct FollowMetrics {
    looks: Family<Outcome, Counter>,
    failing: Gauge,
    pinned: Gauge,
    applied: Gauge,
}

impl FollowMetrics {
    /// Lets a registry show them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "policy_source_looks",
            "Looks at the policy source, by what came of them",
            self.looks.clone(),
        );
        let text = "Whether what the policy source has cannot be taken, and the last good bundle stays";
        registry.register("policy_source_failing", text, self.failing.clone());
        registry.register(
            "policy_source_pinned",
            "Whether an earlier policy bundle is held in force",
            self.pinned.clone(),
        );
        let text = "When the policy bundle in force was put so, seconds since 1970; 0 before the first";
        registry.register("policy_source_applied_timestamp_seconds", text, self.applied.clone());
    }

    pub(super) fn looked(&self, outcome: &'static str) {
        self.looks.get_or_create(&Outcome { outcome }).inc();
    }

    pub(super) fn failing(&self, failing: bool) {
        self.failing.set(failing.into());
    }

    pub(super) fn pinned(&self, pinned: bool) {
        self.pinned.set(pinned.into());
    }

    pub(super) fn in_force(&self, applied_at: &str) {
        self.applied.set(parse_time(applied_at).unwrap_or(0));
    }
}
