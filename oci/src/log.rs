//! `--log` and `--log-format`: what engines read to learn why a verb failed. The last line of level error is the reason.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// logrus' `key=value`.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// Where lines go.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The file; standard error without.
    pub file: Option<PathBuf>,
    /// How they look.
    pub format: Format,
    /// Whether lines for debugging are wanted.
    pub debug: bool,
}

impl Log {
    /// A failure. It is on standard error whatever else is asked for.
    pub fn error(&self, message: &str) {
        self.line("error", message);
        if self.file.is_some() {
            let _ = writeln!(std::io::stderr(), "{message}");
        }
    }

    /// Something that the user should know.
    pub fn warn(&self, message: &str) {
        self.line("warning", message);
    }

    /// For debugging.
    pub fn debug(&self, message: &str) {
        if self.debug {
            self.line("debug", message);
        }
    }

    fn line(&self, level: &str, message: &str) {
        let line = format(self.format, level, message, OffsetDateTime::now_utc());
        let written = self.file.as_ref().is_some_and(|file| {
            let opened = OpenOptions::new().create(true).append(true).open(file);
            opened.is_ok_and(|mut file| file.write_all(line.as_bytes()).is_ok())
        });
        if !written {
            // A log that cannot be written must not hide the reason.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

fn format(format: Format, level: &str, message: &str, now: OffsetDateTime) -> String {
    let now = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default();
    match format {
        Format::Text => format!("time=\"{now}\" level={level} msg={}\n", json!(message)),
        Format::Json => format!("{}\n", json!({"level": level, "msg": message, "time": now})),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_logrus() {
        let then = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        assert_eq!(
            format(Format::Text, "error", "a \"b\"\nc", then),
            "time=\"2023-11-14T22:13:20Z\" level=error msg=\"a \\\"b\\\"\\nc\"\n"
        );
        assert_eq!(
            format(Format::Json, "error", "x", then),
            "{\"level\":\"error\",\"msg\":\"x\",\"time\":\"2023-11-14T22:13:20Z\"}\n"
        );
    }

    #[test]
    fn lines_are_added_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let log = Log { file: Some(file.clone()), format: Format::Json, debug: false };
        log.warn("one");
        log.debug("not this");
        log.warn("two");
        let text = std::fs::read_to_string(file).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    }
}
