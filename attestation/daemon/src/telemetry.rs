//! Log and traces of the process: the log's level can be changed while it runs, traces go out where an address is configured.
//!
//! Spans carry method, route, status, request id, protocol version and TEE. No header, query, body, token, cookie or resource
//! goes into an attribute.

use std::sync::Arc;

use anyhow::Context as _;
use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use serde::Deserialize;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// Filter, e.g. `info` or `kbs=debug`. `RUST_LOG` wins.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// `[telemetry]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Where traces are sent, OTLP over HTTP: `http://127.0.0.1:4318/v1/traces`. Nowhere when absent.
    pub otlp_endpoint: Option<String>,
    /// `service.name` of the traces; the name of the program without it.
    pub service_name: Option<String>,
}

/// Handle on what is logged and traced.
pub struct Telemeter {
    level: reload::Handle<EnvFilter, Registry>,
    traces: Option<SdkTracerProvider>,
}

impl std::fmt::Debug for Telemeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemeter").field("traces", &self.traces.is_some()).finish_non_exhaustive()
    }
}

/// The filter of a configuration; `RUST_LOG` wins.
///
/// # Errors
/// A level that is not understood.
pub fn filter(log: &Log) -> anyhow::Result<EnvFilter> {
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| log.level.clone());
    EnvFilter::try_new(&level).with_context(|| format!("log level {level:?}"))
}

/// Starts logging for a command that ends soon: no traces, nothing to change.
///
/// # Errors
/// A level that is not understood.
pub fn log_only(log: &Log) -> anyhow::Result<()> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(log)?).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

impl Telemeter {
    /// Starts logging, and tracing where it is configured, of the program `name`. Must run inside the runtime, which the traces are
    /// sent from.
    ///
    /// # Errors
    /// A level or an address that is not understood.
    pub fn start(name: &'static str, log: &Log, telemetry: &Telemetry) -> anyhow::Result<Self> {
        let (filter, level) = reload::Layer::new(filter(log)?);
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
        let lines = match log.format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        let traces = telemetry
            .otlp_endpoint
            .as_deref()
            .map(|to| provider(to, telemetry.service_name.as_deref().unwrap_or(name)));
        let traces = traces.transpose()?;
        let spans = traces
            .as_ref()
            .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer(name)))
            .map(|layer| layer.with_location(false).with_threads(false).with_tracked_inactivity(false));
        // What sends traces must not make traces.
        let spans = spans.map(|layer| layer.with_filter(tracing_subscriber::filter::filter_fn(ours)));
        tracing_subscriber::registry().with(filter).with(lines).with(spans).init();
        Ok(Self { level, traces })
    }

    /// Another level from now on.
    pub fn set_filter(&self, filter: EnvFilter) {
        // Fails only when the subscriber is gone.
        let _ = self.level.reload(filter);
    }

    /// Sends what has not been sent yet.
    pub async fn stop(self) {
        if let Some(provider) = self.traces {
            let stopped = tokio::task::spawn_blocking(move || provider.shutdown()).await;
            if !matches!(stopped, Ok(Ok(()))) {
                tracing::warn!("the last traces were not sent");
            }
        }
    }
}

/// Our spans. Their events are the log's: they name resources and what was seen, which no collector needs.
fn ours(metadata: &tracing::Metadata<'_>) -> bool {
    metadata.is_span() && ["kbs", "kata_cc"].iter().any(|prefix| metadata.target().starts_with(prefix))
}

fn provider(endpoint: &str, service: &str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .build()
        .with_context(|| format!("telemetry.otlp_endpoint {endpoint:?}"))?;
    let exporter = InRuntime { exporter: Arc::new(exporter), runtime: tokio::runtime::Handle::current() };
    let resource = Resource::builder_empty().with_attributes([
        opentelemetry::KeyValue::new("service.name", service.to_owned()),
        opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ]);
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build())
}

/// The batch processor works on a thread of its own, where the HTTP client finds no runtime: it is sent from ours.
#[derive(Debug)]
struct InRuntime {
    exporter: Arc<opentelemetry_otlp::SpanExporter>,
    runtime: tokio::runtime::Handle,
}

impl SpanExporter for InRuntime {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exporter = Arc::clone(&self.exporter);
        let sent = self.runtime.spawn(async move { exporter.export(batch).await }).await;
        sent.unwrap_or_else(|e| Err(OTelSdkError::InternalFailure(e.to_string())))
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

/// Makes a caller's `traceparent`, if it sent one, the parent of `span`. Without traces this does nothing.
pub fn take_parent(span: &Span, headers: &HeaderMap) {
    if headers.contains_key("traceparent") {
        let parent = TraceContextPropagator::new().extract(&Headers(headers));
        let _ = span.set_parent(parent);
    }
}
