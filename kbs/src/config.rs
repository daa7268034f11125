//! The configuration file: TOML or JSON, with Trustee's names where Trustee has them. Unknown members are refused.
//!
//! Relative paths are relative to the folder of the file. Nothing is open by default: TLS is required unless
//! `insecure_http` says otherwise, no administrator is let in, simulated and sample evidence is refused.
//! How a file becomes a [`Config`]: [`load`]. Every member is in `docs/operator-guide/configuration.md`; a test compares.

mod administration;
#[cfg(test)]
mod documented;
mod load;
mod operation;
mod storage;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kata_cc_attestation_service::follow::PolicySourceConfig;
use kata_cc_attestation_service::trusted::ReferenceValuesConfig;
use kata_cc_daemon::telemetry::{Log, Telemetry};
use serde::Deserialize;
use thiserror::Error;

use crate::plugins::PluginConfig;

pub(crate) use administration::{
    Admin, AuthorizationMode, BuiltinAcl, CertificateIdentity, IdentityProvider,
};
pub(crate) use operation::{LimitsConfig, PolicyFiles, ProtocolConfig};
pub(crate) use storage::{KeyWrappedBy, StorageBackend, StorageType, Tls};

/// Why the configuration was refused.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {path} cannot be read: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file, or a variable of the environment that overrides it, is no configuration.
    #[error("configuration {from} is not understood: {why}")]
    Parse {
        /// Which.
        from: String,
        /// Why, with the nearest name that is known where one is not.
        why: String,
    },
    /// A value that does not go.
    #[error("configuration: {0}")]
    Value(String),
}

/// All of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) http_server: HttpServer,
    pub(crate) attestation_token: AttestationToken,
    pub(crate) attestation_service: AttestationServiceConfig,
    pub(crate) attestation: AttestationConfig,
    /// Where endorsements come from that evidence does not bring; without it nothing is looked up.
    pub(crate) endorsements: Option<kata_cc_endorsements::EndorsementsConfig>,
    pub(crate) admin: Admin,
    pub(crate) storage_backend: StorageBackend,
    pub(crate) plugins: Vec<PluginConfig>,
    pub(crate) protocol: ProtocolConfig,
    pub(crate) limits: LimitsConfig,
    pub(crate) policies: PolicyFiles,
    /// Policy bundle that is followed.
    pub(crate) policy_source: Option<PolicySourceConfig>,
    pub(crate) telemetry: Telemetry,
    pub(crate) log: Log,
    /// Folder that relative paths start from.
    #[serde(skip)]
    pub(crate) base: PathBuf,
}

/// `[http_server]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HttpServer {
    /// Addresses to listen on.
    pub(crate) sockets: Vec<SocketAddr>,
    /// Plain HTTP. Secrets stay encrypted to the guest, but admin tokens and uploads do not.
    pub(crate) insecure_http: bool,
    /// PEM, PKCS#8 or SEC1.
    pub(crate) private_key: Option<PathBuf>,
    /// PEM, leaf first.
    pub(crate) certificate: Option<PathBuf>,
    /// Ours: PEM certificates of the authority that issues administrators' certificates. Callers without one are let in, and
    /// are no administrators by it.
    pub(crate) client_ca: Option<PathBuf>,
    /// Largest request in MiB.
    pub(crate) payload_request_size: u32,
    /// Ours: address under which others reach it, for the metadata of tokens.
    pub(crate) public_url: Option<String>,
    /// Ours: balancers (addresses, networks) that say who is behind them by the PROXY protocol.
    pub(crate) trusted_proxies: Vec<String>,
}

impl HttpServer {
    /// Networks of the balancers.
    pub(crate) fn proxies(&self) -> Result<Vec<ipnet::IpNet>, ConfigError> {
        let networks = kata_cc_attestation_service::serve::networks(&self.trusted_proxies);
        networks.map_err(|why| ConfigError::Value(format!("http_server.{why}")))
    }
}

impl Default for HttpServer {
    fn default() -> Self {
        Self {
            sockets: vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
            insecure_http: false,
            private_key: None,
            certificate: None,
            client_ca: None,
            payload_request_size: 2,
            public_url: None,
            trusted_proxies: Vec::new(),
        }
    }
}

/// `[attestation_token]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AttestationToken {
    /// JWKS files (paths or `file://`) whose tokens are trusted besides our own.
    pub(crate) trusted_jwk_sets: Vec<String>,
    /// JSON pointers to the guest's key in the claims, tried before the known ones.
    pub(crate) extra_teekey_paths: Vec<String>,
}

/// `[attestation_service]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AttestationServiceConfig {
    /// `coco_as_builtin`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Minutes that a session lives.
    pub(crate) timeout: u32,
    pub(crate) attestation_token_broker: TokenBrokerConfig,
    /// Ours.
    pub(crate) reference_values: ReferenceValuesConfig,
}

impl Default for AttestationServiceConfig {
    fn default() -> Self {
        Self {
            kind: "coco_as_builtin".to_owned(),
            timeout: 5,
            attestation_token_broker: TokenBrokerConfig::default(),
            reference_values: ReferenceValuesConfig::default(),
        }
    }
}

/// `[attestation_service.attestation_token_broker]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TokenBrokerConfig {
    /// Minutes that a token is valid.
    pub(crate) duration_min: u32,
    /// `iss`.
    pub(crate) issuer_name: String,
    pub(crate) signer: Signer,
}

impl Default for TokenBrokerConfig {
    fn default() -> Self {
        Self {
            duration_min: 5,
            issuer_name: kata_cc_attestation_service::ear::DEFAULT_ISSUER.to_owned(),
            signer: Signer::default(),
        }
    }
}

/// `[attestation_service.attestation_token_broker.signer]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Signer {
    /// PKCS#8 PEM; made at the first start when it is absent.
    pub(crate) key_path: PathBuf,
    /// Ours: `ES256`, `ES384` or `EdDSA`, for the key that is made.
    pub(crate) algorithm: String,
}

impl Default for Signer {
    fn default() -> Self {
        Self { key_path: "token.key".into(), algorithm: "ES256".to_owned() }
    }
}

/// `[attestation]`, ours: which evidence is accepted besides that of hardware.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AttestationConfig {
    /// Trustee's sample TEE, which anybody can make up.
    pub(crate) allow_sample: bool,
    /// Highest VMPL that a report may come from.
    pub(crate) max_vmpl: u32,
    /// Demands on SNP evidence.
    pub(crate) snp: kata_cc_verifier::SnpSettings,
    /// Demands on TDX evidence.
    pub(crate) tdx: kata_cc_verifier::TdxSettings,
    pub(crate) simulated: Option<Simulated>,
}

/// `[attestation.simulated]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Simulated {
    /// Roots of simulated platforms (PEM, `roots.pem`). Whoever has their keys can make up any evidence.
    pub(crate) trust_anchor: PathBuf,
}

impl Config {
    /// Reads a file, and what the environment overrides of it.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_with(path, std::env::vars())
    }

    fn read_with(
        path: &Path,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config: Self = load::load(path, &text, environment)?;
        config.base = path.parent().map(Path::to_owned).unwrap_or_default();
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |why: &str| Err(ConfigError::Value(why.to_owned()));
        let http = &self.http_server;
        if http.sockets.is_empty() {
            return refuse("http_server.sockets is empty, name at least one address");
        }
        if !http.insecure_http && (http.private_key.is_none() || http.certificate.is_none()) {
            return refuse("http_server needs private_key and certificate, or insecure_http = true");
        }
        if http.payload_request_size == 0 || http.payload_request_size > 64 {
            return refuse("http_server.payload_request_size must be 1 to 64 (MiB)");
        }
        if self.attestation_service.kind != "coco_as_builtin" {
            return refuse("attestation_service.type must be coco_as_builtin, others are not supported");
        }
        let minutes = 1..=24 * 60;
        if !minutes.contains(&self.attestation_service.timeout)
            || !minutes.contains(&self.attestation_service.attestation_token_broker.duration_min)
        {
            return refuse("timeout and duration_min must be 1 to 1440 (minutes)");
        }
        if !matches!(
            self.attestation_service.attestation_token_broker.signer.algorithm.as_str(),
            "ES256" | "ES384" | "EdDSA"
        ) {
            return refuse("signer.algorithm must be ES256, ES384 or EdDSA");
        }
        http.proxies()?;
        if let Some(source) = &self.policy_source {
            source.check().map_err(|why| ConfigError::Value(why.to_string()))?;
            if self.policies.resource.is_some() || !self.policies.attestation.is_empty() {
                return refuse("policies come from [policies] or from [policy_source], not from both");
            }
        }
        self.protocol.check()?;
        self.limits.check()?;
        self.storage_backend.check().map_err(|why| ConfigError::Value(why.to_owned()))?;
        self.admin.check(http.client_ca.is_some())
    }

    /// A path of the configuration, as it is to be opened.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// Contents of a path or `file://` address of the configuration.
    pub(crate) fn read_uri(&self, uri: &str) -> Result<Vec<u8>, ConfigError> {
        let path = uri.strip_prefix("file://").unwrap_or(uri);
        if path.contains("://") {
            return Err(ConfigError::Value(format!("{uri}: only files are read")));
        }
        let path = self.path(Path::new(path));
        std::fs::read(&path).map_err(|source| ConfigError::Read { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kbs.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn nothing_is_open_by_default() {
        let error = read("").unwrap_err().to_string();
        assert!(error.contains("needs private_key and certificate"), "{error}");
        let config = read("[http_server]\ninsecure_http = true").unwrap();
        assert_eq!(config.admin.authorization_mode, AuthorizationMode::DenyAll);
        assert!(!config.attestation.allow_sample && config.attestation.simulated.is_none());
    }

    #[test]
    fn trustees_names_are_read_and_others_refused() {
        let text = r#"
            [http_server]
            sockets = ["0.0.0.0:8443"]
            private_key = "k"
            certificate = "c"
            [attestation_service]
            type = "coco_as_builtin"
            timeout = 10
            [attestation_service.attestation_token_broker]
            duration_min = 7
            signer = { key_path = "t.key" }
            [admin]
            authorization_mode = "AuthenticatedAuthorization"
            [admin.authentication.bearer_jwt]
            identity_providers = [{ public_key_uri = "file:///x.pub" }]
            [admin.authorization.regex_acl]
            acls = [{ role = "admin", allowed_endpoints = "^/kbs/.+$" }]
        "#;
        assert_eq!(read(text).unwrap().attestation_service.timeout, 10);
        assert!(read(&format!("{text}\n[colour]")).is_err());
        assert!(read(&text.replace("\"0.0.0.0:8443\"", "")).is_err());
        assert!(read(&text.replace("coco_as_builtin", "intel_ta")).is_err());
        let postgres = r#"
            [storage_backend]
            storage_type = "Postgres"
            kept_versions = 3
            backends.postgres = { host = "db", port = 5433, db = "trustee", username = "kbs", password = "secret" }
        "#;
        let storage = read(&format!("{text}{postgres}")).unwrap().storage_backend;
        assert_eq!((storage.storage_type, storage.backends.postgres.port), (StorageType::Postgres, 5433));
        assert!(!format!("{storage:?}").contains("secret"));
        assert!(
            read(&format!("{text}{}", postgres.replace("kept_versions = 3", "kept_versions = 0"))).is_err()
        );
    }
}
