//! Appraisal: an attestation policy (Rego) compares claims with reference values.
//!
//! The policy is `data.policy.trust_claims` (member of the trust vector to -128..127), `data.policy.extensions`
//! (optional, `[{name, key, value}]`) and, ours, `data.policy.checks` (optional: every comparison, see
//! [`crate::explain`]) or `data.policy.findings` (optional: those that failed). `input` is the annotated evidence of one device;
//! `query_reference_value("<name>")` is a registered value or null. A policy that names `data.reference` is given all values
//! there too, as Trustee did before that function. A policy without `trust_claims` yields an empty vector, whose status is `none`.
//!
//! A policy is compiled once; an evaluation costs a copy of the prepared interpreter and one pass through it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use kata_cc_policy::engine::{Document, EngineError, Limits, Lookup, Program};
use serde::Serialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::ear::{Appraisal, Finding, Tier, TrustVector};
use crate::explain::{Check, PolicyCheck};
use crate::references::{InForce, Record, ReferenceUse};

/// The built-in policy for `default_cpu`.
pub const DEFAULT_CPU: &str = include_str!("policies/default_cpu.rego");

/// The built-in policy for `default_gpu`.
pub const DEFAULT_GPU: &str = include_str!("policies/default_gpu.rego");

/// Ids and texts of all built-in policies.
pub const BUILT_IN: [(&str, &str); 2] = [("default_cpu", DEFAULT_CPU), ("default_gpu", DEFAULT_GPU)];

const QUERY: &str = "query_reference_value";

/// Rules that are read.
const RULES: [&str; 4] =
    ["data.policy.trust_claims", "data.policy.extensions", "data.policy.checks", "data.policy.findings"];

/// Most checks that are read from a policy.
const MAX_CHECKS: usize = 256;
/// Most bytes of a policy id.
pub const MAX_ID: usize = 255;

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

/// Which policy it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyName {
    /// Id with the class, e.g. `default_cpu`.
    pub id: String,
    /// SHA-256 of its text in hexadecimal.
    pub digest: String,
}

/// A compiled policy.
#[derive(Debug, Clone)]
pub struct Policy {
    name: Arc<PolicyName>,
    program: Program,
    /// Whether it names `data.reference`.
    reads_data: bool,
    /// Whether it says what it compared.
    explains: bool,
    /// Whether it has `trust_claims`.
    judges: bool,
}

/// Compiles a policy text; what is accepted here can be stored.
pub fn compile(id: &str, text: &str) -> Result<Policy, EngineError> {
    compile_within(id, text, &Limits::default())
}

/// The same with other limits than the usual ones.
pub fn compile_within(id: &str, text: &str, limits: &Limits) -> Result<Policy, EngineError> {
    let program = Program::compile_rules(id, text, limits, &[QUERY], &RULES)?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let has = |rule: &str| program.has_rule(&format!("data.policy.{rule}"));
    Ok(Policy {
        explains: has("checks") || has("findings"),
        judges: has("trust_claims"),
        name: Arc::new(PolicyName { id: id.to_owned(), digest: hex::encode(digest) }),
        program,
        reads_data: text.contains("data.reference") || text.contains("data[\"reference\"]"),
    })
}

impl Policy {
    /// Its id and digest.
    pub fn name(&self) -> &Arc<PolicyName> {
        &self.name
    }

    /// Whether there is a rule `trust_claims`: without one every status is `none`.
    pub fn judges(&self) -> bool {
        self.judges
    }
}

/// Values and what is known of them, at one time.
#[derive(Debug, Clone, Copy)]
pub struct References<'a> {
    /// All records, also those that have ended.
    pub records: &'a BTreeMap<String, Record>,
    /// Those in force.
    pub in_force: &'a InForce,
    /// Seconds since 1970.
    pub now: i64,
}

/// Appraises the annotated evidence of one device.
pub fn appraise(
    policy: &Policy,
    evidence: &Value,
    references: References<'_>,
) -> Result<Appraisal, AppraisalError> {
    let asked: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let documents = Arc::clone(references.in_force.documents());
    let trace = (!policy.explains).then(|| Arc::clone(&asked));
    let query: Lookup = Arc::new(move |name| {
        if let Some(trace) = &trace {
            trace.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        }
        Some(documents.get(name).cloned().unwrap_or_else(Document::null))
    });
    let functions = BTreeMap::from([(QUERY.to_owned(), query)]);
    let data = policy.reads_data.then(|| references.in_force.data());
    let values = policy.program.evaluate_rules(evidence, data, &functions)?.value;
    let mut values = match values {
        Some(Value::Object(values)) => values,
        _ => serde_json::Map::new(),
    };
    let id = &policy.name.id;
    let mut appraisal =
        Appraisal { vector: vector(id, values.remove("trust_claims"))?, ..Default::default() };
    if let Some(Value::Array(extensions)) = values.remove("extensions") {
        for extension in extensions {
            if let (Some(name), Some(value)) =
                (extension.get("name").and_then(Value::as_str), extension.get("value"))
            {
                appraisal.extensions.insert(name.to_owned(), value.clone());
            }
        }
    }
    let reads = |value: Option<Value>, ok: Option<bool>| {
        let all = value.as_ref().and_then(Value::as_array).into_iter().flatten().take(MAX_CHECKS);
        all.filter_map(|one| PolicyCheck::read(one, ok))
            .map(|check| check.explained(&policy.name, references))
            .collect::<Vec<_>>()
    };
    appraisal.checks = reads(values.remove("checks"), None);
    appraisal.checks.extend(reads(values.remove("findings"), Some(false)));
    if !policy.explains {
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        appraisal.checks = without_explanation(policy, &appraisal.vector, &asked, references);
    }
    // What failed first: whoever reads no further has read that.
    appraisal.checks.sort_by_key(|check| check.ok);
    appraisal.findings = appraisal
        .checks
        .iter()
        .filter(|check| !check.ok)
        .take(crate::ear::MAX_FINDINGS)
        .map(Finding::from)
        .collect();
    Ok(appraisal)
}

fn vector(policy: &str, claims: Option<Value>) -> Result<TrustVector, AppraisalError> {
    let mut vector = TrustVector::default();
    let Some(claims) = claims else { return Ok(vector) };
    let claims = claims.as_object().ok_or_else(|| AppraisalError::Shape(policy.to_owned()))?;
    for (member, value) in claims {
        let number = value.as_i64().and_then(|v| i8::try_from(v).ok());
        let number = number.ok_or_else(|| AppraisalError::Value {
            policy: policy.to_owned(),
            member: member.clone(),
            seen: value.to_string().chars().take(64).collect(),
        })?;
        if !vector.set(member, number) {
            return Err(AppraisalError::Member { policy: policy.to_owned(), member: member.clone() });
        }
    }
    Ok(vector)
}

/// For a policy that does not say what it compared (Trustee's do not): what it set, and the reference values that it asked for in
/// vain.
fn without_explanation(
    policy: &Policy,
    vector: &TrustVector,
    asked: &BTreeSet<String>,
    references: References<'_>,
) -> Vec<Check> {
    let uses = asked.iter().map(|name| ReferenceUse::of(references.records, name, references.now));
    let missing: Vec<ReferenceUse> = uses.filter(|one| one.state != "valid").collect();
    let members = vector.members().filter(|(_, value)| Tier::of(*value) != Tier::None);
    let mut checks: Vec<Check> = members
        .map(|(member, value)| {
            let ok = Tier::of(value) == Tier::Affirming;
            Check {
                rule: member.to_owned(),
                claim: member.to_owned(),
                seen: json!(value),
                expected: json!("2 to 31 or -32 to -2"),
                ok,
                reference: None,
                policy: Arc::clone(&policy.name),
                what_to_do: (!ok).then(|| {
                    "the policy does not say what it compared: read its rules for this member, and give it a set `checks`"
                        .to_owned()
                }),
            }
        })
        .collect();
    if checks.iter().any(|check| !check.ok) {
        checks.extend(missing.into_iter().map(|reference| Check {
            rule: String::new(),
            claim: reference.name.clone(),
            seen: Value::Null,
            expected: Value::Null,
            ok: false,
            what_to_do: crate::explain::advice(&reference, None),
            reference: Some(reference),
            policy: Arc::clone(&policy.name),
        }));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::references::Source;

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

    /// Records of an object from name to value.
    pub(super) fn values(all: &Value) -> BTreeMap<String, Record> {
        let values: BTreeMap<String, Value> = serde_json::from_value(all.clone()).unwrap();
        let record = |(name, value): (String, Value)| {
            (name.clone(), Record::new(&name, value, None, Source::administrator(), "me"))
        };
        values.into_iter().map(record).collect()
    }

    fn references(extra: Value) -> BTreeMap<String, Record> {
        let mut all = json!({"snp_launch_measurement": ["ab", "cd"], "sim_snp_launch_measurement": ["ab", "cd"],
            "init_data": [INIT_DATA]});
        for (name, value) in extra.as_object().unwrap() {
            all[name.as_str()] = value.clone();
        }
        values(&all)
    }

    pub(super) fn judge(
        policy: &Policy,
        evidence: &Value,
        records: &BTreeMap<String, Record>,
    ) -> Result<Appraisal, AppraisalError> {
        let in_force = InForce::at(records, 1000);
        appraise(policy, evidence, References { records, in_force: &in_force, now: 1000 })
    }

    fn tcb() -> Value {
        json!({"snp_bootloader": [3], "snp_microcode": [115], "snp_snp_svn": [8], "snp_tee_svn": [0]})
    }

    fn run(evidence: &Value, references: &BTreeMap<String, Record>) -> Appraisal {
        judge(&compile("default_cpu", DEFAULT_CPU).unwrap(), evidence, references).unwrap()
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

    /// What was registered for a simulated guest does not affirm one of hardware, nor the other way round.
    #[test]
    fn launches_of_simulated_guests_have_values_of_their_own() {
        for (tee, other) in [("snp", "sim_snp_launch_measurement"), ("sim-snp", "snp_launch_measurement")] {
            let mut all = tcb();
            all[other] = json!(["ab"]);
            all["init_data"] = json!([INIT_DATA]);
            let appraisal = run(&guest(tee), &values(&all));
            assert_eq!(appraisal.vector.get("executables"), Some(33), "{tee}");
        }
    }

    #[test]
    fn another_measurement_is_named() {
        let mut evidence = guest("sim-snp");
        evidence["sim-snp"]["measurement"] = json!("ee");
        let appraisal = run(&evidence, &references(json!({})));
        assert_eq!(appraisal.vector.status(), Tier::Warning);
        assert_eq!(appraisal.findings.len(), 1);
        let text = appraisal.findings[0].to_string();
        let words = r#"measurement ee is not among the reference values sim_snp_launch_measurement ["ab","cd"]: register"#;
        assert!(text.starts_with(words), "{text}");
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
        let text = appraisal.findings[0].to_string();
        assert!(text.starts_with("policy_debug_allowed is true, expected false: launch"), "{text}");
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
        let bad = |text: &str| judge(&compile("p", text).unwrap(), &json!({}), &none).unwrap_err();
        assert!(matches!(
            bad("package policy\ntrust_claims := {\"hardware\": 300}"),
            AppraisalError::Value { .. }
        ));
        assert!(matches!(
            bad("package policy\ntrust_claims := {\"colour\": 3}"),
            AppraisalError::Member { .. }
        ));
        assert!(matches!(bad("package policy\ntrust_claims := 3"), AppraisalError::Shape(_)));
        let empty = judge(&compile("p", "package policy").unwrap(), &json!({}), &none).unwrap();
        assert_eq!(empty.vector.status(), Tier::None);
    }
}

#[cfg(test)]
#[path = "default_policy_test.rs"]
mod default_policy;
