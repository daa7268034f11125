//! The binaries, all from one release build.

use anyhow::Context;

use crate::paths;
use crate::shell::{command, run, step};

/// Names under which the shim is also called: the class of a sandbox is told by them.
const SHIM_NAMES: [&str; 2] = ["containerd-shim-kata-cc-vm-v2", "containerd-shim-kata-cc-auto-v2"];

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
    Ok(())
}
