//! `kata-cc image chunks`: the chunk list of an image.

use std::path::PathBuf;

use anyhow::Context as _;
use kata_cc_image::chunks::{CHUNK_BYTES, CHUNKS_TYPE, ChunkList, ChunkPin};
use kata_cc_image::{ImageClient, Progress as Step};
use serde_json::json;

use super::unpack::Come;
use super::{RegistryArguments, referrer};
use crate::commands::block_on;
use crate::commands::policy::bundle::signer;
use crate::output::{Output, printable};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("place").args(["output", "push"]).multiple(true).required(true))]
pub(crate) struct Chunks {
    /// Image: a registry reference.
    reference: String,
    /// File for the list (JSON).
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Put the list beside the image in its registry, as a referrer. Guests believe it when it is signed as their policy demands of the
    /// image: with --sign-key, or by `cosign sign` of the digest that is printed.
    #[arg(long)]
    push: bool,
    /// Private key (PKCS#8 PEM, ECDSA P-256) to sign the referrer with.
    #[arg(long, value_name = "FILE", requires = "push")]
    sign_key: Option<PathBuf>,
    /// File for a pin of the list (JSON), for `[image] chunk_pins` of the node's configuration or a pod's init-data: guests that have it
    /// believe the list without a signature.
    #[arg(long, value_name = "FILE")]
    pin: Option<PathBuf>,
    /// Bytes of a chunk, 64 KiB to 16 MiB: what has to come of a layer before anything of it is unpacked.
    #[arg(long, value_name = "NUMBER", default_value_t = CHUNK_BYTES)]
    chunk_bytes: u64,
    #[command(flatten)]
    registry: RegistryArguments,
}

/// Lists the chunks of an image's layers as the registry sends them.
pub(super) fn run(arguments: &Chunks, output: &Output) -> anyhow::Result<()> {
    let name = arguments.reference.as_str();
    if !referrer::in_registry(name) {
        anyhow::bail!(
            "chunk lists are for images that guests pull from a registry, and {} is in none",
            printable(name)
        );
    }
    let config = arguments.registry.config(&[name])?;
    // What is wrong with the key is told before the work.
    let signer = arguments.sign_key.as_deref().map(signer).transpose()?;
    let bar = output.bytes_bar(&format!("kata-cc: reading {}", printable(name)));
    let come = Come::default();
    let list = block_on(async {
        let client = ImageClient::new(config.clone())?;
        let progress = |step: Step| come.tell(&step, &bar);
        Ok(client.chunk_list(name, arguments.chunk_bytes, &progress).await?)
    });
    drop(bar);
    let list = list?;
    let document = list.to_json()?;
    if let Some(path) = &arguments.output {
        std::fs::write(path, &document).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let pin = ChunkPin::of(&list)?;
    if let Some(path) = &arguments.pin {
        std::fs::write(path, pin.to_json()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let manifest = list.manifest().as_str();
    let put = || referrer::push((name, manifest), &config, (CHUNKS_TYPE, &document), signer.as_ref());
    let referrer = arguments.push.then(put).transpose()?;
    tell(&list, pin.list().as_str(), referrer.as_deref(), output)
}

fn tell(list: &ChunkList, digest: &str, referrer: Option<&str>, output: &Output) -> anyhow::Result<()> {
    let layers = list.layers();
    let chunks: usize = layers.iter().map(|layer| layer.chunks().len()).sum();
    let bytes: u64 = layers.iter().map(kata_cc_image::chunks::LayerChunks::size).sum();
    let (manifest, chunk_bytes) = (list.manifest().as_str(), list.chunk_bytes());
    if output.json {
        return output.document(
            &json!({"manifest": manifest, "list": digest, "chunk_bytes": chunk_bytes, "layers": layers.len(),
            "chunks": chunks, "bytes": bytes, "referrer": referrer}),
        );
    }
    if let Some(referrer) = referrer {
        output.text(&format!("referrer  {}\n", printable(referrer)))?;
    }
    output.text(&format!(
        "manifest  {manifest}\nlist      {digest}\nlayers    {}\nbytes     {bytes}\nchunks    {chunks} of {chunk_bytes} bytes\n",
        layers.len()
    ))
}
