//! `./x release`, its check on another machine, and `./x reproduce`: the guest's files built in folders that have nothing in common,
//! and compared byte by byte. What is proven and what is not: `docs/releases.md`.

mod compare;
mod launches;
mod manifest;
mod rounds;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;

use self::compare::Files;
use self::manifest::Manifest;
use self::rounds::{Kernel, Workshop};
use crate::guest_image::replace;
use crate::paths;
use crate::place::Place;
use crate::shell::{command, output, step};

/// Exit codes beside that of an error.
const EQUAL: u8 = 0;
const DIFFERENT: u8 = 1;
const UNREADABLE: u8 = 2;

/// What `./x release` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder for the files and their manifest; target/release-VERSION of the checkout without it.
    #[arg(long, value_name = "DIR", conflicts_with = "check")]
    out: Option<PathBuf>,
    /// Rebuild from this checkout and compare with a manifest, and with the files beside it. Exit code 0: equal; 1: something
    /// differs, and is named; 2: the manifest cannot be read.
    #[arg(long, value_name = "MANIFEST")]
    check: Option<PathBuf>,
    /// Take the guest kernel from the cache (built when it is not there) instead of building it from nothing each time, which takes
    /// 10 to 15 minutes. That it can be rebuilt is then not shown, and the manifest says so.
    #[arg(long)]
    kernel_once: bool,
}

impl Arguments {
    const fn kernel(&self) -> Kernel {
        if self.kernel_once { Kernel::Once } else { Kernel::EachTime }
    }
}

/// Make a release, or check one.
pub(crate) fn release(arguments: &Arguments) -> anyhow::Result<u8> {
    match &arguments.check {
        Some(file) => check(file, arguments.kernel()),
        None => make(arguments.out.as_deref(), arguments.kernel()),
    }
}

/// Build twice from the working tree and compare; nothing is kept.
pub(crate) fn reproduce(kernel_too: bool) -> anyhow::Result<u8> {
    let kernel = if kernel_too { Kernel::EachTime } else { Kernel::Once };
    let workshop = Workshop::open()?;
    Ok(if built_twice(&workshop, kernel)?.is_some() { EQUAL } else { DIFFERENT })
}

fn make(out: Option<&Path>, kernel: Kernel) -> anyhow::Result<u8> {
    let commit = committed()?;
    let workshop = Workshop::open()?;
    let Some((place, files)) = built_twice(&workshop, kernel)? else { return Ok(DIFFERENT) };
    let manifest = Manifest::of(commit, kernel, &files, launches::of(&place, &files)?)?;
    ensure!(committed()? == manifest.commit, "the checkout was changed while it was built");
    let folder = out.map_or_else(
        || paths::root().join("target").join(format!("release-{}", manifest.version)),
        Path::to_path_buf,
    );
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, bytes) in manifest.beside(&files)? {
        replace(&folder.join(name), &bytes)?;
    }
    replace(&folder.join(manifest::FILE), &manifest.bytes()?)?;
    step(&format!("release {} of commit {}: {}", manifest.version, manifest.commit, folder.display()));
    Ok(EQUAL)
}

fn check(file: &Path, kernel: Kernel) -> anyhow::Result<u8> {
    let expected = match Manifest::read(file) {
        Ok(manifest) => manifest,
        Err(error) => {
            eprintln!("x: {error:#}");
            return Ok(UNREADABLE);
        }
    };
    let folder = file.parent().unwrap_or(Path::new("."));
    let different = expected.contradictions(&compare::read_beside(folder, expected.names())?);
    if !different.is_empty() {
        print(&different);
        println!("x: {} contradicts itself or the files beside it: nothing was built", file.display());
        return Ok(DIFFERENT);
    }
    let commit = committed()?;
    let workshop = Workshop::open()?;
    let place = workshop.second()?;
    let files = rounds::build(&place, kernel)?;
    let found = Manifest::of(commit, kernel, &files, launches::of(&place, &files)?)?;

    let mut different = expected.differences(&found);
    let ours = found.beside(&files)?;
    let beside = compare::read_beside(folder, ours.keys())?;
    different.extend(beside.iter().filter_map(|(name, theirs)| compare::bytes(name, theirs, &ours[name])));
    print(&different);
    for line in expected.notes(&found) {
        println!("x: note: {line}");
    }
    if !different.is_empty() {
        println!("x: this checkout does not build what {} names", file.display());
        return Ok(DIFFERENT);
    }
    let compared = match beside.keys().map(String::as_str).collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "nothing".to_owned(),
        names => names,
    };
    step(&format!(
        "equal: {} files and {} launch values of {}; compared byte by byte beside it: {compared}",
        expected.files.len(),
        expected.launches.len(),
        file.display(),
    ));
    Ok(EQUAL)
}

/// The second place and the files, when both rounds gave the same; what differs is printed.
fn built_twice(workshop: &Workshop, kernel: Kernel) -> anyhow::Result<Option<(Place, Files)>> {
    let place = workshop.first()?;
    let first = rounds::build(&place, kernel)?;
    rounds::clear(&place)?;
    let place = workshop.second()?;
    let second = rounds::build(&place, kernel)?;
    let different = compare::files(&first, &second);
    print(&different);
    if !different.is_empty() {
        let kept = paths::target().join("release-different");
        for (round, files) in [("first", &first), ("second", &second)] {
            let folder = kept.join(round);
            std::fs::create_dir_all(&folder)?;
            files.iter().try_for_each(|(name, bytes)| replace(&folder.join(name), bytes))?;
        }
        println!("x: two builds in different folders differ; both are kept in {}", kept.display());
        return Ok(None);
    }
    for (name, bytes) in &first {
        let file = crate::guest_image::measured(name, bytes);
        println!("x: {name}: {} bytes, sha256 {} both times", file.bytes, file.sha256);
    }
    println!("x: {}", kernel.words());
    Ok(Some((place, second)))
}

fn print(lines: &[String]) {
    for line in lines {
        println!("x: {line}");
    }
}

/// The commit of the checkout, which has to be what its files are.
fn committed() -> anyhow::Result<String> {
    let changed = output(&mut command("git", &["status", "--porcelain", "--untracked-files=no"]))?;
    if !changed.is_empty() {
        bail!("a release is that of a commit, and these files are changed since the last one:\n{changed}");
    }
    Ok(output(&mut command("git", &["rev-parse", "HEAD"]))?.trim().to_owned())
}
