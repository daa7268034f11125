//! How the command speaks: text or JSON, colour and progress only on a terminal.
//!
//! All printing goes through here. A reader that goes away (`kata-cc ps | head -1`) has seen enough: that is no error, and
//! no reason to panic as `println!` does.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

/// The user's choice of form, and what the terminal allows.
#[derive(Debug)]
pub(crate) struct Output {
    /// JSON on standard output.
    pub(crate) json: bool,
    colour: bool,
    progress: bool,
}

/// A colour that says good, doubtful or bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Doubtful,
    Bad,
    Quiet,
}

impl Output {
    /// Look at the terminal once.
    pub(crate) fn new(json: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            json,
            colour: !json && !plain && std::io::stdout().is_terminal(),
            progress: !json && std::io::stderr().is_terminal(),
        }
    }

    /// Print one JSON document.
    pub(crate) fn document(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.text(&(inert(&serde_json::to_string_pretty(value)?) + "\n"))
    }

    /// Print one JSON object on a line.
    pub(crate) fn line(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.text(&(inert(&serde_json::to_string(value)?) + "\n"))
    }

    /// Print text as it stands.
    pub(crate) fn text(&self, text: &str) -> anyhow::Result<()> {
        self.bytes(text.as_bytes())
    }

    /// Print bytes as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> anyhow::Result<()> {
        match write_bytes(bytes) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            result => result.context("standard output cannot be written"),
        }
    }

    /// Text in a colour, when standard output is a terminal.
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Doubtful => "33",
            Tone::Bad => "31",
            Tone::Quiet => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Tell what failed on standard error, with every cause; as JSON when that was asked for.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
        let message = one_line(&joined(&causes));
        if self.json {
            note(&inert(&serde_json::json!({"error": message, "causes": causes}).to_string()));
        } else {
            note(&format!("kata-cc: {message}"));
        }
    }

    /// A progress line for long work: a spinner on a terminal, plain lines otherwise, nothing with `--json`.
    pub(crate) fn progress(&self, what: &str) -> Progress {
        if !self.progress {
            if !self.json {
                note(what);
            }
            return Progress { bar: None, plain: !self.json };
        }
        let bar = indicatif::ProgressBar::new_spinner();
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress { bar: Some(bar), plain: false }
    }

    /// The same for work that is counted in bytes, told by [`Progress::of`] and [`Progress::at`]: a bar on a terminal.
    pub(crate) fn bytes_bar(&self, what: &str) -> Progress {
        let progress = self.progress(what);
        let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}";
        if let (Some(bar), Ok(style)) = (&progress.bar, indicatif::ProgressStyle::with_template(style)) {
            bar.set_style(style);
        }
        progress
    }
}

/// Running progress; it goes away when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<indicatif::ProgressBar>,
    /// Lines of text where there is no terminal.
    plain: bool,
}

impl Progress {
    /// So many bytes in all.
    pub(crate) fn of(&self, all: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(all);
        }
    }

    /// So many bytes are done.
    pub(crate) fn at(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// Say what is being done now.
    pub(crate) fn say(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        } else if self.plain {
            note(what);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Logging to standard error: warnings, and more with `-v`.
pub(crate) fn start_log(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let level = ["warn", "info", "debug", "trace"][usize::from(verbose).min(3)];
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// Write to standard output; for streams, which end when nobody reads them.
pub(crate) fn write(text: &str) -> std::io::Result<()> {
    write_bytes(text.as_bytes())
}

fn write_bytes(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Tell something on standard error. Nobody may be listening there, and there is nobody else to tell.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// JSON whose strings hold no control character: JSON itself allows DEL and the C1 set, terminals obey them.
pub(crate) fn inert(json: &str) -> String {
    let escape = |c: char| match c {
        '\n' => "\n".to_owned(),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    json.chars().map(escape).collect()
}

/// Causes in a row; some errors already tell the cause that stands below them.
fn joined(causes: &[String]) -> String {
    let mut text = String::new();
    for cause in causes.iter().filter(|cause| !cause.is_empty()) {
        if text.is_empty() {
            text.clone_from(cause);
        } else if !text.ends_with(cause.as_str()) {
            text += &format!(": {cause}");
        }
    }
    text
}

/// A message of several lines on one, without control characters.
fn one_line(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| printable(line.trim())).collect();
    lines.iter().filter(|line| !line.is_empty()).cloned().collect::<Vec<_>>().join("; ")
}

/// Text without control characters: what a guest says must not steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// Rows in aligned columns.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(cells) {
            line += cell;
            line += &" ".repeat(width - cell.chars().count() + 2);
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "long cell".to_owned()], vec!["bcd".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["1", "2"], &rows), "1    2\na    long cell\nbcd  x\n");
    }

    #[test]
    fn json_cannot_steer_a_terminal_and_means_the_same() {
        let value = serde_json::json!({"msg": "a\u{1b}[2J\u{9b}31m\u{7f}\n"});
        let text = inert(&serde_json::to_string_pretty(&value).unwrap());
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn a_cause_is_told_once() {
        let causes = ["a failed: no file", "no file", "b"].map(str::to_owned);
        assert_eq!(joined(&causes), "a failed: no file: b");
    }

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(one_line("a\n   b\r\n\nc\u{1b}[m"), "a; b; c\\u{1b}[m");
    }

    #[test]
    fn no_colour_where_there_is_no_terminal() {
        let output = Output { json: false, colour: false, progress: false };
        assert_eq!(output.paint(Tone::Bad, "x"), "x");
    }
}
