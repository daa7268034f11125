//! A small real OCI image around Debian's static busybox, as an image layout folder.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::process::run;

/// Text in the image's layer that must never be found outside the guest.
pub const MARKER: &str = "kata-cc-plaintext-marker-7f3a91c2e05d";

/// Make an image layout in `dir` with the tag `latest`: busybox with all its names, and [`MARKER`] in `/secret.txt`.
pub fn busybox_layout(dir: &Path) -> anyhow::Result<()> {
    let tree = dir.join("tree");
    for sub in ["bin", "etc", "dev", "proc", "sys", "tmp", "root", "var"] {
        std::fs::create_dir_all(tree.join(sub))?;
    }
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).context("busybox-static is not installed")?;
    let names = run(Command::new("/bin/busybox").arg("--list"), 30)?.ok()?;
    for name in names.stdout.lines().filter(|name| *name != "busybox") {
        let _ = std::os::unix::fs::symlink("busybox", tree.join("bin").join(name));
    }
    std::fs::write(tree.join("secret.txt"), format!("{MARKER}\n"))?;
    std::fs::write(
        tree.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n",
    )?;
    std::fs::write(tree.join("etc/group"), "root:x:0:\nuser:x:1000:\n")?;

    let tar = dir.join("layer.tar");
    let arguments = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"];
    run(Command::new("tar").args(arguments).arg(&tar).arg("-C").arg(&tree).arg("."), 60)?.ok()?;
    let diff_id = sha256(&std::fs::read(&tar)?);
    run(Command::new("gzip").args(["-n", "-f"]).arg(&tar), 60)?.ok()?;
    let layer = std::fs::read(dir.join("layer.tar.gz"))?;

    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["cat", "/secret.txt"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = serde_json::to_vec(&config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
    });
    let manifest = serde_json::to_vec(&manifest)?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    for bytes in [&layer, &config, &manifest] {
        std::fs::write(blobs.join(sha256(bytes).trim_start_matches("sha256:")), bytes)?;
    }
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    std::fs::write(
        dir.join("index.json"),
        serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?,
    )?;
    std::fs::remove_dir_all(&tree)?;
    std::fs::remove_file(dir.join("layer.tar.gz"))?;
    Ok(())
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
}

/// `sha256:` and the hex digest.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(digest(&SHA256, bytes)))
}
