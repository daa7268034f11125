//! Running other programs: what is run is said, and a failure names it.

use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, bail};

/// Say what is being done, in one line with the time since the start.
pub(crate) fn step(what: &str) {
    static START: OnceLock<Instant> = OnceLock::new();
    let seconds = START.get_or_init(Instant::now).elapsed().as_secs();
    println!("x: {:>3}:{:02} {what}", seconds / 60, seconds % 60);
}

/// A command in the checkout's root with no standard input.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(crate::paths::root()).stdin(Stdio::null());
    command
}

/// Run to the end; anything but exit code 0 is an error.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = status(command)?;
    if status != 0 {
        bail!("{} ended with exit code {status}", describe(command));
    }
    Ok(())
}

/// Run to the end and give the exit code (128 + signal, as a shell counts).
pub(crate) fn status(command: &mut Command) -> anyhow::Result<i32> {
    use std::os::unix::process::ExitStatusExt;
    let status = command.status().with_context(|| format!("cannot start {}", describe(command)))?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

/// Run to the end and give what was printed; standard error goes through.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    if !output.status.success() {
        bail!("{} ended with {}", describe(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed no UTF-8", describe(command)))
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
