//! Where things are: the checkout, the cache, the built binaries.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The triple that `.cargo/config.toml` names.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Root of the checkout. `cargo run` says at run time where it is; what the compiler saw may be another checkout, since
/// cargo takes a built xtask from a shared target folder as fresh wherever its sources lie.
pub(crate) fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).parent().expect("xtask lies in the checkout").to_path_buf()
}

/// What is dear to build: `~/.cache/kata-cc`.
pub(crate) fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache")
    });
    base.join("kata-cc")
}

/// cargo's home: registry and settings.
pub(crate) fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cargo"),
        PathBuf::from,
    )
}

/// cargo's target folder: `./x` sets it, and the cache holds it.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| cache().join("target"), PathBuf::from)
}

/// Folder of the built binaries.
pub(crate) fn binaries() -> PathBuf {
    target().join(TARGET).join("release")
}

/// Folder of the guest's kernel, root image and manifest (`KATA_CC_SHARE_DIR`).
pub(crate) fn share() -> PathBuf {
    cache().join("share")
}

/// What tests and demonstration prepare outside of the lab (`KATA_CC_MATERIAL`).
pub(crate) fn material() -> PathBuf {
    target().join("material")
}

/// `./x clean`: the cache and `target/` of the checkout. Installed packages stay.
pub(crate) fn clean() -> anyhow::Result<()> {
    for dir in [cache(), root().join("target")] {
        match std::fs::remove_dir_all(&dir) {
            Ok(()) => println!("removed {}", dir.display()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", dir.display())),
        }
    }
    Ok(())
}
