//! `kata-cc explain --evidence`: evidence verified as `kata-cc evidence verify` does, then appraised by the attestation policy, offline.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use kata_cc_attestation_service::appraisal::{DEFAULT_CPU, Policy, References, appraise, compile};
use kata_cc_attestation_service::references::{InForce, Record, Source};
use kata_cc_verifier::Verdict;
use serde_json::Value;

use super::Arguments;
use super::verdict::{Explained, Part, Row};
use crate::commands::evidence::judge::{Judge, doubts};
use crate::commands::evidence::time;
use crate::commands::evidence::verify::{SIMULATED, is_simulated};
use crate::commands::read_input;

/// Most bytes of a policy.
const MAX_POLICY: u64 = 1 << 20;

pub(super) fn explain(file: &Path, arguments: &Arguments) -> anyhow::Result<Explained> {
    let given = &arguments.given;
    let policy = policy(arguments.policy.as_deref())?;
    let judge = Judge::read(file, given)?;
    let mut answer = Explained::new(judge.input.kind(), time::utc(judge.at));
    let verdict = match judge.verify(given) {
        Ok(verdict) => verdict,
        Err(refused) => {
            answer.refusals.push(*refused);
            return Ok(answer);
        }
    };
    answer.verified = true;
    if is_simulated(verdict.tee) {
        answer.warnings.push(SIMULATED.to_owned());
    }
    answer.warnings.extend(doubts(given, verdict.tee, &verdict.claims));
    if judge.references.is_none() {
        answer.warnings.push("no reference values were given (--reference-values FILE)".to_owned());
    }
    let part = appraised(&policy, &verdict, judge.references.as_ref(), judge.at)?;
    answer.submods.insert("cpu0".to_owned(), part);
    answer.conclude();
    Ok(answer)
}

fn policy(file: Option<&Path>) -> anyhow::Result<Policy> {
    let Some(file) = file else { return Ok(compile("default_cpu", DEFAULT_CPU)?) };
    let name = || format!("policy {}", file.display());
    let bytes = read_input(Some(file), MAX_POLICY)?;
    let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is not UTF-8 text", name()))?;
    let id = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    compile(&id, text).with_context(|| format!("{} does not compile", name()))
}

fn appraised(
    policy: &Policy,
    verdict: &Verdict,
    values: Option<&BTreeMap<String, Value>>,
    at: u64,
) -> anyhow::Result<Part> {
    let detail = Some("--reference-values".to_owned());
    let source = Source { kind: "file".to_owned(), signer: None, detail, signed_at: None };
    let record = |(name, value): (&String, &Value)| {
        (name.clone(), Record::new(name, value.clone(), None, source.clone(), "--reference-values"))
    };
    let records: BTreeMap<_, _> = values.into_iter().flatten().map(record).collect();
    let now = i64::try_from(at).unwrap_or(i64::MAX);
    let in_force = InForce::at(&records, now);
    let references = References { records: &records, in_force: &in_force, now };
    let appraisal =
        appraise(policy, &verdict.claims, references).context("the attestation policy cannot judge it")?;
    let measurement = verdict.tee_claims().get("measurement").and_then(Value::as_str);
    Ok(Part {
        tee: Some(verdict.tee.name().to_owned()),
        status: appraisal.vector.status().name().to_owned(),
        trustworthiness_vector: appraisal.vector.to_json(),
        measurement: measurement.map(str::to_owned),
        explanation: appraisal.checks.iter().map(Row::from).collect(),
    })
}
