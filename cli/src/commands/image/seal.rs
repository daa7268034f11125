//! `kata-cc image seal`: a sealed image and its seal.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use kata_cc_image::{ClientConfig, fetch_layers};
use kata_cc_sandbox::image_cache::ImageCache;
use kata_cc_sandbox::paths;
use kata_cc_sealed_image::{SealManifest, seal_image};
use serde_json::json;

use crate::commands::block_on;
use crate::output::{Output, printable};

/// Seals the image `name` into a file, or into this node's folder of sealed images.
pub(super) fn run(
    name: &str,
    client: &ClientConfig,
    file: Option<&Path>,
    seal_file: Option<&Path>,
    output: &Output,
) -> anyhow::Result<()> {
    let fetching = output.progress(&format!("kata-cc: fetching {}", printable(name)));
    let image = block_on(async { Ok(fetch_layers(name, client).await?) });
    drop(fetching);
    let image = image?;
    let sealing = output.progress(&format!("kata-cc: sealing {}", printable(name)));
    let into = |file: &mut File| seal_image(&image, file, client.limits.clone());
    let (seal, place) = match file {
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
            (seal, kept.context("the sealed image cannot be kept")?)
        }
    };
    drop(sealing);
    if let Some(path) = seal_file {
        std::fs::write(path, seal.to_json()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    tell(&seal, &place, output)
}

fn tell(seal: &SealManifest, file: &Path, output: &Output) -> anyhow::Result<()> {
    if output.json {
        output.document(&json!({"file": file, "bytes": seal.file_bytes(), "seal": seal}))?;
        return Ok(());
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
