//! The guest image: kernel (`guest-image/kernel/build`), initramfs (made here) and their manifest.
//!
//! The initramfs holds the static agent as `/init`, its default policies and empty mount points. It is not
//! compressed: unpacking costs the guest more than reading a few more MiB costs the host. The same inputs
//! give the same bytes; `./x reproduce` shows it ([`crate::release`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, SHA384, digest};
use serde::{Deserialize, Serialize};

use crate::compact_elf::compact;
use crate::cpio::{Archive, Kind};
use crate::shell::{command, output, run, step};
use crate::{paths, stage0};

/// Name of the guest image's manifest in its folder.
pub(crate) const MANIFEST: &str = "manifest.json";

/// What it says of the guest image.
#[derive(Serialize)]
struct Manifest {
    /// Form of this file.
    version: u32,
    stage0: Measured,
    /// Of plain guests.
    kernel: Measured,
    /// Of confidential guests.
    tee_kernel: Measured,
    initramfs: Measured,
    /// Command line (without the device words that the VMM adds) by tier.
    command_lines: Vec<CommandLine>,
}

/// A file and its digests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measured {
    pub(crate) file: String,
    pub(crate) bytes: usize,
    pub(crate) sha256: String,
    pub(crate) sha384: String,
}

#[derive(Serialize)]
struct CommandLine {
    tier: &'static str,
    text: String,
    sha256: String,
    sha384: String,
}

/// Build what is not there yet around the agent of [`crate::binaries`]; gives the folder with the kernels, `initramfs` and `manifest.json`.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let root = paths::root();
    let mut files = kernels(&root, None)?;
    let initramfs = initramfs(&root, &paths::binaries().join("kata-cc-agent"))?;
    files.insert("initramfs".to_owned(), initramfs);
    let share = paths::share();
    std::fs::create_dir_all(&share)?;
    for (name, bytes) in &files {
        replace(&share.join(name), bytes)?;
    }
    // this one goes into the folder by itself
    files.insert("stage0".to_owned(), std::fs::read(stage0::build()?)?);
    replace(&share.join(MANIFEST), &manifest(&files)?)?;
    step(&format!("guest image: {} (initramfs {} KiB)", share.display(), files["initramfs"].len() / 1024));
    Ok(share)
}

/// Files of a guest image by name.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Kernels of the guest image: what their files' names end in, and what their configuration has besides.
const KERNELS: [(&str, &[&str]); 2] = [("", &[]), ("-tee", &["guest-image/kernel/tee.config"])];

/// Build the guest kernels from a checkout, unless the cache (`XDG_CACHE_HOME`, the user's own without it) holds them; gives their files.
pub(crate) fn kernels(source: &Path, cache: Option<&Path>) -> anyhow::Result<Files> {
    let mut files = Files::new();
    for (ending, fragments) in KERNELS {
        let mut script = command(source.join("guest-image/kernel/build"), &[]);
        script.args(fragments.iter().map(|fragment| source.join(fragment)));
        if let Some(cache) = cache {
            script.env("XDG_CACHE_HOME", cache);
        }
        let printed = output(&mut script).context("the guest kernel was not built")?;
        let folder = Path::new(printed.lines().last().unwrap_or_default());
        for file in ["vmlinux", "bzImage"] {
            files.insert(format!("{file}{ending}"), std::fs::read(folder.join(file))?);
        }
    }
    // hashed by stage0 at each start
    for (name, kernel) in files.iter_mut().filter(|(name, _)| name.starts_with("vmlinux")) {
        *kernel = compact(kernel).with_context(|| format!("cannot make {name} shorter"))?;
    }
    Ok(files)
}

/// The initramfs around an agent binary, with the policies of a checkout.
pub(crate) fn initramfs(source: &Path, agent: &Path) -> anyhow::Result<Vec<u8>> {
    let stripped = tempfile_beside(agent);
    let agent_text = agent.to_string_lossy();
    let to = stripped.to_string_lossy();
    run(&mut command("strip", &["--strip-all", "-o", &to, &agent_text])).context("cannot strip the agent")?;
    let init = std::fs::read(&stripped)?;
    std::fs::remove_file(&stripped)?;

    let mut archive = Archive::default();
    for dir in ["dev", "etc", "etc/kata-cc", "etc/ssl", "etc/ssl/certs", "proc", "root", "run", "sys", "tmp"]
    {
        archive.add(dir, 0o755, &Kind::Directory);
    }
    // The kernel opens the console before init can mount devtmpfs.
    archive.add("dev/console", 0o600, &Kind::CharacterDevice(5, 1));
    archive.add("dev/null", 0o666, &Kind::CharacterDevice(1, 3));
    for (from, to) in [("default.rego", "default-policy.rego"), ("plain.rego", "plain-policy.rego")] {
        let path = source.join("agent/policy").join(from);
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.add(&format!("etc/kata-cc/{to}"), 0o444, &Kind::File(&text));
    }
    archive.add("etc/ssl/certs/ca-certificates.crt", 0o444, &Kind::File(&public_roots()?));
    archive.add("init", 0o755, &Kind::File(&init));
    archive.add("kata-cc-agent", 0o777, &Kind::Link("init"));
    Ok(archive.finish())
}

/// Roots of public registries: those of Debian's package, never what this machine added to them.
fn public_roots() -> anyhow::Result<Vec<u8>> {
    let dir = Path::new("/usr/share/ca-certificates/mozilla");
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("no {}: install ca-certificates", dir.display()))?;
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.sort();
    let mut bundle = Vec::new();
    for file in files {
        bundle.extend(std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
        bundle.push(b'\n');
    }
    Ok(bundle)
}

/// The text of `manifest.json`, which `kata-cc doctor` looks for.
pub(crate) fn manifest(files: &Files) -> anyhow::Result<Vec<u8>> {
    let of = |name: &str| {
        files.get(name).map(|bytes| measured(name, bytes)).with_context(|| format!("there is no {name}"))
    };
    Ok(serde_json::to_vec_pretty(&Manifest {
        version: 1,
        stage0: of("stage0")?,
        kernel: of("vmlinux")?,
        tee_kernel: of("vmlinux-tee")?,
        initramfs: of("initramfs")?,
        command_lines: ["vm", "sim-snp", "snp", "tdx"].map(command_line).into(),
    })?)
}

fn tempfile_beside(path: &Path) -> PathBuf {
    path.with_extension(format!("stripped-{}", std::process::id()))
}

pub(crate) fn measured(file: &str, bytes: &[u8]) -> Measured {
    Measured {
        file: file.to_owned(),
        bytes: bytes.len(),
        sha256: hex::encode(digest(&SHA256, bytes)),
        sha384: hex::encode(digest(&SHA384, bytes)),
    }
}

fn command_line(tier: &'static str) -> CommandLine {
    let text = kata_cc_vmm_api::command_line(tier);
    CommandLine {
        tier,
        sha256: hex::encode(digest(&SHA256, text.as_bytes())),
        sha384: hex::encode(digest(&SHA384, text.as_bytes())),
        text,
    }
}

/// Write a file whole or not at all, and leave it alone when it already holds these bytes.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let new = path.with_extension("new");
    std::fs::write(&new, bytes)
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
