//! Credentials for registries.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

/// Credentials as Docker's `config.json` and containers' `auth.json` hold them.
#[derive(Clone, Default, Deserialize)]
pub struct DockerAuthConfig {
    /// Per registry host (a scheme and a path are ignored).
    #[serde(default)]
    pub auths: BTreeMap<String, DockerAuth>,
}

/// Credentials for one registry.
#[derive(Clone, Default, Deserialize)]
pub struct DockerAuth {
    /// Base64 of `user:password`.
    #[serde(default)]
    pub auth: Option<String>,
    /// User, where `auth` is absent.
    #[serde(default)]
    pub username: Option<String>,
    /// Password, where `auth` is absent.
    #[serde(default)]
    pub password: Option<String>,
    /// A bearer token used as it is.
    #[serde(default)]
    pub registrytoken: Option<String>,
}

impl DockerAuthConfig {
    /// Reads one; `None` when it is none. The parser's error is not passed on: it could repeat credentials.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

impl fmt::Debug for DockerAuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.auths.keys()).finish()
    }
}

impl fmt::Debug for DockerAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DockerAuth(redacted)")
    }
}

impl DockerAuthConfig {
    pub(super) fn for_registry(&self, registry: &str) -> RegistryAuth {
        let host = |key: &str| {
            let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
            rest.split('/').next().unwrap_or(rest).to_owned()
        };
        let same = |key: &str| {
            let host = host(key);
            host == registry || (host == "index.docker.io" && registry == "docker.io")
        };
        let Some((_, entry)) = self.auths.iter().find(|(key, _)| same(key)) else {
            return RegistryAuth::Anonymous;
        };
        if let Some(token) = &entry.registrytoken {
            return RegistryAuth::Bearer(token.clone());
        }
        if let (Some(user), Some(password)) = (&entry.username, &entry.password) {
            return RegistryAuth::Basic(user.clone(), password.clone());
        }
        let decoded = entry.auth.as_ref().and_then(|text| STANDARD.decode(text.trim()).ok());
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        match text.as_deref().and_then(|text| text.split_once(':')) {
            Some((user, password)) => RegistryAuth::Basic(user.to_owned(), password.to_owned()),
            None => RegistryAuth::Anonymous,
        }
    }
}
