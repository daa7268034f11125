//! What failed, as a list: in the log of a verdict, and in the body of a denial for programs to read.
//!
//! A verdict gives everything; of a token there is what it says itself (its findings); of evidence that was refused there is the one
//! claim that differed. At most [`MAX_CHECKS`] are told, and of each value at most [`MAX_TEXT`] characters: the attestation policy, and
//! with it the evidence, decides how many there are and how long. Nothing in them is secret: claims and reference values.

use kata_cc_attestation_service::ear::{FINDINGS, Finding, POLICY_DIGEST};
use kata_cc_attestation_service::explain::Check;
use kata_cc_attestation_service::service::Verdict;
use kata_cc_attestation_service::verify::Refusal;
use serde::Serialize;
use serde_json::Value;

/// Most comparisons that are told at a time.
pub(crate) const MAX_CHECKS: usize = 16;
/// Most characters of a value, and of other texts.
pub(crate) const MAX_TEXT: usize = 400;

/// One comparison that failed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct FailedCheck {
    /// Which part of the evidence: `cpu0`, `gpu0`; of refused evidence it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) submod: Option<String>,
    /// Member of the trust vector that it decides; of refused evidence the reason, e.g. `report-data`.
    pub(crate) rule: String,
    /// What was compared.
    pub(crate) claim: String,
    /// Its value in the evidence.
    pub(crate) seen: Value,
    /// What it should have been.
    pub(crate) expected: Value,
    /// Name of the reference value, when it was compared with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<String>,
    /// Attestation policy that compared it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<String>,
    /// SHA-256 of its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) policy_digest: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) what_to_do: Option<String>,
}

impl FailedCheck {
    fn of_check(submod: &str, check: &Check) -> Self {
        Self {
            policy: Some(check.policy.id.clone()),
            policy_digest: Some(check.policy.digest.clone()),
            ..Self::of_finding(submod, Finding::from(check))
        }
    }

    fn of_finding(submod: &str, finding: Finding) -> Self {
        Self {
            submod: Some(text(submod)),
            rule: text(&finding.rule),
            claim: text(&finding.claim),
            seen: value(finding.seen),
            expected: value(finding.expected),
            reference: finding.reference.as_deref().map(text),
            policy: None,
            policy_digest: None,
            what_to_do: finding.what_to_do.as_deref().map(text),
        }
    }
}

/// Those of a verdict, and how many there are altogether.
pub(crate) fn of_verdict(verdict: &Verdict) -> (Vec<FailedCheck>, usize) {
    let failed = || {
        verdict.submods.iter().flat_map(|submod| {
            let failed = submod.explanation.iter().filter(|check| !check.ok);
            failed.map(|check| (submod.name.as_str(), check))
        })
    };
    let told = failed().take(MAX_CHECKS).map(|(submod, check)| FailedCheck::of_check(submod, check));
    (told.collect(), failed().count())
}

/// The one of a refusal; none when no claim differed.
pub(crate) fn of_refusal(refusal: &Refusal) -> Vec<FailedCheck> {
    let of = |text: &Option<String>| text.clone().map_or(Value::Null, |text| value(text.into()));
    let check = refusal.claim.as_deref().map(|claim| FailedCheck {
        submod: None,
        rule: refusal.reason.name().to_owned(),
        claim: text(claim),
        seen: of(&refusal.seen),
        expected: of(&refusal.expected),
        reference: None,
        policy: None,
        policy_digest: None,
        what_to_do: Some(refusal.reason.what_to_do().to_owned()),
    });
    check.into_iter().collect()
}

/// Those that the claims of a token tell.
pub(crate) fn of_claims(claims: &Value) -> Vec<FailedCheck> {
    let submods = claims.get("submods").and_then(Value::as_object).into_iter().flatten();
    let failed = submods.flat_map(|(name, submod)| {
        let text_of = |member: &str| submod.get(member).and_then(Value::as_str).map(text);
        let (policy, digest) = (text_of("ear.appraisal-policy-id"), text_of(POLICY_DIGEST));
        let findings = submod.get(FINDINGS).and_then(Value::as_array).into_iter().flatten();
        findings.filter_map(move |finding| {
            let finding: Finding = serde_json::from_value(finding.clone()).ok()?;
            let check = FailedCheck::of_finding(name, finding);
            Some(FailedCheck { policy: policy.clone(), policy_digest: digest.clone(), ..check })
        })
    });
    failed.take(MAX_CHECKS).collect()
}

/// A text, cut when it is long.
fn text(all: &str) -> String {
    match all.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}...", &all[..end]),
        None => all.to_owned(),
    }
}

/// A value as it is, or what begins its text when that is long.
fn value(all: Value) -> Value {
    let long = match &all {
        Value::Null | Value::Bool(_) | Value::Number(_) => return all,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if long.chars().count() <= MAX_TEXT { all } else { text(&long).into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_attestation_service::verify::Reason;
    use serde_json::json;

    fn finding(claim: &str, seen: Value) -> Value {
        json!({"rule": "executables", "claim": claim, "seen": seen, "expected": ["bb"], "reference": "launch", "what_to_do": "mend it"})
    }

    #[test]
    fn a_token_tells_what_failed() {
        let claims = json!({"submods": {
            "cpu0": {"ear.appraisal-policy-id": "default", POLICY_DIGEST: "dd", FINDINGS: [finding("measurement", json!("aa"))]},
            "gpu0": {FINDINGS: [{"claim": "svn", "seen": 1, "expected": null}, {"no": "finding"}]},
        }});
        let checks = serde_json::to_value(of_claims(&claims)).unwrap();
        assert_eq!(
            checks,
            json!([
                {"submod": "cpu0", "rule": "executables", "claim": "measurement", "seen": "aa", "expected": ["bb"],
                 "reference": "launch", "policy": "default", "policy_digest": "dd", "what_to_do": "mend it"},
                {"submod": "gpu0", "rule": "", "claim": "svn", "seen": 1, "expected": null},
            ])
        );
        for none in [json!({}), json!({"submods": []}), json!({"submods": {"cpu0": {FINDINGS: "x"}}})] {
            assert_eq!(of_claims(&none), []);
        }
    }

    #[test]
    fn lists_and_values_are_bounded() {
        let long = "\u{e9}".repeat(MAX_TEXT + 1);
        let all: Vec<Value> = (0..40).map(|_| finding(&long, json!([long]))).collect();
        let checks = of_claims(&json!({"submods": {"cpu0": {FINDINGS: all}}}));
        assert_eq!(checks.len(), MAX_CHECKS);
        let seen = checks[0].seen.as_str().unwrap();
        assert!(seen.chars().count() == MAX_TEXT + 3 && seen.ends_with("..."), "{seen}");
        assert_eq!(checks[0].claim.chars().count(), MAX_TEXT + 3);
        assert_eq!(checks[0].expected, json!(["bb"]), "what is short stays what it is");
    }

    #[test]
    fn a_refusal_tells_the_claim_that_differed() {
        let why = "made for another nonce";
        let refusal = Refusal::differs(Reason::ReportData, "report_data", "aa".into(), "bb".into(), why);
        let checks = of_refusal(&refusal);
        assert_eq!((checks[0].rule.as_str(), &checks[0].seen), ("report-data", &json!("aa")));
        assert_eq!((checks[0].claim.as_str(), &checks[0].expected), ("report_data", &json!("bb")));
        assert!(checks[0].what_to_do.as_deref().unwrap().starts_with("attest anew"));
        assert_eq!(of_refusal(&Refusal::new(Reason::Malformed, "x")), []);
    }
}
