//! `kata-cc image seal`: a sealed image and its seal.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kata_cc_image::chunks::CHUNKS_TYPE;
use kata_cc_image::{ClientConfig, FetchedImage, collect_documents, fetch_layers};
use kata_cc_policy_bundle::sign::Signer;
use kata_cc_sandbox::config::{ImageSettings, NodeConfig};
use kata_cc_sandbox::image_cache::ImageCache;
use kata_cc_sandbox::paths;
use kata_cc_sealed_image::{SEAL_TYPE, SealManifest, documents, seal_image};
use serde_json::json;

use super::{RegistryArguments, referrer, registries};
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
    /// Make this node's copy as guests would pull it: with the registries of the node's configuration, and only when there is none and no
    /// other process is making it.
    #[arg(long, conflicts_with_all = ["output", "push"])]
    for_node: bool,
    #[command(flatten)]
    registry: RegistryArguments,
}

/// Seals an image into a file, or into this node's folder of sealed images.
pub(super) fn run(arguments: &Seal, output: &Output) -> anyhow::Result<()> {
    let name = &arguments.name;
    let mut client = arguments.registry.config(&[name])?;
    let mut claim = None;
    if arguments.for_node {
        let cache = ImageCache::below(&paths::state_dir());
        claim = cache.claim(name).context("cannot write to this node's folder of sealed images")?;
        // in this order: who had the claim before may have made it
        if claim.is_none() || cache.offer(name).is_some() {
            note(&format!("kata-cc: {} is there, or another process is making it", printable(name)));
            return Ok(());
        }
        as_node(&mut client, &NodeConfig::load()?.image)?;
    }
    let client = &client;
    let in_registry = referrer::in_registry(name);
    if arguments.push && !in_registry {
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
    let sealed =
        Sealing { name, client, image: &image, in_registry, push: arguments.push, signer: signer.as_ref() };
    let (Made { seal, referrer }, place) = match &arguments.output {
        Some(path) => {
            let mut created =
                File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            (sealed.make(&mut created)?, path.clone())
        }
        None => {
            let cache = ImageCache::below(&paths::state_dir());
            let mut staged = cache.stage().context("cannot write to this node's folder of sealed images")?;
            let made = sealed.make(staged.as_file_mut())?;
            let seal = &made.seal;
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
            (made, kept)
        }
    };
    drop(sealing);
    if let Some(path) = &arguments.seal {
        std::fs::write(path, seal.to_json()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    drop(claim);
    tell(&seal, &place, referrer.as_deref(), output)
}

/// Registries as this node's guests reach them.
fn as_node(client: &mut ClientConfig, image: &ImageSettings) -> anyhow::Result<()> {
    for file in &image.registry_roots {
        let pem = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        client.extra_roots_pem.push(pem);
    }
    client.insecure_registries.extend(image.insecure_registries.iter().cloned());
    if let Some(file) = &image.registries {
        client.registries = registries(file)?;
    }
    Ok(())
}

/// What is sealed, and what else is done with it.
struct Sealing<'a> {
    name: &'a str,
    client: &'a ClientConfig,
    image: &'a FetchedImage,
    in_registry: bool,
    push: bool,
    signer: Option<&'a Signer>,
}

struct Made {
    seal: SealManifest,
    referrer: Option<String>,
}

impl Sealing<'_> {
    /// Seals into an empty file; with the seal beside the image, and the image's small documents behind the hash tree.
    fn make(&self, file: &mut File) -> anyhow::Result<Made> {
        let seal = seal_image(self.image, file, self.client.limits.clone())?;
        let put = || {
            let (document, manifest) = (seal.to_json()?, &seal.manifest);
            referrer::push((self.name, manifest), self.client, (SEAL_TYPE, &document), self.signer)
        };
        let referrer = self.push.then(put).transpose()?;
        if self.in_registry {
            self.append_documents(file)?;
        }
        Ok(Made { seal, referrer })
    }

    /// With them a guest need not ask the registry; without them it does.
    fn append_documents(&self, file: &mut File) -> anyhow::Result<()> {
        let collected = block_on(async {
            Ok(collect_documents(self.name, self.client, &[SEAL_TYPE, CHUNKS_TYPE]).await?)
        });
        match collected {
            Ok(collected) => {
                documents::append(file, &collected.to_json()?).context("the documents cannot be kept")
            }
            Err(error) => {
                note(&format!(
                    "kata-cc: guests will ask the registry for manifest and signatures: {error:#}"
                ));
                Ok(())
            }
        }
    }
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
