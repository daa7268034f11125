//! Appraisal: an attestation policy (Rego) compares claims with reference values.
//!
//! The policy is `data.policy.trust_claims` (member of the trust vector to -128..127), `data.policy.extensions`
//! (optional, `[{name, key, value}]`) and, ours, `data.policy.findings` (optional: what did not match). `input` is
//! the annotated evidence of one device; `query_reference_value("<name>")` is a registered value or null. A policy
//! without `trust_claims` yields an empty vector, whose status is `none`.

use std::collections::BTreeMap;
use std::sync::Arc;

use kata_cc_policy::engine::{EngineError, Function, Limits, Program};
use serde_json::Value;
use thiserror::Error;

use crate::ear::{Appraisal, Finding};

/// The built-in policy for `default_cpu`.
pub const DEFAULT_CPU: &str = include_str!("policies/default_cpu.rego");

/// The built-in policy for `default_gpu`.
pub const DEFAULT_GPU: &str = include_str!("policies/default_gpu.rego");

/// Ids and texts of all built-in policies.
pub const BUILT_IN: [(&str, &str); 2] = [("default_cpu", DEFAULT_CPU), ("default_gpu", DEFAULT_GPU)];

const QUERY: &str = "query_reference_value";

/// Most findings that a token carries.
const MAX_FINDINGS: usize = 32;

/// Why evidence could not be appraised.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum AppraisalError {
    /// The policy does not compile, or failed.
    #[error(transparent)]
    Policy(#[from] EngineError),
    /// The policy sets a member that does not exist.
    #[error("attestation policy {policy} sets {member:?}, which is no member of the trust vector")]
    Member {
        /// Policy id.
        policy: String,
        /// What it set.
        member: String,
    },
    /// The policy's value is not a signed 8-bit number.
    #[error("attestation policy {policy} sets {member} to {seen}, expected a whole number from -128 to 127")]
    Value {
        /// Policy id.
        policy: String,
        /// Member.
        member: String,
        /// What it was.
        seen: String,
    },
    /// `trust_claims` is not an object.
    #[error("trust_claims of attestation policy {0} is not an object")]
    Shape(String),
}

/// Compiles a policy text; what is accepted here can be stored.
pub fn compile(id: &str, text: &str) -> Result<Program, EngineError> {
    Program::compile_with(id, text, &Limits::default(), &[QUERY])
}

/// Appraises the annotated evidence of one device.
pub fn appraise(
    program: &Program,
    evidence: &Value,
    references: &Arc<BTreeMap<String, Value>>,
) -> Result<Appraisal, AppraisalError> {
    let references = Arc::clone(references);
    let query: Function = Arc::new(move |name| {
        let value = name.as_str().and_then(|name| references.get(name));
        Some(value.cloned().unwrap_or(Value::Null))
    });
    let functions = BTreeMap::from([(QUERY.to_owned(), query)]);
    let run = |rule: &str| {
        program.evaluate_with(&format!("data.policy.{rule}"), evidence, &Value::Null, &functions)
    };
    let id = program.name();
    let mut appraisal = Appraisal::default();
    if let Some(claims) = run("trust_claims")?.value {
        let claims = claims.as_object().ok_or_else(|| AppraisalError::Shape(id.to_owned()))?;
        for (member, value) in claims {
            let number = value.as_i64().and_then(|v| i8::try_from(v).ok());
            let number = number.ok_or_else(|| AppraisalError::Value {
                policy: id.to_owned(),
                member: member.clone(),
                seen: value.to_string().chars().take(64).collect(),
            })?;
            if !appraisal.vector.set(member, number) {
                return Err(AppraisalError::Member { policy: id.to_owned(), member: member.clone() });
            }
        }
    }
    if let Some(Value::Array(extensions)) = run("extensions")?.value {
        for extension in extensions {
            if let (Some(name), Some(value)) = (extension["name"].as_str(), extension.get("value")) {
                appraisal.extensions.insert(name.to_owned(), value.clone());
            }
        }
    }
    if let Some(Value::Array(findings)) = run("findings")?.value {
        let read = |finding| serde_json::from_value::<Finding>(finding).ok();
        appraisal.findings = findings.into_iter().filter_map(read).take(MAX_FINDINGS).collect();
    }
    Ok(appraisal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ear::Tier;
    use serde_json::json;

    const INIT_DATA: &str = "1d";

    /// Evidence of a guest with known init-data.
    fn guest(tee: &str) -> Value {
        json!({tee: claims(), "init_data": INIT_DATA})
    }

    fn claims() -> Value {
        json!({
            "measurement": "ab", "policy_debug_allowed": false, "policy_migrate_ma": false,
            "policy_abi_major": 0, "policy_abi_minor": 0, "policy_smt_allowed": true, "policy_single_socket": false,
            "reported_tcb_bootloader": 3, "reported_tcb_tee": 0, "reported_tcb_snp": 8, "reported_tcb_microcode": 115,
            "platform_smt_enabled": true, "platform_tsme_enabled": false,
        })
    }

    fn references(extra: Value) -> Arc<BTreeMap<String, Value>> {
        let mut all = json!({"snp_launch_measurement": ["ab", "cd"], "init_data": [INIT_DATA]});
        for (name, value) in extra.as_object().unwrap() {
            all[name.as_str()] = value.clone();
        }
        Arc::new(serde_json::from_value(all).unwrap())
    }

    fn tcb() -> Value {
        json!({"snp_bootloader": [3], "snp_microcode": [115], "snp_snp_svn": [8], "snp_tee_svn": [0]})
    }

    fn run(evidence: &Value, references: &Arc<BTreeMap<String, Value>>) -> Appraisal {
        appraise(&compile("default_cpu", DEFAULT_CPU).unwrap(), evidence, references).unwrap()
    }

    #[test]
    fn all_claims_match() {
        let appraisal = run(&guest("snp"), &references(tcb()));
        assert_eq!(appraisal.vector.status(), Tier::Affirming, "{appraisal:?}");
        assert_eq!(appraisal.vector.get("executables"), Some(3));
        assert!(appraisal.findings.is_empty());
        let appraisal = run(&guest("sim-snp"), &references(json!({})));
        assert_eq!(appraisal.vector.status(), Tier::Affirming, "{appraisal:?}");
    }

    #[test]
    fn another_measurement_is_named() {
        let mut evidence = guest("sim-snp");
        evidence["sim-snp"]["measurement"] = json!("ee");
        let appraisal = run(&evidence, &references(json!({})));
        assert_eq!(appraisal.vector.status(), Tier::Warning);
        assert_eq!(appraisal.findings.len(), 1);
        let text = appraisal.findings[0].to_string();
        assert_eq!(
            text,
            r#"measurement ee is not among the reference values snp_launch_measurement ["ab","cd"]"#
        );
    }

    #[test]
    fn hardware_without_tcb_values_is_not_affirming() {
        let appraisal = run(&guest("snp"), &references(json!({})));
        assert_eq!(appraisal.vector.status(), Tier::Contraindicated);
        assert_eq!(appraisal.findings.len(), 4);
        assert!(appraisal.findings[0].to_string().contains("no reference value snp_"));
        let mut old = tcb();
        old["snp_microcode"] = json!([116]);
        let appraisal = run(&guest("sim-snp"), &references(old));
        assert_eq!(appraisal.vector.status(), Tier::Contraindicated);
        assert_eq!(appraisal.findings[0].claim, "reported_tcb_microcode");
    }

    #[test]
    fn debug_and_settings_are_compared() {
        let mut evidence = guest("sim-snp");
        evidence["sim-snp"]["policy_debug_allowed"] = json!(true);
        let appraisal = run(&evidence, &references(json!({})));
        assert_eq!(appraisal.vector.get("configuration"), Some(36));
        assert_eq!(appraisal.findings[0].to_string(), "policy_debug_allowed is true, expected false");
        let appraisal = run(&guest("sim-snp"), &references(json!({"snp_smt_enabled": false})));
        assert_eq!(appraisal.vector.get("configuration"), Some(36));
    }

    /// The host brings the init-data, and with it the policy of the guest: unknown init-data is no trust, also where there is no
    /// reference value at all, and also the zeros of a guest without any.
    #[test]
    fn init_data_must_be_registered() {
        let zeros = "0".repeat(64);
        for tee in ["snp", "sim-snp"] {
            for seen in [json!("ee"), json!(zeros), json!(null)] {
                let mut other = guest(tee);
                other["init_data"] = seen.clone();
                let appraisal = run(&other, &references(tcb()));
                assert_eq!(appraisal.vector.get("configuration"), Some(36), "{tee} {seen}");
                assert_ne!(appraisal.vector.status(), Tier::Affirming);
                assert_eq!(appraisal.findings.len(), 1, "{:?}", appraisal.findings);
                let text = appraisal.findings[0].to_string();
                assert!(text.contains(r#"is not among the reference values init_data ["1d"]"#), "{text}");
                assert!(text.contains("kata-cc measure --register"), "{text}");
            }
            let mut none = tcb();
            none["init_data"] = json!(null);
            let appraisal = run(&guest(tee), &references(none));
            assert_ne!(appraisal.vector.status(), Tier::Affirming);
            let text = appraisal.findings[0].to_string();
            assert!(text.contains("no reference value init_data is registered"), "{text}");
            let mut without = guest(tee);
            without.as_object_mut().unwrap().remove("init_data");
            let appraisal = run(&without, &references(tcb()));
            assert_ne!(appraisal.vector.status(), Tier::Affirming);
            assert_eq!(appraisal.findings[0].claim, "init_data");
        }
    }

    #[test]
    fn no_evidence_is_no_trust() {
        let appraisal = run(&json!({}), &references(tcb()));
        assert_eq!(appraisal.vector.status(), Tier::Contraindicated);
    }

    #[test]
    fn wrong_policies_are_refused() {
        let none = references(json!({}));
        let bad = |text: &str| appraise(&compile("p", text).unwrap(), &json!({}), &none).unwrap_err();
        assert!(matches!(
            bad("package policy\ntrust_claims := {\"hardware\": 300}"),
            AppraisalError::Value { .. }
        ));
        assert!(matches!(
            bad("package policy\ntrust_claims := {\"colour\": 3}"),
            AppraisalError::Member { .. }
        ));
        assert!(matches!(bad("package policy\ntrust_claims := 3"), AppraisalError::Shape(_)));
        let empty = appraise(&compile("p", "package policy").unwrap(), &json!({}), &none).unwrap();
        assert_eq!(empty.vector.status(), Tier::None);
    }
}
