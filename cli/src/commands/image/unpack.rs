//! `kata-cc image unpack`: an image as a folder, pulled as a guest pulls it: verified, decrypted, layer by layer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use kata_cc_image::chunks::ChunkPins;
use kata_cc_image::{ClientConfig, HeldKeys, ImageClient, Progress as Step, PullTarget, PulledImage};
use serde_json::json;

use super::verify::{parse_key, signature_policy};
use super::{RegistryArguments, key_file};
use crate::commands::block_on;
use crate::output::{Output, Progress, printable};

#[derive(Debug, clap::Args)]
pub(crate) struct Unpack {
    /// Image: a registry reference.
    reference: String,
    /// The folder to be made: absent or empty.
    folder: PathBuf,
    /// Signature policy (policy.json, docs/image-signatures.md) that the image has to meet.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// File to read in place of a resource of the key broker: a key of encrypted layers, or what the policy names; several may be given.
    #[arg(long, value_name = "URI=FILE", value_parser = parse_key)]
    key: Vec<(String, PathBuf)>,
    /// Pin of the image's chunk list (`kata-cc image chunks --pin`): the list then counts without a signature.
    #[arg(long, value_name = "FILE")]
    chunk_pin: Vec<PathBuf>,
    #[command(flatten)]
    registry: RegistryArguments,
}

/// Run it.
pub(crate) fn run(arguments: Unpack, output: &Output) -> anyhow::Result<()> {
    let Unpack { reference, folder, policy, key, chunk_pin, registry } = arguments;
    let mut keys = HeldKeys::default();
    for (uri, file) in &key {
        // What is no key of 32 bytes is none of the layers': the policy may name it.
        if let Ok(bytes) = key_file::read(file) {
            keys.by_id.insert(uri.clone(), bytes);
        }
    }
    let signatures = policy.map(|file| signature_policy(&file, key)).transpose()?;
    let pins: Vec<String> = chunk_pin.iter().map(|file| read_pin(file)).collect::<anyhow::Result<_>>()?;
    let chunk_pins = ChunkPins::parse(&pins)?;
    let config = ClientConfig { signatures, chunk_pins, ..registry.config(&[reference.as_str()])? };
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.map_or_else(|| PathBuf::from("."), PathBuf::from);
    let work = tempfile::Builder::new().prefix(".kata-cc-unpack-").tempdir_in(&parent);
    let work = work.with_context(|| format!("cannot work beside {}", folder.display()))?;
    let target = PullTarget { work_dir: work.path().to_owned(), rootfs_dir: folder };
    let bar = output.bytes_bar(&format!("kata-cc: unpacking {}", printable(&reference)));
    let come = Come::default();
    let pulled = block_on(async {
        let client = ImageClient::new(config)?;
        let progress = |step: Step| come.tell(&step, &bar);
        Ok(client.pull(&reference, &target, &keys, &progress).await?)
    });
    drop(bar);
    tell(&reference, &pulled?, output)
}

fn read_pin(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Bytes that have come, by layer.
#[derive(Default)]
pub(super) struct Come(Mutex<BTreeMap<usize, u64>>);

impl Come {
    pub(super) fn tell(&self, step: &Step, bar: &Progress) {
        match step {
            Step::Resolved { bytes, .. } => bar.of(*bytes),
            Step::Downloaded { layer, bytes, .. } => {
                let mut layers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                layers.insert(*layer, *bytes);
                bar.at(layers.values().sum());
            }
            _ => {}
        }
    }
}

fn tell(reference: &str, image: &PulledImage, output: &Output) -> anyhow::Result<()> {
    if output.json {
        let layers: Vec<_> = image.layers.iter().map(|layer| layer.digest.as_str()).collect();
        return output.document(
            &json!({"image": reference, "manifest_digest": image.manifest_digest.to_string(),
            "folder": image.rootfs, "encrypted": image.encrypted, "layers": layers, "bytes": image.bytes,
            "unpacked_bytes": image.unpacked_bytes, "config": image.config}),
        );
    }
    output.text(&format!(
        "{}  {}  {} layers, {} bytes, {} unpacked{}\n",
        printable(&image.rootfs.display().to_string()),
        image.manifest_digest,
        image.layers.len(),
        image.bytes,
        image.unpacked_bytes,
        if image.encrypted { ", decrypted" } else { "" },
    ))
}
