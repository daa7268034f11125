//! Prometheus metrics: verdicts by TEE and reason, time of the steps, requests.

use std::time::Duration;

use kata_cc_kbs_protocol::Tee;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::follow::FollowMetrics;
use crate::service::{ServiceError, Timings};

/// Labels of a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    tee: &'static str,
    /// `affirming`, `warning`, `contraindicated`, `none`, or `refused`.
    verdict: &'static str,
    /// Why it was refused, or `none`.
    reason: &'static str,
}

/// Labels of a step.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    tee: &'static str,
    /// `verify`, `appraise` or `issue`.
    step: &'static str,
}

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    /// Template of the path, or the method of gRPC.
    path: String,
    status: u16,
}

/// From 50 µs to 3 s.
const BUCKETS: [f64; 15] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 1.0,
    3.0,
];

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    verdicts: Family<VerdictLabels, Counter>,
    steps: Family<StepLabels, Histogram, fn() -> Histogram>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RequestLabels, Histogram, fn() -> Histogram>,
    /// Those of the policy source.
    pub policy_source: FollowMetrics,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("attestation_service");
        let verdicts = Family::default();
        let steps = Family::new_with_constructor(histogram as fn() -> Histogram);
        let requests = Family::default();
        let durations = Family::new_with_constructor(histogram as fn() -> Histogram);
        registry.register("verdicts", "Verdicts by TEE and reason", verdicts.clone());
        registry.register("step_seconds", "Time of the steps of an evaluation", steps.clone());
        registry.register("requests", "Requests by path and status", requests.clone());
        registry.register("request_seconds", "Time of requests by path and status", durations.clone());
        let policy_source = FollowMetrics::default();
        policy_source.register(&mut registry);
        Self { registry, verdicts, steps, requests, durations, policy_source }
    }
}

impl Metrics {
    /// Counts a verdict; `status` is the word of the token.
    pub fn verdict(&self, tee: Tee, status: &'static str, timings: Timings) {
        let tee = tee.name();
        self.verdicts.get_or_create(&VerdictLabels { tee, verdict: status, reason: "none" }).inc();
        let steps = [("verify", timings.verify), ("appraise", timings.appraise), ("issue", timings.issue)];
        for (step, time) in steps {
            self.steps.get_or_create(&StepLabels { tee, step }).observe(time.as_secs_f64());
        }
    }

    /// Counts a refusal.
    pub fn refusal(&self, tee: Tee, error: &ServiceError) {
        let reason = match error {
            ServiceError::Refused(refusal) => refusal.reason.name(),
            ServiceError::PolicyId(_) => "policy-id",
            ServiceError::Appraisal(_) | ServiceError::Policy(_) => "policy-failed",
            ServiceError::Token(_) => "token",
            ServiceError::Request(_) => "request",
            _ => "internal",
        };
        self.verdicts.get_or_create(&VerdictLabels { tee: tee.name(), verdict: "refused", reason }).inc();
    }

    /// Counts a request. `path` is one of a fixed set, never what somebody sent.
    pub fn request(&self, path: &str, status: u16, time: Duration) {
        let labels = RequestLabels { path: path.to_owned(), status };
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(time.as_secs_f64());
    }

    /// The text (OpenMetrics).
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Formatting into a string does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}
