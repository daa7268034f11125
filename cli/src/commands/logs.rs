//! `kata-cc logs`: what the containers of a sandbox printed; with `--all` also shim, VMM, guest kernel and agent, in one
//! stream.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::Context;
use kata_cc_sandbox::log::{self, Line, Source};

use super::records;
use crate::output::{Output, Tone, inert, printable, write};

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Sandbox, or the beginning of its id.
    id: String,
    /// Also shim, VMM, guest kernel and agent.
    #[arg(long)]
    all: bool,
    /// Go on until the sandbox ends.
    #[arg(long, short)]
    follow: bool,
}

/// Print the log.
pub(crate) fn logs(arguments: &Arguments, output: &Output) -> anyhow::Result<u8> {
    let id = records::find(&arguments.id)?;
    let path = log::file(&records::dir(&id));
    let file = File::open(&path)
        .with_context(|| format!("sandbox {id} has no log: cannot open {}", path.display()))?;
    let mut file = BufReader::new(file);
    let mut rest = Vec::new();
    loop {
        // Asked before reading: what is written until the end is read.
        let last = !arguments.follow || !records::is_running(&id);
        while file.read_until(b'\n', &mut rest)? > 0 {
            if rest.ends_with(b"\n") {
                match print(&rest, arguments.all, output) {
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(0),
                    result => result?,
                }
                rest.clear();
            }
        }
        if last {
            return Ok(0);
        }
        std::thread::sleep(LOOK);
    }
}

/// Print one line of the file; a damaged one is passed over.
fn print(bytes: &[u8], all: bool, output: &Output) -> std::io::Result<()> {
    let Ok(line) = serde_json::from_slice::<Line>(bytes) else { return Ok(()) };
    if !all && line.source != Source::Container {
        return Ok(());
    }
    let text = if output.json {
        inert(&serde_json::to_string(&line)?)
    } else if all {
        let text = describe(&line);
        match line.level.as_str() {
            "error" => output.paint(Tone::Bad, &text),
            "warn" => output.paint(Tone::Doubtful, &text),
            _ => text,
        }
    } else {
        // A tab steers nothing; colours of the container's are shown as text, `--json` has the exact characters.
        line.msg.split('\t').map(printable).collect::<Vec<_>>().join("\t")
    };
    write(&(text + "\n"))
}

/// One line of text: time, source, level, message, other fields.
fn describe(line: &Line) -> String {
    let source = match line.source {
        Source::Shim => "shim",
        Source::Vmm => "vmm",
        Source::Kernel => "kernel",
        Source::Agent => "agent",
        Source::Container => "container",
    };
    let mut text = format!("{} {source:<9} {:<5} {}", line.t, line.level, line.msg);
    for (key, value) in &line.fields {
        text += &format!(" {key}={}", records::plain(value).unwrap_or_default());
    }
    printable(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_line_cannot_steer_the_terminal() {
        let line: Line = serde_json::from_str(
            r#"{"t":"T","source":"kernel","level":"info","msg":"a\u001b[2Jb\nc","x":"\u0007"}"#,
        )
        .unwrap();
        assert_eq!(describe(&line), "T kernel    info  a\\u{1b}[2Jb\\nc x=\\u{7}");
    }
}
