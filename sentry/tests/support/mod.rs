//! What several files of tests do with the binary.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// `kata-cc-sentry do` with these arguments, without input.
pub(crate) fn sentry_do(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry"));
    command.arg("do").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a program prints until it ends, which it must within `limit`; `what` is said of one that does not.
pub(crate) fn within(limit: Duration, what: &str, command: &mut Command) -> Output {
    let mut child = command.spawn().unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > limit {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("{what} did not end within {limit:?}: {output:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}
