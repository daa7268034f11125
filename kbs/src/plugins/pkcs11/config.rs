//! `[[plugins]]` `name = "pkcs11"`: module, token, PIN, and which key wraps what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kata_cc_attestation_service::store::read_secret;
use kata_cc_kbs_pkcs11::{KeyName, Secret, TokenChoice, WrapAlgorithm};
use serde::Deserialize;

use crate::plugins::registry::{LimitsConfig, SetupError};

/// Name of the plugin.
pub(crate) const NAME: &str = "pkcs11";

/// The entry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pkcs11Config {
    /// The vendor's shared object.
    pub(crate) module: PathBuf,
    /// The token's label. This, `token_serial` or `slot_index`.
    #[serde(default)]
    pub(crate) token_label: Option<String>,
    /// The token's serial number.
    #[serde(default)]
    pub(crate) token_serial: Option<String>,
    /// Trustee's way: place in the list of slots that have a token.
    #[serde(default)]
    pub(crate) slot_index: Option<usize>,
    /// File with the PIN, mode 0600. This or `pin_env`.
    #[serde(default)]
    pub(crate) pin_file: Option<PathBuf>,
    /// Variable of the environment with the PIN.
    #[serde(default)]
    pub(crate) pin_env: Option<String>,
    /// The helper; beside the broker, else in `PATH`, when absent.
    #[serde(default)]
    pub(crate) helper: Option<PathBuf>,
    /// Environment of the helper. It gets nothing else, but `PATH` and `LANG`.
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
    /// Keys that wrap what is stored. The name is the first segment of a path.
    #[serde(default)]
    pub(crate) keys: BTreeMap<String, KeyConfig>,
    /// Trustee's `wrap-key`: label of the RSA key that wraps and unwraps bodies. Off when absent.
    #[serde(default)]
    pub(crate) lookup_label: Option<String>,
    /// Trustee's name for its algorithm.
    #[serde(default)]
    pub(crate) rsa_mechanism: RsaMechanism,
    /// Seconds that the token may take for one operation.
    #[serde(default = "operation_seconds")]
    pub(crate) operation_seconds: u64,
    #[serde(default)]
    pub(crate) limits: LimitsConfig,
}

fn operation_seconds() -> u64 {
    10
}

/// A wrapping key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyConfig {
    /// `CKA_LABEL`; this or `id`. The name of the entry when both are absent.
    #[serde(default)]
    pub(crate) label: Option<String>,
    /// `CKA_ID`, hexadecimal.
    #[serde(default)]
    pub(crate) id: Option<String>,
    /// How it wraps.
    pub(crate) algorithm: WrapAlgorithm,
}

impl KeyConfig {
    /// Which key of the token.
    pub(crate) fn key(&self, name: &str) -> KeyName {
        match (&self.id, &self.label) {
            (Some(id), _) => KeyName::Id(id.clone()),
            (None, Some(label)) => KeyName::Label(label.clone()),
            (None, None) => KeyName::Label(name.to_owned()),
        }
    }
}

/// Trustee's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum RsaMechanism {
    /// OAEP with SHA-256.
    #[default]
    RsaPkcsOaep,
    /// OAEP with SHA-1.
    RsaPkcsTest,
}

impl RsaMechanism {
    pub(crate) fn algorithm(self) -> WrapAlgorithm {
        match self {
            Self::RsaPkcsOaep => WrapAlgorithm::RsaOaep256,
            Self::RsaPkcsTest => WrapAlgorithm::RsaOaep,
        }
    }
}

pub(super) fn value(why: impl Into<String>) -> SetupError {
    SetupError::Value { plugin: NAME, why: why.into() }
}

impl Pkcs11Config {
    /// Which token, by exactly one of the three.
    pub(crate) fn token(&self) -> Result<TokenChoice, SetupError> {
        match (&self.token_label, &self.token_serial, self.slot_index) {
            (Some(label), None, None) => Ok(TokenChoice::Label(label.clone())),
            (None, Some(serial), None) => Ok(TokenChoice::Serial(serial.clone())),
            (None, None, Some(index)) => Ok(TokenChoice::Index(index)),
            _ => Err(value("name the token by one of token_label, token_serial and slot_index")),
        }
    }

    /// The PIN, without the line feed at its end.
    pub(crate) fn pin(&self, base: &Path) -> Result<Secret, SetupError> {
        let mut pin = match (&self.pin_file, &self.pin_env) {
            (Some(file), None) => read_secret(&base.join(file)).map_err(|e| value(e.to_string()))?,
            (None, Some(name)) => {
                let text = std::env::var(name)
                    .map_err(|_| value(format!("variable {name} (pin_env) is not set")))?;
                text.into_bytes().into()
            }
            _ => {
                return Err(value(
                    "give the PIN by one of pin_file and pin_env; it is never in the configuration itself",
                ));
            }
        };
        while pin.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
            pin.pop();
        }
        if pin.is_empty() {
            return Err(value("the PIN is empty"));
        }
        Ok(Secret(pin))
    }

    /// The helper program.
    pub(crate) fn program(&self, base: &Path) -> PathBuf {
        const PROGRAM: &str = "kata-cc-kbs-pkcs11";
        if let Some(helper) = &self.helper {
            return base.join(helper);
        }
        let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
        beside.filter(|path| path.exists()).unwrap_or_else(|| PROGRAM.into())
    }

    /// Checks what needs no token.
    pub(crate) fn check(&self) -> Result<(), SetupError> {
        self.token()?;
        if !(1..=120).contains(&self.operation_seconds) {
            return Err(value("operation_seconds must be 1 to 120"));
        }
        for (name, key) in &self.keys {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
            let fine = !name.is_empty() && !name.starts_with('.') && name.bytes().all(allowed);
            if !fine || matches!(name.as_str(), "resource" | "wrap-key") {
                return Err(value(format!(
                    "keys.{name:?}: a name is a segment of a path ([a-zA-Z0-9_.-]), and not resource or wrap-key"
                )));
            }
            if key.label.is_some() && key.id.is_some() {
                return Err(value(format!("keys.{name}: label or id, not both")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Pkcs11Config {
        toml::from_str(&format!("module = \"/m.so\"\n{text}")).unwrap()
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, why) in [
            ("", "name the token"),
            ("token_label = \"a\"\nslot_index = 0", "name the token"),
            ("slot_index = 0\noperation_seconds = 0", "operation_seconds"),
            ("slot_index = 0\n[keys.resource]\nalgorithm = \"A256KW\"", "not resource"),
            ("slot_index = 0\n[keys.\"a/b\"]\nalgorithm = \"A256KW\"", "a segment of a path"),
            ("slot_index = 0\n[keys.a]\nalgorithm = \"A256KW\"\nlabel = \"x\"\nid = \"00\"", "not both"),
        ] {
            let error = config(text).check().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        // A PIN in the configuration is not read at all.
        assert!(toml::from_str::<Pkcs11Config>("module = \"/m.so\"\npin = \"1234\"").is_err());
        let base = tempfile::tempdir().unwrap();
        let error = config("slot_index = 0").pin(base.path()).unwrap_err().to_string();
        assert!(error.contains("pin_file and pin_env"), "{error}");
        std::fs::write(base.path().join("open.pin"), "1234").unwrap();
        let error = config("pin_file = \"open.pin\"").pin(base.path()).unwrap_err().to_string();
        assert!(error.contains("must not be readable by group or others"), "{error}");
        kata_cc_attestation_service::store::write_secret(&base.path().join("pin"), b"1234\n").unwrap();
        let pin = config("pin_file = \"pin\"").pin(base.path()).unwrap();
        assert_eq!(pin.0.as_slice(), b"1234");
        let error = config("pin_env = \"KATA_CC_NO_SUCH_PIN\"").pin(base.path()).unwrap_err().to_string();
        assert!(error.contains("is not set"), "{error}");
    }

    #[test]
    fn a_key_is_found_by_id_label_or_name() {
        let config = config(
            "slot_index = 0\n[keys.a]\nalgorithm = \"RSA-OAEP-256\"\n[keys.b]\nalgorithm = \"A256KW\"\nid = \"0a\"",
        );
        config.check().unwrap();
        assert_eq!(config.keys["a"].key("a"), KeyName::Label("a".to_owned()));
        assert_eq!(config.keys["b"].key("b"), KeyName::Id("0a".to_owned()));
    }
}
