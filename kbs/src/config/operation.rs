//! How it runs: protocol versions, limits, policy files, log, traces. All of this is ours.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kata_cc_attestation_service::serve::Limits;
use kata_cc_kbs_protocol::ProtocolVersion;
use serde::Deserialize;

use super::ConfigError;
use crate::limits::Rate;

/// `[protocol]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ProtocolConfig {
    /// Versions that are spoken.
    pub(crate) versions: Vec<ProtocolVersion>,
    /// Answers keys for `RSA1_5`, the only kind that clients of 0.1.1 have. Their decryption can be made an oracle (Bleichenbacher) by
    /// whoever can send them answers and see whether they fail.
    pub(crate) allow_rsa1_5: bool,
}

impl Default for ProtocolConfig {
    fn default() -> Self {
        Self { versions: ProtocolVersion::ALL.to_vec(), allow_rsa1_5: false }
    }
}

impl ProtocolConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.versions.is_empty() {
            return Err(ConfigError::Value("protocol.versions is empty: nobody could attest".to_owned()));
        }
        Ok(())
    }
}

/// `[limits]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitsConfig {
    /// Requests that one address (of IPv6 the /64 network) regains each second; 0 switches the limit off.
    pub(crate) requests_per_second: f64,
    /// Requests of one address at once. A node's guests share one address.
    pub(crate) burst: u32,
    /// Connections at a time, of everybody.
    pub(crate) connections: u32,
    /// Connections of one address at a time. Guests behind one address (a node, a gateway) share them.
    pub(crate) connections_per_peer: u32,
    /// Refused administrators of one address until it is locked out.
    pub(crate) admin_failures: u32,
    /// Seconds in which one refusal is forgiven.
    pub(crate) admin_failure_seconds: u32,
    /// Most bytes of a resource.
    pub(crate) resource_size: u64,
    /// The same by repository, where it differs.
    pub(crate) resource_sizes: BTreeMap<String, u64>,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            requests_per_second: 500.0,
            burst: 2000,
            connections: 4096,
            connections_per_peer: 256,
            admin_failures: 10,
            admin_failure_seconds: 6,
            resource_size: 1 << 20,
            resource_sizes: BTreeMap::new(),
        }
    }
}

impl LimitsConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |why: &str| Err(ConfigError::Value(why.to_owned()));
        if !(0.0..=1e6).contains(&self.requests_per_second) {
            return refuse("limits.requests_per_second must be 0 (off) to 1000000");
        }
        if self.connections == 0 || self.connections_per_peer == 0 {
            return refuse("limits.connections and connections_per_peer must be at least 1");
        }
        if self.burst == 0 || self.admin_failures == 0 || self.admin_failure_seconds == 0 {
            return refuse("limits.burst, admin_failures and admin_failure_seconds must be at least 1");
        }
        Ok(())
    }

    /// Bounds of the server, behind balancers that say who is behind them.
    pub(crate) fn server(&self, trusted_proxies: Vec<ipnet::IpNet>) -> Limits {
        let (connections, per_peer) = (self.connections as usize, self.connections_per_peer as usize);
        Limits { connections, per_peer, trusted_proxies, ..Limits::default() }
    }

    /// Budget of requests.
    pub(crate) fn requests(&self) -> Rate {
        Rate { per_second: self.requests_per_second, burst: f64::from(self.burst) }
    }

    /// Budget of refused administrators.
    pub(crate) fn failures(&self) -> Rate {
        Rate {
            per_second: 1.0 / f64::from(self.admin_failure_seconds),
            burst: f64::from(self.admin_failures),
        }
    }

    /// Most bytes of a resource of `repository`, and the setting that says so.
    pub(crate) fn resource(&self, repository: &str) -> (u64, String) {
        match self.resource_sizes.get(repository) {
            Some(limit) => (*limit, format!("limits.resource_sizes.{repository}")),
            None => (self.resource_size, "limits.resource_size".to_owned()),
        }
    }
}

/// `[policies]`: files whose texts are put into the store at the start and at each reload, where they differ.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PolicyFiles {
    /// The resource policy.
    pub(crate) resource: Option<PathBuf>,
    /// Attestation policies by id, e.g. `default_cpu`.
    pub(crate) attestation: BTreeMap<String, PathBuf>,
}
