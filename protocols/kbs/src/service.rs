//! REST types of the attestation service (Trustee's `restful-as`).
//!
//! `POST /attestation` answers the token as plain text, `POST /policy` nothing, `GET /policy` a list.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Tee;

/// What the report data binds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeDataInput {
    /// b64url of bytes that are hashed as they are.
    Raw(String),
    /// JSON that is hashed in its canonical form.
    Structured(Value),
}

/// What the TEE's init-data field must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitDataInput {
    /// b64url of the digest.
    InitDataDigest(String),
    /// The document itself.
    InitDataToml(String),
}

/// One piece of evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerificationRequest {
    /// What made the evidence.
    pub tee: Tee,
    /// b64url of the evidence's JSON.
    pub evidence: String,
    /// What the report data binds; unchecked when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_data: Option<RuntimeDataInput>,
    /// Expected init-data; unchecked when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_data: Option<InitDataInput>,
    /// sha256, sha384 or sha512; sha384 when absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_data_hash_algorithm: Option<String>,
}

/// `POST /attestation`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluateRequest {
    /// The first is the CPU.
    pub verification_requests: Vec<VerificationRequest>,
    /// Policies to appraise by; `["default"]` when empty. Only the first is used.
    #[serde(default)]
    pub policy_ids: Vec<String>,
}

/// `POST /policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPolicyRequest {
    /// Id with the class, e.g. `default_cpu`.
    pub policy_id: String,
    /// b64url of the Rego text.
    pub policy: String,
}

/// Element of the answer of `GET /policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyEntry {
    /// Id with the class.
    pub policy_id: String,
}

/// `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Kind of the problem, a URI reference that is stable.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short, the same for the same kind.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// This occurrence.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_the_documented_request() {
        let request: EvaluateRequest = serde_json::from_value(json!({
            "verification_requests": [{"tee": "tdx", "evidence": "e30", "runtime_data": {"raw": "AA"},
                "init_data": {"init_data_digest": "AA"}, "runtime_data_hash_algorithm": "sha384"},
                {"tee": "sample", "evidence": "e30", "runtime_data": {"structured": {"a": 1}},
                "init_data": {"init_data_toml": "x"}}],
            "policy_ids": ["default"]
        }))
        .unwrap();
        assert_eq!(request.verification_requests.len(), 2);
        assert_eq!(
            request.verification_requests[1].runtime_data,
            Some(RuntimeDataInput::Structured(json!({"a": 1})))
        );
    }
}
