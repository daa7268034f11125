//! `kata-cc image seal`: a sealed image and its seal; of an encrypted image, its layers as they are.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kata_cc_image::chunks::CHUNKS_TYPE;
use kata_cc_image::{
    ClientConfig, DockerAuthConfig, Documents, FetchedImage, KeptLayers, LayersError, collect_documents,
    fetch_layers, keep_layers,
};
use kata_cc_policy_bundle::sign::Signer;
use kata_cc_sandbox::config::{ImageSettings, NodeConfig};
use kata_cc_sandbox::image_cache::ImageCache;
use kata_cc_sandbox::paths;
use kata_cc_sealed_image::{SEAL_TYPE, SealManifest, documents, seal_image};
use serde_json::{Value, json};

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
    let (mut claim, mut credentials) = (None, None);
    if arguments.for_node {
        let cache = ImageCache::below(&paths::state_dir());
        claim = cache.claim(name).context("cannot write to this node's folder of sealed images")?;
        // in this order: who had the claim before may have made it
        if claim.is_none() || cache.offer(name).is_some() {
            note(&format!("kata-cc: {} is there, or another process is making it", printable(name)));
            return Ok(());
        }
        let image = NodeConfig::load()?.image;
        as_node(&mut client, &image)?;
        credentials = image.seal_credentials.as_deref().map(docker_configuration).transpose()?;
    }
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
    let image = match (block_on(async { Ok(fetch_layers(name, &client).await) })?, &credentials) {
        (Ok(image), _) => Some(image),
        (Err(LayersError::Encrypted { .. }), _) if !arguments.push && arguments.seal.is_none() => None,
        (Err(error @ LayersError::Encrypted { .. }), _) => {
            return Err(anyhow::Error::new(error).context(NO_SEAL));
        }
        // It may be one that only the node's credentials show.
        (Err(_), Some(_)) => None,
        (Err(error), None) => return Err(error.into()),
    };
    if image.is_none() && credentials.is_some() {
        // Never for a plain image: guests that have no credentials for it would get it from the node.
        client.auth = credentials;
    }
    drop(fetching);
    let sealing = output.progress(&format!("kata-cc: sealing {}", printable(name)));
    let (image, signer) = (image.as_ref(), signer.as_ref());
    let making = Making { name, client: &client, image, in_registry, push: arguments.push, signer };
    let (copy, place) = match &arguments.output {
        Some(path) => {
            let mut created =
                File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            (making.make(&mut created)?, path.clone())
        }
        None => making.make_for_node()?,
    };
    drop(sealing);
    if let (Some(path), Made::Sealed { seal, .. }) = (&arguments.seal, &copy) {
        std::fs::write(path, seal.to_json()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    drop(claim);
    tell(&copy, &place, output)
}

const NO_SEAL: &str = "an encrypted image has no seal: without --push and --seal its layers are kept for this node's guests as they are, \
    and `kata-cc image chunks --push --pin FILE` lists their chunks and writes what is to be pinned";

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

/// Most bytes of all copies of this node.
fn most_bytes() -> anyhow::Result<u64> {
    Ok(NodeConfig::load()?.image.most_sealed_bytes())
}

/// Credentials as Docker keeps them.
fn docker_configuration(file: &Path) -> anyhow::Result<DockerAuthConfig> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let parsed = DockerAuthConfig::parse(&text);
    parsed.with_context(|| format!("{} is no docker configuration ({{\"auths\": …}})", file.display()))
}

/// What a copy is made of, and what else is done with it.
struct Making<'a> {
    name: &'a str,
    client: &'a ClientConfig,
    /// The layers of a plain image; an encrypted one is fetched when it is kept.
    image: Option<&'a FetchedImage>,
    in_registry: bool,
    push: bool,
    signer: Option<&'a Signer>,
}

/// What was made.
enum Made {
    /// A file system with the layers, and what vouches for it.
    Sealed { seal: SealManifest, referrer: Option<String> },
    /// Encrypted layers, for which the image itself vouches.
    Kept(KeptLayers),
}

impl Made {
    /// Digest of the image's manifest.
    fn manifest(&self) -> &str {
        match self {
            Self::Sealed { seal, .. } => &seal.manifest,
            Self::Kept(layers) => layers.manifest_digest.as_str(),
        }
    }

    /// What stands beside the file on the node, for who looks there.
    fn document(&self) -> anyhow::Result<Vec<u8>> {
        Ok(match self {
            Self::Sealed { seal, .. } => seal.to_json()?,
            Self::Kept(layers) => serde_json::to_vec(&kept(layers))?,
        })
    }
}

fn kept(layers: &KeptLayers) -> Value {
    json!({"encrypted": true, "manifest": layers.manifest_digest.as_str(), "layers": layers.count(), "bytes": layers.bytes})
}

impl Making<'_> {
    /// Makes it in this node's folder, where it may have to take the place of others.
    fn make_for_node(&self) -> anyhow::Result<(Made, PathBuf)> {
        let cache = ImageCache::below(&paths::state_dir());
        let mut staged = cache.stage().context("cannot write to this node's folder of sealed images")?;
        let copy = self.make(staged.as_file_mut())?;
        let kept = cache.keep(staged, copy.manifest(), self.name, &copy.document()?);
        let kept = kept.context("the sealed image cannot be kept")?;
        let most = most_bytes()?;
        let removed = cache.trim(most, &kept).context("cannot make room among this node's sealed images")?;
        for digest in removed {
            note(&format!(
                "kata-cc: sealed image {digest} was removed: more than {most} bytes ([image] sealed_bytes)"
            ));
        }
        Ok((copy, kept))
    }

    /// Makes it in an empty file, with the image's small documents at the end.
    fn make(&self, file: &mut File) -> anyhow::Result<Made> {
        let Some(image) = self.image else {
            let most = most_bytes()?;
            let layers = block_on(async { Ok(keep_layers(self.name, self.client, most, file).await?) })?;
            let mut documents = self.documents().unwrap_or_default();
            layers.note(&mut documents);
            append(file, &documents)?;
            return Ok(Made::Kept(layers));
        };
        let seal = seal_image(image, file, self.client.limits.clone())?;
        let put = || {
            let (document, manifest) = (seal.to_json()?, &seal.manifest);
            referrer::push((self.name, manifest), self.client, (SEAL_TYPE, &document), self.signer)
        };
        let referrer = self.push.then(put).transpose()?;
        if let Some(documents) = self.documents() {
            append(file, &documents)?;
        }
        Ok(Made::Sealed { seal, referrer })
    }

    /// With them a guest need not ask the registry; without them it does.
    fn documents(&self) -> Option<Documents> {
        if !self.in_registry {
            return None;
        }
        let types = [SEAL_TYPE, CHUNKS_TYPE];
        match block_on(async { Ok(collect_documents(self.name, self.client, &types).await?) }) {
            Ok(collected) => Some(collected),
            Err(error) => {
                note(&format!(
                    "kata-cc: guests will ask the registry for manifest and signatures: {error:#}"
                ));
                None
            }
        }
    }
}

fn append(file: &mut File, documents: &Documents) -> anyhow::Result<()> {
    documents::append(file, &documents.to_json()?).context("the documents cannot be kept")
}

fn tell(copy: &Made, file: &Path, output: &Output) -> anyhow::Result<()> {
    let named = printable(&file.display().to_string());
    match copy {
        Made::Kept(layers) if output.json => output.document(&json!({"file": file, "kept": kept(layers)}))?,
        Made::Kept(layers) => output.text(&format!(
            "file       {named}\nencrypted  {} layers as they are: guests decrypt them\nbytes      {}\nmanifest   {}\n",
            layers.count(),
            layers.bytes,
            layers.manifest_digest,
        ))?,
        Made::Sealed { seal, referrer } if output.json => output.document(
            &json!({"file": file, "bytes": seal.file_bytes(), "seal": seal, "referrer": referrer}),
        )?,
        Made::Sealed { seal, referrer } => {
            if let Some(referrer) = referrer {
                output.text(&format!("referrer   {referrer} \n"))?;
            }
            output.text(&format!(
                "file       {named}\nbytes      {}\nroot hash  {}\nmanifest   {}\nconfig     {}\n",
                seal.file_bytes(),
                seal.root_hash,
                seal.manifest,
                seal.config,
            ))?;
        }
    }
    Ok(())
}
