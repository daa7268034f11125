//! One round of a build, and the folders in which two rounds have nothing in common: other paths of checkout, target folder and
//! cargo's home, of other lengths and depths.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::compare::Files;
use crate::place::Place;
use crate::shell::{command, output, run, step};
use crate::{guest_image, paths, stage0};

/// How often the guest kernel is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kernel {
    /// Taken from the cache, for both rounds the same.
    Once,
    /// From nothing in each round.
    EachTime,
}

impl Kernel {
    /// What was shown of the kernel.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Once => {
                "the kernel was taken from the cache and not built anew: that it can be rebuilt was NOT shown"
            }
            Self::EachTime => "the kernel was built from nothing each time",
        }
    }
}

/// The folder of the rounds, for one run at a time; removed at the end.
pub(super) struct Workshop {
    folder: PathBuf,
    _lock: File,
}

impl Workshop {
    pub(super) fn open() -> anyhow::Result<Self> {
        let folder = paths::cache().join("release");
        let text = folder.to_string_lossy();
        ensure!(!text.contains(char::is_whitespace), "{text}: make cannot build in a path with a space");
        std::fs::create_dir_all(paths::cache())?;
        let lock = File::create(folder.with_extension("lock"))?;
        if lock.try_lock().is_err() {
            bail!("another ./x release or ./x reproduce is running");
        }
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {text}"))?;
        Ok(Self { folder, _lock: lock })
    }

    /// Near the top, with the user's own home of cargo.
    pub(super) fn first(&self) -> anyhow::Result<Place> {
        let folder = self.folder.join("a");
        Self::checkout(Place {
            source: folder.join("source"),
            target: folder.join("target"),
            cargo_home: paths::cargo_home(),
        })
    }

    /// Deeper, with a home of cargo's of its own, into which cargo unpacks the downloaded crates anew.
    pub(super) fn second(&self) -> anyhow::Result<Place> {
        let folder = self.folder.join("second/place");
        let place = Place {
            source: folder.join("of-the-checkout/kata-cc"),
            target: folder.join("built"),
            cargo_home: folder.join("home/cargo"),
        };
        run(&mut command("cargo", &["fetch", "--locked", "--quiet", "--target", paths::TARGET]))?;
        let registry = place.cargo_home.join("registry");
        std::fs::create_dir_all(&registry)?;
        let to = registry.to_string_lossy();
        for part in ["cache", "index"] {
            let from = paths::cargo_home().join("registry").join(part);
            run(&mut command("cp", &["-a", &from.to_string_lossy(), &to]))?;
        }
        for settings in ["config.toml", "config"] {
            let from = paths::cargo_home().join(settings);
            if from.exists() {
                std::fs::copy(&from, place.cargo_home.join(settings))?;
            }
        }
        Self::checkout(place)
    }

    /// Copies the tracked files into a place.
    fn checkout(place: Place) -> anyhow::Result<Place> {
        let names =
            output(&mut command("git", &["ls-files", "-z"])).context("this is no checkout of git's")?;
        for name in names.split_terminator('\0') {
            let (from, to) = (paths::root().join(name), place.source.join(name));
            let parent = to.parent().context("a file without a folder")?;
            std::fs::create_dir_all(parent)
                .and_then(|()| copy(&from, &to))
                .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        }
        Ok(place)
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    if from.is_symlink() {
        return std::os::unix::fs::symlink(std::fs::read_link(from)?, to);
    }
    std::fs::copy(from, to).map(drop)
}

/// Build all files of a release from nothing.
pub(super) fn build(place: &Place, kernel: Kernel) -> anyhow::Result<Files> {
    step(&format!(
        "building from nothing in {}, with cargo's home {}",
        place.source.display(),
        place.cargo_home.display()
    ));
    let cache = place.target.join("cache");
    let kernels = guest_image::kernels(&place.source, (kernel == Kernel::EachTime).then_some(&*cache))?;
    let stage0 = stage0::image(&Place { target: place.target.join("stage0"), ..place.clone() })?;

    step("building the agent");
    let agent = place.program("kata-cc-agent")?;
    let mut files: Files = kernels;
    files.extend(guest_image::root(&place.source, &agent)?);
    files.insert("stage0".to_owned(), stage0);
    for (name, bytes) in &files {
        if let Some(path) = place.path_in(bytes) {
            bail!("{name} holds the path {}: it could not be rebuilt elsewhere", path.display());
        }
    }
    Ok(files)
}

/// Remove what a round left, which is some GiB.
pub(super) fn clear(place: &Place) -> anyhow::Result<()> {
    for folder in [&place.target, &place.source] {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}
