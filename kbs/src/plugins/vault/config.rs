//! `[[plugins]]` `name = "vault"`: where the server is, how to log in, and which engines guests reach.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::plugins::registry::{LimitsConfig, SetupError};

/// Name of the plugin.
pub(crate) const NAME: &str = "vault";

/// The entry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VaultConfig {
    /// `https://host[:port]`. Plain HTTP is refused: token and secrets would be in clear.
    pub(crate) address: String,
    /// PEM files; nothing else is trusted.
    pub(crate) ca_certificates: Vec<PathBuf>,
    /// `X-Vault-Namespace`.
    #[serde(default)]
    pub(crate) namespace: Option<String>,
    pub(crate) auth: AuthConfig,
    /// Key-value engines. The name is the second segment of a path.
    #[serde(default)]
    pub(crate) kv: BTreeMap<String, KvConfig>,
    /// Transit engines. The name is the second segment of a path.
    #[serde(default)]
    pub(crate) transit: BTreeMap<String, TransitConfig>,
    /// Seconds to connect.
    #[serde(default = "connect_seconds")]
    pub(crate) connect_seconds: u64,
    /// Seconds that one request to the server may take.
    #[serde(default = "request_seconds")]
    pub(crate) request_seconds: u64,
    #[serde(default)]
    pub(crate) limits: LimitsConfig,
}

fn connect_seconds() -> u64 {
    5
}

fn request_seconds() -> u64 {
    10
}

/// How the broker logs in.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum AuthConfig {
    /// A token from a file (mode 0600), read again when the server refuses it. It is renewed while it can be.
    Token {
        /// The file.
        token_file: PathBuf,
    },
    /// AppRole.
    AppRole {
        /// File with the role's id.
        role_id_file: PathBuf,
        /// File with the secret id (mode 0600), read at each login.
        secret_id_file: PathBuf,
        /// Where the method is mounted.
        #[serde(default = "approle")]
        mount: String,
    },
}

fn approle() -> String {
    "approle".to_owned()
}

/// A key-value engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KvConfig {
    /// Where it is mounted.
    pub(crate) mount: String,
    /// 1 or 2.
    pub(crate) version: u8,
    /// Put before the path that a guest asks for, so that it reaches nothing else of the engine.
    #[serde(default)]
    pub(crate) prefix: String,
}

/// A transit engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TransitConfig {
    /// Where it is mounted.
    pub(crate) mount: String,
    /// Keys that guests may use through the broker.
    pub(crate) keys: Vec<String>,
}

pub(super) fn value(why: impl Into<String>) -> SetupError {
    SetupError::Value { plugin: NAME, why: why.into() }
}

/// `a/b/c` of what a path may hold.
fn is_path(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    text.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed))
}

impl VaultConfig {
    /// Checks what needs no server.
    pub(crate) fn check(&self) -> Result<(), SetupError> {
        if !self.address.starts_with("https://") {
            return Err(value(format!("address must be https://host[:port], seen {:?}", self.address)));
        }
        if self.ca_certificates.is_empty() {
            return Err(value("ca_certificates is empty: name the certificate of the server or of its CA"));
        }
        for seconds in [self.connect_seconds, self.request_seconds] {
            if !(1..=120).contains(&seconds) {
                return Err(value("connect_seconds and request_seconds must be 1 to 120"));
            }
        }
        if self.namespace.as_deref().is_some_and(|namespace| !is_path(namespace.trim_end_matches('/'))) {
            return Err(value("namespace must be of [a-zA-Z0-9_.-/]"));
        }
        if let AuthConfig::AppRole { mount, .. } = &self.auth
            && !is_path(mount)
        {
            return Err(value("auth.mount must be a path of [a-zA-Z0-9_.-/]"));
        }
        for (name, kv) in &self.kv {
            if !is_path(&kv.mount) || !(kv.prefix.is_empty() || is_path(&kv.prefix)) {
                return Err(value(format!("kv.{name}: mount and prefix must be paths of [a-zA-Z0-9_.-/]")));
            }
            if !matches!(kv.version, 1 | 2) {
                return Err(value(format!("kv.{name}: version must be 1 or 2")));
            }
        }
        for (name, transit) in &self.transit {
            if !is_path(&transit.mount) {
                return Err(value(format!("transit.{name}: mount must be a path of [a-zA-Z0-9_.-/]")));
            }
            if transit.keys.is_empty() {
                return Err(value(format!("transit.{name}: keys is empty, name those that guests may use")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "address = \"https://v:8200\"\nca_certificates = [\"ca.pem\"]\n\
        auth = { method = \"token\", token_file = \"t\" }\n";

    #[test]
    fn what_is_wrong_is_told() {
        let read = |text: &str| toml::from_str::<VaultConfig>(text).unwrap().check();
        read(GOOD).unwrap();
        for (text, why) in [
            (GOOD.replace("https", "http"), "must be https"),
            (GOOD.replace("\"ca.pem\"", ""), "ca_certificates is empty"),
            (format!("{GOOD}request_seconds = 0"), "request_seconds"),
            (format!("{GOOD}namespace = \"a b\""), "namespace"),
            (format!("{GOOD}kv = {{ a = {{ mount = \"../sys\", version = 1 }} }}"), "kv.a: mount"),
            (format!("{GOOD}kv = {{ a = {{ mount = \"kv\", version = 3 }} }}"), "version must be 1 or 2"),
            (format!("{GOOD}transit = {{ a = {{ mount = \"t\", keys = [] }} }}"), "keys is empty"),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        for text in
            [format!("{GOOD}token = \"hvs.x\""), GOOD.replace("method = \"token\"", "method = \"colour\"")]
        {
            assert!(toml::from_str::<VaultConfig>(&text).is_err(), "{text}");
        }
        let approle = GOOD.replace(
            "method = \"token\", token_file = \"t\"",
            "method = \"approle\", role_id_file = \"r\", secret_id_file = \"s\"",
        );
        read(&approle).unwrap();
    }
}
