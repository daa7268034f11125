//! Programs of the host that run at points of a container's life (runtime-spec, config.md "POSIX-platform Hooks"). They get its state on standard input.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use thiserror::Error;

use crate::process::until;
use crate::wire::{list, texts};

/// For hooks without a limit of their own.
const LIMIT: Duration = Duration::from_secs(60);
/// How much of what a hook says is told.
const TOLD: u64 = 4096;

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The sandbox is there, the container is not: `prestart` and `createRuntime`.
    CreateRuntime,
    /// Just before the container is made. The sentry has no place of the host for these: they run where the others do.
    CreateContainer,
    /// Its program runs.
    Poststart,
    /// It was deleted.
    Poststop,
}

impl When {
    const fn lists(self) -> &'static [&'static str] {
        match self {
            Self::CreateRuntime => &["prestart", "createRuntime"],
            Self::CreateContainer => &["createContainer"],
            Self::Poststart => &["poststart"],
            Self::Poststop => &["poststop"],
        }
    }
}

/// A hook that runs in the container, as the process that it is there.
#[derive(Debug, PartialEq, Eq)]
pub struct Inside {
    /// Its program.
    pub path: String,
    /// Its arguments, the name first.
    pub arguments: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// How long it may take.
    pub limit: Duration,
}

/// Hooks that run in the container just before its program (`startContainer`).
///
/// # Errors
/// One without an absolute path.
pub fn inside(spec: &Value) -> Result<Vec<Inside>, HookError> {
    let hook = |(index, hook): (usize, &Value)| {
        let path = hook["path"].as_str().unwrap_or_default();
        if !path.starts_with('/') {
            return Err(failed_inside(index, path, "its path is not absolute".to_owned()));
        }
        let mut arguments = texts(hook, "args");
        if arguments.is_empty() {
            arguments.push(path.to_owned());
        }
        let environment = texts(hook, "env");
        Ok(Inside { path: path.to_owned(), arguments, environment, limit: limit(hook) })
    };
    list(&spec["hooks"], START_CONTAINER).iter().enumerate().map(hook).collect()
}

const START_CONTAINER: &str = "startContainer";

/// The error of a hook in the container.
#[must_use]
pub fn failed_inside(index: usize, path: &str, reason: String) -> HookError {
    HookError { kind: START_CONTAINER, index, path: path.into(), reason }
}

fn limit(hook: &Value) -> Duration {
    hook["timeout"].as_u64().filter(|seconds| *seconds > 0).map_or(LIMIT, Duration::from_secs)
}

/// A hook that failed.
#[derive(Debug, Error)]
#[error("error running {kind} hook #{index}: {path}: {reason}")]
pub struct HookError {
    /// Of which list.
    pub kind: &'static str,
    /// Its place there.
    pub index: usize,
    /// Its program.
    pub path: PathBuf,
    /// What went wrong.
    pub reason: String,
}

/// Runs the hooks of a point in order, until one fails.
///
/// # Errors
/// The first that failed.
pub fn run(when: When, spec: &Value, state: &Value) -> Result<(), HookError> {
    run_each(when, spec, state, Err)
}

/// Runs all of them, and tells of those that failed.
pub fn run_all(when: When, spec: &Value, state: &Value, mut failed: impl FnMut(HookError)) {
    let _ = run_each(when, spec, state, |error| {
        failed(error);
        Ok(())
    });
}

fn run_each(
    when: When,
    spec: &Value,
    state: &Value,
    mut judge: impl FnMut(HookError) -> Result<(), HookError>,
) -> Result<(), HookError> {
    for kind in when.lists() {
        for (index, hook) in list(&spec["hooks"], kind).iter().enumerate() {
            if let Err(reason) = one(hook, state.to_string().as_bytes()) {
                let path = hook["path"].as_str().unwrap_or_default().into();
                judge(HookError { kind, index, path, reason })?;
            }
        }
    }
    Ok(())
}

fn one(hook: &Value, state: &[u8]) -> Result<(), String> {
    let path =
        hook["path"].as_str().filter(|path| path.starts_with('/')).ok_or("its path is not absolute")?;
    let limit = limit(hook);
    let mut command = Command::new(path);
    let arguments = texts(hook, "args");
    if let Some((name, arguments)) = arguments.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env_clear();
    for entry in texts(hook, "env") {
        if let Some((name, value)) = entry.split_once('=').filter(|(name, _)| !name.is_empty()) {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A hook that does not read its state is none the worse for it.
            if let Some(mut stdin) = stdin {
                let _ = stdin.write_all(state);
            }
        });
        let said = scope.spawn(move || {
            let mut said = Vec::new();
            if let Some(mut stderr) = stderr {
                let _ = stderr.by_ref().take(TOLD).read_to_end(&mut said);
                // It must not stop at a full pipe.
                let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            }
            String::from_utf8_lossy(&said).trim().to_owned()
        });
        let status = wait(&mut child, limit)?;
        if status.success() {
            return Ok(());
        }
        Err(format!("{status}, stderr: {}", said.join().unwrap_or_default()))
    })
}

fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus, String> {
    let begun = Instant::now();
    let mut ended = None;
    until(limit, || {
        ended = child.try_wait().transpose();
        ended.is_some()
    });
    match ended {
        Some(status) => status.map_err(|error| error.to_string()),
        None => {
            let _ = child.kill();
            let _ = child.wait();
            Err(format!("no end within {} s", begun.elapsed().as_secs()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sh(script: &str) -> Value {
        json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b=c"], "timeout": 1})
    }

    #[test]
    fn hooks_run_in_order_with_the_state_and_their_environment() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let line = |name: &str| sh(&format!("echo {name} $A $(cat) >>{}", out.display()));
        let spec = json!({"hooks": {"createRuntime": [line("2")], "prestart": [line("1")], "poststop": [line("3")]}});
        run(When::CreateRuntime, &spec, &json!({"id": "x"})).unwrap();
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "1 b=c {\"id\":\"x\"}\n2 b=c {\"id\":\"x\"}\n");
        run(When::Poststart, &spec, &json!({})).unwrap();
    }

    #[test]
    fn those_in_the_container_are_processes() {
        let spec = json!({"hooks": {"startContainer": [{"path": "/x", "timeout": 3}, {"path": "/y", "args": ["z", "1"], "env": ["A=b"]}]}});
        let found = inside(&spec).unwrap();
        let plain = Inside {
            path: "/x".into(),
            arguments: vec!["/x".into()],
            environment: Vec::new(),
            limit: Duration::from_secs(3),
        };
        assert_eq!(found.first(), Some(&plain));
        assert_eq!(found[1].arguments, ["z", "1"]);
        let error = inside(&json!({"hooks": {"startContainer": [{"path": "x"}]}})).unwrap_err().to_string();
        assert!(error.contains("startContainer hook #0") && error.contains("not absolute"), "{error}");
        assert!(inside(&json!({})).unwrap().is_empty());
    }

    #[test]
    fn one_that_fails_says_why() {
        let failing = sh("echo no network >&2; exit 3");
        let error = |hooks: Value| {
            run(When::CreateRuntime, &json!({"hooks": {"prestart": hooks}}), &json!({}))
                .unwrap_err()
                .to_string()
        };
        let text = error(json!([sh("true"), failing]));
        assert_eq!(text, "error running prestart hook #1: /bin/sh: exit status: 3, stderr: no network");
        assert!(error(json!([sh("exec sleep 60")])).contains("no end within 1 s"));
        assert!(error(json!([{"path": "x"}])).contains("not absolute"));
        assert!(error(json!([{"path": "/nowhere"}])).contains("No such file"));
        let mut told = 0;
        let spec = json!({"hooks": {"poststop": [failing, failing, sh("true")]}});
        run_all(When::Poststop, &spec, &json!({}), |_| told += 1);
        assert_eq!(told, 2);
    }
}
