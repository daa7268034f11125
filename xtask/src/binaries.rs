//! The binaries, all from one release build, but for the PKCS#11 helper.

use anyhow::Context;

use crate::paths;
use crate::shell::{command, run, step};

/// Names under which the shim is also called: the class of a sandbox is told by them.
const SHIM_NAMES: [&str; 3] =
    ["containerd-shim-kata-cc-vm-v2", "containerd-shim-kata-cc-sentry-v2", "containerd-shim-kata-cc-auto-v2"];

/// The one dynamic program: it loads a vendor's shared object, which a static one cannot.
const HELPER: &str = "kata-cc-kbs-pkcs11";

/// Build every binary and give the shim its other names.
pub(crate) fn build() -> anyhow::Result<()> {
    step("building the binaries");
    run(&mut command("cargo", &["build", "--release", "--locked", "--workspace", "--bins"]))?;
    for name in SHIM_NAMES {
        let link = paths::binaries().join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink("containerd-shim-kata-cc-v2", &link)
            .with_context(|| format!("cannot link {}", link.display()))?;
    }
    helper()
}

/// Build the helper, in a target folder of its own so that the other flags rebuild nothing else.
fn helper() -> anyhow::Result<()> {
    let target = paths::target().join("dynamic");
    let mut cargo = command("cargo", &["build", "--release", "--locked", "--package", HELPER]);
    cargo.args(["--features", "helper"]).env("CARGO_TARGET_DIR", &target);
    // Takes the place of the flags in `.cargo/config.toml`.
    cargo.env("RUSTFLAGS", "-Ctarget-feature=-crt-static");
    run(&mut cargo)?;
    let (from, to) =
        (target.join(paths::TARGET).join("release").join(HELPER), paths::binaries().join(HELPER));
    let _ = std::fs::remove_file(&to);
    std::fs::copy(&from, &to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
