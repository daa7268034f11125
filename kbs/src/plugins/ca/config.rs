//! `[[plugins]]` `name = "ca"`: key, certificate, what a guest's certificate may say and how long.

use std::path::PathBuf;

use serde::Deserialize;

use super::san::Template;
use crate::plugins::registry::{LimitsConfig, SetupError};

/// Name of the plugin.
pub(crate) const NAME: &str = "ca";
/// Where a token may name the digest of another key than `tee-pubkey`.
const KEY_DIGEST: &str =
    "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/certificate-key-sha256";

/// The entry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CaConfig {
    /// Certificate of the authority, PEM, followed by those above it. Made at the first start when it is absent.
    #[serde(default = "certificate_path")]
    pub(crate) certificate_path: PathBuf,
    /// Its key: PKCS#8 PEM of P-256 or P-384, mode 0600. Made at the first start when it is absent.
    #[serde(default = "key_path")]
    pub(crate) key_path: PathBuf,
    /// Instead of `key_path`: label of an EC key on the token of the plugin `pkcs11`.
    #[serde(default)]
    pub(crate) token_key_label: Option<String>,
    /// Common name of a certificate that is made at the first start.
    #[serde(default = "common_name")]
    pub(crate) common_name: String,
    /// Days that it is valid.
    #[serde(default = "authority_days")]
    pub(crate) authority_days: u32,
    /// Hours of a guest's certificate when it asks for no other.
    #[serde(default = "default_hours")]
    pub(crate) default_hours: u32,
    /// Most hours that it may ask for.
    #[serde(default = "default_hours")]
    pub(crate) max_hours: u32,
    /// Names that a guest may have, as templates over its claims ([`Template`]).
    #[serde(default)]
    pub(crate) names: Vec<String>,
    /// `server`, `client`.
    #[serde(default = "usages")]
    pub(crate) usages: Vec<Usage>,
    /// Address of the revocation list, put into certificates.
    #[serde(default)]
    pub(crate) crl_url: Option<String>,
    /// Hours that a revocation list is valid.
    #[serde(default = "default_hours")]
    pub(crate) crl_hours: u32,
    /// Whether guests whose evidence is simulated or made up get certificates. They say so.
    #[serde(default)]
    pub(crate) allow_simulated_tee: bool,
    /// JSON pointers to the SHA-256 (hexadecimal or base64url) of the SubjectPublicKeyInfo of another key of the guest.
    #[serde(default = "key_digest_paths")]
    pub(crate) key_digest_paths: Vec<String>,
    /// Days that the record of a certificate is kept after its end.
    #[serde(default = "record_days")]
    pub(crate) record_days: u32,
    /// Most certificates that are valid at a time of one guest, which is known by the key in its token.
    #[serde(default = "per_guest")]
    pub(crate) per_guest: u32,
    #[serde(default)]
    pub(crate) limits: LimitsConfig,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Usage {
    /// TLS server.
    Server,
    /// TLS client.
    Client,
}

fn certificate_path() -> PathBuf {
    "ca.crt".into()
}

fn key_path() -> PathBuf {
    "ca.key".into()
}

fn common_name() -> String {
    "kata-cc attested guests".to_owned()
}

fn authority_days() -> u32 {
    3650
}

fn default_hours() -> u32 {
    24
}

fn record_days() -> u32 {
    90
}

fn per_guest() -> u32 {
    8
}

fn usages() -> Vec<Usage> {
    vec![Usage::Server, Usage::Client]
}

fn key_digest_paths() -> Vec<String> {
    vec![KEY_DIGEST.to_owned()]
}

pub(super) fn value(why: impl Into<String>) -> SetupError {
    SetupError::Value { plugin: NAME, why: why.into() }
}

impl CaConfig {
    /// Checks everything; the templates, read.
    pub(crate) fn check(&self) -> Result<Vec<Template>, SetupError> {
        if !(1..=36500).contains(&self.authority_days) {
            return Err(value("authority_days must be 1 to 36500"));
        }
        if !(1..=24 * 366).contains(&self.max_hours) || !(1..=self.max_hours).contains(&self.default_hours) {
            return Err(value("max_hours must be 1 to 8784, default_hours 1 to max_hours"));
        }
        if !(1..=24 * 31).contains(&self.crl_hours) {
            return Err(value("crl_hours must be 1 to 744"));
        }
        if self.record_days > 3650 {
            return Err(value("record_days must be at most 3650"));
        }
        if !(1..=64).contains(&self.per_guest) {
            return Err(value("per_guest must be 1 to 64"));
        }
        if self.usages.is_empty() {
            return Err(value("usages is empty, name server, client or both"));
        }
        if self.common_name.is_empty() || self.common_name.chars().count() > 64 {
            return Err(value("common_name must have 1 to 64 characters"));
        }
        let plain = |url: &String| url.starts_with("http") && url.bytes().all(|b| b.is_ascii_graphic());
        if self.crl_url.as_ref().is_some_and(|url| !plain(url)) {
            return Err(value("crl_url must be an http or https address"));
        }
        if self.key_digest_paths.iter().any(|path| !path.starts_with('/')) {
            return Err(value("key_digest_paths must be JSON pointers (/a/b)"));
        }
        self.names
            .iter()
            .map(|text| Template::parse(text).map_err(|e| value(format!("names: {e}"))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told() {
        let read = |text: &str| toml::from_str::<CaConfig>(text).unwrap().check();
        assert!(read("").unwrap().is_empty());
        for (text, why) in [
            ("default_hours = 48", "default_hours 1 to max_hours"),
            ("max_hours = 10000", "max_hours"),
            ("crl_hours = 0", "crl_hours"),
            ("authority_days = 0", "authority_days"),
            ("record_days = 4000", "record_days"),
            ("per_guest = 0", "per_guest must be 1 to 64"),
            ("usages = []", "usages"),
            ("common_name = \"\"", "common_name"),
            ("crl_url = \"ldap://x\"", "crl_url"),
            ("key_digest_paths = [\"a\"]", "JSON pointers"),
            ("names = [\"dns:*.example\"]", "names:"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(toml::from_str::<CaConfig>("colour = 1").is_err());
    }
}
