//! `kata-cc explain --as`: evidence judged by an attestation service (`POST /api/v1/explain`), which issues no token for it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use kata_cc_kbs_client::{ClientError, Endpoint, explain_evidence};
use kata_cc_kbs_protocol::Tee;
use serde::Deserialize;

use super::Arguments;
use super::verdict::{Explained, Part};
use crate::commands::evidence::judge::Judge;
use crate::commands::evidence::time;
use crate::commands::evidence::verify::{Refused, SIMULATED};
use crate::commands::{block_on, read_text};

/// Status of an answer that refuses the evidence.
const UNPROCESSABLE: u16 = 422;

/// What the service answers.
#[derive(Deserialize)]
struct Answer {
    submods: BTreeMap<String, Part>,
}

pub(super) fn explain(file: &Path, url: &str, arguments: &Arguments) -> anyhow::Result<Explained> {
    let mut beside = arguments.given.options();
    beside.retain(|option| !matches!(*option, "--tee" | "--endorsements"));
    if arguments.given.at.is_some() {
        beside.push("--at");
    }
    anyhow::ensure!(
        beside.is_empty(),
        "{} cannot be used with --as: the service judges by what it has, now",
        beside.join(", ")
    );
    let judge = Judge::read(file, &arguments.given)?;
    let mut answer = Explained::new(format!("{}, by {url}", judge.input.kind()), time::utc(judge.at));
    let certificates = arguments.service_cert.as_deref().map(read_text).transpose()?;
    let endpoint = Endpoint {
        url: url.to_owned(),
        certificates: certificates.into_iter().collect(),
        ..Endpoint::default()
    };
    let evidence = judge.evidence()?;
    let told = block_on(async { Ok(explain_evidence(&endpoint, judge.input.tee, &evidence).await) })?;
    let told = match told {
        Ok(told) => told,
        Err(ClientError::Refused { status: UNPROCESSABLE, name, detail, .. }) => {
            let reason = name.rsplit(':').next().unwrap_or_default();
            let advice = "see the reason; the service's log has more of it";
            answer.refusals.push(Refused::new(reason, "evidence", detail, advice));
            return Ok(answer);
        }
        Err(error) => return Err(error.into()),
    };
    let told: Answer = serde_json::from_value(told)
        .with_context(|| format!("the answer of {url} is not that of an attestation service"))?;
    answer.verified = true;
    answer.submods = told.submods;
    let simulated = [Tee::SimSnp, Tee::SimTdx].map(|tee| Some(tee.name().to_owned()));
    if answer.submods.values().any(|part| simulated.contains(&part.tee)) {
        answer.warnings.push(SIMULATED.to_owned());
    }
    answer.warnings.push(
        "the service did not compare report_data: the evidence may be an old one, played back".to_owned(),
    );
    answer.conclude();
    Ok(answer)
}
