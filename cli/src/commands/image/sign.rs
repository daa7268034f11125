//! `kata-cc image sign`: signatures as cosign makes them with a key.

use std::path::PathBuf;

use anyhow::Context as _;
use kata_cc_image::ImageClient;
use kata_cc_policy_bundle::artifact;
use serde_json::json;

use super::RegistryArguments;
use crate::commands::block_on;
use crate::commands::policy::bundle::signer;
use crate::output::{Output, printable};

#[derive(Debug, clap::Args)]
pub(crate) struct Sign {
    /// What is signed: a registry reference. Another's signatures stay.
    reference: String,
    /// Private key (PKCS#8 PEM, ECDSA P-256).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    registry: RegistryArguments,
}

/// Signs what the reference names now; the tag may name something else tomorrow.
pub(super) fn run(arguments: &Sign, output: &Output) -> anyhow::Result<()> {
    let signer = signer(&arguments.key)?;
    let config = arguments.registry.config(&[&arguments.reference])?;
    let digest = block_on(async {
        let client = ImageClient::new(config)?;
        let signed = artifact::sign(client.registry(), &arguments.reference, &signer).await;
        signed.with_context(|| format!("{} was not signed", arguments.reference))
    })?;
    if output.json {
        return output.document(&json!({"image": arguments.reference, "signed": digest}));
    }
    output.text(&format!("signed {} of {}\n", digest, printable(&arguments.reference)))
}
