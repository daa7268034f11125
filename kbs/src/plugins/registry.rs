//! Which plugins there are, and the bounds that each call keeps: time, calls at once, bytes in and out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use serde::Deserialize;
use thiserror::Error;
use tokio::sync::Semaphore;

use super::ca::{Ca, CaConfig};
use super::pkcs11::{self, Pkcs11, Pkcs11Config, Token};
use super::resource::Resource;
use super::vault::{Vault, VaultConfig};
use super::{BlobStore, Caller, Plugin, PluginError, PluginRequest, PluginResponse, resource};

/// Why a plugin could not be set up.
#[derive(Debug, Error)]
pub(crate) enum SetupError {
    /// Two entries for one plugin.
    #[error("[[plugins]]: {0} is there twice")]
    Twice(&'static str),
    /// A value that does not go.
    #[error("[[plugins]] {plugin}: {why}")]
    Value {
        /// Which plugin.
        plugin: &'static str,
        /// What is wrong with what.
        why: String,
    },
}

/// One `[[plugins]]` entry, chosen by `name`.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub(crate) enum PluginConfig {
    /// Local resources; the entry is needed only to set limits.
    Resource(ResourceConfig),
    /// A hardware security module.
    Pkcs11(Box<Pkcs11Config>),
    /// A Vault-compatible server.
    Vault(Box<VaultConfig>),
    /// Certificates for guests.
    Ca(Box<CaConfig>),
}

/// `[[plugins]]` `name = "resource"`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ResourceConfig {
    /// Trustee's name for where resources are kept: `kvstorage`, our own store.
    pub(crate) storage_backend_type: Option<String>,
    pub(crate) limits: LimitsConfig,
}

/// `limits` of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitsConfig {
    /// Seconds that a call may take.
    pub(crate) timeout_seconds: u64,
    /// Calls at a time; more are refused at once.
    pub(crate) concurrent: usize,
    /// Most bytes of a request's body.
    pub(crate) request_bytes: usize,
    /// Most bytes of an answer.
    pub(crate) response_bytes: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { timeout_seconds: 20, concurrent: 256, request_bytes: 64 << 20, response_bytes: 64 << 20 }
    }
}

impl LimitsConfig {
    fn check(&self, plugin: &'static str) -> Result<(), SetupError> {
        let value = |why: &str| Err(SetupError::Value { plugin, why: why.to_owned() });
        if !(1..=300).contains(&self.timeout_seconds) {
            return value("limits.timeout_seconds must be 1 to 300");
        }
        if !(1..=65536).contains(&self.concurrent) {
            return value("limits.concurrent must be 1 to 65536");
        }
        if self.request_bytes > 64 << 20 || self.response_bytes > 64 << 20 {
            return value("limits.request_bytes and limits.response_bytes must be at most 67108864");
        }
        Ok(())
    }
}

/// What plugins are set up with.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// Folder that relative paths start from.
    pub(crate) base: PathBuf,
    /// The broker's store.
    pub(crate) store: Arc<dyn BlobStore>,
    /// The token of the plugin `pkcs11`, when it is configured ([`open_token`]).
    pub(crate) token: Option<Arc<Token>>,
}

/// Opens the token of the plugin `pkcs11`, when it is configured: the store's key may need it before there is a store.
pub(crate) async fn open_token(
    configs: &[PluginConfig],
    base: &Path,
) -> Result<Option<Arc<Token>>, SetupError> {
    for config in configs {
        if let PluginConfig::Pkcs11(config) = config {
            return pkcs11::open(config, base).await.map(Some);
        }
    }
    Ok(None)
}

impl Context {
    /// A path of the configuration, as it is to be opened.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }
}

/// Label of a plugin's metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginLabel {
    plugin: &'static str,
}

/// Label of an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    plugin: &'static str,
    /// `ok`, or the error's name.
    outcome: &'static str,
}

/// Counters of all plugins.
#[derive(Debug, Clone)]
pub(crate) struct PluginMetrics {
    calls: Family<OutcomeLabel, Counter>,
    seconds: Family<PluginLabel, Histogram>,
    running: Family<PluginLabel, Gauge>,
}

impl PluginMetrics {
    pub(crate) fn new() -> Self {
        Self {
            calls: Family::default(),
            // 0.5 ms to 16 s.
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 2.0, 16))),
            running: Family::default(),
        }
    }

    /// Adds them to the registry that `/metrics` shows.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("kbs_plugin_calls", "Plugin calls by what came of them", self.calls.clone());
        registry.register("kbs_plugin_seconds", "Time of plugin calls in seconds", self.seconds.clone());
        registry.register("kbs_plugin_running", "Plugin calls that are running", self.running.clone());
    }
}

#[derive(Debug)]
struct Entry {
    plugin: Arc<dyn Plugin>,
    limits: LimitsConfig,
    slots: Semaphore,
}

/// The plugins of a broker.
#[derive(Debug)]
pub(crate) struct Plugins {
    entries: BTreeMap<&'static str, Entry>,
    metrics: PluginMetrics,
}

impl Plugins {
    /// Sets up what the configuration names, and `resource`.
    pub(crate) async fn load(
        configs: &[PluginConfig],
        context: &Context,
        metrics: PluginMetrics,
    ) -> Result<Self, SetupError> {
        let mut plugins = Self { entries: BTreeMap::new(), metrics };
        for config in configs {
            match config {
                PluginConfig::Resource(config) => {
                    if !matches!(config.storage_backend_type.as_deref(), None | Some("kvstorage")) {
                        let why = "storage_backend_type must be kvstorage".to_owned();
                        return Err(SetupError::Value { plugin: resource::NAME, why });
                    }
                    let plugin = Resource::new(Arc::clone(&context.store));
                    plugins.add(Arc::new(plugin), config.limits)?;
                }
                PluginConfig::Pkcs11(config) => {
                    let token = context.token.clone().ok_or_else(|| SetupError::Value {
                        plugin: pkcs11::NAME,
                        why: "its token was not opened".to_owned(),
                    })?;
                    let plugin = Pkcs11::new(config.as_ref().clone(), token, context);
                    plugins.add(Arc::new(plugin), config.limits)?;
                }
                PluginConfig::Vault(config) => {
                    let plugin = Vault::new(config.as_ref().clone(), context).await?;
                    plugins.add(Arc::new(plugin), config.limits)?;
                }
                PluginConfig::Ca(config) => {
                    let plugin = Ca::new(config.as_ref().clone(), context).await?;
                    plugins.add(Arc::new(plugin), config.limits)?;
                }
            }
        }
        if !plugins.entries.contains_key(resource::NAME) {
            let plugin = Resource::new(Arc::clone(&context.store));
            plugins.add(Arc::new(plugin), LimitsConfig::default())?;
        }
        Ok(plugins)
    }

    fn add(&mut self, plugin: Arc<dyn Plugin>, limits: LimitsConfig) -> Result<(), SetupError> {
        let name = plugin.name();
        limits.check(name)?;
        let entry = Entry { plugin, limits, slots: Semaphore::new(limits.concurrent) };
        match self.entries.insert(name, entry) {
            None => Ok(()),
            Some(_) => Err(SetupError::Twice(name)),
        }
    }

    /// The plugin of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&dyn Plugin> {
        self.entries.get(name).map(|entry| entry.plugin.as_ref())
    }

    /// Lets a plugin handle a request within its limits. The caller has passed the gate.
    pub(crate) async fn call(
        &self,
        plugin: &dyn Plugin,
        request: &PluginRequest,
        caller: Caller<'_>,
    ) -> Result<PluginResponse, PluginError> {
        let name = plugin.name();
        let label = PluginLabel { plugin: name };
        let start = Instant::now();
        let running = self.metrics.running.get_or_create_owned(&label);
        running.inc();
        let result = match self.entries.get(name) {
            Some(entry) => bounded(name, entry, request, caller).await,
            None => Err(PluginError::Internal(format!("plugin {name} is not registered"))),
        };
        running.dec();
        self.metrics.seconds.get_or_create(&label).observe(start.elapsed().as_secs_f64());
        let outcome = result.as_ref().map_or_else(|error| error.parts().1, |_| "ok");
        self.metrics.calls.get_or_create(&OutcomeLabel { plugin: name, outcome }).inc();
        result
    }
}

async fn bounded(
    name: &'static str,
    entry: &Entry,
    request: &PluginRequest,
    caller: Caller<'_>,
) -> Result<PluginResponse, PluginError> {
    let limits = &entry.limits;
    let large = |what, seen, limit| PluginError::TooLarge { what, plugin: name, seen, limit };
    if request.body.len() > limits.request_bytes {
        return Err(large("request", request.body.len(), limits.request_bytes));
    }
    let _slot = entry.slots.try_acquire().map_err(|_| PluginError::Busy(name))?;
    let time = Duration::from_secs(limits.timeout_seconds);
    let response = tokio::time::timeout(time, entry.plugin.handle(request, caller))
        .await
        .map_err(|_| PluginError::Timeout { plugin: name, seconds: limits.timeout_seconds })??;
    if response.body.len() > limits.response_bytes {
        return Err(large("answer", response.body.len(), limits.response_bytes));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::Access;
    use crate::plugins::request::tests::request;
    use async_trait::async_trait;
    use axum::http::Method;
    use kata_cc_attestation_service::store::{Store, StoreKey};

    /// Answers with as many bytes as the path says, or never.
    #[derive(Debug)]
    struct Made;

    #[async_trait]
    impl Plugin for Made {
        fn name(&self) -> &'static str {
            "made"
        }

        fn validate_auth(&self, _: &PluginRequest) -> Result<Access, PluginError> {
            Ok(Access::Anyone)
        }

        fn needs_encryption(&self, _: &PluginRequest) -> bool {
            false
        }

        async fn handle(
            &self,
            request: &PluginRequest,
            _: Caller<'_>,
        ) -> Result<PluginResponse, PluginError> {
            if request.path[0] == "never" {
                std::future::pending::<()>().await;
            }
            Ok(PluginResponse::ok("text/plain", vec![0; request.path[0].parse().unwrap()]))
        }
    }

    async fn plugins(limits: LimitsConfig) -> (Plugins, Registry) {
        let store = Arc::new(Store::in_memory(StoreKey::ephemeral()).await.unwrap());
        let context = Context { base: PathBuf::new(), store, token: None };
        let metrics = PluginMetrics::new();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut plugins = Plugins::load(&[], &context, metrics).await.unwrap();
        plugins.add(Arc::new(Made), limits).unwrap();
        (plugins, registry)
    }

    #[tokio::test]
    async fn limits_hold_and_are_counted() {
        let limits = LimitsConfig { timeout_seconds: 1, concurrent: 1, request_bytes: 4, response_bytes: 8 };
        let (plugins, registry) = plugins(limits).await;
        let made = plugins.get("made").unwrap();
        let call = async |target: &str, body: &[u8]| {
            plugins.call(made, &request(Method::GET, target, body), Caller::Anyone).await
        };
        assert_eq!(call("8", b"four").await.unwrap().body.len(), 8);
        let error = call("8", b"fives").await.unwrap_err();
        assert_eq!(error.parts().0.as_u16(), 413);
        assert!(error.to_string().contains("request has 5 bytes, plugin made takes at most 4"), "{error}");
        let error = call("9", b"").await.unwrap_err();
        assert_eq!(error.parts().0.as_u16(), 502);
        let (slow, second) = tokio::join!(call("never", b""), call("1", b""));
        assert_eq!(slow.unwrap_err(), PluginError::Timeout { plugin: "made", seconds: 1 });
        assert_eq!(second.unwrap_err(), PluginError::Busy("made"));
        // The slot is free again.
        call("1", b"").await.unwrap();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "kbs_plugin_calls_total{plugin=\"made\",outcome=\"ok\"} 2",
            "kbs_plugin_calls_total{plugin=\"made\",outcome=\"PluginTimeout\"} 1",
            "kbs_plugin_calls_total{plugin=\"made\",outcome=\"PluginBusy\"} 1",
            "kbs_plugin_running{plugin=\"made\"} 0",
            "kbs_plugin_seconds_count{plugin=\"made\"} 6",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[tokio::test]
    async fn entries_are_checked() {
        let (mut plugins, _) = plugins(LimitsConfig::default()).await;
        assert!(matches!(
            plugins.add(Arc::new(Made), LimitsConfig::default()),
            Err(SetupError::Twice("made"))
        ));
        for text in [
            "name = \"colour\"",
            "name = \"resource\"\ncolour = 1",
            "name = \"resource\"\nlimits = { colour = 1 }",
        ] {
            assert!(toml::from_str::<PluginConfig>(text).is_err(), "{text}");
        }
        let context = Context {
            base: PathBuf::new(),
            store: Arc::new(Store::in_memory(StoreKey::ephemeral()).await.unwrap()),
            token: None,
        };
        for (text, why) in [
            ("limits = { timeout_seconds = 0 }", "timeout_seconds must be 1 to 300"),
            ("limits = { concurrent = 0 }", "concurrent must be"),
            ("limits = { request_bytes = 100000000 }", "request_bytes"),
            ("storage_backend_type = \"aws\"", "must be kvstorage"),
        ] {
            let config = toml::from_str(&format!("name = \"resource\"\n{text}")).unwrap();
            let error = Plugins::load(&[config], &context, PluginMetrics::new()).await.unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
