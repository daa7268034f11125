//! Real programs in the sentry: those of `tests/programs/programs.toml`, in a root folder of Debian's packages.
//!
//! `KATA_CC_PROGRAMS_ROOT` is what `tests/programs/make-root programs` prints; without it nothing is tested, and that is said. `KATA_CC_PROGRAMS` is
//! `quick` (the default), `all`, or names. Each program is told with its time; all are run before the test fails.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and tells what it does")]

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One line of the table.
struct Program {
    name: String,
    script: String,
    expect: Vec<String>,
    seconds: u64,
    quick: bool,
    fails: Option<String>,
}

/// What became of it: its exit code (`None` where it took too long), and what it printed.
struct Outcome {
    code: Option<i32>,
    printed: String,
    errors: String,
    took: Duration,
}

fn table() -> Vec<Program> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/programs/programs.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let programs = table["program"].as_array().unwrap();
    let text =
        |entry: &toml::Value, key: &str| entry.get(key).map(|value| value.as_str().unwrap().to_owned());
    let program = |entry: &toml::Value| Program {
        name: text(entry, "name").unwrap(),
        script: text(entry, "script").unwrap(),
        expect: entry["expect"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line.as_str().unwrap().to_owned())
            .collect(),
        seconds: entry["seconds"].as_integer().unwrap().unsigned_abs(),
        quick: entry.get("quick").is_some_and(|value| value.as_bool().unwrap()),
        fails: text(entry, "fails"),
    };
    programs.iter().map(program).collect()
}

fn all_of(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn run(root: &Path, program: &Program) -> Outcome {
    let script = format!("set -euo pipefail; cd /tmp; {}", program.script);
    let mut child = Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry"))
        .args(["do", "--rootfs"])
        .arg(root)
        .args(["--", "/bin/bash", "-c", &script])
        .env("KATA_CC_LOG", std::env::var("KATA_CC_LOG").unwrap_or_else(|_| "warn".to_owned()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (printed, errors) = (all_of(child.stdout.take().unwrap()), all_of(child.stderr.take().unwrap()));
    let begin = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if begin.elapsed() > Duration::from_secs(program.seconds) {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let took = begin.elapsed();
    Outcome { code, printed: printed.join().unwrap(), errors: errors.join().unwrap(), took }
}

/// The first expected line that does not come, after those before it.
fn missing<'a>(printed: &str, expect: &'a [String]) -> Option<&'a str> {
    let mut lines = printed.lines();
    expect.iter().map(String::as_str).find(|wanted| !lines.any(|line| line == *wanted))
}

/// What is wrong, in words; `None` where all is as it should be.
fn verdict(program: &Program, outcome: &Outcome) -> Option<String> {
    let tail =
        |text: &str| text.chars().rev().take(1500).collect::<Vec<_>>().into_iter().rev().collect::<String>();
    let wrong = match (outcome.code, missing(&outcome.printed, &program.expect)) {
        (Some(0), None) => None,
        (None, _) => Some(format!("took longer than {} s", program.seconds)),
        (Some(0), Some(line)) => Some(format!("did not print {line:?}")),
        (Some(code), _) => Some(format!("ended with {code}")),
    };
    match (wrong, &program.fails) {
        (None, None) | (Some(_), Some(_)) => None,
        (None, Some(why)) => Some(format!("does what is expected, but is said not to: {why}")),
        (Some(wrong), None) => {
            Some(format!("{wrong}\n{}\n{}", tail(&outcome.printed), tail(&outcome.errors)))
        }
    }
}

#[test]
fn real_programs_do_what_is_expected() {
    let Some(root) = std::env::var_os("KATA_CC_PROGRAMS_ROOT").map(PathBuf::from) else {
        eprintln!("SKIPPED: KATA_CC_PROGRAMS_ROOT names no root folder (tests/programs/make-root programs)");
        return;
    };
    let chosen = std::env::var("KATA_CC_PROGRAMS").unwrap_or_else(|_| "quick".to_owned());
    let names: BTreeSet<&str> = chosen.split(',').collect();
    let table = table();
    for name in &names {
        let known = ["quick", "all"].contains(name) || table.iter().any(|program| program.name == *name);
        assert!(known, "there is no program {name} in the table");
    }
    let mut wrong = Vec::new();
    for program in &table {
        let wanted = names.contains("all")
            || names.contains(program.name.as_str())
            || (program.quick && names.contains("quick"));
        if !wanted {
            continue;
        }
        let outcome = run(&root, program);
        let verdict = verdict(program, &outcome);
        let word = match (&verdict, &program.fails) {
            (Some(_), _) => "WRONG",
            (None, Some(_)) => "known to fail",
            (None, None) => "ok",
        };
        eprintln!("{:<16} {:>7.1} s  {word}", program.name, outcome.took.as_secs_f64());
        if !outcome.errors.is_empty() && chosen != "quick" {
            eprintln!("{}", outcome.errors.trim_end());
        }
        wrong.extend(verdict.map(|text| format!("{}: {text}", program.name)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn the_table_is_whole_and_its_check_sees_what_is_missing() {
    let table = table();
    let names: BTreeSet<_> = table.iter().map(|program| &program.name).collect();
    assert!(names.len() == table.len() && table.len() >= 20, "{names:?}");
    assert!(table.iter().all(|program| !program.expect.is_empty() && program.seconds <= 1200));
    let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(missing("a\nb\nc\n", &lines("a c")), None);
    assert_eq!(missing("a\nb\nc\n", &lines("c a")), Some("a"));
    assert_eq!(missing("", &lines("a")), Some("a"));
}
