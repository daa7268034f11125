//! A real image of some size: Debian's packages, unpacked, one layer for each group of them.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::json;

/// Each with all that it needs; what an earlier group has is not in a later one.
const GROUPS: [&[&str]; 4] = [
    &["bash", "coreutils", "apt", "ca-certificates", "openssl"],
    &["python3", "perl", "git", "ruby"],
    &["postgresql", "nginx-full", "redis-server"],
    &["build-essential", "golang"],
];

/// The image as an OCI layout below `cache`, tag `t`; made when it is not there, which takes some minutes and a network.
pub(crate) fn layout(cache: &Path) -> anyhow::Result<PathBuf> {
    let done = cache.join("layout");
    if done.join("index.json").is_file() {
        return Ok(done);
    }
    std::fs::create_dir_all(cache)?;
    let work = tempfile::Builder::new().prefix("making").tempdir_in(cache)?;
    let layout = work.path().join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let mut have = BTreeSet::new();
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for (number, group) in GROUPS.iter().enumerate() {
        eprintln!("making layer {number} of Debian's packages {}", group.join(", "));
        let new: Vec<String> = needed(group)?.into_iter().filter(|name| have.insert(name.clone())).collect();
        let root = work.path().join(format!("root-{number}"));
        unpack(&new, work.path(), &root)?;
        let archive = work.path().join("layer.tar");
        let mut packing = Command::new("tar");
        succeed(packing.args(["--sort=name", "-cf"]).arg(&archive).arg("-C").arg(&root).arg("."))?;
        diff_ids.push(format!("sha256:{}", sha256(&archive)?));
        let packed = work.path().join("layer.gz");
        succeed(Command::new("gzip").arg("-nc").arg(&archive).stdout(File::create(&packed)?))?;
        layers.push(blob(&packed, &blobs, "application/vnd.oci.image.layer.v1.tar+gzip")?);
        std::fs::remove_dir_all(&root)?;
    }
    let text = |name: &str, value: &serde_json::Value| -> anyhow::Result<PathBuf> {
        let path = work.path().join(name);
        std::fs::write(&path, value.to_string())?;
        Ok(path)
    };
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/bash"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(&text("config", &config)?, &blobs, "application/vnd.oci.image.config.v1+json")?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    let mut manifest = blob(&text("manifest", &manifest)?, &blobs, kind)?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "t"});
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    std::fs::write(
        layout.join("index.json"),
        json!({"schemaVersion": 2, "manifests": [manifest]}).to_string(),
    )?;
    std::fs::rename(&layout, &done)?;
    Ok(done)
}

/// The packages of a group and all that they depend on.
fn needed(group: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut command = Command::new("apt-cache");
    command.args([
        "depends",
        "--recurse",
        "--no-recommends",
        "--no-suggests",
        "--no-conflicts",
        "--no-breaks",
    ]);
    command.args(["--no-replaces", "--no-enhances"]).args(group);
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(
        output.status.success(),
        "apt-cache failed: does this machine have Debian's lists (apt-get update)?"
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_alphanumeric()));
    let names: Vec<String> = names.map(str::to_owned).filter(|name| !name.contains(':')).collect();
    // names of virtual packages have no version to be had
    let policy = Command::new("apt-cache").arg("policy").args(&names).output()?;
    let policy = String::from_utf8_lossy(&policy.stdout).into_owned();
    let mut there = Vec::new();
    let mut name = "";
    for line in policy.lines() {
        if let Some(begin) = line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
            name = begin;
        } else if line.trim_start().starts_with("Candidate:") && !line.ends_with("(none)") {
            there.push(name.to_owned());
        }
    }
    Ok(there)
}

fn unpack(packages: &[String], work: &Path, root: &Path) -> anyhow::Result<()> {
    let folder = work.join("packages");
    std::fs::create_dir_all(&folder)?;
    std::fs::create_dir_all(root)?;
    succeed(
        Command::new("apt-get")
            .args(["download", "-qq", "-o", "APT::Sandbox::User=root"])
            .args(packages)
            .current_dir(&folder),
    )?;
    for entry in std::fs::read_dir(&folder)? {
        // through tar, which follows the links of folders that another package made (/bin to usr/bin)
        let file = entry?.path();
        let mut archive =
            Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&file).stdout(Stdio::piped()).spawn()?;
        let input = archive.stdout.take().context("it is piped")?;
        let mut extract = Command::new("tar");
        succeed(extract.args(["-x", "--keep-directory-symlink", "-C"]).arg(root).stdin(input))?;
        ensure!(archive.wait()?.success(), "{} cannot be unpacked", file.display());
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Moves a file to the blobs; gives its descriptor.
fn blob(file: &Path, blobs: &Path, kind: &str) -> anyhow::Result<serde_json::Value> {
    let (digest, size) = (sha256(file)?, file.metadata()?.len());
    std::fs::rename(file, blobs.join(&digest))?;
    Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size}))
}

fn sha256(file: &Path) -> anyhow::Result<String> {
    let output = Command::new("sha256sum").arg(file).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().map(str::to_owned).context("sha256sum says nothing")
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    ensure!(command.status().with_context(|| format!("{command:?}"))?.success(), "{command:?} failed");
    Ok(())
}
