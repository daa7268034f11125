//! The guest image: kernel (`guest-image/kernel/build`), root image (made here) and their manifest.
//!
//! The root image holds the static agent as `/sbin/init`, its default policies and empty mount points, as an EROFS file system with the
//! hash tree of dm-verity behind it. A guest reads of it what it needs, when it needs it, and keeps none of it in memory of its own.
//! The same inputs give the same bytes; `./x reproduce` shows it ([`crate::release`]).

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, SHA384, digest};
use kata_cc_erofs::ErofsError;
use kata_cc_vmm_api::RootSeal;
use serde::{Deserialize, Serialize};

use crate::compact_elf::compact;
use crate::guest_root::GuestRoot;
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
    root: Measured,
    /// What vouches for the blocks of the root image, and stands on the command line.
    root_seal: Measured,
    /// Command line (without the words of the root image, and those of devices, which the VMM adds) by tier.
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

/// Build what is not there yet around the agent of [`crate::binaries`]; gives the folder with the kernels, root image and `manifest.json`.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let root = paths::root();
    let mut files = kernels(&root, None)?;
    files.extend(self::root(&root, &paths::binaries().join("kata-cc-agent"))?);
    let share = paths::share();
    std::fs::create_dir_all(&share)?;
    for (name, bytes) in &files {
        replace(&share.join(name), bytes)?;
    }
    // this one goes into the folder by itself
    files.insert("stage0".to_owned(), std::fs::read(stage0::build()?)?);
    replace(&share.join(MANIFEST), &manifest(&files)?)?;
    step(&format!("guest image: {} (root image {} KiB)", share.display(), files[ROOT].len() / 1024));
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

/// Names of the root image and of what vouches for it.
pub(crate) const ROOT: &str = "root.erofs";
const ROOT_SEAL: &str = "root.json";

/// The root image around an agent binary, with the policies of a checkout, and its seal.
pub(crate) fn root(source: &Path, agent: &Path) -> anyhow::Result<Files> {
    let stripped = tempfile_beside(agent);
    let agent_text = agent.to_string_lossy();
    let to = stripped.to_string_lossy();
    run(&mut command("strip", &["--strip-all", "-o", &to, &agent_text])).context("cannot strip the agent")?;
    let init = std::fs::read(&stripped)?;
    std::fs::remove_file(&stripped)?;

    let mut files = vec![("sbin/init", 0o755, init)];
    for (from, to) in
        [("default.rego", "etc/kata-cc/default-policy.rego"), ("plain.rego", "etc/kata-cc/plain-policy.rego")]
    {
        let path = source.join("agent/policy").join(from);
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.push((to, 0o444, text));
    }
    files.push(("etc/ssl/certs/ca-certificates.crt", 0o444, public_roots()?));

    let mut image = Cursor::new(Vec::new());
    let seal = kata_cc_erofs::seal(&mut image, |contents| {
        let mut root = GuestRoot::new(contents);
        for folder in ["dev", "proc", "run", "sys", "tmp"] {
            root.folder(folder);
        }
        // The agent makes it when the sandbox has name servers.
        root.link("etc/resolv.conf", "/run/resolv.conf");
        for (path, mode, bytes) in &files {
            root.file(path, *mode, bytes)?;
        }
        Ok::<_, ErofsError>(root.finish())
    })?;
    let seal = RootSeal { data_blocks: seal.data_blocks, root_hash: hex::encode(seal.root_hash) };
    Ok([(ROOT.to_owned(), image.into_inner()), (ROOT_SEAL.to_owned(), serde_json::to_vec_pretty(&seal)?)]
        .into())
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
        root: of(ROOT)?,
        root_seal: of(ROOT_SEAL)?,
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
