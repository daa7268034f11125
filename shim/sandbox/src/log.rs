//! One log per sandbox: shim, VMM, guest kernel, agent and containers in one stream, `log.jsonl`.
//!
//! Each line is an object `{"t", "source", "level", "msg", …}`. What the guest prints is untrusted: lines are cut at
//! [`MAX_LINE`], control characters cannot reach a terminal through JSON, and the file is capped at [`MAX_FILE`], after
//! which one last line says so.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longest message that is kept, in bytes.
pub const MAX_LINE: usize = 16 << 10;
/// Largest log of one sandbox.
pub const MAX_FILE: u64 = 32 << 20;
const FILE: &str = "log.jsonl";

/// Who wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Shim or command line.
    Shim,
    /// The monitor.
    Vmm,
    /// The guest's kernel (serial console).
    Kernel,
    /// The guest's agent.
    Agent,
    /// A container's output.
    Container,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When, RFC 3339.
    pub t: String,
    /// Who.
    pub source: Source,
    /// `error`, `warn`, `info`, `debug`, `trace`.
    pub level: String,
    /// What.
    pub msg: String,
    /// Everything else.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// Now, as it stands in logs and records.
#[must_use]
pub fn now() -> String {
    const FORM: &[time::format_description::BorrowedFormatItem<'_>] = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"
    );
    time::OffsetDateTime::now_utc().format(FORM).unwrap_or_default()
}

/// Cut to at most `limit` bytes, at a character's end.
#[must_use]
pub fn cut(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The log of one sandbox; clones write to the same file.
#[derive(Clone, Debug)]
pub struct Log {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    file: Option<File>,
    left: u64,
}

impl Log {
    /// Open (or create) the log in a record folder.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(dir: &Path) -> std::io::Result<Self> {
        let file = File::options().create(true).append(true).mode(0o600).open(dir.join(FILE))?;
        let left = MAX_FILE.saturating_sub(file.metadata()?.len());
        Ok(Self { state: Arc::new(Mutex::new(State { file: Some(file), left })) })
    }

    /// A log that keeps nothing.
    #[must_use]
    pub fn nowhere() -> Self {
        Self { state: Arc::new(Mutex::new(State { file: None, left: 0 })) }
    }

    /// Add a message.
    pub fn add(&self, source: Source, level: &str, msg: &str) {
        self.add_fields(source, level, msg, Map::new());
    }

    /// Add a message with further fields.
    pub fn add_fields(&self, source: Source, level: &str, msg: &str, fields: Map<String, Value>) {
        let msg = cut(msg, MAX_LINE).to_owned();
        self.write(&Line { t: now(), source, level: level.to_owned(), msg, fields });
    }

    /// Add a line that a VMM or agent wrote as JSON; the guest's time is not taken: it could be any. Text that is none becomes the message of a line of its own.
    pub fn add_foreign(&self, source: Source, text: &str) {
        let text = cut(text, MAX_LINE);
        let Ok(Value::Object(mut fields)) = serde_json::from_str::<Value>(text) else {
            return self.add(source, "info", text);
        };
        let mut take = |names: &[&str]| {
            names.iter().find_map(|name| fields.remove(*name)).and_then(|value| match value {
                Value::String(text) => Some(text),
                _ => None,
            })
        };
        let said = take(&["t", "timestamp", "time"]);
        let t = said.filter(|_| source == Source::Vmm).unwrap_or_else(now);
        let level = take(&["level"]).unwrap_or_else(|| "info".into()).to_lowercase();
        let msg = take(&["msg", "message"]).unwrap_or_default();
        fields.remove("source");
        self.write(&Line { t, source, level, msg, fields });
    }

    fn write(&self, line: &Line) {
        let Ok(mut bytes) = serde_json::to_vec(line) else { return };
        bytes.push(b'\n');
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let full = bytes.len() as u64 > state.left;
        let Some(file) = state.file.as_mut() else { return };
        if full {
            bytes = format!(
                "{{\"t\":\"{}\",\"source\":\"shim\",\"level\":\"warn\",\"msg\":\"the log is full ({MAX_FILE} bytes): nothing more is kept\"}}\n",
                now()
            )
            .into_bytes();
        }
        // A log that cannot be written must not stop the sandbox.
        let written = file.write_all(&bytes).is_ok();
        state.left = state.left.saturating_sub(bytes.len() as u64);
        if full || !written {
            state.file = None;
        }
    }
}

/// Read a sandbox's log; lines that are damaged are passed over.
///
/// # Errors
/// When there is no such file.
pub fn read(dir: &Path) -> std::io::Result<impl Iterator<Item = Line> + use<>> {
    let file = BufReader::new(File::open(dir.join(FILE))?);
    // By bytes: a damaged line that is no text must not hide what stands behind it.
    Ok(file.split(b'\n').map_while(Result::ok).filter_map(|line| serde_json::from_slice(&line).ok()))
}

/// The log's file in a record folder.
#[must_use]
pub fn file(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_sources_are_one_stream() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path()).unwrap();
        log.add(Source::Shim, "info", "starting");
        log.add_foreign(
            Source::Vmm,
            r#"{"timestamp":"2026-01-01T00:00:00Z","level":"WARN","message":"slow","device":"net-0"}"#,
        );
        log.add_foreign(Source::Kernel, "Linux version \u{1b}[31m6.12");
        // a guest cannot pose as another source
        log.add_foreign(Source::Agent, r#"{"source":"shim","msg":"x","t":"2020-01-01T00:00:00Z"}"#);
        let lines: Vec<Line> = read(dir.path()).unwrap().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!((lines[1].level.as_str(), lines[1].msg.as_str()), ("warn", "slow"));
        assert_eq!(lines[1].fields["device"], "net-0");
        assert_eq!(lines[3].source, Source::Agent);
        // nor write itself into another time
        assert!(!lines[3].t.starts_with("2020") && lines[1].t.starts_with("2026-01-01"));
    }

    #[test]
    fn a_full_log_says_so_once_and_stops() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path()).unwrap();
        log.state.lock().unwrap().left = 100;
        for _ in 0..5 {
            log.add(Source::Kernel, "info", &"x".repeat(200));
        }
        let lines: Vec<Line> = read(dir.path()).unwrap().collect();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].msg.contains("full"));
    }

    #[test]
    fn long_lines_are_cut_at_a_characters_end() {
        assert_eq!(cut("aä", 2), "a");
        assert_eq!(cut("aä", 3), "aä");
        assert_eq!(cut("a", 9), "a");
    }
}
