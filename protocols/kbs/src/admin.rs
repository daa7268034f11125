//! What an administrator sends to the key broker, and the message of the reference value provider.
//!
//! Source: Trustee `kbs.yaml`, `rvps/README.md` (where documentation says `provenance`, the code reads `payload`).
//! Our own additions: the listings [`ResourceList`] and [`ReferenceValueList`], and [`ResourcePolicyText`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{base64_standard, from_base64_standard};

/// Most names in one reference value message.
pub const MAX_REFERENCE_VALUES: usize = 1024;

/// `POST /kbs/v0/attestation-policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetAttestationPolicy {
    /// `rego`; ignored.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Id with the class of the device, e.g. `default_cpu`.
    pub policy_id: String,
    /// b64url of the Rego text.
    pub policy: String,
}

/// `POST /kbs/v0/resource-policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetResourcePolicy {
    /// b64url of the Rego text.
    pub policy: String,
}

/// Ours: `GET /kbs/v0/resource-policy/text` and `GET /kbs/v0/attestation-policy/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcePolicyText {
    /// Rego text.
    pub policy: String,
    /// Whether it is the built-in one.
    pub default: bool,
}

/// Ours: one stored resource, without its contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceEntry {
    /// `repository/type/tag`.
    pub path: String,
    /// Bytes of the contents.
    pub size: u64,
    /// When it was last written, RFC 3339.
    pub modified: String,
}

/// Ours: `GET /kbs/v0/admin/resources`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResourceList {
    /// A page of them, in the order of their paths.
    pub resources: Vec<ResourceEntry>,
    /// What the next page is asked for by (`after`), when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Ours: one version of a resource or policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceVersion {
    /// Its number, from 1.
    pub version: u64,
    /// `live`, `erased` (a later deletion removed its value), or `deleted` (it is that deletion).
    pub state: String,
    /// Bytes of its value.
    pub size: u64,
    /// Media type that it was uploaded with.
    pub content_type: String,
    /// When it was written, RFC 3339.
    pub modified: String,
    /// Who wrote it.
    pub who: String,
}

/// Ours: `GET /kbs/v0/admin/resources/{repository}/{type}/{tag}/history`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResourceHistory {
    /// Those that are kept, the latest first.
    pub versions: Vec<ResourceVersion>,
}

/// Ours: `POST /kbs/v0/admin/resource-policy/dry-run`. Exactly one of `claims`, `token` and `session`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourcePolicyDryRun {
    /// Rego text to try; the policy in force when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Claims to try it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<serde_json::Value>,
    /// Attestation token whose claims it is tried on. It must be valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Id of the session of an attested guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// What is asked for: `repository/type/tag`, or the path of a plugin.
    pub resource: String,
    /// Which plugin; `resource` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// Query of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<BTreeMap<String, String>>,
}

/// Answer to [`ResourcePolicyDryRun`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcePolicyVerdict {
    /// Whether the guest would get it.
    pub allow: bool,
    /// Why, in words.
    pub explanation: String,
    /// What the policy's rule `reasons` says.
    pub reasons: Vec<String>,
    /// What the policy printed.
    pub prints: Vec<String>,
    /// SHA-256 of the policy's text in hex.
    pub policy_digest: String,
}

/// Ours: `GET /kbs/v0/reference-value`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReferenceValueList {
    /// Name to value or values.
    pub reference_values: BTreeMap<String, serde_json::Value>,
}

/// `POST /kbs/v0/reference-value`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceValueMessage {
    /// `0.1.0`, also when absent.
    #[serde(default = "ReferenceValueMessage::version")]
    pub version: String,
    /// `sample`; Trustee also knows `swid` and `corim`.
    #[serde(rename = "type")]
    pub kind: String,
    /// For `sample`: b64 of a JSON object from name to a value or an array of values.
    pub payload: String,
}

/// Why a reference value message was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ReferenceValueError {
    /// Another version.
    #[error("reference value message has version {0:?}, only 0.1.0 is known")]
    Version(String),
    /// Another type.
    #[error("reference value message has type {0:?}, only sample is known")]
    Kind(String),
    /// The payload is not base64.
    #[error("payload of the reference value message is not base64 with padding")]
    Base64,
    /// The payload is not a JSON object.
    #[error("payload of the reference value message is not a JSON object from name to values: {0}")]
    Json(String),
    /// Too many names.
    #[error("reference value message has {0} names, at most {MAX_REFERENCE_VALUES} are read")]
    TooMany(usize),
    /// A name is empty, too long, or has a control character.
    #[error("reference value name {0:?} must be 1 to 255 printable characters")]
    Name(String),
}

impl ReferenceValueMessage {
    fn version() -> String {
        "0.1.0".to_owned()
    }

    /// Wraps values in a `sample` message.
    pub fn sample(values: &BTreeMap<String, serde_json::Value>) -> Self {
        let payload = serde_json::to_vec(values).unwrap_or_default();
        Self { version: Self::version(), kind: "sample".to_owned(), payload: base64_standard(&payload) }
    }

    /// Names and values of the message.
    pub fn values(&self) -> Result<BTreeMap<String, serde_json::Value>, ReferenceValueError> {
        let cut = |text: &str| text.chars().take(64).collect::<String>();
        if self.version != "0.1.0" {
            return Err(ReferenceValueError::Version(cut(&self.version)));
        }
        if self.kind != "sample" {
            return Err(ReferenceValueError::Kind(cut(&self.kind)));
        }
        let payload = from_base64_standard(&self.payload).ok_or(ReferenceValueError::Base64)?;
        let values: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&payload).map_err(|e| ReferenceValueError::Json(e.to_string()))?;
        if values.len() > MAX_REFERENCE_VALUES {
            return Err(ReferenceValueError::TooMany(values.len()));
        }
        for name in values.keys() {
            if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
                return Err(ReferenceValueError::Name(cut(name)));
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_messages_round_trip() {
        let values = BTreeMap::from([("svn".to_owned(), serde_json::json!([1]))]);
        assert_eq!(ReferenceValueMessage::sample(&values).values().unwrap(), values);
    }

    #[test]
    fn vectors() {
        let Some(folder) = kata_cc_test_vectors::path("coco/rvps") else { return };
        for name in ["sample-message.json", "sample-message-no-version.json"] {
            let text = std::fs::read_to_string(folder.join(name)).unwrap();
            let message: ReferenceValueMessage = serde_json::from_str(&text).unwrap();
            assert!(!message.values().unwrap().is_empty(), "{name}");
        }
        let text = std::fs::read_to_string(folder.join("invalid.json")).unwrap();
        let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        for case in cases {
            let message = case["message"].as_str().unwrap();
            let refused = serde_json::from_str::<ReferenceValueMessage>(message)
                .map_err(|e| e.to_string())
                .and_then(|m| m.values().map_err(|e| e.to_string()));
            assert!(refused.is_err(), "{}", case["case"]);
        }
    }
}
