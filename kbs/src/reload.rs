//! Taking a changed configuration into use without a restart, on SIGHUP.
//!
//! What can be changed: TLS certificate, key and the authority of administrators' certificates; keys, identities and roles of administrators;
//! limits; versions of the protocol; the log's level; policies from files. All of it is read and checked first, then exchanged: a
//! configuration that is no good changes nothing, and the log says so. The rest (addresses, store, keys of tokens, trust anchors)
//! needs a restart, and is told when it differs.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use kata_cc_attestation_service::appraisal;
use kata_cc_store::audit::{Kind, Record};
use tracing::{error, info, warn};

use crate::admin::AdminGate;
use crate::config::{AttestationServiceConfig, Config, LimitsConfig, PolicyFiles, ProtocolConfig};
use crate::policy;
use crate::server::{self, Tls};
use crate::state::Kbs;
use kata_cc_daemon::telemetry::{self, Telemeter};

/// Who sets what is in files.
const FILE: &str = "configuration file";

/// Settings that handlers read.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) protocol: ProtocolConfig,
    pub(crate) limits: LimitsConfig,
}

impl Settings {
    /// Those of a configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self { protocol: config.protocol.clone(), limits: config.limits.clone() }
    }
}

/// Reads the configuration anew and takes it into use; a failure leaves everything as it is.
pub(crate) async fn reload(path: &Path, running: &Config, kbs: &Kbs, tls: Option<&Tls>, log: &Telemeter) {
    match try_reload(path, running, kbs, tls, log).await {
        Ok(()) => {
            kbs.metrics.reload("ok");
            info!("configuration was taken into use");
        }
        Err(why) => {
            kbs.metrics.reload("refused");
            error!(why = format!("{why:#}"), "new configuration was refused, the old one stays in use");
        }
    }
}

async fn try_reload(
    path: &Path,
    running: &Config,
    kbs: &Kbs,
    tls: Option<&Tls>,
    log: &Telemeter,
) -> anyhow::Result<()> {
    let config = Config::read(path)?;
    let filter = telemetry::filter(&config.log)?;
    let gate = AdminGate::new(&config)?;
    let credentials = server::credentials(&config)?;
    anyhow::ensure!(
        tls.is_some() == credentials.is_some(),
        "http_server.insecure_http cannot be changed without a restart"
    );
    if let (Some(tls), Some(credentials)) = (tls, &credentials) {
        anyhow::ensure!(
            tls.fits(credentials),
            "whether there is a http_server.client_ca cannot be changed without a restart"
        );
    }
    let sources = config.attestation_service.reference_values.sources(&config.base)?;
    let policies = Policies::read(&config)?;
    policies.check(kbs)?;
    gate.warm().await;
    // Nothing but the store can fail from here on.
    policies.put(kbs).await?;
    if let (Some(tls), Some(credentials)) = (tls, credentials) {
        tls.exchange(credentials);
    }
    kbs.attestation_api.sources.store(Arc::new(sources));
    kbs.gate.store(Arc::new(gate));
    kbs.requests.set_rate(config.limits.requests());
    kbs.failures.set_rate(config.limits.failures());
    kbs.settings.store(Arc::new(Settings::of(&config)));
    log.set_filter(filter);
    if let Some(follower) = kbs.follower() {
        follower.wake();
    }
    for name in restart_needed(running, &config) {
        warn!(name, "this part of the configuration differs, but is taken into use by a restart only");
    }
    Ok(())
}

/// Tables that differ and cannot be exchanged.
fn restart_needed(old: &Config, new: &Config) -> Vec<&'static str> {
    let mut names = Vec::new();
    let mut differs = |name, differs: bool| names.extend(differs.then_some(name));
    let (a, b) = (&old.http_server, &new.http_server);
    differs("http_server.sockets", a.sockets != b.sockets);
    differs("http_server.payload_request_size", a.payload_request_size != b.payload_request_size);
    let debug = |a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| format!("{a:?}") != format!("{b:?}");
    let (a, b) = (&old.attestation_service, &new.attestation_service);
    differs(
        "attestation_service",
        debug(&(a.timeout, &a.attestation_token_broker), &(b.timeout, &b.attestation_token_broker)),
    );
    let days = |service: &AttestationServiceConfig| service.reference_values.default_days;
    differs("attestation_service.reference_values.default_days", days(a) != days(b));
    differs("attestation_token", debug(&old.attestation_token, &new.attestation_token));
    differs("attestation", debug(&old.attestation, &new.attestation));
    differs("plugins", debug(&old.plugins, &new.plugins));
    differs("storage_backend", debug(&old.storage_backend, &new.storage_backend));
    differs("policy_source", old.policy_source != new.policy_source);
    differs("telemetry", debug(&old.telemetry, &new.telemetry));
    differs("log.format", old.log.format != new.log.format);
    names
}

/// Texts of the policies that are kept in files.
#[derive(Debug)]
pub(crate) struct Policies {
    resource: Option<String>,
    attestation: Vec<(String, String)>,
}

impl Policies {
    /// Reads them.
    pub(crate) fn read(config: &Config) -> anyhow::Result<Self> {
        let PolicyFiles { resource, attestation } = &config.policies;
        let read = |path: &Path| {
            let path = config.path(path);
            std::fs::read_to_string(&path).with_context(|| format!("policy {}", path.display()))
        };
        let resource = resource.as_deref().map(read).transpose()?;
        let texts = attestation.iter().map(|(id, path)| Ok((id.clone(), read(path)?)));
        Ok(Self { resource, attestation: texts.collect::<anyhow::Result<_>>()? })
    }

    /// Whether all of them compile.
    pub(crate) fn check(&self, kbs: &Kbs) -> anyhow::Result<()> {
        if let Some(text) = &self.resource {
            kbs.policy.compiles(text).context("[policies] resource")?;
        }
        for (id, text) in &self.attestation {
            appraisal::compile(id, text).with_context(|| format!("[policies] attestation {id}"))?;
        }
        Ok(())
    }

    /// Puts them into the store, where they differ from what is there.
    pub(crate) async fn put(&self, kbs: &Kbs) -> anyhow::Result<()> {
        if let Some(text) = &self.resource
            && kbs.policy.text().await?.0 != *text
        {
            let record = Record::new(Kind::Admin).who(FILE).verdict("done").reason("set resource policy");
            let record = record.resource(policy::NAME, None).policy(text.as_bytes());
            kbs.policy.set(text, FILE, record).await.context("[policies] resource")?;
            info!("resource policy was taken from its file");
        }
        for (id, text) in &self.attestation {
            let stored = kbs.service.policy(id).await;
            if !stored.is_ok_and(|(stored, _)| stored == *text) {
                let set = kbs.service.set_policy_by(id, text, FILE).await;
                set.with_context(|| format!("[policies] attestation {id}"))?;
                info!(id, "attestation policy was taken from its file");
            }
        }
        Ok(())
    }
}
