//! `kata-cc explain --calls`: system calls that programs of a sandbox on the sentry made and that are not there. The sentry says so in its log,
//! the first time, the tenth, the hundredth and so on for each program and call.
//!
//! Names of programs are a guest's: they reach a terminal only through [`printable`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Context;
use kata_cc_sandbox::log;
use serde::Serialize;

use crate::commands::records;
use crate::output::{Output, printable};

/// What such a line of a log says.
const MARK: &str = "system call that is not there";
/// Longest line that is read.
const LINE_MAX: u64 = 64 << 10;

/// A call of a program.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Missing {
    program: String,
    call: String,
    number: u64,
    /// It was made at least so often, and less than ten times that.
    count: u64,
    /// What usually makes it, and what comes of it.
    usual: String,
}

/// Prints them. Exit code 0 also where there are none.
pub(super) fn explain(what: &str, output: &Output) -> anyhow::Result<u8> {
    let found = read(open(what)?)?;
    if output.json {
        output.document(&found)?;
    } else {
        output.text(&text(&found))?;
    }
    Ok(0)
}

/// A file, standard input, or the log of a sandbox.
fn open(what: &str) -> anyhow::Result<Box<dyn Read>> {
    if what == "-" {
        return Ok(Box::new(std::io::stdin()));
    }
    let path = Path::new(what);
    let path = if path.is_file() { path.to_owned() } else { log::file(&records::dir(&records::find(what)?)) };
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Box::new(file))
}

fn read(from: impl Read) -> anyhow::Result<Vec<Missing>> {
    let mut all: BTreeMap<(String, u64), Missing> = BTreeMap::new();
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.by_ref().take(LINE_MAX).read_until(b'\n', &mut line).context("cannot read the log")? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        // A line of a sandbox's log is JSON with the sentry's own in it.
        let inner = serde_json::from_str::<log::Line>(&text).map(|line| line.msg);
        let Some(missing) = parse(inner.as_deref().unwrap_or(&text)) else { continue };
        let key = (missing.program.clone(), missing.number);
        if all.get(&key).is_none_or(|known| known.count <= missing.count) {
            all.insert(key, missing);
        }
    }
    Ok(all.into_values().collect())
}

/// Out of a line of the sentry's log; `None` where it is about something else.
fn parse(line: &str) -> Option<Missing> {
    let (_, mut rest) = line.split_once(MARK)?;
    let mut fields = BTreeMap::new();
    while let Some((key, value)) = rest.trim_start().split_once('=') {
        let (value, behind) = value_of(value)?;
        fields.insert(key, value);
        rest = behind;
    }
    let mut take = |key: &str| fields.remove(key);
    Some(Missing {
        program: take("program")?,
        call: take("name")?,
        number: take("number")?.parse().ok()?,
        count: take("count")?.parse().ok()?,
        usual: take("usual")?,
    })
}

/// A value, in quotes with escapes or up to a blank, and what is behind it.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        return Some((value.to_owned(), rest));
    };
    let mut escaped = false;
    let end = quoted.find(|letter| {
        let ends = letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        ends
    })?;
    // Escapes stay as they are: nobody takes them for something else.
    Some((quoted.get(..end)?.to_owned(), quoted.get(end + 1..)?))
}

fn text(found: &[Missing]) -> String {
    if found.is_empty() {
        return "no call that is not there is in this log\n".to_owned();
    }
    let width = found.iter().map(|missing| printable(&missing.program).len()).max().unwrap_or(0).min(32);
    let line = |missing: &Missing| {
        let count = if missing.count > 1 { format!("{}+", missing.count) } else { "1".to_owned() };
        let line = format!(
            "{:<width$}  {:<24} {count:>8}  {}",
            printable(&missing.program),
            printable(&missing.call),
            printable(&missing.usual),
        );
        line.trim_end().to_owned() + "\n"
    };
    let head = format!("{:<width$}  {:<24} {:>8}  who usually makes it\n", "program", "call", "times");
    head + &found.iter().map(line).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-11-28T02:00:00.000000Z  INFO kata_cc_sentry::calls: system call that is not there program=\"gdb\" number=101 \
         name=\"ptrace\" count=1 usual=\"debuggers; they do not work\"\n\
         2026-11-28T02:00:00Z  WARN kata_cc_sentry: something else\n\
         INFO kata_cc_sentry::calls: system call that is not there program=\"gdb\" number=101 name=\"ptrace\" count=100 usual=\"debuggers\"\n\
         INFO x: system call that is not there program=\"a\\\" b=\\n\" number=900 name=\"?\" count=1 usual=\"\"\n\
         INFO x: system call that is not there program=\"broken\n";

    #[test]
    fn lines_of_a_log_are_counted_for_each_program_and_call() {
        let found = read(LOG.as_bytes()).unwrap();
        let seen: Vec<_> = found.iter().map(|one| (&*one.program, &*one.call, one.count)).collect();
        assert_eq!(seen, [("a\\\" b=\\n", "?", 1), ("gdb", "ptrace", 100)]);
        let text = text(&found);
        assert!(text.contains("100+  debuggers\n"), "{text}");
        assert_eq!(super::text(&[]).lines().count(), 1);
    }

    #[test]
    fn lines_of_a_sandboxes_log_are_looked_into() {
        let line = serde_json::json!({"t": "", "source": "vmm", "level": "info", "msg": LOG.lines().next().unwrap()});
        assert_eq!(read(line.to_string().as_bytes()).unwrap().len(), 1);
    }
}
