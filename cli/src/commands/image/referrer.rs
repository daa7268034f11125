//! Documents put beside an image in its registry, as referrers, and signed.

use std::collections::BTreeMap;

use kata_cc_image::manifest::Descriptor;
use kata_cc_image::{ClientConfig, ImageClient, attach, parse_reference};
use kata_cc_policy_bundle::artifact;
use kata_cc_policy_bundle::sign::Signer;

use crate::commands::block_on;

/// Whether the image `name` lies in a registry, where something can be beside it.
pub(super) fn in_registry(name: &str) -> bool {
    !name.starts_with("oci:") && !name.starts_with("oci-archive:")
}

/// Puts a document, given with its type, beside the image, given with the digest of its manifest; gives the name of the referrer, which is
/// what is to be signed.
pub(super) fn push(
    (name, manifest): (&str, &str),
    client: &ClientConfig,
    (kind, document): (&str, &[u8]),
    signer: Option<&Signer>,
) -> anyhow::Result<String> {
    let reference = parse_reference(name)?;
    block_on(async {
        let client = ImageClient::new(client.clone())?;
        let at = reference.clone_with_digest(manifest.to_owned());
        let (_, manifest, _) = client.resolve(&at).await?;
        let subject = Descriptor {
            media_type: manifest.media_type,
            digest: manifest.digest.to_string(),
            size: manifest.bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        };
        let digest = attach(client.registry(), &reference, &subject, kind, document).await?;
        let referrer = format!("{}/{}@{digest}", reference.registry(), reference.repository());
        if let Some(signer) = signer {
            artifact::sign(client.registry(), &referrer, signer).await?;
        }
        Ok(referrer)
    })
}
