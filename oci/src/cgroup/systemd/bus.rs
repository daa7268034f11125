//! What systemd is asked (org.freedesktop.systemd1(5)), by `busctl`, which is wherever systemd is.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{LIMIT, of_user};
use crate::process::until;

const NAME: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";

/// A property of a unit, as `busctl` takes it: the type, and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Property {
    pub(super) name: String,
    words: Vec<String>,
    /// The version of systemd that knows it first, where older ones are about.
    pub(super) since: u32,
}

impl Property {
    pub(super) fn new(name: &str, words: &[&str]) -> Self {
        Self { name: name.to_owned(), words: words.iter().map(|word| (*word).to_owned()).collect(), since: 0 }
    }

    pub(super) fn text(name: &str, value: &str) -> Self {
        Self::new(name, &["s", value])
    }

    pub(super) fn flag(name: &str, value: bool) -> Self {
        Self::new(name, &["b", if value { "true" } else { "false" }])
    }

    pub(super) fn number(name: &str, value: u64) -> Self {
        Self::new(name, &["t", &value.to_string()])
    }

    pub(super) fn bytes(name: &str, value: &[u8]) -> Self {
        let mut words = vec!["ay".to_owned(), value.len().to_string()];
        words.extend(value.iter().map(u8::to_string));
        Self { name: name.to_owned(), words, since: 0 }
    }

    pub(super) fn since(self, version: u32) -> Self {
        Self { since: version, ..self }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.words.join(" "))
    }
}

fn command(verb: &str) -> Command {
    let mut command = Command::new("busctl");
    command.arg(if of_user() { "--user" } else { "--system" });
    command.args([verb, NAME, OBJECT]).arg(format!("{NAME}.Manager"));
    command.stdin(Stdio::null());
    command
}

/// Runs a command; what it said, or why not.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("busctl cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Calls a method of the manager.
fn call(
    method: &str,
    signature: &str,
    words: &[&str],
    properties: Option<&[Property]>,
) -> Result<String, String> {
    let mut command = command("call");
    // What begins with a dash is no option of busctl's.
    command.arg("--").arg(method).arg(signature).args(words);
    if let Some(properties) = properties {
        command.arg(properties.len().to_string());
        for property in properties {
            command.arg(&property.name).args(&property.words);
        }
        if signature.ends_with("a(sa(sv))") {
            command.arg("0");
        }
    }
    run(&mut command)
}

pub(super) fn start_transient(unit: &str, properties: &[Property]) -> Result<(), String> {
    call("StartTransientUnit", "ssa(sv)a(sa(sv))", &[unit, "fail"], Some(properties)).map(drop)
}

pub(super) fn set_properties(unit: &str, properties: &[Property]) -> Result<(), String> {
    call("SetUnitProperties", "sba(sv)", &[unit, "true"], Some(properties)).map(drop)
}

/// Stops a unit and waits for that.
pub(super) fn stop(unit: &str) {
    if call("StopUnit", "ss", &[unit, "replace"], None).is_ok() {
        until(LIMIT, || call("GetUnit", "s", &[unit], None).map_or(true, |object| !is_active(&object)));
    }
}

pub(super) fn reset_failed(unit: &str) {
    let _ = call("ResetFailedUnit", "s", &[unit], None);
}

/// Whether a unit is neither dead nor failed; `object` is an answer `o "/org/…"`.
fn is_active(object: &str) -> bool {
    let object = object.trim_start_matches("o ").trim_matches('"');
    if !Path::new(object).is_absolute() {
        return false;
    }
    let mut command = Command::new("busctl");
    command.arg(if of_user() { "--user" } else { "--system" });
    command.args(["get-property", NAME, object, &format!("{NAME}.Unit"), "ActiveState"]).stdin(Stdio::null());
    run(&mut command).is_ok_and(|state| !state.contains("inactive") && !state.contains("failed"))
}

/// systemd's own version: `s "252.38-1"`.
pub(super) fn version() -> Option<u32> {
    let answer = run(command("get-property").arg("Version")).ok()?;
    let text = answer.trim_start_matches("s ").trim_matches('"');
    let text = text.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    text.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}
