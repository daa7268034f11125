//! What the end-to-end tests, the demonstration and the benchmarks share: the real programs as fixtures.
//!
//! Every fixture starts a real program (docker-registry, kbs, containerd, kata-cc), gives its own
//! folder under `/run` or the test's temporary folder, and ends it when dropped. Nothing is mocked.

pub mod containerd;
pub mod image;
pub mod kbs;
pub mod pki;
pub mod pod;
pub mod process;
pub mod refusals;
pub mod registry;
pub mod relay;
mod root;
pub mod search;
pub mod traces;
pub mod world;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use kata_cc_vmm_api::RootSeal;

/// Folder of the built binaries: `KATA_CC_BIN_DIR`, or where the running program lies.
#[must_use]
pub fn binaries() -> PathBuf {
    std::env::var_os("KATA_CC_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let own = std::env::current_exe().unwrap_or_default();
        let dir = own.parent().map(PathBuf::from).unwrap_or_default();
        // a test program lies one folder below, in `deps`
        if dir.ends_with("deps") { dir.parent().map(PathBuf::from).unwrap_or(dir) } else { dir }
    })
}

/// Folder of the guest's kernel and root image: `KATA_CC_SHARE_DIR`, or where `./x` puts them.
#[must_use]
pub fn share() -> PathBuf {
    std::env::var_os("KATA_CC_SHARE_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
        PathBuf::from(home).join(".cache/kata-cc/share")
    })
}

/// What vouches for the root image of the guest image in a folder.
///
/// # Errors
/// When the guest image is not built.
pub fn root_seal(folder: &Path) -> anyhow::Result<RootSeal> {
    let path = folder.join("root.json");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}: ./x image", path.display()))?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Packs a folder as an initramfs.
///
/// # Errors
/// When cpio fails.
pub fn pack_initramfs(folder: &Path, archive: &Path) -> anyhow::Result<()> {
    let pack = "cd \"$0\" && find . | cpio --quiet -o -H newc > \"$1\"";
    process::run(Command::new("sh").args(["-c", pack]).arg(folder).arg(archive), 60)?.ok()?;
    Ok(())
}

/// Whether virtual machines can run where this runs: in the lab, or by the VMM's own probe.
///
/// Prints why not, so that a skipped test says so.
#[must_use]
pub fn machines_run_here() -> bool {
    static ANSWER: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *ANSWER.get_or_init(|| {
        if std::env::var_os("KATA_CC_LAB").is_some() {
            return true;
        }
        let probe = Command::new(binaries().join("kata-cc-vmm")).arg("--probe").output();
        let answer: Option<serde_json::Value> =
            probe.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok());
        let usable = answer.as_ref().is_some_and(|answer| answer["usable"] == true);
        if !usable {
            println!("skipped: no virtual machine can run here: {answer:?}");
        }
        usable
    })
}
