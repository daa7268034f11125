//! Counters in Prometheus' text form, at `/metrics`.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::plugins::registry::PluginMetrics;

/// What was asked for and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    /// `auth`, `attest`, `admin`, or the plugin.
    pub(crate) call: &'static str,
    /// `ok`, or the reason.
    pub(crate) outcome: &'static str,
}

/// All metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    calls: Family<Outcome, Counter>,
    /// Open sessions.
    pub(crate) sessions: Gauge,
    /// Those of the plugins.
    pub(crate) plugins: PluginMetrics,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let calls = Family::<Outcome, Counter>::default();
        let sessions = Gauge::default();
        registry.register("kbs_calls", "Calls by what came of them", calls.clone());
        registry.register("kbs_sessions", "Sessions that are open", sessions.clone());
        let plugins = PluginMetrics::new();
        plugins.register(&mut registry);
        Self { registry, calls, sessions, plugins }
    }

    /// Counts a call.
    pub(crate) fn count(&self, call: &'static str, outcome: &'static str) {
        self.calls.get_or_create(&Outcome { call, outcome }).inc();
    }

    /// The text.
    pub(crate) fn render(&self) -> String {
        let mut out = String::new();
        // Formatting into a string does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}
