//! Programs of other Debian releases, for tests: unpacked into the cache by `tests/lab/fetch-programs`, installed nowhere.

use std::path::PathBuf;

use crate::paths;
use crate::shell::command;

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
