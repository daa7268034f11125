//! `kata-cc image seal`: a sealed image and its seal.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kata_cc_image::fetch_layers;
use kata_cc_sandbox::config::NodeConfig;
use kata_cc_sandbox::image_cache::ImageCache;
use kata_cc_sandbox::paths;
use kata_cc_sealed_image::{SEAL_TYPE, SealManifest, seal_image};
use serde_json::json;

use super::{RegistryArguments, referrer};
use crate::commands::block_on;
use crate::commands::policy::bundle::signer;
use crate::output::{Output, note, printable};

#[derive(Debug, clap::Args)]
pub(crate) struct Seal {
    /// Image: a registry reference, oci:DIR[:TAG] or oci-archive:FILE[:TAG].
    name: String,
    /// File for the sealed image; without it, it goes to this node's folder of sealed images.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// File for the seal (JSON), for `[image] seals` of the node's configuration or a pod's init-data.
    #[arg(long, value_name = "FILE")]
    seal: Option<PathBuf>,
    /// Put the seal beside the image in its registry, as a referrer. Guests believe it when it is signed as their policy demands of the
    /// image: with --sign-key, or by `cosign sign` of the digest that is printed.
    #[arg(long)]
    push: bool,
    /// Private key (PKCS#8 PEM, ECDSA P-256) to sign the referrer with.
    #[arg(long, value_name = "FILE", requires = "push")]
    sign_key: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArguments,
}

/// Seals an image into a file, or into this node's folder of sealed images.
pub(super) fn run(arguments: &Seal, output: &Output) -> anyhow::Result<()> {
    let name = &arguments.name;
    let client = &arguments.registry.config(&[name])?;
    if arguments.push && !referrer::in_registry(name) {
        anyhow::bail!(
            "--push puts the seal beside the image in its registry, and {} is in none",
            printable(name)
        );
    }
    // What is wrong with the key is told before the work.
    let signer = arguments.sign_key.as_deref().map(signer).transpose()?;
    let fetching = output.progress(&format!("kata-cc: fetching {}", printable(name)));
    let image = block_on(async { Ok(fetch_layers(name, client).await?) });
    drop(fetching);
    let image = image?;
    let sealing = output.progress(&format!("kata-cc: sealing {}", printable(name)));
    let into = |file: &mut File| seal_image(&image, file, client.limits.clone());
    let (seal, place) = match &arguments.output {
        Some(path) => {
            let mut created =
                File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            (into(&mut created)?, path.clone())
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
    if let Some(path) = &arguments.seal {
        std::fs::write(path, seal.to_json()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let put = || {
        let (document, manifest) = (seal.to_json()?, &seal.manifest);
        referrer::push((name, manifest), client, (SEAL_TYPE, &document), signer.as_ref())
    };
    let referrer = arguments.push.then(put).transpose()?;
    tell(&seal, &place, referrer.as_deref(), output)
}

fn tell(seal: &SealManifest, file: &Path, referrer: Option<&str>, output: &Output) -> anyhow::Result<()> {
    if output.json {
        output.document(
            &json!({"file": file, "bytes": seal.file_bytes(), "seal": seal, "referrer": referrer}),
        )?;
        return Ok(());
    }
    if let Some(referrer) = referrer {
        output.text(&format!("referrer   {referrer} \n"))?;
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
