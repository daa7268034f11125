//! Proof of compatibility: the programs of `tests/abi` answer the same on this machine's kernel and in the sentry, line by line.
//!
//! `tests/abi/README.md` tells what the programs are. Those of the families that `expectations.toml` holds run always. What is set in the
//! environment: `KATA_CC_ABI_FAMILIES=files,paths` runs these, `all` every one; `KATA_CC_ABI=host` runs each program twice on this machine's
//! kernel instead, which tells a check that is not always the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// How long one program may take. A group of checks in it has 100 s.
const LIMIT: Duration = Duration::from_secs(600);
/// What all families together must amount to, and what those that run always must.
const LEAST_CHECKS: [usize; 2] = [1500, 1100];

/// What one run of a program printed.
#[derive(Debug, Default)]
struct Answers {
    /// Check to result.
    results: BTreeMap<String, String>,
    /// Checks of a name that was there before.
    twice: Vec<String>,
    /// In which check it hung, or that it could not be run.
    trouble: Option<String>,
}

impl Answers {
    fn add(&mut self, line: &str) {
        let (check, result) = line.split_once(": ").unwrap_or((line, ""));
        if self.results.insert(check.to_owned(), result.to_owned()).is_some() {
            self.twice.push(check.to_owned());
        }
    }
}

/// A check that is known to differ.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expectation {
    family: String,
    /// A name; a `*` at its end stands for any rest.
    check: String,
}

impl Expectation {
    fn covers(&self, family: &str, check: &str) -> bool {
        self.family == family
            && match self.check.strip_suffix('*') {
                Some(start) => check.starts_with(start),
                None => self.check == check,
            }
    }
}

/// How the second run of a family compares to the first.
#[derive(Debug, Default)]
struct Comparison {
    checks: usize,
    equal: usize,
    differing: usize,
    missing: usize,
    /// What differs and is not known to.
    surprises: Vec<String>,
}

/// Line by line. Expectations that cover something that differs are added to `used`.
fn compare(
    family: &str,
    expected: &Answers,
    seen: &Answers,
    expectations: &[Expectation],
    used: &mut BTreeSet<usize>,
) -> Comparison {
    let mut comparison = Comparison { checks: expected.results.len(), ..Comparison::default() };
    let mut differs = |check: &str, text: String, surprises: &mut Vec<String>| {
        let known: Vec<usize> =
            (0..expectations.len()).filter(|at| expectations[*at].covers(family, check)).collect();
        if known.is_empty() {
            surprises.push(text);
        }
        used.extend(known);
    };
    for (check, result) in &expected.results {
        let text = match seen.results.get(check) {
            Some(other) if other == result => {
                comparison.equal += 1;
                continue;
            }
            Some(other) => {
                comparison.differing += 1;
                format!("{family} {check}: {result}, but {other}")
            }
            None => {
                comparison.missing += 1;
                format!("{family} {check}: {result}, but nothing")
            }
        };
        differs(check, text, &mut comparison.surprises);
    }
    for (check, result) in seen.results.iter().filter(|(check, _)| !expected.results.contains_key(*check)) {
        comparison.differing += 1;
        differs(check, format!("{family} {check}: nothing, but {result}"), &mut comparison.surprises);
    }
    comparison
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/abi")
}

/// Where the sentry lies: cargo builds it for this test.
fn binaries() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_kata-cc-sentry")).parent().unwrap_or(Path::new("."))
}

/// `tests/abi/run`, which knows how programs are built and run.
fn script(words: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.arg(folder().join("run")).args(words);
    // Two folders up: target/x86_64-unknown-linux-gnu/release.
    let target = binaries().ancestors().nth(2).unwrap_or(binaries());
    command.env("KATA_CC_BIN_DIR", binaries()).env("CARGO_TARGET_DIR", target);
    command
}

/// Runs a program with a time limit; what it printed until then counts.
fn answers(place: &str, family: &str) -> anyhow::Result<Answers> {
    let mut child = script(&[place, family])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let stdout = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let stderr = BufReader::new(child.stderr.take().context("stderr is piped")?);
    let printed = std::thread::spawn(move || stdout.split(b'\n').map_while(Result::ok).collect::<Vec<_>>());
    let complaints = std::thread::spawn(move || stderr.lines().map_while(Result::ok).collect::<Vec<_>>());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > LIMIT {
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // what is left of the group holds the pipes open
    let group = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    let _ = child.wait();
    let lines = printed.join().unwrap_or_default();
    let complaints = complaints.join().unwrap_or_default();
    let mut answers = Answers::default();
    for line in &lines {
        answers.add(&String::from_utf8_lossy(line));
    }
    let last = lines.last().map(|line| String::from_utf8_lossy(line).into_owned()).unwrap_or_default();
    answers.trouble = match status {
        None => Some(format!("{family} hung ({place}) after: {last}")),
        Some(status) if !status.success() => {
            Some(format!("{family} ended with {status} ({place}) after: {last}; {}", complaints.join("; ")))
        }
        Some(_) => None,
    };
    Ok(answers)
}

/// The families that must agree, whenever tests run.
fn held(text: &str) -> anyhow::Result<Vec<String>> {
    let table: toml::Table = text.parse()?;
    let names =
        table.get("held").and_then(toml::Value::as_array).context("expectations.toml holds no family")?;
    Ok(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
}

fn expectations(text: &str) -> anyhow::Result<Vec<Expectation>> {
    let table: toml::Table = text.parse()?;
    let entries = table.get("differs").and_then(toml::Value::as_array).cloned().unwrap_or_default();
    let field = |entry: &toml::Value, name: &str| -> anyhow::Result<String> {
        let value = entry.get(name).and_then(toml::Value::as_str).unwrap_or_default();
        ensure!(!value.is_empty(), "expectations.toml: an entry without {name}: {entry}");
        Ok(value.to_owned())
    };
    entries
        .iter()
        .map(|entry| {
            field(entry, "why")?;
            Ok(Expectation { family: field(entry, "family")?, check: field(entry, "check")? })
        })
        .collect()
}

/// Whether programs can be built and run here; prints why not.
fn possible() -> bool {
    let gcc = Command::new("gcc").arg("--version").output().is_ok_and(|output| output.status.success());
    if !gcc {
        println!("skipped: no gcc here");
    }
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: root is needed for namespaces");
    }
    gcc && root
}

#[test]
fn programs_cannot_tell_the_sentry_from_this_kernel() -> anyhow::Result<()> {
    if !possible() {
        return Ok(());
    }
    let host_only = std::env::var("KATA_CC_ABI").is_ok_and(|mode| mode == "host");
    let text = std::fs::read_to_string(folder().join("expectations.toml"))?;
    let listed = script(&["list"]).output()?;
    let mut families: Vec<String> = String::from_utf8(listed.stdout)?.lines().map(str::to_owned).collect();
    let wanted = std::env::var("KATA_CC_ABI_FAMILIES").ok();
    let least = match wanted.as_deref() {
        Some("all") => LEAST_CHECKS[0],
        Some(wanted) => {
            families.retain(|family| wanted.split(',').any(|one| one == family));
            0
        }
        None => {
            families = held(&text)?;
            LEAST_CHECKS[1]
        }
    };
    let built = script(&["build"]).args(&families).output()?;
    ensure!(built.status.success(), "cannot build: {}", String::from_utf8_lossy(&built.stderr));

    // what is known of the sentry is not true of this kernel
    let known = if host_only { Vec::new() } else { expectations(&text)? };
    let mut used = BTreeSet::new();
    let (mut faults, mut checks) = (Vec::new(), 0);
    println!("{:<16}{:>8}{:>8}{:>11}{:>9}", "family", "checks", "equal", "differing", "missing");
    for family in &families {
        let expected = answers("host-built", family)?;
        let seen = answers(if host_only { "host-built" } else { "sentry-built" }, family)?;
        faults
            .extend(expected.twice.iter().map(|check| format!("{family} {check}: two checks of this name")));
        let late = expected
            .results
            .iter()
            .filter(|(_, result)| result.starts_with("hung after") || result.as_str() == "took too long");
        faults.extend(late.map(|(check, result)| format!("{family} {check}: {result}, on this kernel")));
        faults.extend([&expected, &seen].iter().filter_map(|answers| answers.trouble.clone()));
        let comparison = compare(family, &expected, &seen, &known, &mut used);
        println!(
            "{family:<16}{:>8}{:>8}{:>11}{:>9}",
            comparison.checks, comparison.equal, comparison.differing, comparison.missing
        );
        checks += comparison.checks;
        faults.extend(comparison.surprises);
    }
    let unused =
        known.iter().enumerate().filter(|(at, entry)| families.contains(&entry.family) && !used.contains(at));
    faults.extend(unused.map(|(_, entry)| {
        format!("{} {}: no longer differs; remove it from expectations.toml", entry.family, entry.check)
    }));
    println!("{checks} checks, {} known to differ", used.len());
    ensure!(checks >= least, "only {checks} checks");
    if !faults.is_empty() {
        bail!("{} faults:\n{}", faults.len(), faults.join("\n"));
    }
    Ok(())
}

fn of(lines: &[&str]) -> Answers {
    let mut answers = Answers::default();
    lines.iter().for_each(|line| answers.add(line));
    answers
}

#[test]
fn a_difference_is_seen_whichever_side_lacks_it() {
    let (host, sentry) = (of(&["a: 1", "b: ok", "c: ENOENT"]), of(&["a: 1", "b: EINVAL", "d: 4"]));
    let mut used = BTreeSet::new();
    let comparison = compare("files", &host, &sentry, &[], &mut used);
    assert_eq!((comparison.equal, comparison.differing, comparison.missing), (1, 2, 1));
    assert_eq!(comparison.surprises.len(), 3);
}

#[test]
fn an_expectation_covers_its_own_family_and_must_be_of_use() -> anyhow::Result<()> {
    let known = expectations(
        "[[differs]]\nfamily = \"files\"\ncheck = \"open.*\"\nwhy = \"not yet\"\n\
         [[differs]]\nfamily = \"files\"\ncheck = \"size.max\"\nwhy = \"not yet\"\n",
    )?;
    let (host, sentry) = (of(&["open.a: 1", "size.max: 1"]), of(&["open.a: 2", "size.max: 1"]));
    let mut used = BTreeSet::new();
    assert!(compare("files", &host, &sentry, &known, &mut used).surprises.is_empty());
    assert_eq!(used, BTreeSet::from([0]));
    assert_eq!(compare("paths", &host, &sentry, &known, &mut used).surprises.len(), 1);
    assert!(
        expectations("[[differs]]\nfamily = \"files\"\ncheck = \"a\"\n").is_err(),
        "an entry must say why"
    );
    Ok(())
}

#[test]
fn a_name_that_comes_twice_is_found() {
    assert_eq!(of(&["a: 1", "a: 2"]).twice, ["a"]);
}
