//! `kata-cc image verify`: whether an image's signatures are those that a policy demands, as a guest would find.
//!
//! Exit codes: 0 the policy lets it pass; 1 it is refused, with the reasons; 2 policy, key or registry cannot be read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use kata_cc_image::signature::{FileMaterial, KeyMaterial, MAX_POLICY, MaterialError, Refusal};
use kata_cc_image::{ClientConfig, ImageClient, PullError, SignatureError, SignaturePolicy, Verified};
use serde_json::json;

use super::RegistryArguments;
use crate::commands::{block_on, read_input};
use crate::output::{Output, printable};

/// Exit code of an image that is refused.
const REFUSED: u8 = 1;
/// Exit code of what cannot be read or reached.
const UNREADABLE: u8 = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// Image: a registry reference.
    reference: String,
    /// The policy (policy.json, docs/image-signatures.md).
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// File to read in place of a resource of the key broker that the policy names; several may be given.
    #[arg(long, value_name = "URI=FILE", value_parser = parse_key)]
    key: Vec<(String, PathBuf)>,
    #[command(flatten)]
    registry: RegistryArguments,
}

pub(super) fn parse_key(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((uri, file)) if uri.starts_with("kbs://") && !file.is_empty() => {
            Ok((uri.to_owned(), PathBuf::from(file)))
        }
        _ => Err("expected kbs:///repository/type/tag=FILE".to_owned()),
    }
}

/// Files of this machine, also in place of resources.
struct Files(BTreeMap<String, PathBuf>);

#[async_trait]
impl KeyMaterial for Files {
    async fn read(&self, path: &str) -> Result<Vec<u8>, MaterialError> {
        match self.0.get(path) {
            Some(file) => FileMaterial.read(&file.display().to_string()).await,
            None => FileMaterial.read(path).await,
        }
    }
}

/// Run it; gives the exit code.
pub(crate) fn run(arguments: Verify, output: &Output) -> anyhow::Result<u8> {
    verify(arguments, output).or_else(|error| {
        output.error(&error);
        Ok(UNREADABLE)
    })
}

/// The policy of a file; `key` has files in place of resources that it names.
pub(super) fn signature_policy(
    file: &Path,
    key: Vec<(String, PathBuf)>,
) -> anyhow::Result<Arc<SignaturePolicy>> {
    let text = read_input(Some(file), MAX_POLICY as u64)?;
    let policy = SignaturePolicy::new(&text, Arc::new(Files(key.into_iter().collect())));
    policy.map(Arc::new).with_context(|| format!("{} is no policy", file.display()))
}

fn verify(arguments: Verify, output: &Output) -> anyhow::Result<u8> {
    let Verify { reference, policy, key, registry } = arguments;
    let signatures = Some(signature_policy(&policy, key)?);
    let config = ClientConfig { signatures, ..registry.config(&[reference.as_str()])? };
    let checked = block_on(async { Ok(ImageClient::new(config)?.verify(&reference).await) })?;
    match checked {
        Ok((digest, verified)) => {
            let verified = verified.context("no policy was looked at")?;
            passed(&reference, digest.as_str(), &verified, output)
        }
        Err(PullError::Signature(SignatureError::Refused(refusal))) => refused(&refusal, output),
        Err(error) => Err(error.into()),
    }
}

fn passed(reference: &str, digest: &str, verified: &Verified, output: &Output) -> anyhow::Result<u8> {
    let Verified { scope, signatures } = verified;
    if output.json {
        output.document(
            &json!({"image": reference, "manifest_digest": digest, "verified": true, "scope": scope,
            "signatures": signatures}),
        )?;
        return Ok(0);
    }
    let by = match signatures.is_empty() {
        true => "without a signature: the scope demands none".to_owned(),
        false => format!("by {}", signatures.join(" and ")),
    };
    output.text(&format!(
        "verified  {}\n",
        printable(&format!("{reference}  {digest}  scope {scope}, {by}"))
    ))?;
    Ok(0)
}

fn refused(refusal: &Refusal, output: &Output) -> anyhow::Result<u8> {
    if output.json {
        let reasons = refusal.reasons.iter().map(|one| {
            json!({"signature": one.signature, "reason": one.reason.word(), "detail": one.reason.to_string(),
                "what_to_do": one.reason.what_to_do()})
        });
        output.document(
            &json!({"image": refusal.image, "manifest_digest": refusal.digest, "verified": false,
            "scope": refusal.scope, "requirement": refusal.requirement, "type": refusal.kind,
            "reasons": reasons.collect::<Vec<_>>()}),
        )?;
    } else {
        output.text(&format!("refused   {}\n", printable(&refusal.to_string())))?;
    }
    Ok(REFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_has_a_uri_and_a_file() {
        let parsed = parse_key("kbs:///default/key/1=/tmp/cosign.pub").unwrap();
        assert_eq!(parsed, ("kbs:///default/key/1".to_owned(), PathBuf::from("/tmp/cosign.pub")));
        for text in ["", "/a=/b", "kbs:///default/key/1", "kbs:///default/key/1="] {
            assert!(parse_key(text).is_err(), "{text}");
        }
    }
}
