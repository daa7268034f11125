//! `kata-cc image seal`: a sealed image and its seal.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::Context;
use kata_cc_image::manifest::Descriptor;
use kata_cc_image::{ClientConfig, ImageClient, attach, fetch_layers, parse_reference};
use kata_cc_sandbox::config::NodeConfig;
use kata_cc_sandbox::image_cache::ImageCache;
use kata_cc_sandbox::paths;
use kata_cc_sealed_image::{SEAL_TYPE, SealManifest, seal_image};
use serde_json::json;

use crate::commands::block_on;
use crate::output::{Output, note, printable};

/// Where image and seal go.
pub(super) struct Places<'p> {
    /// File of the sealed image; this node's folder without.
    pub(super) file: Option<&'p Path>,
    /// File of the seal.
    pub(super) seal: Option<&'p Path>,
    /// Whether the seal goes to the registry too.
    pub(super) push: bool,
}

/// Seals the image `name` into a file, or into this node's folder of sealed images.
pub(super) fn run(
    name: &str,
    client: &ClientConfig,
    places: &Places<'_>,
    output: &Output,
) -> anyhow::Result<()> {
    if places.push && (name.starts_with("oci:") || name.starts_with("oci-archive:")) {
        anyhow::bail!(
            "--push puts the seal beside the image in its registry, and {} is in none",
            printable(name)
        );
    }
    let fetching = output.progress(&format!("kata-cc: fetching {}", printable(name)));
    let image = block_on(async { Ok(fetch_layers(name, client).await?) });
    drop(fetching);
    let image = image?;
    let sealing = output.progress(&format!("kata-cc: sealing {}", printable(name)));
    let into = |file: &mut File| seal_image(&image, file, client.limits.clone());
    let (seal, place) = match places.file {
        Some(path) => {
            let mut created =
                File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            (into(&mut created)?, path.to_owned())
        }
        None => {
            let cache = ImageCache::below(&paths::state_dir());
            let mut staged = cache.stage().context("cannot write to this node's folder of sealed images")?;
            let seal = into(staged.as_file_mut())?;
            let kept = cache.keep(staged, &seal.manifest, name, &seal.to_json()?);
            let kept = kept.context("the sealed image cannot be kept")?;
            let most = NodeConfig::load()?.image.most_sealed_bytes();
            let removed =
                cache.trim(most, &kept).context("cannot make room among this node's sealed images")?;
            for digest in removed {
                note(&format!(
                    "kata-cc: sealed image {digest} was removed: more than {most} bytes ([image] sealed_bytes)"
                ));
            }
            (seal, kept)
        }
    };
    drop(sealing);
    if let Some(path) = places.seal {
        std::fs::write(path, seal.to_json()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let referrer = places.push.then(|| push(name, client, &seal)).transpose()?;
    tell(&seal, &place, referrer.as_deref(), output)
}

/// Puts the seal beside the image; gives the name of the referrer, which is what is to be signed.
fn push(name: &str, client: &ClientConfig, seal: &SealManifest) -> anyhow::Result<String> {
    let reference = parse_reference(name)?;
    let document = seal.to_json()?;
    let digest = block_on(async {
        let client = ImageClient::new(client.clone())?;
        let at = reference.clone_with_digest(seal.manifest.clone());
        let (_, manifest, _) = client.resolve(&at).await?;
        let subject = Descriptor {
            media_type: manifest.media_type,
            digest: manifest.digest.to_string(),
            size: manifest.bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        };
        Ok(attach(client.registry(), &reference, &subject, SEAL_TYPE, &document).await?)
    })?;
    Ok(format!("{}/{}@{digest}", reference.registry(), reference.repository()))
}

fn tell(seal: &SealManifest, file: &Path, referrer: Option<&str>, output: &Output) -> anyhow::Result<()> {
    if output.json {
        output.document(
            &json!({"file": file, "bytes": seal.file_bytes(), "seal": seal, "referrer": referrer}),
        )?;
        return Ok(());
    }
    if let Some(referrer) = referrer {
        output.text(&format!("referrer   {referrer} (sign it: cosign sign --key … {referrer})\n"))?;
    }
    output.text(&format!(
        "file       {}\nbytes      {}\nroot hash  {}\nmanifest   {}\nconfig     {}\n",
        printable(&file.display().to_string()),
        seal.file_bytes(),
        seal.root_hash,
        seal.manifest,
        seal.config,
    ))?;
    Ok(())
}
