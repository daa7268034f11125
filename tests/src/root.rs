//! The guest's root image, as somebody changes it who can compute.

use std::path::Path;

use anyhow::{Context, ensure};
use kata_cc_erofs::verity::{self, BLOCK};

/// Gives the root image in a folder, whose blocks were changed, the hash tree and the seal that go with them.
pub(crate) fn seal_again(share: &Path) -> anyhow::Result<()> {
    let (image, beside) = (share.join("root.erofs"), share.join("root.json"));
    let mut seal = crate::root_seal(share)?;
    let mut bytes = std::fs::read(&image)?;
    let data = usize::try_from(seal.data_blocks)? * BLOCK;
    let blocks = bytes.get(..data).context("the root image is shorter than its seal says")?;
    let tree = verity::tree_of(blocks);
    let root_hash = hex::encode(tree.root);
    ensure!(root_hash != seal.root_hash, "nothing was changed");
    bytes.truncate(data);
    bytes.extend(tree.blocks.concat());
    seal.root_hash = root_hash;
    std::fs::write(&image, bytes)?;
    std::fs::write(&beside, serde_json::to_vec(&seal)?)?;
    Ok(())
}
