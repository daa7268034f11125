//! Checks that need no test to run: format, lints, licences and advisories.

use anyhow::Context;

use crate::shell::{command, run, status, step};
use crate::{fuzz, paths};

/// Version of cargo-deny that `deny.toml` is written for.
const CARGO_DENY: &str = "0.20.2";

/// `./x fmt`.
pub(crate) fn format() -> anyhow::Result<()> {
    run(&mut command("cargo", &["fmt", "--all"]))
}

/// All checks; the first that fails ends the run.
pub(crate) fn all() -> anyhow::Result<()> {
    step("checking the format");
    run(&mut command("cargo", &["fmt", "--all", "--check"])).context("run ./x fmt")?;
    step("clippy, warnings denied");
    let clippy = ["clippy", "--release", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run(&mut command("cargo", &clippy))?;
    // Left out of the workspace's static build (xtask/src/binaries.rs).
    let helper =
        ["clippy", "--release", "--locked", "--package", "kata-cc-kbs-pkcs11", "--features", "helper"];
    run(command("cargo", &helper).args(["--all-targets", "--", "-D", "warnings"]))?;
    step("clippy of the fuzz targets");
    fuzz::lint()?;
    deny()
}

/// Licences, banned and duplicate crates, sources; advisories where their database can be had.
fn deny() -> anyhow::Result<()> {
    let tools = paths::cache().join("tools");
    let deny = tools.join("bin/cargo-deny");
    let version = format!("cargo-deny {CARGO_DENY}");
    let installed = std::process::Command::new(&deny).arg("--version").output();
    if !installed.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).trim() == version) {
        step("installing cargo-deny (once, cached)");
        let root = tools.to_string_lossy();
        // From /, so that this project's static linking does not apply to it.
        let install =
            ["install", "--quiet", "--locked", "cargo-deny", "--version", CARGO_DENY, "--root", &root];
        let mut install = command("cargo", &install);
        run(install.current_dir("/").env_remove("CARGO_TARGET_DIR"))?;
    }
    step("cargo-deny: licences, bans, sources");
    let checks = ["check", "--hide-inclusion-graph", "licenses", "bans", "sources"];
    run(&mut command(&deny, &checks))?;
    step("cargo-deny: advisories");
    if status(&mut command(&deny, &["fetch", "db"]))? != 0 {
        println!("x: the advisory database cannot be reached from here: advisories were NOT checked");
        return Ok(());
    }
    run(&mut command(&deny, &["check", "--disable-fetch", "advisories"]))
}
