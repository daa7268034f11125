//! `./x test`: checks, then unit and integration tests here, then the end-to-end tests where virtual
//! machines can run.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, anyhow, bail, ensure};
use kata_cc_test_vectors::REQUIRE;

use crate::shell::{command, output, run, step};
use crate::{binaries, checks, guest_image, images, lab, openapi, paths, programs};

/// Version of cargo-nextest that is installed when there is none.
const NEXTEST: &str = "0.9.143";

/// How long one program of the end-to-end tests may take, in minutes.
const END_TO_END_MINUTES: u32 = 40;

/// Emulated machines that run side by side: each has one processor and 9 GiB.
const LABS: usize = 2;

/// The tests that [`needs_a_machine`] leaves for here.
const NO_MACHINE: &str = "not ((package(kata-cc-tests) and kind(test)) or binary(boot))";

/// Run everything, or only the tests whose name contains `name`.
pub(crate) fn test(name: Option<&str>, no_vm: bool) -> anyhow::Result<()> {
    if name.is_none() {
        checks::all()?;
    }
    binaries::build()?;
    unit(name)?;
    openapi::check()?;
    if name.is_none() {
        images::build()?;
    }
    if no_vm {
        step("end-to-end tests were left out (--no-vm)");
        return Ok(());
    }
    guest_image::build()?;
    end_to_end(name)
}

fn unit(name: Option<&str>) -> anyhow::Result<()> {
    install_nextest()?;
    step("unit and integration tests");
    let mut nextest = command("cargo", &["nextest", "run", "--release", "--locked", "--workspace"]);
    nextest.args(["--no-fail-fast", "--no-tests", "pass", "--filterset", NO_MACHINE]);
    nextest.env("KATA_CC_BIN_DIR", paths::binaries()).env("KATA_CC_SHARE_DIR", paths::share());
    let signers = programs::signers();
    nextest.env(REQUIRE, required(&signers));
    nextest.envs(signers);
    match programs::root("programs") {
        Ok(root) => {
            nextest.env(programs::ROOT, root);
        }
        Err(error) => println!("x: {error:#}: real programs in the sentry are NOT tested"),
    }
    run(nextest.args(name)).context("a unit or integration test failed")
}

/// Parts that tests need and that are installed or built before: none of them may be missing.
const PARTS: [&str; 4] = ["postgres", "pkcs11", "xz", "binaries"];

/// What the tests may not skip: [`PARTS`], the shared vectors where there are any, and whatever the caller demands besides. nextest
/// does not show what a test prints that passes, so what is skipped is told here.
fn required(signers: &[(&str, PathBuf)]) -> String {
    let there = kata_cc_test_vectors::root();
    let asked = std::env::var(REQUIRE).unwrap_or_default();
    if there.is_none() && !kata_cc_test_vectors::requires("vectors") {
        println!(
            "x: there is no folder of shared vectors: tests over them are SKIPPED (KATA_CC_VECTORS names one)"
        );
    }
    let signers = if signers.is_empty() { "" } else { ",cosign,skopeo-sigstore" };
    requirements(&(asked + signers), there.is_some())
}

fn requirements(asked: &str, vectors: bool) -> String {
    let vectors = vectors.then_some("vectors");
    let asked = asked.split(',').map(str::trim).filter(|part| !part.is_empty());
    let all: BTreeSet<&str> = PARTS.into_iter().chain(vectors).chain(asked).collect();
    Vec::from_iter(all).join(",")
}

fn install_nextest() -> anyhow::Result<()> {
    let there = std::process::Command::new("cargo").args(["nextest", "--version"]).output();
    if there.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    step("installing cargo-nextest (once)");
    let install = ["install", "--quiet", "--locked", "cargo-nextest", "--version", NEXTEST];
    // From /, so that this project's static linking does not apply to it.
    run(command("cargo", &install).current_dir("/").env_remove("CARGO_TARGET_DIR"))
}

fn end_to_end(name: Option<&str>) -> anyhow::Result<()> {
    let host = lab::choose()?;
    step("building the end-to-end tests");
    let tests = test_programs()?;
    prepare_material()?;
    programs::containerds();
    step(&format!("end-to-end tests ({} programs)", tests.len()));
    let failed = run_programs(&host, &tests, name.unwrap_or_default())?;
    ensure!(failed.is_empty(), "end-to-end tests failed: {}", failed.join(", "));
    Ok(())
}

/// Runs the programs, each to its end also after a failure, and gives the names of those that failed. Inside, tests run one at
/// a time, since they share a machine. Emulated machines have one processor each, so [`LABS`] of them run side by side: the first
/// program alone (it is short, and makes the snapshot that the others resume), then the rest, whose output comes when they end.
fn run_programs(host: &lab::Host, tests: &[PathBuf], filter: &str) -> anyhow::Result<Vec<String>> {
    let arguments = ["--test-threads=1", "--nocapture", filter];
    let name = |test: &PathBuf| test.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut failed = Vec::new();
    let (first, rest) = tests.split_at(1);
    for (group, labs) in [(first, 1), (rest, if matches!(host, lab::Host::Lab) { LABS } else { 1 })] {
        let waiting = Mutex::new(group.iter());
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || -> anyhow::Result<Vec<String>> {
            let mut failed = Vec::new();
            while let Some(test) = next() {
                if host.run(test, &arguments, END_TO_END_MINUTES, labs > 1)? != 0 {
                    failed.push(name(test));
                }
            }
            Ok(failed)
        };
        let outcomes: Vec<anyhow::Result<Vec<String>>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..labs).map(|_| scope.spawn(work)).collect();
            let panicked = |_| Err(anyhow!("the thread that ran a program panicked"));
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(panicked)).collect()
        });
        for outcome in outcomes {
            failed.extend(outcome?);
        }
    }
    Ok(failed)
}

/// Keys, certificates and images that are slow to make in the lab.
pub(crate) fn prepare_material() -> anyhow::Result<()> {
    step("preparing keys, certificates and an image");
    let material = paths::material();
    run(&mut command(paths::binaries().join("kata-cc-demo"), &["prepare", &material.to_string_lossy()]))
}

/// Whether a test program starts virtual machines: all of `kata-cc-tests`, and the VMM's boots. And `systemd`, which runs here as well: here
/// with the control groups that this machine has, in the lab with all controllers of version 2.
fn needs_a_machine(message: &serde_json::Value) -> bool {
    let package = message["package_id"].as_str().unwrap_or_default();
    package.contains("kata-cc-tests")
        || message["target"]["name"] == "boot"
        || message["target"]["name"] == "systemd"
}

/// The test programs that need virtual machines, from cargo's own messages.
fn test_programs() -> anyhow::Result<Vec<PathBuf>> {
    // The whole workspace, as for the unit tests: another choice of packages would build the dependencies again.
    let build = ["test", "--release", "--locked", "--workspace", "--tests", "--no-run"];
    let mut build = command("cargo", &build);
    let messages = output(build.arg("--message-format=json"))?;
    let mut programs: Vec<PathBuf> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "test" && message["profile"]["test"] == true)
        .filter(needs_a_machine)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect();
    programs.sort();
    if programs.is_empty() {
        bail!("cargo built no end-to-end test");
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_there_may_be_skipped() {
        assert_eq!(requirements("", false), "binaries,pkcs11,postgres,xz");
        assert_eq!(requirements("", true), "binaries,pkcs11,postgres,vectors,xz");
        assert_eq!(
            requirements("schemathesis, vectors,", false),
            "binaries,pkcs11,postgres,schemathesis,vectors,xz"
        );
    }
}
