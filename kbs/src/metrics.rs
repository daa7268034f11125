//! Metrics in Prometheus' text form, at `/metrics`. Labels take few values: routes, steps, TEEs, reasons, never what a caller sent.

use std::future::Future;
use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use kata_cc_attestation_service::follow::FollowMetrics;
use kata_cc_kbs_protocol::{ProtocolVersion, Tee};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::plugins::registry::PluginMetrics;

/// Upper bounds in seconds: a signature check takes one millisecond, a bad day of the store several seconds.
const BOUNDS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// What was asked for and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    /// `auth`, `attest`, `resource`, `admin`, `limit`, or a plugin.
    pub(crate) call: &'static str,
    /// `ok`, or the reason.
    pub(crate) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Requested {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Routed {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    step: &'static str,
    tee: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verdict {
    tee: &'static str,
    verdict: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Client {
    version: &'static str,
    tee: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Debug, Clone, Copy)]
struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(BOUNDS)
    }
}

/// All metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    calls: Family<Outcome, Counter>,
    requests: Family<Requested, Counter>,
    latency: Family<Routed, Histogram, Seconds>,
    steps: Family<Step, Histogram, Seconds>,
    verdicts: Family<Verdict, Counter>,
    clients: Family<Client, Counter>,
    store: Family<Operation, Histogram, Seconds>,
    store_errors: Family<Operation, Counter>,
    reloads: Family<Outcome, Counter>,
    /// Open sessions.
    pub(crate) sessions: Gauge,
    /// Those of the plugins.
    pub(crate) plugins: PluginMetrics,
    /// Those of the policy source.
    pub(crate) policy_source: FollowMetrics,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let new = Self {
            calls: Family::default(),
            requests: Family::default(),
            latency: Family::new_with_constructor(Seconds),
            steps: Family::new_with_constructor(Seconds),
            verdicts: Family::default(),
            clients: Family::default(),
            store: Family::new_with_constructor(Seconds),
            store_errors: Family::default(),
            reloads: Family::default(),
            sessions: Gauge::default(),
            plugins: PluginMetrics::new(),
            policy_source: FollowMetrics::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register("kbs_calls", "Calls by what came of them", new.calls.clone());
        r.register("kbs_http_requests", "Requests by route and status", new.requests.clone());
        let text = "Time from a request's head to its answer, by route";
        r.register_with_unit("kbs_http_request_duration", text, Unit::Seconds, new.latency.clone());
        let text = "Time of a step (auth, attest, verify, policy, encrypt) by TEE";
        r.register_with_unit("kbs_step_duration", text, Unit::Seconds, new.steps.clone());
        r.register("kbs_verdicts", "Verdicts over evidence, by TEE and reason", new.verdicts.clone());
        r.register("kbs_protocol_clients", "Handshakes begun, by protocol version", new.clients.clone());
        let text = "Time of the store's operations";
        r.register_with_unit("kbs_store_duration", text, Unit::Seconds, new.store.clone());
        r.register("kbs_store_errors", "Operations of the store that failed", new.store_errors.clone());
        r.register("kbs_reloads", "Reloads of the configuration", new.reloads.clone());
        r.register("kbs_sessions", "Sessions that are open", new.sessions.clone());
        new.plugins.register(r);
        new.policy_source.register(r.sub_registry_with_prefix("kbs"));
        Self { registry, ..new }
    }

    /// Counts a call.
    pub(crate) fn count(&self, call: &'static str, outcome: &'static str) {
        self.calls.get_or_create(&Outcome { call, outcome }).inc();
    }

    /// Counts a request and its time.
    pub(crate) fn request(&self, method: &Method, route: &str, status: StatusCode, elapsed: Duration) {
        let method = match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::DELETE => "DELETE",
            _ => "other",
        };
        let route = route.to_owned();
        self.requests
            .get_or_create(&Requested { method, route: route.clone(), status: status.as_u16() })
            .inc();
        self.latency.get_or_create(&Routed { route }).observe(elapsed.as_secs_f64());
    }

    /// Notes the time of a step since `begin`.
    pub(crate) fn step(&self, step: &'static str, tee: Option<Tee>, begin: Instant) {
        let tee = tee.map_or("none", Tee::name);
        self.steps.get_or_create(&Step { step, tee }).observe(begin.elapsed().as_secs_f64());
    }

    /// Counts a verdict: `affirming`, `warning`, ... or `refused`, and why.
    pub(crate) fn verdict(&self, tee: Option<Tee>, verdict: &'static str, reason: &'static str) {
        let tee = tee.map_or("none", Tee::name);
        self.verdicts.get_or_create(&Verdict { tee, verdict, reason }).inc();
    }

    /// Counts a client.
    pub(crate) fn client(&self, version: Option<ProtocolVersion>, tee: Tee) {
        let version = version.map_or("other", ProtocolVersion::name);
        self.clients.get_or_create(&Client { version, tee: tee.name() }).inc();
    }

    /// Counts a reload.
    pub(crate) fn reload(&self, outcome: &'static str) {
        self.reloads.get_or_create(&Outcome { call: "reload", outcome }).inc();
    }

    /// Times an operation of the store.
    pub(crate) async fn timed<T, E>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let begin = Instant::now();
        let done = work.await;
        self.store.get_or_create(&Operation { operation }).observe(begin.elapsed().as_secs_f64());
        if done.is_err() {
            self.store_errors.get_or_create(&Operation { operation }).inc();
        }
        done
    }

    /// The text.
    pub(crate) fn render(&self) -> String {
        let mut out = String::new();
        // Formatting into a string does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_is_rendered_under_its_name() {
        let metrics = Metrics::new();
        metrics.count("auth", "ok");
        metrics.request(&Method::GET, "/kbs/v0/auth", StatusCode::OK, Duration::from_millis(3));
        metrics.step("verify", Some(Tee::Snp), Instant::now());
        metrics.verdict(Some(Tee::Snp), "refused", "report-data");
        metrics.client(Some(ProtocolVersion::V0_1_1), Tee::Snp);
        metrics.client(None, Tee::Snp);
        metrics.reload("ok");
        metrics.timed("get", async { Ok::<_, ()>(()) }).await.unwrap();
        metrics.timed("get", async { Err::<(), _>(()) }).await.unwrap_err();
        let text = metrics.render();
        for line in [
            "kbs_calls_total{call=\"auth\",outcome=\"ok\"} 1",
            "kbs_http_requests_total{method=\"GET\",route=\"/kbs/v0/auth\",status=\"200\"} 1",
            "kbs_http_request_duration_seconds_bucket{le=\"0.005\",route=\"/kbs/v0/auth\"} 1",
            "kbs_step_duration_seconds_count{step=\"verify\",tee=\"snp\"} 1",
            "kbs_verdicts_total{tee=\"snp\",verdict=\"refused\",reason=\"report-data\"} 1",
            "kbs_protocol_clients_total{version=\"0.1.1\",tee=\"snp\"} 1",
            "kbs_protocol_clients_total{version=\"other\",tee=\"snp\"} 1",
            "kbs_store_duration_seconds_count{operation=\"get\"} 2",
            "kbs_store_errors_total{operation=\"get\"} 1",
            "kbs_reloads_total",
            "kbs_sessions 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
