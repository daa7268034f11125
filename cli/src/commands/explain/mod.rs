//! `kata-cc explain`: why something is as it is. Of a sandbox, how it started; of an attestation token or of evidence, every comparison of
//! the attestation policy: claim, seen, expected, by which rule and reference value, and what to do; of a log of the sentry, which system calls
//! programs missed.
//!
//! Exit codes of a sandbox: 0 told. Of token and evidence: 0 verified and affirmed; 1 refused, not affirmed, or a token that nobody
//! verified, with the reasons; 2 something cannot be read. What comes from a token, evidence or a service is never believed for being there:
//! a token is checked by the keys that are given, and called unverified without any.

mod calls;
mod evidence;
mod sandbox;
mod service;
mod token;
mod verdict;

use std::path::PathBuf;

use super::evidence::{Given, unreadable};
use crate::output::Output;

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["id", "token", "evidence", "calls"])))]
pub(crate) struct Arguments {
    /// Sandbox, or the beginning of its id.
    id: Option<String>,
    /// Attestation token (EAR) to explain instead; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// Key set (JWKS) by which the token is verified, offline; several may be given.
    #[arg(long, value_name = "FILE", requires = "token", conflicts_with_all = ["evidence", "id"])]
    jwks: Vec<PathBuf>,
    /// Certificates (PEM) to which the token's own (x5c) have to lead; several may be given.
    #[arg(long, value_name = "PEM", requires = "token", conflicts_with_all = ["evidence", "id"])]
    cert: Vec<PathBuf>,
    /// Evidence to verify and appraise offline instead; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    evidence: Option<PathBuf>,
    /// Log of a sandbox on the sentry, or the sandbox, to tell instead which system calls its programs missed; `-` is standard input.
    #[arg(long, value_name = "FILE|SANDBOX")]
    calls: Option<String>,
    #[command(flatten)]
    given: Given,
    /// Attestation policy (Rego) for the evidence; the built-in one without it.
    #[arg(long, value_name = "FILE", requires = "evidence", conflicts_with_all = ["token", "id"])]
    policy: Option<PathBuf>,
    /// Have an attestation service judge the evidence, by its own policy and reference values.
    #[arg(long = "as", value_name = "URL", requires = "evidence", conflicts_with_all = ["policy", "token", "id"])]
    service: Option<String>,
    /// PEM of the certificate (or its root) that the service is known by; nothing else is trusted.
    #[arg(long = "as-cert", value_name = "FILE", requires = "service")]
    service_cert: Option<PathBuf>,
}

/// Run it; gives the exit code.
pub(crate) fn explain(arguments: &Arguments, output: &Output) -> anyhow::Result<u8> {
    let answer = match arguments {
        Arguments { id: Some(id), .. } => {
            return match only_evidence(arguments, false) {
                Ok(()) => sandbox::explain(id, output),
                Err(error) => Ok(unreadable(&error, output)),
            };
        }
        Arguments { token: Some(file), .. } => {
            only_evidence(arguments, true).and_then(|()| token::explain(file, arguments))
        }
        Arguments { calls: Some(what), .. } => {
            return match only_evidence(arguments, false).and_then(|()| calls::explain(what, output)) {
                Ok(code) => Ok(code),
                Err(error) => Ok(unreadable(&error, output)),
            };
        }
        Arguments { evidence: Some(file), service: Some(url), .. } => service::explain(file, url, arguments),
        Arguments { evidence: Some(file), .. } => evidence::explain(file, arguments),
        _ => anyhow::bail!(
            "nothing is named that could be explained: give a sandbox, --token, --evidence or --calls"
        ),
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Ok(unreadable(&error, output)),
    };
    if output.json {
        output.document(&answer)?;
    } else {
        output.text(&answer.text(output))?;
    }
    Ok(answer.code())
}

/// Refuses options that go with evidence alone.
fn only_evidence(arguments: &Arguments, token: bool) -> anyhow::Result<()> {
    let mut options = arguments.given.options();
    if arguments.given.at.is_some() && !token {
        options.push("--at");
    }
    let what = if token { "a token" } else { "a sandbox" };
    anyhow::ensure!(options.is_empty(), "{} goes with --evidence FILE, not with {what}", options.join(", "));
    Ok(())
}
