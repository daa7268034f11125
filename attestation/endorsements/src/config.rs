//! The `[endorsements]` section of the key broker's and the attestation service's configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::cache::Cache;
use crate::endorser::Endorser;
use crate::http::{HttpLimits, HttpSource, Retry};
use crate::kds::{AMD_KDS, Kds};
use crate::offline::Folder;
use crate::pcs::{INTEL_PCS, Pcs};
use crate::source::Source;

/// Why the configuration does not go.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not an address of a service or proxy.
    #[error("address {address} cannot be used: {why}")]
    Address {
        /// As configured.
        address: String,
        /// Why not.
        why: String,
    },
    /// No TLS.
    #[error("TLS cannot be set up: {why}")]
    Tls {
        /// Why not.
        why: String,
    },
    /// The cache's folder cannot be used.
    #[error("endorsements.cache_dir {path} cannot be used: {source}")]
    CacheDir {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The offline folder cannot be used.
    #[error("endorsements.offline_dir: {0}")]
    OfflineDir(#[from] crate::bundle::BundleError),
    /// A configuration file cannot be read or is not understood.
    #[error("{path}: {why}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A value that does not go, or two that contradict each other.
    #[error("endorsements: {0}")]
    Value(String),
}

/// `[endorsements]`: where certificates, revocation lists and collateral come from that evidence does not bring.
/// Without this section nothing is looked up and no service is asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EndorsementsConfig {
    /// Folder or OCI layout of documents that somebody brought; read, never written.
    pub offline_dir: Option<PathBuf>,
    /// Folder for what services answered; made when absent. In memory alone without it.
    pub cache_dir: Option<PathBuf>,
    /// AMD's key distribution service.
    pub kds: KdsConfig,
    /// Intel's provisioning certification service, or a PCCS.
    pub pccs: PcsConfig,
    /// No service is asked, whatever else stands here.
    pub air_gapped: bool,
    /// HTTP proxy for all services; without it the environment's rules hold (`HTTPS_PROXY`, `NO_PROXY`).
    pub proxy: Option<String>,
    /// PEM of the authorities that vouch for the services' TLS; those of the system without it. What the services
    /// send is verified by its own signatures, not by this.
    pub ca_file: Option<PathBuf>,
    /// Get AMD's revocation lists.
    pub fetch_crl: bool,
    /// Seconds that one look-up may take altogether, retries included.
    pub deadline_seconds: u32,
}

impl Default for EndorsementsConfig {
    fn default() -> Self {
        Self {
            offline_dir: None,
            cache_dir: None,
            kds: KdsConfig::default(),
            pccs: PcsConfig::default(),
            air_gapped: false,
            proxy: None,
            ca_file: None,
            fetch_crl: true,
            deadline_seconds: 20,
        }
    }
}

/// `endorsements.kds`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KdsConfig {
    /// Whether it is asked.
    pub enabled: bool,
    /// Address up to `/vcek/v1/…`; a caching proxy with the same interface may stand there.
    pub url: String,
}

impl Default for KdsConfig {
    fn default() -> Self {
        Self { enabled: false, url: AMD_KDS.to_owned() }
    }
}

/// `endorsements.pccs`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PcsConfig {
    /// Whether it is asked.
    pub enabled: bool,
    /// Address up to `/tdx/certification/v4/…`.
    pub url: String,
}

impl Default for PcsConfig {
    fn default() -> Self {
        Self { enabled: false, url: INTEL_PCS.to_owned() }
    }
}

impl EndorsementsConfig {
    /// Reads a file that holds the members of the section; relative paths start from its folder.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |why: String| ConfigError::File { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let config: Self = toml::from_str(&text).map_err(|error| failed(error.to_string()))?;
        Ok(config.resolve(path.parent().unwrap_or(Path::new(""))))
    }

    /// Reads the section `[endorsements]` of a service's configuration file, or a file that holds its members alone, whichever it is;
    /// relative paths start from its folder.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub fn read_section(path: &Path) -> Result<Self, ConfigError> {
        let failed = |why: String| ConfigError::File { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let mut file: toml::Table = toml::from_str(&text).map_err(|error| failed(error.to_string()))?;
        let members = match file.remove("endorsements") {
            Some(section) => section,
            None => toml::Value::Table(file),
        };
        let config: Self = members.try_into().map_err(|error: toml::de::Error| failed(error.to_string()))?;
        Ok(config.resolve(path.parent().unwrap_or(Path::new(""))))
    }

    /// Makes relative paths relative to `base`, the folder of the configuration file.
    #[must_use]
    pub fn resolve(mut self, base: &Path) -> Self {
        for path in [&mut self.offline_dir, &mut self.cache_dir, &mut self.ca_file].into_iter().flatten() {
            *path = base.join(&*path);
        }
        self
    }

    /// Opens the folders and makes the clients. Asks no service.
    ///
    /// # Errors
    /// [`ConfigError`] says which value does not go.
    pub fn build(&self) -> Result<Endorser, ConfigError> {
        self.build_with(HttpLimits::default(), Retry::default())
    }

    /// As [`Self::build`], with other limits than the usual ones.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_with(&self, limits: HttpLimits, retry: Retry) -> Result<Endorser, ConfigError> {
        if !(1..=300).contains(&self.deadline_seconds) {
            return Err(ConfigError::Value(format!(
                "deadline_seconds is {}, expected 1 to 300",
                self.deadline_seconds
            )));
        }
        let cache = Cache::new(self.cache_dir.as_deref()).map_err(|source| ConfigError::CacheDir {
            path: self.cache_dir.clone().unwrap_or_default(),
            source,
        })?;
        let mut local: Vec<Box<dyn Source>> = Vec::new();
        if let Some(folder) = &self.offline_dir {
            local.push(Box::new(Folder::open(folder)?));
        }
        let mut remote: Vec<Box<dyn Source>> = Vec::new();
        let http = |name, base: &str| {
            HttpSource::new(name, base, self.proxy.as_deref(), self.ca_file.as_deref(), limits, retry)
        };
        if self.kds.enabled && !self.air_gapped {
            remote.push(Box::new(Kds::new(http("AMD's KDS", &self.kds.url)?)));
        }
        if self.pccs.enabled && !self.air_gapped {
            let root_crl = Pcs::root_crl_base(&self.pccs.url)
                .map(|base| http("Intel's certificates", base))
                .transpose()?;
            remote.push(Box::new(Pcs::new(http("Intel's PCS", &self.pccs.url)?, root_crl)));
        }
        let deadline = Duration::from_secs(u64::from(self.deadline_seconds));
        Ok(Endorser::new(cache, local, remote, deadline, self.fetch_crl))
    }
}
