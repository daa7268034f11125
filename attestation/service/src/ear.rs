//! EAR: the claims of an attestation result (draft-ietf-rats-ear) and the AR4SI trustworthiness vector.
//!
//! A vector has eight signed 8-bit claims. Each falls into a tier (draft-ietf-rats-ar4si, 2.3.2); the status is the
//! worst tier of the claims that were set. Member names and profile are Trustee's, so that its resource policies read
//! our tokens.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// `eat_profile` of the token.
pub const PROFILE: &str = "tag:github.com,2024:confidential-containers/Trustee";
/// Issuer that Trustee's tokens name.
pub const DEFAULT_ISSUER: &str = "CoCo-Attestation-Service";
/// Member of a submod that lists what the attestation policy found. Ours.
pub const FINDINGS: &str = "ear.kata-cc.findings";
/// Member of a submod with findings: SHA-256 of the text of the policy that made them. Ours.
pub const POLICY_DIGEST: &str = "ear.kata-cc.policy-digest";

/// Most findings that a token carries.
pub const MAX_FINDINGS: usize = 32;

/// Names of the vector's members, in the order of AR4SI.
pub const MEMBERS: [&str; 8] = [
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
];

/// How far a claim, or all of them, can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Nothing is known.
    None,
    /// As it should be.
    Affirming,
    /// Not known to be as it should be.
    Warning,
    /// Known to be wrong, or not what it says it is.
    Contraindicated,
}

impl Tier {
    /// Tier of one claim.
    pub fn of(value: i8) -> Self {
        match value {
            -1..=1 => Self::None,
            2..=31 | -32..=-2 => Self::Affirming,
            32..=95 | -96..=-33 => Self::Warning,
            96..=127 | -128..=-97 => Self::Contraindicated,
        }
    }

    /// Word in `ear.status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Affirming => "affirming",
            Self::Warning => "warning",
            Self::Contraindicated => "contraindicated",
        }
    }
}

/// The trustworthiness vector; only members that were set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrustVector(BTreeMap<&'static str, i8>);

impl TrustVector {
    /// Sets a member by its name, with `-` or `_`. False when there is no such member.
    pub fn set(&mut self, name: &str, value: i8) -> bool {
        let name = name.replace('_', "-");
        let Some(member) = MEMBERS.iter().find(|m| **m == name) else {
            return false;
        };
        self.0.insert(member, value);
        true
    }

    /// Value of a member.
    pub fn get(&self, name: &str) -> Option<i8> {
        self.0.get(name).copied()
    }

    /// Members that were set, with their values.
    pub fn members(&self) -> impl Iterator<Item = (&'static str, i8)> + '_ {
        self.0.iter().map(|(name, value)| (*name, *value))
    }

    /// Worst tier of the members that were set.
    pub fn status(&self) -> Tier {
        self.0.values().map(|v| Tier::of(*v)).max().unwrap_or(Tier::None)
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        json!(self.0)
    }
}

/// One thing that an attestation policy compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Member of the trust vector that it decides; empty when the policy does not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// Claim, e.g. `measurement`.
    pub claim: String,
    /// Its value in the evidence.
    pub seen: Value,
    /// What it should have been: reference values, or a single value.
    pub expected: Value,
    /// Name of the reference value, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// What the operator can do about it, when the policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what_to_do: Option<String>,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short = |value: &Value| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            match text.char_indices().nth(400) {
                Some((end, _)) => format!("{}...", &text[..end]),
                None => text,
            }
        };
        let (seen, claim) = (short(&self.seen), &self.claim);
        match (&self.reference, &self.expected) {
            (Some(name), Value::Null) => {
                write!(f, "{claim} {seen} cannot be judged: no reference value {name} is registered")?;
            }
            (Some(name), expected) => {
                write!(f, "{claim} {seen} is not among the reference values {name} {}", short(expected))?;
            }
            (None, expected) => write!(f, "{claim} is {seen}, expected {}", short(expected))?,
        }
        self.what_to_do.as_ref().map_or(Ok(()), |advice| write!(f, ": {advice}"))
    }
}

impl From<&crate::explain::Check> for Finding {
    fn from(check: &crate::explain::Check) -> Self {
        Self {
            rule: check.rule.clone(),
            claim: check.claim.clone(),
            seen: check.seen.clone(),
            expected: check.expected.clone(),
            reference: check.reference.as_ref().map(|reference| reference.name.clone()),
            what_to_do: check.what_to_do.clone(),
        }
    }
}

/// What an attestation policy made of one piece of evidence.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Appraisal {
    /// Trust vector.
    pub vector: TrustVector,
    /// Every comparison, those that failed first.
    pub checks: Vec<crate::explain::Check>,
    /// Those that failed, in the form that the token carries; at most [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// Extension claims by name.
    pub extensions: BTreeMap<String, Value>,
}

impl Appraisal {
    /// The submod of the token.
    pub fn submod(&self, policy_id: &str, evidence: Value) -> Value {
        let mut submod = json!({
            "ear.status": self.vector.status().name(),
            "ear.trustworthiness-vector": self.vector.to_json(),
            "ear.appraisal-policy-id": policy_id,
            "ear.veraison.annotated-evidence": evidence,
        });
        if !self.findings.is_empty() {
            submod[FINDINGS] = json!(self.findings);
            submod[POLICY_DIGEST] = json!(self.checks.first().map(|check| check.policy.digest.as_str()));
        }
        for (name, value) in &self.extensions {
            if submod.get(name).is_none() {
                submod[name.as_str()] = value.clone();
            }
        }
        submod
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_agree_with_the_vectors() {
        let Some(folder) = kata_cc_test_vectors::path("coco/ear") else { return };
        let cases: BTreeMap<String, Tier> =
            serde_json::from_slice(&std::fs::read(folder.join("ar4si-tiers.json")).unwrap()).unwrap();
        for (value, tier) in cases {
            assert_eq!(Tier::of(value.parse().unwrap()), tier, "{value}");
        }
    }

    #[test]
    fn status_is_the_worst_tier_of_those_set() {
        let mut vector = TrustVector::default();
        assert_eq!(vector.status(), Tier::None);
        assert!(vector.set("instance_identity", 0));
        assert!(vector.set("hardware", 2));
        assert_eq!(vector.status(), Tier::Affirming);
        assert!(vector.set("executables", 33));
        assert_eq!(vector.status(), Tier::Warning);
        assert!(vector.set("configuration", -97));
        assert_eq!(vector.status(), Tier::Contraindicated);
        assert!(!vector.set("colour", 2));
    }
}
