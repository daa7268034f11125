//! Running other programs: what is run is said, and a failure names it.

use std::io::{Read, Write};
use std::process::{Command, ExitStatus, Stdio};
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
    Ok(code(command.status().with_context(|| format!("cannot start {}", describe(command)))?))
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// As [`status`], but what it prints, on both outputs, is printed in one piece when it has ended.
pub(crate) fn status_and_output_at_the_end(command: &mut Command) -> anyhow::Result<i32> {
    let (mut reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", describe(command)))?;
    // the command keeps the pipe's other end open as long as it lives
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut printed = Vec::new();
    reader.read_to_end(&mut printed)?;
    std::io::stdout().lock().write_all(&printed)?;
    Ok(code(child.wait()?))
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
