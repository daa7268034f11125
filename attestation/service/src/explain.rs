//! Why a verdict is what it is: every comparison of a policy, with what was seen, what was expected, and what to do.
//!
//! A policy says what it compared in `data.policy.checks`, a set of objects: `rule` (member of the trust vector), `claim`, `seen`,
//! `expected`, `ok`, and optionally `reference` (name of the reference value) and `what_to_do`. `data.policy.findings`, the same
//! without `rule` and `ok`, lists only what failed. To that the service adds policy and digest, and what it knows of the
//! reference value: its source, and whether it has ended.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use crate::appraisal::{PolicyName, References};
use crate::references::ReferenceUse;

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// Member of the trust vector that it decides; empty when the policy does not say.
    pub rule: String,
    /// Claim, e.g. `measurement`.
    pub claim: String,
    /// Its value in the evidence.
    pub seen: Value,
    /// What it should be: reference values, or a single value.
    pub expected: Value,
    /// Whether it is.
    pub ok: bool,
    /// The reference value that it was compared with, if it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<ReferenceUse>,
    /// By which policy.
    pub policy: Arc<PolicyName>,
    /// What to do when it is not ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub what_to_do: Option<String>,
}

/// A comparison as a policy tells it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PolicyCheck {
    rule: String,
    claim: String,
    seen: Value,
    expected: Value,
    ok: bool,
    reference: Option<String>,
    what_to_do: Option<String>,
}

impl PolicyCheck {
    /// Reads a policy's object; `ok` is given where the object has none of its own. What has no claim says nothing, what does not
    /// say that it is ok is not.
    pub(crate) fn read(value: &Value, ok: Option<bool>) -> Option<Self> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let any = |name: &str| value.get(name).cloned().unwrap_or(Value::Null);
        Some(Self {
            rule: text("rule").unwrap_or_default(),
            claim: text("claim")?,
            seen: any("seen"),
            expected: any("expected"),
            ok: ok.unwrap_or_else(|| value.get("ok") == Some(&Value::Bool(true))),
            reference: text("reference"),
            what_to_do: text("what_to_do"),
        })
    }

    pub(crate) fn explained(self, policy: &Arc<PolicyName>, references: References<'_>) -> Check {
        let reference =
            self.reference.map(|name| ReferenceUse::of(references.records, &name, references.now));
        let what_to_do = match (&reference, self.ok) {
            (_, true) => None,
            (None, false) => self.what_to_do,
            (Some(reference), false) => advice(reference, self.what_to_do),
        };
        Check {
            rule: self.rule,
            claim: self.claim,
            seen: self.seen,
            expected: self.expected,
            ok: self.ok,
            reference,
            policy: Arc::clone(policy),
            what_to_do,
        }
    }
}

/// What to do about a comparison with `reference` that failed; `given` is the policy's own advice.
pub(crate) fn advice(reference: &ReferenceUse, given: Option<String>) -> Option<String> {
    let name = &reference.name;
    match (reference.state.as_str(), given) {
        ("expired", given) => {
            let end = reference.expiration.as_deref().unwrap_or("an unknown time");
            let rest = given.map(|given| format!("; {given}")).unwrap_or_default();
            Some(format!(
                "the reference value {name} expired at {end} and matches nothing: register it again if it is still good{rest}"
            ))
        }
        ("not-registered", None) => Some(format!("register the reference value {name}")),
        (_, given) => given,
    }
}

impl Check {
    /// One sentence, for a log.
    pub fn sentence(&self) -> String {
        let finding = crate::ear::Finding::from(self);
        if self.ok { format!("{} {} is as expected", self.claim, self.seen) } else { finding.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::references::{InForce, Record, Source};
    use serde_json::json;
    use std::collections::BTreeMap;

    #[test]
    fn the_state_of_the_reference_value_is_told() {
        let source = Source {
            kind: "signed".to_owned(),
            signer: Some("release".to_owned()),
            detail: None,
            signed_at: Some(1),
        };
        let records =
            BTreeMap::from([("fw".to_owned(), Record::new("fw", json!([1]), Some(1000), source, "x"))]);
        let policy = crate::appraisal::compile(
            "p",
            "package policy\nchecks contains {\"rule\": \"hardware\", \"claim\": \"c\", \"seen\": 1, \
             \"expected\": query_reference_value(\"fw\"), \"reference\": \"fw\", \"ok\": 1 in known, \"what_to_do\": \"look\"}\n\
             known := query_reference_value(\"fw\") if query_reference_value(\"fw\") != null\nknown := [] if query_reference_value(\"fw\") == null",
        )
        .unwrap();
        let at = |now: i64| {
            let in_force = InForce::at(&records, now);
            let references = References { records: &records, in_force: &in_force, now };
            crate::appraisal::appraise(&policy, &json!({}), references).unwrap()
        };
        let good = at(999);
        assert!(good.checks[0].ok && good.findings.is_empty());
        assert_eq!(good.checks[0].what_to_do, None);
        assert_eq!(
            good.checks[0].reference.as_ref().unwrap().source.as_ref().unwrap().to_string(),
            "signed by release"
        );
        assert_eq!(good.checks[0].policy.id, "p");
        assert_eq!(good.checks[0].policy.digest.len(), 64);
        let bad = at(1000);
        assert!(!bad.checks[0].ok);
        assert_eq!(bad.checks[0].reference.as_ref().unwrap().state, "expired");
        let told = bad.findings[0].to_string();
        assert!(told.contains("fw expired at 1970-01-01T00:16:40Z") && told.ends_with("; look"), "{told}");
    }

    /// Trustee's policies say nothing of what they compare.
    #[test]
    fn a_policy_that_does_not_explain_itself_is_watched() {
        let text = "package policy\nimport rego.v1\ndefault hardware := 97\n\
            hardware := 2 if input.x in query_reference_value(\"tcb\")\n\
            trust_claims := {\"hardware\": hardware, \"executables\": 3}";
        let policy = crate::appraisal::compile("p", text).unwrap();
        let records = BTreeMap::new();
        let in_force = InForce::at(&records, 0);
        let references = References { records: &records, in_force: &in_force, now: 0 };
        let appraisal = crate::appraisal::appraise(&policy, &json!({"x": 1}), references).unwrap();
        let told: Vec<_> = appraisal.checks.iter().map(|check| (check.claim.as_str(), check.ok)).collect();
        assert_eq!(told, [("hardware", false), ("tcb", false), ("executables", true)]);
        assert_eq!(appraisal.checks[1].reference.as_ref().unwrap().state, "not-registered");
        assert_eq!(appraisal.findings.len(), 2);
    }
}
