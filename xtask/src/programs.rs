//! Programs for tests: of other Debian releases, unpacked into the cache by `tests/lab/fetch-programs`, and those that run in the sentry, in a root
//! folder of their own (`tests/programs/make-root`). None is installed.

use std::path::PathBuf;

use anyhow::Context;

use crate::paths;
use crate::shell::{command, output, run, step};

/// cosign, which Debian has from trixie on, and a skopeo that signs for Sigstore and knows key providers, with the libraries that it needs.
const SIGNERS: [&str; 12] = [
    "cosign",
    "skopeo",
    "libassuan9",
    "libcap2",
    "libdevmapper1.02.1",
    "libgpg-error0",
    "libgpgme11t64",
    "libpcre2-8-0",
    "libselinux1",
    "libsqlite3-0",
    "libsubid5",
    "libudev1",
];

/// Fetches packages of a release, once; what cannot be had is told, and tests skip it.
fn fetch(name: &str, release: &str, packages: &[&str]) -> Option<PathBuf> {
    let words = [&[name, release], packages].concat();
    let fetched = command(paths::root().join("tests/lab/fetch-programs"), &words).status();
    if fetched.is_ok_and(|status| status.success()) {
        return Some(paths::cache().join(name).join(release));
    }
    println!("x: {} of {release} cannot be fetched: it is NOT tested", packages.first().unwrap_or(&name));
    None
}

/// containerd 1.7 and 2.x.
pub(crate) fn containerds() {
    for release in ["trixie", "sid"] {
        fetch("containerd", release, &["containerd", "libseccomp2"]);
    }
}

/// Where cosign and a newer skopeo are, by the variables that tests look at.
pub(crate) fn signers() -> Vec<(&'static str, PathBuf)> {
    let Some(folder) = fetch("signers", "trixie", &SIGNERS) else { return Vec::new() };
    let programs = [("KATA_CC_COSIGN", "cosign"), ("KATA_CC_SKOPEO", "skopeo")];
    programs.map(|(variable, name)| (variable, folder.join("bin").join(name))).to_vec()
}

/// gVisor's runsc, a peer; Debian has a newer one in its backports.
pub(crate) fn runsc() -> Option<PathBuf> {
    fetch("runsc", "bookworm-backports", &["runsc"]).map(|folder| folder.join("root/usr/bin/runsc"))
}

/// A root folder with the packages of a set, made once.
pub(crate) fn root(set: &str) -> anyhow::Result<PathBuf> {
    let root = output(&mut command(paths::root().join("tests/programs/make-root"), &[set]))?;
    Ok(root.trim().into())
}

/// The variable by which the tests of the sentry find that folder.
pub(crate) const ROOT: &str = "KATA_CC_PROGRAMS_ROOT";

/// `./x programs`: those of the table that are named, or all, then python's own tests.
pub(crate) fn in_the_sentry(names: &[String]) -> anyhow::Result<()> {
    let root = root("programs").context("the root folder of the programs cannot be made")?;
    let (python, table): (Vec<_>, Vec<_>) = names.iter().cloned().partition(|name| name == "python-tests");
    if names.is_empty() || !table.is_empty() {
        let chosen = if table.is_empty() { "all".to_owned() } else { table.join(",") };
        step(&format!("programs in the sentry: {chosen}"));
        let mut test = command("cargo", &["test", "--release", "--locked", "--package", "kata-cc-sentry"]);
        test.args(["--test", "programs", "--", "--nocapture"]).env(ROOT, &root);
        run(test.env("KATA_CC_PROGRAMS", chosen))
            .context("a program does not do in the sentry what it should")?;
    }
    if names.is_empty() || !python.is_empty() {
        step("python's own tests, module by module, under runc and in the sentry: an hour or so");
        run(&mut command("cargo", &["build", "--release", "--locked", "--package", "kata-cc-sentry"]))?;
        let mut modules = command(paths::root().join("tests/programs/python-modules"), &[]);
        run(modules.arg(&root).arg(paths::binaries().join("kata-cc-sentry")))?;
    }
    Ok(())
}
