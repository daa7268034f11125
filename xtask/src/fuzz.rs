//! `./x fuzz`: builds the fuzz targets of `fuzz/` and runs them, each from its seeds and what earlier runs found.
//!
//! libFuzzer is linked in by `libfuzzer-sys`; the coverage that it is led by comes from LLVM's pass, which a stable
//! compiler has too. So neither a nightly nor cargo-fuzz is needed. There is no address sanitizer (that one does need
//! a nightly): what is looked for are panics, overflows, broken promises of the targets, hangs and memory without end.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::paths;
use crate::shell::{command, run, status, step};

/// As cargo-fuzz instruments, but for the sanitizer.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Ccodegen-units=4 -Cdebug-assertions=on";

/// Most bytes of an input: all formats show their corners in less.
const MAX_INPUT: &str = "-max_len=16384";
/// Seconds that one input may take.
const TIMEOUT: &str = "-timeout=10";
/// MiB that a target may use.
const MEMORY: &str = "-rss_limit_mb=1024";

/// Run one target, or all (`all`); list them without a name.
pub(crate) fn fuzz(target: Option<&str>, seconds: u32) -> anyhow::Result<()> {
    let fuzz = paths::root().join("fuzz");
    let all = targets(&fuzz)?;
    let Some(target) = target else {
        for (name, what) in all {
            println!("{name:<20} {what}");
        }
        return Ok(());
    };
    let chosen: Vec<&str> =
        all.iter().map(|(name, _)| name.as_str()).filter(|name| target == "all" || *name == target).collect();
    ensure!(!chosen.is_empty(), "there is no fuzz target {target:?}: `./x fuzz` lists them");
    build(&fuzz, &chosen)?;
    let mut failed = Vec::new();
    for name in chosen {
        if !run_target(&fuzz, name, seconds)? {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("fuzzing found something: {} (inputs are in fuzz/artifacts)", failed.join(", "));
    }
    Ok(())
}

/// Names of the targets, with the first line of what their sources say.
fn targets(fuzz: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let dir = fuzz.join("fuzz_targets");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        let source =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let what = source.lines().next().unwrap_or_default().trim_start_matches("//! ");
        all.push((name.to_owned(), what.to_owned()));
    }
    all.sort();
    Ok(all)
}

/// Folder of the instrumented build.
fn build_dir() -> PathBuf {
    paths::target().join("fuzz")
}

/// What is fuzzed is what ships: the same versions; cargo adds libFuzzer to the copy.
fn lock_like_the_workspace(fuzz: &Path) -> anyhow::Result<()> {
    let (ours, theirs) = (paths::root().join("Cargo.lock"), fuzz.join("Cargo.lock"));
    std::fs::copy(&ours, &theirs)
        .with_context(|| format!("cannot copy {} to {}", ours.display(), theirs.display()))?;
    Ok(())
}

/// Clippy of the targets, so that a change elsewhere does not break one unseen.
pub(crate) fn lint() -> anyhow::Result<()> {
    let fuzz = paths::root().join("fuzz");
    lock_like_the_workspace(&fuzz)?;
    let clippy = ["clippy", "--release", "--all-targets", "--", "-D", "warnings"];
    run(command("cargo", &clippy).current_dir(fuzz))
}

fn build(fuzz: &Path, names: &[&str]) -> anyhow::Result<()> {
    step(&format!("building {} fuzz target(s)", names.len()));
    lock_like_the_workspace(fuzz)?;
    let mut cargo = command("cargo", &["build", "--release", "--target", paths::TARGET]);
    for name in names {
        cargo.args(["--bin", name]);
    }
    cargo.current_dir(fuzz).env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", build_dir());
    run(&mut cargo)
}

/// What others recorded is good to begin with: folders of the shared test vectors, where those are.
fn recorded(target: &str) -> &'static [&'static str] {
    match target {
        "azure_vtpm" => &["snp/evidence", "tdx/evidence"],
        "endorsements_file" => &["snp/certs", "tdx/certs", "tdx/quotes/v5-gcollateral/collateral"],
        "guest_event_log" | "tdx_event_log" => &["tdx/eventlogs"],
        "guest_qgs" => &["tdx/qgs"],
        "guest_quote" | "tdx_quote" => &["tdx/quotes", "tdx/tdreport"],
        "guest_sealed" => &["coco/sealed"],
        "guest_key_packet" => &["images/ocicrypt"],
        "kbs_request" => &["coco/evidence", "coco/runtime-data"],
        "snp_id_block" => &["snp/id-block"],
        "snp_report" => &["snp/reports"],
        "tdx_collateral" => &["tdx/quotes", "tdx/certs"],
        "x509_crl" => &["snp/certs", "tdx/certs"],
        _ => &[],
    }
}

/// Whether nothing was found.
fn run_target(fuzz: &Path, name: &str, seconds: u32) -> anyhow::Result<bool> {
    let (corpus, seeds) = (fuzz.join("corpus").join(name), fuzz.join("seeds").join(name));
    let artifacts = fuzz.join("artifacts").join(name);
    for dir in [&corpus, &artifacts] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    step(&format!("fuzzing {name} for {seconds} s"));
    let log = artifacts.join("log");
    let log_file = std::fs::File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let program = build_dir().join(paths::TARGET).join("release").join(name);
    let mut target = command(program, &[MAX_INPUT, TIMEOUT, MEMORY, "-print_final_stats=1"]);
    target
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()));
    // What is new goes to the first folder; seeds are only read.
    target.arg(corpus).args(seeds.is_dir().then_some(seeds));
    if let Some(vectors) = kata_cc_test_vectors::root() {
        target.args(recorded(name).iter().map(|part| vectors.join(part)).filter(|seeds| seeds.is_dir()));
    }
    let code = status(target.stdout(std::process::Stdio::null()).stderr(log_file))?;
    let told = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
    let last =
        |mark: &str| told.lines().rev().find(|line| line.contains(mark)).unwrap_or("").trim().to_owned();
    if code == 0 {
        println!("x: {name}: nothing found; {}", last(" cov: "));
        return Ok(true);
    }
    println!(
        "x: {name}: exit code {code}; {} {} (log: {})",
        last("panicked at"),
        last("SUMMARY"),
        log.display()
    );
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_in_the_manifest_and_says_what_it_is() {
        let fuzz = paths::root().join("fuzz");
        let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        let all = targets(&fuzz).unwrap();
        assert!(all.len() >= 20, "{all:?}");
        for (name, what) in &all {
            assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name} is not in fuzz/Cargo.toml");
            assert!(what.len() > 20 && !what.contains("#!["), "{name}: {what:?}");
        }
        assert_eq!(manifest.matches("[[bin]]").count(), all.len());
        let known: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["azure_vtpm", "tdx_quote", "x509_crl"] {
            assert!(known.contains(&name) && !recorded(name).is_empty(), "{name}");
            for part in recorded(name) {
                assert!(kata_cc_test_vectors::root().is_none_or(|root| root.join(part).is_dir()), "{part}");
            }
        }
    }
}
