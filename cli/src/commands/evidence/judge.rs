//! Puts together what a verdict needs (evidence, endorsements, what is expected) and asks the verifier.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use kata_cc_azure_vtpm::{AzureEvidence, Hardware, HclReport, VariableData};
use kata_cc_endorsements::pem;
use kata_cc_kbs_protocol::initdata::InitData;
use kata_cc_kbs_protocol::{Tee, base64_standard, base64_url};
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_verifier::{Evidence, ExpectedInitData, Verdict, VerifierConfig};
use kata_cc_x509::Certificate;
use serde_json::{Value, json};

use super::Given as Arguments;
use super::certificates::{self, Endorsements, Given};
use super::input::{self, Form, Input};
use super::references::{self, Requirement};
use super::time;
use super::verify::{Answer, Refused, is_simulated};
use crate::commands::read_input;

/// Most bytes of init-data.
const MAX_INIT_DATA: u64 = 4 << 20;
const MAX_ROOT: u64 = 64 << 10;

/// Everything that was read before anything is judged.
#[derive(Debug)]
pub(in crate::commands) struct Judge {
    /// What is judged.
    pub(in crate::commands) input: Input,
    endorsements: Arc<Endorsements>,
    config: VerifierConfig,
    init_data: Option<Expected>,
    /// By name.
    pub(in crate::commands) references: Option<BTreeMap<String, Value>>,
    /// Seconds since 1970.
    pub(in crate::commands) at: u64,
}

/// Init-data as it was given.
#[derive(Debug)]
enum Expected {
    Text(String),
    Digest(Vec<u8>),
}

impl Judge {
    /// Read everything.
    pub(in crate::commands) fn read(file: &Path, arguments: &Arguments) -> anyhow::Result<Self> {
        let simulated = !arguments.simulated_root.is_empty();
        let input = input::read(file, arguments.tee, simulated)?;
        let endorsements = Arc::new(certificates::read(&arguments.endorsements)?);
        let mut config = VerifierConfig::default();
        if !endorsements.collateral.is_empty() {
            config.tdx.collateral = Some(Arc::new(Given(endorsements.collateral.clone())));
        }
        if input.tee == Tee::AzSnpVtpm {
            // Other evidence is given them in its chain.
            config.snp.endorsements = Some(Arc::clone(&endorsements) as _);
        }
        for root in &arguments.simulated_root {
            let bytes = read_input(Some(root), MAX_ROOT)?;
            config
                .add_simulated_roots(&bytes)
                .with_context(|| format!("{} is no root of a simulated platform", root.display()))?;
        }
        Ok(Self {
            input,
            endorsements,
            config,
            init_data: arguments.init_data.as_deref().map(read_init_data).transpose()?,
            references: arguments.reference_values.as_deref().map(references::read).transpose()?,
            at: arguments.at.unwrap_or_else(time::now),
        })
    }

    /// The verdict; everything in which the evidence falls short is in it.
    pub(super) fn judge(&self, arguments: &Arguments, requirements: &[Requirement]) -> Answer {
        let mut answer = Answer::new(self.input.kind(), self.input.tee, self.at);
        match self.verify(arguments) {
            Ok(verdict) => {
                answer.tee = verdict.tee;
                answer.simulated = is_simulated(verdict.tee);
                self.compare(arguments, requirements, &verdict.claims, &mut answer);
                answer.claims = Some(verdict.claims);
            }
            Err(refused) => answer.refusals.push(*refused),
        }
        answer
    }

    /// Signatures and binding alone: what the evidence says, if it is to be believed.
    pub(in crate::commands) fn verify(&self, arguments: &Arguments) -> Result<Verdict, Box<Refused>> {
        if self.input.tee == Tee::Sample {
            return Err(Box::new(Refused::new(
                "sample-not-enabled",
                "tee",
                "sample evidence proves nothing: anybody can make it up".to_owned(),
                "take evidence on hardware with a TEE",
            )));
        }
        if let Form::Hcl(hcl) = &self.input.form {
            return Err(Box::new(hcl_alone(hcl)));
        }
        let evidence = self.evidence().map_err(|error| {
            let advice = "take the evidence again, whole";
            Box::new(Refused::new("malformed", "evidence", format!("{error:#}"), advice))
        })?;
        let input = Evidence {
            tee: self.input.tee,
            evidence: &evidence,
            report_data: arguments.report_data.as_ref().map(|hex| hex.0.as_slice()),
            init_data: self.init_data.as_ref().map(|expected| match expected {
                Expected::Text(text) => ExpectedInitData::Toml(text),
                Expected::Digest(digest) => ExpectedInitData::Digest(digest),
            }),
        };
        kata_cc_verifier::verify(&self.config, &input, self.at).map_err(|refusal| Box::new((&refusal).into()))
    }

    /// Trustee's form of what was read, with the endorsements in it.
    pub(in crate::commands) fn evidence(&self) -> anyhow::Result<Value> {
        let mut snp = match &self.input.form {
            Form::SnpReport(report, table) => SnpEvidence::new(report, table),
            Form::Json(value) if matches!(self.input.tee, Tee::Snp | Tee::SimSnp) => {
                input::snp_parts(value)?.1
            }
            Form::Json(value) if self.input.tee == Tee::AzSnpVtpm => return Ok(self.azure_snp(value)),
            Form::Json(value) => return Ok(value.clone()),
            Form::TdxQuote(quote) => {
                return Ok(json!({"quote": base64_standard(quote), "cc_eventlog": null}));
            }
            Form::Hcl(_) => anyhow::bail!("an HCL report alone is no evidence"),
        };
        let report = snp.attestation_report.to_report()?;
        let chain = self.endorsements.snp_chain(&report, snp.cert_chain.take().unwrap_or_default());
        snp.cert_chain = (!chain.is_empty()).then_some(chain);
        Ok(serde_json::to_value(snp)?)
    }

    /// Azure's evidence with the endorsement key that was given for its report in place of its own; what cannot be read is left to
    /// the verifier to refuse.
    fn azure_snp(&self, evidence: &Value) -> Value {
        let mut with = evidence.clone();
        let Some(members) = with.as_object_mut() else { return with };
        // Version 0 has no member `version`, and the certificate as PEM.
        let old = !members.contains_key("version");
        let form = |certificate: &Certificate| match old {
            true => pem(certificate.der()),
            false => base64_url(certificate.der()),
        };
        let own = members.get("vcek").cloned();
        let found = self.endorsements.certificates.iter().find_map(|any| {
            // Any certificate makes it whole enough to find the report in it.
            members.insert("vcek".to_owned(), form(any).into());
            let whole = AzureEvidence::from_json(Hardware::Snp, &Value::Object(members.clone())).ok()?;
            let (_, report) = HclReport::parse(&whole.hcl_report).ok()?.snp_report().ok()?;
            self.endorsements.vek_of(&report)
        });
        match (found, own) {
            (Some(vek), _) => members.insert("vcek".to_owned(), form(vek).into()),
            (None, Some(own)) => members.insert("vcek".to_owned(), own),
            (None, None) => members.remove("vcek"),
        };
        with
    }

    fn compare(
        &self,
        arguments: &Arguments,
        requirements: &[Requirement],
        claims: &Value,
        answer: &mut Answer,
    ) {
        let tee = answer.tee;
        if let Some(values) = &self.references {
            let (checks, others) = references::compare(tee, claims, values);
            if checks.is_empty() {
                answer.refusals.push(Refused::new(
                    "reference-values",
                    "reference-values",
                    format!("none of the reference values is for {tee}: {}", names(&others)),
                    "give reference values of this TEE: docs/claims.md names them",
                ));
            } else if !others.is_empty() {
                answer.warnings.push(format!("reference values that are not for {tee}: {}", names(&others)));
            }
            answer.checks.extend(checks);
        }
        answer.checks.extend(requirements.iter().map(|requirement| requirement.check(tee, claims)));
        answer.warnings.extend(doubts(arguments, tee, claims));
        if self.init_data.is_none() && answer.checks.iter().all(|check| check.claim != "init_data") {
            answer.warnings.push("init_data was not compared (--init-data)".to_owned());
        }
    }
}

/// What is doubtful of evidence that verifies.
pub(in crate::commands) fn doubts(arguments: &Arguments, tee: Tee, claims: &Value) -> Vec<String> {
    let mut doubts = Vec::new();
    if arguments.report_data.is_none() {
        doubts.push(
            "report_data was not compared (--report-data): the evidence may be an old one, played back"
                .to_owned(),
        );
    }
    let claim = |path: &str| claims.get(tee.name()).and_then(|claims| claims.pointer(path));
    for path in ["/policy_debug_allowed", "/td_attributes/debug"] {
        if claim(path).is_some_and(|value| *value == json!(true) || *value == json!("true")) {
            doubts.push("the host may debug this guest: it can read all of its memory".to_owned());
        }
    }
    if let Some(status) = claim("/tcb_status").and_then(Value::as_str).filter(|status| *status != "UpToDate")
    {
        doubts.push(format!("the platform's TCB is {status}: see its advisory_ids"));
    }
    doubts
}

fn names(all: &[String]) -> String {
    let mut text = all.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > 8 {
        text += ", ...";
    }
    text
}

/// A digest in hex, or a document.
fn read_init_data(text: &str) -> anyhow::Result<Expected> {
    if let Some(digest) = hex::decode(text).ok().filter(|bytes| matches!(bytes.len(), 32 | 48 | 64)) {
        return Ok(Expected::Digest(digest));
    }
    let bytes = read_input(Some(Path::new(text)), MAX_INIT_DATA)
        .context("--init-data takes a file, or a digest of 32, 48 or 64 bytes in hex")?;
    let document = std::str::from_utf8(&bytes).with_context(|| format!("{text} is no text"))?;
    InitData::parse(document).with_context(|| format!("{text} is no init-data"))?;
    Ok(Expected::Text(document.to_owned()))
}

/// Without a quote of the vTPM nothing says when the report was made, or for whom.
fn hcl_alone(hcl: &HclReport) -> Refused {
    let bound = match hcl.hardware() {
        Hardware::Snp => hcl
            .snp_report()
            .and_then(|(_, report)| hcl.check_report_data(&report.report_data))
            .and_then(|()| VariableData::parse(hcl.variable_data()).map(|_| ())),
        Hardware::Tdx => Ok(()),
    };
    match bound {
        Ok(()) => Refused::new(
            "incomplete",
            "tpm_quote",
            format!(
                "an HCL report of {} alone proves nothing about now: there is no quote of its vTPM over a nonce and the PCRs",
                hcl.hardware().name()
            ),
            "give the whole evidence as JSON (hcl_report, tpm_quote, and vcek or td_quote)",
        ),
        Err(error) => Refused::new("malformed", "hcl_report", error.to_string(), "take the HCL report again"),
    }
}
