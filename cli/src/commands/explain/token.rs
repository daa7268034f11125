//! `kata-cc explain --token`: what a token says about why it says it.
//!
//! A token carries what failed (`ear.kata-cc.findings`), not what held; of others, as Trustee's, there is the trust vector alone.

use std::path::Path;

use kata_cc_attestation_service::ear::{FINDINGS, Finding, POLICY_DIGEST, Tier};
use kata_cc_attestation_service::jws::{JwsError, Unverified};
use kata_cc_attestation_service::token::TokenError;
use kata_cc_kbs_protocol::Tee;
use serde_json::{Value, json};

use super::Arguments;
use super::verdict::{Explained, Part, Row};
use crate::commands::evidence::time;
use crate::commands::evidence::verify::{Refused, SIMULATED, is_simulated};
use crate::commands::token::{token_of, trusted};

/// What is said of a token without keys.
const UNVERIFIED: &str = "UNVERIFIED: anybody can have written this token; give the service's key set by --jwks FILE (or --cert PEM)";

pub(super) fn explain(file: &Path, arguments: &Arguments) -> anyhow::Result<Explained> {
    let at = arguments.given.at.unwrap_or_else(time::now);
    let token = token_of(file)?;
    let mut answer = Explained::new("attestation token".to_owned(), time::utc(at));
    let claims = if arguments.jwks.is_empty() && arguments.cert.is_empty() {
        answer.warnings.push(UNVERIFIED.to_owned());
        Unverified::parse(&token)?.claims().clone()
    } else {
        let verifier = trusted(&arguments.jwks, &arguments.cert)?;
        match verifier.verify(&token, i64::try_from(at).unwrap_or(i64::MAX)) {
            Ok(claims) => claims,
            Err(error @ TokenError::Jws(JwsError::Format(_))) => return Err(error.into()),
            Err(error) => {
                answer.refusals.push(Refused::new(
                    error.reason(),
                    "token",
                    error.to_string(),
                    advice(&error),
                ));
                return Ok(answer);
            }
        }
    };
    answer.verified = answer.warnings.is_empty();
    for (name, submod) in claims.get("submods").and_then(Value::as_object).into_iter().flatten() {
        let part = part(submod);
        answer.submods.insert(name.clone(), part);
    }
    let tees = || answer.submods.values().filter_map(|part| Tee::from_name(part.tee.as_deref()?));
    let (simulated, sample) = (tees().any(is_simulated), tees().any(|tee| tee == Tee::Sample));
    answer.warnings.extend(simulated.then(|| SIMULATED.to_owned()));
    answer
        .warnings
        .extend(sample.then(|| "sample evidence proves nothing: anybody can make it up".to_owned()));
    if answer.submods.is_empty() {
        answer.warnings.push("the token has no submods: it says nothing about anybody".to_owned());
    }
    answer.conclude();
    Ok(answer)
}

fn advice(error: &TokenError) -> &'static str {
    match error.reason() {
        "expired" => "have the guest attest again, or give the time to judge at by --at",
        "not-yet-valid" => "set the clock, or give the time to judge at by --at",
        _ => "give the key set of the service that signed it, and trust no other token",
    }
}

fn part(submod: &Value) -> Part {
    let text = |name: &str| submod.get(name).and_then(Value::as_str).map(str::to_owned);
    let evidence = submod.get("ear.veraison.annotated-evidence").and_then(Value::as_object);
    let mut names = evidence.into_iter().flatten().map(|(name, _)| name);
    let tee = names.find(|name| Tee::from_name(name).is_some()).cloned();
    let measurement = evidence.zip(tee.as_ref()).and_then(|(evidence, tee)| evidence.get(tee));
    let measurement = measurement.and_then(|claims| claims.get("measurement")?.as_str()).map(str::to_owned);
    let vector = submod.get("ear.trustworthiness-vector").cloned().unwrap_or(Value::Null);
    let policy = text("ear.appraisal-policy-id").map(|id| match text(POLICY_DIGEST) {
        Some(digest) => json!({"id": id, "digest": digest}),
        None => json!({"id": id}),
    });
    let findings = submod.get(FINDINGS).and_then(Value::as_array).into_iter().flatten();
    let findings = findings.filter_map(|one| serde_json::from_value::<Finding>(one.clone()).ok());
    let mut rows: Vec<Row> = findings
        .map(|finding| Row {
            rule: finding.rule,
            claim: finding.claim,
            seen: finding.seen,
            expected: finding.expected,
            ok: false,
            reference: finding.reference.map(|name| json!({ "name": name })),
            policy: policy.clone(),
            what_to_do: finding.what_to_do,
        })
        .collect();
    let told = rows.len();
    for (member, value) in vector.as_object().into_iter().flatten() {
        let tier = value.as_i64().and_then(|value| i8::try_from(value).ok()).map(Tier::of);
        // What failed of a member is told by the findings; 0 is "nothing is said".
        let known = rows.iter().take(told).any(|row| row.rule == *member);
        if tier == Some(Tier::None) || known {
            continue;
        }
        let ok = tier == Some(Tier::Affirming);
        rows.push(Row {
            rule: member.clone(),
            claim: member.clone(),
            seen: value.clone(),
            expected: json!("2 to 31 or -32 to -2"),
            ok,
            reference: None,
            policy: policy.clone(),
            what_to_do: (!ok).then(|| {
                "the token does not say what was compared: explain the evidence, or ask the service that judged it"
                    .to_owned()
            }),
        });
    }
    rows.sort_by_key(|row| row.ok);
    let status = text("ear.status").unwrap_or_else(|| Tier::None.name().to_owned());
    Part { tee, status, trustworthiness_vector: vector, measurement, explanation: rows }
}
