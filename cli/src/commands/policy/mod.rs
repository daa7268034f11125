//! `kata-cc policy`: the Rego texts that decide who gets what. The key broker's are set and shown; the guest agent's
//! built-in one is shown, and replaced per pod by the init-data's `policy.rego`, which is made from the pod's manifest, and reviewed, here.

pub(crate) mod bundle;
mod follow;
mod generate;
mod images;
mod import;
mod review;

use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;

use super::broker::BrokerArguments;
use super::{block_on, read_input};
use crate::output::Output;

/// What the agent starts with, as the guest image holds it.
const AGENT_POLICY: &str = include_str!("../../../../agent/policy/default.rego");
const MAX_POLICY: u64 = 1 << 20;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Replace a policy of the key broker.
    Set {
        /// Which.
        which: BrokerPolicy,
        /// File with the Rego text; standard input without it.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Id of an attestation policy.
        #[arg(long, default_value = "default_cpu")]
        id: String,
        #[command(flatten)]
        broker: BrokerArguments,
    },
    /// Print a policy.
    Show {
        /// Which.
        which: AnyPolicy,
        /// Id of an attestation policy.
        #[arg(long, default_value = "default_cpu")]
        id: String,
        #[command(flatten)]
        broker: BrokerArguments,
    },
    /// Build, sign, verify, push and pull policy bundles: all policies of a Git repository as one signed artifact.
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// Tell what a key broker decides by, and how that differs from a bundle; exit code 1 when it does.
    Status(Box<follow::StatusArguments>),
    /// Hold an earlier policy bundle in force, until `--resume`.
    Rollback(follow::RollbackArguments),
    /// Tell what another project's file says as reference values of a policy bundle.
    Import(import::Import),
    /// Make the agent policy of a pod from its manifest.
    Gen(Box<generate::Arguments>),
    /// Tell what an agent policy leaves open; exit code 1 when something dangerous is.
    Lint(review::LintArguments),
    /// Put cases (YAML) to an agent policy; exit code 1 when one does not come as it says.
    Test(review::TestArguments),
    /// Tell the changes between two generated policies in words; exit code 1 when the second allows more.
    Diff(review::DiffArguments),
    /// Tell why requests are denied, and the smallest change that would allow them.
    Explain(review::ReplayArguments),
    /// Put recorded requests (JSON lines) to an agent policy; exit code 1 when one is denied.
    Simulate(review::ReplayArguments),
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum BrokerPolicy {
    /// Which guest may have which secret.
    Resource,
    /// What a guest's evidence is worth.
    Attestation,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum AnyPolicy {
    /// Which guest may have which secret.
    Resource,
    /// What a guest's evidence is worth.
    Attestation,
    /// What the host may ask of a confidential guest: the guest image's built-in policy.
    Agent,
}

/// Run it.
pub(crate) fn run(command: Command, output: &Output) -> anyhow::Result<u8> {
    match command {
        Command::Set { which, file, id, broker } => {
            let client = broker.client()?;
            let bytes = read_input(file.as_deref(), MAX_POLICY)?;
            let text = std::str::from_utf8(&bytes).context("the policy is not UTF-8 text")?;
            anyhow::ensure!(!text.trim().is_empty(), "the policy is empty: give --file FILE, or pipe it in");
            let name = match which {
                BrokerPolicy::Resource => "resource",
                BrokerPolicy::Attestation => "attestation",
            };
            block_on(async {
                match which {
                    BrokerPolicy::Resource => client.set_resource_policy(text).await,
                    BrokerPolicy::Attestation => client.set_attestation_policy(&id, text).await,
                }
                .with_context(|| format!("the {name} policy was not set"))
            })?;
            if output.json {
                output.document(&json!({"set": name}))?;
            } else {
                output.text(&format!("set the {name} policy\n"))?;
            }
        }
        Command::Bundle(command) => return bundle::run(command, output),
        Command::Status(arguments) => return follow::status(&arguments, output),
        Command::Rollback(arguments) => return follow::rollback(&arguments, output),
        Command::Import(arguments) => import::run(&arguments, output)?,
        Command::Gen(arguments) => return generate::run(&arguments, output),
        Command::Lint(arguments) => return review::lint(&arguments, output),
        Command::Test(arguments) => return review::test(&arguments, output),
        Command::Diff(arguments) => return review::diff(&arguments, output),
        Command::Explain(arguments) => return review::explain(&arguments, output),
        Command::Simulate(arguments) => return review::simulate(&arguments, output),
        Command::Show { which: AnyPolicy::Agent, .. } => show(output, "agent", AGENT_POLICY, true)?,
        Command::Show { which, id, broker } => {
            let client = broker.client()?;
            let policy = block_on(async {
                Ok(match which {
                    AnyPolicy::Attestation => client.attestation_policy(&id).await?,
                    _ => client.resource_policy().await?,
                })
            })?;
            let name = if matches!(which, AnyPolicy::Attestation) { "attestation" } else { "resource" };
            show(output, name, &policy.policy, policy.default)?;
        }
    }
    Ok(0)
}

fn show(output: &Output, which: &str, text: &str, built_in: bool) -> anyhow::Result<()> {
    if output.json {
        return output.document(&json!({"which": which, "policy": text, "default": built_in}));
    }
    output.text(text)
}
